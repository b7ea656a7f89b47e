"""Do the rows that come in still look like those that the champion learnt from? Evidently's answer, once a window.

Windows end at whole multiples of their length since 1970, so that two looks within a window see the same one, and `for: 3` in a policy
means three different windows. A finished window never changes, so its result is kept: importing Evidently costs seconds of CPU.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators.scene import Query, Scene
from evaluators.wording import count
from pipelines.data.prediction_log import feature_columns
from pipelines.jobs.files import read_json, write_json_atomic
from policies.signals import Signal

if TYPE_CHECKING:
    import pandas as pd

ROWS_MAX = 5_000
"""Rows of a window that are compared, a seeded sample: as many as the reference holds at most."""
REFERENCE_ROWS_MIN = 30
_CACHE_FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftReport:
    """Which features moved."""

    share: float
    """Of all features."""
    drifted: Sequence[str]
    scores: Mapping[str, Mapping[str, Any]]
    """Feature → {"method", "value", "threshold", "drifted"} as Evidently gives them; absent for features that hold nothing on one side."""


def window_end(now: datetime, window: timedelta) -> datetime:
    """End of the newest whole window at `now`.

    >>> window_end(datetime(2013, 5, 2, 13, 30, tzinfo=UTC), timedelta(hours=6)).isoformat()
    '2013-05-02T12:00:00+00:00'
    """
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return epoch + (now - epoch) // window * window


def drift(query: Query, scene: Scene) -> tuple[Signal, Mapping[str, Any]]:
    """The share of drifted features in the newest whole window of live rows, and what it rests on (JSON)."""
    assert query.window is not None
    end = window_end(scene.now, query.window)
    evidence = _kept(query, scene, end)
    if evidence is None:
        found = _measure(query, scene, end)
        if isinstance(found, Signal):
            return found, {}
        evidence = found
        _keep(query, scene, evidence)
    return Signal.of(evidence["share"], observed_at=scene.now, rows=evidence["rows"], window_end=end), evidence


def _kept_path(query: Query, scene: Scene) -> Path:
    digest = hashlib.sha256(query.key.encode()).hexdigest()[:16]
    return scene.home / "cache" / "drift" / f"{scene.model}-{digest}.json"


def _kept(query: Query, scene: Scene, end: datetime) -> dict[str, Any] | None:
    """What was found before about the same window and the same reference; None if nothing usable."""
    path = _kept_path(query, scene)
    try:
        kept = read_json(path)
    except (OSError, ValueError) as error:
        scene.problems.append(f"{path}: measured again, because it cannot be read: {error}")
        return None
    same = {"format": _CACHE_FORMAT, "window_end": end.isoformat(), "reference": str(scene.folder.path)}
    return kept if isinstance(kept, dict) and {name: kept.get(name) for name in same} == same else None


def _keep(query: Query, scene: Scene, evidence: Mapping[str, Any]) -> None:
    try:
        write_json_atomic(_kept_path(query, scene), evidence)
    except OSError as error:
        scene.problems.append(f"{_kept_path(query, scene)}: not kept, will be measured again: {error}")


def _measure(query: Query, scene: Scene, end: datetime) -> Signal | dict[str, Any]:
    """The evidence, or a signal that says why there is none."""
    assert query.window is not None
    current = scene.log.predictions(
        since=end - query.window, until=end, role="live", problems=scene.problems
    )  # fmt: skip
    rows = len(current)
    if rows < max(query.min_rows, 1):
        reason = f"{count(rows)} in the window that ended at {end:%Y-%m-%d %H:%M}, {max(query.min_rows, 1):,} needed"
        return Signal.unknown(reason, observed_at=scene.now, rows=rows)
    try:
        reference = _reference(scene)
        report = compare_frames(reference, feature_columns(current), scene.folder.features)
    except DriftUnknownError as error:
        return Signal.unknown(str(error), observed_at=scene.now, rows=rows)
    return {
        "format": _CACHE_FORMAT,
        "reference": str(scene.folder.path),
        "share": report.share,
        "drifted": list(report.drifted),
        "scores": {name: dict(found) for name, found in report.scores.items()},
        "rows": rows,
        "window_end": end.isoformat(),
    }


class DriftUnknownError(Exception):
    """There is nothing to compare; the message says why."""


def _reference(scene: Scene) -> pd.DataFrame:
    import pandas as pd

    path = scene.folder.path / "reference.parquet"
    try:
        frame: pd.DataFrame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DriftUnknownError(f"the champion's reference rows {path} cannot be read: {error}") from error
    if len(frame) < REFERENCE_ROWS_MIN:
        raise DriftUnknownError(f"the champion's reference {path} has {count(len(frame))}, {REFERENCE_ROWS_MIN} needed")
    return frame


def compare_frames(
    reference: pd.DataFrame, current: pd.DataFrame, features: Sequence[Mapping[str, str]]
) -> DriftReport:
    """Evidently's DataDriftPreset with its default methods, feature by feature, on at most ROWS_MAX rows of each.

    A feature that holds values on one side only has drifted; one that holds none on either has not. Raises DriftUnknownError if there are
    no features or Evidently fails.
    """
    if not features:
        raise DriftUnknownError("the champion has no features to compare")
    old, new = _columns(reference, features), _columns(current, features)
    one_sided = [
        f["name"] for f in features if bool(old[f["name"]].notna().any()) != bool(new[f["name"]].notna().any())
    ]
    both = [f for f in features if old[f["name"]].notna().any() and new[f["name"]].notna().any()]
    scores = _evidently(_sampled(old), _sampled(new), both) if both else {}
    drifted = [f["name"] for f in features if f["name"] in one_sided or scores.get(f["name"], {}).get("drifted")]
    return DriftReport(share=len(drifted) / len(features), drifted=drifted, scores=scores)


def _columns(frame: pd.DataFrame, features: Sequence[Mapping[str, str]]) -> pd.DataFrame:
    """The features as Evidently takes them: numbers as float64 (infinities missing), the rest as text. Absent columns are all missing."""
    import numpy as np
    import pandas as pd

    columns: dict[str, Any] = {}
    for feature in features:
        column = frame[feature["name"]] if feature["name"] in frame else pd.Series(np.nan, index=frame.index)
        if feature["kind"] in ("numeric", "boolean"):
            numbers = pd.to_numeric(column, errors="coerce").astype("float64")
            column = numbers.where(np.isfinite(numbers))
        if feature["kind"] != "numeric":
            column = column.astype(object).where(column.notna(), None).map(str, na_action="ignore").astype(object)
        columns[feature["name"]] = column
    return pd.DataFrame(columns, index=frame.index)


def _sampled(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sample(ROWS_MAX, random_state=0) if len(frame) > ROWS_MAX else frame


def _evidently(
    reference: pd.DataFrame, current: pd.DataFrame, features: Sequence[Mapping[str, str]]
) -> dict[str, dict[str, Any]]:
    """Feature → method, value, threshold and verdict."""
    os.environ["DO_NOT_TRACK"] = "1"
    kinds = {
        kind: [f["name"] for f in features if f["kind"] == kind]
        for kind in ("numeric", "categorical", "text", "boolean")
    }
    names = [f["name"] for f in features]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Evidently also correlates columns, and warns of constant ones
        try:
            from evidently import DataDefinition, Dataset, Report
            from evidently.presets import DataDriftPreset

            shape = DataDefinition(
                numerical_columns=kinds["numeric"],
                categorical_columns=kinds["categorical"] + kinds["boolean"],
                text_columns=kinds["text"],
            )
            snapshot = Report([DataDriftPreset()], include_tests=True).run(
                Dataset.from_pandas(current[names].reset_index(drop=True), data_definition=shape),
                Dataset.from_pandas(reference[names].reset_index(drop=True), data_definition=shape),
            )
            found = snapshot.dict()
            return _verdicts(found["metrics"], found["tests"])
        except ImportError as error:
            raise DriftUnknownError(f"Evidently is not installed ({error}): pip install 'ratchetd[drift]'") from error
        except Exception as error:
            raise DriftUnknownError(f"Evidently failed: {type(error).__name__}: {error}") from error


def _verdicts(metrics: Sequence[Mapping[str, Any]], tests: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Evidently's verdict of each column. (Its scores alone do not tell: of some methods more is drift, of others less.)"""
    failed = {
        test["metric_config"]["params"]["column"]
        for test in tests
        if test["id"] == "drift" and str(test["status"]).endswith("FAIL")
    }
    return {
        metric["config"]["column"]: {
            "method": metric["config"]["method"],
            "value": float(metric["value"]),
            "threshold": float(metric["config"]["threshold"]),
            "drifted": metric["config"]["column"] in failed,
        }
        for metric in metrics
        if metric["config"]["type"].endswith(":ValueDrift")
    }
