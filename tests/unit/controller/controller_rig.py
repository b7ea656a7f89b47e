"""A reconciler on fakes: store, jobs, target and measurements in memory, and a clock that a test moves."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from controller_states import NOW, OUTPUTS

from controller.decide import Observation
from controller.reconcile import Leadership, LostLeadership, Observer, Reconciler
from controller.state import ModelState, Phase
from controller.store.memory import MemoryStore
from controller.work import ENTRIES
from deployers.target import FakeTarget
from pipelines.jobs.fake import FakeJobRunner
from policies.schema import ModelPolicy

SCRIPTS: dict[str, Any] = {entry: OUTPUTS[phase.value] for phase, entry in ENTRIES.items()}


@dataclass
class Leads(Leadership):
    """Leads until told otherwise."""

    held: int
    lost: bool = False

    def epoch(self) -> int:
        if self.lost:
            raise LostLeadership("the lease ran out")
        return self.held


@dataclass
class Knows(Observer):
    """Gives what it was given."""

    found: Observation | None = None

    def observe(self, state: ModelState, policy: ModelPolicy, now: datetime) -> Observation | None:
        return self.found


@dataclass
class Rig:
    """`look` is one look of the reconciler at a model, at the rig's time."""

    store: MemoryStore = field(default_factory=lambda: MemoryStore(audit=True))
    jobs: FakeJobRunner = field(default_factory=lambda: FakeJobRunner(scripts=dict(SCRIPTS)))
    target: FakeTarget = field(default_factory=FakeTarget)
    observer: Knows = field(default_factory=Knows)
    now: datetime = NOW

    def __post_init__(self) -> None:
        epoch = self.store.acquire("rig", NOW, 1e9)
        assert epoch is not None
        self.leadership = Leads(epoch)
        self.reconciler = Reconciler(
            store=self.store, jobs=self.jobs, target=self.target, observer=self.observer, leadership=self.leadership,
            home=Path("/nowhere"),
        )  # fmt: skip

    def add(self, made: ModelState) -> ModelState:
        """Store a state as it is (all but its row version)."""
        return self.store.create(self.leadership.held, replace(made, row_version=0), [])

    def look(self, name: str) -> str:
        return self.reconciler.reconcile(name, lambda: self.now)

    def state(self, name: str) -> ModelState:
        found = self.store.load(name)
        assert found is not None
        return found

    def phase(self, name: str) -> Phase | None:
        cycle = self.state(name).cycle
        return cycle.phase if cycle else None
