"""What every measurement of one look shares: the log, the moment, the champion, and how late labels come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from evaluators.answers import ModelFolder
from evaluators.label_feed import KnowsItsFeed, LabelFeed, read_feed, stalled_label_feed
from pipelines.data.labels import encode_labels
from pipelines.data.prediction_log import AnswerLog, score_array
from policies.metrics import Task
from policies.schema import Spec
from policies.signals import Fault, SignalKind

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """What to measure: `policies.signals.SignalQuery` as it reaches the job."""

    key: str
    kind: SignalKind
    metric: str | None
    window: timedelta | None
    min_rows: int
    threshold: float | Literal["calibrated"] | None = None
    """Of drift: from which distance on a feature has drifted; None for Evidently's rules."""

    @classmethod
    def from_json(cls, item: dict[str, Any]) -> Query:
        """Raises KeyError, ValueError for a query of another shape."""
        window_s = item.get("window_s")
        return cls(
            key=item["key"],
            kind=SignalKind(item["kind"]),
            metric=item.get("metric"),
            window=None if window_s is None else timedelta(seconds=window_s),
            min_rows=int(item.get("min_rows") or 0),
            threshold=item.get("threshold"),
        )


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One look at one model."""

    home: Path
    model: str
    log: AnswerLog
    now: datetime
    spec: Spec
    champion: int
    folder: ModelFolder
    """Of the champion."""
    trained_to: datetime | None
    """Time of the champion's newest training row."""
    lag_window: timedelta
    """Labels that arrived within this long before `now` tell how late labels come."""
    champion_scores: Mapping[str, float] = field(default_factory=dict)
    """Metric → score with which the champion was promoted."""
    champion_promised: Sequence[Mapping[str, Any]] | None = None
    """How far it was off when it was judged: `evaluators.calibration.promised`; None if that is not known."""
    champion_usual_errors: Mapping[str, Any] | None = None
    """Of a regression: `evaluators.calibration.usual_errors`, of its own hold-out or of its predecessor's; None if they are not known."""
    champion_since: datetime | None = None
    """When the champion's version was made."""
    quiet: bool = True
    """Whether no measured or estimated score speaks against the champion, so that this look may serve to calibrate drift."""
    problems: list[str] = field(default_factory=list)
    """Sentences on files of the log that could not be read."""

    @cached_property
    def feed(self) -> LabelFeed:
        """When labels came in, of late."""
        if isinstance(self.log, KnowsItsFeed):
            return self.log.feed(self.now, self.lag_window)
        return read_feed(self.log, self.now, self.lag_window, self.problems)

    @cached_property
    def label_delay(self) -> timedelta | None:
        """The policy's `data.label_delay`, else the observed lag that 99 % of labels keep; None if neither is known."""
        if self.spec.data.label_delay is not None:
            return self.spec.data.label_delay
        lag_s = self.feed.lag_s()
        return None if lag_s is None else timedelta(seconds=lag_s)

    @cached_property
    def stalled(self) -> Fault | None:
        """That labels are owed and do not come, if so."""
        return stalled_label_feed(self.feed, self.spec.data.label)


def known_labels(
    labels: pd.Series, classes: Sequence[Any] | None, task: Task
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Labels of a pandas column as codes (or numbers), and which of them can be scored; both (n,).

    In a multiclass task a label that is no class of the model counts, as -1: the model was wrong. In a binary task it has no meaning and
    is left out, as is a missing one or one that is no finite number in a regression.
    """
    codes = encode_labels(labels, classes)
    if task is Task.MULTICLASS:
        codes = np.where(np.isnan(codes) & labels.notna().to_numpy(), -1.0, codes)
    return codes, np.isfinite(codes)


class StrangeScoresError(Exception):
    """Logged scores are not what models of this task and these classes give; the message says what is wrong."""


def logged_scores(frame: pd.DataFrame, classes: Sequence[Any] | None, task: Task) -> NDArray[np.float64]:
    """Scores of logged rows by the score convention, (n,) or (n, k); may hold NaN. Raises StrangeScoresError."""
    expected = len(classes or ()) if task is Task.MULTICLASS else 1
    scores = frame["score"]
    found = {1} if scores.dtype != object else {len(score) for score in scores}
    if strange := sorted(found - {expected}) if len(scores) else []:
        versions = ", ".join(f"v{number}" for number in sorted(frame["version"].unique().tolist()))
        raise StrangeScoresError(f"{versions} was logged with {strange[0]} scores a row where {expected} are expected")
    return score_array(frame).reshape((len(frame), expected) if task is Task.MULTICLASS else (len(frame),))
