"""The rows that a verdict is taken on, and what was known before them: read from what the prepare job wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evaluators.baselines import NEVER, Labelled
from pipelines.data.labels import encode_labels
from pipelines.data.sources import with_log_columns
from pipelines.data.unseen import unseen
from pipelines.jobs.port import PermanentJobError, RetryableJobError
from policies.metrics import Task
from policies.schema import DataSpec, SlicesGate, Spec

if TYPE_CHECKING:
    import pandas as pd

    from evaluators.scored import Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class HoldOut:
    """The rows that champion and challenger answer."""

    path: Path
    rows: int
    usable: NDArray[np.bool_]
    """(rows,): whether the label is there and, in binary tasks, one of the classes."""
    labels: Floats
    """Of the usable rows."""
    classes: Sequence[Any] | None
    columns: Mapping[str, NDArray[Any]]
    """Of the usable rows: what slices are made by."""
    known: Labelled
    """The usable rows, as what later rows may know of them."""
    before: Labelled | None
    """The training rows, likewise; None if they are not there to read."""
    table_rows: int
    """Of the table that these rows are the newest of; 0 if that is not told."""


def read_hold_out(
    prepared: Mapping[str, Any],
    spec: Spec,
    model_classes: Sequence[Any] | None,
    champion_trained_to: datetime | None = None,
) -> HoldOut:
    """`prepared` is the output of the prepare job; `model_classes` stand in where it names no classes.

    Rows up to `champion_trained_to` are left out where enough are left: a champion that was refitted on its own hold-out knows them, and
    would look better than it is.

    Raises RetryableJobError if the file is gone, PermanentJobError if it is no good.
    """
    import pandas as pd

    path, data = Path(prepared["holdout"]), with_log_columns(spec.data)
    try:
        frame: pd.DataFrame = pd.read_parquet(path)
    except FileNotFoundError as error:
        raise RetryableJobError(f"the hold-out rows {path} are gone; prepare them again") from error
    except (OSError, ValueError) as error:
        raise PermanentJobError(f"the hold-out rows {path} cannot be read: {error}") from error
    if data.label not in frame.columns:
        raise PermanentJobError(f"data.label: no column {data.label!r} in the hold-out rows {path}")
    classes = model_classes if prepared.get("classes") is None else prepared["classes"]
    codes = encode_labels(frame[data.label], classes)
    if spec.task is Task.MULTICLASS:
        codes = np.where(np.isnan(codes) & frame[data.label].notna().to_numpy(), -1.0, codes)
    usable = _unseen(np.isfinite(codes), _micros(frame, data.time), champion_trained_to)
    wanted = {column for gate in spec.gates if isinstance(gate, SlicesGate) for column in gate.slices.by}
    columns = {c: frame[c].to_numpy(dtype=object)[usable] for c in sorted(wanted) if c in frame.columns}
    return HoldOut(
        path=path, rows=len(frame), usable=usable, labels=codes[usable], classes=classes, columns=columns,
        known=_labelled(frame[usable], codes[usable], data), before=_before(prepared, data, classes),
        table_rows=int(prepared.get("rows_table") or 0),
    )  # fmt: skip


def _unseen(
    usable: NDArray[np.bool_], time_us: NDArray[np.int64] | None, champion_trained_to: datetime | None
) -> NDArray[np.bool_]:
    if time_us is None or champion_trained_to is None:
        return usable
    new = np.zeros(len(usable), dtype=bool)
    new[usable] = unseen(time_us[usable], round(champion_trained_to.timestamp() * 1e6))
    return new


def _before(prepared: Mapping[str, Any], data: DataSpec, classes: Sequence[Any] | None) -> Labelled | None:
    """Only baselines need it, so that nothing is lost but they if it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        train = pq.ParquetFile(prepared["train"])
        special = (data.label, data.time, data.label_time)
        there = [name for name in special if name is not None and name in train.schema_arrow.names]
        frame = train.read(columns=there).to_pandas(ignore_metadata=True)
        return _labelled(frame, encode_labels(frame[data.label], classes), data)
    except (KeyError, OSError, pa.ArrowException):
        return None


def _labelled(frame: pd.DataFrame, codes: Floats, data: DataSpec) -> Labelled:
    time = _micros(frame, data.time)
    known = _micros(frame, data.label_time)
    if known is None and time is not None and data.label_delay is not None:
        known = time + int(data.label_delay.total_seconds() * 1e6)
    return Labelled(labels=codes, time_us=time, known_us=known)


def _micros(frame: pd.DataFrame, column: str | None) -> NDArray[np.int64] | None:
    """(n,) us since 1970, NEVER where missing; None if the rows have no such column, or one that holds no times."""
    import pandas as pd

    if column is None or column not in frame.columns:
        return None
    moments = frame[column]
    if not pd.api.types.is_datetime64_any_dtype(moments):
        return None
    return np.where(moments.notna(), moments.dt.as_unit("us").astype("int64"), NEVER).astype(np.int64)
