"""The signal `drift`: the share of drifted features in the newest whole window of live rows, and what it rests on.

Windows end at whole multiples of their length since 1970, so that two looks within a window see the same one, and `for: 3` in a policy
means three different windows. A finished window never changes, so its result is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators.drift.calibration import WarmUp
from evaluators.drift.comparing import DISTANCE_MIN, ONE_SIDED, P_VALUE_MAX, FeatureDrift, Limits, compare
from evaluators.drift.preset import DriftUnknownError, run_preset, verdicts
from evaluators.drift.reference import reference_profile, reference_rows, text_features
from evaluators.drift.report import TEXT_ROWS_MAX, sampled
from evaluators.scene import Query, Scene
from evaluators.wording import count, number
from pipelines.data.prediction_log import feature_columns
from pipelines.data.profile import Profile
from pipelines.jobs.files import read_json, write_json_atomic
from policies.signals import Signal

if TYPE_CHECKING:
    import pandas as pd

_CACHE_FORMAT = 2
_NAMED = 3
"""Drifted features that a sentence names."""
_CAUGHT_UP = 5
"""Windows of the warm-up that one look measures at most, when the daemon was down while they ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftReport:
    """Which features moved."""

    share: float
    """Of all features."""
    found: Mapping[str, FeatureDrift]
    """By feature; absent for features without any value."""

    @property
    def drifted(self) -> list[str]:
        return [name for name, feature in self.found.items() if feature.drifted]

    @property
    def words(self) -> str:
        """The drifted features, those furthest beyond their thresholds first; empty if there are none.

        >>> far = FeatureDrift(method="Wasserstein distance (normed)", value=1.2, threshold=0.1, drifted=True)
        >>> DriftReport(share=0.5, found={"x": far}).words
        'x (Wasserstein distance (normed) 1.200, limit .100)'
        """
        order = sorted(self.drifted, key=lambda name: -_excess(self.found[name]))
        named = [f"{name} ({_measured(self.found[name])})" for name in order[:_NAMED]]
        more = [f"{len(order) - _NAMED} more"] if len(order) > _NAMED else []
        return ", ".join(named + more)


def _excess(found: FeatureDrift) -> float:
    if found.value is None or not found.threshold:
        return float("inf")
    return found.threshold / max(found.value, 1e-300) if _is_p_value(found) else found.value / found.threshold


def _is_p_value(found: FeatureDrift) -> bool:
    return found.method.endswith("p_value")


def _measured(found: FeatureDrift) -> str:
    if found.value is None or found.threshold is None:
        return found.method
    return f"{found.method} {number(found.value)}, limit {number(found.threshold)}"


def window_end(now: datetime, window: timedelta) -> datetime:
    """End of the newest whole window at `now`.

    >>> window_end(datetime(2013, 5, 2, 13, 30, tzinfo=UTC), timedelta(hours=6)).isoformat()
    '2013-05-02T12:00:00+00:00'
    """
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return epoch + (now - epoch) // window * window


# ---------------------------------------------------------------- the signal
def drift(query: Query, scene: Scene) -> tuple[Signal, Mapping[str, Any]]:
    """The share, and its evidence (JSON): for every feature method, value, threshold and verdict."""
    assert query.window is not None
    end = window_end(scene.now, query.window)
    evidence = _kept(_kept_path(query, scene), scene, window_end=end.isoformat())
    if evidence is None:
        found = _measure(query, scene, end)
        if isinstance(found, Signal):
            return found, {}
        evidence = found
        _keep(_kept_path(query, scene), scene, evidence)
    signal = Signal.of(evidence["share"], observed_at=scene.now, rows=evidence["rows"], window_end=end)
    return replace(signal, detail=evidence["words"]), evidence


def _measure(query: Query, scene: Scene, end: datetime) -> Signal | dict[str, Any]:
    """The evidence, or a signal that says why there is none."""
    assert query.window is not None
    needed = max(query.min_rows, 1)
    window = _rows(query, scene, end)
    if len(window) < needed:
        reason = f"{count(len(window))} in the window that ended at {end:%Y-%m-%d %H:%M}, {needed:,} needed"
        return Signal.unknown(reason, observed_at=scene.now, rows=len(window))
    try:
        profile = reference_profile(scene.folder, scene.problems)
        limits, rule = _limits(query, scene, profile, end)
        report = compare_window(profile, window, scene, limits)
    except DriftUnknownError as error:
        return Signal.unknown(str(error), observed_at=scene.now, rows=len(window))
    return {
        "share": report.share,
        "drifted": report.drifted,
        "scores": {name: found.as_json() for name, found in report.found.items()},
        "limits": rule,
        "words": "; ".join(filter(None, [report.words, "" if query.threshold is None else rule])),
        "rows": len(window),
        "window_start": (end - query.window).isoformat(),
        "window_end": end.isoformat(),
    }


def _rows(query: Query, scene: Scene, end: datetime) -> pd.DataFrame:
    assert query.window is not None
    logged = scene.log.predictions(since=end - query.window, until=end, role="live", problems=scene.problems)
    return feature_columns(logged)


def compare_window(profile: Profile, window: pd.DataFrame, scene: Scene, limits: Limits) -> DriftReport:
    """All features; text by Evidently, always with its own thresholds. Raises DriftUnknownError if that fails."""
    found = compare(profile, window, limits)
    texts = text_features(scene.folder.features)
    if texts:
        found |= _compare_texts(scene.folder.path, window, texts)
    order = [feature["name"] for feature in scene.folder.features if feature["name"] in found]
    drifted = sum(found[name].drifted for name in order)
    return DriftReport(share=drifted / len(scene.folder.features), found={name: found[name] for name in order})


def _compare_texts(folder: Path, window: pd.DataFrame, texts: list[Mapping[str, str]]) -> dict[str, FeatureDrift]:
    reference = reference_rows(folder, [feature["name"] for feature in texts])
    filled = {
        f["name"]: (
            bool(reference[f["name"]].notna().any()),
            f["name"] in window and bool(window[f["name"]].notna().any()),
        )
        for f in texts
    }
    one_sided = FeatureDrift(method=ONE_SIDED, value=None, threshold=None, drifted=True)
    found = {name: one_sided for name, (old, new) in filled.items() if old != new}
    if any(old and new for old, new in filled.values()):
        snapshot = run_preset(sampled(reference, TEXT_ROWS_MAX), sampled(window, TEXT_ROWS_MAX), texts)
        found |= verdicts(snapshot)
    return found


# ---------------------------------------------------------------- limits
def _limits(query: Query, scene: Scene, profile: Profile, end: datetime) -> tuple[Limits, str]:
    """The limits to apply, and in words which these are."""
    if query.threshold is None:
        return None, f"Evidently's limits: distances from {DISTANCE_MIN:g}, p-values below {P_VALUE_MAX:g}"
    if query.threshold != "calibrated":
        return float(query.threshold), f"limit {float(query.threshold):g} for every distance"
    if scene.champion_since is None:
        return None, "Evidently's limits, because it is not known since when the version serves"
    warm_up = _warm_up(query, scene, profile, scene.champion_since, end)
    return warm_up.limits(), warm_up.words()


def _warm_up(query: Query, scene: Scene, profile: Profile, since: datetime, end: datetime) -> WarmUp:
    """The version's beginning, with the windows added that have ended since the last look."""
    assert query.window is not None
    path = _kept_path(query, scene).with_suffix(".warm-up.json")
    kept = _kept(path, scene) or {}
    try:
        seen = WarmUp.from_json(kept["warm_up"])
    except (KeyError, ValueError, TypeError, AttributeError):
        seen = WarmUp(next_end=window_end(since, query.window) + 2 * query.window)  # the first that began after `since`
    before = seen
    for _ in range(_CAUGHT_UP):
        if seen.is_over or seen.next_end > end:
            break
        rows = _rows(query, scene, seen.next_end)
        distances = compare(profile, rows, DISTANCE_MIN) if len(rows) >= max(query.min_rows, 1) and scene.quiet else {}
        measured = {name: found.value for name, found in distances.items() if found.value is not None}
        seen = WarmUp(
            next_end=seen.next_end + query.window,
            looked_at=seen.looked_at + 1,
            quiet=[*seen.quiet, measured] if measured else seen.quiet,
        )
    if seen != before:
        _keep(path, scene, {"warm_up": seen.as_json()})
    return seen


# ---------------------------------------------------------------- what is kept
def _kept_path(query: Query, scene: Scene) -> Path:
    digest = hashlib.sha256(query.key.encode()).hexdigest()[:16]
    return scene.home / "cache" / "drift" / f"{scene.model}-{digest}.json"


def _stamp(scene: Scene) -> dict[str, Any]:
    return {"format": _CACHE_FORMAT, "reference": str(scene.folder.path)}


def _kept(path: Path, scene: Scene, **same: str) -> dict[str, Any] | None:
    """What was found before about the same reference and whatever else must be the same; None if nothing usable."""
    try:
        kept = read_json(path)
    except (OSError, ValueError) as error:
        scene.problems.append(f"{path}: measured again, because it cannot be read: {error}")
        return None
    wanted = {**_stamp(scene), **same}
    return kept if isinstance(kept, dict) and {name: kept.get(name) for name in wanted} == wanted else None


def _keep(path: Path, scene: Scene, what: Mapping[str, Any]) -> None:
    try:
        write_json_atomic(path, {**_stamp(scene), **what})
    except OSError as error:
        scene.problems.append(f"{path}: not kept, will be measured again: {error}")
