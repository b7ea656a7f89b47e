"""The record of a job on disk: one folder a job, read and written by the runner, the host and the nanny alike.

    spec.json      what to run; written once, before anything starts
    lock           locked by the nanny for as long as it lives (a lock cannot be mistaken for another process's, as a pid can)
    started.json   written once, under the lock, just before the nanny is forked: never a second start
    pids.json      of the nanny, and of the worker, which leads the process group
    progress.json  what the job last reported
    result.json    how it ended; written once, by whoever is first: the nanny, or a person's cancel
    log            what the job printed

Every rule of idempotence rests on "written once": a link to a new name, which of all racing processes only one can make.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.jobs.files import create_json, link_new, read_json, write_json_atomic
from pipelines.jobs.port import JobSpec, JobState, JobStatus, Limits
from pipelines.jobs.processes import boot_id, start_ticks, sweep_group

_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_RESERVED_BYTES = 4096
VANISHED = "its process vanished (killed or machine restarted)"


@dataclass(frozen=True, slots=True)
class JobFolder:
    """`jobs/<job_id>` and what may be asked of it."""

    path: Path

    @classmethod
    def of(cls, jobs: Path, job_id: str) -> JobFolder:
        """Raises ValueError if `job_id` is no safe file name."""
        if not _JOB_ID.fullmatch(job_id):
            raise ValueError(f"job_id must be 1 to 200 letters, digits, '.', '_' or '-', but got {job_id!r}")
        return cls(jobs / job_id)

    @property
    def log(self) -> Path:
        return self.path / "log"

    @property
    def progress(self) -> Path:
        return self.path / "progress.json"

    @property
    def _started(self) -> Path:
        return self.path / "started.json"

    @property
    def _result(self) -> Path:
        return self.path / "result.json"

    # ---------------------------------------------------------------- asking
    def is_settled(self) -> bool:
        """Whether the job was started, ended or cancelled, so that nobody needs to start it any more."""
        return self._started.exists() or self._result.exists()

    def has_ended(self) -> bool:
        return self._result.exists()

    def is_held(self) -> bool:
        """Whether a started job's nanny is alive. Only sound once `started.json` is there: before, looking would disturb the start."""
        try:
            handle = os.open(self.path / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def is_running(self) -> bool:
        return self._started.exists() and not self._result.exists() and self.is_held()

    def spec(self) -> JobSpec | None:
        """Raises ValueError if the file is damaged."""
        raw = read_json(self.path / "spec.json")
        return None if raw is None else JobSpec(**{**raw, "limits": Limits(**raw["limits"])})

    def status(self) -> JobStatus | None:
        """Where the job stands; None if it was never started. Writes down that it vanished, if it did."""
        started = self._started.exists()
        held = started and self.is_held()
        # The nanny writes the result before it lets the lock go, so look for the result after the lock.
        if (ended := self._outcome()) is not None:
            return dataclasses.replace(ended, progress=self._progress())
        if not started:
            return None
        if held:
            return JobStatus(state=JobState.RUNNING, progress=self._progress(), seconds=self.seconds())
        if not self._started.exists():  # given back in this moment
            return None
        self.sweep()
        lost = JobStatus(state=JobState.FAILED, error=VANISHED, retryable=True, progress=self._progress())
        with contextlib.suppress(OSError):
            self.end(lost)
        return lost

    def seconds(self) -> float:
        """Since the start, by the clock that nobody sets; 0 if unknown."""
        started = _read_lenient(self._started)
        if started.get("boot") != boot_id():
            return 0.0
        return max(0.0, time.monotonic() - float(started["monotonic"]))

    def pids(self) -> Mapping[str, int]:
        """`{"nanny", "worker", "worker_start"}` of this boot of the machine, or empty."""
        raw = _read_lenient(self.path / "pids.json")
        return {k: raw[k] for k in ("nanny", "worker", "worker_start")} if raw.get("boot") == boot_id() else {}

    def _outcome(self) -> JobStatus | None:
        try:
            raw = read_json(self._result)
        except ValueError as error:
            return JobStatus(state=JobState.FAILED, error=str(error), retryable=True)
        return None if raw is None else status_from_json(raw)

    def _progress(self) -> Mapping[str, Any]:
        return _read_lenient(self.progress)

    # ---------------------------------------------------------------- writing
    def accept(self, spec: JobSpec) -> None:
        """Write the spec down unless there is one. Raises OSError, TypeError and ValueError (inputs that are not JSON)."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (self.path / "spec.json").exists():
            create_json(self.path / "spec.json", dataclasses.asdict(spec))

    def begin(self) -> int | None:
        """Claim the one start of this job: the descriptor of its lock, or None if it was started, ended or cancelled before."""
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            started = {"at": datetime.now(UTC).isoformat(), "boot": boot_id(), "monotonic": time.monotonic()}
            if not self._result.exists() and create_json(self._started, started):
                return lock
        except BlockingIOError:
            pass
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)
        return None

    def unbegin(self, lock: int) -> None:
        """Give a claimed start back, because nothing could be forked."""
        self._started.unlink(missing_ok=True)
        os.close(lock)

    def note_pids(self, *, nanny: int, worker: int) -> None:
        """The worker must not have been reaped yet. Raises OSError."""
        pids = {"nanny": nanny, "worker": worker, "worker_start": start_ticks(worker) or 0}
        write_json_atomic(self.path / "pids.json", {"boot": boot_id(), **pids})

    def sweep(self) -> None:
        """The kernel kills the worker with its nanny; kill also what the worker had started, before anybody tries again."""
        if pids := self.pids():
            sweep_group(pids["worker"], pids["worker_start"])

    def end(self, status: JobStatus) -> bool:
        """Record how the job ended, unless that is recorded already; whether this call did it. Raises OSError."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return create_json(self._result, status_to_json(status), durable=True)

    def delete(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


class ReservedResult:
    """Room on the disk for a result, taken before the job runs, so that a full disk can still be reported as such."""

    def __init__(self, folder: JobFolder) -> None:
        self._target = folder._result
        self._path = folder.path / ".result.reserved"
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with contextlib.suppress(OSError):  # then the attempt to write will tell
            os.posix_fallocate(self._file, 0, _RESERVED_BYTES)

    def publish(self, status: JobStatus) -> None:
        """Record the status as the result, unless there is one. What does not fit on the disk becomes a failure that says so."""
        try:
            self._write(status)
        except OSError as error:
            why = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error.strerror)
            self._write(
                JobStatus(
                    state=JobState.FAILED,
                    error=f"{self._target}: the job ended but its result could not be written: {why}",
                    retryable=True,
                    seconds=status.seconds,
                )
            )
        link_new(self._path, self._target)
        self._path.unlink(missing_ok=True)

    def _write(self, status: JobStatus) -> None:
        left = memoryview(json.dumps(status_to_json(status), sort_keys=True, allow_nan=False).encode())
        end = 0
        while left:
            written = os.pwrite(self._file, left, end)
            left, end = left[written:], end + written
        os.ftruncate(self._file, end)
        os.fsync(self._file)


def status_to_json(status: JobStatus) -> dict[str, Any]:
    """What `result.json` holds. Progress has a file of its own."""
    return {
        "state": status.state.value,
        "output": status.output,
        "error": status.error,
        "retryable": status.retryable,
        "seconds": status.seconds,
    }


def status_from_json(raw: Mapping[str, Any]) -> JobStatus:
    """Inverse of `status_to_json`."""
    return JobStatus(**{**raw, "state": JobState(raw["state"])})


def _read_lenient(path: Path) -> dict[str, Any]:
    """JSON object, or empty if the file is missing or damaged: for what is only told to people, or can be done without."""
    try:
        raw = read_json(path)
    except (OSError, ValueError):
        return {}
    return raw if isinstance(raw, dict) else {}
