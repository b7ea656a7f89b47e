"""The digest of what serves stands in a GitOps repository, whatever happens in between."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from git_repos import ENV, T0, Repo, new_repo

from controller.sources.git.access import Access, AccessError, checked
from controller.sources.git.digests import FileRefused, with_digest
from controller.sources.git.mirror import Limits, Mirror
from controller.sources.git.writeback import Place, WriteBack, checked_place
from controller.sources.git.writing import Writer
from controller.state import Event, ModelState, Version, VersionStatus
from controller.store.memory import MemoryStore
from controller.store.port import Commit

KUSTOMIZATION = """\
# owned by the platform team
resources:
  - deployment.yaml
images:
  - name: other
    newTag: "1.2"   # by hand
  - name: flights
    newTag: first
"""
DIGESTS = {1: "sha256:" + "1" * 64, 2: "sha256:" + "2" * 64}


def serving(version: int, at: datetime, name: str = "flights") -> ModelState:
    """A model of two versions of which one serves."""
    status = {version: VersionStatus.CHAMPION}
    versions = {
        n: Version(
            model=name, number=n, digest=digest, status=status.get(n, VersionStatus.RETIRED), created_at=T0, cycle=n,
        )
        for n, digest in DIGESTS.items() if n <= version or version == 1
    }  # fmt: skip
    return ModelState(
        name=name, policy="{}", policy_digest="d", created_at=T0, champion=version, champion_since=at, champion_cycle=2,
        versions=versions, next_version=3, next_cycle=3,
    )  # fmt: skip


class Desk:
    """A write-back on a store whose champions are set by hand."""

    def __init__(self, repo: Repo, home: Path, place: Place, signing_key: Path | None = None) -> None:
        self.repo, self.home, self.place, self.now, self.key = repo, home, place, T0, signing_key
        self.store = MemoryStore()
        taken = self.store.acquire("a", T0, 10**9)
        assert taken is not None
        self.epoch = taken
        self.restart()

    def restart(self) -> None:
        self.home.mkdir(exist_ok=True)
        access = checked(Access(url=self.repo.url, branch="main", protocols=("file",), prefix="gitops"))
        self.writer = Writer(Mirror(access, self.home / "gitops.git", Limits()), "Ratchet <bot@example.org>", self.key)
        self.back = WriteBack(
            writer=self.writer, place=self.place, store=self.store, epoch=lambda: self.epoch, now=lambda: self.now,
            status_file=self.home / "gitops.json",
        )  # fmt: skip

    def serve(self, version: int, name: str = "flights") -> None:
        """Promote or roll back to it, as a decision would."""
        self.now += timedelta(hours=1)
        state = serving(version, self.now, name)
        event = Event(model=name, kind="x", sentence="x", at=self.now)
        before = self.store.load(name)
        if before is None:
            self.store.create(self.epoch, state, [event])
            return
        versions = {**before.versions, **state.versions}
        after = replace(state, row_version=before.row_version, versions=versions)
        self.store.commit(self.epoch, Commit(model=after, events=[event]))

    def round(self) -> None:
        self.now += timedelta(minutes=1)
        self.back.round()

    def file(self, path: str = "apps/flights/kustomization.yaml") -> str:
        return self.repo.git("show", f"main:{path}") + "\n"

    def commits(self) -> int:
        return int(self.repo.git("rev-list", "--count", "main"))

    def incidents(self) -> list[tuple[str, str]]:
        return [(one.kind, one.sentence) for one in self.store.incidents(open_only=True)]


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    made = new_repo(tmp_path / "gitops.git")
    made.commit({"apps/flights/kustomization.yaml": KUSTOMIZATION, "README.md": "ours"})
    return made


@pytest.fixture
def desk(repo: Repo, tmp_path: Path) -> Desk:
    return Desk(repo, tmp_path / "home", Place())


def test_a_promotion_and_a_rollback_are_written(desk: Desk, repo: Repo) -> None:
    """The digest of what serves is committed with its decision; all else in the file stays, comments too; a rollback likewise."""
    desk.serve(1)
    desk.round()
    assert desk.file() == KUSTOMIZATION.replace("newTag: first", f"digest: {DIGESTS[1]}")
    desk.serve(2)
    desk.round()
    assert DIGESTS[2] in desk.file()
    assert "Ratchet-Decision: flights/2/2 at 2026-03-01T14:01" in repo.git("log", "-1", "--format=%B", "main")
    assert repo.git("log", "-1", "--format=%an <%ae> %cn", "main") == "Ratchet <bot@example.org> Ratchet"
    desk.serve(1)
    desk.round()
    assert DIGESTS[1] in desk.file()
    assert repo.git("log", "-1", "--format=%s", "main") == "flights: goes back to v1"
    assert repo.git("show", "main:README.md") == "ours"
    assert desk.back.told("flights").startswith("v1 stands in apps/flights/kustomization.yaml")


def test_a_quiet_round_reads_and_writes_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing was decided and nobody pushed, there is no commit, and no model is read."""
    desk.serve(1)
    desk.round()
    count = desk.commits()
    monkeypatch.setattr(desk.store, "load_all", lambda: pytest.fail("read"))
    monkeypatch.setattr(desk.store, "load", lambda _name: pytest.fail("read"))
    for _ in range(3):
        desk.round()
    assert desk.commits() == count


@pytest.mark.parametrize("moment", ["push", "after push"])
def test_a_crash_writes_nothing_twice(desk: Desk, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before or after the push, the next start finds out by what stands there."""
    desk.serve(2)
    push = desk.writer.push

    def dies(commit: str) -> None:
        if moment == "after push":
            push(commit)
        raise KeyboardInterrupt

    monkeypatch.setattr(desk.writer, "push", dies)
    with pytest.raises(KeyboardInterrupt):
        desk.round()
    desk.restart()
    desk.round()
    desk.round()
    assert desk.commits() == 2
    assert DIGESTS[2] in desk.file()


def test_others_who_push_in_between_are_not_overwritten(
    desk: Desk, repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A push that came second is made again upon what stands there then; nothing is forced."""
    desk.serve(2)
    rivals = iter(["a", "b"])
    push = desk.writer.push

    def overtaken(commit: str) -> None:
        if (rival := next(rivals, None)) is not None:
            repo.commit({"apps/flights/kustomization.yaml": KUSTOMIZATION, "README.md": rival})
        push(commit)

    monkeypatch.setattr(desk.writer, "push", overtaken)
    desk.round()
    assert repo.git("show", "main:README.md") == "b"
    assert DIGESTS[2] in desk.file()
    assert desk.commits() == 4


def test_a_person_who_undoes_it_is_not_fought(desk: Desk, repo: Repo) -> None:
    """What was written and then changed by a person stays, and is said; the next decision is written again. Also after a restart."""
    desk.serve(1)
    desk.round()
    repo.commit({"apps/flights/kustomization.yaml": KUSTOMIZATION})
    for _ in range(2):
        desk.round()
        desk.restart()
    (desk.home / "gitops.json").unlink()
    desk.restart()
    desk.round()
    assert "newTag: first" in desk.file()
    assert [kind for kind, _ in desk.incidents()] == ["gitops_changed_by_hand"]
    assert "somebody changed it" in desk.back.told("flights")
    desk.serve(2)
    desk.round()
    assert DIGESTS[2] in desk.file()
    assert desk.incidents() == []


def test_the_same_rollback_twice_is_two_decisions(desk: Desk) -> None:
    """To and fro between two versions in one cycle: each change is written, none is taken for one that a person undid."""
    for version in (1, 2, 1, 2, 1):
        desk.serve(version)
        desk.round()
        assert DIGESTS[version] in desk.file()
    assert desk.incidents() == []


def test_a_repository_that_is_away_holds_nobody_and_gets_it_later(desk: Desk, repo: Repo) -> None:
    """What could not be written is said, an incident after ten minutes, and written once the repository is back."""
    desk.serve(1)
    repo.path.rename(repo.path.with_name("away"))
    desk.round()
    assert desk.incidents() == []
    assert "still to be written" in desk.back.told("flights")
    desk.now += timedelta(minutes=11)
    desk.round()
    assert [kind for kind, _ in desk.incidents()] == ["gitops_unreachable"]
    repo.path.with_name("away").rename(repo.path)
    desk.round()
    assert DIGESTS[1] in desk.file()
    assert (desk.incidents(), desk.back.status.error) == ([], "")


def test_a_server_that_refuses_pushes_is_tried_again(desk: Desk, repo: Repo) -> None:
    """A protected branch says no; that is told in the server's words, and nothing is lost."""
    hook = repo.path / "hooks" / "update"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho 'this branch is protected' >&2\nexit 1\n")
    hook.chmod(0o755)
    desk.serve(1)
    desk.round()
    assert "this branch is protected" in desk.back.status.error
    hook.unlink()
    desk.round()
    assert DIGESTS[1] in desk.file()


def test_a_model_without_a_file_is_said_and_holds_no_other(desk: Desk, repo: Repo) -> None:
    """Files are not made up: the one that is missing is named, the others are written."""
    desk.serve(1, "alone")
    desk.serve(1)
    desk.round()
    assert DIGESTS[1] in desk.file()
    assert "apps/alone/kustomization.yaml is not in the repository" in desk.incidents()[0][1]
    repo.commit({"apps/alone/kustomization.yaml": "images: []\n", "apps/flights/kustomization.yaml": desk.file()})
    desk.round()
    assert f"digest: {DIGESTS[1]}" in desk.file("apps/alone/kustomization.yaml")
    assert desk.incidents() == []


def test_many_models_are_one_push(repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each model has its commit and its trailer, in one file or in many, and the branch moves once."""
    names = [f"m{i}" for i in range(12)]
    repo.commit({"values.yaml": "".join(f"{name}:\n  image:\n    digest: none  # {name}\n" for name in names)})
    desk = Desk(repo, tmp_path / "home2", Place(path="values.yaml", key="{model}.image.digest"))
    for name in names:
        desk.serve(1, name)
    pushed: list[str] = []
    push = desk.writer.push
    monkeypatch.setattr(desk.writer, "push", lambda commit: pushed.append(commit) or push(commit))
    desk.round()
    assert len(pushed) == 1
    assert desk.commits() == 2 + len(names)
    assert desk.file("values.yaml").count(DIGESTS[1]) == len(names)
    assert "# m7" in desk.file("values.yaml")


def test_commits_may_be_signed(repo: Repo, tmp_path: Path) -> None:
    """With a key, every commit carries a signature that its public half verifies."""
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    desk = Desk(repo, tmp_path / "home2", Place(), key)
    desk.serve(1)
    desk.round()
    allowed = tmp_path / "allowed"
    allowed.write_text(f"bot@example.org {key.with_suffix('.pub').read_text()}")
    told = subprocess.run(
        ["git", "-c", f"gpg.ssh.allowedSignersFile={allowed}", "log", "-1", "--format=%G?", "main"],
        cwd=repo.path, env=ENV, capture_output=True, check=True,
    )  # fmt: skip
    assert told.stdout.strip() == b"G"


@pytest.mark.parametrize(
    "text",
    [
        "# a\nimage:\n    repository: x   # b\n\n    digest: 'old'\nlist:\n- 1\n-   2\n",
        "---\nimage:\n  digest:\n",
        "other: &a {x: 1}\nimage: {repository: \"x\", digest: old}\nagain: *a\n",
        "image:\n  digest: old\nlong: " + "word " * 100 + "end\n",
    ],
)  # fmt: skip
def test_only_the_digest_changes(text: str) -> None:
    """Of the lines of the file, only that of the digest differs."""
    new = with_digest(text.encode(), DIGESTS[1], key="image.digest", image="").decode()
    differing = [line for line in new.splitlines() if line not in text.splitlines()]
    assert [DIGESTS[1] in line for line in differing if "-   2" not in line and line != "- 2"] == [True]
    assert with_digest(new.encode(), DIGESTS[1], key="image.digest", image="") == new.encode()


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("- 1", "must hold a mapping"), ("a: [", "not a YAML"), ("image: x", "no mapping 'image'"), ("", "must hold a mapping"),
        ("a: 1\n---\nb: 2\n", "not a YAML"), ("a: !!python/object:os.system x\nimage: x", "no mapping"), ("\xff", "no mapping"),
        ("[" * 1_000_000, "too deeply"), ("a:\n" + "- " * 5000, "too deeply"), (" " * 900_000 + "a: 1", "too deeply"),
    ],
)  # fmt: skip
def test_files_without_a_place_are_refused(text: str, rule: str) -> None:
    """What cannot hold a digest is said, and nothing in it is run."""
    with pytest.raises(FileRefused, match=rule):
        with_digest(text.encode("latin-1") if text != "\xff" else b"image: x", DIGESTS[1], key="image.digest", image="")


@pytest.mark.parametrize(
    "place",
    [
        Place(path="../{model}"), Place(path="/etc/{model}"), Place(path="one.yaml", image="x"), Place(path="{model}/.git/x"),
        Place(key="a..b"),
    ],
)  # fmt: skip
def test_places_that_lead_elsewhere_are_refused(place: Place) -> None:
    """A path stays in the repository, and each model has a place of its own."""
    with pytest.raises(AccessError, match="gitops_"):
        checked_place(place)
