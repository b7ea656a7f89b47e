"""Measurements of live traffic, taken by a small job beside the daemon and read back when it is done.

The daemon never waits for one and never loads what it takes to make one. Nothing here is persisted: after a restart it is measured again.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from pydantic import TypeAdapter, ValidationError

from controller.decide import Observation
from controller.rollouts import baseline
from controller.state import ModelState, Phase
from controller.telemetry.metrics import show_labels
from controller.work import OBSERVE_TIMEOUT_S, model_dir
from pipelines.jobs.port import JobRunner, JobSpec, JobState, Limits, RetryableJobError
from policies import triggers
from policies.schema import ModelPolicy
from policies.signals import Comparison, Fault, Signal, SignalKind, SignalQuery

log = structlog.get_logger()

ENTRY = "evaluators.observe:run"
MEASUREMENT = re.compile(r".+-observe-[0-9a-f]{12}")
"""Names of measuring jobs."""
OBSERVE_GRACE_S = 60.0
"""Beyond its time-out, until a measurement that nobody asked about is let go."""
_INSTANT = timedelta(microseconds=1)
_SIGNALS = TypeAdapter(dict[str, Signal])
_COMPARISON = TypeAdapter(Comparison | None)
_FAULTS = TypeAdapter(tuple[Fault, ...])


@dataclass(slots=True)
class _Ongoing:
    job_id: str
    champion: int | None
    baseline: int | None
    challenger: int | None
    at: datetime
    """As of when."""
    started: float
    """By the real, monotonic clock."""


@dataclass(slots=True)
class JobObserver:
    """One measuring job a model at the most, at most every `interval_s` of real time, `parallel` of them together."""

    jobs: JobRunner
    home: Path
    interval_s: float = 15.0
    parallel: int = 2
    monotonic: Callable[[], float] = time.monotonic
    _ongoing: dict[str, _Ongoing] = field(default_factory=dict)
    _latest: dict[str, Observation] = field(default_factory=dict)
    _told: dict[str, frozenset[str]] = field(default_factory=dict)
    """What was wrong with the files of a model's log at the last look, so that each is reported once and not at every look."""
    _due: dict[str, float] = field(default_factory=dict)

    def observe(self, state: ModelState, policy: ModelPolicy, now: datetime) -> Observation | None:
        """The newest measurement of the model. Starts the next one when it is due."""
        self._collect(state.name)
        self._give_up_abandoned()
        if self._is_due(state):
            self._start(state, policy, now)
        return self._latest.get(state.name)

    def signals(self, name: str) -> Mapping[str, Signal]:
        """What was last measured of the model, by key; nothing if nothing was."""
        latest = self._latest.get(name)
        return latest.signals if latest is not None else {}

    def _is_due(self, state: ModelState) -> bool:
        return (
            state.champion is not None
            and state.name not in self._ongoing
            and len(self._ongoing) < self.parallel
            and self.monotonic() >= self._due.get(state.name, 0.0)
            and self._under_way() < self.parallel
        )

    def _under_way(self) -> int:
        """Those of a daemon before this one count too: one that is restarted again and again must not pile them up."""
        return sum(MEASUREMENT.fullmatch(job_id) is not None for job_id in self.jobs.active())

    def _give_up_abandoned(self) -> None:
        """A model that was deleted is looked at no more; its measurement must not keep others from theirs for ever."""
        longest = OBSERVE_TIMEOUT_S + OBSERVE_GRACE_S
        for name in [n for n, one in self._ongoing.items() if self.monotonic() > one.started + longest]:
            self._collect(name)

    def _collect(self, name: str) -> None:
        ongoing = self._ongoing.get(name)
        status = self.jobs.poll(ongoing.job_id) if ongoing else None
        if ongoing is None or (status is not None and status.state is JobState.RUNNING):
            return
        del self._ongoing[name]
        self.jobs.forget(ongoing.job_id)
        if status is None or status.state is not JobState.SUCCEEDED or status.output is None:
            log.warning("observation.failed", model=name, error=status.error if status else "the job vanished")
            return
        self._report(name, frozenset(map(str, status.output.get("problems", ()))))
        try:
            self._latest[name] = Observation(
                champion=ongoing.champion,
                baseline=ongoing.baseline,
                challenger=ongoing.challenger,
                signals=_SIGNALS.validate_python(status.output["signals"]),
                comparison=_COMPARISON.validate_python(status.output.get("comparison")),
                faults=_FAULTS.validate_python(status.output.get("faults") or ()),
                looked_at=None if status.output.get("faults") is None else ongoing.at,
            )
        except (ValidationError, KeyError) as error:
            log.warning("observation.malformed", model=name, error=str(error))
            return
        show_labels(name, self._latest[name].signals)

    def _report(self, name: str, problems: frozenset[str]) -> None:
        """Say which files of the prediction log could not be read: their rows are missing from every measurement."""
        for problem in sorted(problems - self._told.get(name, frozenset())):
            log.warning("prediction_log.damaged", model=name, problem=problem)
        self._told[name] = problems

    def _start(self, state: ModelState, policy: ModelPolicy, now: datetime) -> None:
        inputs = observe_inputs(state, policy, now, self.home)
        comparison = inputs["comparison"]
        spec = JobSpec(
            job_id=f"{state.name}-observe-{secrets.token_hex(6)}",
            entry=ENTRY,
            inputs=inputs,
            limits=Limits(timeout_s=OBSERVE_TIMEOUT_S, memory_mb=4096),
        )
        self._due[state.name] = self.monotonic() + self.interval_s
        self._ongoing[state.name] = _Ongoing(
            job_id=spec.job_id,
            champion=state.champion,
            baseline=comparison["champion"] if comparison else None,
            challenger=comparison["challenger"] if comparison else None,
            at=now,
            started=self.monotonic(),
        )
        try:
            self.jobs.ensure(spec)
        except RetryableJobError as error:
            del self._ongoing[state.name]
            log.warning("observation.not_started", model=state.name, error=str(error))


def asked_always(policy: ModelPolicy) -> list[SignalQuery]:
    """What the triggers need, and how well labels come in, which people are shown of every model."""
    asked = [
        *triggers.needs(policy.spec.triggers),
        SignalQuery(kind=SignalKind.LABEL_COVERAGE),
        SignalQuery(kind=SignalKind.LABEL_LAG),
    ]
    return list({query.key: query for query in asked}.values())


def observe_inputs(state: ModelState, policy: ModelPolicy, now: datetime, home: Path) -> dict[str, Any]:
    """What the measuring job is asked: the triggers' queries, and the comparison if a challenger has traffic."""
    assert state.champion is not None
    champion = state.versions[state.champion]
    queries = [
        {
            "key": q.key, "kind": q.kind.value, "metric": q.metric, "min_rows": q.min_rows,
            "window_s": q.window.total_seconds() if q.window else None, "threshold": q.threshold,
        }
        for q in asked_always(policy)
    ]  # fmt: skip
    return {
        "model": state.name,
        "home": str(home),
        "now": now.isoformat(),
        "policy": policy.model_dump(mode="json", by_alias=True),
        "queries": queries,
        "champion": {
            "number": champion.number,
            "model_dir": str(model_dir(home, champion)),
            "trained_to": champion.trained_to.isoformat() if champion.trained_to else None,
            "created_at": champion.created_at.isoformat(),
            "scores": dict(champion.scores),
            "promised": champion.lineage.get("promised"),
            "usual_errors": champion.lineage.get("usual_errors"),
        },
        "comparison": _comparison(state, policy, home),
    }


def _comparison(state: ModelState, policy: ModelPolicy, home: Path) -> dict[str, Any] | None:
    cycle, rival = state.cycle, baseline(state)
    if cycle is None or cycle.traffic_since is None or cycle.challenger is None or rival is None:
        return None
    rollout = policy.spec.rollout
    step = rollout.steps[min(cycle.step, len(rollout.steps) - 1)]
    baking = cycle.phase is Phase.BAKING
    promoted = cycle.promoted_at or cycle.phase_since
    promoted_at = (
        (promoted + _INSTANT).isoformat() if baking else None
    )  # what was asked at that moment was asked before
    return {
        "challenger": cycle.challenger,
        "champion": rival,
        "since": cycle.traffic_since.isoformat(),
        "until": None if rollout.kept_back else promoted_at,
        "promoted_at": promoted_at,
        "model_dirs": {
            str(number): str(model_dir(home, state.versions[number])) for number in (cycle.challenger, rival)
        },
        "margin": rollout.margin,
        "alpha": rollout.alpha,
        "mode": "shadow" if step.shadow and not baking else "live",
    }
