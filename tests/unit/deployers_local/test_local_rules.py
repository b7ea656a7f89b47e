"""The pure rules of the local target: restarting, moving traffic, remembering, and the arithmetic of rollout steps."""

from __future__ import annotations

import doctest
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployers import rollout
from deployers.local.host import image_problem
from deployers.rollout import step_traffic
from deployers.routed import supervised
from deployers.routed.processes import Presence
from deployers.routed.record import InForce, ModelRecord, load_record, save_record
from deployers.routed.routing import next_in_force, router_table
from deployers.routed.supervised import Life, Limits, Move, next_move, state_of
from deployers.target import ReplicaState, StalePlanError, TrafficPlan
from policies.schema import Step

LIMITS = Limits()
NEW = Life(boot="b")


def a_plan(generation: int = 1, epoch: int = 1, **more: object) -> TrafficPlan:
    fields: dict[str, object] = {"weights": {1: 100.0}, "digests": {1: "one", 2: "two"}, **more}
    return TrafficPlan(model="m", epoch=epoch, generation=generation, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("module", [rollout, supervised])
def test_examples_in_the_docstrings_hold(module: object) -> None:
    """Worked examples are what the code computes."""
    results = doctest.testmod(module)  # type: ignore[arg-type]
    assert results.attempted > 0
    assert results.failed == 0


# ---------------------------------------------------------------- keeping a process running
def test_life_of_a_good_process() -> None:
    """Started, probed until it answers, then ready and left alone."""
    life, move = next_move(NEW, Presence.GONE, False, "", 10, LIMITS)
    assert move is Move.START
    life, move = next_move(life, Presence.RUNNING, False, "", 11, LIMITS)
    assert (move, state_of(life, Presence.RUNNING, 11, LIMITS)[0]) == (Move.WAIT, ReplicaState.STARTING)
    life, move = next_move(life, Presence.RUNNING, True, "", 12, LIMITS)
    assert (move, life.ready_at, state_of(life, Presence.RUNNING, 12, LIMITS)) == (
        Move.WAIT,
        12,
        (ReplicaState.READY, ""),
    )


def test_process_that_dies_early_is_tried_more_and_more_rarely_and_failed() -> None:
    """Each early death doubles the wait; after three it is failed with its last words, yet still tried."""
    life, now, waits = NEW, 0.0, []
    for death in range(1, 8):
        life, move = next_move(life, Presence.GONE, False, "out of memory", now, LIMITS)
        if move is Move.WAIT:
            waits.append(life.not_before - now)
            state, reason = state_of(life, Presence.GONE, now, LIMITS)
            assert (state is ReplicaState.FAILED) == (life.deaths >= LIMITS.early_deaths_max)
            assert "out of memory" in reason
            now = life.not_before
            life, move = next_move(life, Presence.GONE, False, "", now, LIMITS)
        assert move is Move.START, death
    assert waits == [0.5, 1, 2, 4, 8, 16]


def test_stable_process_is_restarted_at_once() -> None:
    """A death after a long readiness is not held against the process."""
    life = replace(NEW, started_at=0.0, ready_at=1.0, answered_at=90.0, deaths=2)
    life, move = next_move(life, Presence.GONE, False, "", 100, LIMITS)
    assert (move, life.deaths, life.ready_at) == (Move.START, 0, None)


@pytest.mark.parametrize(
    ("life", "words"),
    [
        (replace(NEW, started_at=0.0), "not ready within 120 s"),
        (replace(NEW, started_at=0.0, ready_at=1.0, answered_at=1.0), "did not answer for 60 s"),
    ],
)
def test_process_that_hangs_is_killed(life: Life, words: str) -> None:
    """One that never gets ready, or stops answering, is killed, and its death has that reason."""
    now = 121.0
    doomed, move = next_move(life, Presence.RUNNING, False, "", now, LIMITS)
    assert move is Move.KILL
    buried, _ = next_move(doomed, Presence.GONE, False, "some line", now + 1, LIMITS)
    assert words in buried.reason
    assert buried.doom == ""


def test_orphans_are_killed_before_a_new_start() -> None:
    """While children of a dead process live, nothing is started."""
    assert next_move(replace(NEW, started_at=0.0), Presence.ORPHANED, False, "", 5, LIMITS)[1] is Move.KILL


@given(
    presences=st.lists(st.tuples(st.sampled_from(Presence), st.booleans(), st.floats(0, 200)), max_size=40),
)
def test_whatever_happens_a_process_is_started_only_where_none_is(
    presences: list[tuple[Presence, bool, float]],
) -> None:
    """Starts happen only when the slot is empty and the wait is over; the wait is bounded."""
    life, now = NEW, 0.0
    for presence, answers, step in presences:
        now += step
        before = life
        life, move = next_move(life, presence, answers, "", now, LIMITS)
        assert (move is not Move.START) or presence is Presence.GONE
        assert life.not_before <= now + LIMITS.backoff_max_s or life.not_before == before.not_before


# ---------------------------------------------------------------- moving traffic
SERVING = InForce(generation=1, weights={1: 75.0, 2: 25.0}, digests={1: "one", 2: "two"})


def test_weights_wait_for_full_versions() -> None:
    """A version that should carry traffic must have all its replicas; until then everything stays."""
    plan = a_plan(2, weights={1: 50.0, 2: 50.0})
    before = InForce(generation=1, weights={1: 100.0}, digests={1: "one"})
    assert next_in_force(plan, before, full={1}, some={1, 2}) == before
    assert next_in_force(plan, before, full={1, 2}, some={1, 2}).weights == plan.weights


def test_rollback_does_not_wait_for_the_champions_missing_replica() -> None:
    """The serving champion gets its traffic back with one replica; with none it cannot."""
    plan = a_plan(2, digests={1: "one"})
    assert next_in_force(plan, SERVING, full=set(), some={1}).weights == {1: 100.0}
    assert next_in_force(plan, SERVING, full=set(), some=set()) == SERVING


def test_promotion_does_wait() -> None:
    """A challenger takes over only with all its replicas, though it serves already."""
    assert next_in_force(a_plan(2, weights={2: 100.0}), SERVING, full={1}, some={1, 2}) == SERVING


def test_shadow_follows_the_weights() -> None:
    """Weights move without waiting for the shadow; the generation is in force only with it."""
    plan = a_plan(2, shadow=2)
    first = next_in_force(plan, SERVING, full={1}, some={1})
    assert (first.generation, first.weights, first.shadow) == (1, {1: 100.0}, None)
    then = next_in_force(plan, first, full={1, 2}, some={1, 2})
    assert (then.generation, then.shadow, set(then.digests)) == (2, 2, {1, 2})


def test_table_lists_only_what_carries_traffic() -> None:
    """Warm versions are not in the router's table; a version without ready replicas is, with none."""
    table = router_table(a_plan(), InForce(weights={1: 100.0}, digests={1: "one"}), {2: ["http://x"]})
    assert (table["backends"], table["weights"], table["shadow"]) == ({"1": []}, {"1": 100.0}, None)


# ---------------------------------------------------------------- remembering
def test_record_survives_the_disk(tmp_path: Path) -> None:
    """What is saved is loaded the same, version numbers included, also from mappings that are no dict."""
    plan = a_plan(weights=MappingProxyType({1: 100.0}))
    record = replace(ModelRecord().accept(plan), in_force=SERVING, told={"weights": {"1": 100}}, told_to="x")
    save_record(tmp_path / "m.json", record)
    assert load_record(tmp_path / "m.json") == record


@pytest.mark.parametrize("content", ["", "{}", '{"format": 2}', '{"format": 1, "plan": 3}', "[1]"])
def test_damaged_record_is_set_aside(tmp_path: Path, content: str) -> None:
    """A record that cannot be understood is kept under another name and counts as none."""
    path = tmp_path / "m.json"
    path.write_text(content)
    assert load_record(path) == ModelRecord()
    assert [p.read_text() for p in tmp_path.glob("m.json.corrupt-*")] == [content]


def test_fence() -> None:
    """Older epochs and generations are refused, also after a removal; a removed model may start again at generation 1."""
    record = ModelRecord().accept(a_plan(5, epoch=2))
    for older in (a_plan(4, epoch=2), a_plan(9, epoch=1)):
        with pytest.raises(StalePlanError):
            record.accept(older)
    with pytest.raises(StalePlanError):
        record.remove("m", 1)
    removed = record.remove("m", 2)
    with pytest.raises(StalePlanError):
        removed.accept(a_plan(9, epoch=1))
    assert removed.accept(a_plan(1, epoch=2)).plan == a_plan(1, epoch=2)


def test_image_that_is_no_digest_is_a_problem(tmp_path: Path) -> None:
    """Something like a path is never looked up on disk."""
    assert "sha256" in image_problem(tmp_path, "../../etc")


# ---------------------------------------------------------------- rollout steps
STEPS = [Step(shadow=True), Step(weight=5), Step(weight=33.3), Step(weight=100)]


@given(index=st.integers(0, 3), champion=st.none() | st.integers(1, 3), challenger=st.integers(1, 3))
def test_any_step_makes_a_valid_plan(index: int, champion: int | None, challenger: int) -> None:
    """Weights add up to 100 and name only champion and challenger; the shadow is never weighted."""
    weights, shadow = step_traffic(STEPS, index, champion, challenger)
    a_plan(weights=weights, shadow=shadow, digests=dict.fromkeys({champion, challenger} - {None}, "d"))


@pytest.mark.parametrize("index", [-1, 4])
def test_step_that_does_not_exist_is_an_error(index: int) -> None:
    """There is no traffic for a step outside the rollout."""
    with pytest.raises(IndexError):
        step_traffic(STEPS, index, 1, 2)
