"""The board: how often it asks, and what it says of a model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from controller_states import NAME, policy, state
from structlog.testing import capture_logs

from controller.decide import Observation, metric_of
from controller.metering.board import FORGOTTEN_AFTER_S, Board, Watching
from controller.metering.fake import FakeSource
from controller.metering.named import Metric, built_in
from controller.metering.port import MetricsError, Sample
from controller.state import ModelState, Phase
from policies.schema import ModelPolicy

SHARE = Metric(name="error_rate", events="e", total="t", higher_is_better=False)
HOLDS = {"name": "error_rate", "above": 0.02}


@dataclass
class Clock:
    at: float = 1000.0
    start: datetime = field(default_factory=lambda: datetime(2026, 3, 1, tzinfo=UTC))

    def now(self) -> datetime:
        return self.start + timedelta(seconds=self.at)

    def __call__(self) -> float:
        return self.at


def series(model: str, version: int, events: float, total: float) -> dict[str, list[Sample]]:
    labels = {"model": model, "version": str(version)}
    return {"e": [Sample(labels, events)], "t": [Sample(labels, total)]}


def board(source: FakeSource | None, clock: Clock, **options: Any) -> Board:
    return Board(source=source, metrics={"error_rate": SHARE}, now=clock.now, wall=clock, monotonic=clock, **options)


def firing(*rules: dict[str, Any], rollout: bool = False) -> ModelPolicy:
    triggers = {"any": [{"metric": rule} for rule in rules]}
    steps = {"steps": [{"10%": "1h"}, "100%"], "metrics": list(rules)} if rollout else {}
    return policy(triggers=triggers, **({"rollout": steps} if rollout else {}))


def test_a_metric_is_asked_once_a_tick_for_all_models() -> None:
    """However many policies rest on it; what nobody wants is not asked."""
    clock, source = Clock(), FakeSource(series=series(NAME, 2, 1, 100))
    found = Board(
        source=source, metrics={**built_in(), "error_rate": SHARE}, now=clock.now, wall=clock, monotonic=clock
    )
    assert found.refresh() == 0
    wanted = firing(HOLDS, {"name": "precision", "below": 0.5})
    for _ in range(50):
        found.signals(state(), wanted)
    assert found.refresh() == 2
    assert len(source.asked) == 2
    signals = found.signals(state(), wanted)
    assert signals[metric_of("metric:error_rate", 2)].detail == "1 of 100"
    assert signals[metric_of("metric:precision", 2)].reason.startswith("the query returns nothing")


def test_champion_and_challenger_have_their_own() -> None:
    """The same metric, by version; before a cycle, only the champion's."""
    source = FakeSource(series={"e": [], "t": []})
    for number, events in ((2, 1.0), (3, 9.0)):
        for key, samples in series(NAME, number, events, 100).items():
            source.series[key] += samples
    clock = Clock()
    found, wanted = board(source, clock), firing(HOLDS, rollout=True)
    rolling = state(Phase.ROLLING_OUT, follow=wanted)
    found.signals(rolling, wanted)
    found.refresh()
    signals = found.signals(rolling, wanted)
    assert {key: signal.value for key, signal in signals.items()} == {
        metric_of("metric:error_rate", 2): 0.01,
        metric_of("metric:error_rate", 3): 0.09,
    }
    assert found.told(rolling, wanted, timedelta(hours=1)) == [
        "v2: error_rate 0.010 (1 of 100), at least 0.00223 at 95 %, is not shown above 0.02",
        "v3: error_rate 0.090 (9 of 100), at least 0.043 at 99 %, is above 0.02",
    ]


def test_own_queries_take_turns() -> None:
    """A bounded number a tick; who waits too long is told why."""
    clock, source = Clock(), FakeSource()
    found = board(source, clock, own_per_tick=2)
    wanted = [firing({"query": f"q{i}", "above": 1, "min_count": 0}) for i in range(6)]
    source.series = {f"q{i}": [Sample({}, float(i))] for i in range(6)}
    for tick in range(3):
        for one in wanted:
            found.signals(state(), one)
        clock.at += 5
        assert found.refresh() == 2, tick
    values = [next(iter(found.signals(state(), one).values())).value for one in wanted]
    assert values == [0, 1, 2, 3, 4, 5]
    clock.at += 400
    found.signals(state(), wanted[0])
    found.refresh()
    late = next(iter(found.signals(state(), wanted[5]).values()))
    assert "6 queries of policies take turns, 2 a tick (prometheus_own_queries)" in late.reason


def test_what_nobody_wants_any_more_is_forgotten() -> None:
    """A policy that was changed leaves no question behind."""
    clock, source = Clock(), FakeSource()
    found = board(source, clock)
    found.signals(state(), firing(HOLDS, {"query": "up", "above": 1, "min_count": 0}))
    assert found.refresh() == 2
    clock.at += FORGOTTEN_AFTER_S + 1
    assert found.refresh() == 0


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"name": "eror_rate", "above": 0.1}, "the daemon's settings name no such metric; did you mean 'error_rate'?"),
        (
            {"name": "error_rate", "below": 0.1},
            "it is better when lower, so the rule would take good for bad: use above",
        ),
        ({"query": "up", "above": 0.1}, "not asked for yet"),
    ],
)
def test_what_cannot_be_known_says_why(rule: dict[str, Any], reason: str) -> None:
    """A mistake in a policy fires nothing."""
    (found,) = board(FakeSource(), Clock()).signals(state(), firing(rule)).values()
    assert (found.value, found.reason) == (None, reason)


def test_without_prometheus_every_metric_is_unknown() -> None:
    """And nothing is asked."""
    found = board(None, Clock())
    (signal,) = found.signals(state(), firing(HOLDS)).values()
    assert signal.reason == "no Prometheus is configured: set prometheus_url"
    assert found.refresh() == 0


def test_a_failure_is_unknown_and_logged_once() -> None:
    """From the tick on in which it fails, until it works again; other metrics are not touched by it."""
    clock, source = Clock(), FakeSource(series=series(NAME, 2, 1, 100))
    found, wanted = board(source, clock), firing(HOLDS)
    found.signals(state(), wanted)
    with capture_logs() as said:
        for broken in ("it is away", "it is away", "", ""):
            source.broken = broken
            found.refresh()
            (signal,) = found.signals(state(), wanted).values()
            assert signal.reason == broken
    assert [line["event"] for line in said] == ["metrics.failed", "metrics.recovered"]


def test_questions_in_flight_are_bounded() -> None:
    """And the loop reads while they are under way."""
    clock, source = Clock(), FakeSource()
    meeting, most = threading.Semaphore(0), []
    busy: list[int] = []

    def wait(_: object) -> None:
        busy.append(1)
        most.append(len(busy))
        assert meeting.acquire(timeout=10)
        busy.pop()

    source.before = wait
    metrics = {f"m{i}": Metric(name=f"m{i}", query="q") for i in range(6)}
    found = Board(source=source, metrics=metrics, now=clock.now, monotonic=clock, parallel=2)
    wanted = firing(*[{"name": name, "above": 1} for name in metrics])
    found.signals(state(), wanted)
    asking = threading.Thread(target=found.refresh)
    asking.start()
    assert all(s.reason == "not asked for yet" for s in found.signals(state(), wanted).values())
    for _ in metrics:
        meeting.release()
    asking.join(10)
    assert max(most) <= 2
    found.close()
    assert found.refresh() == 0


def test_closing_ends_what_is_asked() -> None:
    """A daemon that stops does not wait for the questions in line, nor is their end an error."""
    clock, source, go = Clock(), FakeSource(), threading.Event()
    source.before = lambda _: go.wait(10)  # type: ignore[assignment,return-value]
    metrics = {f"m{i}": Metric(name=f"m{i}", query="q") for i in range(6)}
    found = Board(source=source, metrics=metrics, now=clock.now, monotonic=clock, parallel=1)
    found.signals(state(), firing(*[{"name": name, "above": 1} for name in metrics]))
    said: list[int] = []
    asking = threading.Thread(target=lambda: said.append(found.refresh()))
    asking.start()
    while not source.asked:
        asking.join(0.01)
    found.close()
    go.set()
    asking.join(10)
    assert said == [0]
    assert len(source.asked) == 1


def test_a_bug_in_a_source_stops_nothing() -> None:
    """The others are still asked, and what failed is unknown."""

    def fail(question: Any) -> None:
        if "bad" in question.promql:
            raise ZeroDivisionError
        raise MetricsError("away")

    clock, source = Clock(), FakeSource(before=fail)
    found = board(source, clock)
    wanted = firing(HOLDS, {"query": "bad", "above": 1})
    found.signals(state(), wanted)
    with capture_logs():
        assert found.refresh() == 2
    assert [s.reason for s in found.signals(state(), wanted).values()] == [
        "away", "an error in the controller: ZeroDivisionError",
    ]  # fmt: skip


def test_it_is_added_to_what_is_measured() -> None:
    """Without a metric in the policy the measurement is passed on as it is; with one, also where nothing was measured yet."""

    class Measured:
        found: Observation | None = None

        def observe(self, made: ModelState, follow: ModelPolicy, now: datetime) -> Observation | None:
            return self.found

    clock = Clock()
    measured = Measured()
    watching = Watching(measured, board(FakeSource(), clock))
    observe: Callable[[ModelPolicy], Observation | None] = lambda one: watching.observe(state(), one, clock.now())  # noqa: E731
    assert observe(policy()) is None
    measured.found = Observation(champion=2)
    assert observe(policy()) is measured.found
    found = observe(firing(HOLDS))
    assert found is not None
    assert (found.champion, list(found.metrics)) == (2, [metric_of("metric:error_rate", 2)])
