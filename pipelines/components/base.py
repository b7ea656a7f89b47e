"""The interface of a component: a family of models that can be searched, fitted and saved for serving.

A plugin offers an object of this shape under the entry point group `ratchet.components`; the entry point's name is the
component's name. Importing a component must be cheap: scikit-learn, TensorFlow and the like are imported inside `fit`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from pipelines.data.features import Feature
from policies.metrics import Task
from policies.schema import FloatRange, IntRange

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

ENTRY_POINT_GROUP = "ratchet.components"

ParameterRange: TypeAlias = IntRange | FloatRange | tuple[str | int | float | bool, ...]
ParameterValue: TypeAlias = str | int | float | bool | None


class Fitted(Protocol):
    """A fitted model that can answer and be written into a model folder."""

    def predict(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        """Scores of the rows, by the convention of the whole project: binary P(positive) of shape (n,), multiclass (n, k) in the
        order of `classes`, regression (n,). `frame` has at least the feature columns."""

    def save(self, model_dir: Path) -> SavedPredictor:
        """Write the model's files into `model_dir`, the same bytes for the same model, and say how to load them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedPredictor:
    """How serving finds a saved model."""

    predictor: Mapping[str, Any]
    """The `predictor` section of `model.json`, e.g. `{"kind": "sklearn", "file": "estimator.skops"}`."""
    distributions: Sequence[str] = field(default=())
    """Names of the distributions that are needed to load it; their versions are recorded under `requirements`."""


@runtime_checkable
class Component(Protocol):
    """A family of models."""

    @property
    def name(self) -> str: ...

    @property
    def tasks(self) -> frozenset[Task]: ...

    def space(self) -> Mapping[str, ParameterRange]:
        """What a search may vary, and in which ranges. The policy's `tune.space` replaces single parameters of it."""

    def defaults(self) -> dict[str, ParameterValue]:
        """Every parameter that `fit` takes, with the value used where nobody says otherwise."""

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
        """Fit on `frame` (n rows, the columns of `features`, as `pipelines.data.features.model_frame` gives them).

        `target` (n,) holds for classification the index of each row's label in `classes` (int64; in binary tasks 1 is
        positive), for regression the value (float64). Every class occurs. `parameters` override `defaults()`.
        The same arguments give the same model.

        Raises PermanentJobError for parameters it does not know or that do not fit, and for errors in an owner's code.
        """
