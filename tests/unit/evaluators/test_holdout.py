"""Reading the rows to judge on: what is known of them, and since when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from model_folders import policy

from evaluators.baselines import NEVER, last_label
from evaluators.holdout import HoldOut, read_hold_out
from policies.schema import ModelPolicy


def _read(folder: Path, *, train: bool = True, columns: dict[str, Any] | None = None, **data: Any) -> HoldOut:
    """Ten hourly rows, six to train on and four to judge with; every label is known after two and a half hours."""
    at = pd.date_range("2026-03-01", periods=10, freq="h", tz="UTC")
    frame = pd.DataFrame({"at": at, "late": [0, 1] * 5, "known": at + pd.Timedelta(hours=2.5), **(columns or {})})
    frame[:6].to_parquet(folder / "train.parquet")
    frame[6:].to_parquet(folder / "holdout.parquet")
    prepared = {
        "holdout": str(folder / "holdout.parquet"), "classes": [0, 1],
        "rows_table": 11,
        **({"train": str(folder / "train.parquet")} if train else {}),
    }  # fmt: skip
    return read_hold_out(prepared, ModelPolicy.model_validate(policy(**data)).spec, None)


@pytest.mark.parametrize("data", [{"label_time": "known"}, {"label_delay": "150m"}])
def test_labels_are_known_from_when_they_had_matured(tmp_path: Path, data: dict[str, Any]) -> None:
    """By the label's own time or by the delay: at 06:00 the newest label known is that of 03:00, for either way to say it."""
    found = _read(tmp_path, **data)
    assert found.before is not None
    assert last_label(found.before.then(found.known))[6:].tolist() == [1, 0, 1, 0]
    assert found.table_rows == 11


def test_labels_that_never_came_are_never_known(tmp_path: Path) -> None:
    """A missing label time is not a label known at once."""
    known = pd.Series([pd.NaT] * 10, dtype="datetime64[us, UTC]")
    found = _read(tmp_path, columns={"known": known}, label_time="known")
    assert found.known.known_us is not None
    assert (found.known.known_us == NEVER).all()


def test_rows_without_times_go_by_their_order(tmp_path: Path) -> None:
    """A time column that holds no times is not taken for one; the row before is then the last one known."""
    found = _read(tmp_path, columns={"at": np.arange(10)})
    assert found.before is not None
    assert found.known.time_us is None
    assert last_label(found.before.then(found.known))[6:].tolist() == [1, 0, 1, 0]


def test_without_training_rows_nothing_is_known_before(tmp_path: Path) -> None:
    """The verdict does not depend on them, so it does without."""
    assert _read(tmp_path, train=False).before is None
