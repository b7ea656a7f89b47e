"""Measurements: labelled with the versions that they are of, and no model keeps the others from theirs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from controller_states import HOUR, MINUTE, NAME, NOW, POLICY, compared, measured, policy, state, with_cycle

from controller.observing import OBSERVE_GRACE_S, JobObserver, observe_inputs
from controller.state import ModelState, Phase
from controller.telemetry.metrics import REGISTRY, show_labels
from controller.work import OBSERVE_TIMEOUT_S
from pipelines.jobs.fake import FakeJobRunner
from pipelines.jobs.port import JobSpec, JobStatus, PermanentJobError, RetryableJobError
from policies.signals import Signal

KEY = "performance:accuracy:1h:100"
ANSWER: dict[str, Any] = {
    "signals": {KEY: {"value": 0.7, "reason": "", "rows": 500, "observed_at": NOW.isoformat(), "window_end": None}},
    "comparison": None,
}


class Bench:
    """An observer whose jobs end when a test says so, by a clock that a test moves."""

    def __init__(self, **changes: Any) -> None:
        self.time = 0.0
        self.jobs = FakeJobRunner(scripts={"evaluators.observe:run": ANSWER}, automatic=False)
        self.observer = JobObserver(
            jobs=self.jobs, home=Path("/nowhere"), interval_s=30, parallel=1, monotonic=lambda: self.time, **changes
        )

    def observe(self, made: ModelState) -> Any:
        return self.observer.observe(made, POLICY, NOW)

    def finish(self) -> None:
        for job in self.jobs.active():
            self.jobs.finish(job)


def named(name: str) -> ModelState:
    return replace(state(), name=name)


def test_a_measurement_is_taken_beside_and_read_when_done() -> None:
    """The first look starts it, a later one has it; its job's record is thrown away."""
    bench = Bench()
    assert bench.observe(state()) is None
    assert bench.observe(state()) is None
    bench.finish()
    found = bench.observe(state())
    assert (found.champion, found.signals[KEY].value) == (2, 0.7)
    assert not bench.jobs.statuses
    assert sum(bench.jobs.starts.values()) == 1


def test_it_is_taken_again_after_the_interval() -> None:
    """And the newest stays known while the next is under way."""
    bench = Bench()
    bench.observe(state())
    bench.finish()
    bench.observe(state())
    bench.time = 30
    assert bench.observe(state()).signals[KEY].value == 0.7
    assert sum(bench.jobs.starts.values()) == 2


def test_signals_of_a_bake_are_the_new_champions() -> None:
    """Compared with the version before, but measured on the one that serves: a rollback must not hand on its scores."""
    bench = Bench()
    bench.jobs.scripts["evaluators.observe:run"] = {**ANSWER, "comparison": comparison_json()}
    made = with_cycle(state(Phase.BAKING), traffic_since=NOW - HOUR)
    bench.observe(made)
    bench.finish()
    found = bench.observe(made)
    assert (found.champion, found.baseline, found.challenger) == (3, 2, 3)
    assert measured(made, 0.7, compared()).baseline == found.baseline


def comparison_json() -> dict[str, Any]:
    made = compared()
    return {name: getattr(made, name) for name in made.__slots__} | {"observed_at": NOW.isoformat()}


def test_a_deleted_model_does_not_keep_the_others_from_being_measured() -> None:
    """Its measurement is let go once its time is over."""
    bench = Bench()
    bench.observe(named("deleted"))
    bench.observe(named("other"))
    assert len(bench.jobs.starts) == 1
    bench.finish()
    bench.time = OBSERVE_TIMEOUT_S + OBSERVE_GRACE_S + 1
    bench.observe(named("other"))
    assert len(bench.jobs.starts) == 2
    assert not [job for job in bench.jobs.statuses if job.startswith("deleted")]


def test_a_daemon_that_keeps_dying_does_not_pile_up_measurements() -> None:
    """What its predecessors started counts, until it has ended."""
    bench = Bench()
    for _ in range(5):
        bench.observe(named("a"))
        bench.observe(named("b"))
        bench.observer = JobObserver(jobs=bench.jobs, home=Path("/nowhere"), interval_s=30, parallel=1)
    assert len(bench.jobs.active()) == 1
    bench.finish()
    bench.observe(named("a"))
    assert len(bench.jobs.active()) == 1


def test_models_take_turns() -> None:
    """With one measurement at a time and looks in a fixed order, each model gets its own."""
    bench = Bench()
    names = [f"m{i:02d}" for i in range(12)]
    for _ in range(60):
        for name in names:
            bench.observe(named(name))
        bench.finish()
        bench.time += 5
    seen = {job.split("-observe-")[0] for job in bench.jobs.starts}
    assert seen == set(names)


def test_a_failed_or_malformed_measurement_leaves_the_last_one() -> None:
    """It grows stale, which makes it unknown; nothing is made up."""
    bench = Bench()
    bench.observe(state())
    bench.finish()
    before = bench.observe(state())
    for script in (PermanentJobError("no log"), {"signals": {KEY: {"value": "much"}}}, {}):
        bench.jobs.scripts["evaluators.observe:run"] = script
        bench.time += 31
        bench.observe(state())
        bench.finish()
        assert bench.observe(state()) == before


def test_a_measurement_that_cannot_be_started_is_no_error() -> None:
    """A full disk must not keep the loop from its other work."""
    bench = Bench()

    def full(_spec: JobSpec) -> None:
        raise RetryableJobError("disk full")

    ensure, bench.jobs.ensure = bench.jobs.ensure, full  # type: ignore[method-assign]
    assert bench.observe(state()) is None
    bench.jobs.ensure = ensure  # type: ignore[method-assign]
    bench.time += 31
    bench.observe(state())
    assert len(bench.jobs.active()) == 1
    assert isinstance(next(iter(bench.jobs.statuses.values())), JobStatus)


def test_the_comparison_says_how_the_challenger_gets_its_traffic() -> None:
    """Shadow copies in a shadow step, live answers after; in the bake those of the holdback too, or those until the promotion."""
    rolling = with_cycle(state(Phase.ROLLING_OUT), traffic_since=NOW - HOUR)
    shadow = observe_inputs(rolling, POLICY, NOW, Path("/h"))["comparison"]
    live = observe_inputs(with_cycle(rolling, step=1), POLICY, NOW, Path("/h"))["comparison"]
    baking = with_cycle(state(Phase.BAKING), traffic_since=NOW - HOUR, phase_since=NOW, promoted_at=NOW - MINUTE)
    bake = observe_inputs(baking, POLICY, NOW, Path("/h"))["comparison"]
    alone = observe_inputs(baking, policy(rollout={"holdback": "0%"}), NOW, Path("/h"))["comparison"]
    assert [c["mode"] for c in (shadow, live, bake)] == ["shadow", "live", "live"]
    promoted = (NOW - MINUTE + MINUTE / 60_000_000).isoformat()  # what was asked at that moment was asked before it
    assert (bake["challenger"], bake["champion"], bake["until"], bake["promoted_at"]) == (3, 2, None, promoted)
    assert alone["until"] == promoted
    assert shadow["promoted_at"] is None
    assert observe_inputs(state(Phase.ROLLING_OUT), POLICY, NOW, Path("/h"))["comparison"] is None
    assert NAME in str(observe_inputs(state(), POLICY, NOW, Path("/h"))["model"])


def test_every_model_is_asked_how_its_labels_come_in() -> None:
    """Coverage and lag are measured beside what the triggers need, each once."""
    keys = [q["key"] for q in observe_inputs(state(), POLICY, NOW, Path("/nowhere"))["queries"]]
    assert keys[-2:] == ["label_coverage", "label_lag"]
    assert len(keys) == len(set(keys))


def test_how_labels_come_in_is_a_metric_while_it_is_known() -> None:
    """A sample a model; none where it is unknown or the model is gone."""
    at = {"reason": "", "rows": 500, "observed_at": NOW.isoformat(), "window_end": None}
    told = {"label_coverage": {"value": 0.93, **at}, "label_lag": {"value": 3600.0, **at}}
    bench = Bench()
    bench.jobs.scripts["evaluators.observe:run"] = {**ANSWER, "signals": told}
    name = "labels-metric"
    bench.observe(named(name))
    bench.finish()
    bench.observe(named(name))
    where = {"model": name}
    assert REGISTRY.get_sample_value("ratchet_controller_label_coverage", where) == 0.93
    assert REGISTRY.get_sample_value("ratchet_controller_label_lag_seconds", where) == 3600.0
    assert bench.observer.signals(name)["label_coverage"].value == 0.93
    show_labels(name, {"label_coverage": Signal.unknown("no label has arrived yet", observed_at=NOW)})
    assert REGISTRY.get_sample_value("ratchet_controller_label_coverage", where) is None
    assert REGISTRY.get_sample_value("ratchet_controller_label_lag_seconds", where) is None
