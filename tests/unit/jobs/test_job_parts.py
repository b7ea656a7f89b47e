"""The parts of the job runner that need no process: outcomes, sentences, atomic files."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import threading
from pathlib import Path

import pytest

from pipelines.jobs import processes
from pipelines.jobs.fake import FakeJobRunner
from pipelines.jobs.files import create_json, read_json
from pipelines.jobs.nanny import outcome
from pipelines.jobs.port import JobSpec, JobState, JobStatus, Limits, PermanentJobError, RetryableJobError
from pipelines.jobs.records import JobFolder, ReservedResult, status_from_json, status_to_json
from pipelines.jobs.worker import describe


def spec_of(entry: str = "m:f", job_id: str = "j") -> JobSpec:
    return JobSpec(job_id=job_id, entry=entry, inputs={}, limits=Limits(timeout_s=1.5, memory_mb=64), env={"A": "b"})


@pytest.mark.parametrize(
    ("exit_code", "tail", "error", "retryable"),
    [
        (0, "", "its process ended without a result (exit code 0)", False),
        (3, "bye", "its process ended without a result (exit code 3); it last printed: bye", False),
        (-9, "", "its process was killed by SIGKILL (is the machine out of memory?)", True),
        (-15, "", "its process was killed by SIGTERM", True),
        (-11, "", "its process was killed by SIGSEGV", False),
    ],
)
def test_outcome_without_a_message(exit_code: int, tail: str, error: str, retryable: bool) -> None:
    """A worker that said nothing is judged by its exit: killed from outside may pass, all else would come again."""
    status = outcome(b"", exit_code, tail)
    assert (status.state, status.error, status.retryable) == (JobState.FAILED, error, retryable)


def test_outcome_of_a_torn_message() -> None:
    """Half a message is none."""
    assert outcome(b'{"state": "succ', -9, "").retryable


def test_status_survives_the_disk() -> None:
    """A status read back is the status written."""
    for status in (
        JobStatus(state=JobState.SUCCEEDED, output={"a": [1, None]}, seconds=1.5),
        JobStatus(state=JobState.FAILED, error="no", retryable=True),
    ):
        assert status_from_json(json.loads(json.dumps(status_to_json(status)))) == status


def test_spec_survives_the_disk(tmp_path: Path) -> None:
    """A spec read back is the spec written, and the first one written stays."""
    folder = JobFolder.of(tmp_path, "j")
    folder.accept(spec_of())
    folder.accept(spec_of("other:entry"))
    assert folder.spec() == spec_of()


def test_describe_names_the_line() -> None:
    """An unexpected exception is told with the line that raised it; one without words by its class."""
    with pytest.raises(MemoryError) as caught:
        raise MemoryError
    assert describe(caught.value).startswith("MemoryError (in test_job_parts.py, line ")
    assert describe(ValueError("two\nlines")) == "ValueError: two lines"
    assert describe(PermanentJobError("as it stands")) == "as it stands"


def test_create_json_has_one_winner(tmp_path: Path) -> None:
    """Of many that write the same name at once exactly one is told that it was the one, and its content stays."""
    won: list[int] = []
    threads = [
        threading.Thread(target=lambda i=i: won.append(i) if create_json(tmp_path / "f", {"by": i}) else None)  # type: ignore[misc]
        for i in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_json(tmp_path / "f") == {"by": won[0]}
    assert len(won) == 1
    assert os.listdir(tmp_path) == ["f"]


def test_reserved_result_reports_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk takes only what was reserved, a large result becomes a failure that says that the disk is full."""
    folder = JobFolder(tmp_path)
    reserved = ReservedResult(folder)
    write = os.pwrite

    def full(handle: int, content: bytes, at: int) -> int:
        if at + len(content) > 4096:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, content, at)

    monkeypatch.setattr(os, "pwrite", full)
    reserved.publish(JobStatus(state=JobState.SUCCEEDED, output={"text": "x" * 10_000}, seconds=2.0))
    status = folder.status()
    assert status is not None
    assert status.state is JobState.FAILED
    assert status.error.endswith("its result could not be written: the disk is full")
    assert (status.retryable, status.seconds) == (True, 2.0)


def test_cancel_that_came_first_stays(tmp_path: Path) -> None:
    """A result published after a cancel changes nothing."""
    folder = JobFolder(tmp_path)
    reserved = ReservedResult(folder)
    assert folder.end(JobStatus(state=JobState.CANCELLED))
    reserved.publish(JobStatus(state=JobState.SUCCEEDED, output={}))
    status = folder.status()
    assert status is not None
    assert status.state is JobState.CANCELLED


def test_a_group_number_taken_over_is_left_alone() -> None:
    """Sweeping a group whose number now belongs to another process kills nothing."""
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
        processes.sweep_group(other.pid, leader_start_ticks=-1)
        assert processes.start_ticks(other.pid) is not None
        assert other.poll() is None
        other.kill()
    assert processes.start_ticks(2**22 + 1) is None


def test_memory_of_processes() -> None:
    """The memory of this process is some megabytes; a process that is gone has none."""
    assert processes.resident_bytes([os.getpid()], at_most=0) > 5 * 2**20
    assert processes.resident_bytes([os.getpid()], at_most=2**60) > 5 * 2**20
    assert processes.resident_bytes([2**22 + 1], at_most=0) == 0


def test_fake_follows_its_scripts() -> None:
    """The fake answers by job id or entry, with an output, a function of the spec, an error or a whole status, and counts starts."""
    runner = FakeJobRunner(
        scripts={
            "m:f": {"a": 1},
            "m:g": lambda spec: {"id": spec.job_id},
            "m:h": RetryableJobError("away"),
            "special": JobStatus(state=JobState.FAILED, error="odd", retryable=True),
        }
    )
    for entry, job_id in (("m:f", "j1"), ("m:g", "j2"), ("m:h", "j3"), ("m:f", "special")):
        runner.ensure(spec_of(entry, job_id))
        runner.ensure(spec_of(entry, job_id))
    assert [runner.statuses[j].output for j in ("j1", "j2")] == [{"a": 1}, {"id": "j2"}]
    assert (runner.statuses["j3"].error, runner.statuses["j3"].retryable) == ("away", True)
    assert runner.statuses["special"].error == "odd"
    assert set(runner.starts.values()) == {1}
    assert set(runner.asked.values()) == {2}


def test_fake_by_hand() -> None:
    """Not automatic, a job reports, and vanishes or finishes when the test says so."""
    runner = FakeJobRunner(scripts={"m:f": {"a": 1}}, automatic=False)
    runner.ensure(spec_of(job_id="j1"))
    runner.ensure(spec_of(job_id="j2"))
    runner.report("j1", done=1)
    runner.vanish("j1")
    runner.finish("j1")
    runner.finish("j2")
    assert (runner.statuses["j1"].retryable, runner.statuses["j1"].progress) == (True, {"done": 1})
    assert runner.statuses["j2"].output == {"a": 1}
