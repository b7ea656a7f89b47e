"""What makes a feature drifted beyond Evidently's rules: limits of the policy's, limits learnt from a quiet beginning, and what Evidently
refuses."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from live_log import NOW, write_predictions
from model_folders import context, model_folder, policy

from evaluators.answers import ModelFolder
from evaluators.drift import calibration, report
from evaluators.drift.calibration import WarmUp
from evaluators.drift.comparing import JENSEN_SHANNON, ONE_SIDED, WASSERSTEIN, compare
from evaluators.drift.measuring import compare_window, drift
from evaluators.drift.preset import DriftUnknownError
from evaluators.drift.reference import reference_profile
from evaluators.observe import speaks_against
from evaluators.scene import Query, Scene
from pipelines.data.prediction_log import FolderLog
from pipelines.data.profile import PROFILE_FILE, profile_rows, write_profile
from pipelines.jobs.port import PermanentJobError
from policies.schema import ModelPolicy
from policies.signals import Signal, SignalKind

HOUR = timedelta(hours=1)
X = [{"name": "x", "kind": "numeric"}]


def _scene(tmp_path: Path, **changes: Any) -> Scene:
    folder = tmp_path / "7" / "model"
    if not folder.exists():
        model_folder(tmp_path / "7", fake=False)
    return Scene(
        **{
            "home": tmp_path, "model": "flights", "log": FolderLog(tmp_path / "log" / "flights"), "now": NOW,
            "spec": ModelPolicy.model_validate(policy(label_delay="1h")).spec, "champion": 7,
            "folder": ModelFolder.read(folder), "trained_to": None, "lag_window": HOUR, **changes,
        }
    )  # fmt: skip


def _query(threshold: Any = None, min_rows: int = 10) -> Query:
    return Query(
        key=f"drift:{threshold}",
        kind=SignalKind.DRIFT,
        metric=None,
        window=HOUR,
        min_rows=min_rows,
        threshold=threshold,
    )


def _frame(rows: int, shift: float = 0.0, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"x": rng.normal(shift, 1, rows), "origin": rng.choice(["EWR", "JFK"], rows)})


def _reference(tmp_path: Path, rows: int = 1_200, *, with_profile: bool = True) -> None:
    folder = model_folder(tmp_path / "7", fake=False)
    frame = _frame(rows)
    frame.to_parquet(folder / "reference.parquet")
    if with_profile:
        write_profile(folder, profile_rows(frame, ModelFolder.read(folder).features))


def _asked(tmp_path: Path, hours_ago: float, frame: pd.DataFrame) -> None:
    """Rows asked in the middle of the hour that ended so many hours before 12:00."""
    at = NOW - timedelta(minutes=60) - hours_ago * HOUR
    ids = [f"{hours_ago}-{i}" for i in range(len(frame))]
    columns = {name: frame[name].tolist() for name in frame}
    write_predictions(tmp_path / "log" / "flights", ids, [at] * len(ids), [0.5] * len(ids), **columns)


# ---------------------------------------------------------------- what Evidently refuses
def test_values_on_one_side_only_are_drift_and_on_none_are_nothing() -> None:
    """Evidently raises for an empty column. A feature that appears or vanishes has drifted; one that never was has not."""
    kinds = {"old": "numeric", "new": "numeric", "none": "numeric", "lost": "categorical", "same": "numeric"}
    features = [{"name": name, "kind": kind} for name, kind in kinds.items()]
    old = pd.DataFrame({"old": [1.0, 2.0], "new": np.nan, "none": np.inf, "lost": ["a", "b"], "same": [1.0, 2.0]})
    new = pd.DataFrame({"new": [1.0, 2.0], "lost": [None, None], "same": [1.0, 2.0], "unasked": [1, 2]})
    found = compare(profile_rows(old, features), new)
    assert {name for name, one in found.items() if one.drifted} == {"old", "new", "lost"}
    assert {found[name].method for name in ("old", "new", "lost")} == {ONE_SIDED}
    assert "none" not in found
    assert not found["same"].drifted


def test_numbers_beyond_what_a_distance_holds_never_break_it() -> None:
    """Evidently raises for them. Where the spread of the reference has no number nothing is drift; a distance without one is, and has no
    value."""
    far = pd.DataFrame({"x": 1.7e308 * np.linspace(-1, 1, 2_000)})
    near = pd.DataFrame({"x": np.random.default_rng(0).normal(size=2_000)})
    assert not any(found.drifted for found in compare(profile_rows(far, X), far.iloc[::7]).values())
    found = compare(profile_rows(near, X), far)["x"]
    assert (found.drifted, found.value) == (True, None)


# ---------------------------------------------------------------- limits
@pytest.mark.parametrize("rows", [200, 2_000])
def test_under_a_limit_distances_count_whatever_the_reference_s_size(rows: int) -> None:
    """A p-value is no distance, so a small reference is compared by distances too; a limit is reached by its own value."""
    features = [*X, {"name": "origin", "kind": "categorical"}]
    profile, window = profile_rows(_frame(rows), features), _frame(150, shift=0.4, seed=1)
    found = compare(profile, window, 0.3)
    assert (found["x"].method, found["origin"].method) == (WASSERSTEIN, JENSEN_SHANNON)
    value = found["x"].value
    assert value is not None
    assert (found["x"].drifted, found["origin"].drifted) == (True, False)
    assert compare(profile, window, value)["x"].drifted
    assert not compare(profile, window, value + 1e-9)["x"].drifted
    each = compare(profile, window, {"x": 0.9})
    assert (each["x"].threshold, each["origin"].threshold) == (0.9, 0.1)


def test_limit_of_the_policy_decides_the_share(tmp_path: Path) -> None:
    """The same window: half the features drift by Evidently's rules, none beyond a distance of 2, and the evidence says which limit it
    was."""
    _reference(tmp_path)
    _asked(tmp_path, 0, _frame(400, shift=1.0, seed=1))
    usual, _ = drift(_query(), _scene(tmp_path))
    wide, evidence = drift(_query(2.0), _scene(tmp_path))
    assert (usual.value, wide.value) == (0.5, 0.0)
    assert evidence["limits"] == "limit 2 for every distance"
    assert evidence["scores"]["x"]["threshold"] == 2.0
    assert wide.detail == "limit 2 for every distance"


# ---------------------------------------------------------------- calibration
def _beginning(tmp_path: Path, windows: int, shift: float = 0.5) -> Scene:
    """A version that was made `windows` and a bit hours before 12:00, and whose traffic is always a little off."""
    _reference(tmp_path)
    for i in range(windows):
        _asked(tmp_path, i, _frame(200, shift=shift, seed=i + 1))
    return _scene(tmp_path, champion_since=NOW.replace(hour=12, minute=0) - (windows + 0.5) * HOUR)


def _look_often(tmp_path: Path, scene: Scene, **changes: Any) -> tuple[Any, Any]:
    """Looks until all that has ended is caught up with; each measures anew."""
    for _ in range(10):
        for kept in (tmp_path / "cache" / "drift").glob("*.json"):
            if "warm-up" not in kept.name:
                kept.unlink()
        found = drift(_query("calibrated"), _scene(tmp_path, champion_since=scene.champion_since, **changes))
    return found


def test_calibrated_limits_are_evidently_s_until_enough_windows_are_in(tmp_path: Path) -> None:
    """With six windows the shift of half a deviation is drift as for Evidently, and the evidence says how many windows are missing."""
    signal, evidence = _look_often(tmp_path, _beginning(tmp_path, 6))
    assert signal.value == 0.5
    assert evidence["scores"]["x"]["threshold"] == 0.1
    assert evidence["limits"] == "Evidently's limits until 10 quiet windows are in, 6 so far"


def test_what_was_always_so_is_no_drift_once_calibrated(tmp_path: Path) -> None:
    """With twelve quiet windows the same shift is quiet, the limit lies above all that was seen, and a larger shift still is drift."""
    scene = _beginning(tmp_path, 12)
    signal, evidence = _look_often(tmp_path, scene)
    assert signal.value == 0.0
    assert evidence["limits"] == "limits calibrated on 10 quiet windows"
    limit = evidence["scores"]["x"]["threshold"]
    assert 1.4 * evidence["scores"]["x"]["value"] < limit < 1.2
    _asked(tmp_path, -1, _frame(200, shift=2.5, seed=99))
    later, _ = _look_often(tmp_path, scene, now=NOW + HOUR)
    assert later.value == 0.5


def test_windows_in_which_a_score_spoke_against_the_version_calibrate_nothing(tmp_path: Path) -> None:
    """Nor do those with too few rows: what is bad must not become the measure of good."""
    signal, evidence = _look_often(tmp_path, _beginning(tmp_path, 12), quiet=False)
    assert signal.value == 0.5
    assert evidence["limits"] == "Evidently's limits until 10 quiet windows are in, 0 so far"


def test_a_beginning_ends() -> None:
    """Windows far from the version's making are no warm-up, even if there were too few quiet ones."""
    seen = WarmUp(next_end=NOW, looked_at=calibration.SPAN, quiet=[{"x": 0.1}])
    assert seen.is_over
    assert seen.limits() is None
    assert seen.words() == "Evidently's limits, because only 1 of the first 40 windows were quiet, 10 needed"


def test_limits_have_a_floor_and_need_every_window() -> None:
    """A feature that never moved keeps a limit of 0.05; one that some windows lacked has none of its own."""
    quiet = [{"still": 0.0, "busy": 0.1 + i / 100, **({"rare": 0.1} if i else {})} for i in range(10)]
    limits = WarmUp(next_end=NOW, looked_at=10, quiet=quiet).limits()
    assert limits == {"busy": pytest.approx(1.5 * 0.19), "still": 0.05}


def test_damaged_warm_up_starts_again(tmp_path: Path) -> None:
    """And catches up with what has ended since, from the log."""
    scene = _beginning(tmp_path, 12)
    _look_often(tmp_path, scene)
    (kept,) = (tmp_path / "cache" / "drift").glob("*.warm-up.json")
    kept.write_text('{"warm_up": {"next_end": 3}}')
    _, evidence = _look_often(tmp_path, scene)
    assert evidence["limits"] == "limits calibrated on 10 quiet windows"


# ---------------------------------------------------------------- profiles of versions
def test_version_without_profile_is_measured_by_its_rows(tmp_path: Path) -> None:
    """Those that older releases made: the same answer."""
    _reference(tmp_path, with_profile=False)
    _asked(tmp_path, 0, _frame(400, shift=1.0, seed=1))
    old, _ = drift(_query(), _scene(tmp_path))
    (tmp_path / "cache" / "drift").joinpath(next((tmp_path / "cache" / "drift").iterdir()).name).unlink()
    folder = tmp_path / "7" / "model"
    write_profile(folder, profile_rows(_frame(1_200), ModelFolder.read(folder).features))
    new, _ = drift(_query(), _scene(tmp_path))
    assert old == new


def test_damaged_or_foreign_profile_is_reported_and_not_used(tmp_path: Path) -> None:
    """The reference rows stand in for it."""
    _reference(tmp_path)
    folder = ModelFolder.read(tmp_path / "7" / "model")
    good = reference_profile(folder, problems := [])
    assert problems == []
    write_profile(folder.path, profile_rows(_frame(1_200), X))
    assert reference_profile(folder, problems).categories == good.categories
    assert "not one of the features of model.json" in problems[0]
    (folder.path / PROFILE_FILE).write_text("{")
    assert reference_profile(folder, problems).rows == 1_200
    assert "is no profile" in problems[1]


def test_few_reference_rows_and_no_features_are_unknown(tmp_path: Path) -> None:
    """Nothing to compare with, nothing to compare."""
    _reference(tmp_path, rows=29)
    folder = ModelFolder.read(tmp_path / "7" / "model")
    with pytest.raises(DriftUnknownError, match="has 29 rows, 30 needed"):
        reference_profile(folder, [])
    with pytest.raises(DriftUnknownError, match="no features"):
        reference_profile(ModelFolder(path=folder.path, classes=None, features=[]), [])


# ---------------------------------------------------------------- text, by Evidently itself
def _texts(tmp_path: Path, words: str) -> tuple[Scene, pd.DataFrame]:
    rng = np.random.default_rng(0)
    folder = model_folder(tmp_path / "7", fake=False)
    features = [*X, {"name": "title", "kind": "text"}, {"name": "lost", "kind": "text"}]

    def frame(said: str, rows: int) -> pd.DataFrame:
        titles = [f"{said} {i}" for i in rng.integers(0, 50, rows)]
        return pd.DataFrame({"x": rng.normal(size=rows), "title": titles, "lost": titles if rows == 300 else None})

    reference = frame("hello world", 300)
    reference.to_parquet(folder / "reference.parquet")
    write_profile(folder, profile_rows(reference, features))
    scene = _scene(tmp_path, folder=ModelFolder(path=folder, classes=None, features=features))
    return scene, frame(words, 200)


@pytest.mark.slow
def test_text_is_judged_by_evidently(tmp_path: Path) -> None:
    """Its classifier tells other words from the same words; a text that vanished has drifted; numbers are still ours."""
    scene, other = _texts(tmp_path, "bye moon")
    profile = reference_profile(scene.folder, scene.problems)
    found = compare_window(profile, other, scene, None)
    assert found.drifted == ["title", "lost"]
    assert found.found["title"].method.endswith("text content drift")
    assert found.share == pytest.approx(2 / 3)
    same = compare_window(profile, pd.read_parquet(scene.folder.path / "reference.parquet").tail(200), scene, None)
    assert same.drifted == []


def test_text_without_evidently_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the extra is not installed drift of texts is unknown, and the reason says how to have it."""
    monkeypatch.setitem(sys.modules, "evidently", None)
    scene, window = _texts(tmp_path, "bye moon")
    with pytest.raises(DriftUnknownError, match=r"pip install 'ratchetd\[drift\]'"):
        compare_window(reference_profile(scene.folder, []), window, scene, None)


# ---------------------------------------------------------------- the report
def _report_inputs(tmp_path: Path) -> dict[str, Any]:
    return {
        "home": str(tmp_path), "model": "flights", "model_dir": str(tmp_path / "7" / "model"),
        "since": (NOW - 2 * HOUR).isoformat(), "until": NOW.isoformat(),
        "report": str(tmp_path / "evidence" / "flights" / "c3" / "drift.html"),
    }  # fmt: skip


@pytest.mark.slow
def test_evidently_writes_a_report_of_the_window(tmp_path: Path) -> None:
    """One HTML file where it was asked for, of the live rows of the window; a second attempt replaces it."""
    _reference(tmp_path)
    _asked(tmp_path, 0, _frame(300, shift=2.0, seed=1))
    _asked(tmp_path, 9, _frame(50, seed=2))
    inputs = _report_inputs(tmp_path)
    for _ in range(2):
        made = report.run(inputs, context(tmp_path))
    assert made == {"report": inputs["report"], "rows": 300, "drifted": ["x"]}
    text = Path(inputs["report"]).read_text()
    assert "<html" in text
    assert "Wasserstein" in text
    assert [path.name for path in Path(inputs["report"]).parent.iterdir()] == ["drift.html"]


def test_report_without_rows_is_none(tmp_path: Path) -> None:
    """A log that was shortened meanwhile: the job says so, and leaves no file."""
    _reference(tmp_path)
    with pytest.raises(PermanentJobError, match="no drift report: no feature has values"):
        report.run(_report_inputs(tmp_path), context(tmp_path))
    assert not (tmp_path / "evidence").exists()


# ---------------------------------------------------------------- what speaks against a version
RECALL = {"performance": {"metric": "recall", "below": 0.5, "for": "2h"}}
ESTIMATE = {"estimated_performance": {"drop": 0.02}}
FILTERED = {"drift": {"only_if": {"estimated_performance": {"drop": 0.02}}}}


@pytest.mark.parametrize(
    ("triggers", "recall", "estimate", "spoken"),
    [
        (RECALL, 0.4, None, True),
        (RECALL, 0.6, None, False),
        (RECALL, None, None, False),
        ({"any": [ESTIMATE, RECALL]}, 0.6, 0.70, True),
        (FILTERED, None, 0.70, True),
        (FILTERED, None, 0.79, False),
        ({"staleness": "1h"}, 0.1, 0.1, False),
    ],
)
def test_a_bad_score_speaks_against_a_version_at_once(
    triggers: dict[str, Any], recall: float | None, estimate: float | None, spoken: bool
) -> None:
    """Whatever its trigger waits for, and whether it is a trigger or the filter of one; what nobody asked about, and time, say nothing."""
    document = policy()
    document["spec"]["triggers"] = triggers
    values = {"performance:recall:1d:100": recall, "estimated_performance:1d:100": estimate}
    signals = {k: Signal.of(v, observed_at=NOW, rows=500) for k, v in values.items() if v is not None}
    spec = ModelPolicy.model_validate(document).spec
    assert (speaks_against(spec, signals, {"roc_auc": 0.8}, NOW) is not None) is spoken
