"""`model.json`: what a model folder says about itself, read as if a stranger had written it.

A model folder may come from anywhere an image can come from, so every field is checked before anything named in it is opened.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

FORMAT = 1
MANIFEST_BYTES_MAX = 16 * 1024 * 1024
ERROR_CHARACTERS_MAX = 300

ClassValue: TypeAlias = str | int | float | bool
"""A class as JSON has it."""
FeatureKind: TypeAlias = Literal["numeric", "categorical", "text", "boolean"]


class ModelFolderError(Exception):
    """The model folder cannot be served. The message names the file, the field, the rule and the value."""


def brief(error: BaseException) -> str:
    """An exception as one line of bounded length: its type and the first line of what it says."""
    line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {line[:ERROR_CHARACTERS_MAX]}"


class _Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the shapes in `model.json`: unknown keys are errors, values never change."""


_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class Feature(_Shape, frozen=True):
    """One input of the model."""

    name: _Name
    kind: FeatureKind


class SklearnPredictor(_Shape, frozen=True, tag_field="kind", tag="sklearn"):
    """A scikit-learn pipeline, saved by skops."""

    file: _Name


class TensorflowPredictor(_Shape, frozen=True, tag_field="kind", tag="tensorflow"):
    """A SavedModel behind a scikit-learn transformer, saved by skops."""

    saved_model: _Name
    preprocessor: _Name


class EntrypointPredictor(_Shape, frozen=True, tag_field="kind", tag="entrypoint"):
    """The owner's own code: `module` inside the folder `code` has `load(model_dir)`."""

    module: _Name
    code: _Name


Predictor: TypeAlias = SklearnPredictor | TensorflowPredictor | EntrypointPredictor


class Manifest(_Shape, frozen=True):
    """The content of `model.json`."""

    format: int
    model: _Name
    task: Literal["binary", "multiclass", "regression"]
    label: _Name
    threshold: float | None
    """Probability from which a binary prediction counts as positive."""
    classes: tuple[ClassValue, ...] | None
    """In the order of the score columns; binary: negative, positive. None for regression."""
    component: str
    parameters: dict[str, Any]
    features: tuple[Feature, ...]
    predictor: Predictor
    requirements: dict[str, str]

    @property
    def width(self) -> int | None:
        """Number of score columns, or None where a score is a single number."""
        return len(self.classes) if self.task == "multiclass" and self.classes is not None else None


def read_manifest(folder: Path) -> Manifest:
    """The checked `model.json` of a model folder. Raises ModelFolderError."""
    path = folder / "model.json"
    try:
        with path.open("rb") as file:
            content = file.read(MANIFEST_BYTES_MAX + 1)
    except OSError as error:
        raise ModelFolderError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > MANIFEST_BYTES_MAX:
        raise ModelFolderError(f"{path}: larger than the {MANIFEST_BYTES_MAX} bytes that a model.json may have")
    return parse_manifest(content, path)


def parse_manifest(content: bytes, path: Path) -> Manifest:
    """`read_manifest` of content already read; `path` is for messages only. Raises ModelFolderError."""
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ModelFolderError(f"{path}: {error}") from error
    problems = _problems(manifest)
    if problems:
        raise ModelFolderError("\n".join(f"{path}: {problem}" for problem in problems))
    return manifest


def _problems(manifest: Manifest) -> list[str]:
    """Every rule that the types alone cannot state and that the manifest breaks."""
    found = []
    if manifest.format != FORMAT:
        found.append(f"format: this runtime reads format {FORMAT} but got {manifest.format}")
    found += _class_problems(manifest)
    if not manifest.features:
        found.append("features: must name at least one feature but got []")
    names = [feature.name for feature in manifest.features]
    found += [
        f"features: {name!r} is named more than once" for name in sorted({n for n in names if names.count(n) > 1})
    ]
    if manifest.task == "binary" and not (manifest.threshold is not None and 0 < manifest.threshold < 1):
        found.append(f"threshold: a binary model needs a number between 0 and 1 but got {manifest.threshold}")
    return found + _predictor_problems(manifest.predictor)


def _class_problems(manifest: Manifest) -> list[str]:
    classes = manifest.classes
    if manifest.task == "regression":
        return [] if classes is None else [f"classes: must be null for regression but got {list(classes)!r}"]
    wanted = "exactly 2 classes" if manifest.task == "binary" else "at least 2 classes"
    if classes is None or len(classes) < 2 or (manifest.task == "binary" and len(classes) != 2):
        return [
            f"classes: a {manifest.task} model needs {wanted} but got {None if classes is None else list(classes)!r}"
        ]
    if len(set(classes)) < len(classes):
        return [f"classes: must differ from each other but got {list(classes)!r}"]
    return []


def _predictor_problems(predictor: Predictor) -> list[str]:
    match predictor:
        case SklearnPredictor():
            files = {"file": predictor.file}
        case TensorflowPredictor():
            files = {"saved_model": predictor.saved_model, "preprocessor": predictor.preprocessor}
        case EntrypointPredictor():
            files = {"code": predictor.code}
    found = [
        f"predictor.{field}: must be the plain name of a file in the model folder but got {name!r}"
        for field, name in files.items()
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name)
    ]
    if isinstance(predictor, EntrypointPredictor) and not re.fullmatch(
        r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", predictor.module
    ):
        found.append(f"predictor.module: must be a dotted module name but got {predictor.module!r}")
    return found
