"""The recorded stream: rows in the order in which they were asked for, and when the label of each became known."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.data import checks, labels, sources
from pipelines.jobs.port import PermanentJobError
from pipelines.prepare import write_parquet
from policies.metrics import METRICS, Metric
from policies.schema import ModelPolicy, Spec

Moments: TypeAlias = NDArray[np.int64]
"""Microseconds since 1970, UTC."""

ARRIVAL = "arrival"
"""The column that stands for the time of a stream that has none: row i comes i seconds after the first of 1970."""
FILE = "stream.parquet"
ROOMS = ("backtest", "controller", "deployers", "evaluators", "pipelines", "policies", "serving", "tuners")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Stream:
    """n rows in the order of time, and the policy that looks at them."""

    policy: ModelPolicy
    """As given, but for its source, which is the stream itself, and for its time, which is the order of the rows if it names none."""
    frame: pd.DataFrame
    asked: Moments
    """(n,) when each prediction was asked for, ascending."""
    known: Moments
    """(n,) when each label became known; the largest number where it never did."""
    has_time: bool
    """Whether the policy names a time; else the row number is the time."""

    @property
    def spec(self) -> Spec:
        return self.policy.spec

    @property
    def metric(self) -> Metric:
        return METRICS[self.spec.objective.metric]

    @cached_property
    def classes(self) -> list[Any] | None:
        """Of the whole stream; None for a regression."""
        return labels.classes_of(self.frame[self.spec.data.label], self.spec.task)

    @cached_property
    def truth(self) -> NDArray[np.float64]:
        """(n,) positions in `classes`, or values; NaN where there is no label."""
        return labels.encode_labels(self.frame[self.spec.data.label], self.classes)

    def __len__(self) -> int:
        return len(self.frame)

    def moment(self, row: int) -> datetime:
        """When the row's prediction was asked for."""
        return from_us(int(self.asked[row]))

    def row_after(self, row: int) -> int:
        """The first row at or after `row` that is not asked for at the same moment as the one before it."""
        if not 0 < row < len(self):
            return min(max(row, 0), len(self))
        return int(np.searchsorted(self.asked, self.asked[row - 1], side="right"))


def from_us(moment: int) -> datetime:
    """
    >>> from_us(1_000_000).isoformat()
    '1970-01-01T00:00:01+00:00'
    """
    return _EPOCH + timedelta(microseconds=moment)


def read_stream(policy: ModelPolicy, policy_dir: Path, data: Path | None, log_dir: Path) -> Stream:
    """Read the stream from `data` (CSV or Parquet by its name), or else from the policy's own source.

    `log_dir` holds the prediction log, for a policy that learns from it.

    Raises PermanentJobError for data that do not fit the policy, RetryableJobError if they cannot be read now.
    """
    spec = policy.spec
    if data is not None:
        spec = _replaced(spec, data={"source": source_of(data)})
    source = sources.open_source(spec.data, policy_dir=policy_dir, log_dir=log_dir, now=_far_future())
    frame = source.read()
    has_time = spec.data.time is not None
    if not has_time:
        frame = frame.assign(**{ARRIVAL: pd.to_datetime(np.arange(len(frame)), unit="s", utc=True)})
        spec = _replaced(spec, data={"time": ARRIVAL})
    checked = checks.check_table(frame, spec.data, spec.task).frame
    if spec.data.label_time is None and spec.data.label_delay is None:
        spec = _replaced(spec, data={"label_delay": "0s"})  # a label is known before the next row is asked for
    asked = _microseconds(checked[str(spec.data.time)])
    return Stream(
        policy=policy.model_copy(update={"spec": spec}), frame=checked, asked=asked,
        known=_known(checked, spec, asked), has_time=has_time,
    )  # fmt: skip


def kept_in(stream: Stream, folder: Path) -> Stream:
    """The same stream, read from a file in `folder`, which is written here, whatever becomes of its source."""
    folder.mkdir(parents=True, exist_ok=True)
    write_parquet(stream.frame, folder / FILE)
    spec = _replaced(stream.spec, data={"source": {"kind": "parquet", "path": str(folder / FILE)}})
    return dataclasses.replace(stream, policy=stream.policy.model_copy(update={"spec": spec}))


def source_of(data: Path) -> dict[str, str]:
    """The policy's `data.source` for a file."""
    kind = "parquet" if data.is_dir() or data.suffix.lower() in (".parquet", ".pq") else "csv"
    return {"kind": kind, "path": str(data.absolute())}


def first_rows(stream: Stream, initial: str | None) -> int:
    """How many rows train the first version: `--initial 1500`, `--initial 0.25` or `25%`; by default a quarter of the stream.

    Raises PermanentJobError naming the option for anything else, or if it leaves no rows to replay.
    """
    text = "25%" if initial is None else initial.strip()
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise PermanentJobError(
            f"--initial: must be a number of rows or a share such as 25%, but got {text!r}"
        ) from error
    if not math.isfinite(number):
        raise PermanentJobError(f"--initial: must be a number of rows or a share such as 25%, but got {text!r}")
    rows = round(number * len(stream)) if text.endswith("%") or number < 1 else int(number)
    rows = stream.row_after(rows)
    if not 0 < rows < len(stream):
        raise PermanentJobError(
            f"--initial: must leave rows on both sides of the start, but got {text} of {len(stream):,} rows"
        )
    return rows


def fingerprint(policy: ModelPolicy, stream: Stream, options: Sequence[object]) -> str:
    """Equal for the same replay: policy, rows, options, and the code that plays it."""
    total = hashlib.sha256(policy.model_dump_json(by_alias=True).encode())
    total.update(repr(options).encode())
    total.update(code_digest().encode())
    total.update(repr([(str(name), str(kind)) for name, kind in stream.frame.dtypes.items()]).encode())
    total.update(pd.util.hash_pandas_object(stream.frame, index=False).to_numpy().tobytes())
    return total.hexdigest()


def code_digest() -> str:
    """Of all that decides what comes of a replay: the outcomes of other code are not gone on with."""
    root = Path(__file__).resolve().parents[1]
    total = hashlib.sha256()
    for path in sorted(path for room in ROOMS for path in (root / room).rglob("*.py")):
        total.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def _replaced(spec: Spec, **sections: dict[str, Any]) -> Spec:
    """The spec with keys of its sections replaced, validated as a whole."""
    document = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    for section, values in sections.items():
        document[section] = {**document[section], **values}
    return Spec.model_validate(document)


def _known(frame: pd.DataFrame, spec: Spec, asked: Moments) -> Moments:
    never = np.iinfo(np.int64).max
    delay = spec.data.label_delay
    if spec.data.label_time is not None:
        column = frame[spec.data.label_time]
        known = np.where(column.notna(), np.maximum(_microseconds(column), asked), never)
    else:
        known = asked + (delay // timedelta(microseconds=1) if delay is not None else 0)
    return np.where(frame[spec.data.label].notna(), known, never).astype(np.int64)


def _microseconds(column: pd.Series) -> Moments:
    return np.asarray(column.dt.as_unit("us").astype("int64").to_numpy(), dtype=np.int64)


def _far_future() -> datetime:
    return datetime(9999, 1, 1, tzinfo=UTC)
