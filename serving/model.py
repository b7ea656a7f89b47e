"""A model folder in memory: loaded without ever letting the folder choose what code runs, and asked for scores.

Scores are the same everywhere: binary P(positive) of shape (n,); multiclass (n, k) in the order of `classes`; regression (n,).
"""

from __future__ import annotations

import importlib
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from serving.estimators import UnsafeEstimatorError, prepare_estimator
from serving.frame import Schema
from serving.manifest import (
    ClassValue,
    EntrypointPredictor,
    Manifest,
    ModelFolderError,
    SklearnPredictor,
    TensorflowPredictor,
    read_manifest,
)

Scores: TypeAlias = NDArray[np.float64]
Scorer: TypeAlias = Callable[[pd.DataFrame], Any]

TRUSTED_TYPES = (
    "functools.partial",
    "numpy.dtype",
    "numpy.ravel",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
    "sklearn.utils.validation.check_array",
)
"""What a skops file may hold beside what skops trusts by itself. Fixed here; a file cannot add to it."""
SKOPS_BYTES_MAX = 16 * 1024**3
"""Bytes that a skops file may unpack to, so that a small file cannot fill the memory."""
ERROR_CHARACTERS_MAX = 300


class PredictionError(Exception):
    """The model failed on rows that fit its features. The message says how."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A loaded model."""

    manifest: Manifest
    schema: Schema
    scorer: Scorer

    def predict(self, frame: pd.DataFrame) -> Scores:
        """Scores of `frame` (made by `schema.frame`) by the score convention. Raises PredictionError."""
        try:
            scores = np.asarray(self.scorer(frame), dtype=np.float64)
        except Exception as error:
            raise PredictionError(f"the model failed: {brief(error)}") from error
        width = self.manifest.width
        wanted = (len(frame),) if width is None else (len(frame), width)
        if width is None and scores.shape == (len(frame), 1):
            scores = scores[:, 0]
        if scores.shape != wanted:
            raise PredictionError(f"the model gave scores of shape {scores.shape} for {len(frame)} rows, not {wanted}")
        return scores

    def labels(self, scores: Scores) -> NDArray[np.intp] | None:
        """Index into `classes` that each row's score decides for, shape (n,); None for regression."""
        if self.manifest.task == "regression":
            return None
        if self.manifest.task == "multiclass":
            return np.asarray(np.argmax(scores, axis=1), dtype=np.intp)
        assert self.manifest.threshold is not None, "a binary manifest without threshold is refused when read"
        return (scores >= self.manifest.threshold).astype(np.intp)


def brief(error: BaseException) -> str:
    """An exception as one line of bounded length: its type and the first line of what it says."""
    line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {line[:ERROR_CHARACTERS_MAX]}"


def load_model(folder: Path) -> Model:
    """Load a model folder. Raises ModelFolderError."""
    manifest = read_manifest(folder)
    match manifest.predictor:
        case SklearnPredictor(file=file):
            scorer = sklearn_scorer(load_skops(folder / file), manifest, folder / file)
        case TensorflowPredictor():
            scorer = _tensorflow_scorer(folder, manifest, manifest.predictor)
        case EntrypointPredictor():
            scorer = _entrypoint_scorer(folder, manifest.predictor)
    return Model(manifest=manifest, schema=Schema(manifest.features), scorer=scorer)


def load_skops(path: Path) -> Any:
    """Load a skops file, refusing any type outside the fixed list. Raises ModelFolderError."""
    import skops.io

    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > SKOPS_BYTES_MAX:
            raise ModelFolderError(f"{path}: unpacks to {size} bytes, more than the {SKOPS_BYTES_MAX} allowed")
        refused = sorted(set(skops.io.get_untrusted_types(file=path)) - set(TRUSTED_TYPES))
        if refused:
            raise ModelFolderError(f"{path}: holds types that are not trusted: {', '.join(refused)}")
        estimator = skops.io.load(path, trusted=list(TRUSTED_TYPES))
        prepare_estimator(estimator)
        return estimator
    except ModelFolderError:
        raise
    except UnsafeEstimatorError as error:
        raise ModelFolderError(f"{path}: {error}") from error
    except OSError as error:
        raise ModelFolderError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise ModelFolderError(f"{path}: is not a whole skops file: {brief(error)}") from error


def sklearn_scorer(estimator: Any, manifest: Manifest, path: Path) -> Scorer:
    """The function from frame to scores of a fitted scikit-learn estimator. Raises ModelFolderError; `path` is for its message."""
    wanted = "predict" if manifest.task == "regression" else "predict_proba"
    method: Scorer | None = getattr(estimator, wanted, None)
    if method is None:
        raise ModelFolderError(
            f"{path}: a {manifest.task} model needs {wanted} but {type(estimator).__name__} has none"
        )
    if manifest.task == "regression":
        return method
    assert manifest.classes is not None, "a classifier's manifest without classes is refused when read"
    order = _column_order(list(estimator.classes_), manifest.classes, path)
    if manifest.task == "binary":
        return lambda frame: method(frame)[:, order[1]]
    if order == list(range(len(order))):
        return method
    return lambda frame: method(frame)[:, order]


def _column_order(fitted: list[Any], classes: Sequence[ClassValue], path: Path) -> list[int]:
    """Columns of `predict_proba` in the order of `classes`. An estimator fitted on 0 … k-1 has them in that order already."""
    known = [value.item() if isinstance(value, np.generic) else value for value in fitted]
    if len(known) == len(classes) and all(value in known for value in classes):
        return [known.index(value) for value in classes]
    if known == list(range(len(classes))):
        return list(range(len(classes)))
    raise ModelFolderError(f"{path}: the estimator's classes {known!r} are not model.json's classes {list(classes)!r}")


def _tensorflow_scorer(folder: Path, manifest: Manifest, predictor: TensorflowPredictor) -> Scorer:
    preprocessor = load_skops(folder / predictor.preprocessor)
    import tensorflow as tf

    path = folder / predictor.saved_model
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    try:
        loaded = tf.saved_model.load(str(path))
        serve = getattr(loaded, "serve", None) or loaded.signatures["serving_default"]
    except Exception as error:
        raise ModelFolderError(f"{path}: is no SavedModel that can be served: {brief(error)}") from error

    def score(frame: pd.DataFrame) -> Any:
        matrix = np.asarray(preprocessor.transform(frame), dtype=np.float32)
        answer = serve(tf.constant(matrix))
        if isinstance(answer, dict):
            (answer,) = answer.values()
        scores = np.asarray(answer, dtype=np.float64)
        return scores[:, 1] if manifest.task == "binary" and scores.shape[1:] == (2,) else scores

    return score


def _entrypoint_scorer(folder: Path, predictor: EntrypointPredictor) -> Scorer:
    """The owner's `load(model_dir).predict`. Their code runs with this process's rights, as they asked for."""
    code = (folder / predictor.code).resolve()
    sys.path.insert(0, str(code))
    try:
        module = importlib.import_module(predictor.module)
        origin = Path(module.__file__ or "").resolve()
        if not origin.is_relative_to(code):
            raise ModelFolderError(
                f"{folder}/model.json: predictor.module {predictor.module!r} is {origin}, not in {code}"
            )
        loaded = module.load(str(folder))
        predict: Scorer = loaded.predict
    except ModelFolderError:
        raise
    except Exception as error:
        what = f"{folder}: entrypoint {predictor.module}.load failed"
        raise ModelFolderError(f"{what}: {brief(error)}") from error
    if not callable(predict):
        raise ModelFolderError(f"{folder}: what {predictor.module}.load returned has no predict(frame)")
    return predict
