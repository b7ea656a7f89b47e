"""`decide(snapshot, now)`: the whole judgement of the controller about one model, as a pure function.

It reads everything that was observed, and returns the next state with the events to record and one sentence for people. It never acts:
what must run and serve follows from the state it returns (`controller.plan`, `controller.work`), so a crash between deciding and acting
loses nothing. It never reads a clock or draws a random number: the same snapshot always gives the same decision, which is how a
recorded one is replayed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from controller import incidents, phases, rollouts
from controller.budget import spent_words
from controller.cycle import JOB_PHASES, TRAFFIC_PHASES, Move
from controller.draft import BOOTSTRAP, FROZEN_PHASES, Decision, Draft, because, until
from controller.evidence import drift_window
from controller.state import FaultOrigin, Hold, ModelState, Phase
from deployers.target import TargetStatus
from pipelines.jobs.port import JobStatus
from policies import triggers
from policies.durations import format_duration
from policies.schema import ModelPolicy
from policies.signals import AlertSignal, Comparison, Fault, Signal


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """What was measured about a model's live traffic, and about which versions."""

    champion: int | None
    """Whose signals these are."""
    baseline: int | None = None
    """What the challenger was compared with; while it bakes it is the champion itself, and the one before is the baseline."""
    challenger: int | None = None
    signals: Mapping[str, Signal] = field(default_factory=dict)
    comparison: Comparison | None = None
    faults: Sequence[Fault] = ()
    """Of what feeds it."""
    looked_at: datetime | None = None
    """When faults were looked for; None if they could not be, which is unknown."""
    metrics: Mapping[str, Signal] = field(default_factory=dict)
    """What the monitoring system tells, by `metric_of`."""


def metric_of(key: str, version: int) -> str:
    """Where a version's metric stands in an observation.

    >>> metric_of("metric:error_rate", 3)
    'v3 metric:error_rate'
    """
    return f"v{version} {key}"


def metrics_of(observed: Observation | None, version: int | None) -> dict[str, Signal]:
    """A version's metrics, by `MetricRule.key`."""
    if observed is None or version is None or not observed.metrics:
        return {}
    start = metric_of("", version)
    return {key.removeprefix(start): signal for key, signal in observed.metrics.items() if key.startswith(start)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """All that one decision may rest on."""

    state: ModelState
    job: JobStatus | None = None
    """Of the open cycle's job; None if it was never started."""
    target: TargetStatus | None = None
    """None if the target is away or knows nothing."""
    target_error: str = ""
    observation: Observation | None = None
    alerts: Mapping[str, AlertSignal] = field(default_factory=dict)
    """What Alertmanager has told of those that the triggers wait for, by `policies.trigger_rules.alert_key`."""
    busy_cycles: int = 0
    """Open cycles of other models that are past queueing."""
    max_busy_cycles: int = 1_000_000
    signal_max_age: timedelta = timedelta(hours=6)
    """Older measurements are unknown."""


def decide(snapshot: Snapshot, now: datetime, policy: ModelPolicy | None = None) -> Decision:
    """What should become of the model. `policy` spares parsing when the caller has it parsed."""
    policy = policy or ModelPolicy.model_validate_json(snapshot.state.policy)
    draft = Draft(snapshot.state, policy, now)
    if snapshot.observation is not None and snapshot.observation.looked_at is not None:
        draft.see_faults(snapshot.observation.faults, FaultOrigin.LIVE, snapshot.observation.looked_at)
    hold = held(snapshot.state)
    if hold is not None:
        return draft.finish(_wait(draft, snapshot, hold))
    if snapshot.state.cycle is None:
        return draft.finish(_watch(draft, snapshot))
    return draft.finish(_advance(draft, snapshot))


def held(state: ModelState) -> str | None:
    """The sentence that says who stopped the model, if somebody did and it has come to where that matters."""
    if state.paused is not None:
        return f"paused by {_who(state.paused)}"
    if state.pinned is not None:
        return f"pinned to v{state.champion} by {_who(state.pinned)}"
    phase = state.cycle.phase if state.cycle else None
    if state.frozen is not None and phase is not None and phase in FROZEN_PHASES:
        return f"frozen by {_who(state.frozen)}: traffic does not move, the cycle waits in {phase.words}"
    return None


def _who(hold: Hold) -> str:
    return f"{hold.by} since {until(hold.at)}: {hold.reason}"


def _wait(draft: Draft, snapshot: Snapshot, hold: str) -> str:
    """A hold keeps traffic from moving (invariant 11), also away from what fails; but people are told, once."""
    cycle = draft.state.cycle
    if cycle is None or cycle.phase not in TRAFFIC_PHASES or cycle.alarmed:
        return hold
    bad = rollouts.why_worse(draft, _evidence(draft, snapshot))
    if not bad:
        return hold
    sentence = (
        f"{bad}; it keeps its traffic, because the model is {hold}; 'ratchet rollback {draft.state.name}' takes it back"
    )
    draft.set_cycle(alarmed=True)
    draft.event("challenger.failing", sentence, notify=True, reason=bad)
    return sentence


# ---------------------------------------------------------------- no cycle is open
def _watch(draft: Draft, snapshot: Snapshot) -> str:
    state = draft.state
    refusal = not_now(state, draft.policy, draft.now)
    if state.champion is None:
        if refusal:
            brought = f"no version serves yet: cycle {state.next_cycle - 1} brought none"
            return f"{brought}; {refusal}; 'ratchet trigger {state.name}' does not wait"
        sentence = "first cycle: no version serves yet"
        draft.open_cycle(BOOTSTRAP, sentence)
        return sentence
    facts = trigger_facts(draft, snapshot)
    result = triggers.evaluate(draft.policy.spec.triggers, facts)
    if result.memory != state.trigger_memory:
        draft.set(trigger_memory=result.memory)
    if result.state is not triggers.TriggerState.FIRED:
        return f"v{state.champion} serves; {result.sentence}"
    if refusal:
        return f"v{state.champion} serves; would retrain, because {result.sentence}, but {refusal}"
    sentence = f"retraining, because {result.sentence}"
    draft.open_cycle(f"trigger: {result.sentence}", sentence)
    window = drift_window(draft.policy.spec.triggers, result.leaves, facts, state.champion)
    draft.set_cycle(changed_at=result.changed_at, drift=window)
    return sentence


def trigger_facts(draft: Draft, snapshot: Snapshot) -> triggers.TriggerFacts:
    """What the triggers of the policy look at. Measurements of another champion than the present one do not count."""
    state = draft.state
    champion = state.versions[state.champion] if state.champion is not None else None
    observed = snapshot.observation
    fresh = observed is not None and observed.champion == state.champion
    measured = {**(observed.signals if observed is not None and fresh else {}), **metrics_of(observed, state.champion)}
    return triggers.TriggerFacts(
        now=draft.now,
        signals=_trusted(draft, measured),
        baselines=champion.scores if champion else {},
        baseline_rows=champion.lineage.get("judged_rows") if champion else None,
        fruitless=state.fruitless,
        trained_rows=champion.lineage.get("rows") if champion else None,
        objective=draft.policy.spec.objective.metric,
        trained_to=champion.trained_to if champion else None,
        since=state.last_closed_at or state.created_at,
        alerts=snapshot.alerts,
        model=state.name,
        opened_at=state.recent_cycles[-1][0] if state.recent_cycles else None,
        memory=state.trigger_memory,
        max_age=snapshot.signal_max_age,
    )


def _trusted(draft: Draft, signals: Mapping[str, Signal]) -> Mapping[str, Signal]:
    holds = draft.policy.spec.data.quality == "hold"
    return incidents.trusted(signals, draft.state.faults) if holds else signals


BACKOFFS_MAX = 3
"""Times that a cooldown grows."""


def cooldown(state: ModelState, policy: ModelPolicy) -> timedelta:
    """How long after the last cycle no other opens by itself: longer while cycles bring nothing, since one more is unlikely to."""
    grown = min(state.fruitless, BACKOFFS_MAX)
    return policy.spec.cooldown * float(policy.spec.backoff) ** grown


def not_now(state: ModelState, policy: ModelPolicy, now: datetime) -> str:
    """Why no cycle may open by itself at this moment (cooldown, budget), or an empty string."""
    spec = policy.spec
    wait = cooldown(state, policy)
    if state.last_closed_at is not None and now < state.last_closed_at + wait:
        vain = f", longer because {state.fruitless} cycles in a row brought nothing" if wait > spec.cooldown else ""
        return f"cooldown lasts until {until(state.last_closed_at + wait)}{vain}"
    inside = [entry for entry in state.recent_cycles if entry[0] > now - spec.budget.per]
    if len(inside) >= spec.budget.cycles:
        again = until(inside[-spec.budget.cycles][0] + spec.budget.per)
        return (
            f"the budget of {spec.budget.cycles} cycles per {format_duration(spec.budget.per)} is spent until {again}"
        )
    used_s = sum(seconds for _, seconds in inside)
    if spec.budget.compute is not None and used_s >= spec.budget.compute.total_seconds():
        return f"{spent_words(policy)} ({used_s:.0f} s used)"
    return ""


# ---------------------------------------------------------------- a cycle is open
def _advance(draft: Draft, snapshot: Snapshot) -> str:
    phase = draft.cycle.phase
    if phase is Phase.QUEUED:
        return _start(draft, snapshot)
    if phase in JOB_PHASES:
        return phases.advance(draft, snapshot.job)
    if phase is Phase.AWAITING_APPROVAL:
        return _await_approval(draft)
    return rollouts.advance(draft, _evidence(draft, snapshot))


def _evidence(draft: Draft, snapshot: Snapshot) -> rollouts.Evidence:
    comparison = snapshot.observation.comparison if snapshot.observation is not None else None
    return rollouts.Evidence(
        target=snapshot.target,
        target_error=snapshot.target_error,
        comparison=comparison if _about_this_rollout(draft, snapshot) else None,
        max_age=snapshot.signal_max_age,
        metrics=metrics_of(snapshot.observation, draft.cycle.challenger),
    )


def _about_this_rollout(draft: Draft, snapshot: Snapshot) -> bool:
    """Whether the newest comparison is of these two versions, taken since the challenger has had traffic."""
    observed, since = snapshot.observation, draft.cycle.traffic_since
    rivals = (rollouts.baseline(draft.state), draft.cycle.challenger)
    if observed is None or observed.comparison is None or since is None:
        return False
    return (observed.baseline, observed.challenger) == rivals and observed.comparison.observed_at >= since


def _start(draft: Draft, snapshot: Snapshot) -> str:
    if snapshot.busy_cycles >= snapshot.max_busy_cycles:
        return f"waits for one of {snapshot.max_busy_cycles} places for cycles, {because(draft.cycle.cause)}"
    sentence = f"preparing data, {because(draft.cycle.cause)}"
    draft.move(Move.STARTED, sentence, kind="cycle.started")
    draft.set_cycle(cutoff=draft.now)
    return sentence


def _await_approval(draft: Draft) -> str:
    deadline = draft.cycle.phase_since + draft.policy.spec.approval_timeout
    if draft.now < deadline:
        return f"waits for approval until {until(deadline)}: {draft.cycle.sentence}"
    sentence = f"nobody approved it until {until(deadline)}; the champion stays"
    draft.move(Move.UNDECIDED, sentence, kind="cycle.ended_inconclusive", notify=True)
    return sentence
