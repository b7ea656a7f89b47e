"""Real repositories for the tests, and trees that no honest `git add` would make."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from controller.sources.follower import PolicyFollower
from controller.sources.git.access import Access, checked
from controller.sources.git.mirror import Limits, Mirror
from controller.sources.git.source import GitSource
from controller.store.memory import MemoryStore
from controller.store.port import Store

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)
ENV = {
    "PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "Ann", "GIT_AUTHOR_EMAIL": "ann@example.org", "GIT_COMMITTER_NAME": "Ann",
    "GIT_COMMITTER_EMAIL": "ann@example.org",
}  # fmt: skip


FOREST = "component: sklearn.hist_gradient_boosting"


def policy(
    name: str = "flights", *, metric: str = "accuracy", train: str = FOREST, path: str = "/data/flights.csv", extra: str = ""
) -> str:  # fmt: skip
    """The text of a good policy file."""
    return f"""\
apiVersion: ratchet.dev/v1
kind: ModelPolicy
metadata: {{name: {name}{extra}}}
spec:
  task: binary
  data:
    source: {{kind: csv, path: {path}}}
    label: late
    time: at
    label_delay: 1h
  train: {{{train}}}
  objective: {{metric: {metric}}}
  triggers: {{staleness: 30d}}
"""


@dataclass(frozen=True, slots=True)
class Repo:
    """A bare repository, as a server has it, written by plumbing."""

    path: Path

    @property
    def url(self) -> str:
        return f"file://{self.path}"

    def git(self, *arguments: str, stdin: bytes | str | None = None) -> str:
        given = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            ["git", *arguments], cwd=self.path, input=given, env=ENV, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout.decode(errors="replace").strip()

    def blob(self, content: str | bytes) -> str:
        return self.git("hash-object", "-w", "--stdin", stdin=content)

    def tree(self, *lines: tuple[str, str, str, str | bytes]) -> str:
        """Of (mode, kind, id, name), names as they are given, however odd."""
        text = b"".join(
            f"{mode} {kind} {oid}\t".encode() + (name.encode() if isinstance(name, str) else name) + b"\0"
            for mode, kind, oid, name in lines
        )
        return self.git("mktree", "-z", "--missing", stdin=text)

    def nested(self, files: Mapping[str, str | bytes]) -> str:
        """A tree of ordinary files; a path that starts with `+` is executable, with `@` a link."""
        here: dict[str, tuple[str, str | bytes]] = {}
        below: dict[str, dict[str, str | bytes]] = {}
        for path, content in files.items():
            mode = {"+": "100755", "@": "120000"}.get(path[0], "100644")
            clean = path.lstrip("+@")
            top, _, rest = clean.partition("/")
            if rest:
                below.setdefault(top, {})[(path[0] if mode != "100644" else "") + rest] = content
            else:
                here[top] = (mode, content)
        lines = [(mode, "blob", self.blob(content), name) for name, (mode, content) in here.items()]
        lines += [("040000", "tree", self.nested(inner), name) for name, inner in below.items()]
        return self.tree(*lines)

    def commit_tree(self, tree: str, *, branch: str = "main", parent: str | None = "", message: str = "change") -> str:
        """`parent`: empty for the branch as it stands, None for none."""
        before = self.tip(branch) if parent == "" else parent
        options = ["-p", before] if before else []
        commit = self.git("commit-tree", tree, *options, "-m", message)
        self.git("update-ref", f"refs/heads/{branch}", commit)
        return commit

    def commit(self, files: Mapping[str, str | bytes], **options: str | None) -> str:
        return self.commit_tree(self.nested(files), **options)  # type: ignore[arg-type]

    def tip(self, branch: str = "main") -> str | None:
        listed = self.git("for-each-ref", "--format=%(objectname)", f"refs/heads/{branch}")
        return listed or None


def new_repo(path: Path) -> Repo:
    path.mkdir(parents=True)
    repo = Repo(path)
    repo.git("init", "-q", "--bare", "-b", "main")
    return repo


def source_of(repo: Repo, home: Path, folder: str = "policies", **limits: float) -> GitSource:
    access = checked(Access(url=repo.url, branch="main", protocols=("file",)))
    return GitSource(Mirror(access, home / "policies.git", Limits(**limits)), home, folder)  # type: ignore[arg-type]


class House:
    """A follower with a clock that is set by hand, on a store."""

    def __init__(
        self, repo: Repo, home: Path, store: Store | None = None, folder: str = "policies", **limits: float
    ) -> None:
        self.repo, self.home, self.now = repo, home, T0
        self.store = store or MemoryStore(audit=True)
        self.folder, self.limits = folder, limits
        taken = self.store.acquire("a", T0, 10**9)
        assert taken is not None
        self.epoch = taken
        self.woken: list[str] = []
        self.restart()

    def restart(self) -> None:
        """As after kill -9: only the store and the disk are left."""
        self.home.mkdir(exist_ok=True)
        self.source = source_of(self.repo, self.home, self.folder, **self.limits)
        self.follower = PolicyFollower(
            source=self.source, store=self.store, epoch=lambda: self.epoch, now=lambda: self.now, wake=self.woken.append,
            status_file=self.home / "policies.json",
        )  # fmt: skip

    def sync(self, *, after: timedelta = timedelta(minutes=1)) -> None:
        self.now += after
        self.follower.sync()

    @property
    def status(self):  # type: ignore[no-untyped-def]  # SourceStatus
        return self.follower.status

    def metric(self, name: str = "flights") -> str:
        from policies.schema import ModelPolicy

        state = self.store.load(name)
        assert state is not None
        return ModelPolicy.model_validate_json(state.policy).spec.objective.metric

    def incidents(self) -> list[tuple[str, str]]:
        return [(one.kind, one.sentence) for one in self.store.incidents(open_only=True)]

    def kinds(self) -> list[str]:
        return [event.kind for event in self.store.events(limit=10_000)]
