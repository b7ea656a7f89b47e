"""A controller with everything around it in memory: for tests of what people see and order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import uvicorn

from controller.decide import Observation
from controller.reconcile import Reconciler
from controller.service import PolicyDocument, Service
from controller.state import ModelState
from controller.store.memory import MemoryStore
from controller.web.app import build_app
from controller.web.hooks import NO_HOOKS, Hooks
from deployers.target import FakeTarget
from pipelines.jobs.fake import FakeJobRunner
from policies.schema import ModelPolicy
from policies.signals import Signal

START = datetime(2026, 3, 2, 3, 0, tzinfo=UTC)
TOKEN = "a-token-for-tests"
POLICY = """\
apiVersion: ratchet.dev/v1
kind: ModelPolicy
metadata: {{name: {name}, labels: {{team: ops}}}}
spec:
  task: binary
  data: {{source: {{kind: csv, path: x.csv}}, label: y}}
  train: {{component: sklearn.logistic_regression}}
  objective: {{metric: accuracy}}
  triggers: {{staleness: 30d}}
  cooldown: 2h
  approval: {approval}
  rollout: {{steps: [10%: 1h, 100%], bake: 4h, min_labelled_rows: 0, deadline: 1d}}
"""


def policy_text(name: str = "late", approval: str = "automatic") -> str:
    return POLICY.format(name=name, approval=approval)


class NoObserver:
    """Nothing is measured."""

    def observe(self, state: ModelState, policy: ModelPolicy, now: datetime) -> Observation | None:
        return None


@dataclass
class World:
    """`live` makes the loop go on until nothing changes any more; time stands still unless `later` moves it."""

    store: MemoryStore = field(default_factory=lambda: MemoryStore(audit=True))
    target: FakeTarget = field(default_factory=FakeTarget)
    jobs: FakeJobRunner = field(default_factory=FakeJobRunner)
    now: datetime = START
    last_tick: float = 0.0
    store_answers: bool = True
    sentences: dict[str, str] = field(default_factory=dict)
    woken: list[str] = field(default_factory=list)
    trained: int = 0
    signals: dict[str, dict[str, Signal]] = field(default_factory=dict)
    """Model → what was last measured of it."""

    def __post_init__(self) -> None:
        leading = self.store.acquire("me", START, 1e9)
        assert leading is not None
        self.leading_epoch: int = leading
        self.jobs.scripts.update(
            {
                "pipelines.prepare:run": {"fingerprint": "sha256:f", "sentence": "1,000 rows are ready"},
                "tuners.tune:run": {"component": "c", "parameters": {}, "window_s": None, "sentence": "tuned"},
                "tuners.train:run": lambda _spec: self._train(),
                "evaluators.judge:run": {
                    "verdict": "pass", "sentence": "passed all 1 gates", "scores": {"accuracy": 0.8},
                    "gates": [{"gate": "at_least", "verdict": "pass", "sentence": "accuracy 0.800", "numbers": {}}],
                },
                "deployers.package:run": lambda s: {"digest": f"sha256:{s.inputs['number']:064x}", "sentence": "packaged"},
            }
        )  # fmt: skip
        self.reconciler = Reconciler(
            store=self.store, jobs=self.jobs, target=self.target, observer=NoObserver(), leadership=self,
            home=Path("/nowhere"),
        )  # fmt: skip
        self.service = Service(
            store=self.store, target=self.target, epoch=self.epoch, now=lambda: self.now, wake=self.woken.append,
            sentences=self.sentences, policy=self.reconciler.policy, signals=lambda name: self.signals.get(name, {}),
        )  # fmt: skip

    def _train(self) -> dict[str, Any]:
        self.trained += 1
        return {
            "model_dir": "/m", "model_digest": f"sha256:{self.trained}", "component": "sklearn.logistic_regression",
            "parameters": {"C": 1.0}, "window_s": None, "rows": 1000, "trained_to": START.isoformat(), "sentence": "trained",
        }  # fmt: skip

    def epoch(self) -> int:
        return self.leading_epoch

    def apply(self, name: str = "late", approval: str = "automatic", **changes: Any) -> None:
        document = PolicyDocument(text=policy_text(name, approval), file=f"{name}.yaml", directory="/policies")
        self.service.apply([document], actor="ada@laptop", **changes)

    def live(self, name: str = "late") -> str:
        """Look until nothing changes; the last sentence."""
        for _ in range(20):
            before = self.store.load(name)
            self.sentences[name] = self.reconciler.reconcile(name, lambda: self.now)
            if self.store.load(name) == before:
                break
        return self.sentences[name]

    def later(self, **span: float) -> None:
        self.now += timedelta(**span)

    def serving(self, name: str = "late", **policy: Any) -> World:
        """With v1 of a model in service."""
        self.apply(name, **policy)
        self.live(name)
        return self

    def state(self, name: str = "late") -> ModelState:
        found = self.store.load(name)
        assert found is not None
        return found


@contextmanager
def served(world: World, hooks: Hooks = NO_HOOKS) -> Iterator[str]:
    """The world's API on a real port of this machine; its URL."""
    config = uvicorn.Config(
        build_app(world.service, world, TOKEN, hooks=hooks), host="127.0.0.1", port=0, log_level="error", lifespan="off",
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    ready = threading.Event()
    startup = server.startup

    async def announce(sockets: Any = None) -> None:
        await startup(sockets)
        ready.set()

    server.startup = announce  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert ready.wait(10), "the API did not start"
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
