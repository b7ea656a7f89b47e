"""When labels come in, and whether they do: how late, for how many of the rows, and whether the feed has stalled. Pure, but for reading.

A feed is judged by what it owes. With F the distribution of lags, c the share of predictions that get a label at all, and a_i the times
at which predictions were made, L(t) = c sum_i F(t - a_i) labels should have come by t; N(t) have. Their difference D = L - N goes up and
down a little for ever: labels come in batches, people sleep. It keeps rising only if labels that are owed do not come. So no clock time
without labels is suspicious by itself: in a quiet night nothing is owed, and a nightly batch is used to being owed a whole day.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipelines.data.prediction_log import AnswerLog
from policies.durations import about
from policies.signals import Fault

Floats: TypeAlias = NDArray[np.float64]

LAG_QUANTILE = 0.99
"""Share of labels that must have arrived before a row's window counts as matured, where the policy gives no delay."""
LOOKBACKS = (5, 30)
"""How many windows of predictions are searched for the rows of the labels that arrived in the last one; more if too few are found."""
MATCHED_SHARE = 0.98
"""Of these labels the rows must be found before the lags are believed: those that are not found have the longest lags."""
RHYTHM = timedelta(days=15)
"""Labels of so long show the silences that are usual, weekends among them."""

STALL_LABELS = 20.0
"""Labels that are missing, at least, before a feed is called stalled."""
STALL_SWING = 2.0
"""Times the largest swing of the deficit when all was well."""
STALL_DEVIATIONS = 5.0
"""Times the standard deviation of what is owed, if each label came or not by itself (Poisson)."""
STALL_SHARE = 0.5
"""With more than this share of what is owed, the feed has thinned, not stalled."""
STALL_SILENCE = 1.5
"""Times the longest silence in the rhythm before: so long a deficit must last."""
_KNOWN_LABELS = 50
"""Fewer do not show how a feed behaves."""
_STEPS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelFeed:
    """Live predictions of any version and the arrivals of their labels, in seconds since 1970."""

    now: float
    since: float
    """Predictions from then on are here."""
    window_s: float
    """Lags and coverage are measured over so long."""
    asked: Floats
    """(n,) when each row was predicted, ascending, one a row."""
    arrived: Floats
    """(n,) when its label came; NaN if it has not. Before it was predicted, where a client was late to ask."""
    arrivals: Floats
    """(m,) ascending: when labels came during `RHYTHM` or longer, whether their rows are here or not."""

    def lags_s(self) -> Floats:
        """Of the labels that arrived within the newest window, else of all. By arrival, not by prediction: of the newest predictions
        only the quick labels are in, of the newest labels all are."""
        inside = self.arrived > self.now - self.window_s
        chosen = inside if inside.any() else np.isfinite(self.arrived)
        return np.maximum(self.arrived[chosen] - self.asked[chosen], 0.0)

    def lag_s(self) -> float | None:
        """The lag that 99 % of labels keep, an observed one; None if no label is known."""
        lags = self.lags_s()
        return float(np.quantile(lags, LAG_QUANTILE, method="higher")) if len(lags) else None

    def coverage(self, delay_s: float) -> tuple[float | None, int]:
        """Share of the rows of (now - delay - window, now - delay] with a label, and how many rows these are; None of none."""
        end = self.now - delay_s
        rows = (self.asked > end - self.window_s) & (self.asked <= end)
        count = int(np.count_nonzero(rows))
        return (float(np.isfinite(self.arrived[rows]).mean()) if count else None), count


@runtime_checkable
class KnowsItsFeed(Protocol):
    """A log that need not be read to tell how labels come in: a recorded stream."""

    def feed(self, now: datetime, window: timedelta) -> LabelFeed:
        """As `read_feed` would."""


def read_feed(log: AnswerLog, now: datetime, window: timedelta, problems: list[str]) -> LabelFeed:
    """What the log holds of the feed: further back where labels come later than a few windows, or have not come for long."""
    longest = LOOKBACKS[-1] * window
    labels = log.labels(since=now - max(RHYTHM, LOOKBACKS[0] * window), until=now, problems=problems)
    if not len(labels):
        labels = log.labels(since=now - max(RHYTHM, longest), until=now, problems=problems)
    last = labels["at"].max().to_pydatetime() if len(labels) else now
    newest = labels[labels["at"] > last - window]
    for lookback in LOOKBACKS:
        since = max(min(now, last) - lookback * window, now - longest)
        asked = log.predictions(since=since, until=now, role="live", features=False, problems=problems)
        asked = asked[["id", "at"]].drop_duplicates("id", keep="last")
        if len(newest[["id"]].merge(asked[["id"]], on="id")) >= MATCHED_SHARE * len(newest):
            break
    if since < now - RHYTHM:
        labels = log.labels(since=since, until=now, problems=problems)
    joined = asked.merge(labels[["id", "at"]], on="id", how="left", suffixes=("", "_label")).sort_values("at")
    return LabelFeed(
        now=now.timestamp(),
        since=since.timestamp(),
        window_s=window.total_seconds(),
        asked=_seconds(joined["at"]),
        arrived=_seconds(joined["at_label"]),
        arrivals=np.sort(_seconds(labels["at"])),
    )


def _seconds(moments: object) -> Floats:
    """Seconds since 1970 of a column of UTC times; NaN where there is none."""
    import pandas as pd

    column = pd.to_datetime(pd.Series(moments), utc=True)
    micros = column.dt.as_unit("us").astype("int64").to_numpy(dtype="float64")
    return np.asarray(np.where(column.isna().to_numpy(), np.nan, micros / 1e6))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Owed:
    """What a feed owed and delivered at moments of equal distance, the newest one now."""

    at: Floats
    owed: Floats
    come: Floats

    @property
    def deficit(self) -> Floats:
        return self.owed - self.come


def stalled_label_feed(feed: LabelFeed, subject: str) -> Fault | None:
    """The fault, if labels used to come and are now owed in numbers that never were; `subject` is the label's column.

    Calibrated on the time before the newest window and before the last arrival, so that a stall does not become the standard by which
    it is judged. All of these must hold of a stretch of time until now: at most STALL_SHARE of what was owed came; the deficit rose by
    STALL_LABELS, by STALL_SWING times its largest swing before, and by STALL_DEVIATIONS standard deviations; and it lasts STALL_SILENCE
    times the longest silence before. Unknown (too few labels, lags longer than the log shows) is no fault.
    """
    last = feed.arrivals[-1] if len(feed.arrivals) else np.nan
    end = min(feed.now - feed.window_s, last)
    # What was known already when it was predicted owed nothing: a client that catches up would look like a stall.
    late = feed.arrived < feed.asked
    owed = _owed(replace(feed, asked=feed.asked[~late], arrived=feed.arrived[~late]), end)
    if owed is None:
        return None
    # The stretch until now that falls shortest of the share: where a cumulative sum (Page 1954) of the shortfall would have begun.
    start = int(np.argmin(STALL_SHARE * owed.owed - owed.come))
    due = float(owed.owed[-1] - owed.owed[start])
    came = int(owed.come[-1] - owed.come[start])
    # The swings of the time before that stretch, unless it began too early to know any.
    before = owed.deficit[: start + 1] if start >= _STEPS // 5 else owed.deficit[owed.at <= end]
    swing = float((before - np.minimum.accumulate(before)).max())
    lasts = owed.at[-1] - owed.at[start]
    if due - came < max(STALL_LABELS, STALL_SWING * swing, STALL_DEVIATIONS * np.sqrt(due)) or came > STALL_SHARE * due:
        return None
    if lasts < STALL_SILENCE * _longest_silence(feed, float(owed.at[start])):
        return None
    sentence = (
        f"{came:,} labels came in the last {about(timedelta(seconds=float(lasts)))}, where about {due:,.0f} were due by how they used to"
        f" come; the last one came {about(timedelta(seconds=float(feed.now - last)))} ago"
    )
    since = datetime.fromtimestamp(float(owed.at[start]), UTC)
    return Fault(kind="label_feed_stalled", source="label feed", subject=subject, sentence=sentence, since=since)


def _owed(feed: LabelFeed, end: float) -> _Owed | None:
    """By the lags and the share of labels until `end`; None if these are not known."""
    known = np.isfinite(feed.arrived) & (feed.arrived <= end)
    if np.count_nonzero(known) < _KNOWN_LABELS:
        return None
    lags = np.sort(np.maximum(feed.arrived[known] - feed.asked[known], 0.0))
    late = float(np.quantile(lags, LAG_QUANTILE, method="higher"))
    # From then on every row whose label may come is in the log that was read.
    begin = max(feed.since, float(feed.asked[0])) + late
    if end - begin < max(feed.window_s / 2, late / 2):
        return None
    # Of the labels that came before, only the quick ones have their rows here.
    fair = known & (feed.arrived > begin)
    if np.count_nonzero(fair) < _KNOWN_LABELS / 2:
        return None
    lags = np.sort(np.maximum(feed.arrived[fair] - feed.asked[fair], 0.0))
    at = np.linspace(begin, feed.now, _STEPS)
    come = np.searchsorted(np.sort(feed.arrived[np.isfinite(feed.arrived)]), at, side="right").astype(np.float64)
    owed = _due_by(at, feed.asked, lags)
    inside = at <= end
    promised = float(owed[inside][-1] - owed[0])
    came = float(come[inside][-1] - come[0])
    if promised <= 0:
        return None
    return _Owed(at=at, owed=(owed - owed[0]) * came / promised, come=come - come[0])


def _due_by(at: Floats, asked: Floats, lags: Floats) -> Floats:
    """sum_i F(t - asked_i) for each t of `at`, (m,); rows are counted in bins finer than the moments."""
    counts, edges = np.histogram(asked, bins=4 * _STEPS)
    middle = (edges[:-1] + edges[1:]) / 2
    ages = at[:, None] - middle[None, :]
    share = np.searchsorted(lags, ages.ravel(), side="right").reshape(ages.shape) / len(lags)
    return np.asarray(np.where(ages >= 0, share, 0.0) @ counts)


def _longest_silence(feed: LabelFeed, until: float) -> float:
    """Longest time between one label and the next, of the labels that came before `until`, seconds."""
    earlier = feed.arrivals[feed.arrivals <= until]
    return float(np.diff(earlier).max()) if len(earlier) > 1 else 0.0
