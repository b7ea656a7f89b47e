"""Maturity of labels: which rows may count at a moment (invariant 12)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.maturity import LATE_QUANTILE, maturity

T0 = datetime(2026, 3, 1, tzinfo=UTC)
Rows = list[tuple[int, int, int | None]]
"""(minute of the row, minutes until its label, label)"""
ROWS = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(0, 2000), st.sampled_from([0, 1, None])), min_size=1, max_size=60
)


def minutes(values: list[int]) -> pd.Series:
    return pd.Series([pd.Timestamp(T0 + timedelta(minutes=value)) for value in values]).dt.as_unit("us")


def columns(rows: Rows) -> tuple[pd.Series, pd.Series, pd.Series]:
    """time, label_time, label"""
    label = pd.Series([row[2] for row in rows], dtype="float64")
    return minutes([row[0] for row in rows]), minutes([row[0] + row[1] for row in rows]), label


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, now_min=st.integers(0, 8000))
def test_whole_cohorts_count_and_nothing_from_the_future(rows: Rows, now_min: int) -> None:
    """With label_time: no row counts before its label is in; and of the rows that are old enough every known one counts, fast or slow."""
    time, label_time, label = columns(rows)
    now = T0 + timedelta(minutes=now_min)
    found = maturity(label, now=now, time=time, label_time=label_time)
    known = (label_time <= pd.Timestamp(now)).to_numpy()
    assert not (found.counts & ~known).any()
    assert not (found.counts & label.isna().to_numpy()).any()
    if found.delay is None:
        assert not known.any()
        return
    cohort = (time <= pd.Timestamp(now - found.delay)).to_numpy()
    assert (found.counts == (cohort & known & label.notna().to_numpy())).all()
    assert found.immature == (~cohort).sum()
    assert found.counts.sum() + found.immature + found.unlabelled == len(rows)
    delays = (label_time - time)[known]
    assert (delays <= found.delay).mean() >= LATE_QUANTILE


@settings(max_examples=100, deadline=None)
@given(rows=ROWS, now_min=st.integers(0, 8000), later_min=st.integers(0, 8000), delay_min=st.integers(0, 3000))
def test_fixed_delay_never_takes_a_row_back(rows: Rows, now_min: int, later_min: int, delay_min: int) -> None:
    """With label_delay: a row counts exactly if time + delay <= now and it has a label, so once it counts it counts for ever."""
    time, _, label = columns(rows)
    delay = timedelta(minutes=delay_min)
    early = maturity(label, now=T0 + timedelta(minutes=now_min), time=time, label_delay=delay)
    later = maturity(label, now=T0 + timedelta(minutes=now_min + later_min), time=time, label_delay=delay)
    due = time + delay <= pd.Timestamp(T0 + timedelta(minutes=now_min))
    assert (early.counts == (due & label.notna()).to_numpy()).all()
    assert (later.counts | ~early.counts).all()


def test_early_labels_do_not_bend_the_share_of_positives() -> None:
    """Positives arrive after 10 h, negatives after 1 h: known labels alone look punctual, mature rows do not."""
    rng = np.random.default_rng(0)
    label = pd.Series(rng.integers(0, 2, 4000))
    time = minutes(list(range(4000)))
    label_time = time + pd.to_timedelta(1 + 9 * label, unit="h")
    now = T0 + timedelta(minutes=4000)
    recent = (time > pd.Timestamp(now - timedelta(hours=10))).to_numpy()
    known = (label_time <= pd.Timestamp(now)).to_numpy()
    assert label[recent & known].mean() == 0.0
    found = maturity(label, now=now, time=time, label_time=label_time)
    assert not found.counts[recent].any()
    assert found.counts.sum() == 4000 - 10 * 60 + 1
    assert found.delay == timedelta(hours=10)


def test_without_times_every_labelled_row_counts() -> None:
    """Data without a time is taken as it is; rows without a label are counted as such."""
    found = maturity(pd.Series([1.0, None, 0.0]), now=T0)
    assert found.counts.tolist() == [True, False, True]
    assert (found.immature, found.unlabelled, found.delay) == (0, 1, None)


def test_rows_from_the_future_do_not_count() -> None:
    """With a time but no delay, rows after now wait."""
    found = maturity(pd.Series([1, 0]), now=T0, time=minutes([0, 1]))
    assert found.counts.tolist() == [True, False]
