"""How good is the champion on what it was really asked, and how many new labels are there? Read from the prediction log."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from evaluators.change import mean_loss, onset, rise, row_losses, standard_error
from evaluators.scene import Query, Scene, StrangeScoresError, known_labels, logged_scores
from evaluators.scored import Floats, Scored, why_undefined
from evaluators.wording import count
from policies.signals import Signal

if TYPE_CHECKING:
    import pandas as pd

EARLIER = 4
"""Windows before the newest one that a score is also compared with."""
_INSTANT = timedelta(microseconds=1)
_NO_LABEL = "no label has arrived yet, so nothing has matured"


def performance(query: Query, scene: Scene) -> Signal:
    """Score of the champion's live answers of the newest window whose labels have had time to come.

    With W the query's window and L the label delay, the window is (now - L - W, now - L] by the time of the prediction. Unknown if the
    delay is, if fewer than `min_rows` of its rows are labelled, or if the metric is not defined on them.
    """
    assert query.metric is not None
    assert query.window is not None
    delay = scene.label_delay
    if delay is None:
        return Signal.unknown(_NO_LABEL, observed_at=scene.now)
    if scene.stalled is not None:
        # Of the rows that are old enough only those with quick labels would be scored.
        return Signal.unknown(f"the label feed has stalled: {scene.stalled.sentence}", observed_at=scene.now)
    end = scene.now - delay
    every_version = scene.log.labelled(
        since=end - (1 + EARLIER) * query.window + _INSTANT,
        until=end + _INSTANT,
        labels_until=scene.now + _INSTANT,
        role="live",
        features=False,
        problems=scene.problems,
    )
    inside = every_version["at"] > end - query.window
    own = every_version["version"] == scene.champion
    frame = every_version[own & inside]
    codes, usable = known_labels(frame["label"], scene.folder.classes, scene.spec.task)
    rows = int(np.count_nonzero(usable))
    if rows < max(query.min_rows, 1):
        reason = f"{count(rows, 'matured labelled row')} of v{scene.champion} in the window, {max(query.min_rows, 1):,} needed"
        return Signal.unknown(reason, observed_at=scene.now, rows=rows)
    try:
        answers = logged_scores(frame[usable], scene.folder.classes, scene.spec.task)
    except StrangeScoresError as error:
        return Signal.unknown(str(error), observed_at=scene.now, rows=rows)
    if bad := int(np.count_nonzero(~np.isfinite(answers).reshape(rows, -1).all(axis=1))):
        return Signal.unknown(
            f"{bad:,} of {count(rows)} were answered with NaN or infinity", observed_at=scene.now, rows=rows
        )
    scored = _scored(codes[usable], answers, scene)
    value = scored.score(query.metric, answers)
    if not np.isfinite(value):
        reason = f"{query.metric} is not defined: {why_undefined(scored, answers)}"
        return Signal.unknown(reason, observed_at=scene.now, rows=rows)
    signal = Signal.of(value, observed_at=scene.now, rows=rows, window_end=end)
    earlier, earlier_rows = _earlier(every_version[own & ~inside], query, scene)
    metric = query.metric
    return replace(
        signal,
        stderr=standard_error(lambda kept: scored.where(kept).score(metric, answers[kept]), rows),
        earlier=earlier,
        earlier_rows=earlier_rows,
        changed_at=_changed_at(every_version[inside], scene),
    )


def _earlier(frame: pd.DataFrame, query: Query, scene: Scene) -> tuple[float | None, int]:
    """The champion's score on its rows before the window, and their number; None where they are too few, or it is not defined."""
    codes, usable = known_labels(frame["label"], scene.folder.classes, scene.spec.task)
    rows = int(np.count_nonzero(usable))
    if rows < max(query.min_rows, 1) or query.metric is None:
        return None, rows
    try:
        answers = logged_scores(frame[usable], scene.folder.classes, scene.spec.task)
    except StrangeScoresError:
        return None, rows
    value = _scored(codes[usable], answers, scene).score(query.metric, answers)
    return (value if np.isfinite(value) else None), rows


def _scored(codes: Floats, answers: Floats, scene: Scene) -> Scored:
    return Scored(
        task=scene.spec.task,
        labels=codes,
        classes=None if scene.folder.classes is None else len(scene.folder.classes),
        threshold=scene.spec.objective.threshold,
        challenger=answers,
    )


def _changed_at(frame: pd.DataFrame, scene: Scene) -> datetime | None:
    """Since when losses are higher than before, by the rows of all versions: a champion may be younger than the change."""
    codes, usable = known_labels(frame["label"], scene.folder.classes, scene.spec.task)
    rows = frame[usable]
    before = mean_loss(scene.spec.task, scene.champion_scores)
    try:
        losses = row_losses(scene.spec.task, codes[usable], logged_scores(rows, scene.folder.classes, scene.spec.task))
        place = rise(losses) if before is None else onset(losses, before)
    except StrangeScoresError:  # a version that knew other classes: its losses cannot be told from here
        return None
    if place is None:
        return None
    moment: datetime = rows["at"].iloc[place].to_pydatetime()
    return moment


def volume(scene: Scene) -> Signal:
    """Number of live rows, of any version, newer than the champion's newest training row and with a matured label."""
    if scene.trained_to is None:
        reason = f"v{scene.champion} does not say up to when its training rows go (data.time is not set)"
        return Signal.unknown(reason, observed_at=scene.now)
    delay = scene.label_delay or timedelta(0)
    rows = scene.log.count_labelled(
        since=scene.trained_to + _INSTANT, until=scene.now - delay + _INSTANT, labels_until=scene.now + _INSTANT,
        problems=scene.problems,
    )  # fmt: skip
    return Signal.of(float(rows), observed_at=scene.now, rows=rows, window_end=scene.now - delay)


def label_coverage(query: Query, scene: Scene) -> Signal:
    """Share of the live rows of (now - delay - window, now - delay], of any version, that have a label."""
    delay = scene.label_delay
    if delay is None:
        return Signal.unknown(_NO_LABEL, observed_at=scene.now)
    share, rows = scene.feed.coverage(delay.total_seconds())
    if share is None or rows < query.min_rows:
        reason = f"{count(rows, 'row')} old enough to have a label, {max(query.min_rows, 1):,} needed"
        return Signal.unknown(reason, observed_at=scene.now, rows=rows)
    return Signal.of(share, observed_at=scene.now, rows=rows, window_end=scene.now - delay)


def label_lag(scene: Scene) -> Signal:
    """How long 99 % of labels take at the most, of those that arrived within the newest window, seconds."""
    lag_s = scene.feed.lag_s()
    if lag_s is None:
        return Signal.unknown("no label has arrived yet", observed_at=scene.now)
    return Signal.of(lag_s, observed_at=scene.now, rows=len(scene.feed.lags_s()), window_end=scene.now)
