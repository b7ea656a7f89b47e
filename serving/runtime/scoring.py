"""One call of the model for many requests: score, put on record, answer. Runs in the batcher's thread.

The order matters: rows are on record (`write(2)` has returned) before any answer that holds them can leave.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from serving.frame import Row
from serving.log import LogWriter, PredictionRow
from serving.model import Model, PredictionError, Scores
from serving.runtime.metrics import Metrics, Role
from serving.runtime.recent import RecentPredictions

logger = logging.getLogger("serving.scoring")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRequest:
    """The rows of one request, already coerced."""

    rows: list[Row]
    ids: list[str]
    role: Role
    key: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreAnswer:
    """Scores by the convention of `serving.model`, and what was decided."""

    scores: Scores
    labels: list[int] | None
    """Index into `classes` a row; None for regression."""
    logged: bool
    """Whether the rows are on record; False when the disk is full, which does not stop the champion from serving."""


class Scorer:
    """Scores batches with one model version."""

    def __init__(
        self,
        model: Model,
        version: int,
        *,
        log: LogWriter,
        recent: RecentPredictions,
        metrics: Metrics,
        now: Callable[[], float],
    ) -> None:
        self._model = model
        self._version = version
        self._log = log
        self._recent = recent
        self._metrics = metrics
        self._now = now
        self._log_failing = False

    def run(self, requests: Sequence[ScoreRequest]) -> list[ScoreAnswer | Exception]:
        """One outcome a request: a row that the model cannot score fails its own request only."""
        scored = self._scores(requests)
        answered = [
            (request, scores)
            for request, scores in zip(requests, scored, strict=True)
            if not isinstance(scores, Exception)
        ]
        logged = self._record(answered)
        outcomes: list[ScoreAnswer | Exception] = []
        for request, scores in zip(requests, scored, strict=True):
            if isinstance(scores, Exception):
                outcomes.append(scores)
                continue
            labels = self._model.labels(scores)
            if labels is not None and request.role == "live":
                for row_id, label in zip(request.ids, labels.tolist(), strict=True):
                    self._recent.remember(row_id, label)
            self._metrics.predicted(request.role, len(request.rows))
            outcomes.append(
                ScoreAnswer(scores=scores, labels=None if labels is None else labels.tolist(), logged=logged)
            )
        return outcomes

    def _scores(self, requests: Sequence[ScoreRequest]) -> list[Scores | Exception]:
        """Scores a request, in one call of the model; one call a request if the joint one fails."""
        rows = [row for request in requests for row in request.rows]
        self._metrics.batched(len(rows))
        try:
            scores = self._model.predict(self._model.schema.columns(rows))
        except PredictionError as error:
            if len(requests) == 1:
                return [error]
            return [self._scores([request])[0] for request in requests]
        bounds = np.cumsum([len(request.rows) for request in requests])[:-1]
        return [_finite(part) for part in np.split(scores, bounds)]

    def _record(self, answered: Sequence[tuple[ScoreRequest, Scores]]) -> bool:
        """Append the rows of all requests in one write. Whether they are on record."""
        at = self._now()
        names = self._model.schema.names
        records = []
        for request, scores in answered:
            for row_id, row, score in zip(request.ids, request.rows, scores.tolist(), strict=True):
                records.append(
                    PredictionRow(
                        id=row_id,
                        at=at,
                        version=self._version,
                        role=request.role,
                        key=request.key,
                        score=score if isinstance(score, list) else [score],
                        f=dict(zip(names, row, strict=True)),
                    )
                )
        if not records:
            return True
        try:
            self._log.append(records)
        except OSError as error:
            if not self._log_failing:
                logger.warning("log.failed: predictions go on, unrecorded, until it works again: %s", error)
            self._log_failing = True
            self._metrics.unlogged("prediction", len(records))
            return False
        self._log_failing = False
        return True


def _finite(scores: Scores) -> Scores | Exception:
    """The scores, or the error that names the first row whose score is no finite number."""
    if np.isfinite(scores).all():
        return scores
    row = int(np.flatnonzero(~np.isfinite(scores).reshape(len(scores), -1).all(axis=1))[0])
    return PredictionError(f"row {row}: the model gave {scores[row]}, which is not finite")
