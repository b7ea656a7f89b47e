"""Signals: measured facts about a model, each with a value or the reason why there is none.

A trigger says what it needs as a `SignalQuery`; whoever observes answers each query with one `Signal` under its key.
A missing, stale or non-finite number is *unknown*, which is neither good nor bad (invariant 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

from policies.durations import spell_duration


class SignalKind(StrEnum):
    PERFORMANCE = "performance"
    """Score of the champion on rows of the window whose labels have matured."""
    DRIFT = "drift"
    """Share of drifted features, window against the champion's training rows."""
    VOLUME = "volume"
    """Number of matured labelled rows newer than the champion's training rows."""
    ESTIMATED_PERFORMANCE = "estimated_performance"
    """Score of the champion that is to be expected on the newest predictions, from their scores alone: no labels needed."""
    CALIBRATION = "calibration"
    """By how many standard errors matured labels deviate from what the champion's answers promised."""
    LABEL_COVERAGE = "label_coverage"
    """Share of the predictions old enough to have matured that do have a label."""
    LABEL_LAG = "label_lag"
    """A high quantile of how long labels take to arrive, in seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SignalQuery:
    """What to measure. Equal queries have equal keys.

    Whoever answers also applies `min_rows`: with fewer rows the signal is unknown.
    """

    kind: SignalKind
    metric: str | None = None
    window: timedelta | None = None
    min_rows: int = 0
    threshold: float | Literal["calibrated"] | None = None
    """Of drift: from which distance on a feature has drifted; None for Evidently's rules."""

    @property
    def key(self) -> str:
        """For example `performance:precision:1d:100`, `drift:1d:100:calibrated`."""
        parts = [self.kind.value, self.metric, spell_duration(self.window) if self.window else None]
        parts += [
            str(self.min_rows) if self.min_rows else None,
            None if self.threshold is None else f"{self.threshold}",
        ]
        return ":".join(part for part in parts if part)


class Basis(StrEnum):
    """What the value of a metric rests on."""

    SHARE = "share"
    """So many of `rows` counted events."""
    COUNTED = "counted"
    """A value, such as a latency, of `rows` counted events."""
    BARE = "bare"
    """A value of which nobody knows how much it rests on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Signal:
    """A measured value, or `value=None` and the reason. Non-finite numbers become unknown on construction by `of`."""

    value: float | None
    reason: str = ""
    rows: int = 0
    observed_at: datetime
    window_end: datetime | None = None
    """End of the window that was measured (equal ends mean that it is the same measurement again)."""
    stderr: float | None = None
    """Standard error of the value; None where it is not known."""
    earlier: float | None = None
    """The same on the rows before the window, as far as they are of the same version; None if they are too few."""
    earlier_rows: int = 0
    changed_at: datetime | None = None
    """Where in the window the value is most likely to have changed; None where it was not looked for or nothing stands out."""
    detail: str = ""
    """What the value is made of, in a few words: of drift, the features that moved furthest."""
    basis: Basis | None = None
    """Of metrics; None for what Ratchet measures itself."""
    good_until: datetime | None = None
    """Of metrics: when it is too old; None where only the fleet's bound holds."""

    @classmethod
    def of(cls, value: float, *, observed_at: datetime, rows: int = 0, window_end: datetime | None = None) -> Signal:
        if not math.isfinite(value):
            return cls.unknown(f"measured {value}", observed_at=observed_at, rows=rows)
        return cls(value=value, rows=rows, observed_at=observed_at, window_end=window_end)

    @classmethod
    def unknown(cls, reason: str, *, observed_at: datetime, rows: int = 0) -> Signal:
        return cls(value=None, reason=reason, rows=rows, observed_at=observed_at)


@dataclass(frozen=True, kw_only=True, slots=True)
class AlertSignal:
    """What is known of the alerts that a rule waits for."""

    firing: tuple[datetime, ...] = ()
    """When each episode that lasts was first heard of, by our clock, oldest first."""
    said_at: datetime | None = None
    """When it was last heard of one that does not fire any more; None if none ever did, as far as we were told."""
    reason: str = ""
    """Why nothing is known; empty if something is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Something wrong with what feeds a model, not with the model: its window is held, and the owner is told.

    The same fault in many models is one incident, so whatever models share (`kind`, `source`, `subject`) must be equal among them.
    """

    kind: str
    """What happened, such as `nulls_jumped` or `label_feed_stalled`."""
    source: str
    """Where the rows come from: a path, a table, or the model's own log."""
    subject: str
    """What it happened to: a column, or an empty string for the whole table."""
    sentence: str
    """With numbers."""
    since: datetime
    """From when on rows are affected."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean difference of losses, challenger less champion (more is worse), with bounds that hold at every time of looking."""

    value: float
    low: float
    high: float
    outcomes: int
    """Pairs of answers, or blocks of them, that it is the mean of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Challenger against champion on live labelled rows, valid at any time of looking.

    `state`: `worse` (than by the margin, at level alpha), `no_worse` (shown at the same level) or `undecided`.
    """

    state: Literal["worse", "no_worse", "undecided"]
    challenger_rows: int
    champion_rows: int
    challenger_score: float | None
    champion_score: float | None
    sentence: str
    observed_at: datetime
    estimated_challenger: float | None = None
    """Mean loss to be expected of the challenger's answers, by its own confidences, before labels are in; None if unknown."""
    estimated_champion: float | None = None
    """The same of the champion, on the same traffic."""
    difference: Estimate | None = None
    """Over the whole rollout; None while nothing can be compared."""
    realised: Estimate | None = None
    """The same since the promotion alone, against the version before on its holdback; None before it, or without one."""

    @property
    def expected_difference(self) -> float | None:
        """Of the mean losses (more is worse), challenger less champion, as their confidences let expect; None if unknown."""
        if self.estimated_challenger is None or self.estimated_champion is None:
            return None
        return self.estimated_challenger - self.estimated_champion
