"""The table of moves: complete, closed, and never left by another way."""

from __future__ import annotations

import itertools

import pytest

from controller.cycle import JOB_PHASES, TABLE, TRAFFIC_PHASES, IllegalMove, Move, after, is_open
from controller.state import Outcome, Phase


def test_every_phase_can_be_reached_from_queued() -> None:
    """Following the table from `queued` reaches each phase and each outcome."""
    reached: set[Phase | Outcome] = {Phase.QUEUED}
    while more := {to for (phase, _), to in TABLE.items() if phase in reached} - reached:
        reached |= more
    assert reached == {*Phase, *Outcome}


def test_every_open_phase_can_be_aborted() -> None:
    """A person can end a cycle wherever it stands (invariant 7)."""
    assert {after(phase, Move.ABORTED) for phase in Phase} == {Outcome.ABORTED}


def test_every_open_phase_leads_to_an_end() -> None:
    """From each phase some way leads to an outcome, and none leads back to a phase that was left."""
    order = list(Phase)
    for (phase, move), target in TABLE.items():
        forwards = isinstance(target, Outcome) or order.index(target) > order.index(phase)
        assert forwards, f"{move} leads from {phase} back to {target}"
        assert is_open(target) is isinstance(target, Phase)


def test_outcomes_are_terminal() -> None:
    """No move starts at an outcome."""
    assert {phase for phase, _ in TABLE} == set(Phase)


def test_every_move_is_used() -> None:
    """A move that no phase knows would be dead."""
    assert {move for _, move in TABLE} == set(Move)


def test_jobs_can_fail_and_a_policy_can_supersede_before_traffic_only() -> None:
    """Where a job works it may give up; once the challenger may have traffic, another policy no longer ends the cycle."""
    assert all((phase, Move.GAVE_UP) in TABLE for phase in JOB_PHASES)
    superseded = {phase for phase, move in TABLE if move is Move.SUPERSEDED}
    assert superseded == set(Phase) - TRAFFIC_PHASES


def test_anything_else_is_an_illegal_move_that_names_the_legal_ones() -> None:
    """What the table does not hold is refused with the moves that there are."""
    for phase, move in itertools.product(Phase, Move):
        if (phase, move) not in TABLE:
            with pytest.raises(IllegalMove, match=f"{move} is no move from {phase}; there are .*aborted"):
                after(phase, move)
