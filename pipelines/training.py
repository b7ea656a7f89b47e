"""What search and training share: the prepared rows in memory, the training window, and one fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pipelines.components.base import Component, Fitted, ParameterValue
from pipelines.data.features import Feature, features_from_json, model_frame
from pipelines.data.labels import classes_of, encode_labels, label_key
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
    rows_holdout: int | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(
            fingerprint=value["fingerprint"],
            train=Path(value["train"]),
            holdout=Path(value["holdout"]),
            features=features_from_json(value["features"]),
            classes=None if value["classes"] is None else tuple(value["classes"]),
            rows_holdout=value.get("rows_holdout"),
        )

    def train_frame(self) -> pd.DataFrame:
        """All prepared training rows in the order of time; features as models take them, other columns as prepared.
        Raises PermanentJobError if they are gone from the cache."""
        return read_prepared(self.train, self.features)

    def whole_frame(self) -> pd.DataFrame:
        """Those of the hold-out too."""
        import pandas as pd

        return pd.concat([self.train_frame(), read_prepared(self.holdout, self.features)], ignore_index=True)


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
    """The rows newer than `window_s` seconds before the newest one; all of them without a window. Without a time a row is a second.

    >>> import pandas as pd
    >>> rows = pd.DataFrame({"at": pd.to_datetime([0, 50, 100], unit="s", utc=True)})
    >>> len(windowed(rows, "at", 60)), len(windowed(rows, "at", None))
    (2, 3)
    """
    import pandas as pd

    if window_s is None:
        return frame
    if time_column is None:
        return frame.iloc[-math.ceil(window_s) :]
    time = frame[time_column]
    return frame[time > time.max() - pd.Timedelta(seconds=window_s)]


def present_classes(label: pd.Series, task: Task, classes: Sequence[Any] | None) -> tuple[Any, ...] | None:
    """Those of `classes` that occur in `label`, in the same order: a model knows what it has seen, and a class may be new, or gone.

    None for a regression. Raises PermanentJobError with fewer than two, or than both of a binary task.
    """
    if classes is None:
        return None
    seen = {label_key(value) for value in classes_of(label, task) or []}
    present = tuple(value for value in classes if label_key(value) in seen)
    needed = len(classes) if task is Task.BINARY else 2
    if len(present) < needed:
        absent = next(value for value in classes if value not in present)
        raise PermanentJobError(
            f"train.window: its {len(label):,} rows hold no row of the class {absent!r}; take a longer one"
        )
    return present


def fit_component(
    policy: ModelPolicy,
    rows: pd.DataFrame,
    component: Component,
    parameters: Mapping[str, ParameterValue],
    *,
    features: Sequence[Feature],
    classes: Sequence[Any] | None,
) -> Fitted:
    """Fit on prepared rows (`Prepared.train_frame`), whose labels are `classes`, each of which occurs.

    Raises PermanentJobError if the parameters do not fit.
    """
    import pandas as pd

    spec = policy.spec
    label = rows[spec.data.label]
    codes = encode_labels(label, classes)
    target = pd.Series(codes if classes is None else codes.astype("int64"), index=label.index, name=label.name)
    return component.fit(
        model_frame(rows, features),
        target,
        features=features,
        task=spec.task,
        classes=classes,
        parameters=parameters,
        seed=spec.train.seed,
    )
