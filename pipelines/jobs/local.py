"""Jobs as child processes of this machine that outlive the daemon.

The daemon only writes a job's folder and asks the job host (`pipelines.jobs.host`) to start it; the job's nanny does the rest.
All state is in the folders, so a daemon that was killed and started again, or two that overlap, see and do the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.jobs.host import SINGLE_THREADED, reachable, socket_path
from pipelines.jobs.port import JobRunner, JobSpec, JobState, JobStatus, RetryableJobError
from pipelines.jobs.records import JobFolder

PRELOAD = (
    "numpy",
    "pandas",
    "pyarrow.parquet",
    "pyarrow.dataset",
    "sklearn.pipeline",
    "sklearn.compose",
    "sklearn.ensemble",
    "sklearn.linear_model",
    "sklearn.feature_extraction.text",
    "skops.io",
    "policies.schema",
)
"""What most jobs import. Nothing here may start a thread; TensorFlow and Evidently do, and are imported by the jobs that need them."""
_CODE_ROOT = Path(__file__).resolve().parents[2]
_ATTEMPTS = 8
_HOST_LOG_BYTES_MAX = 4 * 2**20
"""A log that is longer is begun anew with the next host."""
_REPLY_S = 30.0


class LocalJobRunner(JobRunner):
    """Child processes with time and memory limits. Safe to use from several threads, and from several processes on one home.

    `preload` are modules that the host imports before it forks; `idle_s` is how long a host without work stays;
    `grace_s` how long a process may take to end when told to, before it is killed.
    """

    def __init__(
        self, home: Path, *, preload: Sequence[str] = PRELOAD, idle_s: float = 300.0, grace_s: float = 2.0
    ) -> None:
        self._home = home.absolute()
        self._jobs = self._home / "jobs"
        self._preload = tuple(preload)
        self._idle_s = idle_s
        self._grace_s = grace_s

    def warm(self) -> None:
        """Start the host ahead of the first job, without waiting for it to load. Raises RetryableJobError."""
        self._ask({"op": "ping"})

    def ensure(self, spec: JobSpec) -> None:
        """As the port says. Raises ValueError for a bad `job_id` or inputs that are not JSON, and RetryableJobError if the job could not be
        started now (disk full, no process to be had): then it is not running, and the next `ensure` tries again."""
        folder = JobFolder.of(self._jobs, spec.job_id)
        if folder.is_settled():
            return
        try:
            folder.accept(spec)
        except TypeError as error:
            raise ValueError(f"job {spec.job_id}: inputs are not JSON: {error}") from error
        except OSError as error:
            raise RetryableJobError(f"job {spec.job_id} cannot be recorded in {folder.path}: {error}") from error
        surroundings = {
            "env": job_environment(),
            "path": [os.path.abspath(p) for p in sys.path],
            "grace_s": self._grace_s,
        }
        self._ask({"op": "start", "job_id": spec.job_id, **surroundings})

    def poll(self, job_id: str) -> JobStatus | None:
        return JobFolder.of(self._jobs, job_id).status()

    def cancel(self, job_id: str) -> None:
        """As the port says; returns when the processes are gone, `grace_s` and a little later at the most."""
        folder = JobFolder.of(self._jobs, job_id)
        if not folder.end(JobStatus(state=JobState.CANCELLED, error="cancelled", seconds=folder.seconds())):
            return
        self._tell_nanny(folder, signal.SIGTERM)
        if not _wait_until_free(folder, self._grace_s + 1.0):
            self._tell_nanny(folder, signal.SIGKILL)
            _wait_until_free(folder, 1.0)
        folder.sweep()

    def active(self) -> frozenset[str]:
        try:
            names = os.listdir(self._jobs)
        except (FileNotFoundError, NotADirectoryError):
            return frozenset()
        return frozenset(n for n in names if JobFolder(self._jobs / n).is_running())

    def forget(self, job_id: str) -> None:
        """As the port says; a job that has not ended is left alone."""
        folder = JobFolder.of(self._jobs, job_id)
        if folder.has_ended() and _wait_until_free(folder, 1.0):  # its nanny exits just after it has written the result
            folder.delete()

    def stop_host(self) -> None:
        """End the host, if one runs; jobs go on. For tests and for taking a machine out of service."""
        with contextlib.suppress(OSError):
            self._talk({"op": "stop"})

    def _tell_nanny(self, folder: JobFolder, number: signal.Signals) -> None:
        nanny = folder.pids().get("nanny")
        if nanny and folder.is_held():  # held: so the pid is still the nanny's
            with contextlib.suppress(ProcessLookupError):
                os.kill(nanny, number)

    # ---------------------------------------------------------------- the host
    def _ask(self, request: Mapping[str, Any]) -> None:
        """Have the host do something, starting one where there is none (or one that is just leaving). Raises RetryableJobError."""
        problem = ""
        for _ in range(_ATTEMPTS):
            try:
                reply = self._talk(request)
            except (FileNotFoundError, ConnectionError):
                self._launch()
                continue
            except OSError as error:
                raise RetryableJobError(
                    f"the job host at {socket_path(self._home)} does not answer: {error}"
                ) from error
            if reply.get("ok"):
                return
            if problem := reply.get("error", ""):
                break
        raise RetryableJobError(f"the job host of {self._home} could not start a job: {problem or 'it keeps leaving'}")

    def _talk(self, request: Mapping[str, Any]) -> dict[str, Any]:
        path = socket_path(self._home)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(_REPLY_S)
                connection.connect(reachable(path, folder))
                connection.sendall(json.dumps(request).encode())
                connection.shutdown(socket.SHUT_WR)
                chunks = []
                while chunk := connection.recv(2**16):
                    chunks.append(chunk)
        finally:
            os.close(folder)
        if not chunks:
            raise ConnectionResetError("the job host went away")
        reply: dict[str, Any] = json.loads(b"".join(chunks))
        return reply

    def _launch(self) -> None:
        """Returns once some host listens. Raises RetryableJobError."""
        run = socket_path(self._home).parent
        command = [sys.executable, "-m", "pipelines.jobs.host", "--home", str(self._home)]
        command += ["--idle-s", str(self._idle_s), "--preload", ",".join(self._preload)]
        try:
            run.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = run / "jobs-host.log"
            outgrown = path.exists() and path.stat().st_size > _HOST_LOG_BYTES_MAX
            with path.open("wb" if outgrown else "ab") as log:
                subprocess.run(
                    command, cwd=_CODE_ROOT, env={**job_environment(), **SINGLE_THREADED}, stdin=subprocess.DEVNULL,
                    stdout=log, stderr=log, start_new_session=True, timeout=60, check=True,
                )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            log_path = run / "jobs-host.log"
            raise RetryableJobError(f"the job host could not be started ({error}); see {log_path}") from error


def job_environment() -> dict[str, str]:
    """The controller's own settings, its token and database among them, are none of a job's business: a job runs an owner's code.

    All else goes through, since a policy may name the variable that holds its data source's URL."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RATCHET_")}


def _wait_until_free(folder: JobFolder, patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while folder.is_held():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
