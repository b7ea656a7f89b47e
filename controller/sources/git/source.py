"""Policies from one branch of a Git repository: every `*.yaml` and `*.yml` below a folder, commit by commit.

What is read are Git objects, never a checkout. A policy's relative paths start at its own folder in the repository and stay inside it; what
they name is pinned by its object id, so that a commit that changes neither the policy nor what it names changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from controller.sources.git import worktree
from controller.sources.git.command import GitFailed, TooLarge
from controller.sources.git.mirror import CommitInfo, Mirror
from controller.sources.git.trees import FILE_MODES, LINK, MODULE, TREE, Entry, Tree, TreeRefused, check_name, joined
from controller.sources.port import PathRefused, Pinned, PolicyFile, PolicySource, Revision, RevisionRefused
from policies.documents import SIZE_MAX
from policies.problems import Problem
from policies.reading import SUFFIXES

NAME = "git"
POLICIES_MAX = 20_000
WORKTREES = "worktrees"
_DAMAGED = re.compile(
    r"fsck error|fsckObjects|index-pack failed|invalid index-pack|error in object|unresolved deltas", re.IGNORECASE
)
_SUBMODULE = "is a submodule: another repository's files are not followed, so copy them in or leave it out"


class GitSource(PolicySource):
    """See the port."""

    name = NAME

    def __init__(self, mirror: Mirror, home: Path, folder: str = "") -> None:
        """`home`: where the copy and worktrees are; `folder`: of the policies in the repository, empty for all of it."""
        access = mirror.access
        self.place = home
        self.where = f"{access.url} {access.branch}" + (f":{folder}" if folder else "")
        self._mirror = mirror
        self._refused: RevisionRefused | None = None
        self._folder = "/".join(part for part in PurePosixPath(folder).parts if part != "/")

    # ------------------------------------------------------------ revisions
    def newest(self, known: str | None) -> Revision | None:
        tip = self._mirror.tip()
        if tip == known:
            return None
        if self._refused is not None and self._refused.revision == tip:
            raise self._refused  # without fetching it all again
        if not self._mirror.has(tip):
            tip = self._fetch(tip)  # which may have moved on since
        return None if tip == known else self._revision(tip)

    def _fetch(self, tip: str) -> str:
        try:
            return self._mirror.fetch()
        except GitFailed as error:
            if isinstance(error, TooLarge) or _DAMAGED.search(error.words):
                self._refused = RevisionRefused(tip, str(error))
                raise self._refused from error
            raise

    def at(self, revision: str) -> Revision | None:
        return self._revision(revision) if self._mirror.has(revision) else None

    def _revision(self, commit: str) -> Revision:
        info = self._mirror.commit(commit)
        files: list[PolicyFile] = []
        try:
            tree = self._mirror.tree(commit)
            found = self._policies(tree, info)
            files, problems = _judged(found)
        except TreeRefused as error:
            problems = [Problem(file=f"commit {commit[:10]}", rule=str(error))]
        return Revision(
            id=commit, said=info.said, author=info.author, at=info.at, files=tuple(files), problems=tuple(problems),
        )  # fmt: skip

    def note(self, newer: str, older: str) -> str:
        if self._mirror.descends(newer, older):
            return ""
        return (
            f"the branch {self._mirror.access.branch} went from commit {older[:10]} to {newer[:10]}, which does not follow it within what "
            "was fetched: its history was rewritten, or it is many commits ahead"
        )

    def _policies(self, tree: Tree, info: CommitInfo) -> list[Entry]:
        top = tree.entries.get(self._folder)
        if self._folder and (top is None or top.mode != TREE):
            raise TreeRefused(f"{info.said} has no folder {self._folder} (git_path)")
        found = []
        for entry in tree.below(self._folder):
            parts = entry.path.removeprefix(self._folder).strip("/").split("/")
            hidden = any(part.startswith(".") and part not in (".", "..") for part in parts)
            if not hidden and (entry.mode == MODULE or (entry.mode != TREE and entry.path.endswith(SUFFIXES))):
                found.append(entry)
            if len(found) > POLICIES_MAX:
                raise TreeRefused(f"{info.said} holds more than {POLICIES_MAX:,} policy files")
        return found

    def read(self, files: Sequence[PolicyFile]) -> Sequence[bytes]:
        entries = [Entry(path=one.file, mode="100644", id=_oid(one), size=_size(one)) for one in files]
        return list(self._mirror.read(entries))

    # ------------------------------------------------------------ what policies name
    def pin(self, revision: str, file: str, path: str) -> Pinned:
        place = joined(file, path)
        if path.startswith("/") or place is None:
            raise PathRefused("must be a relative path that stays inside the repository")
        try:
            tree = self._mirror.tree(revision)
        except TreeRefused as error:
            raise PathRefused(str(error)) from error
        entry = tree.entries.get(place)
        if place and entry is None:
            raise PathRefused(_why_not(tree, place))
        if entry is not None and entry.mode == LINK:
            raise PathRefused("must not be a link: name what it leads to")
        if entry is not None and entry.mode == MODULE:
            raise PathRefused(_SUBMODULE)
        if (
            inner := next((e for e in tree.below(place) if e.mode == MODULE), None)
            if entry is None or entry.mode == TREE
            else None
        ):
            raise PathRefused(f"holds {inner.shown}, which {_SUBMODULE}")
        return Pinned(
            path=place, id=tree.root if entry is None else entry.id, folder=entry is None or entry.mode == TREE
        )

    def folder(self, revision: str, file: str) -> Path:
        return self.root(revision) / PurePosixPath(file).parent

    def root(self, revision: str) -> Path:
        return self.place / WORKTREES / revision

    def check_out(self, revision: str) -> None:
        try:
            worktree.make(self._mirror, self._mirror.commit(revision), self.root(revision))
        except TreeRefused as error:
            raise PathRefused(str(error)) from error
        except OSError as error:
            raise GitFailed(f"{self.root(revision)} cannot be made: {error.strerror or error}") from error

    def sweep(self, needed: set[str]) -> int:
        """Delete worktrees of other commits than these; how many."""
        return worktree.sweep(self.place / WORKTREES, needed)

    def close(self) -> None:
        self._mirror.close()


def _judged(entries: Sequence[Entry]) -> tuple[list[PolicyFile], list[Problem]]:
    files, problems = [], []
    for entry in sorted(entries, key=lambda one: one.path):
        if rule := _wrong(entry):
            problems.append(Problem(file=entry.shown, rule=rule))
        else:
            files.append(PolicyFile(file=entry.path, id=f"{entry.id}:{entry.size}"))
    return files, problems


def _wrong(entry: Entry) -> str:
    if entry.mode == MODULE:
        return _SUBMODULE
    if entry.mode == LINK:
        return "is a link: a policy must be a file of its own"
    if entry.mode not in FILE_MODES:
        return f"is no file (mode {entry.mode})"
    if wrong := check_name(entry.path):
        return wrong
    if entry.path != entry.shown or not entry.path.isprintable():
        return "a policy file's name must be printable UTF-8"
    if entry.size > SIZE_MAX:
        return f"a policy file is at most {SIZE_MAX} bytes, but this has {entry.size}"
    return ""


def _why_not(tree: Tree, place: str) -> str:
    """Why nothing can be had at a place: it may lie behind a link or in a submodule."""
    parts = place.split("/")
    for i in range(1, len(parts)):
        above = tree.entries.get("/".join(parts[:i]))
        if above is not None and above.mode == LINK:
            return f"must not lead over the link {above.shown}: name what it leads to"
        if above is not None and above.mode == MODULE:
            return f"lies in {above.shown}, which {_SUBMODULE}"
    return f"is not in the commit (looked for {place})"


def _oid(file: PolicyFile) -> str:
    return file.id.partition(":")[0]


def _size(file: PolicyFile) -> int:
    return int(file.id.partition(":")[2])
