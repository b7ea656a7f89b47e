"""The phases in which the challenger carries traffic: rolling out, and the watch after promotion. Pure.

Missing evidence is unknown: it moves nothing forward. The challenger's share may grow while nothing is shown against it; to have all,
and to end its bake, it must be shown to be no worse. A rollout without that at its deadline gives the traffic back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from controller import gains
from controller.cycle import Move
from controller.draft import Draft, elapsed, until
from controller.health import Health
from controller.state import ModelState, Phase, VersionStatus
from deployers.target import ReplicaState, ReplicaStatus, TargetStatus
from policies.durations import format_duration
from policies.metric_rules import Verdict, judge
from policies.signals import Comparison, Signal

LOOKS_WORSE = 0.1
"""Share of the margin above which a mean difference looks worse: of two that are alike one is always a little above the other."""
ERROR_WINDOW = timedelta(minutes=10)
"""Errors are counted anew so often, beside the total: a version that breaks after a million good answers must be found out at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What is known about the rollout at this moment."""

    target: TargetStatus | None
    target_error: str
    comparison: Comparison | None
    max_age: timedelta
    metrics: Mapping[str, Signal] = field(default_factory=dict)
    """Of the challenger, by `MetricRule.key`."""


def baseline(state: ModelState) -> int | None:
    """The version that the challenger is compared with: the champion, or after promotion the one before."""
    baking = state.cycle is not None and state.cycle.phase is Phase.BAKING
    return state.previous if baking else state.champion


def advance(draft: Draft, evidence: Evidence) -> str:
    """One look at a rollout or a bake."""
    bad = why_worse(draft, evidence)
    if bad:
        return _go_back(draft, bad, evidence)
    if draft.cycle.alarmed:
        draft.set_cycle(alarmed=False)
    _count_anew(draft, evidence)
    _leave_out_blind_time(draft, evidence)
    if draft.cycle.phase is Phase.BAKING:
        return _bake(draft, evidence)
    return _roll(draft, evidence)


# ---------------------------------------------------------------- what is wrong with it
def why_worse(draft: Draft, evidence: Evidence) -> str:
    """What speaks for taking the challenger back, or an empty string."""
    if broken := _health(draft, evidence).broken():
        return broken
    comparison = evidence.comparison
    if comparison is not None and comparison.state == "worse":
        return comparison.sentence
    return next(
        (f"v{draft.cycle.challenger}: {one.sentence}" for one in _verdicts(draft, evidence) if one.state == "bad"), ""
    )


def _verdicts(draft: Draft, evidence: Evidence) -> list[Verdict]:
    """What the policy's metrics say of the challenger. Before it has live traffic they say nothing."""
    if draft.cycle.traffic_since is None:
        return []
    rules = draft.policy.spec.rollout.metrics
    return [judge(rule, evidence.metrics.get(rule.key), draft.now, evidence.max_age) for rule in rules]


def _metrics_missing(draft: Draft, evidence: Evidence) -> str:
    """Why metrics do not allow to go on: one is unknown (invariant 4), or looks bad without being shown to be; or an empty string."""
    held = [one.sentence for one in _verdicts(draft, evidence) if one.state == "unknown" or one.doubtful]
    return "; ".join(held)


def _health(draft: Draft, evidence: Evidence) -> Health:
    cycle, rollout = draft.cycle, draft.policy.spec.rollout
    return Health(
        name=f"v{cycle.challenger}", replica=_challenger_replica(draft, evidence),
        baseline=evidence.target.baseline if evidence.target is not None else None, champion=f"v{draft.state.champion}",
        earlier=cycle.counts, limit=rollout.max_error_share, max_slowdown=rollout.max_slowdown,
    )  # fmt: skip


def _count_anew(draft: Draft, evidence: Evidence) -> None:
    """Begin another window of errors when the last one is over, or when the counters began again with another replica."""
    cycle, health = draft.cycle, _health(draft, evidence)
    if health.replica is None:
        return
    now, since = health.counters, cycle.counts_since
    began_again = any(now.get(name, 0) < count for name, count in cycle.counts.items())
    if since is None or began_again or elapsed(since, draft.now) >= ERROR_WINDOW:
        draft.set_cycle(counts=now, counts_since=draft.now)


def _leave_out_blind_time(draft: Draft, evidence: Evidence) -> None:
    """Time in which the traffic was not seen in force proves nothing (invariant 4): it lengthens the hold, or the bake."""
    cycle = draft.cycle
    counting = cycle.step_since is not None or cycle.phase is Phase.BAKING
    if not counting or _in_force(draft, evidence) == (cycle.blind_since is None):
        return
    if cycle.blind_since is None:
        draft.set_cycle(blind_since=draft.now)
        return
    lost = elapsed(cycle.blind_since, draft.now)
    draft.set_cycle(blind_since=None)
    if cycle.step_since is not None:
        draft.set_cycle(step_since=cycle.step_since + lost)
    if cycle.phase is Phase.BAKING:
        draft.set_cycle(phase_since=cycle.phase_since + lost)


def _challenger_replica(draft: Draft, evidence: Evidence) -> ReplicaStatus | None:
    challenger = draft.cycle.challenger
    if evidence.target is None or challenger is None:
        return None
    return evidence.target.replicas.get(challenger)


def _go_back(draft: Draft, reason: str, evidence: Evidence) -> str:
    cycle, state = draft.cycle, draft.state
    never_served = _never_served(draft, evidence)
    draft.quarantine(cycle.challenger)
    if cycle.phase is Phase.BAKING:
        assert state.previous is not None, "only a successor is watched"
        draft.mark(state.previous, VersionStatus.CHAMPION)
        draft.set(champion=state.previous, previous=None)
    back = f"v{draft.state.champion} serves" if draft.state.champion is not None else "no version serves"
    if never_served:
        sentence = f"not rolled out: {reason}; {back}"
        draft.move(Move.GAVE_UP, sentence, kind="cycle.failed", notify=True, reason=reason)
    else:
        sentence = f"rolled back: {reason}; {back}, v{cycle.challenger} is quarantined"
        numbers = _numbers(evidence.comparison)
        draft.move(Move.FOUND_WORSE, sentence, kind="cycle.rolled_back", notify=True, reason=reason, **numbers)
    return sentence


def _never_served(draft: Draft, evidence: Evidence) -> bool:
    """Whether no live request can have been taken from another version for it. Traffic may have been in force unseen."""
    if draft.cycle.phase is Phase.ROLLING_OUT and draft.state.champion is None:
        return True  # the first version: there is nothing to go back to
    cycle, target, replica = draft.cycle, evidence.target, _challenger_replica(draft, evidence)
    reached = (target is not None and cycle.challenger in target.weights) or (replica is not None and replica.requests)
    return cycle.phase is Phase.ROLLING_OUT and cycle.traffic_since is None and not reached


def _numbers(comparison: Comparison | None) -> dict[str, Any]:
    if comparison is None:
        return {}
    return {
        "challenger_rows": comparison.challenger_rows, "champion_rows": comparison.champion_rows,
        "challenger_score": comparison.challenger_score, "champion_score": comparison.champion_score,
        "difference": gains.numbers(comparison.difference), "realised": gains.numbers(comparison.realised),
    }  # fmt: skip


# ---------------------------------------------------------------- rolling out
def _roll(draft: Draft, evidence: Evidence) -> str:
    cycle, rollout = draft.cycle, draft.policy.spec.rollout
    deadline = cycle.phase_since + rollout.deadline
    if draft.now >= deadline:
        return _out_of_time(draft, evidence)
    index = min(cycle.step, len(rollout.steps) - 1)
    step = rollout.steps[index]
    name = f"v{cycle.challenger} at {step.label} (step {index + 1} of {len(rollout.steps)})"
    if draft.state.champion is None:
        name = f"v{cycle.challenger}, the first version"  # takes all traffic at once, whatever the steps
    if not _in_force(draft, evidence):
        return f"{name}: waits for {_what_is_missing(draft, evidence)}; gives up at {until(deadline)}"
    if cycle.step_since is None:
        draft.set_cycle(step_since=draft.now, traffic_since=cycle.traffic_since or draft.now)
        if draft.state.champion is not None:
            sentence = f"{name}: in force, holds for {format_duration(step.hold)}"
            draft.event("step.reached", sentence, notify=True, step=index, weight=step.weight, shadow=step.shadow)
            return sentence
    if draft.state.champion is None:
        return _promote(draft)
    left = step.hold - elapsed(_step_since(draft), draft.now)
    if left > timedelta(0):
        return f"{name}: holds for {format_duration(left)} more; {_said(evidence)}"
    if _shown_to_be_no_better(draft, evidence):
        return _no_better(draft, evidence)
    whole = rollout.steps[min(index + 1, len(rollout.steps) - 1)].weight == 100
    missing = (
        _health(draft, evidence).doubtful()
        or _evidence_missing(draft, evidence, _step_since(draft), shown=whole)
        or _expected_worse(draft, evidence)
        or (not step.shadow and _metrics_missing(draft, evidence))
    )
    if missing:
        return f"{name}: waits, because {missing}; gives the traffic back at {until(deadline)}"
    if index + 1 < len(rollout.steps):
        draft.set_cycle(step=index + 1, step_since=None, blind_since=None)
        following = rollout.steps[index + 1]
        sentence = f"v{cycle.challenger} goes from {step.label} to {following.label}; {_said(evidence)}"
        draft.event("step.passed", sentence, step=index, **_numbers(evidence.comparison))
        return sentence
    return _promote(draft, _said(evidence))


def _step_since(draft: Draft) -> datetime:
    assert draft.cycle.step_since is not None, "the step is not in force yet"
    return draft.cycle.step_since


def _in_force(draft: Draft, evidence: Evidence) -> bool:
    plan = draft.state.plan
    return plan is not None and evidence.target is not None and evidence.target.generation == plan.generation


def _what_is_missing(draft: Draft, evidence: Evidence) -> str:
    if evidence.target is None:
        return f"the target ({evidence.target_error or 'not observed yet'})"
    replica = _challenger_replica(draft, evidence)
    if replica is None or replica.state is not ReplicaState.READY:
        return f"its replicas ({replica.reason or replica.state if replica else 'not started yet'})"
    return "its traffic to be in force"


def _evidence_missing(draft: Draft, evidence: Evidence, since: datetime, *, shown: bool, counted: bool = True) -> str:
    """Why what is known, and was measured since then, does not allow to go on (invariant 4), or an empty string.

    `shown`: to be not worse is not enough, it must be shown to be no worse. `counted`: there must be as many rows as the policy asks for,
    which before the last step there were."""
    comparison, rollout = evidence.comparison, draft.policy.spec.rollout
    need = rollout.min_labelled_rows
    if need == 0:
        return ""
    if comparison is None:
        return "its answers have not been compared with the champion's yet"
    if comparison.observed_at < since:
        return "its answers have not been compared with the champion's since this step began"
    if elapsed(comparison.observed_at, draft.now) > evidence.max_age:
        return f"the newest comparison is from {until(comparison.observed_at)}"
    rows = min(comparison.challenger_rows, comparison.champion_rows)
    if counted and rows < need:
        return f"only {rows} of its answers can be compared so far, of {need} needed (rollout.min_labelled_rows)"
    if shown and comparison.state != "no_worse":
        return f"it is not shown yet to be no worse by {rollout.margin:g}; {comparison.sentence}"
    looks_worse = comparison.difference is not None and comparison.difference.value > LOOKS_WORSE * rollout.margin
    if shown and counted and looks_worse:
        return f"so far it looks worse than the champion, if by less than the margin; {comparison.sentence}"
    return ""


def _shown_to_be_no_better(draft: Draft, evidence: Evidence) -> bool:
    """Whether more rows will not help: the whole interval of the difference lies on the wrong side, if within the margin."""
    comparison = evidence.comparison
    if comparison is None or comparison.difference is None or comparison.difference.low <= 0:
        return False
    return not _evidence_missing(draft, evidence, _step_since(draft), shown=False)


def _expected_worse(draft: Draft, evidence: Evidence) -> str:
    """Why the challenger's share stays as it is while labels are missing, or an empty string.

    Confidences only hold, they neither promote nor roll back: they do not see what has come to mean something else.
    """
    comparison, margin = evidence.comparison, draft.policy.spec.rollout.margin
    if comparison is None or comparison.state != "undecided":
        return ""
    difference = comparison.expected_difference
    if difference is None or difference <= margin or elapsed(comparison.observed_at, draft.now) > evidence.max_age:
        return ""
    return (
        f"by its confidences its loss is expected to be {difference:.3f} above the champion's, more than {margin:g}"
        " (labels have not decided it yet)"
    )


def _said(evidence: Evidence) -> str:
    return evidence.comparison.sentence if evidence.comparison is not None else "not compared yet"


def _out_of_time(draft: Draft, evidence: Evidence) -> str:
    deadline = format_duration(draft.policy.spec.rollout.deadline)
    if draft.state.champion is None:
        sentence = f"v{draft.cycle.challenger} did not serve within {deadline}; no version serves"
        draft.mark(draft.cycle.challenger, VersionStatus.QUARANTINED)
        draft.move(Move.GAVE_UP, sentence, kind="cycle.failed", notify=True)
        return sentence
    return _end_undecided(draft, evidence, f"the rollout did not end within {deadline}")


def _no_better(draft: Draft, evidence: Evidence) -> str:
    """It will never be shown to be at least as good, so the deadline need not be waited for."""
    return _end_undecided(
        draft, evidence, f"v{draft.cycle.challenger} is shown to be worse, if by less than the margin"
    )


def _end_undecided(draft: Draft, evidence: Evidence, reason: str) -> str:
    sentence = f"{reason}; v{draft.state.champion} serves; {_said(evidence)}"
    numbers = _numbers(evidence.comparison)
    draft.move(Move.UNDECIDED, sentence, kind="cycle.ended_inconclusive", notify=True, **numbers)
    return sentence


def _promote(draft: Draft, why: str = "") -> str:
    cycle, before = draft.cycle, draft.state.champion
    draft.mark(before, VersionStatus.RETIRED)
    draft.mark(cycle.challenger, VersionStatus.CHAMPION)
    draft.set(champion=cycle.challenger, previous=before)
    bake = draft.policy.spec.rollout.bake
    if before is None:
        sentence = f"v{cycle.challenger} serves: the first version"
    else:
        sentence = f"v{cycle.challenger} is champion, watched for {format_duration(bake)}{'; ' + why if why else ''}"
    draft.move(Move.PROMOTED, sentence, kind="version.promoted", notify=True, previous=before)
    if before is None:
        draft.move(Move.BAKED, sentence, kind="cycle.promoted")
    return sentence


# ---------------------------------------------------------------- baking
def _bake(draft: Draft, evidence: Evidence) -> str:
    cycle, rollout, previous = draft.cycle, draft.policy.spec.rollout, draft.state.previous
    assert previous is not None, "only a successor is watched"
    assert cycle.challenger is not None
    if cycle.blind_since is not None:
        return f"v{cycle.challenger} is champion, but cannot be watched: waits for {_what_is_missing(draft, evidence)}"
    end = cycle.phase_since + rollout.bake
    if draft.now < end:
        return f"v{cycle.challenger} is champion, watched until {until(end)}; {_said(evidence)}"
    by_word = bool(draft.state.versions[cycle.challenger].forced)  # a person's promotion asks for no evidence
    missing = "" if by_word else _bake_missing(draft, evidence)
    if missing and draft.now >= end + rollout.deadline:
        return _unshown(draft, evidence, missing)
    if missing:
        last = until(end + rollout.deadline)
        return f"v{cycle.challenger} is champion, still watched, because {missing}; v{previous} serves again at {last}"
    gained = gains.said(cycle, evidence.comparison, draft.policy, previous)
    sentence = f"v{cycle.challenger} stays: nothing spoke against it in {format_duration(rollout.bake)}; {gained}"
    draft.move(Move.BAKED, sentence, kind="cycle.promoted", notify=True, **_numbers(evidence.comparison))
    return sentence


def _bake_missing(draft: Draft, evidence: Evidence) -> str:
    return _evidence_missing(draft, evidence, draft.cycle.phase_since, shown=True, counted=False) or _metrics_missing(
        draft, evidence
    )


def _unshown(draft: Draft, evidence: Evidence, missing: str) -> str:
    """Nobody could say for too long whether the new champion is any good: the one before, which was, serves again."""
    cycle, state = draft.cycle, draft.state
    draft.mark(cycle.challenger, VersionStatus.RETIRED)
    draft.mark(state.previous, VersionStatus.CHAMPION)
    draft.set(champion=state.previous, previous=None)
    sentence = f"the bake of v{cycle.challenger} ended undecided, because {missing}; v{draft.state.champion} serves"
    draft.move(Move.UNDECIDED, sentence, kind="cycle.ended_inconclusive", notify=True, **_numbers(evidence.comparison))
    return sentence
