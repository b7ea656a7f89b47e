"""How a job's end is put into words."""

from __future__ import annotations

import pytest

from pipelines.jobs.port import PermanentJobError
from pipelines.jobs.worker import ERROR_CHARACTERS_MAX, describe


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
