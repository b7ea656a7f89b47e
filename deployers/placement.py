"""Where a replica finds its model when it is not in its image: the folder that targets and replicas share, and how it is filled.

The interface, for whoever writes a target. An unpacked image is `<home>/unpacked/<image hex>/`. Read `read_placement(that folder)`:

- `image`: None. The model is in `model/` beside `app/` (and, for a container engine, a layer of the image at `/model`).
- `volume`: the model lies in `<home>/models/<layer hex>/model/`, filled when the version was packaged, once a machine whatever the number
  of versions and replicas that use it; `model` beside `app` is a link to it. A container gets that folder mounted read-only at `/model`
  (its command says `--model-dir /model`). Files are read-only, so that all replicas share their pages in memory. A cluster mounts the
  model image (`dev.ratchet.model.image`), sub-path `model`, as an OCI image volume, or fills a volume by the same rules.
- `pull`: the replica fetches the layer itself (`serving.runtime.pull`), told by `--model-layer DIGEST --model-size BYTES
  --model-cache DIR`, and by `--model-from SOURCE` (may be repeated) or the variable `RATCHET_MODEL_FROM` (separated by spaces): the
  folder of an OCI layout, or `https://HOST/REPOSITORY` of a registry (`RATCHET_MODEL_CREDENTIALS` names a file as
  `RATCHET_REGISTRY_CREDENTIALS` does). A container's command says all but the source; mount `<home>/models` at `/models`, writable, to
  keep what was pulled. On the daemon's machine it is there already.

`DIR/<layer hex>/` appears by one rename, after each byte was checked against the digest: what is there, is whole. Of any number of
processes that want it at once, one fills it, under `DIR/.<layer hex>.lock`, and the others wait. The kernel drops the lock of one
that dies.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from deployers import oci
from deployers.documents import MODEL, Placed, Placement
from deployers.layers import UnpackLimits, extract_layer
from deployers.oci import Descriptor, ImageCorrupt
from pipelines.jobs.files import read_json, write_json_atomic

FILE = "placement.json"
MODELS = "models"
"""Folder beside that of unpacked images: `<layer's hex>/model/`."""
UNPACK_LOCK = ".unpack.lock"
"""In the folder of unpacked images: held by who unpacks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """Where replicas on the daemon's machine can pull models from."""

    places: tuple[str, ...] = ()
    """Folders of OCI layouts, `https://HOST/REPOSITORY`; tried in turn."""
    credentials: str | None = None
    """File with the credentials of the registries."""
    ca: str | None = None
    """File with the authority of their certificates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutsideModel:
    """A model outside of its image, as `placement.json` of an unpacked image says."""

    placement: Placement
    layer: str
    """Digest of the model's layer."""
    size: int
    """Bytes of it."""
    image: str
    """Digest of the model image."""
    sources: tuple[str, ...] = ()
    """See Sources, as the next two."""
    credentials: str | None = None
    ca: str | None = None


def model_folder(models: Path, layer: str) -> Path:
    """Where the model of a layer lies, once it is there: `<models>/<hex>/model`."""
    return models / oci.hex_of(layer) / MODEL


def read_placement(root: Path) -> OutsideModel | None:
    """Of an unpacked image; None if the model is inside. Raises ValueError if the file is damaged."""
    content = read_json(root / FILE)
    if content is None:
        return None
    try:
        return OutsideModel(**{**content, "sources": tuple(content["sources"])})
    except (TypeError, KeyError) as error:
        raise ValueError(f"{root / FILE} is damaged; package the version again") from error


def fill_from_blob(models: Path, layer: Descriptor, blob: Path, limits: UnpackLimits) -> Path:
    """See that the model of a layer lies in `models`; the folder. Raises ImageCorrupt, ImageRefused, OSError; then nothing is there."""
    model = model_folder(models, layer.digest)
    folder = model.parent
    if folder.is_dir():
        return model
    models.mkdir(parents=True, exist_ok=True)
    with oci.folder_lock(models / f".{folder.name}.lock"):
        if not folder.is_dir():
            temporary = models / f".filling-{folder.name}"
            shutil.rmtree(temporary, ignore_errors=True)  # left by one that died: we hold its lock
            try:
                temporary.mkdir()
                with blob.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != folder.name:
                    raise ImageCorrupt(
                        f"blob {blob} has the digest sha256:{found}; its content was changed: build the image again"
                    )
                extract_layer(blob, MODEL, temporary, limits)
                _make_read_only(temporary)
                os.rename(temporary, folder)
                oci.fsync_folder(models)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
    return folder / MODEL


def _make_read_only(folder: Path) -> None:
    """Files only: a folder that nobody may write to cannot be deleted by its owner either."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o444)


def link_model(root: Path, models: Path, model: Placed, sources: Sources) -> None:
    """Say in an image that is being unpacked where its model is."""
    assert model.image is not None, "a model inside of its image needs no link"
    os.symlink(Path("..", "..", models.name, oci.hex_of(model.layer.digest), MODEL), root / MODEL)
    content = {
        "placement": model.placement, "layer": model.layer.digest, "size": model.layer.size, "image": model.image,
        "sources": list(sources.places), "credentials": sources.credentials, "ca": sources.ca,
    }  # fmt: skip
    write_json_atomic(root / FILE, content, durable=True)


def sweep_models(home: Path) -> int:
    """Delete the models that no unpacked image uses. Returns how many. Raises OSError, ValueError; deletes nothing then."""
    models, unpacked = home / "models", home / "unpacked"
    if not models.is_dir():
        return 0
    gone = 0
    with oci.folder_lock(unpacked / UNPACK_LOCK):  # no image is being linked to a model meanwhile
        roots = (path for path in unpacked.iterdir() if path.is_dir())
        used = {oci.hex_of(p.layer) for p in map(read_placement, roots) if p is not None}
        for folder in models.iterdir():
            if folder.is_dir() and not folder.name.startswith(".") and folder.name not in used:
                with oci.folder_lock(models / f".{folder.name}.lock"):
                    shutil.rmtree(folder)
                gone += 1
    return gone
