"""The parts of the OCI image-spec 1.1 that Ratchet uses: digests, media types, canonical JSON, and a folder of content-addressed blobs.

A blob is visible under its digest only when it is whole and on the disk: it is written elsewhere in the layout, flushed, and renamed. So
whatever dies at whatever moment, a name `blobs/sha256/<hex>` never means a part of the content.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
"""Uncompressed: see `docs/images.md` for why."""
LAYER_TYPES = frozenset({LAYER, LAYER + "+gzip", LAYER + "+zstd"})

REF_NAME = "org.opencontainers.image.ref.name"
TITLE = "org.opencontainers.image.title"
VERSION = "org.opencontainers.image.version"
CREATED = "org.opencontainers.image.created"
BASE_DIGEST = "org.opencontainers.image.base.digest"

CHUNK = 1 << 20
JSON_MAX = 4 << 20
"""Bytes of a manifest or config; what registries accept."""
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class ImageError(Exception):
    """Something is wrong with an image; the message names the file or blob, what was expected, what was found and what to do."""


class ImageNotFound(ImageError):
    """No such image, blob or base."""


class ImageCorrupt(ImageError):
    """Content does not match its digest or size, or is not what the image-spec says it must be."""


class ImageRefused(ImageError):
    """The input must not be packaged or unpacked: links, devices, names that lead outside, too much of it."""


class ImageStoreError(ImageError):
    """The disk said no (full, read-only, no permission). Nothing half-written is visible; trying again later may help."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Descriptor:
    """A pointer to a blob, as the image-spec writes it."""

    media_type: str
    digest: str
    size: int
    """Bytes."""
    annotations: tuple[tuple[str, str], ...] = ()

    def as_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        return value | ({"annotations": dict(self.annotations)} if self.annotations else {})

    @classmethod
    def from_json(cls, value: Any, where: str) -> Descriptor:
        """Raises ImageCorrupt, naming `where` the value stands, if it is no descriptor of a sha256 blob."""
        try:
            annotations = dict(value.get("annotations") or {})
            found = cls(
                media_type=str(value["mediaType"]),
                digest=check_digest(value["digest"]),
                size=int(value["size"]),
                annotations=tuple(sorted((str(k), str(v)) for k, v in annotations.items())),
            )
        except (AttributeError, KeyError, TypeError, ValueError, ImageRefused) as error:
            raise ImageCorrupt(f"{where} is not a descriptor (mediaType, sha256 digest, size): {value!r}") from error
        return found


def check_digest(digest: object) -> str:
    """The digest, if it has the form `sha256:<64 hex>`. Raises ImageRefused; so a digest can never lead out of a folder."""
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ImageRefused(f"an image digest has the form sha256:<64 lower-case hex digits>, but got {digest!r}")
    return digest


def hex_of(digest: str) -> str:
    """`sha256:abc…` → `abc…`."""
    return check_digest(digest).removeprefix("sha256:")


def canonical_json(value: Any) -> bytes:
    """Sorted, compact JSON: equal values have equal bytes, so equal digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def parse_object(content: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `content`. Raises ImageCorrupt, naming `where` it stands."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ImageCorrupt(f"{where} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ImageCorrupt(f"{where} is not a JSON object")
    return value


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn an OSError into an ImageStoreError that says what was being done, on which file, and what helps."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        help_ = "free some space or run gc(), then try again" if error.errno in _NO_SPACE else "check the disk"
        raise ImageStoreError(f"{doing}{where} failed: {error.strerror or error}; {help_}") from error


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a loss of power."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def folder_lock(path: Path, *, shared: bool = False, blocking: bool = True) -> Iterator[bool]:
    """Hold an advisory lock on the file `path` (created if missing) between processes and threads; yields whether it was got.

    The kernel drops it when the holder dies, so there is no stale lock to clean."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        try:
            fcntl.flock(handle, kind if blocking else kind | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


class _Hashing:
    """A write-only binary file that knows the digest and size of what went through it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.size = 0
        self.sha256 = hashlib.sha256()

    def write(self, chunk: bytes) -> int:
        self.sha256.update(chunk)
        self.size += len(chunk)
        return self.file.write(chunk)

    def tell(self) -> int:
        return self.size


class BlobStore:
    """`<root>/blobs/sha256/`: blobs under their digests. Writers put unfinished ones into `<root>/ingest/`."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "blobs" / "sha256"
        self.ingest = root / "ingest"

    def path(self, digest: str) -> Path:
        return self.folder / hex_of(digest)

    def digests(self) -> frozenset[str]:
        """Of all blobs present."""
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return frozenset(f"sha256:{n}" for n in names if _DIGEST.fullmatch(f"sha256:{n}"))

    def write(self, media_type: str, produce: Callable[[IO[bytes]], None]) -> Descriptor:
        """Store what `produce` writes to the file that it is given. A blob that is there already is replaced by the same content,
        which mends one that the disk has spoiled. Raises ImageStoreError; what `produce` raises goes through unless it is an OSError."""
        with disk_errors("writing an image blob"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.ingest.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.ingest)
            try:
                with os.fdopen(handle, "wb", buffering=CHUNK) as file:
                    sink = _Hashing(file)
                    produce(cast(IO[bytes], sink))
                    file.flush()
                    os.fsync(file.fileno())
                os.chmod(temporary, 0o644)
                blob = Descriptor(media_type=media_type, digest=f"sha256:{sink.sha256.hexdigest()}", size=sink.size)
                os.replace(temporary, self.path(blob.digest))
                fsync_folder(self.folder)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        return blob

    def write_json(self, media_type: str, value: Any) -> Descriptor:
        content = canonical_json(value)
        return self.write(media_type, lambda file: _write_all(file, content))

    def read_json(self, blob: Descriptor) -> dict[str, Any]:
        """The verified JSON object in a blob. Raises ImageNotFound, ImageCorrupt."""
        if blob.size > JSON_MAX:
            raise ImageCorrupt(f"blob {blob.digest} ({blob.media_type}) is {blob.size} bytes; the limit is {JSON_MAX}")
        self.verify(blob)
        return parse_object(self.path(blob.digest).read_bytes(), f"blob {blob.digest} ({blob.media_type})")

    def verify(self, blob: Descriptor) -> None:
        """Re-read a blob. Raises ImageNotFound if it is missing, ImageCorrupt if its size or digest is not the descriptor's."""
        path = self.path(blob.digest)
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size != blob.size:
                    raise ImageCorrupt(
                        f"blob {path} has {size} bytes where its descriptor says {blob.size}; build the image again"
                    )
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise ImageNotFound(f"blob {path} is missing; build the image again") from error
        except OSError as error:
            raise ImageStoreError(f"reading blob {path} failed: {error.strerror or error}; check the disk") from error
        if f"sha256:{found}" != blob.digest:
            raise ImageCorrupt(
                f"blob {path} has the digest sha256:{found}; its content was changed: build the image again"
            )

    def copy_from(self, other: BlobStore, blob: Descriptor) -> None:
        """Take a blob over from another layout, verified. Copied, not linked: nothing done to the other layout can reach it."""
        if other.folder == self.folder:
            other.verify(blob)
            return
        source = other.path(blob.digest)
        if not source.is_file():
            raise ImageNotFound(f"blob {source} of the base image is missing; fetch the base again")
        written = self.write(blob.media_type, lambda file: _copy(source, file))
        if (written.digest, written.size) != (blob.digest, blob.size):
            self.path(written.digest).unlink(missing_ok=True)
            raise ImageCorrupt(f"blob {source} of the base image has the digest {written.digest}; fetch the base again")


def _write_all(file: IO[bytes], content: bytes) -> None:
    file.write(content)


def _copy(source: Path, sink: IO[bytes]) -> None:
    with source.open("rb") as file:
        while chunk := file.read(CHUNK):
            sink.write(chunk)
