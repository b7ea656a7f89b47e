"""What a person may order, as pure functions from state to decision.

Each override is previewed on a state (its `row_version`) and refused if the state has moved on since; each leaves an event that says who
ordered it, why, and what was previewed. An override may move traffic while a model is held: it is a person's explicit word (invariant 11).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from controller.budget import BY_PERSON
from controller.cycle import Move
from controller.draft import CONTROLLER, FROZEN_PHASES, Decision, Draft, describe_traffic, until
from controller.facts import life_of
from controller.plan import desired_plan
from controller.quarantine import pardoned
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


WITH_VERSION = frozenset({Verb.PIN, Verb.PROMOTE, Verb.ROLLBACK})
"""Orders that may name a version."""
REASON_MAX = 2_000
ACTOR_MAX = 200
"""Characters. A hold keeps its reason in the model's state, which every later decision is recorded with."""
KNOWN_MAX = 10
"""So many versions, the newest, are named to a person who named none that there is."""


class OverrideRefused(Exception):
    """The order makes no sense in the present state; the message says why and what can be done."""


class StalePreview(OverrideRefused):
    """The state is no longer the one that was previewed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """The state that whoever orders has in mind, where it was not previewed: a message in which there are buttons may be old."""

    life: str
    """`facts.life_of` the model: a deleted one's name may have been given again."""
    cycle: int | None
    """The open one; None for none."""
    champion: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """A person's word. `version` only for pin, promote and rollback."""

    verb: Verb
    actor: str
    reason: str
    version: int | None = None
    row_version: int | None = None
    """Of the state that was previewed; None orders without a preview."""
    expected: Expected | None = None
    """What the order is about, if that is known without a preview."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """What an order would change."""

    row_version: int
    sentences: tuple[str, ...]
    traffic_before: str
    traffic_after: str
    phase_before: str
    phase_after: str
    held_before: str
    """Such as `paused, frozen`, or `no`."""
    held_after: str


def apply(state: ModelState, policy: ModelPolicy, order: Order, now: datetime) -> Decision:
    """The decision that the order asks for. Raises OverrideRefused, StalePreview."""
    if order.row_version is not None and order.row_version != state.row_version:
        raise StalePreview(
            f"{state.name} has changed since the preview (state {order.row_version}, now {state.row_version}); "
            f"look again with 'ratchet explain {state.name}' and repeat the order"
        )
    if order.expected is not None:
        _check_expected(state, order.expected)
    if not order.reason.strip():
        raise OverrideRefused(f"{order.verb} needs a reason (--reason), so that others can read later why it was done")
    check_lengths(order.actor, order.reason)
    if order.version is not None and order.verb not in WITH_VERSION:
        raise OverrideRefused(f"{order.verb} takes no version (--version), but got {order.version}")
    if order.actor.strip() in ("", CONTROLLER):
        raise OverrideRefused(f"an order needs the name of the person who gives it, but the actor is {order.actor!r}")
    draft = Draft(state, policy, now, actor=order.actor)
    sentence = VERBS[order.verb](draft, order)
    assert any(e.actor == order.actor for e in draft.events), f"{order.verb} left no event"
    return draft.finish(sentence)


def _check_expected(state: ModelState, expected: Expected) -> None:
    """Raises StalePreview if the model is not any more where whoever orders thinks it is."""
    number = state.cycle.number if state.cycle else None
    if (life_of(state), number, state.champion) == (expected.life, expected.cycle, expected.champion):
        return
    meant = f"cycle {expected.cycle}" if expected.cycle is not None else "a time without an open cycle"
    champion = f", with champion v{expected.champion}" if expected.champion is not None else ""
    raise StalePreview(
        f"{state.name} has moved on: this was about {meant}{champion}, and now it is {_phase(state)}"
        f"{f', with champion v{state.champion}' if state.champion is not None else ''}; look again before you order"
    )


def check_lengths(actor: str, reason: str = "") -> None:
    """Raises OverrideRefused for words that are too long for the record."""
    for what, text, longest in (("a reason", reason, REASON_MAX), ("an actor", actor, ACTOR_MAX)):
        if len(text) > longest:
            raise OverrideRefused(f"{what} has at most {longest} characters, but got {len(text)}")


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
        held_before=_held(state),
        held_after=_held(decision.after),
    )


def _traffic(state: ModelState, policy: ModelPolicy) -> str:
    plan = state.plan or desired_plan(state, policy)
    return describe_traffic(plan.weights, plan.shadow)


def _phase(state: ModelState) -> str:
    return f"cycle {state.cycle.number}, {state.cycle.phase.words}" if state.cycle else "no open cycle"


def _held(state: ModelState) -> str:
    return ", ".join(name for name in _HOLDS if getattr(state, name) is not None) or "no"


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
        raise OverrideRefused(
            f"cycle {state.cycle.number} is open ({state.cycle.phase.words}); abort it first or let it end"
        )
    if state.paused or state.pinned:
        stop, lift = ("paused", Verb.RESUME) if state.paused else ("pinned", Verb.UNPIN)
        raise OverrideRefused(f"{state.name} is {stop}; {lift} it first")
    sentence = _record(draft, order, f"opens cycle {state.next_cycle}")
    draft.open_cycle(f"{BY_PERSON}: {order.actor}, {order.reason.strip()}", sentence)
    return sentence


def _abort(draft: Draft, order: Order) -> str:
    cycle = _open_cycle(draft, order)
    if cycle.phase is Phase.BAKING:
        return _rollback(draft, order)
    sentence = _record(draft, order, f"aborts cycle {cycle.number} in {cycle.phase.words}")
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
        raise OverrideRefused(f"cycle {cycle.number} is in {cycle.phase.words} and asks for no approval")
    return cycle


# ---------------------------------------------------------------- holds
_HOLDS = ("paused", "frozen", "pinned")


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
        if getattr(draft.state, field) is None:
            raise OverrideRefused(f"{draft.state.name} is not {field}")
        lift(draft, field)
        return _record(draft, order, words)

    return release_hold


def lift(draft: Draft, field: str) -> None:
    """End a hold (`paused`, `frozen` or `pinned`), and give back the time that it took. Does nothing if there is none."""
    held: Hold | None = getattr(draft.state, field)
    draft.set(**{field: None})
    if held is not None and draft.state.cycle is not None:
        _give_time_back(draft, field, held)


def _give_time_back(draft: Draft, field: str, held: Hold) -> None:
    """Time spent on hold counts towards no step, bake or deadline. What a hold that lasts covers too is given back with that one."""
    cycle = draft.cycle
    if field == "frozen" and cycle.phase not in FROZEN_PHASES:
        return
    lasting = [hold.at for name in _HOLDS if (hold := getattr(draft.state, name)) is not None]
    end = min([draft.now, *lasting])
    moments = {name: getattr(cycle, name) for name in ("phase_since", "step_since", "blind_since", "counts_since")}
    draft.set_cycle(**{name: _later(m, held.at, end) for name, m in moments.items() if m is not None})


def _later(moment: datetime, start: datetime, end: datetime) -> datetime:
    """`moment` moved by the time that a hold from `start` to `end` took after it:

        moment + max(0, end - max(start, moment))

    >>> noon = datetime(2026, 1, 1, 12)
    >>> _later(noon, noon.replace(hour=13), noon.replace(hour=15)).hour
    14
    """
    return moment + max(end - max(start, moment), timedelta(0))


# ---------------------------------------------------------------- versions
def _pin(draft: Draft, order: Order) -> str:
    state, cycle = draft.state, draft.state.cycle
    if state.pinned is not None:
        raise OverrideRefused(f"{state.name} is pinned already, by {state.pinned.by}; unpin it first")
    number = order.version if order.version is not None else state.champion
    if number is None:
        raise OverrideRefused(f"{state.name} has no champion to pin; name a version with --version")
    words = f"pins the traffic to v{number}"
    if cycle is not None and cycle.phase is Phase.ROLLING_OUT and number == cycle.challenger:
        _promote_challenger(draft, order, words)
    elif number != state.champion:
        _enthrone(draft, order, number, words)
    else:
        _record(draft, order, words)
        if cycle is not None and cycle.phase is not Phase.BAKING:
            _abort_for(draft, order)
    if draft.state.cycle is not None:  # the champion of the moment is the one that bakes
        draft.move(Move.BAKED, f"{order.actor} pins v{number} during its bake", kind="cycle.promoted", notify=True)
    draft.set(pinned=Hold(by=order.actor, reason=order.reason.strip(), at=draft.now))
    return draft.events[0].sentence


def _promote(draft: Draft, order: Order) -> str:
    state, cycle = draft.state, draft.state.cycle
    wanted = order.version if order.version is not None else (cycle.challenger if cycle else None)
    if wanted is None:
        raise OverrideRefused(f"which version? name one with --version; {_known(state)}")
    if wanted == state.champion:
        raise OverrideRefused(f"v{wanted} is the champion already")
    if cycle is not None and cycle.phase is Phase.ROLLING_OUT and wanted == cycle.challenger:
        return _promote_challenger(draft, order, f"promotes v{wanted} before its rollout ended")
    return _enthrone(draft, order, wanted, f"promotes v{wanted}")


def _promote_challenger(draft: Draft, order: Order, words: str) -> str:
    """The rest of the rollout is left out. It is watched all the same, if there is a version to go back to."""
    before, wanted = draft.state.champion, draft.cycle.challenger
    assert wanted is not None
    sentence = _record(draft, order, words)
    _crown(draft, order, wanted)
    draft.move(Move.PROMOTED, sentence, kind="version.promoted", previous=before)
    if before is None:
        draft.move(Move.BAKED, sentence, kind="cycle.promoted")
    return sentence


def _rollback(draft: Draft, order: Order) -> str:
    state, cycle = draft.state, draft.state.cycle
    if cycle is not None and cycle.phase is Phase.ROLLING_OUT and order.version in (None, state.champion):
        sentence = _record(draft, order, f"rolls v{cycle.challenger} back")
        draft.move(Move.FOUND_WORSE, sentence, kind="cycle.rolled_back", notify=True)
        return sentence
    worse = state.champion
    if worse is None:
        raise OverrideRefused(f"no version of {state.name} serves, so there is nothing to roll back")
    wanted = order.version if order.version is not None else version_before(state)
    if wanted is None:
        raise OverrideRefused(f"there is no version before v{worse} to go back to; {_known(state)}")
    if wanted == worse:
        raise OverrideRefused(f"v{worse} is the champion already; name the version to go back to with --version")
    if wanted in state.versions and state.versions[wanted].status is VersionStatus.CANDIDATE:
        raise OverrideRefused(f"v{wanted} has never been champion, so it is nothing to go back to; promote it instead")
    sentence = _enthrone(draft, order, wanted, f"rolls back from v{worse} to v{wanted}")
    draft.quarantine(worse)
    draft.set(previous=None)
    return sentence


def version_before(state: ModelState) -> int | None:
    """The newest version before the champion that was champion without being taken back, and can still serve."""
    assert state.champion is not None
    usable = {
        n for n, v in state.versions.items() if v.status is VersionStatus.RETIRED and v.removed_at is None
    }  # fmt: skip
    if state.previous in usable:
        return state.previous
    return max((n for n in usable if n < state.champion), default=None)


def _enthrone(draft: Draft, order: Order, number: int, words: str) -> str:
    """Make a known version champion by a person's word, quarantined or not; an open cycle ends, for its champion is gone."""
    version = draft.state.versions.get(number)
    if version is None:
        raise OverrideRefused(f"{draft.state.name} has no v{number}; {_known(draft.state)}")
    if version.removed_at is not None:
        raise OverrideRefused(
            f"v{number} was removed at {until(version.removed_at)} to make room and cannot serve again; {_known(draft.state)}"
        )
    sentence = _record(draft, order, words)
    if draft.state.cycle is not None:
        _abort_for(draft, order)
    _crown(draft, order, number)
    draft.set(trigger_memory={})  # what was counted was counted about another champion
    return sentence


def _abort_for(draft: Draft, order: Order) -> None:
    """Close the open cycle, because a person takes the traffic elsewhere."""
    cycle = draft.cycle
    baked = cycle.phase is Phase.BAKING and order.verb in (Verb.ABORT, Verb.ROLLBACK)
    move, kind = (Move.FOUND_WORSE, "cycle.rolled_back") if baked else (Move.ABORTED, "cycle.aborted")
    ended = f"cycle {cycle.number} ends in {cycle.phase.words}, because {order.actor} orders {order.verb}"
    draft.move(move, ended, kind=kind, notify=True)


def _crown(draft: Draft, order: Order, number: int) -> None:
    """Change the champion, and write down whose word it was and why (invariants 2 and 7)."""
    before = draft.state.champion
    if before is not None and draft.state.versions[before].status is VersionStatus.CHAMPION:
        draft.mark(before, VersionStatus.RETIRED)
    forced = f"{order.actor}: {order.reason.strip()}"
    draft.set_version(replace(draft.state.versions[number], status=VersionStatus.CHAMPION, forced=forced))
    draft.set(champion=number, previous=before, refused=pardoned(draft.state.refused, number))


def _known(state: ModelState) -> str:
    """Which versions can be named."""
    known = [f"v{n} ({v.status})" for n, v in sorted(state.versions.items()) if v.removed_at is None]
    return f"{state.name} has {', '.join(known[-KNOWN_MAX:]) or 'no version yet'}"


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
