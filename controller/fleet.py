"""Who works first when there are fewer places than cycles (invariant 10). Pure.

Places go round in the order in which cycles were opened, so that no model waits for ever behind those whose names come first. A cycle
that a person holds takes no place: one paused or frozen model must not stop the fleet.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from controller.cycle import JOB_PHASES
from controller.decide import held
from controller.state import ModelState, Phase


def places_taken(name: str, states: Iterable[ModelState]) -> int:
    """How many of the other models' cycles work now, or are queued before the one of `name`."""
    known = {state.name: state for state in states}
    mine = _opened(known[name]) if name in known else None
    others = (state for state in known.values() if state.name != name and held(state) is None)
    return sum(_works(state) or _is_before(state, name, mine) for state in others)


def _works(state: ModelState) -> bool:
    return state.cycle is not None and state.cycle.phase in JOB_PHASES


def _is_before(state: ModelState, name: str, opened: datetime | None) -> bool:
    queued = state.cycle is not None and state.cycle.phase is Phase.QUEUED
    at = _opened(state)
    return queued and at is not None and opened is not None and (at, state.name) < (opened, name)


def _opened(state: ModelState) -> datetime | None:
    return state.cycle.opened_at if state.cycle is not None else None
