"""The packaging job: model folder → image in the layout → verified → unpacked, ready for a target to serve.

Runs outside the daemon. Every part is idempotent, so an attempt that was killed is simply made again.
"""

from __future__ import annotations

import importlib.util
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
}


def serving_source() -> Path:
    """Folder of the installed `serving` package, found without importing it. Raises PermanentJobError if it is not installed."""
    spec = importlib.util.find_spec("serving")
    if spec is None or spec.origin is None:
        raise PermanentJobError("the package `serving`, which goes into every image, is not installed; run make setup")
    return Path(spec.origin).parent


def run(inputs: Mapping[str, Any], context: JobContext) -> dict[str, Any]:
    """Build `<home>/images` `model:v<number>` and unpack it below `<home>/unpacked`.

    In: `home`, `model`, `number`, `model_dir`, `annotations` (text → text), `base` (OCI layout `DIR[:TAG]`, digest, or null).
    Out: `digest` of the manifest, `size_bytes` of the whole image, `root` (folder with `model/` and `app/`), `sentence`.
    Raises RetryableJobError when the disk refuses, PermanentJobError for all else.
    """
    _check(inputs)
    home, model_dir = Path(inputs["home"]), Path(inputs["model_dir"])
    if not (model_dir / "model.json").is_file():
        raise PermanentJobError(f"{model_dir / 'model.json'} does not exist; train the model again")
    layout = OciLayout(home / "images")
    try:
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
    except ImageStoreError as error:
        raise RetryableJobError(str(error)) from error
    except ImageError as error:
        raise PermanentJobError(str(error)) from error
    return {
        "digest": image.digest,
        "size_bytes": image.size,
        "root": str(root),
        "sentence": f"packaged {inputs['model']} v{inputs['number']} as {image.digest[:19]}, {image.size / 1e6:.1f} MB",
    }


def _check(inputs: Mapping[str, Any]) -> None:
    for key, types in _TYPES.items():
        value = inputs.get(key)
        if not isinstance(value, types) or isinstance(value, bool):
            raise PermanentJobError(f"packaging input {key!r} must be a {types[0].__name__} but is {value!r}")
