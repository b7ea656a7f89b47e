"""Base images from a registry, into the layout: by digest, only what is missing, and read as if a stranger had written them.

A tag is resolved once: what it meant then stands in `<home>/bases/`, and stays what it means until somebody deletes that file, so that
two versions differ by what their owner changed and not by what was pushed meanwhile. Layers are not unpacked here, but a container engine
will do that: they are decompressed once, thrown away, and must have the digests that the config promises and fit into a limit.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from deployers import oci
from deployers.documents import BASE_HOME, diff_ids, this_architecture
from deployers.images import OciLayout
from deployers.oci import Descriptor, ImageCorrupt, ImageNotFound, ImageRefused
from deployers.registry.names import Reference
from deployers.registry.transport import RegistryClient
from pipelines.jobs.files import create_json, read_json

_INDEXES = (oci.INDEX, oci.DOCKER_INDEX)
_MANIFESTS = (oci.MANIFEST, oci.DOCKER_MANIFEST)
_CONFIGS = (oci.CONFIG, oci.DOCKER_CONFIG)
_ACCEPT = ", ".join((*_MANIFESTS, *_INDEXES))
_GZIP = frozenset({oci.LAYER + "+gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip"})
_PLAIN = frozenset({oci.LAYER, "application/vnd.docker.image.rootfs.diff.tar"})


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseLimits:
    """What a base image may be at most."""

    layers_max: int = 127
    """As many as a container engine takes."""
    bytes_max: int = 16 << 30
    """Of all layers together, as they are fetched."""
    unpacked_bytes_max: int = 32 << 30
    """Of all layers together, decompressed."""
    variants_max: int = 256
    """Entries of an index of several platforms."""


def take_base(
    reference: Reference,
    client: RegistryClient,
    layout: OciLayout,
    bases: Path,
    limits: BaseLimits | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> str:
    """See that the layout has the base image; the digest of its manifest for this machine's platform.

    Raises ImageNotFound, ImageCorrupt, ImageRefused, RegistryAway, RegistryDenied, ImageStoreError. Needs the registry only for a tag that
    was never resolved, and for what the layout does not have."""
    limits = limits or BaseLimits()
    digest = reference.digest or _recorded(bases, reference)
    if digest is None:
        digest = _record(bases, reference, _resolve(reference, client))
    found = _chosen(bases, digest) or digest
    if _is_whole(layout, found):
        return found
    with layout.writing():
        progress(f"fetching the base image {reference}")
        content, media_type = _manifest(reference, digest, client)
        if media_type in _INDEXES:
            found = _variant(content, str(reference), limits)
            content, media_type = _manifest(reference, found, client)
            if media_type in _INDEXES:
                raise ImageRefused(
                    f"base image {reference}: an index inside of an index; name the image itself by digest"
                )
            create_json(_note(bases, digest), {"reference": digest, "digest": found})
        _fetch_blobs(content, str(reference), client, reference.repository, layout, limits, progress)
        layout.blobs.write_small(media_type, content)
        notes = ((BASE_HOME, f"{reference.host}/{reference.repository}"),)
        layout.add(Descriptor(media_type=media_type, digest=found, size=len(content), annotations=notes))
    return found


# ---------------------------------------------------------------- what a name means
def _note(bases: Path, name: object) -> Path:
    bases.mkdir(parents=True, exist_ok=True)
    return bases / f"{hashlib.sha256(str(name).encode()).hexdigest()[:32]}.json"


def _recorded(bases: Path, name: object) -> str | None:
    """What a name was resolved to. Raises ImageCorrupt if the note is damaged."""
    path = _note(bases, name)
    try:
        known = read_json(path)
        return None if known is None else oci.check_digest(known["digest"])
    except (ValueError, KeyError, TypeError, ImageRefused) as error:
        raise ImageCorrupt(
            f"{path} should say which digest {name} is, and does not; delete it to look again"
        ) from error


def _chosen(bases: Path, digest: str) -> str | None:
    """Which image of an index was taken for this machine."""
    return _recorded(bases, digest)


def _record(bases: Path, reference: Reference, digest: str) -> str:
    """Write down what a tag means; of several at once the first one is right."""
    create_json(_note(bases, reference), {"reference": str(reference), "digest": digest}, durable=True)
    return _recorded(bases, reference) or digest


def _resolve(reference: Reference, client: RegistryClient) -> str:
    assert reference.tag is not None, "a name without a digest has a tag"
    found = client.get_manifest_bytes(reference.repository, reference.tag, _ACCEPT, oci.JSON_MAX)
    if found is None:
        raise ImageNotFound(f"base image {reference}: the registry has no such image")
    return oci.digest_of(found[0])


def _is_whole(layout: OciLayout, digest: str) -> bool:
    """Whether the image was fetched, checked and is still there. A build reads every byte of it again."""
    try:
        layout.entry(digest)
        _, _, blobs = layout.manifest(digest)
    except (ImageNotFound, ImageCorrupt):
        return False
    return all(layout.blobs.has(blob) for blob in blobs)


# ---------------------------------------------------------------- manifests
def _manifest(reference: Reference, digest: str, client: RegistryClient) -> tuple[bytes, str]:
    found = client.get_manifest_bytes(reference.repository, digest, _ACCEPT, oci.JSON_MAX)
    if found is None:
        raise ImageNotFound(f"base image {reference}: the registry has no manifest {digest}; was it deleted?")
    content, told = found
    if oci.digest_of(content) != digest:
        raise ImageCorrupt(
            f"base image {reference}: the registry sent {oci.digest_of(content)} where {digest} was asked for"
        )
    return content, check_kind(content, told, str(reference))


def check_kind(content: bytes, told: str, where: str) -> str:
    """The media type of a manifest, if all agree what it is. Pure. Raises ImageCorrupt, ImageRefused.

    The header, the field `mediaType` and the fields that are there must say the same: else two programs could see two images in it."""
    value = oci.parse_object(content, f"base image {where}")
    kind = value.get("mediaType", told)
    if value.get("schemaVersion") != 2 or kind not in (*_MANIFESTS, *_INDEXES):
        raise ImageRefused(
            f"base image {where} is of the kind {str(kind)[:100]!r}; it must be an image of schema version 2"
        )
    both = "manifests" in value and ("layers" in value or "config" in value)
    fits = "manifests" in value if kind in _INDEXES else "layers" in value and "config" in value
    if kind != told or both or not fits:
        raise ImageRefused(
            f"base image {where}: the registry calls it {told[:100]!r}, itself {str(kind)[:100]!r}, and its fields do not settle it"
        )
    return str(kind)


def _variant(content: bytes, where: str, limits: BaseLimits) -> str:
    """Digest of the image for this machine in an index. Raises ImageRefused, ImageNotFound, ImageCorrupt."""
    entries = oci.parse_object(content, where).get("manifests")
    if not isinstance(entries, list) or len(entries) > limits.variants_max:
        raise ImageRefused(f"base image {where}: an index must list at most {limits.variants_max} images")
    for value in entries:
        platform = value.get("platform") if isinstance(value, dict) else None
        wanted = {"os": "linux", "architecture": this_architecture()}
        if isinstance(platform, dict) and wanted.items() <= platform.items():
            return Descriptor.from_json(value, f"base image {where}").digest
    raise ImageNotFound(f"base image {where} has no variant for linux/{this_architecture()}")


def _parts(content: bytes, where: str, limits: BaseLimits) -> tuple[Descriptor, tuple[Descriptor, ...]]:
    value = oci.parse_object(content, where)
    config = Descriptor.from_json(value.get("config"), where)
    layers = value.get("layers")
    if not isinstance(layers, list) or not 0 < len(layers) <= limits.layers_max:
        raise ImageRefused(f"base image {where} must have 1 to {limits.layers_max} layers")
    found = tuple(Descriptor.from_json(v, where) for v in layers)
    if config.media_type not in _CONFIGS or config.size > oci.JSON_MAX:
        raise ImageRefused(
            f"base image {where}: its config is {config.media_type!r}, {config.size} bytes; it is no image"
        )
    if odd := [layer.media_type for layer in found if layer.media_type not in _GZIP | _PLAIN]:
        raise ImageRefused(
            f"base image {where}: a layer is {odd[0][:100]!r}; copy it with skopeo copy --dest-compress-format gzip"
        )
    total = sum(layer.size for layer in found)
    if total > limits.bytes_max:
        raise ImageRefused(f"base image {where} has {total} bytes of layers; the limit is {limits.bytes_max}")
    return config, found


# ---------------------------------------------------------------- blobs
def _fetch_blobs(
    content: bytes,
    where: str,
    client: RegistryClient,
    repository: str,
    layout: OciLayout,
    limits: BaseLimits,
    progress: Callable[[str], None],
) -> None:
    config_blob, layers = _parts(content, where, limits)
    _fetch(config_blob, client, repository, layout)
    config = layout.blobs.read_json(config_blob)
    promised = _checked_config(config, len(layers), where)
    room = limits.unpacked_bytes_max
    for i, (layer, promise) in enumerate(zip(layers, promised, strict=True), start=1):
        if not layout.blobs.has(layer):
            progress(f"fetching layer {i} of {len(layers)} of the base image, {layer.size / 1e6:.0f} MB")
            _fetch(layer, client, repository, layout)
        room -= check_layer(
            layout.blobs.path(layer.digest), layer.media_type in _GZIP, promise, room, f"{where}, layer {i}"
        )


def _fetch(blob: Descriptor, client: RegistryClient, repository: str, layout: OciLayout) -> None:
    if not layout.blobs.has(blob):
        layout.blobs.write(blob.media_type, lambda sink: client.download(repository, blob.digest, sink), expected=blob)


def _checked_config(config: Mapping[str, Any], layers: int, where: str) -> tuple[str, ...]:
    """Digests of the uncompressed layers. Raises ImageRefused."""
    platform = f"{config.get('os')}/{config.get('architecture')}"
    if platform != f"linux/{this_architecture()}":
        raise ImageRefused(f"base image {where} is for {platform[:60]}; this machine needs linux/{this_architecture()}")
    inside = config.get("config") or {}
    try:
        promised = tuple(oci.check_digest(d) for d in diff_ids(config))
        env = inside.get("Env") or []
        plain = all(isinstance(word, str) for word in env) and isinstance(inside.get("Labels") or {}, dict)
    except (AttributeError, TypeError) as error:
        raise ImageRefused(f"base image {where}: its config is not one of an image") from error
    if len(promised) != layers or not plain or not isinstance(config.get("history") or [], list):
        raise ImageRefused(f"base image {where}: {layers} layers, but its config speaks of {len(promised)}")
    return promised


def check_layer(path: Path, gzip: bool, promise: str, room: int, where: str) -> int:
    """Decompress a layer into nothing; its bytes. Raises ImageRefused if they are more than `room`, ImageCorrupt if not the promised."""
    sha256, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        for chunk in _inflated(file) if gzip else iter(lambda: file.read(oci.CHUNK), b""):
            size += len(chunk)
            if size > room:
                raise ImageRefused(f"base image {where} decompresses to more than {room} bytes, which is the limit")
            sha256.update(chunk)
    if f"sha256:{sha256.hexdigest()}" != promise:
        raise ImageCorrupt(
            f"base image {where}: its content is sha256:{sha256.hexdigest()} where its config promises {promise}"
        )
    return size


def _inflated(file: IO[bytes]) -> Any:
    """Chunks of a gzip file of one or several members, each at most CHUNK bytes however well they were compressed."""
    inflate = zlib.decompressobj(wbits=31)
    while data := inflate.unconsumed_tail or inflate.unused_data or file.read(oci.CHUNK):
        if inflate.eof:
            inflate = zlib.decompressobj(wbits=31)
        try:
            yield inflate.decompress(data, oci.CHUNK)
        except zlib.error as error:
            raise ImageCorrupt(f"a layer of the base image is not gzip: {error}") from error
    if not inflate.eof:
        raise ImageCorrupt("a layer of the base image ends in the middle")
