"""The packaging job: model folder → image in the layout → verified → unpacked, ready for a target to serve.

Runs outside the daemon. Every part is idempotent, so an attempt that was killed is simply made again.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deployers.images import ImageError, ImageStoreError, OciLayout
from pipelines.jobs.port import JobContext, PermanentJobError, RetryableJobError

_TYPES: Mapping[str, tuple[type, ...]] = {
    "home": (str,),
    "model": (str,),
    "number": (int,),
    "model_dir": (str,),
    "annotations": (dict,),
    "base": (str, type(None)),
    "estimator": (str, type(None)),
}


def serving_source() -> Path:
    """Folder of the installed `serving` package, found without importing it. Raises PermanentJobError if it is not installed."""
    spec = importlib.util.find_spec("serving")
    if spec is None or spec.origin is None:
        raise PermanentJobError("the package `serving`, which goes into every image, is not installed; run make setup")
    return Path(spec.origin).parent


def run(inputs: Mapping[str, Any], context: JobContext) -> dict[str, Any]:
    """Build `<home>/images` `model:v<number>` and unpack it below `<home>/unpacked`.

    In: `home`, `model`, `number`, `model_dir`, `annotations` (text → text), `base` (OCI layout `DIR[:TAG]`, digest, or null),
    `estimator` (a file of the judging job that goes beside the model, or null).
    Out: `digest` of the manifest, `size_bytes` of the whole image, `root` (folder with `model/` and `app/`), `sentence`.
    Raises RetryableJobError when the disk refuses, PermanentJobError for all else.
    """
    _check(inputs)
    home, model_dir = Path(inputs["home"]), Path(inputs["model_dir"])
    if not (model_dir / "model.json").is_file():
        raise PermanentJobError(f"{model_dir / 'model.json'} does not exist; train the model again")
    layout = OciLayout(home / "images")
    try:
        model_dir = with_estimator(model_dir, inputs.get("estimator"), context.workdir)
        image = layout.build(
            model_dir,
            serving_source(),
            name=inputs["model"],
            number=inputs["number"],
            annotations=inputs["annotations"],
            base=inputs.get("base"),
            progress=lambda text: context.report(text=text),
        )
        context.report(text="verifying and unpacking the image")
        root = layout.unpack(image.digest, home / "unpacked")
    except (ImageStoreError, OSError) as error:
        raise RetryableJobError(str(error)) from error
    except ImageError as error:
        raise PermanentJobError(str(error)) from error
    return {
        "digest": image.digest,
        "size_bytes": image.size,
        "root": str(root),
        "sentence": f"packaged {inputs['model']} v{inputs['number']} as {image.digest[:19]}, {image.size / 1e6:.1f} MB",
    }


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
