"""Evidently's own verdicts, for the tests that hold ours to them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import pandas as pd

from evaluators.drift.comparing import ONE_SIDED, FeatureDrift
from evaluators.drift.preset import evidently_columns, run_preset, verdicts

Features = Sequence[Mapping[str, str]]


def preset(reference: pd.DataFrame, window: pd.DataFrame, features: Features) -> tuple[dict[str, FeatureDrift], float]:
    """The whole DataDriftPreset: verdicts, and the share of drifted columns among those that it compared."""
    snapshot = run_preset(reference, window, features)
    counted = [m for m in snapshot.dict()["metrics"] if m["config"]["type"].endswith(":DriftedColumnsCount")]
    return verdicts(snapshot), counted[0]["value"]["share"]


def evidently_alone(reference: pd.DataFrame, window: pd.DataFrame, features: Features) -> dict[str, FeatureDrift]:
    """The same tests, chosen by Evidently and computed by it, without the plots that the preset also makes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports parts of NumPy by their old names
        from evidently.legacy.calculations.stattests import get_stattest
        from evidently.legacy.core import ColumnType

    old, new = evidently_columns(reference, features), evidently_columns(window, features)
    found = {}
    for feature in features:
        kind = ColumnType.Numerical if feature["kind"] == "numeric" else ColumnType.Categorical
        sides = old[feature["name"]].dropna(), new[feature["name"]].dropna()
        if sides[0].empty or sides[1].empty:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            test = get_stattest(*sides, kind, None)
            result = test(*sides, kind, None)
        found[feature["name"]] = FeatureDrift(
            method=test.display_name,
            value=float(result.drift_score),
            threshold=float(result.actual_threshold),
            drifted=bool(result.drifted),
        )
    return found


def same(ours: Mapping[str, FeatureDrift], evidently: Mapping[str, FeatureDrift]) -> None:
    """Asserts the same method, threshold and verdict, and a score equal to 1e-9, of each feature that Evidently compares."""
    assert {name for name, found in ours.items() if found.method != ONE_SIDED} == set(evidently)
    for name, theirs in evidently.items():
        mine = ours[name]
        assert (mine.method, mine.threshold) == (theirs.method, theirs.threshold), name
        assert mine.value is not None
        assert theirs.value is not None
        assert abs(mine.value - theirs.value) <= 1e-9 * max(1.0, abs(theirs.value)), (name, mine, theirs)
        if abs(mine.value - (theirs.threshold or 0)) > 1e-9:
            assert mine.drifted == theirs.drifted, (name, mine, theirs)
