"""One program that should run, kept running: the rules as a pure function, and the object that obeys it.

Used for replicas, as processes or as containers, and for the router alike. What must survive the daemon is in the slot's `life.json`.
Times there are seconds of the machine's monotonic clock, which all processes share until the machine is booted again; a life from another
boot is over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from deployers.routed.processes import Presence, Slot, begin_log, boot_id, last_words, trim_log
from deployers.target import ReplicaState
from pipelines.jobs.files import read_json, write_json_atomic


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How patient a target is with what it runs; all in seconds of real time."""

    start_timeout_s: float = 120.0
    """From the start until the process must be ready."""
    hung_after_s: float = 60.0
    """A ready process that has not answered a probe for so long is killed and started again. Generous: training uses the same cores."""
    unheard_s: float = 15.0
    """One of which nobody can say whether it runs counts as ready for so long after it answered a probe."""
    probe_every_s: float = 5.0
    probe_timeout_s: float = 1.0
    early_deaths_max: int = 3
    """So many deaths in a row, each before `stable_s` of readiness, are a failure; starts are still tried, more and more rarely."""
    stable_s: float = 60.0
    backoff_s: float = 0.5
    backoff_max_s: float = 30.0
    drain_timeout_s: float = 30.0
    """How long requests may hold up the end of a replica that gets no new ones."""
    grace_s: float = 15.0
    """From SIGTERM to SIGKILL."""

    def backoff(self, deaths: int) -> float:
        """Seconds to wait after so many early deaths in a row: doubling, bounded.

        >>> [Limits().backoff(n) for n in (1, 2, 3, 20)]
        [0.5, 1.0, 2.0, 30.0]
        """
        return min(self.backoff_max_s, self.backoff_s * 2.0 ** (min(deaths, 64) - 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Life:
    """What is remembered of a process and its predecessors in the slot."""

    boot: str
    started_at: float | None = None
    log_from: int = 0
    """Byte of the log at which the process began to write."""
    ready_at: float | None = None
    answered_at: float | None = None
    """When a probe last succeeded."""
    port: int | None = None
    """Known once the process was ready; kept over its death."""
    deaths: int = 0
    """Early ones in a row."""
    not_before: float = 0.0
    reason: str = ""
    """Of the last death."""
    doom: str = ""
    """Why it was killed by us, if it was."""
    draining_since: float | None = None
    terminated_at: float | None = None


class Move(StrEnum):
    WAIT = "wait"
    START = "start"
    KILL = "kill"


def next_move(
    life: Life, presence: Presence, answers: bool, obituary: str, now: float, limits: Limits
) -> tuple[Life, Move]:
    """What to remember and what to do. `answers`: whether a probe succeeded just now; `obituary`: the last thing that it said."""
    if presence is Presence.ORPHANED:
        return life, Move.KILL
    if presence is Presence.UNKNOWN:  # nothing can be done now; what answers, lives
        return (replace(life, answered_at=now) if answers else life), Move.WAIT
    if presence is Presence.GONE:
        if life.started_at is not None:
            life = _bury(life, obituary, now, limits)
        if now < life.not_before:
            return life, Move.WAIT
        return replace(life, started_at=now), Move.START
    if answers:
        return replace(life, ready_at=now if life.ready_at is None else life.ready_at, answered_at=now), Move.WAIT
    started_at = now if life.started_at is None else life.started_at
    life = replace(life, started_at=started_at)
    if life.ready_at is None and now - started_at > limits.start_timeout_s:
        return replace(life, doom=f"not ready within {limits.start_timeout_s:g} s"), Move.KILL
    if life.answered_at is not None and now - life.answered_at > limits.hung_after_s:
        return replace(life, doom=f"did not answer for {limits.hung_after_s:g} s"), Move.KILL
    return life, Move.WAIT


def _bury(life: Life, obituary: str, now: float, limits: Limits) -> Life:
    early = life.ready_at is None or now - life.ready_at < limits.stable_s
    deaths = life.deaths + 1 if early else 0
    return Life(
        boot=life.boot,
        port=life.port,
        deaths=deaths,
        not_before=now + limits.backoff(deaths) if early else now,
        reason=life.doom or obituary or "died without a word",
        draining_since=life.draining_since,
        terminated_at=life.terminated_at,
    )


def is_ready(life: Life, presence: Presence, now: float, limits: Limits) -> bool:
    """Whether it may be given requests. Where nobody can say whether it runs, it must have answered of late."""
    if presence is Presence.UNKNOWN:
        heard = life.answered_at is not None and now - life.answered_at <= limits.unheard_s
        return life.ready_at is not None and heard
    return presence is Presence.RUNNING and life.ready_at is not None


def state_of(life: Life, presence: Presence, now: float, limits: Limits) -> tuple[ReplicaState, str]:
    """The state that a life amounts to, and why."""
    if life.draining_since is not None:
        return ReplicaState.DRAINING, ""
    if is_ready(life, presence, now, limits):
        return ReplicaState.READY, ""
    if presence is Presence.UNKNOWN:
        return ReplicaState.STARTING, "it does not answer, and whether it runs cannot be asked now"
    if life.deaths >= limits.early_deaths_max:
        return ReplicaState.FAILED, f"died {life.deaths} times in a row, last: {life.reason}"
    if presence is Presence.RUNNING:
        return ReplicaState.STARTING, f"starting for {now - (life.started_at or now):.0f} s"
    return ReplicaState.STARTING, f"to be started again; last: {life.reason}" if life.reason else "to be started"


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """What to run in a slot."""

    command: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    log: Path


class Runner(Protocol):
    """What runs, or should run, in a slot: a process or a container."""

    @property
    def folder(self) -> Path:
        """Of the slot."""

    def presence(self) -> Presence:
        """Whether it runs now."""

    def port(self) -> int | None:
        """Of this machine, where it listens; None while that is not known."""

    def tend(self, life: Life) -> None:
        """What is to be done all the while it runs."""

    def prepare(self, life: Life) -> Life:
        """What must be remembered before it is started. Raises OSError."""

    def start(self, life: Life) -> str:
        """Start it, unless it runs; why it cannot be started, or an empty string. Raises OSError, TargetError: later, then."""

    def obituary(self, life: Life) -> str:
        """Of one that is gone: why, or the last thing that it said."""

    def terminate(self) -> None:
        """Ask it to finish what it does and to end."""

    def kill(self) -> None:
        """End it and all that it started, at once."""

    def clear(self) -> None:
        """Forget one that is gone, and its slot."""


@dataclass(frozen=True, slots=True)
class ProcessRunner:
    """A process of this machine."""

    slot: Slot
    program: Callable[[Life], Program]

    @property
    def folder(self) -> Path:
        return self.slot.folder

    def presence(self) -> Presence:
        return self.slot.presence()

    def port(self) -> int | None:
        return announced_port(self.slot.announce)

    def tend(self, life: Life) -> None:
        trim_log(self.program(life).log)

    def prepare(self, life: Life) -> Life:
        return replace(life, log_from=begin_log(self.program(life).log))

    def start(self, life: Life) -> str:
        program = self.program(life)
        self.slot.start(program.command, env=program.env, cwd=program.cwd, log=program.log)
        return ""

    def obituary(self, life: Life) -> str:
        return last_words(self.program(life).log, life.log_from)

    def terminate(self) -> None:
        self.slot.terminate()

    def kill(self) -> None:
        self.slot.kill()

    def clear(self) -> None:
        self.slot.clear()


class Supervised:
    """What runs in a slot, and its life. Strides must not overlap: the caller holds a lock."""

    def __init__(self, runner: Runner, probe: Callable[[int], bool], limits: Limits) -> None:
        self.runner = runner
        self._probe = probe
        """Whether what listens on this port is ready; bounded by `probe_timeout_s`."""
        self._limits = limits

    def life(self) -> Life:
        """As remembered; a new one if there is none, if it is from another boot, or if the file is damaged."""
        boot = boot_id()
        try:
            known: Any = read_json(self._life_path)
            life = Life(**known) if known is not None else Life(boot=boot)
        except (ValueError, TypeError):
            life = Life(boot=boot)
        return life if life.boot == boot else Life(boot=boot, port=life.port)

    @property
    def _life_path(self) -> Path:
        return self.runner.folder / "life.json"

    def _remember(self, before: Life, after: Life) -> None:
        if after != before:
            write_json_atomic(self._life_path, asdict(after))

    def state(self, now: float) -> tuple[ReplicaState, str]:
        return state_of(self.life(), self.runner.presence(), now, self._limits)

    def is_ready(self, life: Life, now: float) -> bool:
        """Whether it may be given requests."""
        return is_ready(life, self.runner.presence(), now, self._limits)

    def keep(self, now: float) -> Life:
        """One stride towards running and ready, also for one that was draining. Raises OSError if the machine cannot start it."""
        before = self.life()
        assert before.terminated_at is None, f"{self.runner.folder} was told to end"
        presence = self.runner.presence()
        if presence is Presence.RUNNING:
            self.runner.tend(before)
        port = self._port(before, presence)
        due = before.answered_at is None or now - before.answered_at >= self._limits.probe_every_s
        answers = port is not None and due and self._probe(port)
        died = presence is Presence.GONE and before.started_at is not None
        obituary = self.runner.obituary(before) if died else ""
        life, move = next_move(before, presence, answers, obituary, now, self._limits)
        if answers:
            life = replace(life, port=port)
        life = replace(life, draining_since=None)
        if move is not Move.START:
            self._remember(before, life)
            if move is Move.KILL:
                self.runner.kill()
            return life
        life = self.runner.prepare(life)
        self._remember(before, life)  # first, so that a start that nobody remembers cannot be
        if problem := self.runner.start(life):
            self._remember(life, replace(life, doom=problem))
        return life

    def _port(self, life: Life, presence: Presence) -> int | None:
        """Where to ask whether it is ready: of one that may run, where it was ready before."""
        if presence is Presence.UNKNOWN:
            return life.port if life.ready_at is not None else None
        return self.runner.port() if presence is Presence.RUNNING else None

    def stop(self, now: float, *, idle: bool) -> bool:
        """One stride towards gone: wait until `idle` (or too long), SIGTERM, then SIGKILL. True when it is gone."""
        before = self.life()
        presence = self.runner.presence()
        if presence is Presence.GONE:
            self.runner.clear()
            return True
        life = replace(before, draining_since=now if before.draining_since is None else before.draining_since)
        assert life.draining_since is not None
        drained = idle or life.ready_at is None or now - life.draining_since > self._limits.drain_timeout_s
        if before.terminated_at is None and drained and presence is not Presence.UNKNOWN:
            self._remember(before, replace(life, terminated_at=now))
            self.runner.terminate()
            return False
        self._remember(before, life)
        overdue = before.terminated_at is not None and now - before.terminated_at > self._limits.grace_s
        if (overdue and presence is not Presence.UNKNOWN) or presence is Presence.ORPHANED:
            self.runner.kill()
        return False


def announced_port(path: Path) -> int | None:
    """The port that a process wrote down once it accepted requests; None before."""
    try:
        announced = read_json(path)
    except ValueError:
        return None
    port = announced.get("port") if isinstance(announced, dict) else None
    return port if isinstance(port, int) else None
