"""Several models on one controller with one place for cycles: nobody goes without, and nobody jumps the queue (invariant 10)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta

from sim_world import HOME, START, SimJobs, SimLeadership, SimObserver, SimTarget, make_policy

from controller import overrides
from controller.applying import canonical
from controller.cycle import JOB_PHASES
from controller.decide import held
from controller.fleet import places_taken
from controller.overrides import Order, OverrideRefused, Verb
from controller.reconcile import Reconciler
from controller.state import ModelState
from controller.store.memory import MemoryStore
from controller.store.port import Commit

NAMES = ("a", "b", "c", "d")
SEEDS = 40
STEPS = 120
PLACES = 1


@dataclass
class Fleet:
    """One history of four models; `step` looks at each in a fixed order, as the daemon does."""

    seed: int

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.now = START
        self.store, self.jobs = MemoryStore(), SimJobs(self.rng, lambda: self.now)
        self.epoch = self.store.acquire("fleet", START, 1e9) or 0
        self.reconciler = Reconciler(
            store=self.store, jobs=self.jobs, target=SimTarget(self.rng), observer=SimObserver(self.rng),
            leadership=SimLeadership(self.epoch), home=HOME, strides=3, keep_grounds=False, max_busy_cycles=PLACES,
            busy_cycles=lambda name: places_taken(name, self.store.load_all()),
        )  # fmt: skip
        for name in NAMES:
            state = ModelState(name=name, policy=canonical(make_policy(name)), policy_digest="p", created_at=START)
            self.store.create(self.epoch, state, [])

    def states(self) -> list[ModelState]:
        return list(self.store.load_all())

    def step(self) -> None:
        self.now += timedelta(minutes=self.rng.choice([1, 5, 20]))
        self.jobs.advance()
        if self.rng.random() < 0.1:
            self._person(self.rng.choice(NAMES))
        for name in NAMES:
            queue = self._queue()
            self.reconciler.reconcile(name, lambda: self.now)
            self._check(name, queue)

    def _queue(self) -> list[str]:
        """Who waits and may go on, by the time of asking."""
        waiting = [s for s in self.states() if s.cycle and s.cycle.phase == "queued" and held(s) is None]
        return [s.name for s in sorted(waiting, key=lambda s: (s.cycle.opened_at, s.name) if s.cycle else (START, ""))]

    def _check(self, name: str, queue: list[str]) -> None:
        busy = [s for s in self.states() if s.cycle and s.cycle.phase in JOB_PHASES and held(s) is None]
        resumed = sum(s.cycle.phase in JOB_PHASES for s in busy if s.cycle and s.name in self.let_go())
        assert len(busy) <= PLACES + resumed, [s.name for s in busy]
        if queue and name in queue[1:]:
            assert name in self._queue(), f"{name} went before {queue[0]}"

    def let_go(self) -> set[str]:
        """Models that a person has released or approved since, which may go on beside the one that took their place."""
        kinds = {"override.resume", "override.unfreeze", "override.approve"}
        return {e.model for e in self.store.events(limit=100_000) if e.kind in kinds}

    def _person(self, name: str) -> None:
        state = self.store.load(name)
        assert state is not None
        verb = self.rng.choice([Verb.PAUSE, Verb.RESUME, Verb.RESUME, Verb.FREEZE, Verb.UNFREEZE, Verb.TRIGGER])
        try:
            decision = overrides.apply(
                state, self.reconciler.policy(state), Order(verb=verb, actor="ann", reason="why"), self.now
            )
        except OverrideRefused:
            return
        self.store.commit(
            self.epoch,
            Commit(model=decision.after, closed=decision.closed, events=decision.events, notices=decision.notices),
        )


def test_places_hold_and_go_round() -> None:
    """Never more cycles at work than places, none out of turn, and in the end every model that is not held has had its cycle."""
    for seed in range(SEEDS):
        fleet = Fleet(seed)
        for _ in range(STEPS):
            fleet.step()
        for state in fleet.states():
            assert state.next_cycle > 1, f"seed {seed}: {state.name} never opened a cycle"
            started = any(e.kind == "cycle.started" for e in fleet.store.events(state.name, limit=10_000))
            assert started or held(state) is not None, f"seed {seed}: {state.name} never got a place"
