"""A policy source in memory: for tests, and the shortest description of what a source is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from controller.sources.git.trees import joined
from controller.sources.port import (
    PathRefused,
    Pinned,
    PolicyFile,
    PolicySource,
    Revision,
    SourceAway,
    SourceGone,
)
from policies.reading import SUFFIXES


class FakeSource(PolicySource):
    """Revisions are given by `put`. `away` and `gone` make it fail as a real one does."""

    def __init__(self, place: Path, folder: str = "policies") -> None:
        self.name, self.where, self.place = "fake", "memory", place
        self.away, self.gone = False, False
        self._folder = folder
        self._revisions: dict[str, Mapping[str, bytes]] = {}
        self._parents: dict[str, str | None] = {}
        self._newest: str | None = None
        self._contents: dict[str, bytes] = {}

    def put(self, files: Mapping[str, bytes], *, parent: str | None = "") -> str:
        """Another revision; its id. `parent`: empty for the newest, None for none (a rewritten history)."""
        number = f"r{len(self._revisions) + 1}"
        self._parents[number] = self._newest if parent == "" else parent
        self._revisions[number] = dict(files)
        self._newest = number
        return number

    def newest(self, known: str | None) -> Revision | None:
        if self.away:
            raise SourceAway("it is away")
        if self.gone or self._newest is None:
            raise SourceGone("it is gone")
        return None if self._newest == known else self.at(self._newest)

    def note(self, newer: str, older: str) -> str:
        here: str | None = newer
        while here is not None and here != older:
            here = self._parents[here]
        return "" if here == older else f"{newer} does not follow {older}"

    def at(self, revision: str) -> Revision | None:
        if self.away:
            raise SourceAway("it is away")
        if revision not in self._revisions:
            return None
        found = [
            PolicyFile(file=name, id=self._id(content)) for name, content in sorted(self._revisions[revision].items())
            if name.startswith(f"{self._folder}/") and name.endswith(SUFFIXES)
        ]  # fmt: skip
        return Revision(
            id=revision, said=f"revision {revision}", author="nobody", at=datetime(2026, 1, 1, tzinfo=UTC), files=tuple(found)
        )  # fmt: skip

    def _id(self, content: bytes) -> str:
        name = hashlib.sha256(content).hexdigest()
        self._contents[name] = content
        return name

    def read(self, files: Sequence[PolicyFile]) -> Sequence[bytes]:
        return [self._contents[file.id] for file in files]

    def pin(self, revision: str, file: str, path: str) -> Pinned:
        place = joined(file, path)
        if path.startswith("/") or place is None:
            raise PathRefused("must be a relative path that stays inside the source")
        files = self._revisions[revision]
        if place in files:
            return Pinned(path=place, id=self._id(files[place]), folder=False)
        below = {name: content for name, content in files.items() if not place or name.startswith(f"{place}/")}
        if not below:
            raise PathRefused(f"is not in {revision} (looked for {place})")
        return Pinned(path=place, id=self._id(repr(sorted(below.items())).encode()), folder=True)

    def folder(self, revision: str, file: str) -> Path:
        return self.place / "worktrees" / revision / PurePosixPath(file).parent

    def check_out(self, revision: str) -> None:
        for name, content in self._revisions[revision].items():
            path = self.place / "worktrees" / revision / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def sweep(self, needed: set[str]) -> int:
        return 0

    def close(self) -> None:
        """Nothing is ever under way."""
