"""Does a challenger answer at all, and as fast as it should? From counters, without labels. Pure.

Where fresh replicas of the champion run beside the canary, as many and as old, they tell what is the challenger's own fault: cold caches,
a slow machine and broken requests trouble both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from deployers.target import ReplicaState, ReplicaStatus

MIN_ERRORS = 5
"""Fewer errors than this are no pattern, whatever their share."""
MIN_TIMED = 100
"""With fewer answers each, the 95th percentiles of challenger and baseline say nothing."""
SLOWNESS_MS = 20.0
"""A difference that nobody notices is none, whatever the ratio."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """What the target tells of a challenger, and of the baseline if there is one."""

    name: str
    replica: ReplicaStatus | None
    baseline: ReplicaStatus | None
    champion: str
    """What the baseline is of, in words."""
    earlier: Mapping[str, int]
    """Counters when the present window of errors began."""
    limit: float
    """Share of requests that may fail, beyond the baseline's."""
    max_slowdown: float

    @property
    def counters(self) -> dict[str, int]:
        """To be kept as `earlier`."""
        replica, baseline = (one or ReplicaStatus(state=ReplicaState.STARTING) for one in (self.replica, self.baseline))
        return {
            "requests": replica.requests, "errors": replica.errors,
            "shadow_requests": replica.shadow_requests, "shadow_errors": replica.shadow_errors,
            "baseline_requests": baseline.requests, "baseline_errors": baseline.errors,
        }  # fmt: skip

    def broken(self) -> str:
        """Why it is to be taken back, or an empty string."""
        if self.replica is None:
            return ""
        if self.replica.state is ReplicaState.FAILED:
            return f"{self.name} does not run: {self.replica.reason}"
        for count in self._counts():
            if count.share - count.baseline_share > self.limit:
                beyond = f" above the {100 * count.baseline_share:.1f} % of as many fresh replicas of {self.champion}"
                return f"{count.words}, more than {self.limit * 100:g} %{beyond if count.baseline_share else ''}"
        return ""

    def doubtful(self) -> str:
        """Why it should not get more traffic, though nothing is shown against it; or an empty string."""
        for count in self._counts():
            if count.share > self.limit:
                return f"{count.words}, but fresh replicas of {self.champion} fail likewise: something else is broken"
        ours, theirs = self.replica, self.baseline
        if ours is None or theirs is None or min(ours.requests, theirs.requests) < MIN_TIMED:
            return ""
        slow, usual = ours.latency_ms_p95, theirs.latency_ms_p95
        if slow is None or usual is None or slow <= self.max_slowdown * usual or slow - usual < SLOWNESS_MS:
            return ""
        return (
            f"95 % of its answers take up to {slow:.0f} ms, those of as many fresh replicas of {self.champion} {usual:.0f} ms, "
            f"more than {self.max_slowdown:g} times as long (rollout.max_slowdown)"
        )

    def _counts(self) -> Iterator[_Count]:
        """Since the replicas started, and since `earlier` if none has started since; of enough errors only."""
        now = self.counters if self.replica is not None else {}
        since = self.earlier if all(now.get(name, 0) >= count for name, count in self.earlier.items()) else {}
        for prefix, kind in (("", "requests"), ("shadow_", "shadow requests")):
            for then, words in (({}, kind), (since, f"latest {kind}")):
                errors, requests = _since(now, then, prefix)
                if errors >= MIN_ERRORS:
                    theirs, asked = _since(now, then, "baseline_") if not prefix else (0, 0)
                    share = theirs / asked if theirs >= MIN_ERRORS and asked else 0.0
                    said = f"{self.name} failed {errors} of {requests} {words}"
                    yield _Count(words=said, share=errors / max(requests, 1), baseline_share=share)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Count:
    words: str
    share: float
    baseline_share: float


def _since(now: Mapping[str, int], then: Mapping[str, int], prefix: str) -> tuple[int, int]:
    """Errors and requests."""
    errors, requests = (
        now.get(f"{prefix}{name}", 0) - then.get(f"{prefix}{name}", 0) for name in ("errors", "requests")
    )
    return errors, requests
