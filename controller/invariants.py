"""The invariants of the design that one change of state can break, asserted on every change.

Those that need the world beside the state (jobs, target, several controllers) are checked by the simulation in `tests/simulation`.
"""

from __future__ import annotations

from controller.state import ModelState, Phase, VersionStatus


class InvariantBroken(AssertionError):
    """The change would break an invariant; it is not written, and the champion keeps serving."""


def _require(holds: bool, number: int, words: str) -> None:
    if not holds:
        raise InvariantBroken(f"invariant {number}: {words}")


def check_transition(before: ModelState, after: ModelState, *, person: bool) -> None:
    """Raise InvariantBroken if going from `before` to `after` is not allowed; `person` asked for it explicitly."""
    _check_versions(before, after)
    _check_traffic(before, after)
    _check_holds(before, after, person=person)
    if after.cycle is not None and before.cycle is not None:
        _require(after.cycle.number == before.cycle.number, 1, "a cycle opened while another was open")
    if after.cycle is not None:
        _require(after.cycle.number < after.next_cycle, 1, "a cycle's number was given twice")


def _check_versions(before: ModelState, after: ModelState) -> None:
    _require(after.next_version >= before.next_version, 3, "version numbers went back")
    for number, version in before.versions.items():
        kept = after.versions.get(number)
        _require(kept is not None and kept.digest == version.digest, 3, f"v{number} changed what it means")
    _require(all(n < after.next_version for n in after.versions), 3, "a version number was not handed out")


def _check_traffic(before: ModelState, after: ModelState) -> None:
    plan = after.plan
    if plan is None:
        return
    if before.plan is not None:
        _require(plan.generation >= before.plan.generation, 9, "the plan's generation went back")
    cycle = after.cycle
    challenger = cycle.challenger if cycle is not None and cycle.phase is Phase.ROLLING_OUT else None
    held_back = after.previous if cycle is not None and cycle.phase is Phase.BAKING else None
    for number in plan.weights:
        version = after.versions[number]
        allowed = number in (after.champion, challenger, held_back)
        _require(allowed, 2, f"traffic on v{number}, neither champion nor challenger nor held back")
        passed = version.lineage.get("verdict") == "pass" or bool(version.forced)
        _require(passed, 2, f"traffic on v{number}, which passed no gates and nobody forced")
        _require(
            version.status is not VersionStatus.QUARANTINED or bool(version.forced),
            7, f"traffic on v{number}, which is quarantined",
        )  # fmt: skip
    if after.champion is not None:
        _require(bool(plan.weights), 8, "there is a champion, but no version serves")


def _check_holds(before: ModelState, after: ModelState, *, person: bool) -> None:
    held = before.paused or before.frozen or before.pinned
    if not held or person or before.plan is None or after.plan is None:
        return
    _require(
        (after.plan.weights, after.plan.shadow) == (before.plan.weights, before.plan.shadow),
        11, f"traffic moved while held by {held.by}",
    )  # fmt: skip
