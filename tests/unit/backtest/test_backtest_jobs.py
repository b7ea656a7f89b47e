"""Jobs of a replay run once, whatever happens between, and what they leave beside their result comes back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backtest.jobs import RecordedJobs
from pipelines.jobs.port import JobContext, JobSpec, JobState, Limits

ENTRY = "none:run"


class Counting:
    """A job that counts its runs in the file that is carried on."""

    def __init__(self, carried: Path, *, fails: bool = False) -> None:
        self.runs = 0
        self._carried, self._fails = carried, fails

    def __call__(self, inputs: Mapping[str, Any], context: JobContext) -> dict[str, Any]:
        self.runs += 1
        self._carried.write_text(f"{context.job_id} {inputs['x']}")
        context.report(text=f"run {self.runs}")
        if self._fails:
            raise ValueError("no")
        return {"ran": self.runs, "root": inputs.get("root")}


def spec(job_id: str = "c1-training-1", **inputs: Any) -> JobSpec:
    return JobSpec(job_id=job_id, entry=ENTRY, inputs={"x": 1} | inputs, limits=Limits(timeout_s=10, memory_mb=100))


def jobs(tmp_path: Path, counting: Counting, told: list[str] | None = None) -> RecordedJobs:
    tell = (lambda _: None) if told is None else told.append
    return RecordedJobs(folder=tmp_path / "record", replaced={ENTRY: counting}, tell=tell, carried=tmp_path / "profile")


def test_a_job_ends_at_once_and_only_once(tmp_path: Path) -> None:
    """Asked again, here or by the process that goes on, its first outcome is given."""
    counting, told = Counting(tmp_path / "profile"), list[str]()
    first = jobs(tmp_path, counting, told)
    for _ in range(2):
        first.ensure(spec())
    again = jobs(tmp_path, counting)
    again.ensure(spec())
    status = again.poll("c1-training-1")
    assert status is not None
    assert (status.state, status.output) == (JobState.SUCCEEDED, {"ran": 1, "root": None})
    assert status == first.poll("c1-training-1")
    assert (counting.runs, told, again.active()) == (1, ["run 1"], frozenset())
    assert set(again.seconds) == {"c1-training-1"}


def test_another_question_under_the_same_name_is_asked(tmp_path: Path) -> None:
    """Records of other inputs are of no use."""
    counting = Counting(tmp_path / "profile")
    jobs(tmp_path, counting).ensure(spec())
    jobs(tmp_path, counting).ensure(spec(x=2))
    assert counting.runs == 2


def test_an_outcome_whose_files_are_gone_is_made_again(tmp_path: Path) -> None:
    """A record alone is worth nothing."""
    counting, made = Counting(tmp_path / "profile"), tmp_path / "made"
    made.mkdir()
    jobs(tmp_path, counting).ensure(spec(root=str(made)))
    jobs(tmp_path, counting).ensure(spec(root=str(made)))
    assert counting.runs == 1
    made.rmdir()
    jobs(tmp_path, counting).ensure(spec(root=str(made)))
    assert counting.runs == 2


def test_failures_are_outcomes_too(tmp_path: Path) -> None:
    """A job that failed is not run a second time."""
    counting = Counting(tmp_path / "profile", fails=True)
    for _ in range(2):
        one = jobs(tmp_path, counting)
        one.ensure(spec())
    status = one.poll("c1-training-1")
    assert status is not None
    assert (status.state, counting.runs) == (JobState.FAILED, 1)
    assert "no" in str(status.error)


def test_what_a_job_left_beside_its_result_comes_back_with_it(tmp_path: Path) -> None:
    """In the order of the jobs, so that measurements between them see what they saw the first time."""
    carried = tmp_path / "profile"
    counting = Counting(carried)
    first = jobs(tmp_path, counting)
    first.ensure(spec("c1-preparing-1"))
    first.ensure(spec("c2-preparing-1", x=2))
    carried.unlink()
    again = jobs(tmp_path, counting)
    again.ensure(spec("c1-preparing-1"))
    assert carried.read_text() == "c1-preparing-1 1"
    again.ensure(spec("c2-preparing-1", x=2))
    assert carried.read_text() == "c2-preparing-1 2"
    assert counting.runs == 2
