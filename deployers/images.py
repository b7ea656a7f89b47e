"""Model versions as OCI images in an image layout on disk: built reproducibly, verified, unpacked, removed.

A version is the digest of a manifest (invariant 3). The manifest fixes, by digest, every byte that serves: the model folder, the serving
code, and the base image below them if one is configured. The layout follows the image-spec 1.1, so that skopeo, podman or oras read it.

Order is what makes it crash-safe: blobs first, each flushed and renamed into place; then one replacement of `index.json`, under a lock.
An image is in the index, whole, or it is nowhere. `gc` waits for running builds and they for it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deployers import oci
from deployers.documents import (
    APP,
    DEPS,
    LAYER_KEY,
    MODEL,
    SUBJECT,
    Placed,
    Placement,
    annotations_of,
    diff_ids,
    image_config,
    manifest_of,
    model_config,
    placed,
    placement_notes,
    this_architecture,
)
from deployers.layers import UnpackLimits, extract_layer, write_layer
from deployers.oci import BlobStore, Descriptor, ImageCorrupt, ImageError, ImageNotFound, ImageRefused, ImageStoreError
from deployers.placement import MODELS, UNPACK_LOCK, Sources, fill_from_blob, link_model
from pipelines.jobs.files import write_bytes_atomic

__all__ = [
    "ImageCorrupt", "ImageEntry", "ImageError", "ImageNotFound", "ImageParts", "ImageRef", "ImageRefused", "ImageStoreError", "OciLayout",
    "UnpackLimits",
]  # fmt: skip

_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRef:
    """An image that is whole and in the index."""

    digest: str
    """`sha256:…` of the manifest."""
    size: int
    """Bytes of manifest, config and all layers."""
    layers: tuple[Descriptor, ...]
    """Base layers first, then requirements if there are any, then app, then model unless it is placed elsewhere."""
    model: Placed | None = None
    """None for an image that was not built by Ratchet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageParts:
    """The blobs that an image consists of. The manifest fixes the others."""

    manifest: Descriptor
    config: Descriptor
    layers: tuple[Descriptor, ...]
    """Lowest first."""
    annotations: Mapping[str, str]
    """The manifest's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageEntry:
    """One line of the index."""

    digest: str
    tag: str
    """`<name>:v<number>`; empty for an image whose tag was given to a later build."""
    annotations: Mapping[str, str]
    """Of the index entry: tag, name and number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Base:
    """What an image takes over from the one below it."""

    digest: str | None = None
    layers: tuple[Descriptor, ...] = ()
    config: Mapping[str, Any] | None = None


class OciLayout:
    """An OCI image layout in the folder `root`. Safe for several threads and processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = BlobStore(root)
        self._index = root / "index.json"

    # ------------------------------------------------------------ building
    def build(
        self, model_dir: Path, app_dir: Path, *, name: str, number: int, annotations: Mapping[str, str],
        base: str | None = None, requirements: tuple[Path, Descriptor] | None = None, placement: Placement = "image",
        progress: Progress = lambda text: None,
    ) -> ImageRef:  # fmt: skip
        """Package `model_dir` (as /model) and the package folder `app_dir` (as /app/<its name>) as `name:v<number>`.

        `base`: another layout's folder, `DIR` or `DIR:TAG`, or the digest of an image in this one. `requirements`: a layer that is made
        already, all below /deps. `placement`: whether the model is a layer of the image, or one of a model image that it names. The same
        inputs give the same digest, on any machine of the same architecture. If the tag exists with another digest it moves; the old
        image stays, under its digest.
        Raises ImageRefused (bad input), ImageNotFound (model, code or base is not there), ImageCorrupt (base), ImageStoreError (disk).
        """
        if not _NAME.fullmatch(name) or number < 1:
            raise ImageRefused(f"an image is named like flight-late and numbered from 1, but got {name!r}, {number!r}")
        for what, folder in (("model", model_dir), ("serving code", app_dir)):
            if not folder.is_dir():
                raise ImageNotFound(f"the {what} folder {folder} does not exist")
        self._initialise()
        self._sweep()
        with self._building():
            below = self._take_base(base, progress) if base else _Base()
            own = []
            if requirements is not None:
                progress("taking the requirements layer over")
                own.append(self._take_layer(*requirements))
            progress("writing the serving layer")
            own.append(self._write_layer(app_dir, f"{APP}/{app_dir.name}"))
            progress("writing the model layer")
            model = self._write_layer(model_dir, MODEL)
            more: dict[str, str] = {}
            if placement == "image":
                own.append(model)
            else:
                more = placement_notes(placement, model, self._write_model_image(model))
            notes = annotations_of(name, number, annotations, below.digest, more)
            named = [(dict(layer.annotations)[LAYER_KEY], layer.digest) for layer in own]
            config = self.blobs.write_json(oci.CONFIG, image_config(name, number, notes, below.config, named))
            written = self.blobs.write_json(oci.MANIFEST, manifest_of(config, (*below.layers, *own), notes))
            self._publish(written, name, number)
            return self._ref(written)

    def _write_model_image(self, layer: Descriptor) -> str:
        config = self.blobs.write_json(oci.CONFIG, model_config(layer))
        return self.blobs.write_json(oci.MANIFEST, manifest_of(config, [layer])).digest

    def _take_layer(self, path: Path, layer: Descriptor) -> Descriptor:
        """A layer that lies in a file, verified."""
        if self.blobs.has(layer):
            self.blobs.verify(layer)
        else:
            self.blobs.write(layer.media_type, lambda sink: oci.copy(path, sink), expected=layer)
        return replace(layer, annotations=((LAYER_KEY, DEPS),))

    def _write_layer(self, folder: Path, prefix: str) -> Descriptor:
        layer = self.blobs.write(oci.LAYER, lambda sink: write_layer(folder, prefix, sink))
        top = prefix.split("/")[0]
        return Descriptor(
            media_type=layer.media_type, digest=layer.digest, size=layer.size, annotations=((LAYER_KEY, top),)
        )

    def _take_base(self, base: str, progress: Progress) -> _Base:
        """Copy the base's layers into this layout. Raises ImageNotFound, ImageCorrupt, ImageRefused."""
        layout, entry = self._find_base(base)
        manifest = layout._manifest(entry)
        config_blob, layers = layout._parts(entry, manifest)
        config = layout.blobs.read_json(config_blob)
        if len(layers) != len(diff_ids(config)):
            raise ImageCorrupt(f"base image {base}: {len(layers)} layers, but {len(diff_ids(config))} diff_ids")
        for i, layer in enumerate(layers, start=1):
            if layer.media_type not in oci.LAYER_TYPES and layer.media_type not in oci.DOCKER_LAYERS:
                raise ImageRefused(
                    f"base image {base}: layer {i} is {layer.media_type}; convert it: skopeo copy --format oci … oci:DIR"
                )
            progress(f"copying layer {i} of {len(layers)} of the base image")
            self.blobs.copy_from(layout.blobs, layer)
        taken = tuple(replace(d, media_type=oci.DOCKER_LAYERS.get(d.media_type, d.media_type)) for d in layers)
        return _Base(digest=entry.digest, layers=taken, config=config)

    def config_of_base(self, base: str) -> dict[str, Any]:
        """The config of a base image, named as `build` takes it. Raises ImageNotFound, ImageCorrupt, ImageRefused."""
        layout, entry = self._find_base(base)
        return layout.blobs.read_json(layout._parts(entry, layout._manifest(entry))[0])

    def _find_base(self, base: str) -> tuple[OciLayout, Descriptor]:
        if base.startswith("sha256:"):
            return self, self._find(base)
        folder, tag = base, None
        if not Path(base).is_dir() and ":" in base:
            folder, tag = base.split(":", 1)
        layout = OciLayout(Path(folder))
        if not layout._index.is_file():
            raise ImageNotFound(
                f"base image {base}: {layout._index} does not exist; give an OCI layout as DIR or DIR:TAG"
            )
        found = [d for d in layout._entries() if tag is None or dict(d.annotations).get(oci.REF_NAME) == tag]
        if len(found) != 1:
            tags = sorted(filter(None, (dict(d.annotations).get(oci.REF_NAME) for d in layout._entries())))
            raise ImageNotFound(f"base image {base}: {len(found)} images match; name one as DIR:TAG, tags are {tags}")
        return layout, layout._for_this_machine(found[0])

    def _for_this_machine(self, entry: Descriptor) -> Descriptor:
        """The manifest for Linux on this machine's architecture, where `entry` is an index of several."""
        if entry.media_type != oci.INDEX:
            return entry
        wanted = {"os": "linux", "architecture": this_architecture()}
        for value in self.blobs.read_json(entry).get("manifests", ()):
            if wanted.items() <= (value.get("platform") or {}).items():
                return Descriptor.from_json(value, f"blob {entry.digest}")
        raise ImageNotFound(f"image {entry.digest} has no variant for linux/{wanted['architecture']}")

    # ------------------------------------------------------------ reading
    def list(self) -> tuple[ImageEntry, ...]:
        """All images in the index, oldest entry first; not what is attached to them."""
        return tuple(
            ImageEntry(digest=d.digest, tag=dict(d.annotations).get(oci.REF_NAME, ""), annotations=dict(d.annotations))
            for d in self._entries()
            if SUBJECT not in dict(d.annotations)
        )

    def entry(self, digest: str) -> Descriptor:
        """Of an image or of what is attached to one, as the index has it. Raises ImageNotFound."""
        return self._find(digest)

    def attached(self, digest: str) -> tuple[Descriptor, ...]:
        """Manifests whose subject the image is, oldest first."""
        return tuple(d for d in self._entries() if dict(d.annotations).get(SUBJECT) == digest)

    def add(self, entry: Descriptor) -> None:
        """Put a manifest that is among the blobs into the index, under its digest alone. Done once, however often it is called."""
        self._initialise()
        with self._changing_index() as entries:
            if all(d.digest != entry.digest for d in entries):
                self._write_index([*entries, entry])

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keeps `gc` away from blobs that are written here and not in the index yet."""
        self._initialise()
        with self._building():
            yield

    def verify(self, digest: str) -> ImageRef:
        """Re-read every byte of the image. Raises ImageNotFound, ImageCorrupt (naming the blob), ImageStoreError."""
        return self._verified(digest, ours=False)

    def _verified(self, digest: str, *, ours: bool) -> ImageRef:
        """`ours`: without the base's layers, which were read when the image was built and are not what is unpacked."""
        entry = self._find(digest)
        config, layers = self._parts(entry, self._manifest(entry))
        image = self._ref(entry)
        wanted = [layer for layer in layers if not ours or LAYER_KEY in dict(layer.annotations)]
        for blob in (config, *wanted, *self._apart(image)):
            self.blobs.verify(blob)
        return image

    def _apart(self, image: ImageRef) -> tuple[Descriptor, ...]:
        """Blobs that an image needs beside its own: those of its model image."""
        if image.model is None or image.model.image is None:
            return ()
        _, _, blobs = self.manifest(image.model.image)
        if image.model.layer.digest not in {blob.digest for blob in blobs}:
            raise ImageCorrupt(f"model image {image.model.image} does not hold {image.model.layer.digest}")
        return blobs

    def manifest(self, digest: str) -> tuple[bytes, str, tuple[Descriptor, ...]]:
        """Bytes and media type of a manifest in the layout, and the blobs that it names: config, then layers.

        Raises ImageNotFound, ImageCorrupt."""
        content = self.blobs.read_small(digest)
        value = oci.parse_object(content, f"blob {digest}")
        entry = Descriptor(media_type=str(value.get("mediaType", oci.MANIFEST)), digest=digest, size=len(content))
        config, layers = self._parts(entry, value)
        return content, entry.media_type, (config, *layers)

    def annotations(self, digest: str) -> dict[str, str]:
        """The image's lineage, from its manifest. Raises ImageNotFound, ImageCorrupt."""
        return dict(self._manifest(self._find(digest)).get("annotations") or {})

    def parts(self, digest: str) -> ImageParts:
        """What the image consists of; of the blobs only the manifest is read. Raises ImageNotFound, ImageCorrupt, ImageStoreError."""
        entry = self._find(digest)
        manifest = self._manifest(entry)
        config, layers = self._parts(entry, manifest)
        notes = {str(k): str(v) for k, v in (manifest.get("annotations") or {}).items()}
        return ImageParts(manifest=entry, config=config, layers=layers, annotations=notes)

    def unpack(
        self, digest: str, dest_root: Path, limits: UnpackLimits | None = None, sources: Sources | None = None
    ) -> Path:
        """Extract into `<dest_root>/<hex>/{model,app}` and return that folder; it is there whole, or not at all.

        Does nothing if it is there. A model that is placed outside of its image goes to the folder `models` beside `dest_root`, see
        `deployers.placement`; `sources` say where a replica can pull it from. Only layers that a build of ours made are extracted; base
        layers are the business of a container engine. Raises ImageNotFound, ImageCorrupt, ImageRefused (a layer holds links, devices,
        names that lead outside, too much), ImageStoreError.
        """
        target = dest_root / oci.hex_of(digest)
        with oci.disk_errors(f"unpacking {digest} into {dest_root}"):
            if target.is_dir():
                return target
            dest_root.mkdir(parents=True, exist_ok=True)
            with oci.folder_lock(dest_root / UNPACK_LOCK), self._building():
                for left_by_the_dead in dest_root.glob(".unpacking-*"):
                    shutil.rmtree(left_by_the_dead)
                if not target.is_dir():
                    temporary = dest_root / f".unpacking-{target.name}"
                    self._extract(digest, temporary, target, limits or UnpackLimits(), sources or Sources())
        return target

    def _extract(self, digest: str, temporary: Path, target: Path, limits: UnpackLimits, sources: Sources) -> None:
        image = self._verified(digest, ours=True)
        layers = {dict(d.annotations).get(LAYER_KEY): d for d in image.layers}
        try:
            apart = image.model is not None and image.model.placement != "image"
            for top in (APP,) if apart else (APP, MODEL):
                if top not in layers:
                    raise ImageRefused(f"image {digest} has no {top} layer; it was not built by Ratchet")
                if layers[top].media_type != oci.LAYER:
                    raise ImageRefused(f"image {digest}: the {top} layer is {layers[top].media_type}, not {oci.LAYER}")
                temporary.mkdir(exist_ok=True)
                extract_layer(self.blobs.path(layers[top].digest), top, temporary, limits)
            if apart:
                assert image.model is not None, "it is placed apart"
                models = target.parent.parent / MODELS
                fill_from_blob(models, image.model.layer, self.blobs.path(image.model.layer.digest), limits)
                link_model(temporary, models, image.model, sources)
            oci.fsync_folder(temporary)
            os.replace(temporary, target)
            oci.fsync_folder(target.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    # ------------------------------------------------------------ removing
    def remove(self, digest: str) -> bool:
        """Take the image, and what is attached to it, out of the index; `gc` frees its space. False if it was not there."""
        oci.check_digest(digest)
        with self._changing_index() as entries:
            kept = [d for d in entries if d.digest != digest and dict(d.annotations).get(SUBJECT) != digest]
            if len(kept) < len(entries):
                self._write_index(kept)
            return len(kept) < len(entries)

    def gc(self) -> int:
        """Delete blobs that no image in the index refers to, and what dead builds left. Waits for running builds. Returns bytes freed.

        Raises ImageCorrupt, and deletes nothing, if a manifest cannot be read: what it refers to is unknown.
        """
        if not self._index.is_file():
            return 0
        with oci.disk_errors(f"collecting garbage in {self.root}"), oci.folder_lock(self._lock("builds")):
            freed = self._clear_ingest()
            used = self._referenced()
            for digest in self.blobs.digests() - used:
                path = self.blobs.path(digest)
                freed += path.stat().st_size
                path.unlink()
            return freed

    def _referenced(self) -> frozenset[str]:
        used: set[str] = set()
        for entry in self._entries():
            config, layers = self._parts(entry, self._manifest(entry))
            image = self._ref(entry)
            used.update((entry.digest, config.digest, *(layer.digest for layer in layers)))
            if image.model is not None and image.model.image is not None:
                used.update((image.model.image, *(blob.digest for blob in self._apart(image))))
        return frozenset(used)

    # ------------------------------------------------------------ index and manifests
    def _find(self, digest: str) -> Descriptor:
        oci.check_digest(digest)
        for entry in self._entries():
            if entry.digest == digest:
                return entry
        raise ImageNotFound(f"no image {digest} in {self.root}")

    def _entries(self) -> tuple[Descriptor, ...]:
        try:
            content = self._index.read_bytes()
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise ImageStoreError(f"reading {self._index} failed: {error.strerror or error}; check the disk") from error
        value = oci.parse_object(content, str(self._index))
        return tuple(Descriptor.from_json(v, str(self._index)) for v in value.get("manifests") or ())

    def _manifest(self, entry: Descriptor) -> dict[str, Any]:
        manifest = self.blobs.read_json(entry)
        if not isinstance(manifest, dict) or manifest.get("schemaVersion") != 2:
            raise ImageCorrupt(f"blob {entry.digest} is not an OCI manifest (schemaVersion 2)")
        return manifest

    def _parts(self, entry: Descriptor, manifest: Mapping[str, Any]) -> tuple[Descriptor, tuple[Descriptor, ...]]:
        """Config and layers of a manifest. Raises ImageCorrupt."""
        where = f"manifest {entry.digest}"
        layers = manifest.get("layers")
        if not isinstance(layers, list):
            raise ImageCorrupt(f"{where} has no list of layers")
        return Descriptor.from_json(manifest.get("config"), where), tuple(
            Descriptor.from_json(v, where) for v in layers
        )

    def _ref(self, entry: Descriptor) -> ImageRef:
        manifest = self._manifest(entry)
        config, layers = self._parts(entry, manifest)
        size = entry.size + config.size + sum(layer.size for layer in layers)
        try:
            model = placed(dict(manifest.get("annotations") or {}), layers, entry.digest)
        except ImageRefused:
            model = None
        apart = model.layer.size if model is not None and model.image is not None else 0
        return ImageRef(digest=entry.digest, size=size + apart, layers=layers, model=model)

    def _publish(self, manifest: Descriptor, name: str, number: int) -> None:
        """Put the tag on the manifest; an image that had it keeps its place under its digest alone."""
        tag = f"{name}:v{number}"
        entry = Descriptor(
            media_type=manifest.media_type,
            digest=manifest.digest,
            size=manifest.size,
            annotations=tuple(sorted({oci.REF_NAME: tag, oci.TITLE: name, oci.VERSION: str(number)}.items())),
        )
        with self._changing_index() as entries:
            if entry in entries:
                return
            others = [_untagged(d) if dict(d.annotations).get(oci.REF_NAME) == tag else d for d in entries]
            self._write_index([*(d for d in others if d.digest != entry.digest or _tagged(d)), entry])

    @contextmanager
    def _changing_index(self) -> Iterator[tuple[Descriptor, ...]]:
        with oci.disk_errors(f"changing {self._index}"), oci.folder_lock(self._lock("index")):
            yield self._entries()

    def _write_index(self, entries: Iterable[Descriptor]) -> None:
        """Under the index's lock, so that other unfinished ones were left by processes that died."""
        for left_by_the_dead in self.root.glob(".index.json.*"):
            left_by_the_dead.unlink()
        index = {"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": [d.as_json() for d in entries]}
        write_bytes_atomic(self._index, oci.canonical_json(index), durable=True)
        oci.fsync_folder(self.root)

    # ------------------------------------------------------------ folder
    def _initialise(self) -> None:
        with oci.disk_errors(f"creating the image layout {self.root}"):
            self.root.mkdir(parents=True, exist_ok=True)
            marker = self.root / "oci-layout"
            if not marker.is_file():
                write_bytes_atomic(marker, oci.canonical_json({"imageLayoutVersion": "1.0.0"}), durable=True)

    def _lock(self, what: str) -> Path:
        return self.root / f".{what}.lock"

    @contextmanager
    def _building(self) -> Iterator[None]:
        """Keeps `gc` away: blobs that a build wrote are not in the index yet, and those that an unpacking reads must stay."""
        with oci.folder_lock(self._lock("builds"), shared=True):
            yield

    def _sweep(self) -> None:
        """Delete what builds that were killed left unfinished, unless one is running now."""
        with (
            oci.disk_errors(f"clearing {self.blobs.ingest}"),
            oci.folder_lock(self._lock("builds"), blocking=False) as alone,
        ):
            if alone:
                self._clear_ingest()

    def _clear_ingest(self) -> int:
        freed = 0
        if self.blobs.ingest.is_dir():
            for entry in os.scandir(self.blobs.ingest):
                freed += entry.stat().st_size
                os.unlink(entry.path)
        return freed


def _tagged(entry: Descriptor) -> bool:
    return oci.REF_NAME in dict(entry.annotations)


def _untagged(entry: Descriptor) -> Descriptor:
    kept = tuple((k, v) for k, v in entry.annotations if k != oci.REF_NAME)
    return Descriptor(media_type=entry.media_type, digest=entry.digest, size=entry.size, annotations=kept)
