"""The loop over a recorded stream: rows are asked for in their order, the real controller looks at the model after each interval.

Nothing here decides. `controller.reconcile`, `decide` and the jobs are those of the daemon; the clock, the target, the job runner and the
prediction log are stand-ins that follow the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from backtest.jobs import RecordedJobs, packager
from backtest.log import StreamLog
from backtest.models import Models
from backtest.stream import Stream
from controller.applying import new_model
from controller.decide import Observation
from controller.observing import observe_inputs
from controller.reconcile import Reconciler
from controller.state import Cycle, Event, ModelState, Outcome
from controller.store.memory import MemoryStore
from controller.work import model_dir
from deployers.target import FakeTarget
from evaluators import judge, observe
from pipelines.data.quality.kept import profile_path
from pipelines.jobs.port import JobContext, PermanentJobError
from pipelines.modelfolder import content_digest
from policies.schema import LatencyGate, ModelPolicy
from policies.signals import Comparison, Signal

LOOKS = 1000
"""Looks at the model in a whole stream, about: often enough that a decision comes soon after its cause."""
INTERVAL_ROWS = (20, 250)
"""Fewest and most rows between two looks."""
LOOKS_AT_ONCE = 40
"""Looks at one moment until nothing changes any more; a cycle whose jobs end at once takes about ten."""
ACTOR = "backtest"
_SIGNALS = TypeAdapter(dict[str, Signal])
_COMPARISON = TypeAdapter(Comparison | None)


class NothingToReplayError(Exception):
    """No first version came out of the first rows; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """All that came of it."""

    stream: Stream
    first_row: int
    """Rows before it trained the first version."""
    served: NDArray[np.float64]
    """(n,) or (n, k) scores that the client of each row got, over the classes of the stream; NaN before `first_row`."""
    version: NDArray[np.int32]
    """(n,) who answered; 0 before `first_row`."""
    champion: NDArray[np.int32]
    """(n,) the champion of the moment."""
    events: Sequence[Event]
    cycles: Sequence[Cycle]
    state: ModelState
    train_seconds: float
    """Searching and training, of all cycles after the first."""
    first_model: Path
    """Folder of the first version."""


class _Leader:
    """There is no other controller."""

    def epoch(self) -> int:
        return 1


@dataclass
class StreamObserver:
    """Measures when asked, by the code of the measuring job, at what has been replayed so far."""

    log: StreamLog
    home: Path
    _latest: tuple[object, Observation | None] = (None, None)

    def observe(self, state: ModelState, policy: ModelPolicy, now: datetime) -> Observation | None:
        if state.champion is None:
            return None
        inputs = observe_inputs(state, policy, now, self.home)
        comparison = inputs["comparison"]
        asked = (self.log.replayed, state.champion, repr(comparison))
        if self._latest[0] != asked:
            self._latest = (asked, self._measured(inputs, state, comparison))
        return self._latest[1]

    def _measured(
        self, inputs: Mapping[str, Any], state: ModelState, comparison: Mapping[str, Any] | None
    ) -> Observation:
        context = JobContext(job_id="observe", workdir=self.home, report_path=self.home / "observe.json")
        found = observe.run(inputs, context, self.log)
        return Observation(
            champion=state.champion,
            baseline=comparison["champion"] if comparison else None,
            challenger=comparison["challenger"] if comparison else None,
            signals=_SIGNALS.validate_python(found["signals"]),
            comparison=_COMPARISON.validate_python(found["comparison"]),
        )


@dataclass
class Replay:
    """One policy on one stream."""

    stream: Stream
    home: Path
    """The state folder of this replay."""
    seed: int
    tell: Callable[[int, str], None]
    """Gets the number of rows replayed so far and what is going on."""
    row: int = 0
    _sentence: str = ""
    _served: list[NDArray[np.float64]] = field(default_factory=list)

    def __post_init__(self) -> None:
        rows = Path(self.stream.spec.data.source.path)  # type: ignore[union-attr]  # read_stream made it a file
        self.policy = _without_latency(self.stream.policy)
        self.models = Models(rows=rows, classes=self.stream.classes)
        self.log = StreamLog(self.stream)
        self.jobs = RecordedJobs(
            folder=self.home / "record",
            replaced={
                "evaluators.judge:run": lambda inputs, context: judge.judge(inputs, context, ask=self.models.ask),
                "deployers.package:run": packager(content_digest),
            },
            tell=lambda text: self.tell(self.row, text),
            carried=profile_path(self.home, self.name),
        )
        self.store = MemoryStore()
        self.target = FakeTarget()
        self.reconciler = Reconciler(
            store=self.store, jobs=self.jobs, target=self.target, observer=StreamObserver(self.log, self.home),
            leadership=_Leader(), home=self.home, signal_max_age=timedelta.max, keep_grounds=False,
        )  # fmt: skip
        self.draws = np.random.default_rng(self.seed).random(len(self.stream)) * 100
        self.version = np.zeros(len(self.stream), dtype=np.int32)
        self.champion = np.zeros(len(self.stream), dtype=np.int32)

    @property
    def name(self) -> str:
        return self.policy.name

    def run(self, first_row: int) -> Replayed:
        """Train on the rows before `first_row`, then replay the rest.

        Raises NothingToReplayError if that brings no version, PermanentJobError if a version cannot answer the rows that follow.
        """
        self._begin(first_row)
        first = self._state()
        assert first.champion is not None
        first_model = model_dir(self.home, first.versions[first.champion])
        interval = int(np.clip(len(self.stream) // LOOKS, *INTERVAL_ROWS))
        while self.row < len(self.stream):
            self._ask(self.stream.row_after(min(self.row + interval, len(self.stream))))
            self._look(self.stream.moment(self.row - 1))
            self.tell(self.row, self._sentence)
        return Replayed(
            stream=self.stream, first_row=first_row, served=self._scores(first_row), version=self.version,
            champion=self.champion, events=self.store.events(self.name, limit=1_000_000),
            cycles=self.store.cycles(self.name, limit=1_000_000), state=self._state(),
            train_seconds=self._train_seconds(), first_model=first_model,
        )  # fmt: skip

    def _begin(self, first_row: int) -> None:
        now = self.stream.moment(first_row - 1)
        epoch = self.store.acquire(ACTOR, now, 1.0)
        assert epoch == _Leader().epoch()
        state, event = new_model(self.policy, str(self.home), ACTOR, now)
        self.store.create(epoch, state, [event])
        self.log.ask(first_row)
        self.row = first_row
        self._look(now)
        state = self._state()
        if state.champion is None:
            raise NothingToReplayError(f"the first {first_row:,} rows bring no version: {self._sentence}")

    def _state(self) -> ModelState:
        state = self.store.load(self.name)
        assert state is not None
        return state

    # ---------------------------------------------------------------- the controller
    def _look(self, now: datetime) -> None:
        """Look at the model until nothing changes: jobs end at once here, so a cycle goes through all its phases in one moment."""
        for _ in range(LOOKS_AT_ONCE):
            before = self._state().row_version
            self._sentence = self.reconciler.reconcile(self.name, lambda: now)
            if self._state().row_version == before:
                return

    # ---------------------------------------------------------------- the clients
    def _ask(self, end: int) -> None:
        """The next rows are asked for; whoever has the traffic answers."""
        state, status = self._state(), self.target.observe(self.name)
        assert status is not None, "the first version is in force"
        assert state.champion is not None
        rows = self.log.ask(end)
        versions = sorted(status.weights)
        bounds = np.cumsum([status.weights[number] for number in versions])
        who = np.minimum(np.searchsorted(bounds, self.draws[rows], side="right"), len(versions) - 1)
        self.champion[rows] = state.champion
        scores: NDArray[np.float64] | None = None
        for i, number in enumerate(versions):
            mine = np.flatnonzero(who == i)
            answered, folder = self._answers(state, number, rows[mine])
            self.log.answer(rows[mine], number, "live", answered)
            self.version[rows[mine]] = number
            if len(mine):
                common = self.models.over_all_classes(folder, answered)
                scores = np.zeros((len(rows), *common.shape[1:])) if scores is None else scores
                scores[mine] = common
        if status.shadow is not None:
            self.log.answer(rows, status.shadow, "shadow", self._answers(state, status.shadow, rows)[0])
        assert scores is not None
        self._served.append(scores)
        self.row = end

    def _answers(self, state: ModelState, number: int, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], Path]:
        folder = model_dir(self.home, state.versions[number])
        if not len(rows):
            return np.zeros(0), folder
        try:
            return self.models.scores(folder, rows), folder
        except Exception as error:
            raise PermanentJobError(f"v{number} cannot answer rows {rows[0]:,} to {rows[-1]:,}: {error}") from error

    # ---------------------------------------------------------------- what came of it
    def _scores(self, first_row: int) -> NDArray[np.float64]:
        after = np.concatenate(self._served)
        before = np.full((first_row, *after.shape[1:]), np.nan)
        return np.concatenate([before, after])

    def _train_seconds(self) -> float:
        later = [c.number for c in self.store.cycles(self.name, limit=1_000_000)]
        first = min(later, default=0)
        heavy = ("-tuning-", "-training-")
        return sum(
            seconds
            for job_id, seconds in self.jobs.seconds.items()
            if any(word in job_id for word in heavy) and f"-c{first}-" not in job_id
        )


def _without_latency(policy: ModelPolicy) -> ModelPolicy:
    """No process serves here, so how fast one answers is not known; all other gates are in force."""
    gates = tuple(gate for gate in policy.spec.gates if not isinstance(gate, LatencyGate))
    return policy.model_copy(update={"spec": policy.spec.model_copy(update={"gates": gates})})


def trained(cycles: Sequence[Cycle]) -> int:
    """Cycles that came to a new model, the first one apart."""
    return sum("training" in cycle.outputs for cycle in sorted(cycles, key=lambda c: c.number)[1:])


def ended(cycles: Sequence[Cycle], *outcomes: Outcome) -> int:
    """How many cycles, the first one apart, ended so."""
    return sum(cycle.outcome in outcomes for cycle in sorted(cycles, key=lambda c: c.number)[1:])
