"""What a replica counts, in Prometheus' format, added up over its workers.

With `PROMETHEUS_MULTIPROC_DIR` set before this is imported, every worker counts in a file of its own there and any of them answers for
all; a worker that died keeps its share, so counters never fall.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Literal

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

CONTENT_TYPE = CONTENT_TYPE_LATEST
_BUCKETS_S = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1, 2, 5, 10)
_BATCH_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)


class Metrics:
    """The counters of one version of one model."""

    def __init__(self, model: str, version: int) -> None:
        self._registry = registry = CollectorRegistry()
        self._own = {"model": model, "version": str(version)}
        names = ("model", "version")
        self._predictions = Counter("ratchet_predictions", "Rows answered.", (*names, "role"), registry=registry)
        self._feedback = Counter(
            "ratchet_feedback",
            "Labels whose prediction is remembered, by class: a confusion matrix.",
            (*names, "predicted", "actual"),
            registry=registry,
        )
        self._unmatched = Counter(
            "ratchet_feedback_unmatched",
            "Labels accepted whose prediction this replica does not remember.",
            names,
            registry=registry,
        )
        self._unlogged = Counter(
            "ratchet_log_failures", "Rows that could not be put on record.", (*names, "kind"), registry=registry
        )
        self._requests = Counter(
            "ratchet_requests",
            "Requests answered, by route and status.",
            (*names, "route", "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            "ratchet_request_seconds",
            "Seconds from the whole request read to the answer made.",
            (*names, "route"),
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self._batch = Histogram(
            "ratchet_batch_rows", "Rows in one call of the model.", names, buckets=_BATCH_ROWS, registry=registry
        )
        self._live = self._predictions.labels(**self._own, role="live")
        self._shadow = self._predictions.labels(**self._own, role="shadow")
        self._rows = self._batch.labels(**self._own)
        self._routes: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        for kind in ("prediction", "label"):
            self._unlogged.labels(**self._own, kind=kind)
        self._unmatched.labels(**self._own)

    def predicted(self, role: Literal["live", "shadow"], rows: int) -> None:
        """Count rows answered."""
        (self._live if role == "live" else self._shadow).inc(rows)

    def batched(self, rows: int) -> None:
        """Count one call of the model."""
        self._rows.observe(rows)

    def matched(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Count labels whose prediction is remembered: (predicted, actual) class names, of a bounded set."""
        for predicted, actual in pairs:
            self._feedback.labels(**self._own, predicted=predicted, actual=actual).inc()

    def unmatched(self, count: int) -> None:
        """Count labels whose prediction is not remembered."""
        self._unmatched.labels(**self._own).inc(count)

    def unlogged(self, kind: Literal["prediction", "label"], rows: int) -> None:
        """Count rows that could not be put on record."""
        self._unlogged.labels(**self._own, kind=kind).inc(rows)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one request. `route` and `status` come from bounded sets."""
        children = self._routes.get((route, status))
        if children is None:
            children = (
                self._requests.labels(**self._own, route=route, status=str(status)),
                self._seconds.labels(**self._own, route=route),
            )
            self._routes[route, status] = children
        children[0].inc()
        children[1].observe(seconds)

    def render(self) -> bytes:
        """The exposition, of all workers when they share a folder."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
