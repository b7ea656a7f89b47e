"""The port for heavy work: what the controller may ask of whatever runs jobs.

A job is a call `module:function(inputs, context) -> output`, JSON in and out, under a name that is given once. All calls are idempotent by
that name, so that a controller which died between asking and writing down that it asked may simply ask again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol


class JobError(Exception):
    """Raised inside a job to end it with a message for the owner of the model."""


class PermanentJobError(JobError):
    """Trying again cannot help: bad input, bad policy, the owner's code is wrong."""


class RetryableJobError(JobError):
    """May work the next time: a source was away, a limit of the machine was hit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    timeout_s: float
    """Wall-clock seconds of real time, after which the job's whole process group is killed."""
    memory_mb: int
    """Resident memory of the job's processes together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobSpec:
    job_id: str
    """Unique, a file-name-safe string such as `flight-late-c3-train-1`."""
    entry: str
    """`module:function`, importable where the job runs."""
    inputs: Mapping[str, Any]
    """JSON."""
    limits: Limits
    workdir: str = ""
    """Folder for what the job keeps between attempts (study journal); shared by attempts of the same step. Empty: the job's own."""
    env: Mapping[str, str] = field(default_factory=dict)


class JobState(StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, kw_only=True, slots=True)
class JobStatus:
    state: JobState
    output: Mapping[str, Any] | None = None
    """JSON; set when succeeded."""
    error: str = ""
    """One sentence for a person; set when failed."""
    retryable: bool = False
    """Whether the failure may pass: the process was lost (killed, machine restarted) or said so itself."""
    progress: Mapping[str, Any] = field(default_factory=dict)
    """Whatever the job last reported, e.g. `{"done": 12, "total": 40, "best": 0.61, "text": "trial 12 of 40"}`."""
    seconds: float = 0.0
    """Wall-clock seconds so far (or in all)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobContext:
    """What a job function gets beside its inputs."""

    job_id: str
    workdir: Path
    """Exists; kept between attempts of the same step."""
    report_path: Path

    def report(self, **progress: Any) -> None:
        """Publish progress (atomic, cheap; at most a few times a second)."""
        from pipelines.jobs.files import write_json_atomic

        write_json_atomic(self.report_path, progress)


class JobRunner(Protocol):
    """Runs jobs that outlive the controller's process."""

    def ensure(self, spec: JobSpec) -> None:
        """Start the job unless it was started before under this `job_id` (running or ended). Never starts it twice.

        Raises ValueError for a `job_id` that is no file name, RetryableJobError if it cannot be started now: then it does not run."""

    def poll(self, job_id: str) -> JobStatus | None:
        """Where it stands; None if no such job was ever started. A job whose processes vanished is failed and retryable."""

    def cancel(self, job_id: str) -> None:
        """Kill it with all its processes and mark it cancelled, unless it ended already. Unknown jobs are marked too,
        so that a cancelled job can never start later."""

    def active(self) -> frozenset[str]:
        """Ids of all jobs that run now, whoever started them."""

    def forget(self, job_id: str) -> None:
        """Delete what is kept of an ended job."""
