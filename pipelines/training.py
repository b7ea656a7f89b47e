"""What search and training share: the prepared rows in memory, the training window, and one fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pipelines.components.base import Component, Fitted, ParameterValue
from pipelines.data.features import Feature, features_from_json, model_frame
from pipelines.data.labels import classes_of, encode_labels
from pipelines.jobs.port import PermanentJobError
from policies.metrics import Task
from policies.schema import ModelPolicy

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """Output of the prepare job."""

    fingerprint: str
    train: Path
    holdout: Path
    features: tuple[Feature, ...]
    classes: tuple[Any, ...] | None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(
            fingerprint=value["fingerprint"],
            train=Path(value["train"]),
            holdout=Path(value["holdout"]),
            features=features_from_json(value["features"]),
            classes=None if value["classes"] is None else tuple(value["classes"]),
        )

    def train_frame(self) -> pd.DataFrame:
        """All prepared training rows in the order of time; features as models take them, other columns as prepared.
        Raises PermanentJobError if they are gone from the cache."""
        return read_prepared(self.train, self.features)


def read_prepared(path: Path, features: Sequence[Feature]) -> pd.DataFrame:
    """Prepared rows with their features converted once, so that every fit on them finds them ready."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        frame = pq.read_table(path).to_pandas(ignore_metadata=True)
    except FileNotFoundError as error:
        raise PermanentJobError(f"the prepared rows {path} are gone from the cache; start a new cycle") from error
    except (pa.ArrowException, OSError) as error:
        raise PermanentJobError(f"the prepared rows {path} are damaged ({error}); start a new cycle") from error
    ready = model_frame(frame, features)
    return frame.assign(**{feature.name: ready[feature.name] for feature in features})


def windowed(frame: pd.DataFrame, time_column: str | None, window_s: float | None) -> pd.DataFrame:
    """The rows newer than `window_s` seconds before the newest one; all of them without a window.

    >>> import pandas as pd
    >>> rows = pd.DataFrame({"at": pd.to_datetime([0, 50, 100], unit="s", utc=True)})
    >>> len(windowed(rows, "at", 60)), len(windowed(rows, "at", None))
    (2, 3)
    """
    import pandas as pd

    if window_s is None:
        return frame
    assert time_column is not None, "the schema asks for data.time where there is a window"
    time = frame[time_column]
    return frame[time > time.max() - pd.Timedelta(seconds=window_s)]


def fit_component(
    policy: ModelPolicy,
    train_frame: pd.DataFrame,
    component: Component,
    parameters: Mapping[str, ParameterValue],
    window_s: float | None,
    seed: int,
    *,
    features: Sequence[Feature],
    classes: Sequence[Any] | None,
) -> Fitted:
    """Fit on the window's rows of `train_frame` (see `Prepared.train_frame`).

    Raises PermanentJobError if the parameters do not fit, or if a class has no row in the window.
    """
    spec = policy.spec
    rows = windowed(train_frame, spec.data.time, window_s)
    target = _target(rows[spec.data.label], spec.task, classes, window_s)
    return component.fit(
        model_frame(rows, features),
        target,
        features=features,
        task=spec.task,
        classes=classes,
        parameters=parameters,
        seed=seed,
    )


def _target(label: pd.Series, task: Task, classes: Sequence[Any] | None, window_s: float | None) -> pd.Series:
    import pandas as pd

    codes = encode_labels(label, classes)
    if task is Task.REGRESSION:
        return pd.Series(codes, index=label.index, name=label.name)
    assert classes is not None, "classification has classes"
    present = classes_of(label, task) or []
    if absent := [value for value in classes if value not in present]:
        window = "the training rows" if window_s is None else f"the window of {window_s:g} s"
        raise PermanentJobError(f"train.window: {window} holds no row of the class {absent[0]!r}; take a longer one")
    return pd.Series(codes.astype("int64"), index=label.index, name=label.name)
