"""The JSON documents that make an image of some layers: annotations, configs, manifests. Pure: equal arguments give equal bytes.

What a version is made of is fixed by its image's manifest (invariant 3), wherever its model lies:

- `placement: image`: the model is a layer of the image.
- `placement: volume | pull`: the image has no model layer. Its annotations `dev.ratchet.model.*` name the model's layer by digest and size,
  and by digest a second image that holds nothing but this layer: the *model image*, which a cluster can mount as an OCI image volume.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from deployers import oci
from deployers.oci import Descriptor, ImageCorrupt, ImageRefused

LINEAGE = "dev.ratchet."
"""Prefix of our own annotation keys."""
LAYER_KEY = LINEAGE + "layer"
"""Annotation of a layer's descriptor: `deps`, `app` or `model`, the folder it holds."""
DEPS, APP, MODEL = "deps", "app", "model"
EPOCH = "1970-01-01T00:00:00Z"
Placement = Literal["image", "volume", "pull"]
PLACEMENT = LINEAGE + "model.placement"
MODEL_LAYER = LINEAGE + "model.layer"
MODEL_SIZE = LINEAGE + "model.size"
MODEL_IMAGE = LINEAGE + "model.image"
SUBJECT = LINEAGE + "subject"
"""Annotation, in the layout's index, of what is attached to an image: the image's digest."""
BASE_HOME = LINEAGE + "base"
"""Annotation, in the layout's index, of a base image that was fetched: `host/repository`."""
REQUIREMENTS = LINEAGE + "requirements"
"""Annotation, and label of a base: sha256 of the lock file whose packages are in it."""
MODEL_CACHE = "/models"
"""Where a container keeps models that it pulls."""

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
_ENVIRONMENT = ("PYTHONDONTWRITEBYTECODE=1", "PYTHONUNBUFFERED=1")
_LISTEN = ("--log-dir", "/log", "--host", "0.0.0.0", "--port", "8080")  # noqa: S104 - inside a container
_SAYS = {DEPS: "ratchet: requirements", APP: "ratchet: serving code", MODEL: "ratchet: model"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """Where a version's model is, as its image's manifest says."""

    placement: Placement
    layer: Descriptor
    """Of the model: an uncompressed tar, all of whose members are below `model/`."""
    image: str | None = None
    """Digest of the model image; None if the layer is in the version's own image."""


def this_architecture() -> str:
    """As image configs spell it."""
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


def annotations_of(
    name: str,
    number: int,
    given: Mapping[str, str],
    base_digest: str | None = None,
    more: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The manifest's annotations: OCI's own keys, and the given ones; keys without a dot go under `dev.ratchet.`.

    `created` is what the caller gives (the training data's time, say), else 1970: never the clock, so that a rebuild has the same digest.
    Raises ImageRefused for a value that is no string, or a key that the build itself fixes to another value (`more` is the build's own).
    """
    fixed = {oci.TITLE: name, oci.VERSION: str(number), **(more or {})}
    fixed |= {oci.BASE_DIGEST: base_digest} if base_digest else {}
    result = {oci.CREATED: EPOCH}
    for key, value in given.items():
        if not isinstance(key, str) or not key or not isinstance(value, str):
            raise ImageRefused(f"annotation {key!r}: key and value must be non-empty text, but the value is {value!r}")
        full = key if "." in key else LINEAGE + key
        if fixed.get(full, value) != value:
            raise ImageRefused(f"annotation {full} is {fixed[full]!r} by the build and cannot be {value!r}")
        result[full] = value
    return result | fixed


def image_config(
    name: str,
    number: int,
    annotations: Mapping[str, str],
    base: Mapping[str, Any] | None,
    layers: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    """The image's config: how a container engine runs it. `layers`: (folder, diff_id) of our own layers, above the base's."""
    below = base or {}
    under = below.get("config") or {}
    created = annotations[oci.CREATED]
    path = ":".join(f"/{folder}" for folder in (APP, DEPS) if folder in dict(layers))
    return {
        "created": created,
        "architecture": below.get("architecture") or this_architecture(),
        "os": below.get("os") or "linux",
        "config": {
            **under,
            "Env": [*(under.get("Env") or ()), f"PYTHONPATH={path}", *_ENVIRONMENT],
            "Entrypoint": ["python", "-m", "serving.runtime"],
            "Cmd": [*_model_options(annotations), "--name", name, "--version", str(number), *_LISTEN],
            "ExposedPorts": {"8080/tcp": {}},
            "Labels": {**(under.get("Labels") or {}), **annotations},
            "WorkingDir": f"/{APP}",
        },
        "rootfs": {"type": "layers", "diff_ids": [*diff_ids(below), *(digest for _, digest in layers)]},
        "history": [
            *(below.get("history") or ()),
            *({"created": created, "created_by": _SAYS[folder]} for folder, _ in layers),
        ],
    }


def _model_options(annotations: Mapping[str, str]) -> tuple[str, ...]:
    if annotations.get(PLACEMENT) != "pull":
        return ("--model-dir", f"/{MODEL}")
    return (
        "--model-layer", annotations[MODEL_LAYER], "--model-size", annotations[MODEL_SIZE], "--model-cache", MODEL_CACHE,
    )  # fmt: skip


def diff_ids(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Digests of the uncompressed layers that a config names."""
    return tuple((config.get("rootfs") or {}).get("diff_ids") or ())


def model_config(layer: Descriptor) -> dict[str, Any]:
    """Config of a model image. It says nothing of name and number: versions of equal models share it."""
    return {
        "created": EPOCH,
        "architecture": this_architecture(),
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
        "history": [{"created": EPOCH, "created_by": _SAYS[MODEL]}],
    }


def manifest_of(
    config: Descriptor, layers: Sequence[Descriptor], annotations: Mapping[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    """An image manifest; `more` are its further fields, such as `subject`."""
    value = {
        "schemaVersion": 2,
        "mediaType": oci.MANIFEST,
        "config": config.as_json(),
        "layers": [layer.as_json() for layer in layers],
        **more,
    }
    return value | ({"annotations": dict(annotations)} if annotations else {})


def placement_notes(placement: Placement, layer: Descriptor, model_image: str) -> dict[str, str]:
    """Annotations of the image of a version whose model lies elsewhere."""
    return {PLACEMENT: placement, MODEL_LAYER: layer.digest, MODEL_SIZE: str(layer.size), MODEL_IMAGE: model_image}


def placed(annotations: Mapping[str, str], layers: Sequence[Descriptor], where: str) -> Placed:
    """Where the model is. Raises ImageCorrupt, naming `where` this stands, if the manifest names none, or says so wrongly."""
    kind = annotations.get(PLACEMENT, "image")
    if kind == "image":
        for layer in layers:
            if dict(layer.annotations).get(LAYER_KEY) == MODEL:
                return Placed(placement="image", layer=layer)
        raise ImageRefused(f"image {where} has no model layer; it was not built by Ratchet")
    try:
        digest, size = oci.check_digest(annotations[MODEL_LAYER]), int(annotations[MODEL_SIZE])
        image = oci.check_digest(annotations[MODEL_IMAGE])
    except (KeyError, ValueError, ImageRefused) as error:
        raise ImageCorrupt(
            f"image {where}: the annotations {MODEL_LAYER}, .size and .image must say which model"
        ) from error
    if kind not in get_args(Placement) or size < 0:
        raise ImageCorrupt(f"image {where}: {PLACEMENT} is {kind!r}, which is none of image, volume, pull")
    layer = Descriptor(media_type=oci.LAYER, digest=digest, size=size, annotations=((LAYER_KEY, MODEL),))
    return Placed(placement=cast(Placement, kind), layer=layer, image=image)
