"""The champion's score on what it answers now, before any label is in."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np

from evaluators.answers import Floats, ModelFolder
from evaluators.estimate.estimator import EstimateError, Estimator
from evaluators.scene import Query, Scene, StrangeScoresError, logged_scores
from evaluators.wording import count
from pipelines.data.prediction_log import feature_columns
from policies.metrics import Task
from policies.signals import Signal

if TYPE_CHECKING:
    import pandas as pd

_INSTANT = timedelta(microseconds=1)


def estimated_performance(query: Query, scene: Scene) -> Signal:
    """Expected score of the champion's live answers of (now - window, now]; by the objective's metric if the query names none.

    Unknown if there are fewer than `min_rows` of them, if the version has no estimator, if the metric cannot be estimated, or if an
    answer is NaN or infinite.
    """
    assert query.window is not None
    frame = scene.log.predictions(
        since=scene.now - query.window + _INSTANT,
        until=scene.now + _INSTANT,
        role="live",
        versions=[scene.champion],
        features=scene.spec.task is Task.REGRESSION,
        problems=scene.problems,
    ).drop_duplicates("id", keep="last")
    rows = len(frame)
    if rows < max(query.min_rows, 1):
        reason = f"{count(rows, 'prediction')} of v{scene.champion} in the window, {max(query.min_rows, 1):,} needed"
        return Signal.unknown(reason, observed_at=scene.now, rows=rows)
    try:
        estimator = Estimator.read(scene.folder.path)
        answers = _answers(frame, scene.folder, scene.spec.task)
        value = estimator.expected(
            query.metric or scene.spec.objective.metric,
            answers,
            threshold=scene.spec.objective.threshold,
            features=feature_columns(frame),
        )
    except (EstimateError, StrangeScoresError) as error:
        return Signal.unknown(str(error), observed_at=scene.now, rows=rows)
    return Signal.of(value, observed_at=scene.now, rows=rows, window_end=scene.now)


def _answers(frame: pd.DataFrame, folder: ModelFolder, task: Task) -> Floats:
    """Finite scores. Raises EstimateError, StrangeScoresError."""
    answers = logged_scores(frame, folder.classes, task)
    if bad := int(np.count_nonzero(~np.isfinite(answers).reshape(len(frame), -1).all(axis=1))):
        raise EstimateError(f"{bad:,} of {count(len(frame))} were answered with NaN or infinity")
    return answers


def expected_loss(frame: pd.DataFrame, folder: ModelFolder, task: Task) -> float:
    """Mean loss to be expected of logged rows of the version whose folder it is: Brier's score as
    `evaluators.sequential.classification_losses` counts it, in [0, 1]; of a regression the absolute error.

    Raises EstimateError, StrangeScoresError.
    """
    estimator = Estimator.read(folder.path)
    answers = _answers(frame, folder, task)
    if task is not Task.MULTICLASS:
        return estimator.expected(
            "mae" if task is Task.REGRESSION else "brier", answers, features=feature_columns(frame)
        )
    likely = estimator.calibrated(answers)
    return float(np.mean(np.square(answers).sum(axis=1) - 2 * (answers * likely).sum(axis=1) + 1.0) / 2)
