"""The three kinds of predictor, each made a function from columns to scores by the score convention.

A scikit-learn file is data: only its checked types and values matter. A SavedModel is a graph of TensorFlow's operations, and an
entrypoint is the owner's Python: both are programs, which run with this process's rights because the owner asked for them.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from serving.estimators import load_skops
from serving.frame import Columns, Schema, to_frame
from serving.manifest import (
    ClassValue,
    EntrypointPredictor,
    Manifest,
    ModelFolderError,
    SklearnPredictor,
    TensorflowPredictor,
    brief,
)
from serving.unrolled import faster, unroll, unroll_pipeline

Scorer: TypeAlias = Callable[[Columns], Any]


def make_scorer(folder: Path, manifest: Manifest, schema: Schema, sample: Columns) -> Scorer:
    """The scorer of a model folder. `sample` are rows to compare a faster form with. Raises ModelFolderError."""
    match manifest.predictor:
        case SklearnPredictor(file=file):
            return _sklearn_scorer(folder / file, manifest, schema, sample)
        case TensorflowPredictor():
            return _tensorflow_scorer(folder, manifest, manifest.predictor, schema, sample)
        case EntrypointPredictor():
            return _entrypoint_scorer(folder, manifest.predictor)


def _sklearn_scorer(path: Path, manifest: Manifest, schema: Schema, sample: Columns) -> Scorer:
    estimator = load_skops(path)
    name = "predict" if manifest.task == "regression" else "predict_proba"
    method = getattr(estimator, name, None)
    if method is None:
        raise ModelFolderError(f"{path}: a {manifest.task} model needs {name} but {type(estimator).__name__} has none")
    answer = faster(unroll_pipeline(estimator, schema, name), lambda columns: method(to_frame(columns)), sample)
    if manifest.task == "regression":
        return answer
    assert manifest.classes is not None, "a classifier's manifest without classes is refused when read"
    order = _column_order(list(estimator.classes_), manifest.classes, path)
    if manifest.task == "binary":
        return lambda columns: answer(columns)[:, order[1]]
    return answer if order == list(range(len(order))) else lambda columns: answer(columns)[:, order]


def _column_order(fitted: list[Any], classes: Sequence[ClassValue], path: Path) -> list[int]:
    """Columns of `predict_proba` in the order of `classes`. An estimator fitted on 0 … k-1 has them in that order already."""
    known = [value.item() if isinstance(value, np.generic) else value for value in fitted]
    if len(known) == len(classes) and all(value in known for value in classes):
        return [known.index(value) for value in classes]
    if known == list(range(len(classes))):
        return list(range(len(classes)))
    raise ModelFolderError(f"{path}: the estimator's classes {known!r} are not model.json's classes {list(classes)!r}")


def _tensorflow_scorer(
    folder: Path, manifest: Manifest, predictor: TensorflowPredictor, schema: Schema, sample: Columns
) -> Scorer:
    preprocessor = load_skops(folder / predictor.preprocessor)
    prepare = faster(unroll(preprocessor, schema), lambda columns: preprocessor.transform(to_frame(columns)), sample)
    import tensorflow as tf

    path = folder / predictor.saved_model
    with contextlib.suppress(RuntimeError):  # threads cannot be limited once TensorFlow was used in this process
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    try:
        loaded = tf.saved_model.load(str(path))
        direct = hasattr(loaded, "serve")
        if not direct:
            loaded.signatures["serving_default"]
    except Exception as error:
        raise ModelFolderError(f"{path}: is no SavedModel that can be served: {brief(error)}") from error

    def score(columns: Columns) -> Any:
        # `loaded` is named in here, not only its function: it alone keeps the variables alive
        serve = loaded.serve if direct else loaded.signatures["serving_default"]
        answer = serve(tf.constant(np.asarray(prepare(columns), dtype=np.float32)))
        if isinstance(answer, dict):
            (answer,) = answer.values()
        scores = np.asarray(answer, dtype=np.float64)
        return scores[:, 1] if manifest.task == "binary" and scores.shape[1:] == (2,) else scores

    return score


def _entrypoint_scorer(folder: Path, predictor: EntrypointPredictor) -> Scorer:
    """The owner's `load(model_dir).predict(frame)`."""
    code = (folder / predictor.code).resolve()
    sys.path.insert(0, str(code))
    try:
        module = importlib.import_module(predictor.module)
        origin = Path(module.__file__ or "").resolve()
        if not origin.is_relative_to(code):
            raise ModelFolderError(
                f"{folder}/model.json: predictor.module {predictor.module!r} is {origin}, not in {code}"
            )
        predict = module.load(str(folder)).predict
    except ModelFolderError:
        raise
    except Exception as error:
        what = f"{folder}: entrypoint {predictor.module}.load failed"
        raise ModelFolderError(f"{what}: {brief(error)}") from error
    if not callable(predict):
        raise ModelFolderError(f"{folder}: what {predictor.module}.load returned has no predict(frame)")
    return lambda columns: predict(to_frame(columns))
