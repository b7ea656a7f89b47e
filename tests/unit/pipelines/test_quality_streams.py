"""What the rules of data quality say of real streams: nothing of clean ones, drift and all; and what they find in corrupted ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from quality_streams import NAMES, Stream, stream

from pipelines.data.quality.column_rules import gone_live
from pipelines.data.quality.examine import Table, examine
from pipelines.data.quality.profile import History
from policies.metrics import Task

HISTORY = 48
WINDOWS = 60


@pytest.mark.slow
@pytest.mark.parametrize("size", [250, 500, 1_000, 5_000])
@pytest.mark.parametrize("name", NAMES)
def test_no_window_of_a_clean_stream_has_a_fault(name: str, size: int) -> None:
    """Elections of features, seasons, growth, concepts and another population come and go; none of them is a broken pipeline."""
    one = stream(name)
    blocks = one.blocks(size, 0, min(len(one.frame), size * WINDOWS))
    for i, block in enumerate(blocks):
        assert one.faults(blocks[max(0, i - HISTORY) : i], block) == [], f"rows {block.start} to {block.end}"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_snapshot_of_a_clean_stream_that_grows_is_held(name: str) -> None:
    """As the cycles of a model see it: half of it first, then a tenth more each time, then the same again."""
    one = stream(name)
    frame = one.frame[:60_000]
    profile = None
    for rows in [len(frame) * tenths // 10 for tenths in (5, 6, 7, 8, 9, 10, 10)]:
        table = Table(frame=frame[:rows], ordinal=np.arange(rows), counts=np.ones(rows, dtype=bool), shape=one.shape)
        found = examine(table, profile, "key")
        assert found.windows == ()
        profile = found.profile


def test_columns_that_go_live_are_noted_not_held() -> None:
    """elec2's three columns of the other state are constant up to row 17,424, and vary from then on."""
    one = stream("elec2")
    blocks = one.blocks(1_000, 10_000, 20_000)
    history = [block for block in blocks if block.end < 17_000]
    live = next(block for block in blocks if block.start == 17_000)
    assert gone_live(History(blocks=tuple(history)), live) == ["vicprice", "vicdemand", "transfer"]
    assert one.faults(history, live) == []


def test_another_population_is_not_held() -> None:
    """The images of other writers, from row 1,797 of the digits on, move most pixels at once: what to do is to learn from them."""
    one = stream("digits_domain_shift")
    history = one.blocks(250, 0, 1_750)
    for start in (1_797, 2_500, 6_000):
        assert one.faults(history, one.block(one.frame.iloc[start : start + 1_000])) == []


# ---------------------------------------------------------------- power
def _swap(one: Stream, rows: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    a, b = {"elec2": ("nswprice", "period"), "bike_sharing_hourly": ("hr", "temp"), "sea50k_synthetic": ("f1", "f3")}[
        one.name
    ]
    return rows.assign(**{a: rows[b], b: rows[a]})


def _unit(one: Stream, rows: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    column = {"elec2": "nswdemand", "bike_sharing_hourly": "hum", "sea50k_synthetic": "f2"}[one.name]
    factor, shift = [(1000, 0), (0.01, 0), (60, 0), (1.8, 32)][rng.integers(4)]
    return rows.assign(**{column: rows[column] * factor + shift})


def _leak(one: Stream, rows: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    column = str(rng.choice(one.shape.features))
    if one.shape.task is Task.REGRESSION:
        return rows.assign(**{column: rows[one.label] * 3.0 + rng.normal(0, 1, len(rows))})
    codes = pd.factorize(rows[one.label])[0]
    return rows.assign(**{column: codes + rng.normal(0, 0.05, len(rows))})


def _nulls(one: Stream, rows: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    column = str(rng.choice(one.shape.features))
    return rows.assign(**{column: rows[column].astype(object).where(rng.random(len(rows)) > 0.5, None)})


def _constant(one: Stream, rows: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    column = {"elec2": "nswdemand", "bike_sharing_hourly": "hum", "sea50k_synthetic": "f1"}[one.name]
    return rows.assign(**{column: rows[column].iloc[0]})


def _twice(one: Stream, rows: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    return pd.concat([rows, rows]).sort_index(kind="stable").iloc[: len(rows)]


def _class_lost(one: Stream, rows: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    return rows[rows[one.label] != rows[one.label].mode()[0]]


CORRUPTIONS: dict[str, tuple[Callable[[Stream, pd.DataFrame, np.random.Generator], pd.DataFrame], set[str]]] = {
    "two columns swapped": (_swap, {"columns_swapped"}),
    "a unit changed": (_unit, {"unit_changed"}),
    "the label leaked": (_leak, {"label_leaked"}),
    "nulls jumped": (_nulls, {"nulls_jumped"}),
    "a column constant": (_constant, {"gone_constant"}),
    "rows twice": (_twice, {"rows_duplicated"}),
    "a class lost": (_class_lost, {"class_lost"}),
}


@pytest.mark.parametrize("name", ["elec2", "bike_sharing_hourly", "sea50k_synthetic"])
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_corrupted_window_is_found(corruption: str, name: str) -> None:
    """Of five windows of 1,000 rows, each corrupted in its own seeded way, all are found, and called what they are."""
    one = stream(name)
    corrupt, kinds = CORRUPTIONS[corruption]
    if corruption == "a class lost" and one.shape.task is Task.REGRESSION:
        pytest.skip("a regression has no classes")
    for seed in range(5):
        rng = np.random.default_rng(seed)
        start = int(rng.integers(9_000, 15_000))
        history = one.blocks(1_000, start - 8_000, start)
        window = one.block(corrupt(one, one.frame.iloc[start : start + 2_000], rng).iloc[:1_000])
        assert kinds <= {fault.kind for fault in one.faults(history, window)}, f"seed {seed}, row {start}"
