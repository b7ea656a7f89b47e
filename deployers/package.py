"""The packaging job: model folder → image in the layout → verified, unpacked, and delivered, ready for a target to serve.

Runs outside the daemon. Every part is idempotent, so an attempt that was killed is simply made again. How an image is delivered is the
`delivery`'s `builder`: `layout` leaves it in the state folder, `docker` puts it into the Engine too, `registry` pushes it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from deployers import provenance, sbom
from deployers.documents import APP, LAYER_KEY, REQUIREMENTS
from deployers.images import ImageError, ImageRef, ImageStoreError, OciLayout
from deployers.lockfile import Pin, lock_digest, merged
from deployers.oci import BASE_DIGEST, BASE_NAME, TITLE, Descriptor, RegistryAway
from deployers.placement import Sources
from deployers.referrers import attach
from deployers.registry.names import Place, Reference, is_loopback, parse_place, parse_reference
from deployers.requirements import has_runtime, owners_pins, python_of, requirements_layer, runtime_pins
from deployers.signing import sign
from pipelines.jobs.port import JobContext, PermanentJobError, RetryableJobError

_TYPES: Mapping[str, tuple[type, ...]] = {
    "home": (str,),
    "model": (str,),
    "number": (int,),
    "model_dir": (str,),
    "annotations": (dict,),
    "base": (str, type(None)),
    "estimator": (str, type(None)),
    "requirements": (dict, type(None)),
    "placement": (str, type(None)),
    "delivery": (dict, type(None)),
}
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """Where images go, from the settings."""

    builder: str = "layout"
    registry: str = ""
    credentials: str | None = None
    ca: str | None = None
    plain_http: bool = False
    docker_host: str = ""
    """Socket of the Engine, for the builder `docker`."""
    sign_command: Sequence[str] = ()
    sign_timeout_s: float = 120.0

    @property
    def place(self) -> Place | None:
        """The registry to push to. Raises ImageRefused."""
        return parse_place(self.registry) if self.registry else None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Base:
    """The base image, in the layout or another."""

    name: str | None = None
    where: str | None = None
    """As `OciLayout.build` takes it."""
    config: Mapping[str, Any] | None = None


def serving_source() -> Path:
    """Folder of the installed `serving` package, found without importing it. Raises PermanentJobError if it is not installed."""
    spec = importlib.util.find_spec("serving")
    if spec is None or spec.origin is None:
        raise PermanentJobError("the package `serving`, which goes into every image, is not installed; run make setup")
    return Path(spec.origin).parent


def run(inputs: Mapping[str, Any], context: JobContext) -> dict[str, Any]:
    """Build `<home>/images` `model:v<number>`, unpack it below `<home>/unpacked`, and deliver it.

    In: `home`, `model`, `number`, `model_dir`, `annotations` (text → text), `base` (registry reference, OCI layout `DIR[:TAG]`, digest, or
    null), `estimator` (a file of the judging job that goes beside the model, or null), `requirements` ({folder, path} of the owner's lock
    file, or null), `placement` (of the model), `delivery` (fields of `Delivery`).
    Out: `digest` of the manifest, `size_bytes` of the whole image, `root` (folder with `model/` and `app/`), `placement`, `reference` (in
    the registry, or null), `bytes_sent`, `sentence`.
    Raises RetryableJobError when the disk refuses or a registry is away, PermanentJobError for all else.
    """
    _check(inputs)
    home, model_dir = Path(inputs["home"]), Path(inputs["model_dir"])
    if not (model_dir / "model.json").is_file():
        raise PermanentJobError(f"{model_dir / 'model.json'} does not exist; train the model again")
    layout = OciLayout(home / "images")
    try:
        delivery = Delivery(**(inputs.get("delivery") or {}))
        model_dir = with_estimator(model_dir, inputs.get("estimator"), context.workdir)
        image, pins = _build(inputs, layout, model_dir, delivery, lambda text: context.report(text=text))
        _attach(layout, image, pins)
        context.report(text="verifying and unpacking the image")
        with ThreadPoolExecutor(1) as beside:  # unpacking waits for the disk, and delivering for the network
            unpacking = beside.submit(
                layout.unpack, image.digest, home / "unpacked", sources=_sources(layout, delivery, inputs["model"])
            )
            told = _deliver(inputs, layout, image, delivery, lambda text: context.report(text=text))
            root = unpacking.result()
    except (ImageStoreError, RegistryAway, OSError) as error:
        raise RetryableJobError(str(error)) from error
    except (ImageError, TypeError) as error:
        raise PermanentJobError(str(error)) from error
    sentence = f"packaged {inputs['model']} v{inputs['number']} as {image.digest[:19]}, {image.size / 1e6:.1f} MB"
    if told["reference"]:
        sentence += f"; pushed {told['bytes_sent'] / 1e6:.1f} MB of it to {delivery.registry}"
    return {
        "digest": image.digest,
        "size_bytes": image.size,
        "root": str(root),
        "placement": inputs.get("placement") or "image",
        **told,
        "sentence": sentence,
    }


# ---------------------------------------------------------------- build
def _build(
    inputs: Mapping[str, Any], layout: OciLayout, model_dir: Path, delivery: Delivery, say: Say
) -> tuple[ImageRef, tuple[Pin, ...]]:
    """The image in the layout, and the packages of its requirements layer."""
    base = _take_base(inputs.get("base"), Path(inputs["home"]), layout, delivery, say)
    pins, layer = _take_requirements(inputs, base, say)
    notes = dict(inputs["annotations"])
    if pins:
        notes[REQUIREMENTS] = lock_digest(pins)
    if base.name is not None:
        notes[BASE_NAME] = base.name
    image = layout.build(
        model_dir,
        serving_source(),
        name=inputs["model"],
        number=inputs["number"],
        annotations=notes,
        base=base.where,
        requirements=layer,
        placement=inputs.get("placement") or "image",
        progress=say,
    )
    return image, pins


def _take_base(given: str | None, home: Path, layout: OciLayout, delivery: Delivery, say: Say) -> _Base:
    """The base image, fetched if it is in a registry."""
    if given is None:
        return _Base()
    reference = None if Path(given).is_dir() else parse_reference(given)
    if reference is None:
        return _Base(where=given, config=layout.config_of_base(given))
    digest = _fetch_base(reference, home, layout, delivery, say)
    return _Base(name=str(reference), where=digest, config=layout.config_of_base(digest))


def _fetch_base(reference: Reference, home: Path, layout: OciLayout, delivery: Delivery, say: Say) -> str:
    from deployers.registry.bases import take_base
    from deployers.registry.transport import RegistryClient

    client = RegistryClient(reference.host, _access(delivery))
    return take_base(reference, client, layout, home / "bases", progress=say)


def _take_requirements(
    inputs: Mapping[str, Any], base: _Base, say: Say
) -> tuple[tuple[Pin, ...], tuple[Path, Descriptor] | None]:
    """What the owner asks for, and what the serving code needs if there is a base that does not bring it; and the layer of both."""
    wanted = inputs.get("requirements")
    needs_runtime = base.config is not None and not has_runtime(base.config)
    if wanted is None and not needs_runtime:
        return (), None
    python = python_of(base.config)
    runtime = runtime_pins(python) if needs_runtime else ()
    owners = owners_pins(Path(wanted["folder"]), wanted["path"], python) if wanted is not None else ()
    pins = merged(runtime, owners)
    say(f"installing {len(pins)} packages for Python {python}, unless they are in the cache")
    return pins, requirements_layer(Path(inputs["home"]), pins, python)


# ---------------------------------------------------------------- attach, deliver
def _attach(layout: OciLayout, image: ImageRef, pins: Sequence[Pin]) -> None:
    """The bill of materials and the provenance. They follow from the image alone, so that another attempt makes the same."""
    assert image.model is not None, "the build has made it"
    notes = layout.annotations(image.digest)
    base = (notes.get(BASE_NAME) or "base image", notes[BASE_DIGEST]) if BASE_DIGEST in notes else None
    app = next(d.digest for d in image.layers if dict(d.annotations).get(LAYER_KEY) == APP)
    bill = sbom.bill_of_materials(
        digest=image.digest,
        annotations=notes,
        pins=pins,
        base=base,
        model_layer=image.model.layer.digest,
        app_layer=app,
    )
    statement = provenance.provenance(
        digest=image.digest, annotations=notes, base=base, requirements=notes.get(REQUIREMENTS),
        placement=image.model.placement, release=_release(),
        invocation=f"{notes[TITLE]}/cycle/{notes.get('dev.ratchet.cycle', '')}",
    )  # fmt: skip
    attach(layout, image.digest, sbom.MEDIA_TYPE, bill, {})
    attach(layout, image.digest, provenance.MEDIA_TYPE, statement, {"in-toto.io/predicate-type": provenance.PREDICATE})


def _release() -> str:
    try:
        return version("ratchetd")
    except PackageNotFoundError:
        return "unknown"


def _access(delivery: Delivery) -> Any:
    from deployers.registry.transport import Access

    return Access(
        credentials=Path(delivery.credentials) if delivery.credentials else None,
        ca=Path(delivery.ca) if delivery.ca else None,
        plain_http=delivery.plain_http,
        host=delivery.place.host if delivery.place else "",
    )


def _sources(layout: OciLayout, delivery: Delivery, model: str) -> Sources:
    """Where a replica may pull its model from: this machine's layout first, which is nearest."""
    places = [str(layout.root.absolute())]
    if delivery.builder != "layout" and delivery.place is not None:
        place = delivery.place
        plain = delivery.plain_http or (is_loopback(place.host) and delivery.ca is None)
        places.append(f"{'http' if plain else 'https'}://{place.host}/{place.repository(model)}")
    return Sources(places=tuple(places), credentials=delivery.credentials, ca=delivery.ca)


def _deliver(
    inputs: Mapping[str, Any], layout: OciLayout, image: ImageRef, delivery: Delivery, say: Say
) -> dict[str, Any]:
    """Bring the image to where its target takes it from."""
    if delivery.builder == "layout":
        return {"reference": None, "bytes_sent": 0}
    if delivery.builder == "docker":
        _into_engine(layout, image, delivery, say)
        return {"reference": None, "bytes_sent": 0}
    from deployers.registry.publish import push_version

    assert delivery.place is not None, "the settings ask for both"
    pushed = push_version(
        layout, image.digest, place=delivery.place, model=inputs["model"], number=inputs["number"],
        access=_access(delivery), progress=say,
    )  # fmt: skip
    if delivery.sign_command:
        say("signing the image")
        sign(delivery.sign_command, pushed.reference, delivery.sign_timeout_s)
    return {"reference": pushed.reference, "bytes_sent": pushed.bytes_sent}


def _into_engine(layout: OciLayout, image: ImageRef, delivery: Delivery, say: Say) -> None:
    """Have the Docker Engine hold the very image. Raises RetryableJobError, ImageError."""
    from deployers.docker.engine import Engine, EngineAway, EngineRefused
    from deployers.docker.images import load

    say("putting the image into the Docker Engine")
    try:
        load(Engine(delivery.docker_host), layout, image.digest)
    except EngineAway as error:
        raise RetryableJobError(str(error)) from error
    except EngineRefused as error:
        raise RetryableJobError(f"the Docker Engine did not take image {image.digest[:19]}: {error}") from error


def with_estimator(model_dir: Path, estimator: str | None, workdir: Path) -> Path:
    """The model folder, or a copy of it that holds the estimator too: the folder itself is a step's cached result. Raises OSError.

    Files are linked where the file system allows. An estimator that is gone is left out: the version works without.
    """
    if estimator is None or not Path(estimator).is_file():
        return model_dir
    together = workdir / "packed" / model_dir.name
    shutil.rmtree(together, ignore_errors=True)
    shutil.copytree(model_dir, together, copy_function=_link)
    shutil.copyfile(estimator, together / Path(estimator).name)
    return together


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _check(inputs: Mapping[str, Any]) -> None:
    for key, types in _TYPES.items():
        value = inputs.get(key)
        if not isinstance(value, types) or isinstance(value, bool):
            raise PermanentJobError(f"packaging input {key!r} must be a {types[0].__name__} but is {value!r}")
