"""The answers and labels of a replay, in memory, behind the same port as the prediction log on disk."""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from backtest.stream import Stream
from evaluators.label_feed import LabelFeed
from pipelines.data.prediction_log import FEATURE_PREFIX, Role

NEVER = np.iinfo(np.int64).max
NAT = np.iinfo(np.int64).min
"""As NumPy writes a moment that is none."""
FEED_ROWS = 2_000
"""Newest rows by which it is told how labels come in."""
_COLUMNS = ("id", "at", "version", "role", "key", "score")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answers:
    """What one version answered to rows that follow each other; ascending."""

    rows: NDArray[np.int64]
    version: int
    role: Role
    scores: NDArray[np.float64]
    """(n,) or (n, k)."""


@dataclass
class StreamLog:
    """Grows as the stream is replayed. Ids are row numbers."""

    stream: Stream
    replayed: int = 0
    """Rows that have been asked for."""
    _starts: list[int] = field(default_factory=list)
    """First row of each interval, ascending."""
    _intervals: list[list[_Answers]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ids = np.array([str(i) for i in range(len(self.stream))], dtype=object)
        self._label_values = self.stream.frame[self.stream.spec.data.label].to_numpy(dtype=object)
        self._asked = _times(self.stream.asked)
        self._known = _times(np.where(self.stream.known < NEVER, self.stream.known, NAT))
        self._by_known = np.argsort(self.stream.known, kind="stable")
        self._known_sorted = self.stream.known[self._by_known]

    def ask(self, end: int) -> NDArray[np.int64]:
        """The next interval begins: the rows up to `end` are asked for now. Returns them, (m,)."""
        rows = np.arange(self.replayed, end, dtype=np.int64)
        self._starts.append(self.replayed)
        self._intervals.append([])
        self.replayed = end
        return rows

    def answer(self, rows: NDArray[np.int64], version: int, role: Role, scores: NDArray[np.float64]) -> None:
        """What a version answered to some rows of this interval, ascending."""
        if len(rows):
            self._intervals[-1].append(_Answers(rows=rows, version=version, role=role, scores=scores))

    # ---------------------------------------------------------------- the port
    def predictions(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        role: Role | None = None,
        versions: Collection[int] | None = None,
        features: bool = True,
        problems: list[str] | None = None,
    ) -> pd.DataFrame:
        """As `pipelines.data.prediction_log.read_predictions`."""
        first, end = self._between(since, until)
        parts = [part for part in self._parts(first, end) if _asked_for(part, role, versions)]
        rows = np.concatenate([part.rows for part in parts]) if parts else np.zeros(0, dtype=np.int64)
        order = np.argsort(rows, kind="stable")
        rows = rows[order]
        frame = pd.DataFrame(
            {
                "id": self._ids[rows],
                "at": self._asked[rows],
                "version": _repeated([(part.version, len(part.rows)) for part in parts], np.int32)[order],
                "role": _repeated([(part.role, len(part.rows)) for part in parts], object)[order],
                "key": None,
                "score": _score_column([part.scores for part in parts], order),
            },
            columns=list(_COLUMNS),
        )
        return self._with_features(frame, rows) if features else frame

    def labels(
        self, *, since: datetime | None = None, until: datetime | None = None, problems: list[str] | None = None
    ) -> pd.DataFrame:
        """As `pipelines.data.prediction_log.read_labels`."""
        first = 0 if since is None else int(np.searchsorted(self._known_sorted, _us(since), side="left"))
        end = (
            len(self._by_known) if until is None else int(np.searchsorted(self._known_sorted, _us(until), side="left"))
        )
        rows = self._by_known[first:end]
        rows = rows[(rows < self.replayed) & (self.stream.known[rows] < np.iinfo(np.int64).max)]
        labels = pd.Series(self._label_values[rows], dtype=object)
        return pd.DataFrame({"id": self._ids[rows], "at": self._known[rows], "label": labels})

    def labelled(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        labels_until: datetime | None = None,
        role: Role | None = "live",
        versions: Collection[int] | None = None,
        features: bool = True,
        keep_unlabelled: bool = False,
        problems: list[str] | None = None,
    ) -> pd.DataFrame:
        """As `pipelines.data.prediction_log.read_labelled`: ids are row numbers, so that nothing need be looked for."""
        frame = self.predictions(since=since, until=until, role=role, versions=versions, features=features)
        rows = frame["id"].to_numpy(dtype=np.int64)
        known = self.stream.known[rows] < (NEVER if labels_until is None else _us(labels_until))
        labels, arrived = np.full(len(rows), None, dtype=object), np.full(len(rows), NAT, dtype=np.int64)
        labels[known], arrived[known] = self._label_values[rows[known]], self.stream.known[rows[known]]
        frame = frame.assign(label=pd.Series(labels, dtype=object), label_at=_times(arrived))
        return frame if keep_unlabelled else frame[known].reset_index(drop=True)

    def feed(self, now: datetime, window: timedelta) -> LabelFeed:
        """As `evaluators.label_feed.read_feed` reads it from the newest rows."""
        first = max(self.replayed - FEED_ROWS, 0)
        asked = self.stream.asked[first : self.replayed] / 1e6
        known = self.stream.known[first : self.replayed]
        arrived = np.where(known <= _us(now), known / 1e6, np.nan)
        return LabelFeed(
            now=now.timestamp(), since=float(asked[0]) if len(asked) else now.timestamp(),
            window_s=window.total_seconds(), asked=asked, arrived=arrived,
            arrivals=np.sort(arrived[np.isfinite(arrived)]),
        )  # fmt: skip

    def count_labelled(
        self, *, since: datetime, until: datetime, labels_until: datetime, problems: list[str] | None = None
    ) -> int:
        """Every row that was asked for was answered live, so that its label alone decides."""
        first, end = self._between(since, until)
        return int(np.count_nonzero(self.stream.known[first:end] < _us(labels_until)))

    # ---------------------------------------------------------------- parts
    def _between(self, since: datetime | None, until: datetime | None) -> tuple[int, int]:
        asked = self.stream.asked[: self.replayed]
        first = 0 if since is None else int(np.searchsorted(asked, _us(since), side="left"))
        end = self.replayed if until is None else int(np.searchsorted(asked, _us(until), side="left"))
        return first, end

    def _parts(self, first: int, end: int) -> Iterator[_Answers]:
        """Answers to the rows in [first, end), oldest interval first."""
        start = max(bisect.bisect_right(self._starts, first) - 1, 0)
        for begins, answers in zip(self._starts[start:], self._intervals[start:], strict=True):
            if begins >= end:
                return
            for part in answers:
                inside = slice(*np.searchsorted(part.rows, [first, end], side="left").tolist())
                if inside.start < inside.stop:
                    yield _Answers(
                        rows=part.rows[inside], version=part.version, role=part.role, scores=part.scores[inside]
                    )

    def _with_features(self, frame: pd.DataFrame, rows: NDArray[np.int64]) -> pd.DataFrame:
        asked = self.stream.frame.iloc[rows].drop(columns=[self.stream.spec.data.label])
        return pd.concat([frame, asked.add_prefix(FEATURE_PREFIX).reset_index(drop=True)], axis=1)


def _asked_for(part: _Answers, role: Role | None, versions: Collection[int] | None) -> bool:
    return (role is None or part.role == role) and (versions is None or part.version in versions)


def _times(moments: NDArray[np.int64]) -> pd.DatetimeIndex:
    """Microseconds since 1970 as UTC times, without a look at each of them."""
    return pd.DatetimeIndex(moments.view("datetime64[us]")).tz_localize("UTC")


def _us(moment: datetime) -> int:
    return int(pd.Timestamp(moment).value // 1000)


def _repeated(runs: list[tuple[Any, int]], kind: Any) -> NDArray[Any]:
    pieces = [np.full(count, value, dtype=kind) for value, count in runs]
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=kind)


def _score_column(scores: list[NDArray[np.float64]], order: NDArray[np.int64]) -> Any:
    """Numbers, or an object column of one array a row, as the log on disk gives them."""
    if not scores:
        return np.zeros(0)
    if scores[0].ndim == 1:
        return np.concatenate(scores)[order]
    column = np.empty(sum(map(len, scores)), dtype=object)
    column[:] = [row for part in scores for row in part]  # versions may know different numbers of classes
    return column[order]
