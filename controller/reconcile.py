"""One look at one model: observe → decide → record → act. Returns the sentence that says what is going on.

The order matters. The decision is committed before anything acts on it; what then acts (`_converge`) asks for nothing but what the
committed state calls for, with calls that are idempotent. A crash anywhere leaves either the old state, from which the same look is
taken again, or the new one, from which the same actions follow. When a look fails, be it the store or a bug, the committed plan is
still kept in force: a replica that dies meanwhile is started again (invariant 8).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import structlog
from pydantic import TypeAdapter

from controller.applying import DELETED
from controller.cycle import JOB_PHASES
from controller.decide import Observation, Snapshot, decide, held
from controller.draft import Decision
from controller.evidence import cycle_of_report_job, report_job
from controller.phases import model_of_job
from controller.recovering import is_behind
from controller.state import ModelState, Phase, Version
from controller.store.port import Commit, ConflictError, FencedError, Store
from controller.telemetry.metrics import count_events
from controller.work import wanted_job
from deployers.target import StalePlanError, Target, TargetError, TargetStatus
from pipelines.jobs.port import JobRunner, JobStatus, RetryableJobError
from policies.schema import ModelPolicy
from policies.signals import AlertSignal

log = structlog.get_logger()

MAX_STRIDES = 8
"""Decisions in one look: a finished job may open the next phase at once, but a look stays bounded."""

_SNAPSHOT = TypeAdapter(Snapshot)
GROUNDS = ("now", "snapshot")
"""Keys of an event's data that hold what its decision rested on."""


class LostLeadership(Exception):
    """Another controller leads, or may. Stop acting at once (invariant 6)."""


class LapsedLease(LostLeadership):
    """The lease could not be renewed in time, and nobody is known to have taken it: stop acting, but it may yet be renewed."""


class DatabaseBehind(Exception):
    """The target follows a newer plan than the store knows, so nothing may be decided."""


class Observer(Protocol):
    """Where measurements of live traffic come from."""

    def observe(self, state: ModelState, policy: ModelPolicy, now: datetime) -> Observation | None:
        """The newest measurement, without waiting for one; None if there is none yet."""


class Leadership(Protocol):
    def epoch(self) -> int:
        """The fencing token. Raises LostLeadership if the lease may have run out."""


@dataclass(slots=True)
class Reconciler:
    """Everything one look needs. Holds no truth of its own: it may be rebuilt at any moment."""

    store: Store
    jobs: JobRunner
    target: Target
    observer: Observer
    leadership: Leadership
    home: Path
    max_busy_cycles: int = 4
    signal_max_age: timedelta = timedelta(hours=6)
    strides: int = MAX_STRIDES
    keep_grounds: bool = True
    """Whether each decision is recorded with its whole snapshot, so that it can be replayed."""
    busy_cycles: Callable[[str], int] = lambda _name: 0
    """How many other models' cycles are past queueing."""
    reports: bool = False
    """Whether Evidently's report is made of the drift that opens a cycle."""
    packaging: Mapping[str, Any] = field(default_factory=dict)
    """What packaging jobs are told of the daemon's settings (`deployers.package`)."""
    studies: Mapping[str, Any] = field(default_factory=dict)
    """Where searches are kept, if not in their working folders (`tuners.shared_study`)."""
    alerts: Callable[[ModelPolicy], Mapping[str, AlertSignal]] = lambda _policy: {}
    """What Alertmanager has told of the alerts that a policy waits for."""
    restless: set[str] = field(default_factory=set)
    """Models that wait for something that may end at any moment, and should be looked at again soon."""
    _policies: dict[str, tuple[str, ModelPolicy]] = field(default_factory=dict)
    _target_errors: dict[str, str] = field(default_factory=dict)
    _reported: dict[str, str] = field(default_factory=dict)
    """Model → its newest report job that was started, so that it is asked for once and not at every look."""
    _newest: dict[str, tuple[datetime | None, int]] = field(default_factory=dict)
    """Model → when it was made (None: it was deleted), and the newest row version that was looked at."""

    def reconcile(self, name: str, clock: Callable[[], datetime], seen: ModelState | None = None) -> str:
        """Look at one model. Raises LostLeadership, StoreError; anything wrong outside is part of the sentence.

        `seen`: what the store held a moment ago, which is taken for its state unless something newer is known."""
        sentence = ""
        for _ in range(self.strides):
            state = seen if seen is not None and self._is_newest(seen) else self.store.load(name)
            seen = None
            if state is None:
                return self._clear_away(name)
            self._newest[name] = (state.created_at, state.row_version)
            try:
                decision, state = self._decide(state, clock())
            except (LostLeadership, ConflictError):
                raise
            except DatabaseBehind as behind:
                return self._hold_behind(state, str(behind))
            except Exception:
                self._keep_serving(state)
                raise
            self._newest[name] = (state.created_at, state.row_version)
            trouble = self._converge(state)
            self._note_pace(state)
            told = not trouble or trouble in decision.sentence
            sentence = decision.sentence if told else f"{decision.sentence}; {trouble}"
            if decision.after.cycle == decision.before.cycle and decision.after.plan == decision.before.plan:
                break
        return sentence

    def _is_newest(self, state: ModelState) -> bool:
        """Whether no newer state of the model was looked at. Acting on an older one would ask the target for an older plan."""
        made_at, row_version = self._newest.get(state.name, (state.created_at, 0))
        return made_at == state.created_at and state.row_version >= row_version

    def policy(self, state: ModelState) -> ModelPolicy:
        """The parsed policy of a state, parsed once for each text."""
        text, found = self._policies.get(state.name, ("", None))
        if found is None or text != state.policy:
            found = ModelPolicy.model_validate_json(state.policy)
            self._policies[state.name] = (state.policy, found)
        return found

    def _decide(self, state: ModelState, now: datetime) -> tuple[Decision, ModelState]:
        """What to make of the model, and its state with that recorded."""
        policy = self.policy(state)
        snapshot = self._observe(state, policy, now)
        if behind := is_behind(state, snapshot.target):
            raise DatabaseBehind(behind)
        decision = decide(snapshot, now, policy)
        return decision, self._record(decision, snapshot, now)

    def _hold_behind(self, state: ModelState, behind: str) -> str:
        """Do nothing, unless it is a model of that name that was deleted whose plan is still followed."""
        if state.plan is not None or not any(e.kind == DELETED for e in self.store.events(state.name, newest=True)):
            return behind
        return f"first goes what a deleted model of that name left: {self._clear_away(state.name)}"

    def strays(self) -> list[str]:
        """Models that are served but no longer known: a look at each clears it away. Raises StoreError."""
        return sorted(set(self.target.models()) - set(self.store.names()))

    def _note_pace(self, state: ModelState) -> None:
        cycle = state.cycle
        starting = cycle is not None and cycle.phase is Phase.ROLLING_OUT and cycle.step_since is None
        if cycle is not None and held(state) is None and (cycle.phase in JOB_PHASES or starting):
            self.restless.add(state.name)
        else:
            self.restless.discard(state.name)

    def _clear_away(self, name: str) -> str:
        """Stop what a deleted model left behind. Until that has worked, the model stays restless."""
        self.restless.add(name)
        self._newest[name] = (None, 0)
        self._policies.pop(name, None)
        self._target_errors.pop(name, None)
        self._reported.pop(name, None)
        for job_id in self.jobs.active():
            if name in (model_of_job(job_id), (cycle_of_report_job(job_id) or ("",))[0]):
                self.jobs.cancel(job_id)
        try:
            if self.target.observe(name) is not None:
                self.target.remove(name, self.leadership.epoch())
        except StalePlanError as error:
            raise LostLeadership(str(error)) from error
        except TargetError as error:
            return f"deleted, but still served: {error}"
        self.restless.discard(name)
        return f"there is no model {name}"

    # ------------------------------------------------------------ observe
    def _observe(self, state: ModelState, policy: ModelPolicy, now: datetime) -> Snapshot:
        target, target_error = self._look_at_target(state)
        return Snapshot(
            state=state,
            job=self._look_at_job(state),
            target=target,
            target_error=target_error,
            observation=self.observer.observe(state, policy, now),
            alerts=self.alerts(policy),
            busy_cycles=self.busy_cycles(state.name) if state.cycle and state.cycle.phase is Phase.QUEUED else 0,
            max_busy_cycles=self.max_busy_cycles,
            signal_max_age=self.signal_max_age,
        )

    def _look_at_job(self, state: ModelState) -> JobStatus | None:
        job_id = state.cycle.job_id if state.cycle else None
        return self.jobs.poll(job_id) if job_id else None

    def _look_at_target(self, state: ModelState) -> tuple[TargetStatus | None, str]:
        try:
            return self.target.observe(state.name), self._target_errors.get(state.name, "")
        except TargetError as error:
            return None, str(error)

    # ------------------------------------------------------------ record
    def _record(self, decision: Decision, snapshot: Snapshot, now: datetime) -> ModelState:
        if not decision.changed:
            return decision.after
        events = list(decision.events)
        if events:  # the first event of a decision carries what it rested on
            grounds = snapshot_json(snapshot, now) if self.keep_grounds else {}
            events[0] = replace(events[0], data={**events[0].data, **grounds})
        commit = Commit(
            model=decision.after, closed=decision.closed, events=events, notices=decision.notices,
            found=decision.found, gone=decision.gone,
        )  # fmt: skip
        try:
            after = self.store.commit(self.leadership.epoch(), commit)
        except FencedError as error:
            raise LostLeadership(str(error)) from error
        count_events(events)
        return after

    # ------------------------------------------------------------ act
    def _converge(self, state: ModelState) -> str:
        """Ask for what the state calls for; what could not be had now, which the next look asks for again, or an empty string."""
        self._keep_serving(state)
        self._cancel_others(state)
        wanted = wanted_job(state, self.policy(state), self.home, self.packaging, self.studies)
        trouble = self._target_errors.get(state.name, "")
        try:
            if wanted is not None:
                self.jobs.ensure(wanted)
        except RetryableJobError as error:
            return "; ".join(filter(None, [trouble, f"its job could not be started: {error}"]))
        self._ask_for_report(state)
        return trouble

    def _ask_for_report(self, state: ModelState) -> None:
        """At the side of the cycle: whatever goes wrong with it is for the log, and the cycle goes on."""
        spec = report_job(state, self.home) if self.reports else None
        if spec is None or self._reported.get(state.name) == spec.job_id:
            return
        try:
            self.jobs.ensure(spec)
            self._reported[state.name] = spec.job_id
        except RetryableJobError as error:
            log.warning("drift_report.not_started", model=state.name, error=str(error))

    def _keep_serving(self, state: ModelState) -> None:
        """One stride of the target towards the committed plan. Raises LostLeadership."""
        epoch = self.leadership.epoch()
        if state.plan is None:
            return
        try:
            self.target.apply(replace(state.plan, epoch=epoch))
            self._target_errors.pop(state.name, None)
        except StalePlanError as error:
            raise LostLeadership(str(error)) from error
        except TargetError as error:
            self._target_errors[state.name] = str(error)

    def _cancel_others(self, state: ModelState) -> None:
        """Stop jobs of this model's cycles that its state no longer calls for (aborted, superseded).

        A pause lets the one under way finish."""
        present = state.cycle.job_id if state.cycle else None
        for job_id in self.jobs.active():
            if job_id != present and model_of_job(job_id) == state.name:
                self.jobs.cancel(job_id)


# ---------------------------------------------------------------- replay
def snapshot_json(snapshot: Snapshot, now: datetime) -> dict[str, Any]:
    """All that a decision rested on, as JSON, for its record. Of versions that it cannot touch, only what it can ask about them."""
    lean = replace(snapshot, state=_without_history(snapshot.state))
    return {"now": now.isoformat(), "snapshot": _SNAPSHOT.dump_python(lean, mode="json")}


def _without_history(state: ModelState) -> ModelState:
    """A model may have hundreds of versions, and each decision is recorded: their scores and lineage stand in the versions themselves."""
    kept = {state.champion, state.previous, state.cycle.challenger if state.cycle else None}
    versions = {n: v if n in kept else _name_only(v) for n, v in state.versions.items()}
    return replace(state, versions=versions)


def _name_only(version: Version) -> Version:
    lineage = {key: version.lineage[key] for key in ("model_digest", "verdict") if key in version.lineage}
    return replace(version, scores={}, lineage=lineage)


def replay(recorded: Mapping[str, Any]) -> Decision:
    """Take a recorded decision again, from what was recorded with it (invariant 9).

    Raises pydantic.ValidationError if the record is not one."""
    snapshot = _SNAPSHOT.validate_json(json.dumps(recorded["snapshot"]))
    return decide(snapshot, datetime.fromisoformat(recorded["now"]))
