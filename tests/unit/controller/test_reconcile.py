"""One look at one model: observe, decide, record, act; and what is left when any of these fails."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from controller_rig import Rig
from controller_states import HOUR, NAME, cycle, measured, newborn, policy, state, version, with_cycle

from controller import overrides
from controller.overrides import Order, Verb
from controller.phases import job_id
from controller.reconcile import GROUNDS, LostLeadership, replay
from controller.state import Event, ModelState, Phase, VersionStatus
from controller.store.port import Commit, ConflictError, FencedError, StoreError
from deployers.target import TargetError, TrafficPlan
from pipelines.jobs.port import JobSpec, Limits, RetryableJobError


def order(rig: Rig, verb: Verb) -> ModelState:
    made = rig.state(NAME)
    decision = overrides.apply(made, rig.reconciler.policy(made), Order(verb=verb, actor="ann", reason="why"), rig.now)
    return rig.store.commit(
        rig.leadership.held, Commit(model=decision.after, closed=decision.closed, events=decision.events)
    )


def test_a_new_model_serves_after_a_few_looks() -> None:
    """From nothing to v1, each job once."""
    rig = Rig()
    rig.add(newborn())
    said = [rig.look(NAME) for _ in range(4)]
    assert rig.state(NAME).champion == 1
    assert rig.target.in_force[NAME].weights == {1: 100}
    assert set(rig.jobs.starts.values()) == {1}
    assert len(rig.jobs.starts) == 5
    assert "v1 serves" in said[-1]


def test_a_look_is_bounded() -> None:
    """However much is ready, one look takes no more than its strides."""
    rig = Rig()
    rig.reconciler.strides = 3
    rig.add(newborn())
    rig.look(NAME)
    assert rig.state(NAME).row_version <= 4


# ---------------------------------------------------------------- whatever fails, what serves goes on
class Dead(RuntimeError):
    """Something unforeseen."""


def dies(*_: object, **__: object) -> Any:
    raise Dead("a bug")


@pytest.mark.parametrize("broken", ["store", "observer", "jobs", "policy"])
def test_whatever_fails_the_plan_is_kept_in_force(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, a bug, an unreadable policy: the replicas that should run are looked after all the same (invariant 8)."""
    rig = Rig()
    match broken:
        case "store":
            monkeypatch.setattr(rig.store, "commit", dies)
        case "observer":
            monkeypatch.setattr(rig.observer, "observe", dies)
        case "jobs":
            monkeypatch.setattr(rig.jobs, "poll", dies)
            monkeypatch.setattr(rig.jobs, "ensure", dies)
    if broken == "jobs":
        rig.add(state(Phase.TRAINING, cycle=cycle(Phase.TRAINING, job_id=job_id(NAME, 7, Phase.TRAINING, 1))))
    else:
        rig.add(state(Phase.TRAINING, policy="{}") if broken == "policy" else state(Phase.TRAINING))
    with pytest.raises((Dead, ValueError)):
        rig.look(NAME)
    assert rig.target.in_force[NAME].weights == {2: 100}


def test_a_job_that_cannot_be_started_is_part_of_the_sentence() -> None:
    """And is asked for again at the next look."""
    rig = Rig()
    rig.add(state(Phase.TRAINING))
    full = [True]
    ensure = rig.jobs.ensure

    def maybe(spec: JobSpec) -> None:
        if full[0]:
            raise RetryableJobError("the disk is full")
        ensure(spec)

    rig.jobs.ensure = maybe  # type: ignore[method-assign]
    assert "its job could not be started: the disk is full" in rig.look(NAME)
    assert rig.target.in_force[NAME].weights == {2: 100}
    full[0] = False
    rig.look(NAME)
    assert rig.jobs.starts[job_id(NAME, 7, Phase.TRAINING, 1)] == 1


def test_a_target_that_is_away_is_part_of_the_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rollout waits and says for what; no error comes out."""
    rig = Rig()
    rig.add(state(Phase.ROLLING_OUT))

    def away(*_: object) -> Any:
        raise TargetError("the router does not answer")

    monkeypatch.setattr(rig.target, "apply", away)
    rig.look(NAME)
    assert "waits for the target (the router does not answer)" in rig.look(NAME)
    assert rig.phase(NAME) is Phase.ROLLING_OUT


# ---------------------------------------------------------------- leadership
def test_a_stale_plan_or_a_fenced_commit_ends_leadership(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others have a newer leader: stop at once (invariant 6)."""
    rig = Rig()
    rig.add(state(Phase.ROLLING_OUT))
    rig.target.apply(TrafficPlan(model=NAME, epoch=rig.leadership.held + 1, generation=1, digests={}, weights={}))
    with pytest.raises(LostLeadership, match="is older than"):
        rig.look(NAME)

    def fenced(*_: object) -> Any:
        raise FencedError("epoch 1 does not lead")

    rig = Rig()
    rig.add(state(Phase.TRAINING))
    monkeypatch.setattr(rig.store, "commit", fenced)
    with pytest.raises(LostLeadership, match="does not lead"):
        rig.look(NAME)


def test_without_the_lease_nothing_is_done() -> None:
    """No commit, no job, no plan."""
    rig = Rig()
    rig.add(state(Phase.TRAINING))
    rig.leadership.lost = True
    with pytest.raises(LostLeadership):
        rig.look(NAME)
    assert not rig.jobs.starts
    assert not rig.target.plans
    assert rig.state(NAME).row_version == 1


def test_a_commit_that_lost_the_race_is_left_to_the_next_look() -> None:
    """A person was faster: nothing of what was decided on the old state is done."""
    rig = Rig()
    rig.add(state(Phase.TRAINING))
    load = rig.store.load
    rig.store.load = lambda name: replace(load(name), row_version=0)  # type: ignore[method-assign, type-var, assignment]
    with pytest.raises(ConflictError):
        rig.look(NAME)
    assert not rig.jobs.starts
    assert not rig.target.plans


# ---------------------------------------------------------------- what was read before
def test_a_state_that_was_just_read_is_not_read_again() -> None:
    """A quiet look at one of thousands of models costs no query."""
    rig = Rig()
    rig.add(state())
    seen = rig.state(NAME)
    rig.look(NAME)
    rig.store.load = dies  # type: ignore[method-assign]
    assert rig.reconciler.reconcile(NAME, lambda: rig.now, seen)


def test_no_look_goes_back_to_an_older_state() -> None:
    """What was read before the last look, or before the model was deleted, is not acted on: the target has newer plans."""
    rig = Rig()
    rig.add(state(Phase.ROLLING_OUT))
    old = rig.state(NAME)
    for _ in range(5):
        rig.look(NAME)
    assert rig.state(NAME).row_version > old.row_version
    in_force = rig.target.in_force[NAME]
    rig.reconciler.reconcile(NAME, lambda: rig.now, old)
    assert rig.target.in_force[NAME] == in_force
    newest = rig.state(NAME)
    rig.store.delete(rig.leadership.epoch(), NAME, [])
    rig.look(NAME)
    assert NAME not in rig.target.in_force
    assert rig.reconciler.reconcile(NAME, lambda: rig.now, newest) == f"there is no model {NAME}"
    assert NAME not in rig.target.in_force


# ---------------------------------------------------------------- jobs of the past
@pytest.mark.parametrize("pause_first", [False, True])
def test_the_job_of_an_aborted_cycle_is_stopped(pause_first: bool) -> None:
    """Paused or not; a pause alone lets it finish."""
    rig = Rig()
    rig.jobs.automatic = False
    rig.add(state(Phase.TRAINING))
    rig.look(NAME)
    name = job_id(NAME, 7, Phase.TRAINING, 1)
    if pause_first:
        order(rig, Verb.PAUSE)
        rig.look(NAME)
    assert rig.jobs.active() == {name}
    order(rig, Verb.ABORT)
    rig.look(NAME)
    assert rig.jobs.active() == frozenset()


def test_other_models_jobs_are_left_alone() -> None:
    """Even of a model whose name begins the same."""
    rig = Rig()
    rig.jobs.automatic = False
    other = job_id(f"{NAME}-eu", 1, Phase.TUNING, 1)
    rig.jobs.ensure(JobSpec(job_id=other, entry="x:y", inputs={}, limits=Limits(timeout_s=1, memory_mb=1)))
    rig.add(state())
    rig.look(NAME)
    assert rig.jobs.active() == {other}


def test_a_deleted_model_is_cleared_away() -> None:
    """Its jobs stop and nothing serves under its name; after a crash in between, `strays` still knows it."""
    rig = Rig()
    rig.jobs.automatic = False
    rig.add(state(Phase.TRAINING))
    rig.look(NAME)
    rig.store.delete(rig.leadership.held, NAME, [])
    assert rig.reconciler.strays() == [NAME]
    rig.look(NAME)
    assert rig.jobs.active() == frozenset()
    assert NAME not in rig.target.in_force
    assert rig.reconciler.strays() == []


# ---------------------------------------------------------------- the record
def test_a_recorded_decision_replays_without_the_whole_history() -> None:
    """The record names old versions but does not repeat them, and the decision comes out the same (invariant 9)."""
    rig = Rig()
    many = {n: version(n, VersionStatus.QUARANTINED) for n in range(10, 60)}
    made = state(versions={**state().versions, **many}, next_version=60)
    rig.add(made)
    rig.observer.found = measured(made, 0.4)
    rig.look(NAME)
    event = next(e for e in rig.store.events(NAME) if e.kind == "cycle.opened")
    snapshot = event.data["snapshot"]
    assert snapshot["state"]["versions"]["30"]["scores"] == {}
    assert snapshot["state"]["versions"]["2"]["scores"] == {"accuracy": 0.8}
    again = replay(event.data).events[0]
    assert essence(again) == essence(event)


def essence(event: Event) -> tuple[object, ...]:
    data = {k: v for k, v in event.data.items() if k not in GROUNDS}
    return event.kind, event.sentence, event.at, event.cycle, data


def test_policies_are_parsed_once_and_forgotten_when_they_change() -> None:
    """Thousands of edits leave one parsed policy a model."""
    rig = Rig()
    first = rig.reconciler.policy(state())
    assert rig.reconciler.policy(state()) is first
    for hours in range(1, 5):
        edited = policy(cooldown=f"{hours}h")
        assert rig.reconciler.policy(state(follow=edited)) == edited
    assert len(rig.reconciler._policies) == 1


def test_restless_models_are_those_that_may_go_on_at_any_moment() -> None:
    """A job under way or a rollout that is starting, and not held."""
    rig = Rig()
    rig.jobs.automatic = False
    rig.add(state(Phase.TRAINING))
    rig.look(NAME)
    assert rig.reconciler.restless == {NAME}
    order(rig, Verb.PAUSE)
    rig.look(NAME)
    assert rig.reconciler.restless == set()


def test_a_pause_keeps_a_finished_result_for_later() -> None:
    """The job that ended during the pause counts when the model is resumed."""
    rig = Rig()
    rig.jobs.automatic = False
    rig.add(state(Phase.TRAINING))
    rig.look(NAME)
    order(rig, Verb.PAUSE)
    rig.jobs.finish(job_id(NAME, 7, Phase.TRAINING, 1))
    rig.now += HOUR
    rig.look(NAME)
    assert rig.phase(NAME) is Phase.TRAINING
    order(rig, Verb.RESUME)
    rig.look(NAME)
    assert rig.phase(NAME) is Phase.JUDGING


def test_store_errors_come_out_as_such() -> None:
    """The loop says them; nothing else happens."""
    rig = Rig()
    rig.add(with_cycle(state(Phase.TRAINING), sentence="x"))

    def full(*_: object) -> Any:
        raise StoreError("disk full")

    rig.store.commit = full  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="disk full"):
        rig.look(NAME)


# ---------------------------------------------------------------- what the tick has read
def test_what_the_tick_read_is_not_read_again() -> None:
    """A quiet look asks the store for nothing; it says what it would have said."""
    rig = Rig()
    rig.add(newborn())
    for _ in range(4):
        rig.look(NAME)
    said, known = rig.look(NAME), rig.state(NAME)
    rig.reconciler.store = None  # type: ignore[assignment]
    assert rig.reconciler.reconcile(NAME, lambda: rig.now, known) == said


def test_a_state_older_than_what_was_looked_at_is_read_again() -> None:
    """The tick read it before an order that has been looked at meanwhile: going back to its plan would be an old controller's doing."""
    rig = Rig()
    rig.add(newborn())
    for _ in range(4):
        rig.look(NAME)
    known = rig.state(NAME)
    order(rig, Verb.PAUSE)
    assert "paused" in rig.look(NAME)
    assert "paused" in rig.reconciler.reconcile(NAME, lambda: rig.now, known)


def test_a_deleted_model_is_not_brought_back_by_what_the_tick_read() -> None:
    """Once a look has cleared it away, only the store can tell of one made anew."""
    rig = Rig()
    rig.add(newborn())
    for _ in range(4):
        rig.look(NAME)
    known = rig.state(NAME)
    rig.store.delete(rig.leadership.held, NAME, [])
    assert rig.look(NAME) == f"there is no model {NAME}"
    assert rig.reconciler.reconcile(NAME, lambda: rig.now, known) == f"there is no model {NAME}"
    assert rig.target.models() == []


def test_a_decision_on_what_was_read_too_early_is_refused() -> None:
    """An order came in between and nobody has looked since: its commit conflicts, and the next look reads anew."""
    rig = Rig()
    rig.add(newborn())
    known = rig.state(NAME)
    rig.store.commit(rig.leadership.held, Commit(model=replace(known, fruitless=1)))
    with pytest.raises(ConflictError):
        rig.reconciler.reconcile(NAME, lambda: rig.now, known)
    rig.look(NAME)
    assert rig.state(NAME).fruitless == 1
