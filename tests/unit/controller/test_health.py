"""What is the challenger's own fault, and what troubles fresh replicas of the champion just as much."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.health import MIN_TIMED, Health
from deployers.target import ReplicaState, ReplicaStatus


def replica(requests: int = 1000, errors: int = 0, p95: float | None = None) -> ReplicaStatus:
    return ReplicaStatus(state=ReplicaState.READY, requests=requests, errors=errors, latency_ms_p95=p95)


def health(ours: ReplicaStatus | None, baseline: ReplicaStatus | None = None, **changes: object) -> Health:
    made = Health(
        name="v3", replica=ours, baseline=baseline, champion="v2", earlier={}, limit=0.02, max_slowdown=3.0
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ours", "baseline", "words"),
    [
        (replica(errors=30), None, "v3 failed 30 of 1000 requests, more than 2 %"),
        (replica(errors=30), replica(errors=4), "v3 failed 30 of 1000 requests, more than 2 %"),
        (
            replica(errors=60), replica(errors=10),
            "v3 failed 60 of 1000 requests, more than 2 % above the 1.0 % of as many fresh replicas of v2",
        ),
    ],
)  # fmt: skip
def test_errors_beyond_those_of_the_baseline_take_it_back(
    ours: ReplicaStatus, baseline: ReplicaStatus | None, words: str
) -> None:
    """A handful of the baseline's are no pattern, and excuse nothing."""
    assert health(ours, baseline).broken() == words


def test_errors_that_both_have_are_nobody_s_but_stop_the_rollout() -> None:
    """Requests that no version can answer, or a full disk: it is not taken back, and gets no more traffic."""
    both = health(replica(errors=300), replica(errors=290))
    assert both.broken() == ""
    assert (
        both.doubtful()
        == "v3 failed 300 of 1000 requests, but fresh replicas of v2 fail likewise: something else is broken"
    )


def test_the_latest_errors_are_set_against_the_latest_of_the_baseline() -> None:
    """A burst in both, after a long good past of both, is nobody's either; once counters began again they are not compared."""
    earlier = {"requests": 10_000, "errors": 0, "baseline_requests": 10_000, "baseline_errors": 0}
    ours = replica(10_100, 50)
    assert health(ours, replica(10_100, 0), earlier=earlier).broken().startswith("v3 failed 50 of 100 latest requests")
    assert health(ours, replica(10_100, 49), earlier=earlier).broken() == ""
    assert health(ours, replica(100, 0), earlier=earlier).broken() == ""


@pytest.mark.parametrize(
    ("ours", "theirs", "doubt"),
    [(100.0, 30.0, True), (100.0, 34.0, False), (20.0, 1.0, False), (None, 1.0, False), (500.0, None, False)],
)
def test_slowness_beyond_the_baseline_s_stops_the_rollout(
    ours: float | None, theirs: float | None, doubt: bool
) -> None:
    """Three times as slow, and noticeably; caches as cold are slow in both. Unknown is not slow."""
    said = health(replica(p95=ours), replica(p95=theirs)).doubtful()
    assert bool(said) is doubt
    if doubt:
        assert said.startswith(
            "95 % of its answers take up to 100 ms, those of as many fresh replicas of v2 30 ms, more than 3 times"
        )
    assert health(replica(MIN_TIMED - 1, p95=ours), replica(p95=theirs)).doubtful() == ""
    assert health(replica(p95=ours)).doubtful() == ""


def test_what_does_not_run_is_broken_and_what_is_not_there_is_not() -> None:
    """Nothing known is neither good nor bad."""
    assert health(ReplicaStatus(state=ReplicaState.FAILED, reason="no memory")).broken() == "v3 does not run: no memory"
    assert health(None, replica(errors=500)).broken() == ""
    assert health(None, replica(errors=500)).doubtful() == ""
