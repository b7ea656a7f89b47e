"""The prepare job: from the policy's data source to two Parquet files, one to train on and one to judge with.

Read → check → keep what has matured → split by time. The holdout is the newest part and the same for every training window, so that
whatever the search tries is judged on rows that it has not seen and that are closest to what comes next.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from pipelines import holding, steps
from pipelines.cache import MAX_BYTES, Entry, StepCache
from pipelines.data import checks, features, kinds, labels, sources, sql
from pipelines.data import maturity as maturing
from pipelines.data.unseen import unseen
from pipelines.jobs.port import JobContext, PermanentJobError, RetryableJobError
from policies.schema import ModelPolicy, SlicesGate, Spec

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LIBRARIES = ("pandas", "pyarrow", "numpy")
_US = 1_000_000
HOLDOUT_ROWS_MIN = 50
"""A holdout that is cut short, because the world changed, keeps at least so many rows."""
_TABLE, _TRAIN, _HOLDOUT = "table.parquet", "train.parquet", "holdout.parquet"


def run(inputs: Mapping[str, Any], context: JobContext) -> dict[str, Any]:
    """Job `pipelines.prepare:run`.

    In: `policy` (JSON), `policy_dir`, `home`, `model`, `now`, `changed_at` and `seen_to` (ISO 8601; `changed_at` is null or absent where no
    change is known, `seen_to`, the time of the champion's newest training row, where there is no champion). Out: `fingerprint` of the
    prepared rows; paths `train` and `holdout`; `rows_train`, `rows_holdout`, `rows_immature`, `rows_unlabelled`, `rows_table` (all that
    were read); `trained_to`, `holdout_from` and `holdout_to` (ISO 8601, null without a time column); `features`, `classes` (null for
    regression); `cached`, `notes`, `sentence`; and what was held because something is wrong with it: `held` (list of
    `{"from", "to", "rows", "faults"}`), `rows_held`, `faults`. Where too few rows are left without those that are held, only these three
    and `inconclusive` and `sentence`, which say so.

    Raises PermanentJobError for data that cannot be trained on, RetryableJobError if a source or the cache is away.
    """
    policy = parse_policy(inputs["policy"])
    now = datetime.fromisoformat(inputs["now"])
    home = Path(inputs["home"])
    spec = policy.spec.model_copy(update={"data": sources.with_log_columns(policy.spec.data)})
    cache = StepCache(home / "cache")
    source = sources.open_source(
        spec.data,
        policy_dir=Path(inputs["policy_dir"]),
        log_dir=home / "log" / inputs["model"],
        now=now,
        since=_log_since(spec, now),
    )
    context.report(text=f"reading {checks.source_name(spec.data)}")
    table = _read(cache, source, spec)
    context.report(text="looking for faults")
    rows = pq_columns(table.path / _TABLE)
    found = holding.hold(
        rows, spec, now, home=home, model=inputs["model"], policy_dir=Path(inputs["policy_dir"])
    )  # fmt: skip
    context.report(text="selecting rows")
    try:
        cuts = Cuts(changed_at=changed_at(inputs, spec), seen_to=_time_of(inputs.get("seen_to")))
        selection = select(rows, spec, now, cuts, held=found.rows)
    except PermanentJobError as error:
        if not found.rows.any():
            raise
        return found.nothing_left(str(error))
    prepared = _prepare(cache, table, selection, spec)
    cache.prune_hourly(MAX_BYTES)
    return {**_output(prepared, selection, table, [*found.told, *found.notes]), **found.as_json()}


def parse_policy(value: Mapping[str, Any]) -> ModelPolicy:
    """The policy of a job's inputs. Raises PermanentJobError if it is not valid."""
    try:
        return ModelPolicy.model_validate(value)
    except ValidationError as error:
        raise PermanentJobError(f"policy: {error}") from error


def _time_of(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def changed_at(inputs: Mapping[str, Any], spec: Spec) -> datetime | None:
    """When the change happened for which the cycle was opened, if that is known and the policy asks for a window since then."""
    moment = inputs.get("changed_at")
    return datetime.fromisoformat(moment) if moment and "since_change" in spec.train.windows else None


# ---------------------------------------------------------------- step: read
def _read(cache: StepCache, source: sources.DataSource, spec: Spec) -> Entry:
    """The source's rows, checked and in the order of time, as one Parquet file in the cache."""
    fingerprint = source.fingerprint()
    frame: pd.DataFrame | None = None
    if fingerprint is None:
        frame = source.read()
        fingerprint = frame_fingerprint(frame)

    def build(folder: Path) -> dict[str, Any]:
        rows = source.read() if frame is None else frame
        if frame is None and source.fingerprint() != fingerprint:
            raise RetryableJobError(f"data.source: {checks.source_name(spec.data)} changed while it was read")
        checked = checks.check_table(rows, spec.data, spec.task)
        write_parquet(checked.frame.drop(columns=_unused(checked.frame, spec)), folder / _TABLE)
        return {"notes": checked.notes, "rows": len(checked.frame), "fingerprint": fingerprint}

    return steps.run_step(
        cache,
        "read",
        build,
        inputs=[fingerprint],
        modules=[checks, sources, sql, labels],
        distributions=_LIBRARIES,
        # Without the source itself: its content is the fingerprint, and its URL may hold a password.
        parameters={
            "kind": spec.data.source.kind,
            "data": spec.data.model_dump(mode="json", exclude={"source", "holdout", "min_rows"}),
            "task": spec.task,
            "slices": _slice_columns(spec),
        },
    )


def frame_fingerprint(frame: pd.DataFrame) -> str:
    """`sha256:…` of a table's column names, types and values."""
    digest = hashlib.sha256(repr([(name, str(kind)) for name, kind in frame.dtypes.items()]).encode())
    objects = [name for name in frame.columns if pd.api.types.is_object_dtype(frame[name])]
    plain = frame.astype(dict.fromkeys(objects, str))
    digest.update(pd.util.hash_pandas_object(plain, index=False).to_numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def _slice_columns(spec: Spec) -> list[str]:
    return sorted({name for gate in spec.gates if isinstance(gate, SlicesGate) for name in gate.slices.by})


def _unused(frame: pd.DataFrame, spec: Spec) -> list[str]:
    """Columns that are neither features nor special; those that the gates slice by stay, features or not."""
    data, sliced = spec.data, _slice_columns(spec)
    if unknown := [name for name in sliced if name not in frame]:
        raise PermanentJobError(
            f"gates: slices.by names {unknown[0]!r} but {checks.source_name(data)} has no such column"
        )
    keep = {data.label, data.time, data.label_time, *sliced}
    wanted = set(frame.columns if data.include is None else data.include) - set(data.exclude) - {data.id}
    return [name for name in frame.columns if name not in keep | wanted]


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    """The same bytes for the same frame. Raises PermanentJobError, naming the column, for values that no column type holds."""
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise PermanentJobError(
            f"data: values of different types in one column: {'; '.join(map(str, error.args))}"
        ) from error
    pq.write_table(table, path, compression="zstd", compression_level=1)


def pq_columns(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """A Parquet file that `write_parquet` wrote, or some of its columns."""
    return pq.read_table(path, columns=columns).to_pandas(ignore_metadata=True)


# ---------------------------------------------------------------- which rows
@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Which rows of a table of n rows are for what."""

    train: NDArray[np.bool_]
    holdout: NDArray[np.bool_]
    immature: int
    unlabelled: int
    trained_to: datetime | None
    holdout_from: datetime | None
    holdout_to: datetime | None
    notes: tuple[str, ...]

    def digest(self) -> str:
        return hashlib.sha256(np.packbits([self.train, self.holdout]).tobytes()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Cuts:
    """Moments that may cut a holdout short, so that more of the newest rows are left to train on."""

    changed_at: datetime | None = None
    """When the world changed."""
    seen_to: datetime | None = None
    """Time of the champion's newest training row."""


def select(
    table: pd.DataFrame,
    spec: Spec,
    now: datetime,
    cuts: Cuts = Cuts(),
    *,
    held: NDArray[np.bool_] | None = None,
) -> Selection:
    """Which rows of the checked table (its label and time columns suffice) to train on and to judge with at `now`, but none of
    those that are `held` (n,).

    Raises PermanentJobError if there are too few, or of one class only.
    """
    data = spec.data
    label = table[data.label]
    time = table[data.time] if data.time is not None else None
    future, notes = checks.future_rows(time, now, data) if time is not None else (0, [])
    found = maturing.maturity(
        label,
        now=now,
        time=time,
        label_time=table[data.label_time] if data.label_time is not None else None,
        label_delay=data.label_delay,
    )
    train, holdout = split(time, found.counts if held is None else found.counts & ~held, spec, cuts)
    rows = int(train.sum())
    if rows < data.min_rows:
        raise PermanentJobError(
            f"data.min_rows: training needs at least {data.min_rows} matured rows but there are {rows}"
            f" ({int(holdout.sum())} more are kept for judging, {found.immature - future} wait for their labels,"
            f" {found.unlabelled} have none)"
        )
    checks.check_classes_of_rows(label[train], data, spec.task, f"the {rows} matured training rows")
    return Selection(
        train=train,
        holdout=holdout,
        immature=found.immature - future,
        unlabelled=found.unlabelled,
        trained_to=_moment(time, train, newest=True),
        holdout_from=_moment(time, holdout, newest=False),
        holdout_to=_moment(time, holdout, newest=True),
        notes=tuple(notes),
    )


def split(
    time: pd.Series | None, counts: NDArray[np.bool_], spec: Spec, cuts: Cuts = Cuts()
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks (n,) of the rows to train on and of the holdout, among the rows that count. `time` is in ascending order; without it, row i
    lies at second i.

    With the largest training window W (or none) and the newest row at T, the holdout is the newest share of the rows of (T - W, T], or its
    last time span; it starts at a time H, never in the middle of rows of one time. Training has the rows of [H - W, H). Where the world
    changed at C, the holdout is at most a third of the rows since C: else none of the new world would be left to train on. Rows that the
    champion was trained on are no holdout: a challenger that may not learn them would be compared with one that did.
    """
    longest, holdout = spec.train.longest_window, spec.data.holdout
    index = np.flatnonzero(counts)
    ordinal = index * _US if time is None else np.asarray(time.dt.as_unit("us").astype("int64"))[index]  # us since 1970
    window_us = longest // timedelta(microseconds=1) if longest is not None else None
    train = np.zeros(len(counts), dtype=bool)
    kept = np.zeros(len(counts), dtype=bool)
    if not len(index):
        return train, kept
    start = _holdout_start(ordinal, holdout, window_us)
    if cuts.changed_at is not None:
        start = max(start, _start_after_change(ordinal, round(cuts.changed_at.timestamp() * _US)))
    if cuts.seen_to is not None:
        start = max(start, int(ordinal[unseen(ordinal, round(cuts.seen_to.timestamp() * _US))][0]))
    kept[index[ordinal >= start]] = True
    older = ordinal < start
    if window_us is not None:
        older &= ordinal >= start - window_us
    train[index[older]] = True
    return train, kept


def _holdout_start(ordinal: NDArray[np.int64], holdout: float | timedelta, window_us: int | None) -> int:
    newest = int(ordinal[-1])
    if isinstance(holdout, timedelta):
        inside = ordinal[ordinal > newest - holdout // timedelta(microseconds=1)]
        return int(inside[0])
    inside = ordinal if window_us is None else ordinal[ordinal > newest - window_us]
    return int(inside[len(inside) - max(1, math.ceil(holdout * len(inside)))])


def _start_after_change(ordinal: NDArray[np.int64], changed_us: int) -> int:
    """Where a holdout begins that leaves two thirds of the rows since the change to train on; the oldest row if there are too few."""
    since = ordinal[ordinal >= changed_us]
    held_out = len(since) // 3
    return int(since[-held_out]) if held_out >= HOLDOUT_ROWS_MIN else int(ordinal[0])


def _moment(time: pd.Series | None, mask: NDArray[np.bool_], *, newest: bool) -> datetime | None:
    if time is None or not mask.any():
        return None
    moments = time[mask]
    us_since_1970 = int(moments.dt.as_unit("us").astype("int64").iloc[-1 if newest else 0])
    moment: datetime = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us_since_1970)
    return moment


def _log_since(spec: Spec, now: datetime) -> datetime | None:
    """A time before the oldest row of the prediction log that can matter; None without a training window.

    Newest matured row, holdout, window: each lies at most this far before the one after it. Where the label delay is not given it is
    taken to be no longer than the window.
    """
    window = spec.train.longest_window
    if window is None:
        return None
    holdout = spec.data.holdout if isinstance(spec.data.holdout, timedelta) else window
    return now - (spec.data.label_delay or window) - holdout - window


# ---------------------------------------------------------------- step: prepare
def _prepare(cache: StepCache, table: Entry, selection: Selection, spec: Spec) -> Entry:
    """The two Parquet files, with features, classes and fingerprint as the result."""
    data = spec.data

    def build(folder: Path) -> dict[str, Any]:
        rows = pq_columns(table.path / _TABLE)
        train = rows[selection.train]
        found, notes = kinds.infer_features(train, data)
        names = [feature.name for feature in found]
        special = (data.label, data.time, data.label_time, *_slice_columns(spec))
        extra = [name for name in special if name and name not in names]
        write_parquet(train[names + extra], folder / _TRAIN)
        write_parquet(rows.loc[selection.holdout, names + extra], folder / _HOLDOUT)
        contents = [(folder / name).read_bytes() for name in (_TRAIN, _HOLDOUT)]
        digest = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents))
        return {
            "fingerprint": f"sha256:{digest.hexdigest()}",
            "features": [feature.as_json() for feature in found],
            "classes": labels.classes_of(train[data.label], spec.task),
            "notes": notes,
        }

    return steps.run_step(
        cache,
        "prepare",
        build,
        inputs=[f"{table.path.parent.name}/{table.path.name}"],
        modules=[_this_module(), kinds, features, labels],
        distributions=_LIBRARIES,
        parameters={
            "rows": selection.digest(),
            "data": data.model_dump(mode="json", exclude={"source", "holdout", "min_rows"}),
            "task": spec.task,
            "slices": _slice_columns(spec),
        },
    )


def _this_module() -> Any:
    import sys

    return sys.modules[__name__]


def _output(prepared: Entry, selection: Selection, table: Entry, held: list[str]) -> dict[str, Any]:
    train, holdout = int(selection.train.sum()), int(selection.holdout.sum())
    notes = [*held, *table.result["notes"], *selection.notes, *prepared.result["notes"]]
    period = f", up to {selection.trained_to:%Y-%m-%d %H:%M}" if selection.trained_to else ""
    sentence = (
        f"{train:,} rows to train on{period}, {holdout:,} to judge with;"
        f" {selection.immature:,} wait for their labels, {selection.unlabelled:,} have none"
    )
    return {
        "fingerprint": prepared.result["fingerprint"],
        "train": str(prepared.path / _TRAIN),
        "holdout": str(prepared.path / _HOLDOUT),
        "rows_train": train,
        "rows_holdout": holdout,
        "rows_immature": selection.immature,
        "rows_unlabelled": selection.unlabelled,
        "rows_table": table.result["rows"],
        "trained_to": selection.trained_to.isoformat() if selection.trained_to else None,
        "holdout_from": selection.holdout_from.isoformat() if selection.holdout_from else None,
        "holdout_to": selection.holdout_to.isoformat() if selection.holdout_to else None,
        "features": prepared.result["features"],
        "classes": prepared.result["classes"],
        "cached": prepared.cached,
        "notes": notes,
        "sentence": "; ".join([sentence, *notes]),
    }
