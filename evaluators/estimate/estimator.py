"""What is kept with a version so that its live answers can be scored before their labels are in: a small JSON file.

It is fitted by the judging job on the hold-out: matured rows that the version was not trained on. It lies in the version's image beside
the model, so that it is found wherever the model is, and goes when the model goes. Versions from before have none: their performance
is not estimated, and the reason says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from evaluators.estimate.calibration import Calibrator, fit_calibrator
from evaluators.estimate.cbpe import expected_score
from evaluators.estimate.losses import LossModel, fit_losses
from pipelines.data.features import Feature
from pipelines.jobs.files import read_json, write_json_atomic
from policies.metrics import METRICS, Task

if TYPE_CHECKING:
    import pandas as pd

Floats: TypeAlias = NDArray[np.float64]

FILE = "estimator.json"
FORMAT = 1
MIN_ROWS = 200
"""Fewer rows calibrate nothing; a tenth of them must show whether calibrating helps."""


class EstimateError(Exception):
    """Performance cannot be estimated; the message is one sentence that says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimator:
    """Expected scores of one version's answers."""

    task: Task
    rows: int
    """Matured rows that it was fitted on."""
    calibrators: tuple[Calibrator, ...] = ()
    """One a class; in binary tasks one alone, for the positive one."""
    losses: LossModel | None = None
    """Of a regression."""

    def expected(
        self, metric: str, scores: Floats, *, threshold: float = 0.5, features: pd.DataFrame | None = None
    ) -> float:
        """The metric's expected value over n answers: (n,) or (n, k) by the score convention of `pipelines.scores`.

        `features`: the n rows themselves, which a regression needs. Raises EstimateError if the metric cannot be estimated, or if the
        answers or features are not such as it was fitted on.
        """
        if self.task not in METRICS[metric].tasks:
            raise EstimateError(f"{metric} is no metric of a {self.task.value} task")
        if self.task is Task.REGRESSION:
            value = self._expected_error(metric, scores, features)
        else:
            value = expected_score(metric, scores, self.calibrated(scores), threshold=threshold)
        if not np.isfinite(value):
            raise EstimateError(f"{metric} is not defined on what is expected of {len(scores):,} answers")
        return value

    def calibrated(self, scores: Floats) -> Floats:
        """Probabilities of the same shape. Multiclass ones are scaled to sum to 1, and are equal where all are 0.

        Raises EstimateError if the answers have another number of classes.
        """
        if scores.ndim == 1:
            scores = scores[:, None]
        if scores.shape[1] != len(self.calibrators):
            raise EstimateError(f"it was calibrated for {len(self.calibrators)} scores a row, not {scores.shape[1]}")
        columns = [calibrate(scores[:, i]) for i, calibrate in enumerate(self.calibrators)]
        if len(columns) == 1:
            return columns[0]
        together = np.stack(columns, axis=1)
        total = together.sum(axis=1, keepdims=True)
        uniform = np.full_like(together, 1 / len(columns))
        return np.asarray(np.divide(together, total, out=uniform, where=total > 0))

    def _expected_error(self, metric: str, answers: Floats, features: pd.DataFrame | None) -> float:
        if metric == "r2":
            raise EstimateError("r2 cannot be estimated: how much the labels vary is not known before they are in")
        assert self.losses is not None
        assert features is not None, "a regression is estimated from its features"
        try:
            absolute, squared = self.losses(answers, features).mean(axis=0)
        except (KeyError, ValueError) as error:
            raise EstimateError(f"the logged features are not those that it was fitted on: {error}") from error
        return float(absolute) if metric == "mae" else float(np.sqrt(squared))

    def write(self, path: Path) -> None:
        """The same bytes for the same estimator. Raises OSError."""
        content: dict[str, Any] = {"format": FORMAT, "task": self.task.value, "rows": self.rows}
        content["calibrators"] = [calibrator.as_json() for calibrator in self.calibrators]
        content["losses"] = None if self.losses is None else self.losses.as_json()
        write_json_atomic(path, content)

    @classmethod
    def read(cls, model_dir: Path) -> Self:
        """The estimator that was packaged with a model. Raises EstimateError if there is none, or none of the known format."""
        path = model_dir / FILE
        try:
            content = read_json(path)
        except (OSError, ValueError) as error:
            raise EstimateError(f"{path} cannot be read: {error}") from error
        if content is None:
            raise EstimateError("the version was packaged without an estimator; the next one will have one")
        try:
            return cls._from_json(content)
        except (KeyError, TypeError, ValueError) as error:
            raise EstimateError(f"{path} does not describe an estimator: {type(error).__name__}: {error}") from error

    @classmethod
    def _from_json(cls, content: Mapping[str, Any]) -> Self:
        if content["format"] != FORMAT:
            raise ValueError(f"format must be {FORMAT} but is {content['format']!r}")
        losses = content["losses"]
        estimator = cls(
            task=Task(content["task"]),
            rows=int(content["rows"]),
            calibrators=tuple(Calibrator.from_json(item) for item in content["calibrators"]),
            losses=None if losses is None else LossModel.from_json(losses),
        )
        if (estimator.task is Task.REGRESSION) != (losses is not None):
            raise ValueError("a regression, and nothing else, has a loss model")
        return estimator


def fit_estimator(
    task: Task,
    labels: Floats,
    scores: Floats,
    *,
    frame: pd.DataFrame | None = None,
    features: Sequence[Feature] = (),
) -> Estimator:
    """From n matured rows that the model was not trained on.

    `labels` (n,): positions of the classes (below 0: none of them), or values; `scores` (n,) or (n, k) as the model gave them; for a
    regression `frame` holds the features. Raises EstimateError if there are too few rows, or one class only, or strange features.
    """
    if len(labels) < MIN_ROWS:
        raise EstimateError(
            f"performance is estimated from {MIN_ROWS} matured rows or more, and there are {len(labels):,}"
        )
    if task is Task.REGRESSION:
        assert frame is not None
        try:
            return Estimator(task=task, rows=len(labels), losses=fit_losses(scores, labels, frame, features))
        except (KeyError, ValueError) as error:
            raise EstimateError(f"the features of the hold-out rows cannot be used: {error}") from error
    if len(np.unique(labels)) < 2:
        raise EstimateError("the matured rows are of one class only, so confidences cannot be calibrated")
    if task is Task.BINARY:
        return Estimator(task=task, rows=len(labels), calibrators=(fit_calibrator(scores, labels == 1),))
    calibrators = tuple(fit_calibrator(scores[:, k], labels == k) for k in range(scores.shape[1]))
    return Estimator(task=task, rows=len(labels), calibrators=calibrators)
