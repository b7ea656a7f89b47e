"""The state machine of a cycle: phases, moves, and the one table that says which move leads where.

Pure. Everything that changes a cycle's phase goes through `after`; a move that the table does not hold is a bug, not a branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from controller.state import Outcome, Phase


class Move(StrEnum):
    """What may happen to a cycle. Past participles: each has already been observed."""

    STARTED = "started"
    PREPARED = "prepared"
    TUNED = "tuned"
    TRAINED = "trained"
    PASSED = "passed"
    """All gates let the candidate through and nobody need be asked."""
    HELD_FOR_APPROVAL = "held_for_approval"
    APPROVED = "approved"
    PACKAGED = "packaged"
    PROMOTED = "promoted"
    """The last step of the rollout held: the challenger is champion, and is watched."""
    BAKED = "baked"
    REFUSED = "refused"
    """A gate or a person said no before any traffic."""
    UNDECIDED = "undecided"
    """Not enough evidence in time."""
    FOUND_WORSE = "found_worse"
    """Live evidence, or a person's rollback."""
    GAVE_UP = "gave_up"
    """An error outlasted its retries."""
    ABORTED = "aborted"
    SUPERSEDED = "superseded"


class IllegalMove(Exception):
    """The table has no such move from this phase."""


_JOB_PHASES = (Phase.PREPARING, Phase.TUNING, Phase.TRAINING, Phase.JUDGING, Phase.PACKAGING)
_BEFORE_TRAFFIC = (Phase.QUEUED, *_JOB_PHASES, Phase.AWAITING_APPROVAL)

TABLE: Mapping[tuple[Phase, Move], Phase | Outcome] = MappingProxyType(
    {
        (Phase.QUEUED, Move.STARTED): Phase.PREPARING,
        (Phase.PREPARING, Move.PREPARED): Phase.TUNING,
        (Phase.PREPARING, Move.UNDECIDED): Outcome.INCONCLUSIVE,  # too much of the data is held
        (Phase.TUNING, Move.TUNED): Phase.TRAINING,
        (Phase.TRAINING, Move.TRAINED): Phase.JUDGING,
        (
            Phase.TRAINING,
            Move.REFUSED,
        ): Outcome.REJECTED,  # it is a model that was refused before, or the champion again
        (Phase.JUDGING, Move.PASSED): Phase.PACKAGING,
        (Phase.JUDGING, Move.HELD_FOR_APPROVAL): Phase.AWAITING_APPROVAL,
        (Phase.JUDGING, Move.REFUSED): Outcome.REJECTED,
        (Phase.JUDGING, Move.UNDECIDED): Outcome.INCONCLUSIVE,
        (Phase.AWAITING_APPROVAL, Move.APPROVED): Phase.PACKAGING,
        (Phase.AWAITING_APPROVAL, Move.REFUSED): Outcome.REJECTED,
        (Phase.AWAITING_APPROVAL, Move.UNDECIDED): Outcome.INCONCLUSIVE,
        (Phase.PACKAGING, Move.PACKAGED): Phase.ROLLING_OUT,
        (Phase.ROLLING_OUT, Move.PROMOTED): Phase.BAKING,
        (Phase.ROLLING_OUT, Move.FOUND_WORSE): Outcome.ROLLED_BACK,
        (Phase.ROLLING_OUT, Move.UNDECIDED): Outcome.INCONCLUSIVE,
        (Phase.ROLLING_OUT, Move.GAVE_UP): Outcome.FAILED,
        (Phase.ROLLING_OUT, Move.ABORTED): Outcome.ABORTED,
        (Phase.BAKING, Move.BAKED): Outcome.PROMOTED,
        (Phase.BAKING, Move.FOUND_WORSE): Outcome.ROLLED_BACK,
        (Phase.BAKING, Move.UNDECIDED): Outcome.INCONCLUSIVE,
        (Phase.BAKING, Move.ABORTED): Outcome.ABORTED,
        **{(phase, Move.GAVE_UP): Outcome.FAILED for phase in _JOB_PHASES},
        **{(phase, Move.ABORTED): Outcome.ABORTED for phase in _BEFORE_TRAFFIC},
        **{(phase, Move.SUPERSEDED): Outcome.SUPERSEDED for phase in _BEFORE_TRAFFIC},
    }
)

JOB_PHASES = frozenset(_JOB_PHASES)
"""Phases in which one job does the work."""
TRAFFIC_PHASES = frozenset({Phase.ROLLING_OUT, Phase.BAKING})
"""Phases in which the challenger may carry traffic."""


def after(phase: Phase, move: Move) -> Phase | Outcome:
    """Where `move` leads from `phase`. Raises IllegalMove.

    >>> after(Phase.JUDGING, Move.REFUSED).value
    'rejected'
    """
    try:
        return TABLE[phase, move]
    except KeyError:
        allowed = sorted(m.value for p, m in TABLE if p is phase)
        raise IllegalMove(f"{move} is no move from {phase}; there are {', '.join(allowed)}") from None


def is_open(phase_or_outcome: Phase | Outcome) -> bool:
    """Whether the cycle goes on."""
    return isinstance(phase_or_outcome, Phase)


def final_model(outputs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """What the training job says of the model that is to serve: the refit, where the policy asks for one, else the one that was judged."""
    return served_model(outputs[Phase.TRAINING])


def served_model(trained: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same, of the training job's output."""
    return {**trained, **(trained.get("refit") or {})}
