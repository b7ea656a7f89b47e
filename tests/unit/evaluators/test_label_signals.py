"""The measuring job before labels are in: what it expects of the champion and of a canary, and what it says of the label feed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from live_log import NOW, minutes_before, write_labels, write_predictions
from model_folders import context, model_folder, policy

from evaluators.estimate.calibration import Calibrator
from evaluators.estimate.estimator import FILE, Estimator, fit_estimator
from evaluators.observe import run
from pipelines.data.features import Feature, FeatureKind
from policies.metrics import Task

HOUR = 3_600.0
ESTIMATE = {"key": "estimate", "kind": "estimated_performance", "metric": None, "window_s": 2 * HOUR, "min_rows": 100}
COVERAGE = {"key": "coverage", "kind": "label_coverage", "metric": None, "window_s": None, "min_rows": 0}
LAG = {"key": "lag", "kind": "label_lag", "metric": None, "window_s": None, "min_rows": 0}
PLAIN = Estimator(task=Task.BINARY, rows=500, calibrators=(Calibrator.none(),))


def _look(tmp_path: Path, *queries: dict[str, Any], comparison: Any = None, **changes: Any) -> dict[str, Any]:
    folder = tmp_path / "7" / "model"
    if not folder.exists():
        model_folder(tmp_path / "7", fake=False)
        PLAIN.write(folder / FILE)
    inputs = {
        "model": "flights", "home": str(tmp_path), "now": NOW.isoformat(), "queries": list(queries),
        "policy": changes.pop("policy", policy(metric="accuracy")), "comparison": comparison,
        "champion": {"number": 7, "model_dir": str(folder), "trained_to": None},
    }  # fmt: skip
    return run({**inputs, **changes}, context(tmp_path))


def _log(tmp_path: Path) -> Path:
    return tmp_path / "log" / "flights"


def _write(tmp_path: Path, scores: list[Any], *, version: int = 7, minute: float = 30.0, **more: Any) -> list[str]:
    ids = [f"v{version}-{minute:g}-{i}" for i in range(len(scores))]
    write_predictions(_log(tmp_path), ids, minutes_before(NOW, [minute] * len(ids)), scores, version=version, **more)
    return ids


# ---------------------------------------------------------------- estimated performance
def test_estimate_is_of_the_champions_newest_answers(tmp_path: Path) -> None:
    """Of answers of .9 and .3, four fifths are expected to be right; older ones, other versions and shadows do not count, nor labels."""
    _write(tmp_path, [0.9, 0.3] * 100)
    _write(tmp_path, [0.5] * 500, minute=121)
    _write(tmp_path, [0.5] * 500, version=8)
    _write(tmp_path, [0.5] * 500, minute=20, role="shadow")
    signal = _look(tmp_path, ESTIMATE)["signals"]["estimate"]
    assert (signal["value"], signal["rows"]) == (pytest.approx(0.8), 200)
    assert signal["window_end"] == NOW.isoformat()


def test_estimate_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    """Too few answers, an answer that is no number, a version without an estimator."""
    _write(tmp_path, [0.9] * 99)
    assert (
        "99 predictions of v7 in the window, 100 needed" in _look(tmp_path, ESTIMATE)["signals"]["estimate"]["reason"]
    )
    _write(tmp_path, [float("nan")] * 2, minute=10)
    assert "2 of 101 rows were answered with NaN" in _look(tmp_path, ESTIMATE)["signals"]["estimate"]["reason"]
    (tmp_path / "7" / "model" / FILE).unlink()
    signal = _look(tmp_path, ESTIMATE)["signals"]["estimate"]
    assert signal["value"] is None
    assert "packaged without an estimator" in signal["reason"]


def test_estimate_of_a_regression_reads_the_logged_features(tmp_path: Path) -> None:
    """Errors that grow with x are expected to be larger where x is."""
    rng = np.random.default_rng(0)
    x = rng.random(3_000)
    frame, features = pd.DataFrame({"x": x}), [Feature("x", FeatureKind.NUMERIC)]
    estimator = fit_estimator(Task.REGRESSION, rng.normal(0, x), np.zeros(3_000), frame=frame, features=features)
    folder = model_folder(tmp_path / "7", task="regression", classes=None, fake=False)
    estimator.write(folder / FILE)
    _write(tmp_path, [0.0] * 400, x=np.linspace(0.8, 1.0, 400))
    asked = policy(task="regression", metric="mae")
    value = _look(tmp_path, ESTIMATE, policy=asked)["signals"]["estimate"]["value"]
    assert value == pytest.approx(0.9 * np.sqrt(2 / np.pi), rel=0.1)
    assert (
        "r2 cannot be estimated"
        in _look(tmp_path, {**ESTIMATE, "metric": "r2"}, policy=asked)["signals"]["estimate"]["reason"]
    )


# ---------------------------------------------------------------- a canary
def _rollout(tmp_path: Path, challenger: Estimator | None) -> dict[str, Any]:
    folder = model_folder(tmp_path / "8", fake=False)
    if challenger is not None:
        challenger.write(folder / FILE)
    return {
        "challenger": 8, "champion": 7, "since": (NOW - timedelta(hours=1)).isoformat(), "until": None, "margin": 0.02, "alpha": 0.05,
        "mode": "live", "model_dirs": {"7": str(tmp_path / "7" / "model"), "8": str(folder)},
    }  # fmt: skip


def test_losses_are_expected_of_both_before_any_label(tmp_path: Path) -> None:
    """Each by its own calibration: a challenger whose .9 is worth .5 is expected to lose more than it pretends."""
    _write(tmp_path, [0.9, 0.1] * 150)
    _write(tmp_path, [0.9, 0.1] * 150, version=8)
    flat = Calibrator(at=np.array([0.0, 1.0]), probability=np.array([0.5, 0.5]))
    asked = _rollout(tmp_path, Estimator(task=Task.BINARY, rows=500, calibrators=(flat,)))
    found = _look(tmp_path, comparison=asked)["comparison"]
    assert (found["state"], found["challenger_rows"]) == ("undecided", 0)
    assert found["estimated_champion"] == pytest.approx(0.9 * 0.01 + 0.1 * 0.81)
    assert found["estimated_challenger"] == pytest.approx(0.5 * 0.01 + 0.5 * 0.81)


def test_a_shadow_is_set_against_the_same_requests(tmp_path: Path) -> None:
    """Where both answered the same ids, other requests of the champion do not count."""
    ids = _write(tmp_path, [0.9] * 250)
    _write(tmp_path, [0.5] * 800, minute=20)
    write_predictions(_log(tmp_path), ids, minutes_before(NOW, [30] * 250), [0.8] * 250, version=8, role="shadow")
    found = _look(tmp_path, comparison=_rollout(tmp_path, PLAIN))["comparison"]
    assert (found["estimated_champion"], found["estimated_challenger"]) == (pytest.approx(0.09), pytest.approx(0.16))


@pytest.mark.parametrize(("rows", "estimator"), [(199, PLAIN), (300, None)])
def test_what_cannot_be_expected_of_both_is_unknown(tmp_path: Path, rows: int, estimator: Estimator | None) -> None:
    """Few answers, or a challenger without an estimator: neither has a number."""
    _write(tmp_path, [0.9] * 300)
    _write(tmp_path, [0.9] * rows, version=8)
    found = _look(tmp_path, comparison=_rollout(tmp_path, estimator))["comparison"]
    assert (found["estimated_champion"], found["estimated_challenger"]) == (None, None)


# ---------------------------------------------------------------- the feed
def _labelled(tmp_path: Path, minutes: Any, lag_min: float, *, silent_min: float = 0.0) -> None:
    """Rows so long ago, labelled so long after; none of the labels of the last `silent_min` minutes came."""
    ids = [f"r{m:.0f}" for m in minutes]
    write_predictions(_log(tmp_path), ids, minutes_before(NOW, list(minutes)), [0.5] * len(ids))
    known = [i for i, m in enumerate(minutes) if m - lag_min > silent_min]
    write_labels(
        _log(tmp_path),
        [ids[i] for i in known],
        minutes_before(NOW, [minutes[i] - lag_min for i in known]),
        [1] * len(known),
    )


def test_coverage_and_lag_of_a_feed_that_runs(tmp_path: Path) -> None:
    """All rows old enough have a label, half an hour late; nothing is wrong."""
    _labelled(tmp_path, np.arange(1, 3 * 24 * 60, 2), 30)
    output = _look(tmp_path, COVERAGE, LAG, ESTIMATE)
    assert output["signals"]["lag"]["value"] == 30 * 60
    assert output["signals"]["coverage"]["value"] == 1.0
    assert output["faults"] == []


def test_a_stall_is_a_fault_and_makes_performance_unknown(tmp_path: Path) -> None:
    """Four hours without labels that are due: coverage falls, and the rows that are labelled are not scored as if they were all."""
    _labelled(tmp_path, np.arange(1, 3 * 24 * 60, 2), 30, silent_min=240)
    score = {"key": "score", "kind": "performance", "metric": "accuracy", "window_s": 6 * HOUR, "min_rows": 10}
    output = _look(tmp_path, COVERAGE, LAG, score)
    (fault,) = output["faults"]
    assert (fault["kind"], fault["source"], fault["subject"]) == ("label_feed_stalled", "label feed", "late")
    assert "1 labels came in the last 4h2m, where about 121 were due" in fault["sentence"]
    assert 0.2 < output["signals"]["coverage"]["value"] < 0.5
    assert output["signals"]["score"]["value"] is None
    assert "the label feed has stalled" in output["signals"]["score"]["reason"]


def test_no_label_ever_is_unknown(tmp_path: Path) -> None:
    """A model whose labels have not begun to come has neither coverage nor lag nor a fault."""
    _write(tmp_path, [0.5] * 300)
    output = _look(tmp_path, COVERAGE, LAG)
    assert [output["signals"][key]["value"] for key in ("coverage", "lag")] == [None, None]
    assert output["faults"] == []
