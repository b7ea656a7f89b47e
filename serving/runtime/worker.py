"""One worker process' parts, put together: model, batcher, log, counters. No HTTP in here."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from serving.batching import Batcher, QueueFullError
from serving.clock import Clock
from serving.log import LogWriter, Rotation
from serving.manifest import ClassValue, Manifest
from serving.model import Model, PredictionError
from serving.runtime.feedback import Feedback, class_name
from serving.runtime.metrics import Metrics
from serving.runtime.recent import RecentPredictions
from serving.runtime.requests import RequestError, unavailable
from serving.runtime.scoring import ScoreAnswer, Scorer, ScoreRequest
from serving.runtime.settings import Settings

logger = logging.getLogger("serving.worker")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shared:
    """What all workers of a replica write to: memory that must exist before the fork."""

    recent: RecentPredictions
    metrics: Metrics

    @classmethod
    def of(cls, settings: Settings, manifest: Manifest) -> Shared:
        classes = [class_name(value) for value in manifest.classes or ()]
        metrics = Metrics(settings.name, settings.version, classes, settings.workers)
        return cls(recent=RecentPredictions(), metrics=metrics)


class Worker:
    """Answers score requests and takes labels for one model version."""

    def __init__(self, settings: Settings, model: Model, shared: Shared, clock: Clock) -> None:
        self.settings = settings
        self.model = model
        self.metrics = shared.metrics
        rotation = Rotation(rows=settings.rotate_rows, size_bytes=settings.rotate_bytes, age_s=settings.rotate_s)
        self._logs = {
            kind: LogWriter(settings.log_dir / kind, now=clock.now, rotation=rotation, fsync=settings.fsync)
            for kind in ("predictions", "labels")
        }
        scorer = Scorer(
            model,
            settings.version,
            log=self._logs["predictions"],
            recent=shared.recent,
            metrics=self.metrics,
            now=clock.now,
        )
        self._feedback = Feedback(
            model.manifest.classes, log=self._logs["labels"], recent=shared.recent, metrics=self.metrics, now=clock.now
        )
        self._batcher: Batcher[ScoreRequest, ScoreAnswer] = Batcher(
            scorer.run, rows_max=settings.batch_rows_max, waiting_rows_max=settings.waiting_rows_max
        )
        self._stopped = threading.Event()

    def start(self) -> None:
        """Start the threads. Call from the worker's event loop."""
        for log in self._logs.values():
            log.start()
        self._batcher.start()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def close(self) -> None:
        """Answer what waits, then turn the journals into segments."""
        self._stopped.set()
        self._batcher.close()
        for log in self._logs.values():
            log.close()

    def warm_up(self) -> None:
        """Let the model answer one row. Raises PredictionError."""
        self.model.predict(self.model.example)

    def ready(self) -> bool:
        """Whether a request sent now would be answered: the batcher lives and is not stuck in one call."""
        return self._batcher.alive() and self._batcher.busy_s() < self.settings.timeout_s

    async def score(self, request: ScoreRequest) -> ScoreAnswer:
        """Score, put on record, answer. Raises RequestError: 503 (too many wait, model stuck), 504 (time-out), 500 (it failed)."""
        if not self.ready():
            raise unavailable(f"the model has been at one call for over {self.settings.timeout_s:g} s; try again")
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                return await self._batcher.submit(request, len(request.rows))
        except QueueFullError as error:
            raise unavailable(f"{error}; try again") from None
        except TimeoutError:
            raise RequestError(504, f"the model did not answer within {self.settings.timeout_s:g} s") from None
        except PredictionError as error:
            raise RequestError(500, str(error)) from None

    async def take_labels(self, labels: Sequence[tuple[str, ClassValue]]) -> int:
        """Put labels on record. Raises RequestError 507 if they cannot be: an acknowledged label is never lost."""
        try:
            return await asyncio.to_thread(self._feedback.take, labels)
        except OSError as error:
            self.metrics.unlogged("label", len(labels))
            raise RequestError(
                507, f"the labels could not be put on record: {error.strerror}; send them again"
            ) from None

    def _watch(self) -> None:
        """End this process when the model hangs, so that the parent starts another; the journals keep what was answered."""
        while not self._stopped.wait(1.0):
            if self._batcher.busy_s() > self.settings.hang_s:
                logger.error("worker.hung: one call of the model has run for over %g s; ending", self.settings.hang_s)
                os._exit(70)
