"""One suite for whatever runs jobs: the fake and the real processes alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.jobs.fake import FakeJobRunner
from pipelines.jobs.local import LocalJobRunner
from pipelines.jobs.port import JobRunner, JobSpec, JobState, JobStatus, Limits

PATIENCE_S = 20.0


@dataclass
class Bench:
    """A runner and how to let its gated jobs through."""

    runner: JobRunner
    again: Callable[[], JobRunner]
    """The runner as a restarted controller builds it."""
    tmp: Path

    def spec(self, entry: str, job_id: str = "m-c1-train-1", workdir: str = "", **inputs: Any) -> JobSpec:
        inputs.setdefault("gate", str(self.tmp / "gate"))
        limits = Limits(timeout_s=30, memory_mb=2048)
        return JobSpec(job_id=job_id, entry=f"job_entries:{entry}", inputs=inputs, limits=limits, workdir=workdir)

    def open_gate(self, job_id: str = "m-c1-train-1") -> None:
        (self.tmp / "gate").touch()
        if isinstance(self.runner, FakeJobRunner):
            self.runner.finish(job_id)

    def ended(self, job_id: str = "m-c1-train-1") -> JobStatus:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            status = self.runner.poll(job_id)
            assert status is not None
            if status.state is not JobState.RUNNING:
                return status
            if isinstance(self.runner, FakeJobRunner):
                self.runner.finish(job_id)
            time.sleep(0.005)
        raise AssertionError(f"{job_id} still runs after {PATIENCE_S} s: {status}")


@pytest.fixture(params=["fake", "local"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    if request.param == "fake":
        fake = FakeJobRunner(automatic=False)
        yield Bench(runner=fake, again=lambda: fake, tmp=tmp_path)
        return
    home = tmp_path / "home"
    runner = LocalJobRunner(home, preload=(), idle_s=20)
    yield Bench(runner=runner, again=lambda: LocalJobRunner(home, preload=(), idle_s=20), tmp=tmp_path)
    for job_id in runner.active():
        runner.cancel(job_id)
    runner.stop_host()


def test_output_comes_back(bench: Bench) -> None:
    """A job gets its inputs, name and an existing workdir, and its output and progress come back."""
    bench.runner.ensure(bench.spec("echo", a=[1, "ü", None]))
    status = bench.ended()
    assert status.state is JobState.SUCCEEDED, status
    assert status.output is not None
    assert status.output["inputs"]["a"] == [1, "ü", None]
    assert status.output["job_id"] == "m-c1-train-1"
    assert status.output["exists"]
    assert status.progress == {"done": 1, "total": 1, "text": "echoed"}


def test_given_workdir_is_kept(bench: Bench) -> None:
    """A workdir that the spec names is used and outlives the job's record."""
    workdir = bench.tmp / "work" / "study"
    bench.runner.ensure(bench.spec("echo", workdir=str(workdir)))
    status = bench.ended()
    assert status.output is not None
    assert status.output["workdir"] == str(workdir)
    bench.runner.forget("m-c1-train-1")
    assert workdir.is_dir()


def test_unknown_job_is_none(bench: Bench) -> None:
    """A job that nobody ever started has no status."""
    assert bench.runner.poll("m-c1-train-1") is None
    assert bench.runner.active() == frozenset()


def test_running_job_is_seen_by_a_restarted_controller(bench: Bench) -> None:
    """While it runs a job is running and active, for the runner that started it and for one built later."""
    bench.runner.ensure(bench.spec("gated"))
    for runner in (bench.runner, bench.again()):
        status = runner.poll("m-c1-train-1")
        assert status is not None
        assert status.state is JobState.RUNNING
        assert status.output is None
        assert runner.active() == {"m-c1-train-1"}
    bench.open_gate()
    assert bench.ended().output == {"through": True}
    assert bench.again().poll("m-c1-train-1") == bench.runner.poll("m-c1-train-1")
    assert bench.runner.active() == frozenset()


def test_ensure_twice_starts_once(bench: Bench) -> None:
    """Asking again, while it runs or after it ended, by whichever controller, starts nothing."""
    spec = bench.spec("count_starts", starts=str(bench.tmp / "starts"))
    bench.runner.ensure(spec)
    bench.again().ensure(spec)
    bench.open_gate()
    bench.ended()
    bench.again().ensure(spec)
    assert bench.runner.active() == frozenset()
    assert (bench.tmp / "starts").read_text() == "m-c1-train-1\n"


@pytest.mark.parametrize(
    ("entry", "error", "retryable"),
    [
        ("permanent", "data.label: column 'late' is missing in rows.csv; there are a, b", False),
        ("retryable", "the source is away", True),
        ("broken", "KeyError: 'nothing' (in job_entries.py, line ", False),
        ("not_json", "job_entries:not_json returned what is not JSON", False),
        ("not_dict", "job_entries:not_dict must return a dict but returned list", False),
        ("leaves", "SystemExit: had enough", False),
        ("full_disk", "OSError: [Errno 28] No space left on device", True),
        ("absent", "entry 'job_entries:absent': module 'job_entries' has no function 'absent'", False),
    ],
)
def test_failure_is_one_sentence(bench: Bench, entry: str, error: str, retryable: bool) -> None:
    """A job that fails says why in its error, and whether trying again may help."""
    bench.runner.ensure(bench.spec(entry))
    status = bench.ended()
    assert status.state is JobState.FAILED
    assert status.error.startswith(error)
    assert "\n" not in status.error
    assert status.retryable is retryable
    assert status.output is None


def test_missing_module_fails_permanently(bench: Bench) -> None:
    """An entry whose module is not there fails with the module's name."""
    spec = JobSpec(job_id="j", entry="no_such_module:run", inputs={}, limits=Limits(timeout_s=5, memory_mb=512))
    bench.runner.ensure(spec)
    status = bench.ended("j")
    assert status.state is JobState.FAILED
    assert "no_such_module" in status.error
    assert not status.retryable


def test_cancel_ends_a_running_job(bench: Bench) -> None:
    """A cancelled job is cancelled at once and for good; it is not started again."""
    spec = bench.spec("gated")
    bench.runner.ensure(spec)
    bench.again().cancel("m-c1-train-1")
    bench.open_gate()
    bench.runner.ensure(spec)
    status = bench.runner.poll("m-c1-train-1")
    assert status is not None
    assert status.state is JobState.CANCELLED
    assert bench.runner.active() == frozenset()


def test_cancel_before_start_forbids_it(bench: Bench) -> None:
    """A job cancelled before anybody started it never starts."""
    bench.runner.cancel("m-c1-train-1")
    bench.runner.ensure(bench.spec("count_starts", starts=str(bench.tmp / "starts")))
    status = bench.runner.poll("m-c1-train-1")
    assert status is not None
    assert status.state is JobState.CANCELLED
    assert not (bench.tmp / "starts").exists()


def test_cancel_after_the_end_changes_nothing(bench: Bench) -> None:
    """A job that ended keeps its result."""
    bench.runner.ensure(bench.spec("echo"))
    ended = bench.ended()
    bench.runner.cancel("m-c1-train-1")
    assert bench.runner.poll("m-c1-train-1") == ended


def test_forget_deletes_only_what_ended(bench: Bench) -> None:
    """Forgetting leaves a running job alone, removes an ended one, and does not mind an unknown one."""
    bench.runner.ensure(bench.spec("gated"))
    bench.runner.forget("m-c1-train-1")
    assert bench.runner.active() == {"m-c1-train-1"}
    bench.open_gate()
    bench.ended()
    bench.runner.forget("m-c1-train-1")
    assert bench.runner.poll("m-c1-train-1") is None
    bench.runner.forget("never-heard-of")


@pytest.mark.parametrize("job_id", ["", "../x", "a/b", ".hidden", "a b"])
def test_unsafe_names_are_refused(bench: Bench, job_id: str) -> None:
    """A job id that is no plain file name is an error that shows it."""
    with pytest.raises(ValueError, match="job_id must be"):
        bench.runner.ensure(bench.spec("echo", job_id=job_id))
