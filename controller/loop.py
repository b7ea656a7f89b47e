"""The daemon's loop: a scheduler that only says whose turn it is, and one worker that looks at models in turn.

APScheduler's jobs enqueue names and nothing else, so no run is ever lost to a busy worker: a name that waits already need not wait twice.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_MAX_INSTANCES, EVENT_JOB_MISSED
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.combining import OrTrigger

from controller.reconcile import LapsedLease, LostLeadership, Reconciler
from controller.state import Incident, ModelState
from controller.store.port import ConflictError, FencedError, Store, StoreError
from controller.telemetry.metrics import (
    INCIDENTS_OPEN,
    MODELS,
    OPEN_CYCLES,
    RECONCILE_ERRORS,
    RECONCILE_SECONDS,
    SCHEDULER_EVENTS,
    show_labels,
)  # fmt: skip
from deployers.images import ImageError
from deployers.target import TargetError
from policies.cron import parse_cron
from policies.schema import ScheduleTrigger, trigger_leaves

log = structlog.get_logger()

NOTICE_INTERVAL_S = 2.0
HOUSEKEEPING_AFTER_S = 600.0
"""From the start of the daemon to its first housekeeping."""
HOUSEKEEPING_INTERVAL_S = 3600.0
RESTLESS_INTERVAL_S = 0.5
"""Models whose job or replicas may be ready at any moment are looked at so often, so that a cycle does not spend its time in waiting."""
INCIDENTS_COUNTED = 1000
STEP_BACK_S = 1.0
"""A clock that is set back by less only delays its jobs by so much."""
STEP_LOOK_S = 1.0
"""The clock is looked at so often, at least."""
_NUMBERS = re.compile(r"[0-9][0-9.,:smhd-]*")
_SCHEDULER_EVENTS = {EVENT_JOB_MISSED: "missed", EVENT_JOB_MAX_INSTANCES: "max_instances", EVENT_JOB_ERROR: "error"}
_QUIETLY_DROPPED: dict[str, Any] = {"coalesce": True, "max_instances": 1, "misfire_grace_time": None}


class SteadyScheduler(BackgroundScheduler):  # type: ignore[misc]  # APScheduler is untyped
    """APScheduler counts by the wall clock: one that is set back an hour would silence every job, the lease's too, for that hour.

    Here such a step makes all jobs due at once, which is what they are after any other pause."""

    def start(self, *args: Any, **options: Any) -> None:
        self._ahead_s = time.time() - time.monotonic()
        super().start(*args, **options)

    def _process_jobs(self) -> float:
        before, self._ahead_s = self._ahead_s, time.time() - time.monotonic()
        if self._ahead_s < before - STEP_BACK_S:
            log.warning("clock.set_back", seconds=round(before - self._ahead_s, 1))
            for job in self.get_jobs():
                job.modify(next_run_time=datetime.now(UTC))
        wait_s: float | None = super()._process_jobs()
        return STEP_LOOK_S if wait_s is None else min(wait_s, STEP_LOOK_S)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chore:
    """Something that is done now and then beside the models' turns, in a thread of the scheduler's, never twice at a time."""

    name: str
    every_s: float
    run: Callable[[], None]
    close: Callable[[], None] = lambda: None
    """Makes a run that is under way end soon; no other follows."""


class Turns:
    """Names that wait for their look, in order, each once; with the state that was just read, where it need not be read again.
    Thread-safe."""

    def __init__(self) -> None:
        self._waiting: dict[str, ModelState | None] = {}
        self._changed = threading.Condition()
        self._closed = False

    def put(self, name: str, seen: ModelState | None = None) -> None:
        """Without `seen`, something has happened: whoever looks must read anew."""
        with self._changed:
            if seen is None or self._waiting.get(name, seen) is not None:
                self._waiting[name] = seen
            self._changed.notify()

    def take(self) -> tuple[str, ModelState | None] | None:
        """The next name, waiting for one; None when closed."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            name = next(iter(self._waiting))
            return name, self._waiting.pop(name)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Loop:
    """Runs until `stop`, or until leadership is lost, which calls `on_lost` once."""

    def __init__(
        self, *, store: Store, reconciler: Reconciler, tell: Callable[[], None], now: Callable[[], datetime],
        renew: Callable[[], None], on_lost: Callable[[str], None], tick_s: float, lease_ttl_s: float, cron: bool = True,
        housekeep: Callable[[], None] = lambda: None, refresh: Callable[[], object] | None = None,
        watch: Callable[[Sequence[ModelState], Sequence[Incident], datetime], None] = lambda *_: None,
    ) -> None:  # fmt: skip
        """`tell`: gives people their notices; called often, must not block. `watch`: is shown the state of everything at each tick."""
        self._store = store
        self._reconciler = reconciler
        self._tell = tell
        self._now = now
        self._renew = renew
        self._on_lost = on_lost
        self._tick_s = tick_s
        self._lease_ttl_s = lease_ttl_s
        self._cron = cron
        self._housekeep = housekeep
        self._refresh = refresh
        self._chores: list[Chore] = []
        self._watch = watch
        self._turns = Turns()
        self._sentences: dict[str, str] = {}
        self._scheduler = SteadyScheduler(timezone="UTC", job_defaults=_QUIETLY_DROPPED)
        self._worker = threading.Thread(target=self._work, name="reconciler", daemon=True)
        self.last_tick = 0.0
        """Monotonic time of the last tick, for `/healthz`."""
        self.store_answers = True
        """Whether the store answered the last tick."""

    def start(self) -> None:
        for mask, kind in _SCHEDULER_EVENTS.items():
            self._scheduler.add_listener(lambda _event, kind=kind: SCHEDULER_EVENTS.labels(kind).inc(), mask)
        self._scheduler.add_job(
            self._tick, "interval", seconds=self._tick_s, id="tick", next_run_time=datetime.now().astimezone()
        )
        self._scheduler.add_job(self._hurry, "interval", seconds=min(RESTLESS_INTERVAL_S, self._tick_s), id="restless")
        self._scheduler.add_job(self._keep_lease, "interval", seconds=self._lease_ttl_s / 4, id="lease")
        self._scheduler.add_job(self._deliver, "interval", seconds=NOTICE_INTERVAL_S, id="notices")
        first = datetime.now().astimezone() + timedelta(seconds=HOUSEKEEPING_AFTER_S)
        self._scheduler.add_job(
            self._make_room, "interval", seconds=HOUSEKEEPING_INTERVAL_S, id="housekeeping", next_run_time=first
        )
        if self._refresh is not None:
            self._scheduler.add_job(self._refresh, "interval", seconds=self._tick_s, id="metrics")
        for chore in self._chores:
            self._scheduler.add_job(
                self._do, "interval", args=[chore], seconds=chore.every_s, id=f"chore:{chore.name}", name=chore.name,
                next_run_time=datetime.now().astimezone(),
            )  # fmt: skip
        self._clear_strays()
        self._scheduler.start()
        self._worker.start()

    def stop(self) -> None:
        self._turns.close()
        for chore in self._chores:
            chore.close()
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
        if self._worker.is_alive() and threading.current_thread() is not self._worker:
            self._worker.join(timeout=10)

    def also(self, chore: Chore) -> None:
        """Do this too, from the start on."""
        self._chores.append(chore)

    def wake(self, name: str) -> None:
        """Look at a model soon, not only at the next tick."""
        self._turns.put(name)

    @property
    def sentences(self) -> Mapping[str, str]:
        """Model → newest sentence."""
        return self._sentences

    # ------------------------------------------------------------ jobs of the scheduler
    def _tick(self) -> None:
        try:
            states = self._store.load_all()
            incidents = self._store.incidents(open_only=True, limit=INCIDENTS_COUNTED)
        except StoreError as error:
            log.error("tick.failed", error=str(error))
            self.last_tick, self.store_answers = time.monotonic(), False
            return
        self.store_answers = True
        for state in states:
            self._turns.put(state.name, state)
        for gone in self._sentences.keys() - {state.name for state in states}:
            self._sentences.pop(gone, None)
            show_labels(gone, {})
        self.last_tick = time.monotonic()
        MODELS.set(len(states))
        INCIDENTS_OPEN.set(len(incidents))
        OPEN_CYCLES.set(sum(state.cycle is not None for state in states))
        try:
            self._watch(states, incidents, self._now())
        except Exception:
            log.exception("alerts.failed")
        if self._cron:
            self._schedule_cron({state.name: state for state in states})

    def _clear_strays(self) -> None:
        try:
            for name in self._reconciler.strays():
                self._turns.put(name)
        except (StoreError, TargetError, OSError) as error:
            log.error("strays.not_looked_for", error=str(error))

    def _hurry(self) -> None:
        for name in tuple(self._reconciler.restless):
            self._turns.put(name)

    def _schedule_cron(self, states: Mapping[str, Any]) -> None:
        """Cron triggers are judged on every look; a job at the very minute only makes that look prompt."""
        wanted: dict[str, tuple[str, str]] = {}
        for name, state in states.items():
            try:
                policy = self._reconciler.policy(state)
            except ValueError:
                continue  # each look at it says what is wrong
            for leaf in trigger_leaves(policy.spec.triggers):
                if isinstance(leaf, ScheduleTrigger):
                    wanted[f"cron:{name}:{leaf.schedule.cron}"] = (name, leaf.schedule.cron)
        for job in self._scheduler.get_jobs():
            if job.id.startswith("cron:") and job.id not in wanted:
                job.remove()
        for job_id, (name, cron) in wanted.items():
            if self._scheduler.get_job(job_id) is None:
                self._scheduler.add_job(self.wake, OrTrigger(list(parse_cron(cron).parts)), args=[name], id=job_id)

    def _keep_lease(self) -> None:
        try:
            self._renew()
        except LostLeadership as error:
            self._lost(str(error))
        except StoreError as error:
            log.error("lease.not_renewed", error=str(error))

    def _deliver(self) -> None:
        try:
            self._tell()
        except StoreError as error:
            log.error("outbox.failed", error=str(error))

    def _do(self, chore: Chore) -> None:
        try:
            chore.run()
        except LapsedLease as error:
            log.warning("chore.put_off", chore=chore.name, error=str(error))
        except LostLeadership as error:
            self._lost(str(error))
        except FencedError as error:
            log.warning(
                "chore.fenced", chore=chore.name, error=str(error)
            )  # the lease's own job finds out whether it is lost
        except StoreError as error:
            log.error("chore.failed", chore=chore.name, error=str(error))
        except Exception:
            log.exception("chore.failed", chore=chore.name)

    def _make_room(self) -> None:
        try:
            self._housekeep()
        except (LostLeadership, StoreError, ImageError, OSError) as error:
            log.warning("housekeeping.failed", error=str(error))

    # ------------------------------------------------------------ the worker
    def _work(self) -> None:
        while (turn := self._turns.take()) is not None:
            self._look(*turn)

    def _look(self, name: str, seen: ModelState | None) -> None:
        try:
            with RECONCILE_SECONDS.time():
                sentence = self._reconciler.reconcile(name, self._now, seen)
        except LapsedLease as error:
            sentence = f"this daemon may not lead now, so nothing changes: {error}"
        except LostLeadership as error:
            self._lost(str(error))
            return
        except ConflictError:
            self._turns.put(name)  # a person's order came in between: look again
            return
        except StoreError as error:
            RECONCILE_ERRORS.labels("store").inc()
            sentence = f"the store refuses, so nothing changes: {error}"
        except Exception as error:
            RECONCILE_ERRORS.labels("bug").inc()
            log.exception("reconcile.failed", model=name)
            sentence = f"an error in the controller, so nothing changes: {error}"
        before = self._sentences.get(name, "")
        if _gist(before) != _gist(sentence):
            log.info("reconcile.said", model=name, sentence=sentence)
        self._sentences[name] = sentence

    def _lost(self, reason: str) -> None:
        log.error("leadership.lost", reason=reason)
        self._turns.close()
        self._on_lost(reason)


def _gist(sentence: str) -> str:
    """The sentence without its numbers: one that only counts seconds or trials is no news for the log.

    >>> _gist("holds for 59m more") == _gist("holds for 58m more")
    True
    """
    return _NUMBERS.sub("#", sentence)
