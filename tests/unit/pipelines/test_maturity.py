"""Maturity of labels: which rows may count at a moment (invariant 12)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.maturity import LATE_QUANTILE, Maturity, maturity

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
    """With label_time: no row counts before its label is in; and of the rows that are old enough, now or when the newest label came,
    every known one counts, fast or slow."""
    time, label_time, label = columns(rows)
    now = T0 + timedelta(minutes=now_min)
    found = maturity(label, now=now, time=time, label_time=label_time)
    known = (label_time <= pd.Timestamp(now)).to_numpy()
    assert not (found.counts & ~known).any()
    assert not (found.counts & label.isna().to_numpy()).any()
    if found.delay is None:
        assert not known.any()
        return
    cohorts = [(time <= end - found.delay).to_numpy() for end in (pd.Timestamp(now), label_time[known].max())]
    (cohort,) = [each for each in cohorts if found.immature == (~each).sum()][:1]
    assert (found.counts == (cohort & known & label.notna().to_numpy())).all()
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


# ---------------------------------------------------------------- early labels are no fair sample
def _bookings(rng: np.random.Generator, days: int, *, growth: float = 0.0, a_day: int = 60) -> pd.DataFrame:
    """Bookings, of which a third are cancelled: known within two days, a stay after ten to fourteen. Who cancels changes with time.

    Columns x, time, known (when the label is), stayed; sorted by time. Traffic grows by `growth` a day.
    """
    n = a_day * days
    at = (
        np.sort(rng.random(n) if growth == 0 else np.log1p(rng.random(n) * np.expm1(growth * days)) / (growth * days))
        * days
    )
    x = rng.normal(size=n)
    stayed = rng.random(n) < 1 / (1 + np.exp(-(0.7 + 2.0 * x)))
    delay = np.where(stayed, rng.uniform(10, 14, n), rng.uniform(0, 2, n))
    start = pd.Timestamp(T0)
    return pd.DataFrame(
        {
            "x": x,
            "time": start + pd.to_timedelta(at, unit="D"),
            "known": start + pd.to_timedelta(at + delay, unit="D"),
            "stayed": stayed.astype(float),
        }
    )


def _at(rows: pd.DataFrame, now: datetime) -> Maturity:
    return maturity(rows["stayed"], now=now, time=rows["time"], label_time=rows["known"])


def test_maturing_beats_fitting_on_every_label_that_is_in() -> None:
    """A model of the newest 15 days: by all labels known so far hardly anybody stays; by matured rows it is as good as the truth allows."""
    from sklearn.linear_model import LogisticRegression

    rows = _bookings(np.random.default_rng(1), 60)
    now = T0 + timedelta(days=40)
    coming = rows[rows["time"] > pd.Timestamp(now)]

    def accuracy(chosen: np.ndarray) -> float:
        newest = rows[chosen & (rows["time"] <= pd.Timestamp(now)).to_numpy()]
        newest = newest[newest["time"] > newest["time"].max() - pd.Timedelta(days=15)]
        model = LogisticRegression().fit(newest[["x"]], newest["stayed"])
        return float(model.score(coming[["x"]], coming["stayed"]))

    known = (rows["known"] <= pd.Timestamp(now)).to_numpy()
    every = np.ones(len(rows), dtype=bool)
    assert accuracy(_at(rows, now).counts) > accuracy(every) - 0.01
    assert accuracy(known) < accuracy(_at(rows, now).counts) - 0.1


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), growth=st.sampled_from([0.0, 0.03, 0.1]), age=st.integers(25, 55))
def test_no_selected_row_is_of_an_immature_cohort(seed: int, growth: float, age: int) -> None:
    """As nobody could know at the time: of the rows up to the newest that counts, 98 % of those that stayed are known, however traffic
    grows; so the share of stays among the selected is that of all of their age."""
    rows = _bookings(np.random.default_rng(seed), 60, growth=growth)
    now = T0 + timedelta(days=age)
    counts = _at(rows, now).counts
    if not counts.any():
        return
    cohort = rows[rows["time"] <= rows["time"][counts].max()]
    stays = cohort[cohort["stayed"] == 1.0]
    assert (stays["known"] <= pd.Timestamp(now)).mean() >= 0.98 or len(stays) < 100
    if len(cohort) >= 300:
        assert abs(rows["stayed"][counts].mean() - cohort["stayed"].mean()) < 0.02


def test_a_slow_minority_is_waited_for() -> None:
    """One row in 200 is a fraud, and known after 60 days: 99 % of labels are in within a day, but no fraud of that age is."""
    rng = np.random.default_rng(2)
    label = pd.Series((rng.random(40_000) < 0.005).astype(float))
    time = minutes(list(range(0, 160_000, 4)))
    label_time = time + pd.to_timedelta(np.where(label == 1, 60.0, rng.random(40_000)), unit="D")
    found = maturity(label, now=T0 + timedelta(minutes=160_000), time=time, label_time=label_time)
    assert found.delay == timedelta(days=60)
    assert label[found.counts].mean() == label[: int(found.counts.sum())].mean() > 0.003


def test_numbers_that_come_later_the_larger_they_are() -> None:
    """The label itself is the delay, as of a flight: the slowest tenth is waited for, not just 99 % of all."""
    rng = np.random.default_rng(3)
    late = pd.Series(rng.exponential(2.0, 20_000))
    time = minutes(list(range(20_000)))
    found = maturity(
        late, now=T0 + timedelta(minutes=20_000), time=time, label_time=time + pd.to_timedelta(late, unit="h")
    )
    assert found.delay is not None
    slowest = late[late > late.quantile(0.9)]
    assert found.delay >= timedelta(hours=float(slowest.quantile(0.985)))


def test_a_stalled_feed_matures_nothing_more() -> None:
    """After labels have stopped, rows grow old but do not mature: else only the quick labels of the last days would count."""
    rows = _bookings(np.random.default_rng(4), 60)
    stopped = rows.assign(stayed=rows["stayed"].where(rows["known"] <= pd.Timestamp(T0 + timedelta(days=40))))
    stopped["known"] = rows["known"].where(stopped["stayed"].notna())
    then, later = (_at(stopped, T0 + timedelta(days=day)) for day in (40, 50))
    assert then.counts.sum() > 1_000
    assert (later.counts == then.counts).all()


def test_one_straggler_does_not_decide_for_the_others() -> None:
    """In a thousand rows a single label that took a month leaves the delay at a day."""
    time = minutes(list(range(0, 60_000, 60)))
    delays = np.full(1_000, 1_440)
    delays[5] = 43_200
    label_time = time + pd.to_timedelta(delays, unit="min")
    found = maturity(pd.Series([0.0, 1.0] * 500), now=T0 + timedelta(minutes=60_000), time=time, label_time=label_time)
    assert found.delay == timedelta(days=1)


def test_labels_of_the_future_and_labels_before_their_rows() -> None:
    """A label that is dated later is not known yet, whatever the table says; one dated before its row has no negative delay."""
    time = minutes([0, 10, 20, 30])
    label_time = minutes([5, 4, 900, 31])
    found = maturity(pd.Series([0, 1, 0, 1]), now=T0 + timedelta(minutes=40), time=time, label_time=label_time)
    assert found.delay == timedelta(minutes=5)
    assert found.counts.tolist() == [True, True, False, True]
    never = maturity(pd.Series([0, 1]), now=T0, time=minutes([-20, -10]), label_time=minutes([1, 1]))
    assert (never.counts.any(), never.delay) == (False, None)


def test_a_table_that_ends_is_used_to_its_end() -> None:
    """A file of last year, all of whose labels are in, is no stalled feed."""
    rows = _bookings(np.random.default_rng(5), 40)
    assert _at(rows, T0 + timedelta(days=400)).counts.all()
