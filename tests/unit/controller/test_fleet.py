"""Places for cycles go round in the order of asking, and nobody who is held takes one."""

from __future__ import annotations

from dataclasses import replace

from controller_states import HOUR, NOW, cycle, hold, state

from controller.fleet import places_taken
from controller.state import ModelState, Phase


def named(name: str, phase: Phase | None, hours_ago: int = 1, **changes: object) -> ModelState:
    made = state(phase, **changes)
    if phase is None:
        return replace(made, name=name)
    return replace(made, name=name, cycle=cycle(phase, model=name, opened_at=NOW - hours_ago * HOUR))


def test_cycles_at_work_take_places_and_those_that_wait_for_time_do_not() -> None:
    """Rolling out, baking and waiting for approval need no processor."""
    mine = named("m", Phase.QUEUED)
    taken = {phase for phase in Phase if places_taken("m", [mine, named("a", phase, 0)])}
    assert taken == {Phase.PREPARING, Phase.TUNING, Phase.TRAINING, Phase.JUDGING, Phase.PACKAGING}
    assert places_taken("m", [mine, named("a", None)]) == 0


def test_a_held_cycle_takes_no_place() -> None:
    """One paused or frozen model must not stop the whole fleet."""
    mine = named("m", Phase.QUEUED)
    for held in ("paused", "pinned"):
        assert places_taken("m", [mine, named("a", Phase.TRAINING, **{held: hold()})]) == 0
    assert places_taken("m", [mine, named("a", Phase.PACKAGING, frozen=hold())]) == 0
    assert places_taken("m", [mine, named("a", Phase.TRAINING, frozen=hold())]) == 1


def test_who_asked_first_goes_first() -> None:
    """Of several that wait, exactly one finds the place free: the oldest, by name if they are as old."""
    fleet = [
        named("a", Phase.QUEUED, 1),
        named("b", Phase.QUEUED, 3),
        named("c", Phase.QUEUED, 3),
        named("d", Phase.QUEUED, 2),
    ]
    free = [s.name for s in fleet if places_taken(s.name, fleet) == 0]
    assert free == ["b"]
    assert [places_taken(name, fleet) for name in "abcd"] == [3, 0, 1, 2]


def test_a_model_that_is_gone_waits_for_nobody() -> None:
    """It may have been deleted in this moment."""
    assert places_taken("gone", [named("a", Phase.QUEUED)]) == 0
