"""Jobs in memory, for tests and the simulation. Held to the same contract suite as the real runner."""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from pipelines.jobs.files import read_json
from pipelines.jobs.port import JobContext, JobError, JobRunner, JobSpec, JobState, JobStatus, RetryableJobError
from pipelines.jobs.records import VANISHED, JobFolder
from pipelines.jobs.worker import run_entry

Script: TypeAlias = Mapping[str, Any] | JobError | JobStatus | Callable[[JobSpec], Mapping[str, Any]]
"""What comes of a job: its output, the error it raises, a whole status, or a function of its spec (which may raise a JobError)."""


@dataclass
class FakeJobRunner(JobRunner):
    """Each job ends as scripted for its entry; without a script its function is imported and run in this process.

    `automatic`: a job has ended by the time `ensure` returns. Otherwise it runs until `finish`, `vanish` or `cancel`.
    """

    scripts: dict[str, Script] = field(default_factory=dict)
    """By entry (`module:function`), or by job id, which goes first."""
    automatic: bool = True
    starts: Counter[str] = field(default_factory=Counter)
    """How often each job was really started; no number may ever exceed 1 (but after `forget`)."""
    asked: Counter[str] = field(default_factory=Counter)
    """How often `ensure` was called for each job."""
    specs: dict[str, JobSpec] = field(default_factory=dict)
    statuses: dict[str, JobStatus] = field(default_factory=dict)

    # ---------------------------------------------------------------- the port
    def ensure(self, spec: JobSpec) -> None:
        JobFolder.of(Path(), spec.job_id)  # refuses what the real runner refuses
        self.asked[spec.job_id] += 1
        if spec.job_id in self.statuses:
            return
        self.starts[spec.job_id] += 1
        self.specs[spec.job_id] = spec
        self.statuses[spec.job_id] = JobStatus(state=JobState.RUNNING)
        if self.automatic:
            self.finish(spec.job_id)

    def poll(self, job_id: str) -> JobStatus | None:
        return self.statuses.get(job_id)

    def cancel(self, job_id: str) -> None:
        self._end(job_id, JobStatus(state=JobState.CANCELLED, error="cancelled"))

    def active(self) -> frozenset[str]:
        return frozenset(name for name, status in self.statuses.items() if status.state is JobState.RUNNING)

    def forget(self, job_id: str) -> None:
        if job_id not in self.active():
            self.statuses.pop(job_id, None)
            self.specs.pop(job_id, None)

    # ---------------------------------------------------------------- for tests
    def finish(self, job_id: str) -> None:
        """Let a running job end as its script says; one that ended already stays as it is."""
        if job_id in self.active():
            self._end(job_id, self._outcome(self.specs[job_id]))

    def vanish(self, job_id: str) -> None:
        """What poll sees after somebody killed the job's processes."""
        self._end(job_id, JobStatus(state=JobState.FAILED, error=VANISHED, retryable=True))

    def report(self, job_id: str, **progress: Any) -> None:
        """Progress of a running job."""
        self.statuses[job_id] = dataclasses.replace(self.statuses[job_id], progress=progress)

    def _end(self, job_id: str, status: JobStatus) -> None:
        before = self.statuses.get(job_id, JobStatus(state=JobState.RUNNING))
        if before.state is JobState.RUNNING:
            self.statuses[job_id] = dataclasses.replace(status, progress=status.progress or before.progress)

    def _outcome(self, spec: JobSpec) -> JobStatus:
        script = self.scripts.get(spec.job_id, self.scripts.get(spec.entry))
        if script is None:
            return _run_here(spec)
        try:
            result = script(spec) if callable(script) else script
        except JobError as error:
            result = error
        if isinstance(result, JobStatus):
            return result
        if isinstance(result, JobError):
            retryable = isinstance(result, RetryableJobError)
            return JobStatus(state=JobState.FAILED, error=str(result), retryable=retryable)
        return JobStatus(state=JobState.SUCCEEDED, output=result)


def _run_here(spec: JobSpec) -> JobStatus:
    with tempfile.TemporaryDirectory() as scratch:
        workdir = Path(spec.workdir or scratch)
        workdir.mkdir(parents=True, exist_ok=True)
        report_path = Path(scratch) / "progress.json"
        status = run_entry(spec, JobContext(job_id=spec.job_id, workdir=workdir, report_path=report_path))
        return dataclasses.replace(status, progress=read_json(report_path) or {})
