"""What clients send becomes the frame that a model takes, or is refused by name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_rig import FEATURES

from serving.frame import SHOWN_CHARACTERS_MAX, InputError, Schema, shown, to_frame
from serving.manifest import Feature

SCHEMA = Schema([Feature(**feature) for feature in FEATURES])  # type: ignore[arg-type]


def test_values_arrive_in_the_order_of_the_features() -> None:
    """A JSON object in any order becomes one value a feature; what is absent or null is missing."""
    row = SCHEMA.row({"city": "Rome", "member": True, "age": 41}, 0)
    assert row[0] == 41.0
    assert math.isnan(row[1])  # type: ignore[arg-type]
    assert row[2:] == [1.0, "Rome"]
    assert SCHEMA.row({"city": None, "age": None}, 0)[3] is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"age": "41"}, "row 3: feature 'age' is numeric and takes a finite number or null but got '41'"),
        ({"age": True}, "feature 'age' is numeric"),
        ({"age": math.nan}, "but got nan"),
        ({"price": math.inf}, "but got inf"),
        ({"age": 10**400}, "feature 'age' is numeric and takes a finite number or null"),
        ({"age": 10**10_000}, "too large to show"),
        ({"age": [1]}, "but got [1]"),
        ({"member": "yes"}, "feature 'member' is boolean and takes true, false or null but got 'yes'"),
        ({"member": 2}, "but got 2"),
        ({"member": 0.5}, "but got 0.5"),
        ({"city": 5}, "feature 'city' is categorical and takes a string or null but got 5"),
        ({"city": {"a": 1}}, "but got {'a': 1}"),
        ({"colour": "red"}, "row 3: unknown feature 'colour'; the model has age, price, member, city"),
    ],
)
def test_what_does_not_fit_is_named(values: dict[str, Any], said: str) -> None:
    """A wrong type, a number that is not finite or a strange feature is refused by feature, value and row."""
    with pytest.raises(InputError) as caught:
        SCHEMA.row(values, 3)
    assert said in str(caught.value)


def test_numbers_for_booleans_are_taken_when_they_are_0_or_1() -> None:
    """Clients that know no booleans may send 0 and 1."""
    assert [SCHEMA.row({"member": value}, 0)[2] for value in (0, 1, 0.0, 1.0, False)] == [0, 1, 0, 1, 0]


def test_the_frame_has_the_types_that_models_were_trained_on() -> None:
    """Numbers and booleans are float64 with NaN, strings objects with None; in the features' order."""
    frame = to_frame(SCHEMA.columns([SCHEMA.row({"age": 1, "city": "Rome"}, 0), SCHEMA.row({"member": False}, 1)]))
    assert list(frame.columns) == ["age", "price", "member", "city"]
    assert [str(t) for t in frame.dtypes] == ["float64", "float64", "float64", "object"]
    assert frame["city"].tolist() == ["Rome", None]
    assert np.isnan(frame["age"][1])


def test_a_frame_of_numbers_only_has_the_same_shape() -> None:
    """A model without strings gets float64 columns under their names, for one row too."""
    schema = Schema([Feature(name="a", kind="numeric"), Feature(name="b", kind="boolean")])
    frame = to_frame(schema.columns([schema.row({"a": 1.5, "b": True}, 0)]))
    assert frame.to_dict("list") == {"a": [1.5], "b": [1.0]}
    assert to_frame(schema.columns(schema.missing_rows(2))).isna().all(axis=None)
    assert to_frame(schema.columns([])).shape == (0, 2)


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers(), max_size=2)


@given(st.dictionaries(st.sampled_from(["age", "price", "member", "city", "other", ""]), _SCALARS))
def test_any_json_object_gives_a_row_or_an_input_error(values: dict[str, Any]) -> None:
    """Whatever a client sends, a row is numbers and strings of the right kinds, or it is refused."""
    try:
        row = SCHEMA.row(values, 0)
    except InputError:
        return
    assert all(isinstance(value, float) and not math.isinf(value) for value in row[:3])
    assert row[3] is None or isinstance(row[3], str)
    assert to_frame(SCHEMA.columns([row])).shape == (1, 4)


@given(st.text(max_size=500) | st.lists(st.text(), max_size=100) | st.integers())
def test_messages_are_bounded(value: object) -> None:
    """No value makes a message long."""
    assert len(shown(value)) <= SHOWN_CHARACTERS_MAX
