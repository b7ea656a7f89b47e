"""Checks of a table that has just been read, before anything is computed from it.

Every message names the policy field and the column, the rule, the value found, and what to do. Errors are `PermanentJobError`; what can be
dealt with (infinities, rows without a time, rows from the future) becomes a note for the cycle's sentence.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

from pipelines.data.labels import classes_of, plain_label
from pipelines.jobs.port import PermanentJobError
from policies.metrics import Task
from policies.schema import DataSpec, PredictionLogSource

CLASSES_MAX = 1000
_EPOCH_S_MAX = 10_000_000_000
"""Year 2286. Larger numbers are milliseconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedTable:
    frame: pd.DataFrame
    """Times as UTC timestamps; rows in the order of time (ties as read), or as read if there is no time."""
    notes: tuple[str, ...]


def check_table(frame: pd.DataFrame, spec: DataSpec, task: Task) -> CheckedTable:
    """The table with its times parsed and its rows in order. Raises PermanentJobError for what cannot be trained on."""
    if not len(frame):
        raise PermanentJobError(
            f"data.source: {source_name(spec)} holds 0 rows; there must be at least {spec.min_rows}"
        )
    check_columns(frame.columns, spec)
    check_label(frame[spec.label], spec, task)
    check_ids(frame, spec)
    notes = []
    columns = {name: parse_times(frame[name], field) for field, name in _time_fields(spec)}
    frame = frame.assign(**columns)
    if spec.time is not None:
        missing = frame[spec.time].isna()
        if missing.all():
            raise PermanentJobError(f"data.time: column {spec.time!r}: all {len(frame)} values are missing")
        if count := int(missing.sum()):
            notes.append(f"{count} rows without {spec.time!r} were left out")
            frame = frame[~missing]
        if not frame[spec.time].is_monotonic_increasing:
            frame = frame.sort_values(spec.time, kind="stable")
    notes += infinite_notes(frame, spec)
    return CheckedTable(frame=frame.reset_index(drop=True), notes=tuple(notes))


def source_name(spec: DataSpec) -> str:
    return str(getattr(spec.source, "path", None) or spec.source.kind)


def _time_fields(spec: DataSpec) -> list[tuple[str, str]]:
    pairs = (("time", spec.time), ("label_time", spec.label_time))
    return [(f"data.{field}", name) for field, name in pairs if name is not None]


# ---------------------------------------------------------------- columns
def check_columns(columns: Iterable[str], spec: DataSpec) -> None:
    """Every column that the policy names is there. All that are missing are reported at once, each with the nearest name."""
    known = list(columns)
    named = [("label", spec.label), ("time", spec.time), ("label_time", spec.label_time), ("id", spec.id)]
    named += [("include", name) for name in spec.include or ()]
    if not isinstance(
        spec.source, PredictionLogSource
    ):  # the log holds features only, so what is excluded is not in it
        named += [("exclude", name) for name in spec.exclude]
    missing = [
        f"data.{field}: {source_name(spec)} has no column {name!r}{_suggestion(name, known)}"
        for field, name in named
        if name is not None and name not in known
    ]
    if missing:
        raise PermanentJobError("; ".join(missing))


def _suggestion(name: str, known: list[str]) -> str:
    if near := difflib.get_close_matches(name, known, n=1):
        return f"; did you mean {near[0]!r}?"
    return f"; there are {', '.join(known[:20])}{' …' if len(known) > 20 else ''}"


# ---------------------------------------------------------------- label
def check_label(label: pd.Series, spec: DataSpec, task: Task) -> None:
    """There are labels, and they fit the task."""
    where = f"data.label: column {spec.label!r}"
    present = label.dropna()
    if present.empty:
        raise PermanentJobError(f"{where}: all {len(label)} values are missing; a model needs labels")
    if task is Task.REGRESSION:
        _check_numbers(present, where)
        return
    infinite = pd.api.types.is_numeric_dtype(present) and np.isinf(present.to_numpy(dtype="float64"))
    if np.any(infinite):
        raise PermanentJobError(f"{where}: must be a class but {int(np.sum(infinite))} values are infinite")
    check_classes(classes_of(present, task) or [], f"{where}: {len(present)} labelled rows", task)


def check_classes(classes: list[Any], where: str, task: Task) -> None:
    """As many classes as the task has: two for binary, 2 to 1,000 for multiclass."""
    if len(classes) == 1:
        raise PermanentJobError(f"{where}: there must be at least two classes but all have the label {classes[0]!r}")
    limit = 2 if task is Task.BINARY else CLASSES_MAX
    if len(classes) > limit:
        shown = ", ".join(repr(value) for value in classes[:5])
        hint = "task: multiclass" if task is Task.BINARY and len(classes) <= CLASSES_MAX else "task: regression"
        raise PermanentJobError(
            f"{where}: task {task.value} takes at most {limit} classes but there are {len(classes)} ({shown}, …); is it {hint}?"
        )


def check_classes_of_rows(label: pd.Series, spec: DataSpec, task: Task, rows: str) -> None:
    """Some of the rows only: still at least two classes. `rows` says which, for the message."""
    if (classes := classes_of(label, task)) is not None:
        check_classes(classes, f"data.label: column {spec.label!r}: {rows}", task)


def _check_numbers(present: pd.Series, where: str) -> None:
    numbers = pd.to_numeric(present, errors="coerce")
    bad = present[numbers.isna()]
    if len(bad):
        raise PermanentJobError(
            f"{where}: task regression takes numbers but {len(bad)} values are none, such as {plain_label(bad.iloc[0])!r}"
        )
    if count := int(np.isinf(numbers.to_numpy(dtype="float64")).sum()):
        raise PermanentJobError(
            f"{where}: must be finite but {count} values are infinite; leave them empty or correct them"
        )


# ---------------------------------------------------------------- ids, times, numbers
def check_ids(frame: pd.DataFrame, spec: DataSpec) -> None:
    """Ids, where the policy names their column, are there and differ."""
    if spec.id is None:
        return
    ids = frame[spec.id]
    if count := int(ids.isna().sum()):
        raise PermanentJobError(f"data.id: column {spec.id!r}: every row must have an id but {count} have none")
    doubled = ids[ids.duplicated()]
    if len(doubled):
        raise PermanentJobError(
            f"data.id: column {spec.id!r}: ids must differ but {doubled.nunique()} occur more than once, such as"
            f" {plain_label(doubled.iloc[0])!r}; remove the copies, or name no id"
        )


def parse_times(column: pd.Series, field: str) -> pd.Series:
    """The column as UTC timestamps (us). Text must be ISO 8601, numbers are seconds since 1970, times without a zone are UTC."""
    where = f"{field}: column {column.name!r}"
    if pd.api.types.is_bool_dtype(column):
        raise PermanentJobError(f"{where}: must hold times but holds true and false")
    if pd.api.types.is_numeric_dtype(column):
        return _from_epoch(column, where)
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        parsed = column.dt.tz_convert("UTC")
    elif pd.api.types.is_datetime64_dtype(column):
        parsed = column.dt.tz_localize("UTC")
    else:
        parsed = pd.to_datetime(column, format="ISO8601", utc=True, errors="coerce")
        bad = column[parsed.isna() & column.notna()]
        if len(bad):
            raise PermanentJobError(
                f"{where}: must hold times such as 2026-03-01T12:00:00Z, but {len(bad)} of {len(column)} values are none,"
                f" such as {plain_label(bad.iloc[0])!r} in row {bad.index[0] + 1}"
            )
    return parsed.dt.as_unit("us")


def _from_epoch(column: pd.Series, where: str) -> pd.Series:
    seconds = column.to_numpy(dtype="float64", na_value=np.nan)
    outside = (seconds < 0) | (seconds > _EPOCH_S_MAX)
    if outside.any():
        raise PermanentJobError(
            f"{where}: numbers are read as seconds since 1970 and must be from 0 to {_EPOCH_S_MAX}, but"
            f" {int(outside.sum())} are not, such as {seconds[outside][0]:g}; are they milliseconds?"
        )
    return pd.to_datetime(pd.Series(seconds, index=column.index), unit="s", utc=True).dt.as_unit("us")


def infinite_notes(frame: pd.DataFrame, spec: DataSpec) -> list[str]:
    """Infinities in features count as missing, which every component can deal with; the owner is told where they are."""
    notes = []
    for name in frame.columns:
        column = frame[name]
        if name != spec.label and pd.api.types.is_float_dtype(column):
            count = int(np.isinf(column.to_numpy(dtype="float64", na_value=np.nan)).sum())
            if count:
                notes.append(f"{count} infinite values of {name!r} count as missing")
    return notes


def future_rows(time: pd.Series, now: datetime, spec: DataSpec) -> tuple[int, list[str]]:
    """How many rows lie after `now`, and a note. Raises PermanentJobError if all do: then the clock must be wrong."""
    count = int((time > pd.Timestamp(now)).sum())
    if count == len(time):
        raise PermanentJobError(
            f"data.time: column {spec.time!r}: all {count} rows lie after the present time {now.isoformat(timespec='seconds')}"
            f" (oldest {time.min().isoformat()}); has the clock gone back?"
        )
    note = f"{count:,} rows lie after {now.isoformat(timespec='seconds')} and wait (newest {time.max().isoformat()})"
    return count, [note] if count else []
