"""Which rows of a table are held before anything is trained on it, and what is remembered of those that are not.

The judgement is `pipelines.data.quality`; here are the table, the profile's file and the words for people.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipelines.data import maturity as maturing
from pipelines.data.quality.examine import Examined, HeldWindow, Table, examine
from pipelines.data.quality.kept import Profile, load_profile, profile_path, save_profile
from pipelines.data.quality.summary import Shape
from pipelines.jobs.port import RetryableJobError
from policies.schema import CsvSource, DataSpec, ParquetSource, PredictionLogSource, Spec, SqlSource
from policies.signals import Fault

if TYPE_CHECKING:
    from numpy.typing import NDArray

WINDOWS_TOLD = 10
"""Held windows that a result names at most, the newest ones."""


@dataclass(frozen=True, kw_only=True)
class Holding:
    """What is held of a table of n rows."""

    rows: NDArray[np.bool_]
    """(n,)"""
    windows: tuple[Mapping[str, Any], ...] = ()
    """JSON: `{"from", "to", "rows", "faults"}`, oldest first; `from` and `to` are ISO 8601, or row numbers from 0."""
    faults: tuple[Fault, ...] = ()
    """Each kind and subject once."""
    notes: tuple[str, ...] = ()
    sentence: str = ""
    """What is held and why; empty if nothing is wrong."""

    @property
    def told(self) -> tuple[str, ...]:
        return (self.sentence,) if self.sentence else ()

    def nothing_left(self, reason: str) -> dict[str, Any]:
        """The prepare job's result where what is not held cannot be trained on, for `reason`."""
        return {
            **self.as_json(),
            "inconclusive": True,
            "sentence": f"nothing is trained: {self.sentence}; without them: {reason}",
        }

    def as_json(self) -> dict[str, Any]:
        """The part of the prepare job's result that is about it."""
        faults = [fault_json(fault) for fault in self.faults]
        return {"held": list(self.windows[-WINDOWS_TOLD:]), "rows_held": int(self.rows.sum()), "faults": faults}


def fault_json(fault: Fault) -> dict[str, Any]:
    return {**asdict(fault), "since": fault.since.isoformat()}


def hold(frame: pd.DataFrame, spec: Spec, now: datetime, *, home: Path, model: str, policy_dir: Path) -> Holding:
    """Look for faults in a checked table, and keep what was learnt. Raises RetryableJobError if that cannot be written."""
    data = spec.data
    if data.quality == "off":
        return Holding(rows=np.zeros(len(frame), dtype=bool))
    source = data_source_name(data, policy_dir, model)
    path, key = profile_path(home, model), profile_key(spec, source)
    profile, trouble = load_profile(path, key)
    table = _table(frame, spec, now)
    if profile is not None:
        profile = profile.only(frozenset([*_wanted(data, profile), data.label]))
    examined = examine(table, profile, key, hold=data.quality == "hold")
    try:
        save_profile(path, examined.profile)
    except OSError as error:
        raise RetryableJobError(f"{path}: the quality profile could not be kept: {error}") from error
    return _told(examined, spec, source, now, [trouble] if trouble else [])


def profile_key(spec: Spec, source: str) -> str:
    """Of what the rows mean. Where it changes, what was known of the rows before says nothing about those to come."""
    data = spec.data
    meaning = [source, data.label, data.time, data.id, str(spec.task)]
    return hashlib.sha256(json.dumps(meaning).encode()).hexdigest()


def data_source_name(data: DataSpec, policy_dir: Path, model: str) -> str:
    """Where the rows come from: equal for models that are fed from the same place."""
    match data.source:
        case CsvSource(path=path) | ParquetSource(path=path):
            return str((policy_dir / path).resolve())
        case SqlSource() as source:
            return f"{source.url or '$' + str(source.url_env)}: {source.query}"
        case PredictionLogSource():
            return f"prediction log of {model}"


def _wanted(data: DataSpec, profile: Profile) -> list[str]:
    """Columns of the profile that the policy still names as features."""
    names = {name for block in profile.blocks for name in block.columns}
    return [name for name in names if name not in data.exclude and (data.include is None or name in data.include)]


def _table(frame: pd.DataFrame, spec: Spec, now: datetime) -> Table:
    data = spec.data
    time = frame[data.time] if data.time is not None else None
    found = maturing.maturity(
        frame[data.label],
        now=now,
        time=time,
        label_time=frame[data.label_time] if data.label_time is not None else None,
        label_delay=data.label_delay,
    )
    special = {data.label, data.time, data.label_time, data.id, *data.exclude}
    features = tuple(
        str(name)
        for name in frame.columns
        if name not in special
        and (data.include is None or name in data.include)
        and not pd.api.types.is_datetime64_any_dtype(frame[name])
    )
    return Table(
        frame=frame,
        ordinal=np.arange(len(frame)) if time is None else np.asarray(time.dt.as_unit("us").astype("int64")),
        counts=found.counts,
        shape=Shape(features=features, label=data.label, task=spec.task),
        ignore=frozenset(data.quality_ignore),
    )


# ---------------------------------------------------------------- words
def _told(examined: Examined, spec: Spec, source: str, now: datetime, notes: Sequence[str]) -> Holding:
    timed = spec.data.time is not None
    faults: dict[tuple[str, str], Fault] = {}
    windows = []
    for window in examined.windows:
        since = _moment(window.start) if timed else now
        here = [
            Fault(kind=f.kind, source=source, subject=f.subject, sentence=f.sentence, since=since) for f in window.found
        ]
        for fault in here:
            faults.setdefault((fault.kind, fault.subject), fault)
        windows.append(
            {
                "from": _moment(window.start).isoformat() if timed else window.start,
                "to": _moment(window.end).isoformat() if timed else window.end,
                "rows": window.rows,
                "faults": [fault_json(fault) for fault in here],
            }
        )
    return Holding(
        rows=examined.held,
        windows=tuple(windows),
        faults=tuple(faults.values()),
        notes=(*notes, *examined.notes),
        sentence=_sentence(examined.windows, list(faults.values()), spec, timed),
    )


def _sentence(windows: Sequence[HeldWindow], faults: Sequence[Fault], spec: Spec, timed: bool) -> str:
    if not windows:
        return ""
    rows = sum(window.rows for window in windows)
    first, last = windows[0], windows[-1]
    if timed:
        place = f"from {_moment(first.start):%Y-%m-%d %H:%M} to {_moment(last.end):%Y-%m-%d %H:%M}"
    else:
        place = f"between row {first.start + 1:,} and row {last.end + 1:,}"
    verb = "are held" if spec.data.quality == "hold" else "are odd, but taken, because data.quality is warn"
    why = "; ".join(fault.sentence for fault in faults[:3])
    more = f"; {len(faults) - 3} more faults" if len(faults) > 3 else ""
    return f"{rows:,} rows {place} {verb}: {why}{more}"


def _moment(us_since_1970: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us_since_1970)
