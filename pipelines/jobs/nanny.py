"""The process that watches over one job: it forks the worker, holds the job's lock, enforces the limits and writes the result.

One nanny a job, in a session of its own, so that a job depends neither on the daemon nor on the job host once it has started.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pipelines.jobs.port import JobContext, JobSpec, JobState, JobStatus
from pipelines.jobs.processes import adopt_orphans, descendants, die_with_parent, end_descendants, resident_bytes
from pipelines.jobs.records import JobFolder, ReservedResult, status_from_json, status_to_json
from pipelines.jobs.worker import prepare_process, run_entry

LOOK_EVERY_S = 0.2
_LOG_BYTES_MAX = 16 * 2**20
_LOG_TAIL_CHARS = 400
_OUTSIDE_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What a job takes over from the controller that asked for it."""

    env: Mapping[str, str]
    path: list[str]
    """`sys.path`"""
    grace_s: float
    """Between asking processes to end and killing them."""


def supervise(folder: JobFolder, spec: JobSpec, lock: int, surroundings: Surroundings) -> NoReturn:
    """Run the job to its end in this process, just forked, and exit. `lock` stays locked until then."""
    try:
        os.setsid()
        adopt_orphans()
        _redirect_output(folder)
        result = ReservedResult(folder)
        receiver, sender = os.pipe()
        nanny = os.getpid()
        worker = os.fork()
        if worker == 0:
            os.close(lock)
            os.close(receiver)
            _work(folder, spec, sender, nanny, surroundings)
        os.close(sender)
        watch = _Watch(folder, spec, worker, receiver, surroundings.grace_s)
        with contextlib.suppress(OSError):  # a cancel then takes a look's time longer
            folder.note_pids(nanny=nanny, worker=worker)
        result.publish(watch.until_ended())
    except Exception as error:  # noqa: BLE001 - the last chance to say what happened
        end_descendants(0.0)
        with contextlib.suppress(OSError):
            folder.end(JobStatus(state=JobState.FAILED, error=f"it could not be watched over: {error}", retryable=True))
    finally:
        os._exit(0)


def _redirect_output(folder: JobFolder) -> None:
    """stdin from nowhere, stdout and stderr to the job's log."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    try:
        log = os.open(folder.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError:
        log = nowhere
    os.dup2(nowhere, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)


def _work(folder: JobFolder, spec: JobSpec, sender: int, nanny: int, surroundings: Surroundings) -> NoReturn:
    """The worker: its own session, gone when its nanny is, one message out."""
    exit_code = 1
    try:
        die_with_parent(nanny)
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        prepare_process(spec, surroundings.env, surroundings.path)
        workdir = Path(spec.workdir) if spec.workdir else folder.path / "work"
        workdir.mkdir(parents=True, exist_ok=True)
        os.chdir(workdir)
        context = JobContext(job_id=spec.job_id, workdir=workdir, report_path=folder.progress)
        status = run_entry(spec, context)
        with os.fdopen(sender, "wb") as pipe:
            pipe.write(json.dumps(status_to_json(status)).encode())
        exit_code = 0
    except Exception:  # noqa: BLE001 - the nanny reports the last lines printed
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(exit_code)


class _Watch:
    """Looks at the worker until it has ended or must end."""

    def __init__(self, folder: JobFolder, spec: JobSpec, worker: int, receiver: int, grace_s: float) -> None:
        self._folder, self._limits, self._worker, self._grace_s = folder, spec.limits, worker, grace_s
        self._receiver = receiver
        self._message = bytearray()
        self._began = time.monotonic()
        self._asked_to_stop = False
        self._poller = select.poll()
        os.set_blocking(receiver, False)
        self._poller.register(receiver, select.POLLIN)
        self._poller.register(os.pidfd_open(worker), select.POLLIN)
        self._poller.register(self._wake_on_signal(), select.POLLIN)

    def _wake_on_signal(self) -> int:
        """SIGTERM means: look now. A cancel sends it after writing its result; anybody else means that the job has to stop."""
        wake, waker = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return wake

    def _on_sigterm(self, _number: int, _frame: object) -> None:
        self._asked_to_stop = True

    def until_ended(self) -> JobStatus:
        """Nothing of the job runs any more when this returns."""
        status: JobStatus | None = None
        while status is None:
            self._poller.poll(LOOK_EVERY_S * 1000)
            self._drain()
            pid, wait_status = os.waitpid(self._worker, os.WNOHANG)
            if pid:
                self._drain()
                status = outcome(bytes(self._message), os.waitstatus_to_exitcode(wait_status), self._log_tail())
            elif self._folder.has_ended():
                status = JobStatus(state=JobState.CANCELLED)  # not recorded: the cancel already is
            elif reason := self._must_end():
                status = JobStatus(state=JobState.FAILED, error=reason, retryable=self._asked_to_stop)
            self._trim_log()
        end_descendants(self._grace_s)
        return dataclasses.replace(status, seconds=round(time.monotonic() - self._began, 3))

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._receiver, 2**20):
                self._message += chunk
            with contextlib.suppress(KeyError):  # the far end is closed, and would be reported again and again
                self._poller.unregister(self._receiver)

    def _must_end(self) -> str:
        """Why the job may not go on, or nothing."""
        if self._asked_to_stop:
            return "it was told to stop from outside (is the machine shutting down?)"
        if time.monotonic() - self._began > self._limits.timeout_s:
            return f"it took longer than its time limit of {self._limits.timeout_s:g} s and was ended"
        allowed = self._limits.memory_mb * 2**20
        used = resident_bytes(descendants(os.getpid()), at_most=allowed)
        if used > allowed:
            return f"it used {used / 2**20:.0f} MB of memory, more than its limit of {self._limits.memory_mb} MB, and was ended"
        return ""

    def _trim_log(self) -> None:
        """The log is opened for appending, so emptying it is safe while the job goes on printing."""
        with contextlib.suppress(OSError):
            if self._folder.log.stat().st_size > _LOG_BYTES_MAX:
                os.truncate(self._folder.log, 0)

    def _log_tail(self) -> str:
        try:
            with open(self._folder.log, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 4 * _LOG_TAIL_CHARS))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return " / ".join(line.strip() for line in lines[-3:] if line.strip())[-_LOG_TAIL_CHARS:]


def outcome(message: bytes, exit_code: int, log_tail: str) -> JobStatus:
    """How a worker ended that was not told to: by its message, or without one by its exit code (negative: a signal).

    Killed from outside, it may do better the next time; a crash or an exit of its own would come again.
    """
    with contextlib.suppress(ValueError):
        return status_from_json(json.loads(message))
    if exit_code >= 0:
        how, retryable = f"its process ended without a result (exit code {exit_code})", False
    else:
        name = signal.Signals(-exit_code).name
        retryable = -exit_code in _OUTSIDE_SIGNALS
        how = f"its process was killed by {name}" + (" (is the machine out of memory?)" if -exit_code == 9 else "")
    return JobStatus(
        state=JobState.FAILED, error=how + (f"; it last printed: {log_tail}" if log_tail else ""), retryable=retryable
    )
