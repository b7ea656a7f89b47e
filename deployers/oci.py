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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
"""Uncompressed: see `docs/images.md` for why."""
LAYER_TYPES = frozenset({LAYER, LAYER + "+gzip", LAYER + "+zstd"})

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYERS = {
    "application/vnd.docker.image.rootfs.diff.tar": LAYER,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": LAYER + "+gzip",
}
"""What docker calls layers, and what the image-spec calls the same bytes."""
EMPTY = "application/vnd.oci.empty.v1+json"
"""Config of what is no image (image-spec, guidance for an empty descriptor): the two bytes `{}`."""

REF_NAME = "org.opencontainers.image.ref.name"
TITLE = "org.opencontainers.image.title"
VERSION = "org.opencontainers.image.version"
CREATED = "org.opencontainers.image.created"
BASE_DIGEST = "org.opencontainers.image.base.digest"
BASE_NAME = "org.opencontainers.image.base.name"

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


class RegistryAway(ImageError):
    """A registry cannot be reached or is in trouble; trying again later may help."""


class RegistryDenied(ImageError):
    """A registry does not let us: credentials, rights, quota, certificate. Trying again cannot help until somebody changes that."""


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
            if value.get("urls"):
                raise ValueError("its content is to be fetched from other places, which is not done")
            found = cls(
                media_type=str(value["mediaType"]),
                digest=check_digest(value["digest"]),
                size=int(value["size"]),
                annotations=tuple(sorted((str(k), str(v)) for k, v in annotations.items())),
            )
        except (AttributeError, KeyError, TypeError, ValueError, ImageRefused) as error:
            shown = repr(value)[:300]
            raise ImageCorrupt(
                f"{where} is not a descriptor (mediaType, sha256 digest, size, no urls): {shown}"
            ) from error
        if found.size < 0:
            raise ImageCorrupt(f"{where}: blob {found.digest} is said to have {found.size} bytes")
        return found


def check_digest(digest: object) -> str:
    """The digest, if it has the form `sha256:<64 hex>`. Raises ImageRefused; so a digest can never lead out of a folder."""
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ImageRefused(f"an image digest has the form sha256:<64 lower-case hex digits>, but got {digest!r}")
    return digest


def digest_of(content: bytes) -> str:
    """`sha256:…` of some bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


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


class Hashing:
    """A write-only binary file that knows the digest and size of what went through it."""

    def __init__(self, file: IO[bytes], size_max: int | None = None) -> None:
        self.file = file
        self.size = 0
        self.size_max = size_max
        self.sha256 = hashlib.sha256()

    def write(self, chunk: bytes) -> int:
        self.size += len(chunk)
        if self.size_max is not None and self.size > self.size_max:
            raise ImageCorrupt(
                f"a blob is larger than the {self.size_max} bytes that its descriptor says; fetch it again"
            )
        self.sha256.update(chunk)
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

    def write(
        self, media_type: str, produce: Callable[[IO[bytes]], None], expected: Descriptor | None = None
    ) -> Descriptor:
        """Store what `produce` writes to the file that it is given. A blob that is there already is replaced by the same content,
        which mends one that the disk has spoiled. Raises ImageStoreError; ImageCorrupt, and keeps nothing, if the content is not the
        `expected`; what `produce` raises goes through unless it is an OSError."""
        with disk_errors("writing an image blob"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.ingest.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.ingest)
            try:
                with os.fdopen(handle, "wb", buffering=CHUNK) as file:
                    sink = Hashing(file, size_max=expected.size if expected else None)
                    produce(cast(IO[bytes], sink))
                    file.flush()
                    os.fsync(file.fileno())
                os.chmod(temporary, 0o644)
                blob = Descriptor(media_type=media_type, digest=f"sha256:{sink.sha256.hexdigest()}", size=sink.size)
                if expected and (blob.digest, blob.size) != (expected.digest, expected.size):
                    raise ImageCorrupt(
                        f"blob {expected.digest} ({expected.size} bytes) has the digest {blob.digest} ({blob.size} bytes)"
                    )
                os.replace(temporary, self.path(blob.digest))
                fsync_folder(self.folder)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        return blob

    def write_json(self, media_type: str, value: Any) -> Descriptor:
        """Store canonical JSON; not again if it is there whole."""
        return self.write_small(media_type, canonical_json(value))

    def write_small(self, media_type: str, content: bytes) -> Descriptor:
        """Store a few bytes; not again if they are there whole. Raises ImageStoreError."""
        blob = Descriptor(media_type=media_type, digest=digest_of(content), size=len(content))
        with suppress(ImageCorrupt, ImageNotFound):
            if self.has(blob) and self.read_small(blob.digest) == content:
                return blob
        return self.write(media_type, lambda file: _write_all(file, content), expected=blob)

    def read_json(self, blob: Descriptor) -> dict[str, Any]:
        """The verified JSON object in a blob. Raises ImageNotFound, ImageCorrupt."""
        if blob.size > JSON_MAX:
            raise ImageCorrupt(f"blob {blob.digest} ({blob.media_type}) is {blob.size} bytes; the limit is {JSON_MAX}")
        self.verify(blob)
        return parse_object(self.path(blob.digest).read_bytes(), f"blob {blob.digest} ({blob.media_type})")

    def read_small(self, digest: str) -> bytes:
        """The verified content of a manifest or another small blob. Raises ImageNotFound, ImageCorrupt, ImageStoreError."""
        path = self.path(digest)
        try:
            with path.open("rb") as file:
                content = file.read(JSON_MAX + 1)
        except FileNotFoundError as error:
            raise ImageNotFound(f"blob {path} is missing; build the image again") from error
        except OSError as error:
            raise ImageStoreError(f"reading blob {path} failed: {error.strerror or error}; check the disk") from error
        if len(content) > JSON_MAX or digest_of(content) != digest:
            raise ImageCorrupt(f"blob {path} is not what its name says, or larger than {JSON_MAX} bytes")
        return content

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
        with suppress(ImageCorrupt, ImageNotFound):  # else it is copied again, which mends it
            if self.has(blob):
                self.verify(blob)
                return
        source = other.path(blob.digest)
        if not source.is_file():
            raise ImageNotFound(f"blob {source} of the base image is missing; fetch the base again")
        try:
            self.write(blob.media_type, lambda file: copy(source, file), expected=blob)
        except ImageCorrupt as error:
            raise ImageCorrupt(f"blob {source} of the base image: {error}") from error

    def has(self, blob: Descriptor) -> bool:
        """Whether a blob of that digest and size is there; its content is not read."""
        try:
            return self.path(blob.digest).stat().st_size == blob.size
        except FileNotFoundError:
            return False


def _write_all(file: IO[bytes], content: bytes) -> None:
    file.write(content)


def copy(source: Path, sink: IO[bytes]) -> None:
    """Write a file's content to another, by chunks."""
    with source.open("rb") as file:
        while chunk := file.read(CHUNK):
            sink.write(chunk)
