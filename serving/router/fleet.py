"""What the router knows while it runs: routes, the replicas behind them, and what happened to requests.

All of it belongs to the event loop's thread; nothing here waits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from serving.router.table import Route

SUSPECT_S = 1.0
"""A replica that refused, died or timed out is asked only if no other is left, for so long."""
DEPARTED_KEPT_S = 600.0
"""Counts of a version that left the table stay visible for so long after its last request."""
_LATENCIES_KEPT = 512


class StaleRouteError(Exception):
    """The router already follows a route of a newer epoch or generation."""


@dataclass(slots=True, eq=False)
class Backend:
    """One replica."""

    version: str
    """Or BASELINE, for those of the champion that a canary is compared with."""
    url: str
    in_flight: int = 0
    suspect_until: float = 0.0


@dataclass(slots=True, eq=False)
class VersionStats:
    """Counts since the version (or the baseline) came into the table of this router process. Live ones count predictions only."""

    requests: int = 0
    errors: int = 0
    """Of the requests: answers 5xx, connections refused or lost, and time-outs, also where another version answered instead."""
    in_flight: int = 0
    shadow_requests: int = 0
    shadow_errors: int = 0
    shadow_dropped: int = 0
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES_KEPT))
    departed_at: float | None = None

    def to_json(self) -> dict[str, Any]:
        ordered = sorted(self.latencies_ms)
        return {
            "requests": self.requests,
            "errors": self.errors,
            "in_flight": self.in_flight,
            "shadow_requests": self.shadow_requests,
            "shadow_errors": self.shadow_errors,
            "shadow_dropped": self.shadow_dropped,
            "latency_ms_p95": round(ordered[int(0.95 * (len(ordered) - 1))], 3) if ordered else None,
        }


class ModelTraffic:
    """One model's route, and the replicas and counts that outlive a change of it."""

    def __init__(self, route: Route) -> None:
        self.route = route
        self.champion = route.champion
        self.stats: dict[str, VersionStats] = {}
        self._backends: dict[tuple[str, str], Backend] = {}
        self._turn = 0
        self.follow(route)

    def follow(self, route: Route, now: float | None = None) -> list[str]:
        """Take a new route. What it lacks stays known until its requests have finished; returns the versions forgotten now."""
        now = time.monotonic() if now is None else now
        self.route = route
        self.champion = route.champion
        listed = {(arm, url) for arm, urls in route.arms.items() for url in urls}
        self._backends = {
            **{key: backend for key, backend in self._backends.items() if key in listed or backend.in_flight},
            **{key: self._backends.get(key) or Backend(*key) for key in listed},
        }
        for version in route.arms:
            self.stats.setdefault(version, VersionStats()).departed_at = None
        forgotten = []
        for version, stats in list(self.stats.items()):
            if version in route.arms or stats.in_flight:
                continue
            stats.departed_at = now if stats.departed_at is None else stats.departed_at
            if now - stats.departed_at > DEPARTED_KEPT_S:
                del self.stats[version]
                forgotten.append(version)
        return forgotten

    def pick(self, preferred: str, tried: Collection[Backend], *, only: bool = False) -> Backend | None:
        """The least busy untried replica: of the preferred version, else the champion, else any version with weight.

        Suspect replicas come last, whatever their version. With `only`, no other version will do."""
        order = [preferred]
        if not only:
            order += sorted(self.route.weights, key=lambda v: -self.route.weights[v])
        for suspects_too in (False, True):
            for version in order:
                if backend := self._least_busy(version, tried, suspects_too):
                    return backend
        return None

    def _least_busy(self, version: str, tried: Collection[Backend], suspects_too: bool) -> Backend | None:
        urls = self.route.arms.get(version, ())
        self._turn += 1
        best: Backend | None = None
        for i in range(len(urls)):
            backend = self._backends[version, urls[(i + self._turn) % len(urls)]]
            usable = suspects_too or not backend.suspect_until or backend.suspect_until < time.monotonic()
            if usable and backend not in tried and (best is None or backend.in_flight < best.in_flight):
                best = backend
        return best

    @contextmanager
    def occupying(self, backend: Backend) -> Iterator[VersionStats]:
        """Count a request as in flight, live or shadow, while the block runs."""
        stats = self.stats.setdefault(backend.version, VersionStats())
        backend.in_flight += 1
        stats.in_flight += 1
        try:
            yield stats
        finally:
            backend.in_flight -= 1
            stats.in_flight -= 1

    def to_json(self) -> dict[str, Any]:
        """The table plus `stats` a version and `in_flight` a replica (departed ones included until 0)."""
        return {
            **self.route.to_json(),
            "stats": {version: stats.to_json() for version, stats in self.stats.items()},
            "in_flight": {b.url: b.in_flight for b in self._backends.values() if b.in_flight},
        }


class Fleet:
    """All models of this router."""

    def __init__(self) -> None:
        self.models: dict[str, ModelTraffic] = {}

    def apply(self, route: Route) -> list[str]:
        """Follow a route from now on; the versions that are forgotten. Raises StaleRouteError if it is older than what is followed."""
        known = self.models.get(route.model)
        if known is None:
            self.models[route.model] = ModelTraffic(route)
            return []
        if route.fence < known.route.fence:
            raise StaleRouteError(
                f"{route.model}: epoch/generation {route.epoch}/{route.generation} is older than "
                f"{known.route.epoch}/{known.route.generation}, which this router follows"
            )
        return known.follow(route)

    def remove(self, model: str, epoch: int) -> bool:
        """Forget a model; False if it was not known. Raises StaleRouteError if `epoch` is older than its route's."""
        known = self.models.get(model)
        if known is None:
            return False
        if epoch < known.route.epoch:
            raise StaleRouteError(
                f"{model}: epoch {epoch} is older than {known.route.epoch}, which this router follows"
            )
        del self.models[model]
        return True
