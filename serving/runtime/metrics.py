"""What a replica counts, in Prometheus' format, added up over its workers.

The numbers stand in anonymous memory that the workers share, one row a worker: whichever of them is asked answers for all, a worker's
successor counts on in its row, so that counters never fall, and no disk is involved, which may be full. (prometheus_client's own way to
add up processes keeps files, and a process that touches their memory on a full disk is killed.) Every series is therefore declared
before the fork, from bounded sets.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TypeAlias

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST
OTHER = "other"
"""The class of a label that is none of the model's, and of all classes beyond `CLASSES_COUNTED_MAX`."""
CLASSES_COUNTED_MAX = 64
Kind: TypeAlias = Literal["prediction", "label"]
Role: TypeAlias = Literal["live", "shadow"]
Route: TypeAlias = Literal["predict", "infer", "feedback"]
_ROUTES: tuple[Route, ...] = ("predict", "infer", "feedback")
_STATUSES = ("200", "400", "413", "500", "503", "504", "507", OTHER)
_SECONDS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
_ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0)
_Key: TypeAlias = tuple[str, ...]
"""Name of a metric and the values of its labels beside model and version."""


_CONFUSION = ("true_positive", "false_positive", "true_negative", "false_negative")


def _outcome(classes: Sequence[str], predicted: str, actual: str) -> str:
    """
    >>> _outcome(("no", "yes"), "yes", "no"), _outcome(("no", "yes"), "no", "other"), _outcome(("a", "b", "c"), "b", "b")
    ('false_positive', 'false_negative', 'correct')
    """
    right = predicted == actual and predicted != OTHER
    if len(classes) != 2:
        return "correct" if right else "incorrect"
    return f"{'true' if right else 'false'}_{'positive' if predicted == classes[1] else 'negative'}"


class Metrics(Collector):
    """The counters of one version of one model. Create before forking; then each worker calls `use_row` with its own number.

    Each method must be called from one thread at a time; methods of different names may be called at once.
    """

    def __init__(self, model: str, version: int, classes: Sequence[str], workers: int = 1) -> None:
        self._own = (model, str(version))
        self._classes = frozenset(classes[:CLASSES_COUNTED_MAX])
        self._names = tuple(classes)
        names = [*classes[:CLASSES_COUNTED_MAX], OTHER] if classes else []
        counters: list[_Key] = [("predictions", role) for role in ("live", "shadow")]
        counters += [("feedback", predicted, actual) for predicted in names for actual in names]
        counters += [("unmatched",), ("unlogged", "prediction"), ("unlogged", "label")]
        counters += [("requests", route, status) for route in _ROUTES for status in _STATUSES]
        self._slots = {key: slot for slot, key in enumerate(counters)}
        self._width = len(counters)
        for key, bounds in [*((("seconds", route), _SECONDS) for route in _ROUTES), (("batch",), _ROWS)]:
            self._slots[key] = self._width
            self._width += len(bounds) + 2  # one a bound, those above all bounds, and the sum
        self._numbers = memoryview(mmap.mmap(-1, max(1, workers) * self._width * 8)).cast("d")
        self._row = 0

    def use_row(self, worker: int) -> None:
        """Count in the row of this worker, a number from 0 on."""
        self._row = worker * self._width

    def predicted(self, role: Role, rows: int) -> None:
        """Count rows answered."""
        self._add(("predictions", role), rows)

    def matched(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Count labels whose prediction is remembered, by (predicted, actual) class."""
        for pair in pairs:
            predicted, actual = (name if name in self._classes else OTHER for name in pair)
            self._add(("feedback", predicted, actual), 1)

    def unmatched(self, count: int) -> None:
        """Count labels whose prediction is not remembered."""
        self._add(("unmatched",), count)

    def unlogged(self, kind: Kind, rows: int) -> None:
        """Count rows that could not be put on record."""
        self._add(("unlogged", kind), rows)

    def batched(self, rows: int) -> None:
        """Count one call of the model."""
        self._observe(("batch",), _ROWS, rows)

    def answered(self, route: Route, status: int, seconds: float) -> None:
        """Count one request and how long it took."""
        text = str(status)
        self._add(("requests", route, text if text in _STATUSES else OTHER), 1)
        self._observe(("seconds", route), _SECONDS, seconds)

    def render(self) -> bytes:
        """The exposition, of all workers together."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """All metrics, as prometheus_client asks for them."""
        yield self._counter("ratchet_predictions", "Rows answered.", "predictions", ("role",))
        yield self._counter(
            "ratchet_feedback",
            "Labels by predicted and actual class.",
            "feedback",
            ("predicted", "actual"),
            zeros=False,
        )
        if self._names:
            yield self._confusion()
        yield self._counter(
            "ratchet_feedback_unmatched", "Labels whose prediction this replica does not remember.", "unmatched", ()
        )
        yield self._counter("ratchet_log_failures", "Rows that could not be put on record.", "unlogged", ("kind",))
        yield self._counter("ratchet_requests", "Requests answered.", "requests", ("route", "status"), zeros=False)
        yield self._histogram(
            "ratchet_request_seconds", "Seconds from request to answer.", "seconds", ("route",), _SECONDS
        )
        yield self._histogram("ratchet_batch_rows", "Rows in one call of the model.", "batch", (), _ROWS)

    def _add(self, key: _Key, amount: float) -> None:
        self._numbers[self._row + self._slots[key]] += amount

    def _observe(self, key: _Key, bounds: Sequence[float], value: float) -> None:
        base = self._row + self._slots[key]
        self._numbers[base + bisect_left(bounds, value)] += 1
        self._numbers[base + len(bounds) + 1] += value

    def _total(self, slot: int) -> float:
        return float(sum(self._numbers[slot :: self._width]))

    def _series(self, name: str) -> Iterator[tuple[list[str], int]]:
        """Label values and slot of each series of a metric."""
        for key, slot in self._slots.items():
            if key[0] == name:
                yield [*self._own, *key[1:]], slot

    def _counter(self, name: str, text: str, key: str, labels: tuple[str, ...], *, zeros: bool = True) -> Metric:
        family = CounterMetricFamily(name, text, labels=("model", "version", *labels))
        for values, slot in self._series(key):
            total = self._total(slot)
            if zeros or total:
                family.add_metric(values, total)
        return family

    def _confusion(self) -> Metric:
        """What labels make of answers, in words that are the same for every model, so that one query asks all of them.

        Of two classes the second is the positive one; of more an answer is correct or not. Zeros are there from the start, as what begins
        at its first event has no increase."""
        counts = dict.fromkeys(_CONFUSION if len(self._names) == 2 else ("correct", "incorrect"), 0.0)
        for (_, _, predicted, actual), slot in self._series("feedback"):
            total = self._total(slot)
            if total:
                counts[_outcome(self._names, predicted, actual)] += total
        family = CounterMetricFamily(
            "ratchet_confusion", "Labels by what they make of the answer.", labels=("model", "version", "outcome")
        )
        for outcome, total in counts.items():
            family.add_metric([*self._own, outcome], total)
        return family

    def _histogram(self, name: str, text: str, key: str, labels: tuple[str, ...], bounds: Sequence[float]) -> Metric:
        family = HistogramMetricFamily(name, text, labels=("model", "version", *labels))
        for values, base in self._series(key):
            buckets, seen = [], 0.0
            for i, bound in enumerate([*map(str, bounds), "+Inf"]):
                seen += self._total(base + i)
                buckets.append((bound, seen))
            family.add_metric(values, buckets=buckets, sum_value=self._total(base + len(bounds) + 1))
        return family
