"""The controller's own metrics, under `ratchet_controller_`, in the Prometheus text format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from controller.state import Event
from policies.signals import Signal, SignalKind

REGISTRY = CollectorRegistry()

RECONCILE_SECONDS = Histogram(
    "ratchet_controller_reconcile_seconds", "Time of one look at one model", registry=REGISTRY,
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30),
)  # fmt: skip
RECONCILE_ERRORS = Counter(
    "ratchet_controller_reconcile_errors_total", "Looks that ended in an error", ["kind"], registry=REGISTRY
)
SCHEDULER_EVENTS = Counter(
    "ratchet_controller_scheduler_events_total",
    "Scheduler events: missed, max_instances, error",
    ["kind"],
    registry=REGISTRY,
)
NOTICE_ATTEMPTS = Counter(
    "ratchet_controller_notice_attempts_total", "Deliveries of notices, by result", ["result"], registry=REGISTRY
)
NOTICES_WAITING = Gauge(
    "ratchet_controller_notices_waiting", "Notices that a channel has yet to be told, by its kind", ["channel"],
    registry=REGISTRY,
)  # fmt: skip
MODELS = Gauge("ratchet_controller_models", "Models under control", registry=REGISTRY)
OPEN_CYCLES = Gauge("ratchet_controller_open_cycles", "Open cycles", registry=REGISTRY)
INCIDENTS_OPEN = Gauge(
    "ratchet_controller_incidents_open", "Open incidents of data that feeds models", registry=REGISTRY
)
LEADER_EPOCH = Gauge("ratchet_controller_leader_epoch", "Fencing epoch, 0 when not leading", registry=REGISTRY)
EVENTS = Counter("ratchet_controller_events_total", "Recorded events, by kind", ["kind"], registry=REGISTRY)

METRIC_QUERIES = Counter(
    "ratchet_controller_metric_queries_total",
    "Queries to Prometheus, by result: ok, failed",
    ["result"],
    registry=REGISTRY,
)
METRIC_QUERY_SECONDS = Histogram(
    "ratchet_controller_metric_query_seconds", "Time of one query to Prometheus", registry=REGISTRY,
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30),
)  # fmt: skip
METRIC_SAMPLES = Gauge(
    "ratchet_controller_metric_samples", "Series in the newest answers of named metrics", registry=REGISTRY
)

LABEL_COVERAGE = Gauge(
    "ratchet_controller_label_coverage", "Share of the rows old enough that have a label", ["model"], registry=REGISTRY
)
LABEL_LAG = Gauge(
    "ratchet_controller_label_lag_seconds", "Within this 99 % of labels come", ["model"], registry=REGISTRY
)


def show_labels(model: str, signals: Mapping[str, Signal]) -> None:
    """What was last measured of how labels come in. What is unknown, or of a model that is gone, has no sample: 0 would be a lie."""
    for gauge, kind in ((LABEL_COVERAGE, SignalKind.LABEL_COVERAGE), (LABEL_LAG, SignalKind.LABEL_LAG)):
        signal = signals.get(kind.value)
        if signal is not None and signal.value is not None:
            gauge.labels(model).set(signal.value)
        else:
            gauge.remove_by_labels({"model": model})


def count_events(events: Iterable[Event]) -> None:
    """Count what was just recorded."""
    for event in events:
        EVENTS.labels(event.kind).inc()
