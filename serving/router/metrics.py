"""What the router tells Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class RouterMetrics:
    """The router's metrics on a registry of their own, so that two routers fit into one test process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "ratchet_router_requests_total",
            "Answers to clients, by the version that gave them (none: the router itself)",
            ("model", "version", "code"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "ratchet_router_request_seconds",
            "Time from the whole request read to the whole answer ready, retries included",
            ("model", "version"),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.shadow = Counter(
            "ratchet_router_shadow_total",
            "Mirrored requests by result: ok, error, timeout, dropped",
            ("model", "version", "result"),
            registry=self.registry,
        )

    def forget(self, model: str, version: str | None = None) -> None:
        """Drop the series of a version that is gone, or of a whole model, so that they do not grow for ever."""
        labels = {"model": model} if version is None else {"model": model, "version": version}
        for metric in (self.requests, self.seconds, self.shadow):
            metric.remove_by_labels(labels)
