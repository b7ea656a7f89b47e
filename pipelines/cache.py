"""The step cache: content-addressed results of pipeline steps, in `<home>/cache/<step>/<key>/`.

An entry is a folder of files and a `manifest.json` that holds their digests and the step's JSON result. It is built in a
temporary folder beside its place and put there by one rename, so any number of processes may work at once: a reader sees a whole
entry or none. An entry whose files do not match its manifest is thrown away and built again. No lock is taken; two processes that
build the same entry at once both do the work, and the first to finish is kept.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.jobs.files import read_json, write_json_atomic
from pipelines.jobs.port import RetryableJobError

FORMAT = 1
MANIFEST = "manifest.json"
MAX_BYTES = 20 * 1024**3
"""Default size of the cache, for who has no other wish."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_PRUNE_EVERY_S = 3600.0
IN_USE_S = 86_400.0
"""Entries used within this time are never pruned: an open cycle may hold their paths."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A result of a step."""

    path: Path
    """Folder of its files. They must not be changed."""
    result: Mapping[str, Any]
    cached: bool
    """Whether it was there already."""


@dataclass(frozen=True, slots=True)
class StepCache:
    root: Path

    def path(self, step: str, key: str) -> Path:
        return self.root / step / key

    def find(self, step: str, key: str) -> Entry | None:
        """The entry if it is there and whole; its files are read to tell. Marks it as used."""
        path = self.path(step, key)
        manifest = _manifest(path)
        if manifest is None or not _is_whole(path, manifest):
            return None
        with suppress(OSError):
            os.utime(path / MANIFEST)
        return Entry(path=path, result=manifest["result"], cached=True)

    def get_or_build(self, step: str, key: str, build: Callable[[Path], Mapping[str, Any]], **lineage: Any) -> Entry:
        """The entry, built if need be: `build(folder)` writes files into an empty folder and returns the JSON result.

        `lineage` (JSON) is kept in the manifest for people. Whatever `build` raises passes through and leaves nothing behind.
        Raises RetryableJobError if the disk is full or not writable.
        """
        if found := self.find(step, key):
            return found
        parent = self.root / step
        with _disk_errors(parent):
            parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=parent, prefix=".new-"))
        try:
            with _disk_errors(parent, only=_FULL):
                result = dict(build(temporary))
            with _disk_errors(parent):
                manifest = {"format": FORMAT, "files": _digests(temporary), "result": result, "lineage": lineage}
                write_json_atomic(temporary / MANIFEST, manifest)
                kept = self._put(temporary, self.path(step, key))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return kept if kept is not None else Entry(path=self.path(step, key), result=result, cached=False)

    def _put(self, temporary: Path, path: Path) -> Entry | None:
        """Move a built entry to its place. The entry that is there already, if another process was faster."""
        for _ in range(3):
            try:
                os.rename(temporary, path)
                return None
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
            if found := self.find(path.parent.name, path.name):
                return found
            _remove(path)  # damaged, which is why it was built again
        raise OSError(errno.EBUSY, "another process keeps writing a damaged entry", str(path))

    def prune_hourly(self, max_bytes: int) -> None:
        """`prune`, unless somebody did within the hour: looking at all entries costs time in a large cache."""
        marker = self.root / ".pruned"
        with suppress(OSError):
            if not marker.exists() or time.time() - marker.stat().st_mtime > _PRUNE_EVERY_S:
                marker.touch()
                self.prune(max_bytes)

    def prune(self, max_bytes: int, *, in_use_s: float = IN_USE_S) -> int:
        """Delete the least recently used entries until the rest fits into `max_bytes`. Returns the bytes freed.

        Entries used in the last `in_use_s` seconds stay even if they do not fit; so do folders that are being built. What a killed
        process left half-built is deleted once it is older than that.
        """
        entries = [_Aged.of(path) for step in _folders(self.root) for path in _folders(step)]
        oldest_in_use = time.time() - in_use_s
        size = sum(entry.size for entry in entries)
        freed = 0
        for entry in sorted(entries, key=lambda e: e.used_at):
            if entry.used_at > oldest_in_use:
                break
            if size - freed > max_bytes or entry.path.name.startswith("."):
                _remove(entry.path)
                freed += entry.size
        return freed


@dataclass(frozen=True, kw_only=True, slots=True)
class _Aged:
    path: Path
    size: int
    used_at: float

    @classmethod
    def of(cls, path: Path) -> _Aged:
        size, used_at = 0, 0.0
        for file in [path, *path.rglob("*")]:
            with suppress(OSError):
                stat = file.stat()
                size += stat.st_size if file.is_file() else 0
                if file.name == MANIFEST or path.name.startswith("."):
                    used_at = max(used_at, stat.st_mtime)
        return cls(path=path, size=size, used_at=used_at)


@contextmanager
def _disk_errors(folder: Path, only: Collection[int] | None = None) -> Iterator[None]:
    """OSErrors of writing the cache (with `only`: of these numbers) as something that may pass."""
    try:
        yield
    except OSError as error:
        if only is not None and error.errno not in only:
            raise
        what = "the disk is full" if error.errno in _FULL else str(error)
        raise RetryableJobError(f"cache folder {folder} cannot be written: {what}; make room, then retry") from error


def _folders(path: Path) -> list[Path]:
    try:
        return [child for child in path.iterdir() if child.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove(path: Path) -> None:
    """Out of sight by rename first, so that nobody finds half of it."""
    grave = path.parent / f".gone-{path.name.lstrip('.')}-{os.getpid()}-{time.monotonic_ns()}"
    with suppress(FileNotFoundError):
        os.rename(path, grave)
    shutil.rmtree(grave, ignore_errors=True)
    if grave.is_file():
        grave.unlink(missing_ok=True)


def _manifest(path: Path) -> dict[str, Any] | None:
    try:
        manifest = read_json(path / MANIFEST)
    except (ValueError, OSError):
        return None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        return None
    return manifest if isinstance(manifest.get("files"), dict) and "result" in manifest else None


def _is_whole(path: Path, manifest: Mapping[str, Any]) -> bool:
    try:
        return bool(_digests(path) == manifest["files"])
    except OSError:
        return False


def _digests(folder: Path) -> dict[str, str]:
    """Relative path → sha256 of every file but the manifest."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        # Python leaves compiled files beside an owner's module when it is loaded from here.
        if path.is_file() and path != folder / MANIFEST and path.parent.name != "__pycache__":
            with path.open("rb") as file:
                digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def digest_json(value: Any) -> str:
    """sha256 (hex) of a JSON value, the same for equal values."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
