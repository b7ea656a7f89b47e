"""What a new or changed policy does to a model's state, as pure functions from state to decision.

An open cycle that has moved no traffic yet was searching for an answer to the old question: it is superseded. One that is rolling out or
baking goes on, under the new policy's steps and limits. A person wrote the policy, so it may do what a trigger may not: where no version
serves yet, the first cycle need not wait for the cooldown that a failed one has left behind.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import datetime
from typing import Any

from controller.cycle import TABLE, Move
from controller.draft import Decision, Draft, describe_traffic
from controller.overrides import OverrideRefused, lift
from controller.plan import step_after_edit
from controller.state import Cycle, Event, Hold, ModelState, Origin, Phase
from policies.schema import ModelPolicy

KIND = "policy.applied"
DELETED = "model.deleted"
SOURCE_HOLD = "source"
"""Who pauses a model whose policy is gone from where it was followed."""


def canonical(policy: ModelPolicy) -> str:
    """The text that is stored: equal policies have equal texts, however they were written."""
    return policy.model_dump_json(by_alias=True)


def digest(text: str) -> str:
    """
    >>> digest("{}")[:15]
    'sha256:44136fa3'
    """
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def new_model(
    policy: ModelPolicy,
    directory: str,
    actor: str,
    now: datetime,
    *,
    next_version: int = 1,
    next_cycle: int = 1,
    origin: Origin | None = None,
) -> tuple[ModelState, Event]:
    """The state of a model that was not known, and the event that says who asked for it.

    `next_version` and `next_cycle` go on where a deleted model of that name had ended: numbers only grow (invariant 3)."""
    text = canonical(policy)
    state = ModelState(
        name=policy.name, policy=text, policy_digest=digest(text), policy_dir=directory, created_at=now,
        next_version=next_version, next_cycle=next_cycle, origin=origin,
    )  # fmt: skip
    event = Event(
        model=policy.name, kind=KIND, sentence=f"{actor}: adds the model {policy.name}", at=now, actor=actor,
        data={"old": None, "new": state.policy_digest, "policy_dir": directory, **_source(origin)},
    )  # fmt: skip
    return state, event


def numbers_after(last: Event | None) -> tuple[int, int]:
    """The next version and cycle number of a model that is not known, by the newest event of its name."""
    went_on = last.data if last is not None and last.kind == "model.deleted" else {}
    return int(went_on.get("next_version", 1)), int(went_on.get("next_cycle", 1))


def check_by_hand(state: ModelState, *, force: bool) -> Origin | None:
    """A policy that is followed is changed where it stands. Raises OverrideRefused without `force`; the origin to go on with."""
    origin = state.origin
    if origin is None or origin.lost:
        return None
    if not force:
        raise OverrideRefused(
            f"{state.name} is followed from {origin.where}, file {origin.file} ({origin.said}): change it there; "
            f"or give --force, and this policy counts until that file changes"
        )
    return origin


def is_unchanged(state: ModelState, policy: ModelPolicy, directory: str) -> bool:
    """Whether applying the policy would change nothing."""
    by_hand = state.origin is None or bool(state.origin.forced)
    return state.policy == canonical(policy) and state.policy_dir == directory and by_hand


def change_policy(
    state: ModelState, policy: ModelPolicy, directory: str, actor: str, now: datetime, *, origin: Origin | None = None
) -> Decision:
    """The decision to follow another policy from now on; `origin`: where it is followed from, None for a person's hand.

    Raises OverrideRefused if the model's versions answer another question."""
    before = ModelPolicy.model_validate_json(state.policy)
    if state.versions and before.spec.task is not policy.spec.task:
        raise OverrideRefused(
            f"{state.name}: spec.task must stay {before.spec.task.value!r} while there are versions, but got "
            f"{policy.spec.task.value!r}; use another name, or delete the model first"
        )
    text = canonical(policy)
    draft = Draft(state, policy, now, actor=actor)
    draft.set(policy=text, policy_digest=digest(text), policy_dir=directory, trigger_memory={}, origin=origin)
    if state.paused is not None and state.paused.by == SOURCE_HOLD:
        lift(draft, "paused")
    sentence = f"{actor}: changes the policy of {state.name}"
    cycle = state.cycle
    draft.event(KIND, sentence, old=state.policy_digest, new=digest(text), policy_dir=directory, **_source(origin))
    if cycle is not None and (cycle.phase, Move.SUPERSEDED) in TABLE:
        ended = f"cycle {cycle.number} ends in {cycle.phase.words}, because {actor} changed the policy"
        draft.move(Move.SUPERSEDED, ended, kind="cycle.superseded", notify=True)
        draft.set(last_closed_at=state.last_closed_at)  # it answered nothing, so no cooldown follows
        sentence = f"{sentence}; {ended}"
    elif cycle is not None and cycle.phase is Phase.ROLLING_OUT:
        _keep_pace(draft, cycle, before)
    if draft.state.champion is None and draft.state.cycle is None:
        draft.set(last_closed_at=None, recent_cycles=())
    decision = draft.finish(sentence)
    _check_holds(decision)
    return decision


def _source(origin: Origin | None) -> dict[str, Any]:
    if origin is None:
        return {}
    return {
        "source": origin.where,
        "file": origin.file,
        "commit": origin.revision,
        "code_commit": origin.pinned or None,
    }


def restamp(state: ModelState, policy: ModelPolicy, origin: Origin, actor: str, now: datetime) -> Decision:
    """The same policy, followed from elsewhere or in other words: nothing changes but where it comes from."""
    draft = Draft(state, policy, now, actor=actor)
    draft.set(origin=origin)
    if state.origin is None or state.origin.lost or state.origin.forced:
        if state.paused is not None and state.paused.by == SOURCE_HOLD:
            lift(draft, "paused")
        draft.event(
            "policy.followed", f"{actor}: follows the policy of {state.name} from {origin.file}", **_source(origin)
        )
    return draft.finish(f"follows {origin.file}")


def lose(state: ModelState, policy: ModelPolicy, why: str, actor: str, now: datetime) -> Decision:
    """Nothing follows the model any more: it serves on, but opens no cycle and goes on with none until a person says what becomes of it."""
    assert state.origin is not None, "only a policy that is followed can be lost"
    draft = Draft(state, policy, now, actor=actor)
    reason = f"{why}; 'ratchet delete {state.name}' stops what serves, 'ratchet apply' takes it over by hand"
    draft.set(origin=replace(state.origin, lost=why))
    if state.paused is None:
        draft.set(paused=Hold(by=SOURCE_HOLD, reason=reason, at=now))
    sentence = f"{actor}: {why}; the model is no longer followed, it serves on and its cycles are paused"
    draft.event("policy.lost", sentence, notify=True, **_source(state.origin))
    return draft.finish(sentence)


def _keep_pace(draft: Draft, cycle: Cycle, before: ModelPolicy) -> None:
    """Go on at a step of the new policy that gives the challenger no more traffic than it has; another step begins anew."""
    old, new = before.spec.rollout.steps, draft.policy.spec.rollout.steps
    step, stood = step_after_edit(old, cycle.step, new), old[min(cycle.step, len(old) - 1)]
    draft.set_cycle(step=step)
    if (new[step].weight, new[step].shadow) != (stood.weight, stood.shadow):
        draft.set_cycle(step_since=None, blind_since=None)


def _check_holds(decision: Decision) -> None:
    """A policy is no order to move traffic (invariant 11). Raises OverrideRefused."""
    state, now, then = decision.before, decision.before.plan, decision.after.plan
    hold = state.paused or state.frozen or state.pinned
    if hold is None or now is None or then is None or (now.weights, now.shadow) == (then.weights, then.shadow):
        return
    raise OverrideRefused(
        f"{state.name} is held by {hold.by} ({hold.reason}), and this policy would move its traffic from "
        f"{describe_traffic(now.weights, now.shadow)} to {describe_traffic(then.weights, then.shadow)}; "
        f"resume, unfreeze or unpin it, or abort its cycle, and apply the policy then"
    )


def superseded(state: ModelState) -> int | None:
    """The number of the cycle that another policy would end, if there is one."""
    cycle = state.cycle
    return cycle.number if cycle is not None and (cycle.phase, Move.SUPERSEDED) in TABLE else None


def deletion(state: ModelState, actor: str, reason: str, now: datetime) -> Event:
    """The event that says that a model is gone, and from which number a later one of its name goes on."""
    return Event(
        model=state.name, kind=DELETED, sentence=f"{actor}: deletes the model {state.name} ({reason})", at=now,
        actor=actor, cycle=state.cycle.number if state.cycle else None,
        data={"next_version": state.next_version, "next_cycle": state.next_cycle, "reason": reason,
              "policy": state.policy_digest, "champion": state.champion},
    )  # fmt: skip
