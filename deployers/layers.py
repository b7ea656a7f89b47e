"""Folders to image layers and back: tar files whose bytes depend only on names and contents, and a reader that trusts neither.

Packing: sorted names, no times, no owners, fixed modes; so the same files make the same bytes on any machine. Layers are not compressed:
models barely shrink (skops files are zip files already), gzip of 500 MB costs tens of seconds, and its bytes differ between zlib releases.

Unpacking does not call `tarfile.extract`: the `filter=` that makes it safe is missing in Python 3.11.2 (Debian 12). It creates plain files
and folders of its own in a new folder, and refuses a layer that holds anything else.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from deployers.oci import CHUNK, ImageCorrupt, ImageRefused, fsync_folder

_FLUSHERS = 8
_SKIPPED_FOLDERS = frozenset({"__pycache__"})
_WHITEOUT = ".wh."
"""Prefix by which a layer deletes a file of those below it (image-spec, layer)."""
_SKIPPED_SUFFIXES = (".pyc", ".pyo")


@dataclass(frozen=True, kw_only=True, slots=True)
class UnpackLimits:
    """What a layer may hold at most, so that a hostile one cannot fill the disk or its inode table."""

    bytes_max: int = 16 << 30
    members_max: int = 100_000
    depth_max: int = 64


def write_layer(source: Path, prefix: str, sink: IO[bytes]) -> None:
    """Write the folder `source` as an uncompressed tar whose members stand under `prefix` (`model`, `app/serving`).

    Compiled Python is left out. Raises ImageRefused for links, devices, sockets, names that are not UTF-8, and a file that changes
    while it is read; OSError as the disk raises it."""
    members = list(_members(source))
    with tarfile.TarFile(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT, copybufsize=CHUNK) as tar:
        for parent in reversed([p for p in PurePosixPath(prefix, "x").parents if p.name]):
            tar.addfile(_member(str(parent), folder=True))
        for path in members:
            name = f"{prefix}/{path.relative_to(source).as_posix()}"
            if path.is_dir():
                tar.addfile(_member(name, folder=True))
                continue
            with path.open("rb") as file:
                info = _member(name, size=os.fstat(file.fileno()).st_size)
                _add_file(tar, info, file, path)


def _members(source: Path) -> Iterator[Path]:
    """Files and folders below `source`, depth first, each folder's names in code-point order. Raises ImageRefused."""
    for entry in sorted(os.scandir(source), key=lambda e: e.name):
        path = Path(entry.path)
        try:
            entry.name.encode()
        except UnicodeEncodeError as error:
            raise ImageRefused(f"{path!r}: the name is not UTF-8; rename it") from error
        if entry.name.startswith(_WHITEOUT):
            raise ImageRefused(
                f"{path}: in an image a name with {_WHITEOUT} is a whiteout, which deletes a file; rename it"
            )
        if entry.is_symlink() or not (entry.is_dir() or entry.is_file()):
            raise ImageRefused(
                f"{path} is a link or no plain file; an image holds plain files and folders only: copy it"
            )
        if entry.is_dir():
            if entry.name not in _SKIPPED_FOLDERS:
                yield path
                yield from _members(path)
        elif not entry.name.endswith(_SKIPPED_SUFFIXES):
            yield path


def _member(name: str, *, size: int = 0, folder: bool = False) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE if folder else tarfile.REGTYPE
    info.mode = 0o755 if folder else 0o644
    info.size = size
    return info


def _add_file(tar: tarfile.TarFile, info: tarfile.TarInfo, file: IO[bytes], path: Path) -> None:
    """Raises ImageRefused unless exactly `info.size` bytes can be read."""
    try:
        tar.addfile(info, cast(IO[bytes], _Whole(file)))
    except EOFError as error:
        raise ImageRefused(f"{path} shrank while it was packaged; nothing may write there") from error
    if file.read(1):
        raise ImageRefused(f"{path} grew while it was packaged; nothing may write there")


class _Whole:
    """Reads as many bytes as asked for or raises EOFError, where tarfile would raise an OSError like that of a failing disk."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def read(self, size: int) -> bytes:
        chunk = self.file.read(size)
        if len(chunk) < size:
            raise EOFError
        return chunk


def extract_layer(layer: Path, top: str, destination: Path, limits: UnpackLimits) -> None:
    """Extract an uncompressed layer, all of whose members must stand under the folder `top`, into the empty folder `destination`.

    Only plain files and folders; modes 0644 and 0755 whatever the layer says. Files are flushed to the disk.
    Raises ImageRefused (hostile), ImageCorrupt (no tar file), OSError as the disk raises it."""
    if layer.stat().st_size > limits.bytes_max:
        raise ImageRefused(f"layer {layer.name} is {layer.stat().st_size} bytes; the limit is {limits.bytes_max}")
    files: set[PurePosixPath] = set()
    folders: set[PurePosixPath] = set()
    try:
        with tarfile.open(layer, mode="r:", errorlevel=2) as tar:
            for count, member in enumerate(tar, start=1):
                if count > limits.members_max:
                    raise ImageRefused(f"layer {layer.name} has more than {limits.members_max} members")
                name = _checked_name(member, top, limits, layer.name)
                if name in files or (member.isfile() and name in folders):
                    raise ImageRefused(f"layer {layer.name} names {member.name!r} twice")
                folders.update(p for p in name.parents if p.name)
                if clash := files.intersection(name.parents):
                    raise ImageRefused(f"layer {layer.name}: {str(clash.pop())!r} is both a file and a folder")
                if member.isdir():
                    folders.add(name)
                    (destination / name).mkdir(mode=0o755, parents=True, exist_ok=True)
                else:
                    files.add(name)
                    _extract_file(tar, member, destination / name)
    except tarfile.TarError as error:
        raise ImageCorrupt(f"layer {layer.name} is not a readable tar file: {error}") from error
    (destination / top).mkdir(exist_ok=True)
    with ThreadPoolExecutor(_FLUSHERS) as pool:  # at once, so that the disk makes one commit of many
        for _ in pool.map(_flush, [destination / name for name in sorted(files)]):
            pass
    for folder in sorted(folders):
        fsync_folder(destination / folder)


def _checked_name(member: tarfile.TarInfo, top: str, limits: UnpackLimits, layer: str) -> PurePosixPath:
    """The member's path relative to the destination. Raises ImageRefused for whatever is not a plain file or folder below `top`."""
    parts = member.name.split("/")
    if member.name.startswith("/") or not all(parts) or {".", ".."} & set(parts) or "\0" in member.name:
        raise ImageRefused(
            f"layer {layer}: the name {member.name!r} is absolute or leads outside; nothing was unpacked"
        )
    if parts[0] != top:
        raise ImageRefused(f"layer {layer}: {member.name!r} is not under {top}/; nothing was unpacked")
    if any(part.startswith(_WHITEOUT) for part in parts):
        raise ImageRefused(f"layer {layer}: {member.name!r} deletes files of a layer below, which {top}/ must not do")
    if len(parts) > limits.depth_max or max(len(os.fsencode(part)) for part in parts) > 255:
        raise ImageRefused(
            f"layer {layer}: {member.name[:80]!r}… is deeper than {limits.depth_max} folders or has a name over 255 bytes"
        )
    if not (member.isdir() or member.isreg()) or member.issparse():
        raise ImageRefused(f"layer {layer}: {member.name!r} is a link, device or sparse file; nothing was unpacked")
    if member.size > limits.bytes_max or (member.isdir() and member.size):
        raise ImageRefused(
            f"layer {layer}: {member.name!r} claims {member.size} bytes; the limit is {limits.bytes_max}"
        )
    return PurePosixPath(*parts)


def _extract_file(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    source = tar.extractfile(member)
    assert source is not None, "a plain file has content"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with source, os.fdopen(handle, "wb") as file:
        shutil.copyfileobj(source, file, CHUNK)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
