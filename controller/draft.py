"""A decision in the making: the changed state, what is said about it, and the invariants that it must keep.

`decide` and `overrides` both write into a `Draft` and finish it, so that no change of state can leave out its event, its traffic plan
or its checks. Pure: the draft lives for one call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from controller.budget import BY_PERSON
from controller.cycle import Move, after
from controller.facts import facts_of, life_of
from controller.incidents import faults_of, look
from controller.invariants import check_transition
from controller.plan import desired_plan
from controller.quarantine import remembered
from controller.state import (
    Cycle,
    Ended,
    Event,
    FaultOrigin,
    KnownFault,
    ModelState,
    NoticeRecord,
    Outcome,
    Phase,
    Version,
    VersionStatus,
)
from policies.schema import ModelPolicy
from policies.signals import Fault

CONTROLLER = "ratchet"
"""The actor of what no person ordered."""
BOOTSTRAP = "bootstrap"
"""The cause of the cycles that open because nothing serves."""
FRUITLESS = frozenset({Outcome.REJECTED, Outcome.INCONCLUSIVE, Outcome.ROLLED_BACK, Outcome.FAILED})
"""Outcomes of cycles that came to their end and brought no new champion."""
FROZEN_PHASES = frozenset({Phase.PACKAGING, Phase.ROLLING_OUT, Phase.BAKING})
"""Where a freeze holds the cycle; before, it may go on, because it moves no traffic."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What one look decided: nothing (`changed` is False) or one transaction's worth."""

    before: ModelState
    after: ModelState
    closed: Cycle | None
    events: Sequence[Event]
    notices: Sequence[NoticeRecord]
    sentence: str
    found: Sequence[KnownFault] = ()
    """Faults that the model did not have before."""
    gone: Sequence[KnownFault] = ()
    """Faults that it no longer has."""

    @property
    def changed(self) -> bool:
        return self.after != self.before or self.closed is not None or bool(self.events)


@dataclass(slots=True)
class Draft:
    """Collects one decision. `actor` is `ratchet` or the person who asked."""

    before: ModelState
    policy: ModelPolicy
    now: datetime
    actor: str = CONTROLLER
    state: ModelState = field(init=False)
    closed: Cycle | None = None
    events: list[Event] = field(default_factory=list)
    notices: list[NoticeRecord] = field(default_factory=list)
    found: list[KnownFault] = field(default_factory=list)
    gone: list[KnownFault] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state = self.before

    @property
    def cycle(self) -> Cycle:
        assert self.state.cycle is not None, "no cycle is open"
        return self.state.cycle

    def set(self, **changes: Any) -> None:
        """Replace fields of the model's state."""
        self.state = replace(self.state, **changes)

    def set_cycle(self, **changes: Any) -> None:
        """Replace fields of the open cycle."""
        self.set(cycle=replace(self.cycle, **changes))

    def set_version(self, version: Version) -> None:
        self.set(versions={**self.state.versions, version.number: version})

    def mark(self, number: int | None, status: VersionStatus) -> None:
        """Give a version another status; None, or a number that became no version, is nobody."""
        if number is not None and number in self.state.versions:
            self.set_version(replace(self.state.versions[number], status=status))

    def quarantine(self, number: int | None) -> None:
        """Ban a version until a person's next word: what they said before it failed no longer counts (invariant 7)."""
        self.mark(number, VersionStatus.QUARANTINED)
        if number is not None and number in self.state.versions:
            self.set_version(replace(self.state.versions[number], forced=""))

    def event(self, kind: str, sentence: str, *, notify: bool = False, **data: Any) -> None:
        """Record something that happened; with `notify`, also tell people."""
        cycle = self.state.cycle or self.closed
        number = cycle.number if cycle else None
        self.events.append(
            Event(
                model=self.state.name,
                kind=kind,
                sentence=sentence,
                at=self.now,
                cycle=number,
                actor=self.actor,
                data=data,
            )
        )
        if notify:
            key = f"{self.state.name}/{life_of(self.state)}/{number or 0}/{kind}/{self.before.row_version}"
            notice = NoticeRecord(key=key, model=self.state.name, kind=kind, text=sentence, at=self.now, data=data)
            self.notices.append(notice)

    def see_faults(self, faults: Sequence[Fault], origin: FaultOrigin, at: datetime) -> None:
        """Take note of what was found wrong with the model's feed, when it was looked at."""
        looked = look(self.state.faults, faults, origin, at)
        if looked.after != self.state.faults:
            self.set(faults=looked.after)
        self.found += looked.found
        self.gone += looked.gone
        for fault in looked.found:
            self.event("fault.found", fault.sentence, fault=fault.kind, source=fault.source, subject=fault.subject)
        for fault in looked.gone:
            self.event("fault.gone", f"no longer: {fault.sentence}", fault=fault.kind, source=fault.source)

    def see_prepared(self, output: Mapping[str, Any]) -> None:
        """The same, of the rows that the prepare job looked at."""
        self.see_faults(faults_of(output), FaultOrigin.PREPARED, self.now)

    def open_cycle(self, cause: str, sentence: str, **data: Any) -> None:
        """Open a cycle (invariant 1: only when none is)."""
        assert self.state.cycle is None, "a cycle is open already"
        number = self.state.next_cycle
        horizon = self.now - self.policy.spec.budget.per
        cycle = Cycle(
            model=self.state.name, number=number, phase=Phase.QUEUED, sentence=sentence, cause=cause,
            opened_at=self.now, phase_since=self.now,
        )  # fmt: skip
        recent = tuple(entry for entry in self.state.recent_cycles if entry[0] > horizon)
        self.set(cycle=cycle, next_cycle=number + 1, trigger_memory={}, recent_cycles=(*recent, (self.now, 0.0)))
        self.event("cycle.opened", sentence, notify=True, cause=cause, **data)

    def move(self, move: Move, sentence: str, *, kind: str, notify: bool = False, **data: Any) -> None:
        """Take the open cycle along the table; close it where the table ends."""
        target = after(self.cycle.phase, move)
        self.set_cycle(sentence=sentence)
        if target is Phase.BAKING:
            self.set_cycle(promoted_at=self.now)
        if isinstance(target, Outcome):
            self._close(target)
        else:
            self.set_cycle(
                phase=target, phase_since=self.now, attempt=1, not_before=None, job_id=None, step_since=None,
                blind_since=None, counts={}, counts_since=None,
            )  # fmt: skip
        self.event(kind, sentence, notify=notify, **data)

    def _close(self, outcome: Outcome) -> None:
        cycle = replace(self.cycle, outcome=outcome, closed_at=self.now, job_id=None)
        recent = self.state.recent_cycles
        if recent and recent[-1][0] == cycle.opened_at:
            recent = (*recent[:-1], (cycle.opened_at, cycle.compute_s))
        self.closed = cycle
        if outcome in (Outcome.ABORTED, Outcome.ROLLED_BACK):
            self.quarantine(cycle.challenger)
        self.set(refused=remembered(self.state, cycle, outcome, self.now))
        if outcome is Outcome.PROMOTED:
            self.set(fruitless=0)
        elif outcome in FRUITLESS:
            self.set(fruitless=self.state.fruitless + 1)
        ended = Ended(
            cycle=cycle.number, outcome=outcome, sentence=cycle.sentence, opened_at=cycle.opened_at, at=self.now
        )
        self.set(ended=ended)
        self.set(cycle=None, last_closed_at=self.now, recent_cycles=recent, trigger_memory={})

    def finish(self, sentence: str) -> Decision:
        """Bring the traffic plan in line with the new state, check the invariants, and hand the decision over."""
        self._note_champion()
        self._replan()
        decision = Decision(
            before=self.before, after=self.state, closed=self.closed, events=tuple(self.events),
            notices=tuple(map(self._with_facts, self.notices)), sentence=sentence, found=tuple(self.found), gone=tuple(self.gone),
        )  # fmt: skip
        check_transition(decision.before, decision.after, person=self.actor != CONTROLLER)
        return decision

    def _with_facts(self, notice: NoticeRecord) -> NoticeRecord:
        """The numbers as they are at the end of the decision, the new traffic included."""
        return replace(notice, data=facts_of(self.state, self.closed, self.policy, self.actor, notice.data))

    def _note_champion(self) -> None:
        if self.state.champion != self.before.champion:
            cycle = self.state.cycle or self.closed
            number = cycle.number if cycle else self.state.next_cycle - 1
            self.set(champion_since=self.now, champion_cycle=number)

    def _replan(self) -> None:
        wanted = desired_plan(self.state, self.policy)
        now = self.state.plan
        if now is not None and replace(wanted, epoch=now.epoch, generation=now.generation) == now:
            return
        if now is None and not wanted.digests:
            return
        plan = replace(wanted, generation=(now.generation if now else 0) + 1)
        self.set(plan=plan)
        cause = self.events[-1].sentence if self.events else "the policy's capacity changed"
        self.event(
            "traffic.changed", f"{describe_traffic(plan.weights, plan.shadow)}, because: {cause}",
            weights={str(v): w for v, w in plan.weights.items()}, shadow=plan.shadow, generation=plan.generation,
        )  # fmt: skip


def describe_traffic(weights: Mapping[int, float], shadow: int | None) -> str:
    """For example `v3 95 %, v4 5 %`.

    >>> describe_traffic({3: 95, 4: 5}, None)
    'v3 95 %, v4 5 %'
    """
    parts = [f"v{v} {w:g} %" for v, w in sorted(weights.items())]
    if shadow is not None:
        parts.append(f"v{shadow} in shadow")
    return ", ".join(parts) or "no version serves"


def until(moment: datetime) -> str:
    """A moment as people read it."""
    return moment.strftime("%Y-%m-%d %H:%M")


def because(cause: str) -> str:
    """Why a cycle was opened, as people read it after a comma.

    >>> because("bootstrap"), because("trigger: accuracy fell"), because("person: ann, more data")
    ('because no version serves yet', 'because accuracy fell', 'because ann asked: more data')
    """
    kind, _, words = cause.partition(": ")
    if kind == BY_PERSON:
        who, _, why = words.partition(", ")
        return f"because {who} asked: {why}" if why else f"because {who} asked"
    return f"because {'no version serves yet' if cause == BOOTSTRAP else words or cause}"


def elapsed(since: datetime, now: datetime) -> timedelta:
    """Time since, never negative: a clock that went back counts as no time."""
    return max(now - since, timedelta(0))
