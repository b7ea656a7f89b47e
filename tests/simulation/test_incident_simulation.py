"""One upstream fault and a fleet that depends on it: one incident, not a retraining a model (invariant 10)."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sim_world import HOME, START, Crash, FaultyStore, SimJobs, SimLeadership, SimNotifier, SimTarget, make_policy

from controller.applying import canonical
from controller.decide import Observation
from controller.notices.outbox import outbox_of_one
from controller.reconcile import Reconciler
from controller.state import FaultOrigin, KnownFault, ModelState, Version, VersionStatus
from controller.store.memory import MemoryStore
from policies.schema import ModelPolicy
from policies.signals import Fault, Signal
from policies.triggers import needs

MODELS = 150
SEEDS = 2
FAULT = Fault(kind="unit_changed", source="warehouse", subject="wind", sentence="wind is in knots", since=START)


@dataclass
class Upstream:
    """What every model's measurement says: scores that fire every trigger, and the fault while it lasts. Sometimes nothing."""

    rng: random.Random
    broken: bool = False
    silent: set[str] = field(default_factory=set)

    def observe(self, state: ModelState, policy: ModelPolicy, now: datetime) -> Observation | None:
        if state.name in self.silent or self.rng.random() < 0.1:
            return None
        if self.rng.random() < 0.2:  # the champion's files cannot be read, say
            return Observation(champion=state.champion)
        score = 0.1 if self.broken else 0.9
        signals = {q.key: Signal.of(score, observed_at=now, rows=500) for q in needs(policy.spec.triggers)}
        faults = (FAULT,) if self.broken else ()
        return Observation(champion=state.champion, signals=signals, faults=faults, looked_at=now)


class Fleet:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = START
        self.store, self.upstream, self.people = MemoryStore(), Upstream(self.rng), SimNotifier()
        self.epoch = self.store.acquire("fleet", START, 1e9) or 0
        self.jobs, self.target = SimJobs(self.rng, lambda: self.now), SimTarget(self.rng)
        self.names = [f"m{i:03}" for i in range(MODELS)]
        for name in self.names:
            champion = Version(
                model=name, number=1, digest=f"sha256:{name}", status=VersionStatus.CHAMPION, created_at=START, cycle=0,
                scores={"accuracy": 0.9}, lineage={"verdict": "pass"},
            )  # fmt: skip
            state = ModelState(
                name=name, policy=canonical(make_policy(name)), policy_digest="p", created_at=START, champion=1,
                next_version=2, versions={1: champion},
            )  # fmt: skip
            self.store.create(self.epoch, state, [])

    def _controller(self) -> Reconciler:
        return Reconciler(
            store=FaultyStore(self.store, self._fault), jobs=self.jobs, target=self.target, observer=self.upstream,
            leadership=SimLeadership(self.epoch), home=HOME, keep_grounds=False,
        )  # type: ignore[arg-type]  # fmt: skip

    def _fault(self, name: str, call: object, *, repeat: bool = False) -> object:
        """A crash before or after a commit, now and then."""
        draw = self.rng.random()
        if draw < 0.03:
            raise Crash(f"before {name}")
        result = call()  # type: ignore[operator]
        if draw > 0.97:
            raise Crash(f"after {name}")
        return result

    def round(self) -> None:
        """Look at every model once, in any order, minutes later; crashes are followed by a new controller."""
        self.now += timedelta(minutes=7)
        controller = self._controller()
        for name in self.rng.sample(self.names, len(self.names)):
            try:
                controller.reconcile(name, lambda: self.now)
            except Crash:
                controller = self._controller()
        outbox_of_one(self.store, self.people).deliver_all(self.now)
        self.check()

    def check(self) -> None:
        """Who has the fault by its own state is counted by the incident, no more and no less."""
        having = [state.name for state in self.store.load_all() if state.faults]
        open_now = self.store.incidents(open_only=True)
        assert len(open_now) == bool(having)
        assert sum(incident.affected for incident in open_now) == len(having)
        assert self.store.open_cycles() == 0, "a broken feed opened a cycle"


def test_one_fault_upstream_is_one_incident() -> None:
    """Whatever crashes and whoever looks first: every model that sees the fault is in the one incident, people hear of it
    three times and of its end once, and nothing retrains though every score has fallen."""
    for seed in range(SEEDS):
        fleet = Fleet(seed)
        fleet.round()
        fleet.upstream.silent = set(fleet.rng.sample(fleet.names, 20))
        fleet.upstream.broken = True
        for _ in range(9):
            fleet.round()
        (incident,) = fleet.store.incidents()
        assert incident.models == incident.affected == MODELS - 20, f"seed {seed}"
        fleet.upstream.broken = False
        for _ in range(14):
            fleet.round()
        (incident,) = fleet.store.incidents()
        assert incident.closed_at is not None, f"seed {seed}"
        number = incident.id
        keys = [f"incident/{number}/{what}" for what in ("opened", "10", "100", "closed")]
        assert {key for key in fleet.people.seen if key.startswith("incident")} == set(keys), f"seed {seed}"
        kinds = Counter(e.kind for e in fleet.store.events(limit=10**6))
        assert kinds["incident.opened"] == kinds["incident.closed"] == 1, f"seed {seed}"
        assert kinds["fault.found"] == kinds["fault.gone"] == MODELS - 20, f"seed {seed}"


def test_a_state_of_an_older_release_has_no_faults() -> None:
    """Rows that were written before faults were known load, and have none."""
    from controller.store.codec import decode, encode

    state = ModelState(name="m", policy="{}", policy_digest="p", created_at=START)
    assert decode(ModelState, encode(state).replace('"faults":[],', ""), where="test") == state
    known = KnownFault(
        kind="k", source="s", subject="", sentence="", since=START, origin=FaultOrigin.LIVE, found_at=START
    )  # fmt: skip
    assert '"faults":[{' in encode(
        ModelState(name="m", policy="{}", policy_digest="p", created_at=START, faults=(known,))
    )
