"""A small world for the controller: jobs, a target, live evidence, people and bad luck, all drawn from one seed.

What lives here outlasts the controllers, as the real world does. Controllers are the real code (`Reconciler`,
`decide`, `overrides`); each of their calls to the outside may crash before or after its effect, be refused, or let
another controller act in the middle.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from controller.decide import Observation, metric_of
from controller.metering import tables
from controller.metering.named import PART_LABEL, Metric, rules_of
from controller.metering.port import Sample
from controller.notices.port import Message
from controller.reconcile import LostLeadership
from controller.rollouts import baseline
from controller.state import ModelState
from controller.store.memory import MemoryStore
from controller.store.port import Commit, StoreError
from deployers.target import FakeTarget, TargetError, TargetStatus, TrafficPlan
from pipelines.jobs.port import JobSpec, JobState, JobStatus
from policies.schema import ModelPolicy
from policies.signals import Comparison, Signal
from policies.triggers import needs

START = datetime(2026, 1, 1, tzinfo=UTC)
HOME = Path("/nowhere")
MODEL = "sim"
TTL_S = 15.0

_SPEC: dict[str, Any] = {
    "task": "binary",
    "data": {"source": {"kind": "csv", "path": "x.csv"}, "label": "y"},
    "train": {"component": "sklearn.logistic_regression"},
    "objective": {"metric": "accuracy"},
    "triggers": {"any": [{"performance": {"metric": "accuracy", "below": 0.5, "window": "1h"}}]},
    "cooldown": "2h",
    "budget": {"cycles": 4, "per": "2d"},
    "rollout": {
        "steps": [{"shadow": "30m"}, {"10%": "1h"}, {"50%": "1h"}, "100%"],
        "bake": "4h", "min_labelled_rows": 20, "deadline": "1d",
    },
}  # fmt: skip


def make_policy(name: str = MODEL, **changes: Any) -> ModelPolicy:
    """The simulated model's policy, with keys of its spec replaced."""
    document = {"apiVersion": "ratchet.dev/v1", "kind": "ModelPolicy", "metadata": {"name": name}}
    return ModelPolicy.model_validate({**document, "spec": {**_SPEC, **changes}})


COMPUTE_S = 60.0
ERRORS = Metric(name="error_rate", events="e", total="t", newest="n")
POLICY = make_policy()
POLICIES = (
    POLICY,
    make_policy(approval="required", approval_timeout="1d"),
    make_policy(
        rollout={**_SPEC["rollout"], "steps": [{"20%": "30m"}, "100%"], "bake": "1h", "holdback": "0%"},
        deploy={"replicas": 2},
    ),
    make_policy(budget={"cycles": 4, "per": "2d", "compute": f"{COMPUTE_S:g}s"}),
    make_policy(
        triggers={"any": [*_SPEC["triggers"]["any"], {"metric": {"name": "error_rate", "above": 0.02, "for": "20m"}}]},
        rollout={**_SPEC["rollout"], "metrics": [{"name": "error_rate", "above": 0.02}]},
    ),
)
"""What the owner may change his mind to. Cooldown and number of cycles stay, so that the checks know them."""


class Crash(BaseException):
    """The controller's process died at this instant. Not an Exception: nothing in the code may catch it."""


@dataclass
class Luck:
    """How much goes wrong, as probabilities a call."""

    crash: float = 0.0
    refuse: float = 0.0
    duplicate: float = 0.0
    interleave: float = 0.0


@dataclass
class SimJobs:
    """Jobs that end whenever they like, well or badly. They outlive controllers; a name starts once."""

    rng: random.Random
    latest: Callable[[], datetime]
    """The latest moment that the clock has ever shown; it may have gone back since."""
    starts: Counter[str] = field(default_factory=Counter)
    specs: dict[str, JobSpec] = field(default_factory=dict)
    ended: dict[str, JobStatus] = field(default_factory=dict)
    trouble: float = 0.2
    benign: bool = False

    def ensure(self, spec: JobSpec) -> None:
        if spec.job_id in self.specs:
            assert self.specs[spec.job_id] == spec, f"{spec.job_id} was asked for twice with different work"
            return
        if spec.job_id in self.ended:
            return  # cancelled before it was asked for
        self.specs[spec.job_id] = spec
        self.starts[spec.job_id] += 1
        if "now" in spec.inputs:
            assert datetime.fromisoformat(spec.inputs["now"]) <= self.latest(), "invariant 12: data from the future"

    def poll(self, job_id: str) -> JobStatus | None:
        if job_id in self.ended:
            return self.ended[job_id]
        if job_id not in self.specs:
            return None
        return JobStatus(state=JobState.RUNNING, progress={"text": "at it"})

    def cancel(self, job_id: str) -> None:
        self.ended.setdefault(job_id, JobStatus(state=JobState.CANCELLED, error="cancelled"))

    def active(self) -> frozenset[str]:
        return frozenset(self.specs.keys() - self.ended.keys())

    def forget(self, job_id: str) -> None:
        """Nothing is kept but what the checks need."""

    def advance(self) -> None:
        """Let time do its work on what runs."""
        for job_id in sorted(self.active()):
            if self.rng.random() < (1.0 if self.benign else 0.5):
                self.ended[job_id] = self._end(self.specs[job_id])

    def _end(self, spec: JobSpec) -> JobStatus:
        if not self.benign and self.rng.random() < self.trouble:
            return JobStatus(state=JobState.FAILED, error="bad luck", retryable=self.rng.random() < 0.7, seconds=3)
        return JobStatus(state=JobState.SUCCEEDED, output=self._output(spec), seconds=5)

    def _output(self, spec: JobSpec) -> dict[str, Any]:
        draw = self.rng.random
        match spec.entry.split(":")[0]:
            case "pipelines.prepare":
                return {"fingerprint": f"sha256:{self.rng.getrandbits(32):x}", "sentence": "1,000 rows are ready"}
            case "tuners.tune":
                return {"component": "c", "parameters": {}, "window_s": None, "sentence": "tuned"}
            case "tuners.train":
                digest = "sha256:same" if draw() < 0.1 else f"sha256:{self.rng.getrandbits(40):x}"
                return {
                    "model_dir": "/m", "model_digest": digest, "component": "c", "parameters": {}, "window_s": None,
                    "rows": 1000, "trained_to": START.isoformat(), "sentence": "trained on 1,000 rows",
                }  # fmt: skip
            case "evaluators.judge":
                verdict = "pass" if self.benign or draw() < 0.7 else self.rng.choice(["fail", "inconclusive", "error"])
                return {"verdict": verdict, "sentence": f"judged: {verdict}", "scores": {"accuracy": 0.8}}
            case "deployers.package":
                return {"digest": f"sha256:image-{spec.inputs['number']}-{spec.job_id}", "sentence": "packaged"}
        raise AssertionError(spec.entry)


class SimTarget(FakeTarget):
    """Readiness comes and goes; what is in force is kept for the checks, step by step."""

    epochs: list[int]

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.rng = rng
        self.away = False
        self.benign = False
        self.epochs = []

    def apply(self, plan: TrafficPlan) -> None:
        if self.away:
            raise TargetError("the target is away")
        if not self.benign:
            for digest in plan.digests.values():
                if digest not in self.errors and self.rng.random() < 0.3:
                    self.unready.add(digest)
                    self.errors[digest] = (0, 0)
        super().apply(plan)
        self.epochs.append(plan.epoch)

    def observe(self, model: str) -> TargetStatus | None:
        if self.away:
            raise TargetError("the target is away")
        return super().observe(model)

    def advance(self, champion_digest: str | None) -> None:
        self.away = not self.benign and self.rng.random() < 0.1
        if self.benign:
            self.broken.clear()
        for digest in sorted(self.unready):
            if self.benign or self.rng.random() < 0.5:
                self.unready.discard(digest)
            elif self.rng.random() < 0.1 and digest != champion_digest:
                self.broken[digest] = "it crashed at start"
        for digest in sorted(self.errors):
            if digest != champion_digest and not self.benign and self.rng.random() < 0.02:
                self.errors[digest] = (100, 40)


@dataclass
class SimObserver:
    """Live evidence: true quality with noise, often missing, late or nonsense."""

    rng: random.Random
    benign: bool = False
    bad: set[int] = field(default_factory=set)
    """Versions that are truly worse than what served before them."""
    given: list[Observation] = field(default_factory=list)

    def observe(self, state: ModelState, policy: ModelPolicy, now: datetime) -> Observation | None:
        if not self.benign and self.rng.random() < 0.2:
            return self.given[-1] if self.given and self.rng.random() < 0.5 else None
        found = Observation(
            champion=state.champion,
            baseline=baseline(state),
            challenger=state.cycle.challenger if state.cycle else None,
            signals={q.key: self._signal(now) for q in needs(policy.spec.triggers)},
            comparison=self._comparison(state, now),
            metrics=self._metrics(state, policy, now),
        )
        self.given.append(found)
        return found

    def _signal(self, now: datetime) -> Signal:
        stale = now - timedelta(days=3)
        draw = self.rng.random()
        if self.benign:
            return Signal.of(0.9, observed_at=now, rows=500)
        if draw < 0.15:
            return Signal.unknown("no labels", observed_at=now)
        if draw < 0.25:
            return Signal.of(float("nan"), observed_at=now)
        if draw < 0.35:
            return Signal.of(0.1, observed_at=stale, rows=500)
        return Signal.of(0.3 if draw < 0.6 else 0.9, observed_at=now, rows=500)

    def _metrics(self, state: ModelState, policy: ModelPolicy, now: datetime) -> dict[str, Signal]:
        challenger = state.cycle.challenger if state.cycle else None
        of_champion, of_challenger = rules_of(policy)
        asked = [(rule, state.champion) for rule in of_champion] + [(rule, challenger) for rule in of_challenger]
        return {
            metric_of(rule.key, version): tables.signal(self._table(version, now), MODEL, version)
            for rule, version in asked
            if version is not None
        }

    def _table(self, version: int, now: datetime) -> tables.Table:
        """What Prometheus says of its errors: the truth, or one of the ways in which it says nothing."""
        at, trouble = now.timestamp(), 9 if self.benign else self.rng.randrange(10)
        labels = {"model": MODEL, "version": str(version if trouble != 1 else version + 1)}
        events, total, newest = (60.0 if version in self.bad else 1.0), 1000.0, at
        match trouble:
            case 0:
                return tables.failed(ERRORS, "Prometheus is away", at=at, observed_at=now)
            case 2:
                events = float("nan")
            case 3:
                events, total = 5.0, 10.0
            case 4:
                newest -= 3600
        parts = {"events": events, "total": total, "newest": newest}
        samples = [Sample({**labels, PART_LABEL: part}, value) for part, value in parts.items()]
        return tables.read(ERRORS, samples * (2 if trouble == 5 else 1), at=at, observed_at=now)

    def _comparison(self, state: ModelState, now: datetime) -> Comparison | None:
        cycle = state.cycle
        if cycle is None or cycle.traffic_since is None or (not self.benign and self.rng.random() < 0.2):
            return None
        rows = self.rng.choice([0, 5, 100, 1000]) if not self.benign else 1000
        bad = cycle.challenger in self.bad
        shown = rows >= 100 and (self.benign or self.rng.random() < 0.7)
        return Comparison(
            state=("worse" if bad else "no_worse") if shown else "undecided", challenger_rows=rows, champion_rows=rows,
            challenger_score=0.7, champion_score=0.8, sentence="compared", observed_at=now,
        )  # fmt: skip


@dataclass
class SimLeadership:
    """A controller's belief that it leads. A zombie keeps believing."""

    held: int

    def epoch(self) -> int:
        if self.held < 0:
            raise LostLeadership("released")
        return self.held


@dataclass
class SimNotifier:
    """People, who notice when they are told twice."""

    seen: Counter[str] = field(default_factory=Counter)

    def deliver(self, message: Message) -> None:
        self.seen[message.key] = 1  # by contract a key delivered again is not seen again


class FaultyStore:
    """The real store's calls, with bad luck around each write."""

    def __init__(
        self, store: MemoryStore, fault: Callable[[str, Callable[[], Any]], Any], epochs: list[int] | None = None
    ) -> None:
        self._store = store
        self._fault = fault
        self._epochs = epochs if epochs is not None else []
        """Of all commits that were written."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def commit(self, epoch: int, commit: Commit) -> ModelState:
        def write() -> ModelState:
            after = self._store.commit(epoch, commit)
            self._epochs.append(epoch)
            return after

        result: ModelState = self._fault("store.commit", write)
        return result


class FaultyPort:
    """Any port with idempotent calls: crash before, crash after, refuse, or do it twice."""

    def __init__(self, port: Any, name: str, calls: set[str], fault: Callable[..., Any]) -> None:
        self._port, self._name, self._calls, self._fault = port, name, calls, fault

    def __getattr__(self, call: str) -> Any:
        method = getattr(self._port, call)
        if call not in self._calls:
            return method
        return lambda *args: self._fault(f"{self._name}.{call}", lambda: method(*args), repeat=True)


def refusal(name: str) -> Exception:
    """How a port says no."""
    return TargetError("unreachable") if name.startswith("target") else StoreError("disk full")
