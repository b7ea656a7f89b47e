"""Faults of live rows: found by the profile of what training accepted, told while a signal may rest on them, and no longer."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from live_log import write_predictions
from model_folders import model_folder, policy

from evaluators.answers import ModelFolder
from evaluators.feed_quality import feed_faults
from evaluators.scene import Scene
from pipelines.data.prediction_log import FolderLog
from pipelines.data.quality.examine import Table, examine
from pipelines.data.quality.kept import profile_path, save_profile
from pipelines.data.quality.summary import Shape
from policies.metrics import Task
from policies.schema import ModelPolicy
from policies.signals import Fault

DAY = timedelta(days=1)
NOON = datetime.fromisoformat("2013-05-10T12:00:00+00:00")
ROWS = 200
"""Of a quarter of a day."""


def rows(count: int, seed: int, factor: float = 1.0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"x": rng.gamma(2, 5, count) * factor, "origin": rng.choice(["EWR", "JFK", "LGA"], count)})


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A champion, and the profile of 4,000 rows that training accepted."""
    model_folder(tmp_path / "7", fake=False)
    frame = rows(4_000, 0).assign(late=np.random.default_rng(1).integers(0, 2, 4_000))
    table = Table(
        frame=frame, ordinal=np.arange(4_000), counts=np.ones(4_000, dtype=bool),
        shape=Shape(features=("x", "origin"), label="late", task=Task.BINARY),
    )  # fmt: skip
    save_profile(profile_path(tmp_path, "flights"), examine(table, None, "key").profile)
    return tmp_path


def asked(home: Path, end: datetime, frame: pd.DataFrame, **columns: Any) -> None:
    """Requests, spread over the six hours that end at `end`."""
    at = [end - timedelta(hours=6) * (i + 1) / (len(frame) + 1) for i in range(len(frame))]
    given = {name: frame[name].tolist() for name in frame} | columns
    write_predictions(
        home / "log" / "flights", [f"{end:%d%H}-{i}" for i in range(len(frame))], at, [0.5] * len(frame), **given
    )


def faults(home: Path, now: datetime, **data: Any) -> list[Fault]:
    scene = Scene(
        home=home, model="flights", log=FolderLog(home / "log" / "flights"), now=now,
        spec=ModelPolicy.model_validate(policy(label_delay="6h", **data)).spec, champion=7,
        folder=ModelFolder.read(home / "7" / "model"), trained_to=None, lag_window=DAY,
    )  # fmt: skip
    found = feed_faults(scene)
    assert scene.problems == []
    return found


def test_rows_like_those_of_training_have_no_fault(home: Path) -> None:
    """Whatever the seed."""
    for i in range(4):
        asked(home, NOON - i * DAY / 4, rows(ROWS, 10 + i))
    assert faults(home, NOON) == []


def test_a_fault_lasts_as_long_as_a_signal_may_rest_on_its_rows(home: Path) -> None:
    """It is seen after a quarter of the window; it is told until window and label delay have passed since the last broken row."""
    for i in range(-6, 4):
        asked(home, NOON - i * DAY / 4, rows(ROWS, 10 + i, factor=1000 if i in (0, 1) else 1))
    assert faults(home, NOON - DAY / 2) == []
    (found,) = faults(home, NOON)
    assert (found.kind, found.subject, found.since) == ("unit_changed", "x", NOON - DAY / 2)
    assert found.source == "live rows of models trained on prediction-log"
    assert [f.since for f in faults(home, NOON + DAY)] == [NOON - DAY / 4]
    assert faults(home, NOON + 1.5 * DAY) == []


def test_a_feature_that_no_request_holds_is_a_fault(home: Path) -> None:
    """Absent, or null in every request: the champion answers without it."""
    asked(home, NOON, rows(ROWS, 1)[["origin"]])
    assert [(f.kind, f.subject) for f in faults(home, NOON)] == [("column_missing", "x")]
    asked(home, NOON + DAY / 4, rows(ROWS, 1)[["origin"]], x=[None] * ROWS)
    assert ("nulls_jumped", "x") in [(f.kind, f.subject) for f in faults(home, NOON + DAY / 4)]


def test_where_there_are_too_few_rows_what_was_found_last_holds(home: Path) -> None:
    """A client that stopped asking has mended nothing."""
    asked(home, NOON, rows(ROWS, 1, factor=1000))
    assert len(faults(home, NOON)) == 1
    asked(home, NOON + 5 * DAY, rows(20, 2))
    assert [f.kind for f in faults(home, NOON + 5 * DAY)] == ["unit_changed"]
    asked(home, NOON + 6 * DAY, rows(ROWS, 3))
    assert faults(home, NOON + 6 * DAY) == []


@pytest.mark.parametrize("data", [{"quality": "off"}, {"quality_ignore": ["x"]}])
def test_what_the_owner_ignores_is_no_fault(home: Path, data: dict[str, Any]) -> None:
    asked(home, NOON, rows(ROWS, 1, factor=1000))
    assert faults(home, NOON, **data) == []


def test_without_a_profile_nothing_is_known(home: Path) -> None:
    """A model whose first cycle looked for nothing has no faults."""
    profile_path(home, "flights").unlink()
    asked(home, NOON, rows(ROWS, 1, factor=1000))
    assert faults(home, NOON) == []


def test_a_new_profile_judges_anew(home: Path) -> None:
    """What was measured by an old profile is not held against a new one."""
    asked(home, NOON, rows(ROWS, 1, factor=1000))
    assert len(faults(home, NOON)) == 1
    frame = rows(4_000, 0, factor=1000).assign(late=np.random.default_rng(1).integers(0, 2, 4_000))
    table = Table(
        frame=frame, ordinal=np.arange(4_000), counts=np.ones(4_000, dtype=bool),
        shape=Shape(features=("x", "origin"), label="late", task=Task.BINARY),
    )  # fmt: skip
    save_profile(profile_path(home, "flights"), examine(table, None, "other").profile)
    assert faults(home, NOON) == []
