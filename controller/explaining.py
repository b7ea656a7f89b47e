"""Why a model is where it is, what happens next and when, and how to stop it: what somebody woken at 3 a.m. needs. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from controller import views
from controller.decide import cooldown, held, not_now
from controller.draft import because, until
from controller.overrides import Verb, version_before
from controller.state import Cycle, FaultOrigin, ModelState, Outcome, Phase
from policies.cron import parse_cron
from policies.durations import about, format_duration
from policies.schema import ManualTrigger, ModelPolicy, Rollout, ScheduleTrigger, StalenessTrigger, trigger_leaves

REFUSALS_SHOWN = 3
REPORTS_SHOWN = 3
_REFUSED = (Outcome.REJECTED, Outcome.ROLLED_BACK, Outcome.INCONCLUSIVE, Outcome.FAILED)
_TRADE_OFFS = {
    "image": "a replica starts as soon as it has the image, and every new version brings its whole model along",
    "volume": "the model lies once on each machine; replicas start without moving it, and share its memory",
    "pull": "a replica fetches the model when it starts, unless its machine has it already; images stay small",
}
_FOLLOWS = {
    Phase.QUEUED: "the data is prepared as soon as there is a place",
    Phase.PREPARING: "then parameters are searched",
    Phase.TUNING: "then the model is trained with the best parameters found",
    Phase.TRAINING: "then the model is judged",
    Phase.JUDGING: "then it is packaged and rolled out, if it passes every gate",
    Phase.PACKAGING: "then it is rolled out",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """What answers requests, and why it may."""

    version: views.VersionView
    cause: str
    """Why the cycle that made it was opened, such as `because ann asked: more data`; empty if that is forgotten."""
    gates: Sequence[str]
    """What each gate said, or what stands for it."""
    image: Sequence[str] = ()
    """Where its image and its model are, and why there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A cycle that brought no new champion."""

    cycle: int
    outcome: str
    at: datetime
    sentence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Evidently's report of the drift that opened a cycle."""

    cycle: int
    file: str
    """On the daemon's machine."""
    url: str
    """Path in the API."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """What one may type."""

    command: str
    effect: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """All of it, in the order in which it is read."""

    model: views.ModelDetail
    now: datetime
    headline: str
    sentence: str
    """What the controller said when it last looked."""
    serving: Serving | None
    opened: str
    """Why the open cycle, or else the last one, was opened; and when."""
    next: Sequence[str]
    """What happens by itself, and when."""
    refused: Sequence[Refusal]
    """Newest first."""
    reports: Sequence[Report]
    """Of the newest cycles that drift opened, as far as they are made; newest first."""
    commands: Sequence[Command]
    faults: Sequence[str] = ()
    """What is wrong with its data, and what follows from that."""
    gitops: str = ""
    """Where the champion's digest was written to, or why it is not yet; empty if it is written nowhere."""
    metrics: Sequence[str] = ()
    """What the policy's metrics say now: value, bound and count, or why they are unknown."""


def explain(
    state: ModelState,
    policy: ModelPolicy,
    model: views.ModelDetail,
    *,
    cycles: Sequence[Cycle],
    now: datetime,
    reports: Sequence[Report] = (),
    metrics: Sequence[str] = (),
    gitops: str = "",
) -> Explanation:
    """`cycles`: the newest of the model, newest first; `model`: the same state, as people are shown it."""
    return Explanation(
        model=model,
        now=now,
        headline=_headline(state),
        sentence=model.sentence,
        serving=_serving(state, cycles),
        opened=_opened(cycles),
        next=_next(state, policy, now),
        refused=[_refusal(c) for c in cycles if c.outcome in _REFUSED][:REFUSALS_SHOWN],
        reports=reports,
        commands=_commands(state),
        faults=_faults(state, policy),
        metrics=metrics,
        gitops=gitops,
    )


def _headline(state: ModelState) -> str:
    serves = f"v{state.champion} serves" if state.champion is not None else "no version serves yet"
    stops = [word for word in ("paused", "frozen", "pinned") if getattr(state, word) is not None]
    cycle = state.cycle
    doing = f"cycle {cycle.number} is {cycle.phase.words}" if cycle else "no cycle is open"
    return ", ".join([serves, doing, *stops])


# ---------------------------------------------------------------- what serves, and what was refused
def _serving(state: ModelState, cycles: Sequence[Cycle]) -> Serving | None:
    if state.champion is None:
        return None
    version = state.versions[state.champion]
    maker = next((c for c in cycles if c.number == version.cycle), None)
    gates = list(maker.outputs.get("judging", {}).get("gates") or ()) if maker else []
    return Serving(
        version=views.version(version),
        cause=because(maker.cause) if maker else "",
        gates=[_gate(g) for g in gates] or [str(version.lineage.get("gates", ""))],
        image=_image(version.lineage.get("image") or {}),
    )


def _image(image: Mapping[str, Any]) -> list[str]:
    """Where a version's model lies, what that costs, and whose choice it was; and where its image was pushed."""
    placement, size = image.get("placement"), image.get("size_bytes")
    if placement is None:
        return []
    told = [f"model placement {placement}, chosen by the policy (spec.model.placement): {_TRADE_OFFS[placement]}"]
    if image.get("reference"):
        moved = f"; {(image.get('bytes_sent') or 0) / 1e6:.1f} of its {(size or 0) / 1e6:.1f} MB had to be sent"
        told.append(f"pushed as {image['reference']}{moved}")
    return told


def _gate(gate: Mapping[str, Any]) -> str:
    """Its sentence; the verdict too, where it is not the expected one."""
    return str(gate["sentence"]) if gate["verdict"] == "pass" else f"{gate['verdict']}: {gate['sentence']}"


def _opened(cycles: Sequence[Cycle]) -> str:
    if not cycles:
        return "no cycle was ever opened"
    last = cycles[0]
    ended = "" if last.outcome is None else f"; it ended as {last.outcome.words}: {last.sentence}"
    return f"cycle {last.number} opened at {until(last.opened_at)}, {because(last.cause)}{ended}"


def _refusal(cycle: Cycle) -> Refusal:
    assert cycle.outcome is not None
    return Refusal(
        cycle=cycle.number,
        outcome=cycle.outcome.value,
        at=cycle.closed_at or cycle.phase_since,
        sentence=cycle.sentence,
    )


def _faults(state: ModelState, policy: ModelPolicy) -> list[str]:
    if not state.faults:
        return []
    told = [f"since {until(fault.since)}: {fault.sentence} ({fault.source})" for fault in state.faults]
    if policy.spec.data.quality != "hold":
        return told
    follows = "such rows are held: no cycle learns from them"
    if any(fault.origin is FaultOrigin.LIVE for fault in state.faults):
        follows += ", and no trigger that rests on live rows fires"
    return [*told, f"{follows}; data.quality_ignore in the policy names columns that are meant to be so"]


# ---------------------------------------------------------------- what comes next
def _next(state: ModelState, policy: ModelPolicy, now: datetime) -> list[str]:
    if held(state) is not None:
        stop = "paused" if state.paused else "pinned" if state.pinned else "frozen"
        return [f"nothing, until somebody {_LIFTED[stop]} it"]
    if state.cycle is None:
        return _next_without_cycle(state, policy, now)
    cycle = state.cycle
    match cycle.phase:
        case Phase.AWAITING_APPROVAL:
            deadline = cycle.phase_since + policy.spec.approval_timeout
            return [f"at {_when(deadline, now)} it ends as inconclusive, unless somebody approves or rejects it"]
        case Phase.ROLLING_OUT:
            return _next_in_rollout(state, cycle, policy.spec.rollout, now)
        case Phase.BAKING:
            end = cycle.phase_since + policy.spec.rollout.bake
            back = f"traffic goes back to v{state.previous}" if state.previous is not None else "it keeps serving"
            kept = policy.spec.rollout.kept_back
            share = (
                [f"until then v{state.previous} answers {kept:g} % of the requests, to compare with"] if kept else []
            )
            return [f"at {_when(end, now)} it stays for good", f"if it turns out worse before, {back}", *share]
        case Phase.JUDGING if policy.spec.approval == "required":
            return ["then somebody must approve it, if it passes every gate"]
        case _:
            return [_FOLLOWS[cycle.phase], *_frozen_later(state)]


_LIFTED = {"paused": "resumes", "pinned": "unpins", "frozen": "unfreezes"}


def _frozen_later(state: ModelState) -> list[str]:
    return ["before packaging it waits, because the traffic is frozen"] if state.frozen is not None else []


def _next_in_rollout(state: ModelState, cycle: Cycle, rollout: Rollout, now: datetime) -> list[str]:
    deadline = cycle.phase_since + rollout.deadline
    if state.champion is None:
        return ["it serves as soon as it is ready", f"at {_when(deadline, now)} it is given up, if it is not"]
    index = min(cycle.step, len(rollout.steps) - 1)
    last = index + 1 == len(rollout.steps)
    goes = "it becomes champion" if last else f"it goes to {rollout.steps[index + 1].label}"
    whole = rollout.steps[min(index + 1, len(rollout.steps) - 1)].weight == 100 and rollout.min_labelled_rows > 0
    if_ = "if it is shown to be no worse" if whole else "if nothing speaks against it"
    if cycle.step_since is None:
        first = (
            f"once {rollout.steps[index].label} is in force, it holds for {format_duration(rollout.steps[index].hold)}"
        )
    else:
        first = f"at {_when(cycle.step_since + rollout.steps[index].hold, now)} {goes}, {if_}"
    return [first, f"at {_when(deadline, now)} all traffic goes back to v{state.champion}, if it is not through"]


def _next_without_cycle(state: ModelState, policy: ModelPolicy, now: datetime) -> list[str]:
    spec = policy.spec
    lines = []
    wait = cooldown(state, policy)
    rest = state.last_closed_at + wait if state.last_closed_at is not None else None
    if rest is not None and rest > now:
        lines.append(f"no trigger opens a cycle before {_when(rest, now)} (cooldown {format_duration(wait)})")
    elif spent := not_now(state, policy, now):
        lines.append(f"no trigger opens a cycle: {spent}")
    if state.champion is None:
        return [*lines, "then the first cycle opens" if lines else "the first cycle opens"]
    for leaf in trigger_leaves(spec.triggers):
        if isinstance(leaf, ScheduleTrigger):
            due = parse_cron(leaf.schedule.cron).next_after(now)
            lines += [f"the schedule {leaf.schedule.cron!r} is due at {_when(due, now)}"] if due else []
        if isinstance(leaf, StalenessTrigger):
            champion = state.versions[state.champion]
            known = [t for t in (champion.trained_to, state.last_closed_at) if t is not None]
            stale = max(known, default=state.created_at) + leaf.staleness.age
            lines.append(f"it is stale from {_when(stale, now)}")
    if all(isinstance(leaf, ManualTrigger) for leaf in trigger_leaves(spec.triggers)):
        return ["no cycle opens by itself: the policy has no trigger but your word"]
    return [*lines, "a cycle opens when the triggers fire"]


def _when(moment: datetime, now: datetime) -> str:
    """
    >>> from datetime import UTC, timedelta
    >>> night = datetime(2013, 3, 2, 3, 0, tzinfo=UTC)
    >>> _when(night + timedelta(minutes=90), night)
    '2013-03-02 04:30 (in 1h30m)'
    """
    return f"{until(moment)} (in {about(moment - now)})" if moment > now else f"{until(moment)} (now due)"


# ---------------------------------------------------------------- what one may do
def _commands(state: ModelState) -> list[Command]:
    """What stops the present course, quickest first; then what else makes sense here."""
    serving = f"v{state.champion}" if state.champion is not None else "no version"
    cycle = state.cycle
    lifts = [
        (word, verb) for word, verb in (("paused", Verb.RESUME), ("frozen", Verb.UNFREEZE), ("pinned", Verb.UNPIN))
    ]
    offers = [
        (verb, f"ends the hold by {hold.by}: {hold.reason}") for word, verb in lifts if (hold := getattr(state, word))
    ]
    if cycle is not None:
        offers += _cycle_commands(state, cycle, serving)
    elif state.champion is not None and (before := version_before(state)) is not None:
        offers.append((Verb.ROLLBACK, f"takes {serving} out of service, back to v{before}"))
    if state.paused is None:
        offers.append((Verb.PAUSE, "stops everything; traffic stays as it is"))
    if state.champion is not None and state.pinned is None and cycle is None:
        offers.append((Verb.PIN, f"keeps {serving}, whatever the triggers say"))
    if cycle is None and not state.paused and not state.pinned:
        offers.append((Verb.TRIGGER, "opens a cycle now"))
    return [Command(command=f"ratchet {verb.value} {state.name}", effect=effect) for verb, effect in offers]


def _cycle_commands(state: ModelState, cycle: Cycle, serving: str) -> list[tuple[Verb, str]]:
    number = f"cycle {cycle.number}"
    ends = f"ends {number}; {serving} {'serves' if state.champion is None else 'stays'}"
    match cycle.phase:
        case Phase.BAKING:
            return [(Verb.ROLLBACK, f"takes {serving} out of service, back to v{state.previous}")]
        case Phase.AWAITING_APPROVAL:
            return [(Verb.APPROVE, "lets it roll out"), (Verb.REJECT, ends)]
        case Phase.ROLLING_OUT if state.champion is not None:
            return [
                (Verb.ROLLBACK, f"gives all traffic back to {serving}, quarantines v{cycle.challenger}"),
                (Verb.PROMOTE, f"makes v{cycle.challenger} champion now"),
            ]
        case _:
            return [(Verb.ABORT, ends)]
