"""Bad data is named: field, rule, value."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flights import T0, flights, spec_of

from pipelines.data.checks import check_table, future_rows, parse_times
from pipelines.jobs.port import PermanentJobError
from policies.metrics import Task


def refused(frame: pd.DataFrame, **sections: Any) -> str:
    """The message with which the table is refused."""
    spec = spec_of(**sections)
    with pytest.raises(PermanentJobError) as caught:
        check_table(frame, spec.data, spec.task)
    return str(caught.value)


def test_good_table_passes_in_the_order_of_time() -> None:
    """Rows come out by time with UTC times; rows of one time keep their order."""
    frame = flights(100)
    spec = spec_of()
    checked = check_table(frame.sample(frac=1.0, random_state=1), spec.data, spec.task)
    assert checked.notes == ()
    assert checked.frame["flight"].tolist() == list(range(100))
    assert str(checked.frame["scheduled_at"].dtype) == "datetime64[us, UTC]"


def test_no_rows() -> None:
    """An empty table names its source and the rule."""
    message = refused(flights(10).iloc[:0])
    assert "flights.csv holds 0 rows" in message


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"label": "lte"}, "data.label: flights.csv has no column 'lte'; did you mean 'late'?"),
        ({"time": "scheduled"}, "data.time: flights.csv has no column 'scheduled'; did you mean 'scheduled_at'?"),
        ({"label_time": "arrived"}, "data.label_time: flights.csv has no column 'arrived'; did you mean 'arrived_at'?"),
        ({"id": "flihgt"}, "data.id: flights.csv has no column 'flihgt'; did you mean 'flight'?"),
        ({"include": ["wnd"]}, "data.include: flights.csv has no column 'wnd'; did you mean 'wind'?"),
        ({"exclude": ["zzzzz"]}, "data.exclude: flights.csv has no column 'zzzzz'; there are flight, scheduled_at"),
    ],
)
def test_missing_column_is_named_with_the_nearest_one(section: dict[str, Any], expected: str) -> None:
    """Each field that names a column which is not there, with a suggestion."""
    assert expected in refused(flights(60), data=section)


def test_all_missing_columns_are_reported_at_once() -> None:
    """Two wrong names are two sentences of one error."""
    message = refused(flights(60), data={"label": "lte", "id": "flihgt"})
    assert "'lte'" in message
    assert "'flihgt'" in message


@pytest.mark.parametrize(
    ("task", "label", "expected"),
    [
        ("binary", [None] * 60, "data.label: column 'late': all 60 values are missing"),
        ("binary", [1] * 60, "there must be at least two classes but all have the label 1"),
        (
            "binary",
            [0, 1, 2] * 20,
            "task binary takes at most 2 classes but there are 3 (0, 1, 2, …); is it task: multiclass?",
        ),
        ("multiclass", ["a"] * 60, "at least two classes but all have the label 'a'"),
        ("regression", [1.5, 2.5, "many"] * 20, "task regression takes numbers but 20 values are none, such as 'many'"),
        ("regression", [1.5, 2.5, np.inf] * 20, "must be finite but 20 values are infinite"),
        ("multiclass", [1.0, 2.0, -np.inf] * 20, "must be a class but 20 values are infinite"),
    ],
)
def test_label_that_does_not_fit_the_task(task: str, label: list[Any], expected: str) -> None:
    """All-null, one class, too many classes, no numbers, infinities."""
    metric = {"binary": "roc_auc", "multiclass": "accuracy", "regression": "mae"}[task]
    frame = flights(60).assign(late=label)
    assert expected in refused(frame, task=task, objective={"metric": metric})


def test_multiclass_with_a_class_a_row_looks_like_regression() -> None:
    """More than 1,000 classes are refused with a hint."""
    frame = flights(1500).assign(late=np.arange(1500) / 7)
    assert "is it task: regression?" in refused(frame, task="multiclass", objective={"metric": "accuracy"})


def test_duplicate_and_missing_ids() -> None:
    """Ids must be there and differ; an example is shown."""
    frame = flights(60)
    doubled = frame.assign(flight=[7, 7, 7, 9, 9, *range(100, 155)])
    assert "ids must differ but 2 occur more than once, such as 7" in refused(
        doubled, data={"id": "flight", "exclude": []}
    )
    missing = frame.assign(flight=[None, *range(59)])
    assert "every row must have an id but 1 have none" in refused(missing, data={"id": "flight", "exclude": []})


def test_unparseable_time_shows_value_and_row() -> None:
    """Text that is no ISO 8601 time is an error with its row; numbers out of range may be milliseconds; booleans are none."""
    frame = flights(60)
    text = frame["scheduled_at"].dt.strftime("%Y-%m-%dT%H:%M:%SZ").astype(object)
    text.iloc[3] = "next Tuesday"
    assert "1 of 60 values are none, such as 'next Tuesday' in row 4" in refused(frame.assign(scheduled_at=text))
    milliseconds = frame["scheduled_at"].astype("int64") // 1000
    assert "are they milliseconds?" in refused(frame.assign(scheduled_at=milliseconds))
    assert "holds true and false" in refused(frame.assign(scheduled_at=True))
    assert "all 60 values are missing" in refused(frame.assign(scheduled_at=None))


@pytest.mark.parametrize(
    "values",
    [
        ["2026-03-01T12:00:00Z", "2026-03-01T13:00:00.5+00:00"],
        ["2026-03-01 12:00:00", "2026-03-01T14:00:00.500+01:00"],
        [1772366400, 1772370000.5],
        pd.to_datetime(["2026-03-01T12:00:00", "2026-03-01T13:00:00.5"], format="ISO8601"),
        pd.to_datetime(["2026-03-01T07:00:00", "2026-03-01T08:00:00.5"], format="ISO8601").tz_localize(
            "America/New_York"
        ),
    ],
)
def test_times_in_every_usual_spelling(values: Any) -> None:
    """ISO text with and without zone, seconds since 1970, and timestamps mean the same moments in UTC."""
    parsed = parse_times(pd.Series(values), "data.time")
    assert parsed.tolist() == [pd.Timestamp("2026-03-01T12:00:00Z"), pd.Timestamp("2026-03-01T13:00:00.5Z")]


def test_rows_without_a_time_and_infinities_become_notes() -> None:
    """What can be dealt with is dealt with, and said."""
    frame = flights(60)
    frame.loc[[1, 2], "wind"] = np.inf
    frame.loc[[5], "scheduled_at"] = pd.NaT
    spec = spec_of()
    checked = check_table(frame, spec.data, spec.task)
    assert len(checked.frame) == 59
    assert checked.notes == (
        "1 rows without 'scheduled_at' were left out",
        "2 infinite values of 'wind' count as missing",
    )


def test_rows_from_the_future_are_noted_and_all_of_them_is_an_error() -> None:
    """Some rows after now wait; if all are, the clock must have gone back."""
    data = spec_of().data
    time = pd.Series([pd.Timestamp(T0), pd.Timestamp(T0 + timedelta(days=2))])
    count, notes = future_rows(time, T0 + timedelta(days=1), data)
    assert count == 1
    assert notes[0].startswith("1 rows lie after 2026-01-02")
    assert future_rows(time, T0 + timedelta(days=3), data) == (0, [])
    with pytest.raises(PermanentJobError, match="has the clock gone back"):
        future_rows(time, T0 - timedelta(days=1), data)


def test_binary_labels_of_every_spelling_pass() -> None:
    """Numbers, booleans and words are classes alike."""
    for values in ([0, 1], [0.0, 1.0], [True, False], ["no", "yes"]):
        spec = spec_of()
        check_table(flights(60).assign(late=values * 30), spec.data, Task.BINARY)
