"""How a job's end is put into words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipelines.jobs.port import JobContext, JobSpec, JobState, Limits, PermanentJobError, RetryableJobError
from pipelines.jobs.worker import ERROR_CHARACTERS_MAX, describe, run_entry


@pytest.mark.parametrize("kind", [ValueError, PermanentJobError])
def test_an_error_that_holds_a_table_is_shortened(kind: type[Exception]) -> None:
    """What an owner's code raises goes into the record, into notices and onto screens: the beginning must do."""
    try:
        raise kind("row " * 1_000_000)
    except kind as error:
        told = describe(error)
    assert "row row" in told
    assert len(told) < ERROR_CHARACTERS_MAX + 300
    assert "characters)" in told
    assert describe(kind("brief")).endswith("brief")


def test_another_function_stands_in_under_the_same_rules(tmp_path: Path) -> None:
    """It gets the job's inputs and context in place of the entry, which is not even looked up; what it raises becomes a status, and what
    is no JSON an error."""
    limits = Limits(timeout_s=1, memory_mb=64)
    spec = JobSpec(job_id="j", entry="nowhere:nothing", inputs={"a": 2}, limits=limits, workdir=str(tmp_path))
    context = JobContext(job_id="j", workdir=tmp_path, report_path=tmp_path / "progress.json")

    def doubled(inputs: Mapping[str, Any], given: JobContext) -> dict[str, Any]:
        assert given is context
        return {"a": 2 * inputs["a"]}

    def away(_: Mapping[str, Any], __: JobContext) -> None:
        raise RetryableJobError("the source is away")

    done, failed = run_entry(spec, context, doubled), run_entry(spec, context, away)
    assert (done.state, done.output) == (JobState.SUCCEEDED, {"a": 4})
    assert (failed.state, failed.retryable, failed.error) == (JobState.FAILED, True, "the source is away")
    assert run_entry(spec, context, lambda *_: {1, 2}).state is JobState.FAILED
    assert "nowhere" in str(run_entry(spec, context).error)
