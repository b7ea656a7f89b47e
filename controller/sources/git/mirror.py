"""A bare copy of one branch: fetched within bounds, read by its objects, thrown away and fetched anew when it breaks.

It is a cache: nothing in it is state. Only the last `DEPTH` commits are there, which is enough to tell a branch that went on from one that
was rewritten. Nothing is ever checked out here.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import structlog

from controller.sources.git.access import Access
from controller.sources.git.command import GitCommand, GitFailed, TooLarge
from controller.sources.git.trees import Entry, Tree, TreeRefused, collect, parse
from controller.sources.port import SourceGone

log = structlog.get_logger()

DEPTH = 50
"""Commits of history that are fetched."""
PACKS_MAX = 200
"""A copy with more fetches in it is thrown away: that is cheaper than to tend it."""
TIP = "refs/ratchet/tip"
LIST_BYTES_MAX = 256 << 20
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_GONE = re.compile(r"couldn't find remote ref|Remote branch .* not found", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much is taken from a repository."""

    fetch_s: float = 120.0
    bytes_max: int = 512 << 20
    """On disk: of a fetch, and of a commit's files."""
    files_max: int = 50_000


@dataclass(frozen=True, kw_only=True, slots=True)
class CommitInfo:
    """A commit, without its files."""

    id: str
    tree: str
    author: str
    """Name and address, printable."""
    at: datetime
    subject: str

    @property
    def said(self) -> str:
        return f"commit {self.id[:10]} by {self.author}"


class Mirror:
    """One branch of one repository in `folder`."""

    def __init__(self, access: Access, folder: Path, limits: Limits) -> None:
        self.access = access
        self.limits = limits
        self._folder = folder
        self.git = GitCommand(access, folder)
        self._trees: dict[str, Tree] = {}
        self._failures = 0

    # ------------------------------------------------------------ the server
    def tip(self) -> str:
        """The commit that the branch stands at on the server. Raises GitFailed, SourceGone."""
        ref = f"refs/heads/{self.access.branch}"
        out = self.git.run("ls-remote", "--", self.access.url, ref, timeout_s=self.limits.fetch_s, output_max=1 << 20)
        for line in out.decode("utf-8", "replace").splitlines():
            commit, _, name = line.partition("\t")
            if name == ref and _COMMIT.fullmatch(commit):
                return commit
        raise SourceGone(f"the branch {self.access.branch} is not there (any more)")

    def fetch(self) -> str:
        """Get the branch; the commit that it stands at. Raises GitFailed, TooLarge, SourceGone."""
        self._prepare()
        try:
            self.git.run(
                "fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head", "--no-auto-maintenance",
                f"--depth={DEPTH}", "--", self.access.url, f"+refs/heads/{self.access.branch}:{TIP}",
                timeout_s=self.limits.fetch_s, watch=self._too_large,
            )  # fmt: skip
            commit = self.git.run("rev-parse", "--verify", "--quiet", f"{TIP}^{{commit}}").decode().strip()
        except GitFailed as error:
            self._sweep_torn()
            if _GONE.search(error.words):
                raise SourceGone(f"the branch {self.access.branch} is not there (any more)") from error
            self._failures += 1
            if self._failures >= 3 or isinstance(error, TooLarge):
                self.throw_away()
            raise
        self._failures = 0
        return commit

    def _prepare(self) -> None:
        packs = self._folder / "objects" / "pack"
        if packs.is_dir() and sum(1 for path in packs.iterdir() if path.suffix == ".pack") > PACKS_MAX:
            self.throw_away()
        self._sweep_torn()
        if not (self._folder / "HEAD").is_file() or not packs.is_dir():
            self.throw_away()
            self._folder.mkdir(parents=True, mode=0o700)
            self.git.run("init", "--quiet", "--bare", "--template=", str(self._folder))

    def _sweep_torn(self) -> None:
        """What a call left that was killed: locks, once nobody can hold them any more, and half a pack."""
        oldest = time.time() - self.limits.fetch_s - 60
        for pattern in ("*.lock", "refs/**/*.lock", "objects/pack/tmp_*", "objects/pack/.tmp-*"):
            for path in self._folder.glob(pattern):
                with suppress(OSError):
                    if "tmp" in path.name or path.stat().st_mtime < oldest:
                        path.unlink()

    def _too_large(self) -> str:
        used = 0
        with suppress(OSError):
            for entry in os.scandir(self._folder / "objects" / "pack"):
                with suppress(OSError):
                    used += entry.stat().st_size
        if used <= self.limits.bytes_max:
            return ""
        return f"the repository is larger than {self.limits.bytes_max >> 20} MB (git_max_mb), so fetching was stopped"

    def throw_away(self) -> None:
        """Start anew at the next fetch."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._trees.clear()

    # ------------------------------------------------------------ what is here
    def has(self, commit: str) -> bool:
        if not _COMMIT.fullmatch(commit) or not (self._folder / "HEAD").is_file():
            return False
        try:
            return self.git.run("cat-file", "-t", commit, output_max=100).strip() == b"commit"
        except GitFailed:
            return False

    def commit(self, commit: str) -> CommitInfo:
        """Raises GitFailed."""
        form = "%H%x00%T%x00%an%x00%ae%x00%at%x00%s"
        out = self.git.run(
            "log", "-1", "--no-show-signature", f"--format={form}", "--end-of-options", commit, output_max=1 << 20
        )
        parts = out.decode("utf-8", "replace").rstrip("\n").split("\0")
        if len(parts) != 6 or parts[0] != commit:
            raise GitFailed(f"commit {commit[:10]} cannot be read")
        name, address = _printable(parts[2], 80), _printable(parts[3], 80)
        return CommitInfo(
            id=parts[0], tree=parts[1], author=f"{name} <{address}>" if address else name or "nobody",
            at=_moment(parts[4]), subject=_printable(parts[5], 120),
        )  # fmt: skip

    def descends(self, commit: str, ancestor: str) -> bool:
        """Whether `ancestor` is in the (fetched) history of `commit`."""
        if not self.has(ancestor):
            return False
        try:
            self.git.run("merge-base", "--is-ancestor", ancestor, commit)
        except GitFailed:
            return False
        return True

    def tree(self, commit: str) -> Tree:
        """All names of the commit. Raises GitFailed, TreeRefused."""
        if commit not in self._trees:
            root = self.commit(commit).tree
            try:
                with self.git.started(
                    "ls-tree", "-r", "-t", "-l", "-z", "--full-tree", "--end-of-options", root
                ) as out:
                    found = collect(commit, root, parse(_records(out)), files_max=self.limits.files_max)
            except TreeRefused as error:
                raise TreeRefused(f"commit {commit[:10]}: {error}") from None
            if len(self._trees) >= 4:
                self._trees.clear()
            self._trees[commit] = found
        return self._trees[commit]

    def read(self, entries: Sequence[Entry]) -> Iterator[bytes]:
        """The contents of blobs, in order: one process for all of them. Their sizes must have been looked at. Raises GitFailed."""
        return (b"".join(chunks) for chunks in self.stream(entries))

    def stream(self, entries: Sequence[Entry]) -> Iterator[Iterator[bytes]]:
        """The same in pieces, each content to be taken to its end before the next one. Raises GitFailed."""
        asked = "".join(f"{entry.id}\n" for entry in entries).encode()
        with self.git.started("cat-file", "--batch", stdin=asked, timeout_s=self.limits.fetch_s) as out:
            for entry in entries:
                head = out.readline().split()
                if len(head) != 3 or head[0].decode() != entry.id or head[1] != b"blob" or int(head[2]) != entry.size:
                    raise GitFailed(f"{entry.shown} cannot be read from the copy of the repository")
                yield _pieces(out, entry)
                if out.read(1) != b"\n":
                    raise GitFailed(f"{entry.shown} ends too early in the copy of the repository")

    def close(self) -> None:
        self.git.close()


def _pieces(out: IO[bytes], entry: Entry) -> Iterator[bytes]:
    left = entry.size
    while left:
        piece = out.read(min(left, 1 << 20))
        if not piece:
            raise GitFailed(f"{entry.shown} ends too early in the copy of the repository")
        left -= len(piece)
        yield piece


def _records(out: IO[bytes]) -> Iterator[bytes]:
    """What stands between the NULs of a stream that may be endless."""
    rest, total = b"", 0
    while chunk := out.read(1 << 16):
        total += len(chunk)
        if total > LIST_BYTES_MAX:
            raise TreeRefused("its list of files is too long")
        *whole, rest = (rest + chunk).split(b"\0")
        yield from whole
    if rest:
        raise TreeRefused("its list of files ends too early")


def _moment(seconds: str) -> datetime:
    try:
        return datetime.fromtimestamp(min(max(int(seconds), 0), 253_402_300_799), UTC)
    except (ValueError, OverflowError):
        return datetime.fromtimestamp(0, UTC)


def _printable(text: str, longest: int) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:longest].strip()
