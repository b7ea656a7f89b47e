"""Reading a recorded stream: order, when labels are known, where the replay starts, and what makes two replays the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import streams

from backtest.stream import fingerprint, first_rows, kept_in, read_stream
from pipelines.jobs.port import PermanentJobError

NEVER = np.iinfo(np.int64).max


def test_without_a_time_the_row_number_is_the_clock(tmp_path: Path) -> None:
    """Row i is asked for i seconds after the first of 1970, and its label is known by then."""
    one = streams.stream(tmp_path, time="")
    assert not one.has_time
    assert one.asked.tolist() == [i * 1_000_000 for i in range(300)]
    assert one.known.tolist() == one.asked.tolist()
    assert one.moment(60).isoformat() == "1970-01-01T00:01:00+00:00"


def test_rows_come_in_the_order_of_time(tmp_path: Path) -> None:
    """However the file has them; rows of one moment stay together."""
    table = {"t": [5, 1, 1, 3, 1], "a": [0.1, 0.2, 0.3, 0.4, 0.5], "y": [0, 1, 0, 1, 1]}
    one = streams.stream(tmp_path, table)
    assert one.frame["a"].tolist() == [0.2, 0.3, 0.5, 0.4, 0.1]
    assert [one.row_after(row) for row in (0, 1, 2, 3, 4, 5)] == [0, 3, 3, 3, 4, 5]


def test_labels_are_known_by_their_time_or_delay(tmp_path: Path) -> None:
    """Never before they are asked for, and never at all where there is none."""
    table = {"t": [0, 1, 2], "a": [0.1, 0.2, 0.3], "y": [0, 1, None], "k": [7, 0, 9]}
    late = streams.stream(tmp_path, table, data=", label_time: k")
    assert late.known.tolist() == [7_000_000, 1_000_000, NEVER]
    delayed = streams.stream(tmp_path, table, data=", label_delay: 5s, exclude: [k]")
    assert delayed.known.tolist() == [5_000_000, 6_000_000, NEVER]
    assert late.truth.tolist()[:2] == [0.0, 1.0]
    assert np.isnan(late.truth[2])


@pytest.mark.parametrize(("text", "expected"), [(None, 75), ("120", 120), ("0.1", 30), ("50%", 150), (" 10% ", 30)])
def test_initial_rows(tmp_path: Path, text: str | None, expected: int) -> None:
    """A number of rows, or a share in either spelling; a quarter by default."""
    assert first_rows(streams.stream(tmp_path), text) == expected


@pytest.mark.parametrize("text", ["0", "300", "100%", "many", "-5", "nan"])
def test_initial_rows_that_leave_nothing_are_refused(tmp_path: Path, text: str) -> None:
    """The option is named."""
    with pytest.raises(PermanentJobError, match=r"^--initial: "):
        first_rows(streams.stream(tmp_path), text)


def test_data_take_the_place_of_the_source(tmp_path: Path) -> None:
    """CSV or Parquet by its name, whatever the policy's own source is; and the stream is kept where it was put."""
    one = streams.stream(tmp_path)
    other = tmp_path / "other.parquet"
    pd.DataFrame(streams.rows(50, seed=2)).to_parquet(other)
    read = read_stream(streams.policy(tmp_path), tmp_path, other, tmp_path / "log")
    assert (len(one), len(read)) == (300, 50)
    kept = kept_in(read, tmp_path / "work")
    assert Path(kept.spec.data.source.path).is_relative_to(tmp_path / "work")  # type: ignore[union-attr]
    assert pd.read_parquet(kept.spec.data.source.path)["a"].tolist() == read.frame["a"].tolist()  # type: ignore[union-attr]


def test_fingerprints_are_of_policy_rows_and_options(tmp_path: Path) -> None:
    """The same for the same, another for any that differs."""
    policy, one = streams.policy(tmp_path), streams.stream(tmp_path)
    changed = streams.rows()
    changed["a"][299] += 0.0001
    found = [
        fingerprint(policy, one, (75,)), fingerprint(policy, streams.stream(tmp_path), (75,)), fingerprint(policy, one, (76,)),
        fingerprint(policy, streams.stream(tmp_path, changed), (75,)), fingerprint(streams.policy(tmp_path, metric="roc_auc"), one, (75,)),
    ]  # fmt: skip
    assert found[0] == found[1]
    assert len(set(found)) == 4
