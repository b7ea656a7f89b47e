"""Labels as classes, feature kinds, and the frame that models take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from flights import flights, spec_of

from pipelines.data.features import Feature, FeatureKind, features_from_json, model_frame
from pipelines.data.kinds import infer_features, kind_of
from pipelines.data.labels import classes_of, classes_with, decode_label, encode_labels
from pipelines.jobs.port import PermanentJobError
from policies.metrics import Task


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([1.0, 0.0, None], [0, 1]),
        ([True, False, None], [False, True]),
        (["yes", "no", None], ["no", "yes"]),
        ([3, 1, 2], [1, 2, 3]),
        (["b", 1, "a"], [1, "a", "b"]),
    ],
)
def test_classes_are_sorted_json_values(values: list[Any], classes: list[Any]) -> None:
    """Missing labels are no class; whole floats are integers; numbers come before text."""
    found = classes_of(pd.Series(values), Task.MULTICLASS)
    assert found == classes
    assert [type(value) for value in found or ()] == [type(value) for value in classes]


@pytest.mark.parametrize(
    ("known", "values", "classes"),
    [
        (["a", "b"], ["c", None, "a"], ["a", "b", "c"]),
        ([0, 1], [1.0, 0.0], [0, 1]),
        ([1, 2], [3.0, 2.0], [1, 2, 3]),
        (["a", 1], ["b"], [1, "a", "b"]),
        (["a", "b"], [None], ["a", "b"]),
        (None, [1.5], None),
    ],
)
def test_new_classes_join_the_known_ones(known: list[Any] | None, values: list[Any], classes: list[Any] | None) -> None:
    """Sorted as ever, each once however it is spelt, and none is lost; a regression has none."""
    task = Task.REGRESSION if known is None else Task.MULTICLASS
    assert classes_with(known, pd.Series(values, dtype=object), task) == classes


def test_codes_meet_across_spellings() -> None:
    """A label reported as JSON true, 1.0 or "1" is the class 1 of the training data; others are NaN."""
    codes = encode_labels(pd.Series([True, 1.0, "1", 0, "0", "2", None], dtype=object), [0, 1])
    assert np.array_equal(codes, [1, 1, 1, 0, 0, np.nan, np.nan], equal_nan=True)
    values = encode_labels(pd.Series([1, "2.5", "x", None], dtype=object), None)
    assert np.array_equal(values, [1, 2.5, np.nan, np.nan], equal_nan=True)
    assert classes_of(pd.Series([1.5]), Task.REGRESSION) is None


def test_decoding_of_logged_labels() -> None:
    """JSON scalars only; anything else is no label."""
    texts = ["1", '"yes"', "12.5", "true", "[1]", "{", None, "null"]
    assert [decode_label(text) for text in texts] == [1, "yes", 12.5, True, None, None, None, None]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2, 3], FeatureKind.NUMERIC),
        ([1.5, None, 3], FeatureKind.NUMERIC),
        ([True, False, True], FeatureKind.BOOLEAN),
        ([True, None, False], FeatureKind.BOOLEAN),
        (["a", "b", None], FeatureKind.CATEGORICAL),
        ([f"New York {i}" for i in range(20)] * 3, FeatureKind.CATEGORICAL),
        ([f"the plane number {i} was old" for i in range(60)], FeatureKind.TEXT),
        ([f"N{i}" for i in range(60)], FeatureKind.CATEGORICAL),
    ],
)
def test_kinds(values: list[Any], kind: FeatureKind) -> None:
    """Numbers, flags, few strings, many strings with spaces."""
    assert kind_of(pd.Series(values)) is kind


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([None, None], "all its values are missing"),
        ([f"N{i}" for i in range(200)], "like an identifier"),
        (pd.to_datetime(["2026-01-01", "2026-01-02"]), "it holds times"),
        ([[1], [2]], "mixed"),
    ],
)
def test_columns_that_can_be_no_feature(values: Any, reason: str) -> None:
    """The reason is said."""
    assert reason in str(kind_of(pd.Series(values)))


def test_features_never_hold_label_times_id_or_excluded() -> None:
    """Even if the owner includes them; kinds follow the columns."""
    data = spec_of(data={"id": "flight", "exclude": ["delay_min"]}).data
    features, notes = infer_features(flights(60), data)
    kinds = {feature.name: feature.kind.value for feature in features}
    assert kinds == {"carrier": "categorical", "wind": "numeric", "hour": "numeric", "storm": "boolean"}
    assert notes == []
    only = spec_of(data={"include": ["wind", "scheduled_at"]}).data
    assert infer_features(flights(60), only)[0] == (Feature("wind", FeatureKind.NUMERIC),)


def test_left_out_columns_are_noted_and_included_ones_refused() -> None:
    """A column that can be no feature is left out with a note; if the owner asked for it by name, it is an error."""
    frame = flights(150).assign(plane=[f"N{i}" for i in range(150)], built=pd.Timestamp("2020-01-01"), empty=None)
    features, notes = infer_features(frame, spec_of().data)
    assert "plane" not in {feature.name for feature in features}
    assert len(notes) == 3
    with pytest.raises(PermanentJobError, match=r"data.include: column 'built' can be no feature: it holds times"):
        infer_features(frame, spec_of(data={"include": ["built"]}).data)
    included = infer_features(frame, spec_of(data={"include": ["plane"]}).data)[0]
    assert included == (Feature("plane", FeatureKind.CATEGORICAL),)
    with pytest.raises(PermanentJobError, match="no column is left as a feature"):
        infer_features(frame[["late", "scheduled_at", "empty"]], spec_of(data={"exclude": []}).data)


def test_model_frame_has_floats_and_objects() -> None:
    """Numbers and flags float64 with NaN, infinities missing, text object with None."""
    frame = pd.DataFrame(
        {"n": [1, np.inf, None], "b": [True, None, False], "c": ["a", None, "b"], "i": [1, 2, 3], "other": 0}
    )
    features = features_from_json(
        [
            {"name": "c", "kind": "categorical"},
            {"name": "n", "kind": "numeric"},
            {"name": "b", "kind": "boolean"},
            {"name": "i", "kind": "text"},
        ]
    )
    ready = model_frame(frame, features)
    assert ready.columns.tolist() == ["c", "n", "b", "i"]
    assert np.array_equal(ready["n"], [1, np.nan, np.nan], equal_nan=True)
    assert np.array_equal(ready["b"], [1, np.nan, 0], equal_nan=True)
    assert ready["c"].tolist() == ["a", None, "b"]
    assert ready["i"].tolist() == ["1", "2", "3"]
    assert [str(kind) for kind in ready.dtypes] == ["object", "float64", "float64", "object"]
    pd.testing.assert_frame_equal(model_frame(ready, features), ready)
    with pytest.raises(ValueError, match="column 'c' must hold numbers"):
        model_frame(frame, [Feature("c", FeatureKind.NUMERIC)])
