"""What a person may order, as pure functions from state to decision.

Each override is previewed on a state (its `row_version`) and refused if the state has moved on since; each leaves an event that says who
ordered it, why, and what was previewed. An override may move traffic while a model is held: it is a person's explicit word (invariant 11).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from controller.cycle import Move
from controller.draft import Decision, Draft, describe_traffic
from controller.plan import desired_plan
from controller.state import Cycle, Hold, ModelState, Phase, VersionStatus
from policies.schema import ModelPolicy


class Verb(StrEnum):
    TRIGGER = "trigger"
    PAUSE = "pause"
    RESUME = "resume"
    FREEZE = "freeze"
    UNFREEZE = "unfreeze"
    PIN = "pin"
    UNPIN = "unpin"
    APPROVE = "approve"
    REJECT = "reject"
    PROMOTE = "promote"
    ABORT = "abort"
    RETRY = "retry"
    ROLLBACK = "rollback"


class OverrideRefused(Exception):
    """The order makes no sense in the present state; the message says why and what can be done."""


class StalePreview(OverrideRefused):
    """The state is no longer the one that was previewed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """A person's word. `version` only for pin, promote and rollback."""

    verb: Verb
    actor: str
    reason: str
    version: int | None = None
    row_version: int | None = None
    """Of the state that was previewed; None orders without a preview."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """What an order would change."""

    row_version: int
    sentences: tuple[str, ...]
    traffic_before: str
    traffic_after: str
    phase_before: str
    phase_after: str


def apply(state: ModelState, policy: ModelPolicy, order: Order, now: datetime) -> Decision:
    """The decision that the order asks for. Raises OverrideRefused, StalePreview."""
    if order.row_version is not None and order.row_version != state.row_version:
        raise StalePreview(
            f"{state.name} has changed since the preview (state {order.row_version}, now {state.row_version}); "
            f"look again with 'ratchet explain {state.name}' and repeat the order"
        )
    if not order.reason.strip():
        raise OverrideRefused(f"{order.verb} needs a reason (--reason), so that others can read later why it was done")
    draft = Draft(state, policy, now, actor=order.actor)
    sentence = VERBS[order.verb](draft, order)
    assert any(e.actor == order.actor for e in draft.events), f"{order.verb} left no event"
    return draft.finish(sentence)


def preview(state: ModelState, policy: ModelPolicy, order: Order, now: datetime) -> Preview:
    """What `apply` would do. Raises OverrideRefused."""
    decision = apply(state, policy, replace(order, reason=order.reason or "preview"), now)
    return Preview(
        row_version=state.row_version,
        sentences=tuple(e.sentence for e in decision.events),
        traffic_before=_traffic(state, policy),
        traffic_after=_traffic(decision.after, policy),
        phase_before=_phase(state),
        phase_after=_phase(decision.after),
    )


def _traffic(state: ModelState, policy: ModelPolicy) -> str:
    plan = state.plan or desired_plan(state, policy)
    return describe_traffic(plan.weights, plan.shadow)


def _phase(state: ModelState) -> str:
    return f"cycle {state.cycle.number}, {state.cycle.phase}" if state.cycle else "no open cycle"


def _record(draft: Draft, order: Order, sentence: str) -> str:
    text = f"{order.actor}: {sentence} ({order.reason.strip()})"
    draft.event(
        f"override.{order.verb}", text, notify=True, reason=order.reason.strip(), version=order.version,
        previewed=order.row_version,
    )  # fmt: skip
    return text


# ---------------------------------------------------------------- cycles
def _trigger(draft: Draft, order: Order) -> str:
    state = draft.state
    if state.cycle is not None:
        raise OverrideRefused(f"cycle {state.cycle.number} is open ({state.cycle.phase}); abort it first or let it end")
    if state.paused or state.pinned:
        raise OverrideRefused(f"{state.name} is {'paused' if state.paused else 'pinned'}; resume or unpin it first")
    sentence = _record(draft, order, f"opens cycle {state.next_cycle}")
    draft.open_cycle(f"person: {order.actor}, {order.reason.strip()}", sentence)
    return sentence


def _abort(draft: Draft, order: Order) -> str:
    cycle = _open_cycle(draft, order)
    if cycle.phase is Phase.BAKING:
        return _rollback(draft, order)
    if cycle.challenger in draft.state.versions:
        draft.mark(cycle.challenger, VersionStatus.QUARANTINED)
    sentence = _record(draft, order, f"aborts cycle {cycle.number} in {cycle.phase}")
    draft.move(Move.ABORTED, sentence, kind="cycle.aborted", notify=True)
    return sentence


def _approve(draft: Draft, order: Order) -> str:
    cycle = _waiting_for_approval(draft, order)
    sentence = _record(draft, order, f"approves the challenger of cycle {cycle.number}")
    draft.move(Move.APPROVED, sentence, kind="approval.granted")
    return sentence


def _reject(draft: Draft, order: Order) -> str:
    cycle = _waiting_for_approval(draft, order)
    sentence = _record(draft, order, f"rejects the challenger of cycle {cycle.number}")
    draft.move(Move.REFUSED, sentence, kind="cycle.rejected", notify=True)
    return sentence


def _open_cycle(draft: Draft, order: Order) -> Cycle:
    if draft.state.cycle is None:
        raise OverrideRefused(f"{draft.state.name} has no open cycle to {order.verb}")
    return draft.state.cycle


def _waiting_for_approval(draft: Draft, order: Order) -> Cycle:
    cycle = _open_cycle(draft, order)
    if cycle.phase is not Phase.AWAITING_APPROVAL:
        raise OverrideRefused(f"cycle {cycle.number} is in {cycle.phase} and asks for no approval")
    return cycle


# ---------------------------------------------------------------- holds
def _hold(field: str, words: str) -> Callable[[Draft, Order], str]:
    def apply_hold(draft: Draft, order: Order) -> str:
        held: Hold | None = getattr(draft.state, field)
        if held is not None:
            raise OverrideRefused(f"{draft.state.name} is {field} already, by {held.by}: {held.reason}")
        draft.set(**{field: Hold(by=order.actor, reason=order.reason.strip(), at=draft.now)})
        return _record(draft, order, words)

    return apply_hold


def _release(field: str, words: str) -> Callable[[Draft, Order], str]:
    def release_hold(draft: Draft, order: Order) -> str:
        held: Hold | None = getattr(draft.state, field)
        if held is None:
            raise OverrideRefused(f"{draft.state.name} is not {field}")
        draft.set(**{field: None})
        _shift_cycle(draft, held)
        return _record(draft, order, words)

    return release_hold


def _shift_cycle(draft: Draft, held: Hold) -> None:
    """Time spent on hold does not count towards a step, a bake or a deadline."""
    cycle = draft.state.cycle
    if cycle is None:
        return
    since = max(held.at, cycle.phase_since)
    pause = max(draft.now - since, draft.now - draft.now)
    draft.set_cycle(phase_since=cycle.phase_since + pause)
    if cycle.step_since is not None:
        draft.set_cycle(step_since=cycle.step_since + pause)


def _pin(draft: Draft, order: Order) -> str:
    if draft.state.pinned is not None:
        raise OverrideRefused(f"{draft.state.name} is pinned already; unpin it first")
    if draft.state.champion is None and order.version is None:
        raise OverrideRefused(f"{draft.state.name} has no champion to pin")
    number = order.version if order.version is not None else draft.state.champion
    _end_cycle_for(draft, order)
    if number != draft.state.champion:
        _enthrone(draft, order, number)
    draft.set(pinned=Hold(by=order.actor, reason=order.reason.strip(), at=draft.now))
    return _record(draft, order, f"pins the traffic to v{number}")


def _end_cycle_for(draft: Draft, order: Order) -> None:
    """Close an open cycle because a person takes the traffic elsewhere."""
    cycle = draft.state.cycle
    if cycle is None:
        return
    if cycle.phase is Phase.BAKING and order.verb is Verb.PIN:
        draft.move(Move.BAKED, f"{order.actor} pins v{cycle.challenger} during its bake", kind="cycle.promoted")
        return
    draft.move(Move.ABORTED, f"aborted, because {order.actor} orders {order.verb}", kind="cycle.aborted", notify=True)


# ---------------------------------------------------------------- versions
def _promote(draft: Draft, order: Order) -> str:
    cycle = draft.state.cycle
    wanted = order.version if order.version is not None else (cycle.challenger if cycle else None)
    if wanted is None or wanted not in draft.state.versions:
        known = ", ".join(f"v{n}" for n in sorted(draft.state.versions)) or "none"
        raise OverrideRefused(f"which version? {draft.state.name} has {known}")
    if wanted == draft.state.champion:
        raise OverrideRefused(f"v{wanted} is the champion already")
    if cycle is not None and cycle.phase is Phase.ROLLING_OUT and wanted == cycle.challenger:
        before = draft.state.champion
        _force(draft, order, wanted)
        draft.mark(before, VersionStatus.RETIRED)
        draft.mark(wanted, VersionStatus.CHAMPION)
        draft.set(champion=wanted, previous=before)
        sentence = _record(draft, order, f"promotes v{wanted} before its rollout ended")
        draft.move(Move.PROMOTED, sentence, kind="version.promoted", previous=before)
        if before is None:
            draft.move(Move.BAKED, sentence, kind="cycle.promoted")
        return sentence
    _end_cycle_for(draft, order)
    _enthrone(draft, order, wanted)
    return _record(draft, order, f"promotes v{wanted}")


def _rollback(draft: Draft, order: Order) -> str:
    state, cycle = draft.state, draft.state.cycle
    if cycle is not None and cycle.phase is Phase.ROLLING_OUT and order.version in (None, state.champion):
        draft.mark(cycle.challenger, VersionStatus.QUARANTINED)
        sentence = _record(draft, order, f"rolls v{cycle.challenger} back")
        draft.move(Move.FOUND_WORSE, sentence, kind="cycle.rolled_back", notify=True)
        return sentence
    wanted = order.version if order.version is not None else _version_before(state)
    if wanted is None or wanted not in state.versions or wanted == state.champion:
        raise OverrideRefused(f"{state.name} has no such version to go back to; name one with --version")
    worse = state.champion
    sentence = _record(draft, order, f"rolls back from v{worse} to v{wanted}")
    if cycle is not None and cycle.phase is Phase.BAKING:
        draft.move(Move.FOUND_WORSE, sentence, kind="cycle.rolled_back", notify=True)
    elif cycle is not None:
        if cycle.challenger in state.versions:
            draft.mark(cycle.challenger, VersionStatus.QUARANTINED)
        draft.move(Move.ABORTED, sentence, kind="cycle.aborted", notify=True)
    _enthrone(draft, order, wanted)
    draft.mark(worse, VersionStatus.QUARANTINED)
    draft.set(previous=None)
    return sentence


def _version_before(state: ModelState) -> int | None:
    if state.previous is not None and state.versions[state.previous].status is not VersionStatus.QUARANTINED:
        return state.previous
    older = [
        n for n, v in state.versions.items()
        if v.status is VersionStatus.RETIRED and state.champion is not None and n < state.champion
    ]  # fmt: skip
    return max(older, default=None)


def _enthrone(draft: Draft, order: Order, number: int | None) -> None:
    """Make a known version champion by a person's word, quarantined or not."""
    if number is None or number not in draft.state.versions:
        known = ", ".join(f"v{n}" for n in sorted(draft.state.versions)) or "none"
        raise OverrideRefused(f"{draft.state.name} has no v{number}; there are {known}")
    before = draft.state.champion
    _force(draft, order, number)
    draft.mark(before, VersionStatus.RETIRED)
    draft.mark(number, VersionStatus.CHAMPION)
    draft.set(champion=number, previous=before)


def _force(draft: Draft, order: Order, number: int) -> None:
    version = draft.state.versions[number]
    draft.set_version(replace(version, forced=f"{order.actor}: {order.reason.strip()}"))


VERBS: Mapping[Verb, Callable[[Draft, Order], str]] = {
    Verb.TRIGGER: _trigger,
    Verb.RETRY: _trigger,
    Verb.PAUSE: _hold("paused", "pauses the model: nothing moves until it is resumed"),
    Verb.RESUME: _release("paused", "resumes the model"),
    Verb.FREEZE: _hold("frozen", "freezes the traffic: cycles go on up to packaging"),
    Verb.UNFREEZE: _release("frozen", "lets traffic move again"),
    Verb.PIN: _pin,
    Verb.UNPIN: _release("pinned", "unpins the model"),
    Verb.APPROVE: _approve,
    Verb.REJECT: _reject,
    Verb.PROMOTE: _promote,
    Verb.ABORT: _abort,
    Verb.ROLLBACK: _rollback,
}
assert set(VERBS) == set(Verb)
