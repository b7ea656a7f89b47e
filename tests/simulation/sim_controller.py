"""One simulated history: real controllers in the simulated world, and the twelve invariants after every step."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from sim_world import (
    COMPUTE_S,
    HOME,
    MODEL,
    POLICIES,
    POLICY,
    START,
    TTL_S,
    Crash,
    FaultyPort,
    FaultyStore,
    Luck,
    SimJobs,
    SimLeadership,
    SimNotifier,
    SimObserver,
    SimTarget,
    refusal,
)  # fmt: skip

from controller import overrides
from controller.applying import canonical, change_policy
from controller.cycle import TRAFFIC_PHASES
from controller.decide import metric_of
from controller.draft import CONTROLLER, Decision
from controller.notices.outbox import outbox_of_one
from controller.overrides import Order, OverrideRefused, Verb
from controller.reconcile import LostLeadership, Reconciler
from controller.state import Event, ModelState, Outcome, Phase, VersionStatus
from controller.store.memory import MemoryStore
from controller.store.port import Commit, ConflictError, FencedError, StoreError

BY_TEXT = {canonical(policy): policy for policy in POLICIES}
"""Stored text → policy."""


@dataclass
class History:
    """A seed, played. `step` raises AssertionError when an invariant does not hold."""

    seed: int
    luck: Luck
    keep_grounds: bool = False
    people: float = 0.08
    """How often somebody orders something, a step."""
    edits: float = 0.02
    """How often the owner applies another policy, a step."""

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.now = START
        self.latest = START
        self.store = MemoryStore()
        self.jobs = SimJobs(self.rng, lambda: self.latest)
        self.target = SimTarget(self.rng)
        self.observer = SimObserver(self.rng)
        self.notifier = SimNotifier()
        self.controllers = 0
        self.epochs: list[int] = []
        """Of all commits, in order."""
        self.depth = 0
        self.ledger = Ledger()
        self.leader: Reconciler | None = None
        self.zombie: Reconciler | None = None
        epoch = self.store.acquire("first", self.now, TTL_S)
        assert epoch is not None
        self.store.create(
            epoch,
            ModelState(
                name=MODEL, policy=canonical(POLICIES[self.seed % len(POLICIES)]), policy_digest="p", created_at=START
            ),
            [Event(model=MODEL, kind="policy.applied", sentence="applied", at=START)],
        )
        self.store.release("first")

    # ------------------------------------------------------------ controllers
    def _new_controller(self) -> Reconciler:
        self.controllers += 1
        holder = f"controller-{self.controllers}"
        self.store.release(f"controller-{self.controllers - 1}")
        epoch = self.store.acquire(holder, self.now, TTL_S)
        if epoch is None:  # a clock that went back can leave a lease in the future
            epoch = self.store.acquire(holder, self.now + timedelta(days=400), TTL_S)
        assert epoch is not None
        return Reconciler(
            store=FaultyStore(self.store, self._fault, self.epochs),
            jobs=FaultyPort(self.jobs, "jobs", {"ensure", "cancel"}, self._fault),
            target=FaultyPort(self.target, "target", {"apply"}, self._fault),
            observer=self.observer, leadership=SimLeadership(epoch), home=HOME, strides=3,
            signal_max_age=timedelta(hours=6), keep_grounds=self.keep_grounds,
        )  # fmt: skip

    def _fault(self, name: str, call: Any, *, repeat: bool = False) -> Any:
        draw = self.rng.random
        if self.depth == 0 and draw() < self.luck.interleave:
            self._other_controller_acts()
        if draw() < self.luck.crash:
            raise Crash(f"before {name}")
        if draw() < self.luck.refuse and not name.startswith("jobs"):
            raise refusal(name)
        result = call()
        if draw() < self.luck.crash:
            raise Crash(f"after {name}")
        if repeat and draw() < self.luck.duplicate:
            result = call()
        return result

    def _other_controller_acts(self) -> None:
        """In the middle of the leader's call: a zombie wakes up, or a new leader takes over."""
        self.depth += 1
        try:
            if self.zombie is not None and self.rng.random() < 0.5:
                self._look(self.zombie)
            else:
                self.zombie = self.leader
                self.leader = self._new_controller()
                self._look(self.leader)
        finally:
            self.depth -= 1

    def _look(self, controller: Reconciler) -> None:
        try:
            controller.reconcile(MODEL, lambda: self.now)
        except (StoreError, LostLeadership):
            pass  # the next look, or the next leader, goes on
        except Crash:
            if controller is self.leader:
                self.leader = None

    # ------------------------------------------------------------ one step of the world
    def step(self) -> None:
        self._pass_time()
        self.jobs.advance()
        state = self.state
        champion = state.versions.get(state.champion) if state.champion else None
        self.target.advance(champion.digest if champion else None)
        for number in state.versions:
            if number not in self.ledger.judged and number != 1:
                self.ledger.judged.add(number)
                if self.rng.random() < 0.4:
                    self.observer.bad.add(number)
        if self.rng.random() < self.people:
            self._person()
        if self.rng.random() < self.edits:
            self._owner()
        if self.leader is None:
            self.leader = self._new_controller()
        self._look(self.leader)
        if self.rng.random() < 0.3:
            self._deliver()
        self.check()

    def _pass_time(self) -> None:
        draw = self.rng.random()
        jump = timedelta(minutes=self.rng.choice([1, 5, 20, 60]))
        if self.luck.crash and draw < 0.02:
            jump = -timedelta(minutes=self.rng.choice([1, 30, 600]))
        elif draw < 0.04:
            jump = timedelta(days=1)
        self.now += jump
        self.latest = max(self.latest, self.now)

    def _deliver(self) -> None:
        try:
            outbox_of_one(FaultyStore(self.store, self._fault), self.notifier).deliver_all(self.now)  # type: ignore[arg-type]
        except (Crash, StoreError):
            self.leader = None

    def _person(self) -> None:
        state = self.state
        verb = self.rng.choice(list(Verb))
        version = self.rng.choice([None, *state.versions]) if verb in (Verb.PIN, Verb.PROMOTE, Verb.ROLLBACK) else None
        order = Order(verb=verb, actor="ann", reason="wanted", version=version, row_version=state.row_version)
        self._change(lambda: overrides.apply(state, BY_TEXT[state.policy], order, self.now))

    def _approve(self) -> None:
        state = self.state
        if state.cycle is not None and state.cycle.phase is Phase.AWAITING_APPROVAL:
            order = Order(verb=Verb.APPROVE, actor="ann", reason="it looks good")
            self._change(lambda: overrides.apply(state, BY_TEXT[state.policy], order, self.now))

    def _owner(self) -> None:
        state, wanted = self.state, self.rng.choice(POLICIES)
        if canonical(wanted) != state.policy:
            self._change(lambda: change_policy(state, wanted, "", "owner", self.now))

    def _change(self, decide: Callable[[], Decision]) -> None:
        """Through the leader's service, as long as there is one."""
        try:
            decision = decide()
        except OverrideRefused:
            return
        epoch = self.leader.leadership.epoch() if self.leader else None
        if epoch is None:
            return
        try:
            self.store.commit(epoch, Commit(model=decision.after, closed=decision.closed, events=decision.events,
                                            notices=decision.notices))  # fmt: skip
        except (ConflictError, FencedError):
            return

    # ------------------------------------------------------------ checks
    @property
    def state(self) -> ModelState:
        state = self.store.load(MODEL)
        assert state is not None
        return state

    def check(self) -> None:
        self.ledger.check(self)

    def settle(self) -> None:
        """No more bad luck: an open cycle must end, whatever happened to it, and the champion must serve."""
        self.luck = Luck()
        self.people = self.edits = 0.0
        self.jobs.benign = self.target.benign = self.observer.benign = True
        state = self.state
        held = replace(state, paused=None, frozen=None, pinned=None)
        if held != state:
            epoch = self.leader.leadership.epoch() if self.leader else -1
            if self.leader is None or epoch < 0:
                self.leader = self._new_controller()
            self.leader = self._new_controller()
            self.store.commit(self.leader.leadership.epoch(), Commit(model=held))
        for _ in range(200):
            self._approve()
            self.step()
            if self.state.cycle is None and self.state.champion is not None:
                break
        assert self.state.cycle is None, f"cycle {self.state.cycle} never ends"
        for _ in range(10):
            self.step()
        state, status = self.state, self.target.in_force.get(MODEL)
        if state.champion is not None and state.cycle is None:
            assert status is not None, "there is a champion but nothing is in force"
            assert set(status.weights) == {state.champion}, (status.weights, state.champion)
        outbox_of_one(self.store, self.notifier).deliver_all(self.latest + timedelta(days=1))
        assert not self.store.pending_notices(), "invariant 5: a notice was never delivered"


@dataclass
class Ledger:
    """What was seen so far, to hold against what is seen now."""

    digests: dict[int, str] = field(default_factory=dict)
    judged: set[int] = field(default_factory=set)
    last_seq: int = 0
    generations: list[int] = field(default_factory=list)
    opened: list[tuple[datetime, str]] = field(default_factory=list)
    closed_at: list[datetime] = field(default_factory=list)
    served: bool = False
    banned: set[int] = field(default_factory=set)
    weights: dict[int, float] = field(default_factory=dict)
    newest: int = 0
    """Number of the cycle that was opened last."""
    asked: int = 0
    """Generation of the newest plan."""
    reached_at: datetime = START
    """When the newest step came into force."""
    pardoned: int = 0
    """Cycles up to this number count against no cooldown any more."""

    metrics_since: datetime | None = None
    """Since when the policy is the one with a metric; None if it is another."""

    def check(self, history: History) -> None:
        state = history.state
        events = history.store.events(MODEL, after=self.last_seq, limit=10_000)
        if state.policy != canonical(POLICIES[4]):
            self.metrics_since = None
        elif self.metrics_since is None:
            self.metrics_since = history.latest
        self._cycles(history, state, events)
        self._versions(state)
        self._bans(history, state)
        self._traffic(history, state)
        self._rollouts(history, state, events)
        self._work(history)
        self._record(events, state)
        if events:
            self.last_seq = events[-1].seq

    def _cycles(self, history: History, state: ModelState, events: Any) -> None:
        cycles = history.store.cycles(MODEL, limit=10_000)
        still_open = [c for c in cycles if c.outcome is None]
        assert len(still_open) <= 1, "invariant 1: two open cycles"
        assert sorted(c.number for c in cycles) == list(range(1, state.next_cycle)), "invariant 5: a cycle vanished"
        self._compute(history, cycles)
        spec = POLICY.spec
        for event in events:
            if event.kind == "policy.applied":
                self._pardon(cycles)
            if event.kind != "cycle.opened":
                continue
            cause, self.newest = str(event.data["cause"]), event.cycle
            self.opened.append((event.at, cause))
            if cause.startswith("person"):
                continue
            ended = [c for c in cycles if self.pardoned < c.number < event.cycle]
            closed_at = next((c.closed_at for c in ended if c.outcome is not Outcome.SUPERSEDED), None)
            assert closed_at is None or event.at >= closed_at + spec.cooldown, "invariant 10: cooldown"
            recent = [at for at, _ in self.opened if event.at - spec.budget.per < at <= event.at]
            assert len(recent) <= spec.budget.cycles, "invariant 10: budget"
            if cause.startswith("trigger"):
                self._a_known_signal(history, event.at)

    def _pardon(self, cycles: Any) -> None:
        """Where no version serves yet, another policy begins with nothing against it."""
        if not self.served and not any(c.outcome is Outcome.PROMOTED for c in cycles):
            self.opened.clear()
            self.pardoned = self.newest

    def _compute(self, history: History, cycles: Any) -> None:
        """No cycle that opened by itself uses more than the budget and the job that was under way when it ran out."""
        if history.seed % len(POLICIES) != 3 or history.state.policy != canonical(POLICIES[3]):
            return
        for cycle in cycles:
            if not cycle.cause.startswith("person"):
                assert cycle.compute_s < COMPUTE_S + 5.1, "invariant 10: compute"

    def _a_known_signal(self, history: History, at: datetime) -> None:
        known = [
            s
            for o in history.observer.given
            for s in o.signals.values()
            if s.value is not None and s.value < 0.5 and abs(at - s.observed_at) <= timedelta(hours=6)
        ]
        bad = [s for o in history.observer.given for s in o.metrics.values() if s.value is not None and s.value > 0.02]
        assert known or bad, "invariant 4: a trigger fired on nothing known"

    def _versions(self, state: ModelState) -> None:
        for number, version in state.versions.items():
            assert self.digests.setdefault(number, version.digest) == version.digest, "invariant 3: a digest changed"
        assert set(self.digests) <= set(state.versions), "invariant 3: a version vanished"
        assert len(set(self.digests.values())) == len(self.digests), "invariant 3: two numbers, one image"
        for number, version in state.versions.items():
            if version.status is VersionStatus.QUARANTINED and not version.forced:
                self.banned.add(number)
            if version.forced:
                self.banned.discard(number)

    def _bans(self, history: History, state: ModelState) -> None:
        """Abort and rollback stick."""
        for cycle in history.store.cycles(MODEL, limit=10_000):
            version = state.versions.get(cycle.challenger or 0)
            if cycle.outcome in (Outcome.ABORTED, Outcome.ROLLED_BACK) and version is not None:
                banned = version.status is VersionStatus.QUARANTINED or version.forced
                assert banned, f"invariant 7: v{version.number} of cycle {cycle.number} may come back by itself"

    def _rollouts(self, history: History, state: ModelState, events: Any) -> None:
        """A step is reached when its traffic is in force, and passed on what was measured since."""
        status = history.target.in_force.get(MODEL)
        for event in events:
            if event.kind == "traffic.changed":
                self.asked = event.data["generation"]
            elif event.kind == "step.reached":
                self.reached_at = event.at
                assert status is not None
                assert status.generation >= self.asked, "invariant 4: a step counted before its traffic was in force"
            elif event.kind in ("step.passed", "version.promoted") and event.actor == CONTROLLER:
                self._shown(history, event)

    def _shown(self, history: History, event: Event) -> None:
        """Forward goes only what was measured where it stands; to everything, and for good, only what was shown to be no worse."""
        known = [
            o.comparison for o in history.observer.given
            if o.comparison and o.comparison.observed_at >= self.reached_at and o.comparison.challenger_rows >= 20
        ]  # fmt: skip
        self._metric_shown(history, event)
        if event.kind == "step.passed":
            assert known, "invariant 4: a step passed on what was not measured in it"
        elif event.kind == "version.promoted" and event.data["previous"] is not None:
            assert any(c.state == "no_worse" for c in known), "invariant 4: promoted without being shown to be no worse"

    def _metric_shown(self, history: History, event: Event) -> None:
        """With a metric in its policy a challenger with live traffic goes on only on an answer about itself that is known, and not bad."""
        if self.metrics_since is None or event.at < self.metrics_since or event.data.get("step") == 0:
            return
        cycle = next(c for c in history.store.cycles(MODEL, limit=10_000) if c.number == event.cycle)
        if event.data.get("previous", 0) is None or cycle.challenger is None:
            return  # the first version is compared with nothing
        key = metric_of("metric:error_rate", cycle.challenger)
        seen = [o.metrics[key] for o in history.observer.given if key in o.metrics]
        assert any(s.value is not None and s.value < 0.02 for s in seen), (
            "invariant 4: it went on with its metric unknown"
        )

    def _holdback(self, state: ModelState) -> None:
        """Only in rollout and bake do two versions share the traffic; in the bake they are the champion and the one before."""
        if state.plan is None or len(state.plan.weights) < 2:
            return
        assert state.cycle is not None, f"traffic is shared with no cycle open: {state.plan.weights}"
        assert state.cycle.phase in TRAFFIC_PHASES
        if state.cycle.phase is Phase.BAKING:
            assert state.plan.weights == {state.champion: 98, state.previous: 2}, f"invariant 2: {state.plan.weights}"

    def _traffic(self, history: History, state: ModelState) -> None:
        status = history.target.in_force.get(MODEL)
        weights = dict(status.weights) if status else {}
        self._holdback(state)
        for number, weight in weights.items():
            version = state.versions[number]
            assert weight > 0
            assert version.lineage["verdict"] == "pass" or version.forced, "invariant 2"
            assert status is not None
            assert number in status.replicas, "invariant 8: traffic to a version that does not run"
        if state.plan and status and status.generation == state.plan.generation:
            stuck = set(weights) & self.banned
            assert not stuck, f"invariant 7: quarantined {stuck} serves"
        if state.champion is not None:
            assert state.plan is not None
            assert state.champion in state.plan.digests, "invariant 8: the champion is not kept ready"
        self.served = self.served or (state.champion is not None and bool(weights))
        assert not self.served or weights, "invariant 8: nothing serves any more"
        self.weights = weights

    def _work(self, history: History) -> None:
        doubled = [job for job, n in history.jobs.starts.items() if n > 1]
        assert not doubled, f"invariant 5: started twice: {doubled}"
        epochs = history.target.epochs
        assert epochs == sorted(epochs), "invariant 6: an old leader changed traffic"
        assert history.epochs == sorted(history.epochs), "invariant 6: an old leader wrote"

    def _record(self, events: Any, state: ModelState) -> None:
        for event in events:
            if event.kind == "traffic.changed":
                self.generations.append(event.data["generation"])
        assert self.generations == list(range(1, len(self.generations) + 1)), "invariant 9: traffic without a record"
        if state.plan is not None:
            assert state.plan.generation == len(self.generations), "invariant 9: traffic without a record"


def outcomes(history: History) -> set[Outcome]:
    """How the cycles of a history ended."""
    return {c.outcome for c in history.store.cycles(MODEL, limit=10_000) if c.outcome is not None}
