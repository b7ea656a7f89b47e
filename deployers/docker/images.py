"""Versions' images in the Docker Engine: put there from the image layout in the state folder, or pulled, and known by digest.

The manifest, whose digest is the version, fixes the config by digest; the config fixes every layer by the digest of its content. The Engine
calls an image by the digest of its config. So an image that the Engine has under that ID is, byte for byte, the version's, however it came
there; and what an Engine that cannot read OCI layouts (20.10) is given, a docker-archive made of the layout's blobs as they are, ends up
under that ID or is refused. Engines that keep manifests (containerd's image store) are asked for the manifest's digest instead.
"""

from __future__ import annotations

import re
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from deployers import oci
from deployers.docker.engine import Engine, EngineRefused
from deployers.documents import APP, LAYER_KEY, MODEL, placed
from deployers.images import ImageNotFound, ImageParts, ImageRefused, OciLayout, UnpackLimits
from deployers.oci import Descriptor, ImageError
from deployers.placement import fill_from_blob
from deployers.routed.replicas import Obstacle
from deployers.target import TargetError
from pipelines.jobs.files import read_json, write_json_atomic

log = structlog.get_logger("docker_target")

RETRY_S, RETRY_MAX_S = 2.0, 60.0
"""Between attempts to get an image into the Engine: doubling."""
ATTEMPTS_MAX = 3
"""After so many in vain a version counts as failed; it is still tried, more and more rarely."""
_BLOCK = 512
_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")


# ---------------------------------------------------------------- archives (no Engine)
def archive(layout: OciLayout, parts: ImageParts, tag: str, *, without: int = 0) -> Iterator[bytes]:
    """A tar that is a docker-archive and an OCI layout at once, of one image, in chunks; a blob is in memory a chunk at a time.

    `without`: so many of the lowest layers are left out, for an Engine that has them. Raises ImageNotFound, OSError."""
    name = {
        blob.digest: f"blobs/sha256/{oci.hex_of(blob.digest)}" for blob in (parts.manifest, parts.config, *parts.layers)
    }
    listed = [
        {
            "Config": name[parts.config.digest],
            "RepoTags": [tag],
            "Layers": [name[layer.digest] for layer in parts.layers],
        }
    ]
    yield from _small("manifest.json", oci.canonical_json(listed))
    yield from _small("oci-layout", oci.canonical_json({"imageLayoutVersion": "1.0.0"}))
    entry = parts.manifest.as_json() | {"annotations": {"io.containerd.image.name": f"docker.io/{tag}"}}
    yield from _small(
        "index.json", oci.canonical_json({"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": [entry]})
    )
    for blob in dict.fromkeys((parts.manifest, parts.config, *parts.layers[without:])):
        yield from _blob(layout.blobs.path(blob.digest), name[blob.digest], blob)
    yield b"\0" * (2 * _BLOCK)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT)


def _small(name: str, content: bytes) -> Iterator[bytes]:
    yield _header(name, len(content)) + content + b"\0" * (-len(content) % _BLOCK)


def _blob(path: Path, name: str, blob: Descriptor) -> Iterator[bytes]:
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise ImageNotFound(f"blob {path} is missing; build the image again") from error
    with file:
        yield _header(name, blob.size)
        left = blob.size
        while left and (chunk := file.read(min(oci.CHUNK, left))):
            left -= len(chunk)
            yield chunk
        yield b"\0" * (left + -blob.size % _BLOCK)  # of one cut short the Engine sees that the digest is wrong


def tag_of(parts: ImageParts) -> str:
    """Under which people find the image in the Engine: `ratchet/<model>:v<number>`. Nothing is ever started by it."""
    name, number = parts.annotations.get(oci.TITLE, ""), parts.annotations.get(oci.VERSION, "")
    if not _NAME.fullmatch(name) or not number.isdecimal():
        return f"ratchet/{oci.hex_of(parts.manifest.digest)[:12]}:image"
    return f"ratchet/{name}:v{number}"


# ---------------------------------------------------------------- into the Engine
def load(engine: Engine, layout: OciLayout, digest: str) -> str:
    """Have the Engine hold the image of a version; the ID that it has there. Does nothing if it is there.

    Layers that the Engine has are not sent again: the first attempt sends only our own, which suffices wherever another version on the
    same base was put there before. Raises EngineAway, EngineRefused, ImageError."""
    parts = layout.parts(digest)
    if (known := held(engine, parts)) is not None:
        return known
    if not parts.layers or dict(parts.layers[0].annotations).get(LAYER_KEY) is not None:
        raise ImageRefused(
            f"image {digest} stands on no base image, so it has no Python for a container to run: set deploy.base_image in the policy, "
            f"or base_image in the daemon's settings, such as docker.io/library/python:3.11-slim@sha256:…, and package a version again"
        )
    tag, lowest = tag_of(parts), () if engine.keeps_manifests() else _shared_layers(parts)
    for without in (*lowest, 0):
        try:
            engine.load(archive(layout, parts, tag, without=without))
        except EngineRefused as error:
            if not without or "no space left" in str(error):
                raise
            log.debug("image.layers_sent_too", digest=digest, error=str(error))  # most likely it lacks a layer
            continue
        if (known := held(engine, parts)) is not None:
            return known
    raise EngineRefused(500, f"it took the image, but has it neither as {parts.config.digest} nor as {digest}")


def _shared_layers(parts: ImageParts) -> Sequence[int]:
    """How many of the lowest layers other versions are likely to have brought: all below our own, then those of the base image."""
    kinds = [dict(layer.annotations).get(LAYER_KEY) for layer in parts.layers]
    below = next((i for i, kind in enumerate(kinds) if kind in (APP, MODEL)), 0)
    base = next((i for i, kind in enumerate(kinds) if kind is not None), 0)
    return sorted({n for n in (below, base) if n}, reverse=True)


def held(engine: Engine, parts: ImageParts) -> str | None:
    """The ID under which the Engine has exactly this image, or None. Raises EngineAway, EngineRefused."""
    for name in (parts.config.digest, parts.manifest.digest):
        if engine.image_id(name) == name:
            return name
    return None


def outside_model(layout: OciLayout, models: Path, digest: str) -> Path | None:
    """The folder to mount at /model, filled from the layout if need be; None for a model inside of its image.

    A container need not pull what is on its machine already, so both placements outside of the image are one here. Raises ImageError,
    OSError."""
    parts = layout.parts(digest)
    model = placed(parts.annotations, parts.layers, digest)
    if model.placement == "image":
        return None
    return fill_from_blob(models, model.layer, layout.blobs.path(model.layer.digest), UnpackLimits())


# ---------------------------------------------------------------- in the background
@dataclass(kw_only=True, slots=True)
class _Attempt:
    running: bool = False
    count: int = 0
    not_before: float = 0.0
    reason: str = ""


class Shelf:
    """Which versions' images the Engine has, and a thread that brings those that it lacks, one after the other.

    What it knows is a memory, never the truth: a container that cannot be created for lack of its image makes it look again."""

    def __init__(self, engine: Engine, home: Path, *, fetch: Callable[[Engine, OciLayout, str], str] = load) -> None:
        self._engine = engine
        self._layout = OciLayout(home / "images")
        self._record = home / "run" / "engine-images.json"
        """Digest → ID of what was put into the Engine, to be taken out again."""
        self._fetch = fetch
        self._lock = threading.Lock()
        self._models_folder = home / "models"
        self._ids: dict[str, str] = {}
        self._models: dict[str, Path | None] = {}
        self._attempts: dict[str, _Attempt] = {}
        self._wanted: list[str] = []
        self._thread: threading.Thread | None = None

    def image(self, digest: str) -> str | None:
        """ID in the Engine of the version's image, as far as is known."""
        return self._ids.get(digest)

    def model(self, digest: str) -> Path | None:
        """Folder of the version's model, if it is not in the image. Known of images that are there."""
        return self._models.get(digest)

    def obstacle(self, digest: str) -> Obstacle | None:
        """Why nothing can be started from the image, as known."""
        with self._lock:
            return self._obstacle(digest)

    def _obstacle(self, digest: str) -> Obstacle | None:
        attempt = self._attempts.get(digest)
        if digest in self._ids or attempt is None:
            return None
        if attempt.count >= ATTEMPTS_MAX:
            return Obstacle(reason=attempt.reason)
        said = f" (last attempt: {attempt.reason})" if attempt.reason else ""
        return Obstacle(reason=f"image {digest[:19]} is being put into the Docker Engine{said}", passing=True)

    def fetch(self, digest: str) -> Obstacle | None:
        """Have the image brought; None once it is there."""
        with self._lock:
            if digest in self._ids:
                return None
            attempt = self._attempts.setdefault(digest, _Attempt())
            if not attempt.running and time.monotonic() >= attempt.not_before:
                attempt.running = True
                self._wanted.append(digest)
                if self._thread is None or not self._thread.is_alive():
                    self._thread = threading.Thread(target=self._work, name="docker-images", daemon=True)
                    self._thread.start()
            return self._obstacle(digest)

    def missing(self, digest: str) -> None:
        """Somebody has removed it: look again."""
        with self._lock:
            self._ids.pop(digest, None)

    def wait(self, timeout_s: float) -> None:
        """Until nothing is being brought."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    # ------------------------------------------------------------ the thread
    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._wanted:
                    self._thread = None
                    return
                digest = self._wanted[0]
            reason, image_id = self._try(digest)
            with self._lock:
                self._wanted.pop(0)
                attempt = self._attempts[digest]
                attempt.running = False
                if image_id is not None:
                    self._ids[digest] = image_id
                    del self._attempts[digest]
                    continue
                attempt.count += 1
                attempt.reason = reason
                attempt.not_before = time.monotonic() + min(RETRY_MAX_S, RETRY_S * 2.0 ** (min(attempt.count, 32) - 1))

    def _try(self, digest: str) -> tuple[str, str | None]:
        """Why it could not be brought, or its ID."""
        try:
            self._make_room()
            image_id = self._fetch(self._engine, self._layout, digest)
            self._models[digest] = outside_model(self._layout, self._models_folder, digest)
            self._remember(digest, image_id)
        except EngineRefused as error:
            full = "no space left" in str(error)
            help_ = "; the Engine's disk is full: docker system df shows with what" if full else ""
            return f"the Docker Engine did not take image {digest[:19]}: {error}{help_}", None
        except (ImageError, TargetError, OSError) as error:
            return str(error), None
        except Exception as error:
            log.exception("image.not_loaded", digest=digest)
            return f"image {digest[:19]} could not be put into the Docker Engine: {error!r}", None
        return "", image_id

    def _remember(self, digest: str, image_id: str) -> None:
        write_json_atomic(self._record, {**self._remembered(), digest: image_id})

    def _remembered(self) -> dict[str, str]:
        try:
            found = read_json(self._record)
        except ValueError:
            return {}
        return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}

    def _make_room(self) -> None:
        """Take out what was put in and has left the layout since; what a container runs from stays till the next time."""
        remembered = self._remembered()
        kept = {entry.digest for entry in self._layout.list()}
        for digest in sorted(set(remembered) - kept):
            try:
                self._engine.remove_image(remembered[digest])
            except EngineRefused as error:
                log.debug("image.stays", digest=digest, error=str(error))
                continue
            write_json_atomic(self._record, {d: i for d, i in self._remembered().items() if d != digest})
            with self._lock:
                self._ids.pop(digest, None)
