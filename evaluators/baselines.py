"""Predictions that need no model: the last label, the commonest class or average value, the label of a day or a week before. Pure.

A model that cannot beat these has learnt nothing of use, however good its score looks: on a stream that changes slowly, "the same as last
time" is often hard to beat (I. Žliobaitė et al., Evaluation methods and decision theory for classification of streaming data with temporal
dependence, Machine Learning 98 (2015) 455-482). Each knows only what was known when the row was asked: labels that had matured by then.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from policies.metrics import METRICS

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

LAST_LABEL, MAJORITY, SEASONAL_NAIVE = "last_label", "majority", "seasonal_naive"
NEVER = int(np.iinfo(np.int64).max)
"""When a label is known that never is."""
_HOUR_US = 3_600_000_000
PERIODS_US = {"day": 24 * _HOUR_US, "week": 7 * 24 * _HOUR_US}
"""Seasons that are tried."""
PERIODS_MIN = 3
"""A season counts as one only where the rows span this many."""
COVERED_MIN = 0.9
"""... and where this share of the judged rows has a row of the same phase."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """n rows with what was known of them when."""

    labels: Floats
    """(n,): class positions, or values for a regression; nan (or below 0, for a class) where there is none to go by."""
    time_us: Ints | None = None
    """(n,): when each row was asked, us since 1970; None if their order is all that is known."""
    known_us: Ints | None = None
    """(n,): when each label was known, NEVER if it was not; None if at once, before the next row was asked."""

    def then(self, later: Labelled) -> Labelled:
        """These rows and later ones. Without times on both sides, order is time."""
        timed = self.time_us is not None and later.time_us is not None
        return Labelled(
            labels=np.concatenate([self.labels, later.labels]),
            time_us=_joined(self.time_us, later.time_us) if timed else None,
            known_us=_joined(self.known_us, later.known_us) if timed else None,
        )


def _joined(first: Ints | None, second: Ints | None) -> Ints | None:
    return None if first is None or second is None else np.concatenate([first, second])


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """Its answers to n rows."""

    words: str
    """As people know it: `same as last label`."""
    decisions: Floats
    """By the score convention of `pipelines.scores`: 0 or 1, one-hot, or values."""
    chances: Floats | None = None
    """Of the classes, for metrics of scores: how often each class followed such an answer in the rows before. None for a regression."""
    medians: Floats | None = None
    """For `mae`, which the median serves best."""

    def answers(self, metric: str) -> Floats:
        """Those that fit the metric, (n,) or (n, k)."""
        if METRICS[metric].needs_scores and self.chances is not None:
            return self.chances
        return self.medians if metric == "mae" and self.medians is not None else self.decisions


# ---------------------------------------------------------------- what was known
def last_label(rows: Labelled) -> Floats:
    """For each row the label of the newest row whose label was known when it was asked, (n,); nan where there is none.

    >>> at = np.array([10, 20, 30, 40])
    >>> last_label(Labelled(labels=np.array([1.0, 0.0, 1.0, 1.0]), time_us=at, known_us=at + 15)).tolist()   # after 15
    [nan, nan, 1.0, 0.0]
    >>> last_label(Labelled(labels=np.array([1.0, 0.0, np.nan, 1.0]))).tolist()
    [nan, 1.0, 0.0, 0.0]
    """
    return _looked_up(rows, lag_us=0)


def same_phase(rows: Labelled, *, lag_us: int, tolerance_us: int) -> Floats:
    """For each row the label of the newest row that is older by `lag_us`, or by at most `tolerance_us` more, and was known by then, (n,).

    >>> at = np.array([0, 10, 101, 109])
    >>> same_phase(Labelled(labels=np.array([1.0, 0.0, 1.0, 1.0]), time_us=at), lag_us=100, tolerance_us=5).tolist()
    [nan, nan, 1.0, nan]
    """
    return _looked_up(rows, lag_us=lag_us, tolerance_us=tolerance_us)


def _looked_up(rows: Labelled, *, lag_us: int, tolerance_us: int | None = None) -> Floats:
    n = len(rows.labels)
    asked = np.arange(n, dtype=np.int64) if rows.time_us is None else rows.time_us
    usable = np.flatnonzero(np.isfinite(rows.labels))
    known = asked if rows.known_us is None else rows.known_us
    # Rows of one time know nothing of each other: a label is known after its row was asked, if only just.
    from_when = np.maximum(known[usable], asked[usable] + max(lag_us, 1))
    by_known = np.argsort(from_when, kind="stable")
    in_time = np.argsort(asked[usable], kind="stable")
    rank = np.empty(len(usable), dtype=np.int64)
    rank[in_time] = np.arange(len(usable))
    newest = np.maximum.accumulate(rank[by_known]) if len(usable) else rank
    seen = np.searchsorted(from_when[by_known], asked, side="right")
    found = np.full(n, np.nan)
    some = seen > 0
    source = usable[in_time[newest[seen[some] - 1]]]
    labels = rows.labels[source]
    if tolerance_us is not None:
        labels = np.where(asked[some] - lag_us - asked[source] <= tolerance_us, labels, np.nan)
    found[some] = labels
    return found


# ---------------------------------------------------------------- the three
def baselines(past: Labelled, judged: Labelled, classes: int | None) -> dict[str, Baseline]:
    """Those that can be had of these rows, by name. `past` are the rows before `judged`, oldest first; `classes`: how many, None for a
    regression. Without a past label there are none."""
    past, judged = _plain(past, classes), _plain(judged, classes)
    before = past.labels[np.isfinite(past.labels)]
    n = len(judged.labels)
    if not len(before) or not n:
        return {}
    rows = past.then(judged)
    found = {LAST_LABEL: _baseline("same as last label", last_label(rows), rows, n, classes)}
    if classes is None:
        found[MAJORITY] = Baseline(
            words="always the average",
            decisions=np.full(n, float(np.mean(before))),
            medians=np.full(n, float(np.median(before))),
        )
    else:
        commonest = float(np.argmax(np.bincount(before.astype(np.int64), minlength=classes)))
        found[MAJORITY] = _baseline(
            "always the commonest class", np.full(len(rows.labels), commonest), rows, n, classes
        )
    if (seasonal := _seasonal(rows, n, classes)) is not None:
        found[SEASONAL_NAIVE] = seasonal
    return found


def _plain(rows: Labelled, classes: int | None) -> Labelled:
    """Labels that are no class tell nothing."""
    if classes is None:
        return rows
    labels = np.where((rows.labels >= 0) & (rows.labels < classes), rows.labels, np.nan)
    return Labelled(labels=labels, time_us=rows.time_us, known_us=rows.known_us)


def _baseline(words: str, guesses: Floats, rows: Labelled, n: int, classes: int | None) -> Baseline:
    """Of `guesses` for all rows, the answers to the last n; what is not known is guessed from the average of the rows before."""
    truth, past_guesses, guesses = rows.labels[:-n], guesses[:-n], guesses[-n:]
    if classes is None:
        return Baseline(words=words, decisions=np.where(np.isfinite(guesses), guesses, np.nanmean(truth)))
    labelled = np.isfinite(truth)
    frequency = np.bincount(truth[labelled].astype(np.int64), minlength=classes) / labelled.sum()
    both = labelled & np.isfinite(past_guesses)
    pairs = past_guesses[both].astype(np.int64) * classes + truth[both].astype(np.int64)
    followed = np.bincount(pairs, minlength=classes * classes).reshape(classes, classes) + frequency[None, :]
    chances = np.vstack([followed / followed.sum(axis=1, keepdims=True), frequency[None, :]])
    code = np.where(np.isfinite(guesses), guesses, classes).astype(np.int64)
    decided = np.where(code < classes, code, np.argmax(frequency))
    if classes == 2:
        return Baseline(words=words, decisions=decided.astype(np.float64), chances=chances[code, 1])
    return Baseline(words=words, decisions=np.eye(classes)[decided], chances=chances[code])


def _seasonal(rows: Labelled, n: int, classes: int | None) -> Baseline | None:
    """Of the seasons that the rows support, the one that fitted the rows before best."""
    candidates = [
        (_misfit(guesses[:-n], rows.labels[:-n], classes), words, guesses)
        for words, guesses in _seasons(rows)
        if np.isfinite(guesses[-n:]).mean() >= COVERED_MIN
    ]
    if not candidates:
        return None
    _, words, guesses = min(candidates, key=lambda each: each[:2])
    return _baseline(words, np.where(np.isfinite(guesses), guesses, last_label(rows)), rows, n, classes)


def _seasons(rows: Labelled) -> Iterator[tuple[str, Floats]]:
    if rows.time_us is None:
        return
    moments = np.unique(rows.time_us)
    if len(moments) < 2:
        return
    gap = int(np.median(np.diff(moments)))
    delay = 0.0
    if rows.known_us is not None and (known := rows.known_us < NEVER).any():
        delay = float(np.median((rows.known_us - rows.time_us)[known]))
    for name, period in PERIODS_US.items():
        times = max(1, math.ceil(delay / period))  # labels that come late are those of an earlier season
        tolerance = max(_HOUR_US, gap)
        if moments[-1] - moments[0] >= PERIODS_MIN * times * period and tolerance <= period // 4:
            words = f"same as a {name} before" if times == 1 else f"same as {times} {name}s before"
            yield words, same_phase(rows, lag_us=times * period, tolerance_us=tolerance)


def _misfit(guesses: Floats, truth: Floats, classes: int | None) -> float:
    """Mean error of the guesses that there are; infinite if there are none."""
    known = np.isfinite(guesses) & np.isfinite(truth)
    if not known.any():
        return math.inf
    off = np.abs(guesses - truth)[known]
    return float(np.mean(off if classes is None else off > 0))
