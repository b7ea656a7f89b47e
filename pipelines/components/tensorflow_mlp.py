"""`tensorflow.mlp`: a multilayer perceptron trained by Keras 3 and exported as a SavedModel.

The export is a plain module of matrix products with the trained weights, not the Keras model, so that the same weights give the same
bytes (a Keras export carries names that are counted through the process). TensorFlow is imported inside `fit` only: it costs ten seconds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.components import preprocessing
from pipelines.components.base import Fitted, ParameterRange, ParameterValue, SavedPredictor
from pipelines.components.parameters import merged
from pipelines.data.features import Feature, model_frame
from pipelines.jobs.port import PermanentJobError
from pipelines.skops_files import dump_deterministic
from policies.metrics import Task
from policies.schema import FloatRange, IntRange

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

SAVED_MODEL = "saved_model"
PREPROCESSOR_FILE = "preprocessor.skops"
DISTRIBUTIONS = ("scikit-learn", "numpy", "scipy", "pandas", "skops", "tensorflow-cpu", "tensorflow")
TEXT_TERMS = 2000
_DEFAULTS: dict[str, ParameterValue] = {
    "units": 64,
    "layers": 2,
    "dropout": 0.1,
    "learning_rate": 1e-3,
    "epochs": 20,
    "batch_size": 256,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedMlp:
    """Trained weights with the pre-processing that makes their input."""

    preprocessor: Any
    weights: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]
    """(kernel, bias) a layer; the last one is linear for regression, else followed by a sigmoid or softmax."""
    features: Sequence[Feature]
    task: Task

    def predict(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        import numpy as np

        rows = self.preprocessor.transform(model_frame(frame, self.features))
        scores = np.asarray(self._module().serve(np.asarray(rows, dtype=np.float32)), dtype=np.float64)
        return scores if self.task is Task.MULTICLASS else scores[:, 0]

    def save(self, model_dir: Path) -> SavedPredictor:
        import tensorflow as tf

        module = self._module()
        target = model_dir / SAVED_MODEL
        tf.saved_model.save(module, str(target), signatures={"serving_default": module.serve.get_concrete_function()})
        (target / "fingerprint.pb").unlink(missing_ok=True)  # random, and optional
        for folder in [path for path in target.iterdir() if path.is_dir() and not any(path.iterdir())]:
            folder.rmdir()
        (model_dir / PREPROCESSOR_FILE).write_bytes(dump_deterministic(self.preprocessor))
        return SavedPredictor(
            predictor={"kind": "tensorflow", "saved_model": SAVED_MODEL, "preprocessor": PREPROCESSOR_FILE},
            distributions=DISTRIBUTIONS,
        )

    def _module(self) -> Any:
        """A `tf.Module` with `serve`: float32 (n, d) → (n, k) probabilities, or (n, 1). The weights are constants of its graph."""
        import tensorflow as tf

        last = {Task.BINARY: tf.nn.sigmoid, Task.MULTICLASS: tf.nn.softmax, Task.REGRESSION: tf.identity}[self.task]
        width = self.weights[0][0].shape[0]

        def serve(matrix: Any) -> Any:
            for kernel, bias in self.weights[:-1]:
                matrix = tf.nn.relu(tf.matmul(matrix, kernel) + bias)
            kernel, bias = self.weights[-1]
            return last(tf.matmul(matrix, kernel) + bias)

        module = tf.Module()
        module.serve = tf.function(serve, input_signature=[tf.TensorSpec((None, width), tf.float32)])
        return module


@dataclass(frozen=True, slots=True)
class TensorflowMlp:
    name: str = "tensorflow.mlp"
    tasks: frozenset[Task] = frozenset(Task)

    def space(self) -> Mapping[str, ParameterRange]:
        return {
            "units": IntRange(low=16, high=256, log=True),
            "layers": IntRange(low=1, high=3),
            "dropout": FloatRange(low=0.0, high=0.5),
            "learning_rate": FloatRange(low=1e-4, high=1e-2, log=True),
            "epochs": IntRange(low=5, high=60, log=True),
        }

    def defaults(self) -> dict[str, ParameterValue]:
        return dict(_DEFAULTS)

    def fit(
        self,
        frame: pd.DataFrame,
        target: pd.Series,
        *,
        features: Sequence[Feature],
        task: Task,
        classes: Sequence[Any] | None,
        parameters: Mapping[str, ParameterValue],
        seed: int,
    ) -> Fitted:
        import numpy as np

        chosen: dict[str, Any] = merged(self.name, _DEFAULTS, parameters)
        keras = _keras(seed)
        preprocessor = preprocessing.for_distances(features, dense=True, text={"max_features": TEXT_TERMS})
        try:
            matrix = np.asarray(preprocessor.fit_transform(frame), dtype=np.float32)
            values, mean, scale = _standardised(target.to_numpy(), task)
            outputs = len(classes) if task is Task.MULTICLASS and classes is not None else 1
            network = _network(keras, matrix.shape[1], outputs, task, chosen)
            network.fit(matrix, values, epochs=chosen["epochs"], batch_size=chosen["batch_size"], verbose=0)
        except (ValueError, TypeError) as error:
            raise PermanentJobError(f"{self.name} cannot be fitted with {dict(parameters)}: {error}") from error
        weights = [
            (np.asarray(layer.kernel), np.asarray(layer.bias)) for layer in network.layers if hasattr(layer, "kernel")
        ]
        kernel, bias = weights[-1]
        weights[-1] = (kernel * scale, bias * scale + mean)
        return FittedMlp(preprocessor=preprocessor, weights=weights, features=tuple(features), task=task)


def _keras(seed: int) -> Any:
    """Keras on TensorFlow, silent, and with the same results for the same seed. Raises PermanentJobError if it is not installed."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import keras
        import tensorflow as tf
    except ImportError as error:
        raise PermanentJobError(
            f"train.component: tensorflow.mlp needs TensorFlow; install ratchetd[tensorflow] ({error})"
        ) from error
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    return keras


def _standardised(target: NDArray[Any], task: Task) -> tuple[NDArray[Any], np.float32, np.float32]:
    """The target as the network learns it, with mean and scale of its last layer's unit in the target's own unit."""
    import numpy as np

    if task is not Task.REGRESSION:
        kind = np.int32 if task is Task.MULTICLASS else np.float32
        return target.astype(kind), np.float32(0), np.float32(1)
    mean, scale = float(target.mean()), float(target.std()) or 1.0
    return ((target - mean) / scale).astype(np.float32), np.float32(mean), np.float32(scale)


def _network(keras: Any, inputs: int, outputs: int, task: Task, p: Mapping[str, Any]) -> Any:
    """Dense layers of `units` with ReLU and dropout; the loss takes the last layer as logits."""
    layers = [keras.Input((inputs,))]
    for _ in range(p["layers"]):
        layers += [keras.layers.Dense(p["units"], activation="relu"), keras.layers.Dropout(p["dropout"])]
    network = keras.Sequential([*layers, keras.layers.Dense(outputs)])
    loss = {
        Task.BINARY: lambda: keras.losses.BinaryCrossentropy(from_logits=True),
        Task.MULTICLASS: lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        Task.REGRESSION: keras.losses.MeanSquaredError,
    }[task]()
    network.compile(optimizer=keras.optimizers.Adam(p["learning_rate"]), loss=loss)
    return network
