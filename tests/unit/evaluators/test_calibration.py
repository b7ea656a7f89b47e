"""Whether answers keep what they promise: what is seen, what is not, and what is unknown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_log import NOW, minutes_before, write_labels, write_predictions
from model_folders import context, model_folder, policy

from evaluators.calibration import deviation, promised, residuals, usual_errors
from evaluators.observe import run
from policies.metrics import Task

HOUR = 3_600.0
QUERY = {"key": "c", "kind": "calibration", "metric": None, "window_s": 4 * HOUR, "min_rows": 100}
ROWS = 400


def _look(tmp_path: Path, champion: dict[str, Any] | None = None, **folder: Any) -> dict[str, Any]:
    made = tmp_path / "7" / "model"
    if not made.exists():
        model_folder(tmp_path / "7", fake=False, **folder)
    task = folder.get("task", "binary")
    metric = "mae" if task == "regression" else "accuracy"
    signal: dict[str, Any] = run(
        {
            "model": "flights", "home": str(tmp_path), "now": NOW.isoformat(), "queries": [QUERY],
            "policy": policy(task=task, metric=metric, label_delay="1h"), "comparison": None,
            "champion": {"number": 7, "model_dir": str(made), "trained_to": None, **(champion or {})},
        },
        context(tmp_path),
    )["signals"]["c"]  # fmt: skip
    return signal


def _log(tmp_path: Path, answers: list[Any], labels: list[Any], *, version: int = 7) -> None:
    """Evenly over the four hours before the labels' delay, oldest first."""
    ids = [f"{version}-{i}" for i in range(len(answers))]
    at = minutes_before(NOW, np.linspace(299, 61, len(ids)).tolist())
    write_predictions(tmp_path / "log" / "flights", ids, at, answers, version=version)
    write_labels(tmp_path / "log" / "flights", ids, at, labels)


def _binary(chance: Any, said: Any, seed: int = 0) -> tuple[list[float], list[int]]:
    rng = np.random.default_rng(seed)
    p = np.broadcast_to(np.asarray(chance, dtype=float), ROWS)
    return np.broadcast_to(np.asarray(said, dtype=float), ROWS).tolist(), (rng.random(ROWS) < p).astype(int).tolist()


# ---------------------------------------------------------------- what is seen
def test_harder_rows_are_no_fault_of_the_model(tmp_path: Path) -> None:
    """Accuracy falls to a half where the answers say so: a score would fire, this stays quiet."""
    easy_then_hard = np.repeat([0.95, 0.5], ROWS // 2)
    answers, labels = _binary(easy_then_hard, easy_then_hard)
    _log(tmp_path, answers, labels)
    signal = _look(tmp_path)
    assert signal["rows"] == ROWS
    assert signal["value"] < 3


def test_labels_that_mean_something_else_stand_out(tmp_path: Path) -> None:
    """From the first quarter on positives are .35 more often than the answers say; where it began is told."""
    answers, labels = _binary(np.repeat([0.5, 0.85, 0.85, 0.85], ROWS // 4), 0.5)
    _log(tmp_path, answers, labels)
    signal = _look(tmp_path)
    assert signal["value"] > 4.4
    assert signal["detail"].startswith("positives are more often than promised, by .2")
    hours_ago = (
        NOW - np.datetime64(signal["changed_at"][:19]).astype(object).replace(tzinfo=NOW.tzinfo)
    ).total_seconds()
    assert 3.7 < hours_ago / HOUR < 4.3


def test_sure_answers_that_are_wrong_stand_out_though_no_side_is_favoured(tmp_path: Path) -> None:
    """Half the answers say .9 and half .1; all are right in two of three cases only, so the share of positives is as promised."""
    said = np.tile([0.9, 0.1], ROWS // 2)
    answers, labels = _binary(np.tile([0.66, 0.34], ROWS // 2), said)
    _log(tmp_path, answers, labels)
    signal = _look(tmp_path)
    assert signal["value"] > 4.4
    assert signal["detail"].startswith("Brier score is above what was promised, by ")


def test_a_model_that_is_better_than_it_says_does_no_harm(tmp_path: Path) -> None:
    """Answers of .6 and .4 that are always right."""
    said = np.tile([0.6, 0.4], ROWS // 2)
    _log(tmp_path, said.tolist(), np.tile([1, 0], ROWS // 2).tolist())
    assert _look(tmp_path)["value"] < 1


def test_a_regression_errs_to_no_side(tmp_path: Path) -> None:
    """Labels of half a deviation more than was predicted."""
    noise = np.random.default_rng(0).normal(0, 1, ROWS)
    _log(tmp_path, [10.0] * ROWS, (10.5 + noise).tolist())
    signal = _look(tmp_path, task="regression", classes=None)
    assert signal["value"] > 4.4
    assert signal["detail"].startswith("labels are above what was predicted, by .")


def test_residuals_of_many_classes_take_an_unknown_label_for_wrong() -> None:
    """It has code -1, which is nobody's answer."""
    found = residuals(Task.MULTICLASS, np.array([-1.0]), np.array([[0.2, 0.8]]))
    assert found.tolist() == [[-0.8]]


# ---------------------------------------------------------------- what was so before
@pytest.mark.parametrize(("rows", "quiet"), [(400, True), (150, False)])
def test_what_was_off_when_it_was_judged_is_not_news(tmp_path: Path, rows: int, quiet: bool) -> None:
    """Classes weighed by hand answer .7 where .5 is true, then as now; but few rows do not show that they did."""
    answers, labels = _binary(0.5, 0.7)
    _log(tmp_path, answers, labels)
    before = promised(Task.BINARY, np.asarray(labels[:rows], dtype=float), np.asarray(answers[:rows]))
    assert _look(tmp_path)["value"] > 4.4
    assert (_look(tmp_path, {"promised": before})["value"] < 3) is quiet


def test_what_was_off_before_and_is_not_now_counts_for_nothing(tmp_path: Path) -> None:
    """The smaller of both deviations counts."""
    answers, labels = _binary(0.5, 0.5)
    _log(tmp_path, answers, labels)
    before = [{"value": 0.3, "stderr": 0.02, "rows": 400}, {"value": 0.1, "stderr": 0.01, "rows": 400}]
    assert _look(tmp_path, {"promised": before})["value"] < 3


def test_nothing_is_promised_on_a_handful_of_rows() -> None:
    """Their error is not known."""
    assert promised(Task.BINARY, np.zeros(5), np.full(5, 0.5)) is None
    assert deviation(np.array([np.nan] * 100)) is None


def test_rows_that_are_alike_count_as_fewer() -> None:
    """Blocks of equal residuals have the error of as many blocks, not of as many rows."""
    alike = np.repeat(np.random.default_rng(0).normal(0, 1, 20), 20)
    found = deviation(alike)
    assert found is not None
    assert found.stderr > 3 * float(alike.std()) / 20


# ---------------------------------------------------------------- what is unknown
def test_what_cannot_be_told_says_why(tmp_path: Path) -> None:
    """No label, too few, an answer that is no number."""
    assert "no label" in _look(tmp_path)["reason"] or "0 matured" in _look(tmp_path)["reason"]
    answers, labels = _binary(0.5, 0.5)
    _log(tmp_path, answers[:99], labels[:99])
    assert _look(tmp_path)["reason"] == "99 matured labelled rows of v7 in the window, 100 needed"
    _log(tmp_path, [*answers[:99], float("nan")], labels[:100])
    assert _look(tmp_path)["value"] is None


def test_other_versions_answers_are_not_the_champions(tmp_path: Path) -> None:
    """What v8 promises says nothing about v7."""
    answers, labels = _binary(0.5, 0.5)
    _log(tmp_path, answers, labels)
    _log(tmp_path, [0.99] * ROWS, [0] * ROWS, version=8)
    signal = _look(tmp_path)
    assert signal["rows"] == ROWS
    assert signal["value"] < 3


# ---------------------------------------------------------------- how large the errors of a regression are
def _regression(seed: int, noise: Any) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    answers = rng.uniform(0, 10, ROWS)
    return answers, answers + rng.normal(size=ROWS) * noise(answers)


@pytest.mark.parametrize(
    ("noise", "quiet"), [(lambda y: 0.1 + 0.2 * y, True), (lambda y: 4 + 0 * y, False), (lambda y: 0.01 + 0 * y, True)]
)  # fmt: skip
def test_errors_that_grew_to_no_side_stand_out(tmp_path: Path, noise: Any, quiet: bool) -> None:
    """Labels that mean something else may miss the answers to both sides alike: the size of the errors tells. Smaller ones do no harm."""
    said, known = _regression(1, lambda y: 0.1 + 0.2 * y)
    answers, labels = _regression(2, noise)
    _log(tmp_path, answers.tolist(), labels.tolist())
    signal = _look(
        tmp_path, {"usual_errors": usual_errors(Task.REGRESSION, known, said)}, task="regression", classes=None
    )
    assert (signal["value"] < 3.5) is quiet
    if not quiet:
        assert signal["value"] > 5.2
        assert signal["detail"].startswith("errors are more than 1.5 times as large as when it was judged, by ")


def test_larger_answers_may_miss_by_more(tmp_path: Path) -> None:
    """In summer all counts are high, and errors with them: the model is as good as it was."""
    said, known = _regression(3, lambda y: 0.1 + 0.2 * y)
    large = np.random.default_rng(4).uniform(8, 10, ROWS)
    labels = large + np.random.default_rng(5).normal(size=ROWS) * (0.1 + 0.2 * large)
    _log(tmp_path, large.tolist(), labels.tolist())
    assert (
        _look(tmp_path, {"usual_errors": usual_errors(Task.REGRESSION, known, said)}, task="regression", classes=None)[
            "value"
        ]
        < 3.5
    )


def test_a_version_of_before_usual_errors_were_kept_is_looked_at_without(tmp_path: Path) -> None:
    answers, labels = _regression(7, lambda y: 2.5 + 0 * y)
    _log(tmp_path, answers.tolist(), labels.tolist())
    assert _look(tmp_path, task="regression", classes=None)["value"] < 3.5
