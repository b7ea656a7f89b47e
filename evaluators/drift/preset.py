"""Evidently itself: for features of free text, which only its classifier compares, and for the report that people read.

Slow to import and to run, so never imported at the top of a module, and called in processes of their own only.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from evaluators.drift.comparing import FeatureDrift
from pipelines.data.profile import numbers_of

if TYPE_CHECKING:
    import pandas as pd

Features = Sequence[Mapping[str, str]]


class DriftUnknownError(Exception):
    """There is nothing to compare, or nothing to compare it with; the message says why."""


def run_preset(reference: pd.DataFrame, window: pd.DataFrame, features: Features) -> Any:
    """Evidently's DataDriftPreset with its defaults, as a snapshot, over those features that hold values on both sides; others it refuses.

    Raises DriftUnknownError if there is no such feature, or Evidently is missing or fails.
    """
    old, new = evidently_columns(reference, features), evidently_columns(window, features)
    both = [f for f in features if old[f["name"]].notna().any() and new[f["name"]].notna().any()]
    if not both:
        raise DriftUnknownError("no feature has values in both the reference and the window")
    names = [feature["name"] for feature in both]

    def of_kind(*kinds: str) -> list[str]:
        return [feature["name"] for feature in both if feature["kind"] in kinds]

    with evidently_at_work():
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset

        shape = DataDefinition(
            numerical_columns=of_kind("numeric"),
            categorical_columns=of_kind("categorical", "boolean"),
            text_columns=of_kind("text"),
        )
        current, base = (
            Dataset.from_pandas(side[names].reset_index(drop=True), data_definition=shape) for side in (new, old)
        )
        return Report([DataDriftPreset()], include_tests=True).run(current, base)


@contextmanager
def evidently_at_work() -> Iterator[None]:
    """Quiet, and with one kind of error. Evidently also correlates columns, and warns of constant ones."""
    os.environ["DO_NOT_TRACK"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except ImportError as error:
            raise DriftUnknownError(f"Evidently is not installed ({error}): pip install 'ratchetd[drift]'") from error
        except Exception as error:
            raise DriftUnknownError(f"Evidently failed: {type(error).__name__}: {error}") from error


def verdicts(snapshot: Any) -> dict[str, FeatureDrift]:
    """Evidently's verdict of each column. (Its scores alone do not tell: of some methods more is drift, of others less.)"""
    found = snapshot.dict()
    failed = {
        test["metric_config"]["params"]["column"]
        for test in found["tests"]
        if test["id"] == "drift" and str(test["status"]).endswith("FAIL")
    }
    return {
        metric["config"]["column"]: FeatureDrift(
            method=metric["config"]["method"],
            value=float(metric["value"]),
            threshold=float(metric["config"]["threshold"]),
            drifted=metric["config"]["column"] in failed,
        )
        for metric in found["metrics"]
        if metric["config"]["type"].endswith(":ValueDrift")
    }


def evidently_columns(frame: pd.DataFrame, features: Features) -> pd.DataFrame:
    """The features as Evidently is given them: numbers as float64 (infinities missing), the rest as text. Absent columns are all
    missing."""
    import numpy as np
    import pandas as pd

    columns: dict[str, Any] = {}
    for feature in features:
        column = frame[feature["name"]] if feature["name"] in frame else pd.Series(np.nan, index=frame.index)
        if feature["kind"] in ("numeric", "boolean"):
            numbers = pd.Series(numbers_of(column), index=frame.index)
            column = numbers.where(np.isfinite(numbers))
        if feature["kind"] != "numeric":
            column = column.astype(object).where(column.notna(), None).map(str, na_action="ignore").astype(object)
        columns[feature["name"]] = column
    return pd.DataFrame(columns, index=frame.index)
