"""What no commit may do, whatever store it goes to: the invariants that need the stored rows to check.

Pure, and used by every store inside its transaction. The database holds the same rules as constraints and triggers where it can.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from controller.invariants import InvariantBroken
from controller.state import Cycle, ModelState
from controller.store.port import ConflictError


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """What the store holds of a model before the commit."""

    row_version: int | None = None
    """None: there is no such model."""
    open_cycle: int | None = None
    last_cycle: int = 0
    """Highest cycle number ever written."""
    digests: Mapping[int, str] = field(default_factory=dict)


def stored_as(state: ModelState) -> ModelState:
    """The state as a store keeps it once committed: one row version on."""
    return replace(state, row_version=state.row_version + 1)


def check_conflict(name: str, stored: Stored, expected: int | None) -> None:
    """Raises ConflictError unless the stored row is at version `expected` (None: must not exist)."""
    if stored.row_version == expected:
        return
    if stored.row_version is None:
        raise ConflictError(f"{name}: there is no such model; was it deleted?")
    if expected is None:
        raise ConflictError(f"{name}: a model of this name exists")
    raise ConflictError(f"{name}: row version is {stored.row_version}, not {expected}; read again and decide again")


def check_invariants(stored: Stored, state: ModelState, closed: Cycle | None) -> None:
    """Raises InvariantBroken if writing `state` and `closed` over `stored` breaks invariant 1, 3 or 9."""
    _check_cycle(stored, state, closed)
    _check_versions(stored, state)


def _check_cycle(stored: Stored, state: ModelState, closed: Cycle | None) -> None:
    written = closed or state.cycle
    if closed is not None and state.cycle is not None:
        raise InvariantBroken(
            f"invariant 1: {state.name}: closes cycle {closed.number} but keeps {state.cycle.number} open"
        )
    if closed is not None and (closed.outcome is None or closed.closed_at is None):
        raise InvariantBroken(f"invariant 9: {state.name}: closed cycle {closed.number} has no outcome or no closed_at")
    if state.cycle is not None and state.cycle.outcome is not None:
        raise InvariantBroken(f"invariant 1: {state.name}: open cycle {state.cycle.number} has an outcome")
    if stored.open_cycle is not None and (written is None or written.number != stored.open_cycle):
        raise InvariantBroken(f"invariant 1: {state.name}: cycle {stored.open_cycle} is open and was not closed")
    if written is not None and written.model != state.name:
        raise InvariantBroken(f"invariant 1: {state.name}: holds a cycle of {written.model}")
    if written is not None and stored.open_cycle is None and written.number <= stored.last_cycle:
        raise InvariantBroken(f"invariant 1: {state.name}: cycle number {written.number} was used before")


def _check_versions(stored: Stored, state: ModelState) -> None:
    newest = max(stored.digests, default=0)
    for number, digest in stored.digests.items():
        kept = state.versions.get(number)
        if kept is None:
            raise InvariantBroken(f"invariant 3: {state.name}: v{number} vanished")
        if kept.digest != digest:
            raise InvariantBroken(f"invariant 3: {state.name}: v{number} is {digest}, cannot become {kept.digest}")
    for number, version in state.versions.items():
        if (version.model, version.number) != (state.name, number):
            raise InvariantBroken(f"invariant 3: {state.name}: v{number} is {version.model} v{version.number}")
        if number not in stored.digests and number <= newest:
            raise InvariantBroken(f"invariant 3: {state.name}: v{number} is new but v{newest} exists")
