"""How good is the champion on what it was really asked, and how many new labels are there? Read from the prediction log."""

from __future__ import annotations

from datetime import timedelta

import numpy as np

from evaluators.scene import Query, Scene, StrangeScoresError, known_labels, logged_scores
from evaluators.scored import Scored, why_undefined
from evaluators.wording import count
from pipelines.data.prediction_log import read_labelled
from policies.signals import Signal

_INSTANT = timedelta(microseconds=1)


def performance(query: Query, scene: Scene) -> Signal:
    """Score of the champion's live answers of the newest window whose labels have had time to come.

    With W the query's window and L the label delay, the window is (now - L - W, now - L] by the time of the prediction. Unknown if the
    delay is, if fewer than `min_rows` of its rows are labelled, or if the metric is not defined on them.
    """
    assert query.metric is not None
    assert query.window is not None
    delay = scene.label_delay
    if delay is None:
        return Signal.unknown("no label has arrived yet, so nothing has matured", observed_at=scene.now)
    end = scene.now - delay
    frame = read_labelled(
        scene.log,
        since=end - query.window + _INSTANT,
        until=end + _INSTANT,
        labels_until=scene.now + _INSTANT,
        role="live",
        versions=[scene.champion],
        features=False,
        problems=scene.problems,
    )
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
    scored = Scored(
        task=scene.spec.task,
        labels=codes[usable],
        classes=None if scene.folder.classes is None else len(scene.folder.classes),
        threshold=scene.spec.objective.threshold,
        challenger=answers,
    )
    value = scored.score(query.metric, answers)
    if not np.isfinite(value):
        reason = f"{query.metric} is not defined: {why_undefined(scored, answers)}"
        return Signal.unknown(reason, observed_at=scene.now, rows=rows)
    return Signal.of(value, observed_at=scene.now, rows=rows, window_end=end)


def volume(scene: Scene) -> Signal:
    """Number of live rows, of any version, newer than the champion's newest training row and with a matured label."""
    if scene.trained_to is None:
        reason = f"v{scene.champion} does not say up to when its training rows go (data.time is not set)"
        return Signal.unknown(reason, observed_at=scene.now)
    delay = scene.label_delay or timedelta(0)
    frame = read_labelled(
        scene.log,
        since=scene.trained_to + _INSTANT,
        until=scene.now - delay + _INSTANT,
        labels_until=scene.now + _INSTANT,
        role="live",
        features=False,
        problems=scene.problems,
    )
    rows = int(frame["id"].nunique())
    return Signal.of(float(rows), observed_at=scene.now, rows=rows, window_end=scene.now - delay)
