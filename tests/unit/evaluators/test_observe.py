"""The observing job on logs of the documented layout: right numbers over the right rows, and reasons where there is no number."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from live_log import NOW, minutes_before, write_labels, write_predictions
from model_folders import context, model_folder, policy
from pydantic import TypeAdapter

from evaluators.drift.measuring import window_end
from evaluators.observe import run
from policies.signals import Comparison, Signal

HOUR = 3600.0
AUC = {"key": "auc", "kind": "performance", "metric": "roc_auc", "window_s": 2 * HOUR, "min_rows": 10}
VOLUME = {"key": "volume", "kind": "volume", "metric": None, "window_s": None, "min_rows": 0}
DRIFT = {"key": "drift", "kind": "drift", "metric": None, "window_s": 2 * HOUR, "min_rows": 50}


def _look(tmp_path: Path, *queries: dict[str, Any], **changes: Any) -> dict[str, Any]:
    folder = tmp_path / "7" / "model"
    if not folder.exists():
        model_folder(tmp_path / "7", fake=False)
    inputs = {
        "model": "flights",
        "home": str(tmp_path),
        "now": NOW.isoformat(),
        "policy": policy(label_delay="1h"),
        "queries": list(queries),
        "champion": {"number": 7, "model_dir": str(folder), "trained_to": (NOW - timedelta(hours=6)).isoformat()},
        "comparison": None,
        **changes,
    }
    output = run(inputs, context(tmp_path))
    json.dumps(output, allow_nan=False)
    TypeAdapter(dict[str, Signal]).validate_python(output["signals"])
    TypeAdapter(Comparison | None).validate_python(output["comparison"])
    return output


def _log(tmp_path: Path) -> Path:
    return tmp_path / "log" / "flights"


def _labelled(
    log: Path,
    minutes: list[float],
    labels: list[Any],
    scores: list[Any],
    *,
    lag_min: float = 30,
    prefix: str = "r",
    **more: Any,
) -> None:
    """Rows asked so many minutes before NOW, each with its label `lag_min` later (None: never)."""
    ids = [f"{prefix}{i}" for i in range(len(minutes))]
    write_predictions(log, ids, minutes_before(NOW, minutes), scores, **more)
    known = [i for i, label in enumerate(labels) if label is not None]
    write_labels(
        log,
        [ids[i] for i in known],
        minutes_before(NOW, [minutes[i] - lag_min for i in known]),
        [labels[i] for i in known],
    )


# ---------------------------------------------------------------- performance
def test_performance_is_the_score_of_the_matured_window(tmp_path: Path) -> None:
    """With label delay 1 h and window 2 h, rows asked between 3 h and 1 h ago count, and no others."""
    _labelled(_log(tmp_path), [70] * 10 + [170] * 10, [0, 1] * 10, [0.2, 0.7] * 10)
    _labelled(_log(tmp_path), [30] * 10 + [200] * 10, [0, 1] * 10, [0.9, 0.1] * 10, prefix="other", lag_min=20)
    signal = _look(tmp_path, AUC)["signals"]["auc"]
    assert signal["value"] == 1.0
    assert signal["rows"] == 20
    assert signal["window_end"] == (NOW - timedelta(hours=1)).isoformat()


def test_window_is_open_at_its_old_end_and_closed_at_its_new_one(tmp_path: Path) -> None:
    """A row asked exactly now - delay counts; one asked exactly a window earlier belongs to the window before."""
    _labelled(_log(tmp_path), [60, 180], [0, 1], [0.2, 0.7])
    assert _look(tmp_path, {**AUC, "min_rows": 2})["signals"]["auc"]["rows"] == 1


def test_only_live_answers_of_the_champion_count(tmp_path: Path) -> None:
    """Shadow copies and other versions' answers are no performance of the champion."""
    _labelled(_log(tmp_path), [90] * 10, [0, 1] * 5, [0.2, 0.7] * 5)
    _labelled(_log(tmp_path), [90] * 10, [0, 1] * 5, [0.9, 0.1] * 5, prefix="s", role="shadow")
    _labelled(_log(tmp_path), [90] * 10, [0, 1] * 5, [0.9, 0.1] * 5, prefix="v", version=8)
    assert _look(tmp_path, AUC)["signals"]["auc"]["rows"] == 10


MAE = {**AUC, "key": "mae", "metric": "mae"}


def test_performance_says_how_sure_it_is(tmp_path: Path) -> None:
    """The standard error of a mean of 400 independent errors is theirs over 20, give or take the 16 % of 20 blocks; of few rows none."""
    rng = np.random.default_rng(0)
    errors = np.abs(rng.normal(size=400))
    model_folder(tmp_path / "7", task="regression", classes=None, fake=False)
    _labelled(_log(tmp_path), np.linspace(61, 179, 400).tolist(), [0.0] * 400, errors.tolist())
    asked = policy(task="regression", metric="mae", label_delay="1h")
    signal = _look(tmp_path, MAE, policy=asked)["signals"]["mae"]
    assert signal["value"] == pytest.approx(errors.mean())
    assert signal["stderr"] == pytest.approx(errors.std() / 20, rel=0.5)
    few = _look(tmp_path, {**MAE, "window_s": 600.0}, policy=asked)["signals"]["mae"]
    assert few["rows"] < 40
    assert few["value"] is not None
    assert (few["stderr"], few["changed_at"]) == (None, None)


def test_a_change_is_dated_by_the_answers_of_all_versions(tmp_path: Path) -> None:
    """The champion may be younger than the change: what served before was right until 100 minutes ago, and wrong from then on."""
    minutes = np.linspace(175, 65, 220)
    right = np.where(minutes > 100, 0.9, 0.2).tolist()
    older = int((minutes > 80).sum())
    for version, rows in ((6, slice(0, older)), (7, slice(older, None))):
        _labelled(
            _log(tmp_path),
            minutes[rows].tolist(),
            [1] * len(minutes[rows]),
            right[rows],
            version=version,
            prefix=f"v{version}-",
        )
    signal = _look(tmp_path, {**AUC, "metric": "accuracy"})["signals"]["auc"]
    assert (signal["value"], signal["rows"]) == (0.0, 220 - older)
    dated = NOW - datetime.fromisoformat(signal["changed_at"])
    assert timedelta(minutes=99.4) < dated <= timedelta(minutes=100)


def test_answers_of_a_version_that_cannot_be_read_date_no_change(tmp_path: Path) -> None:
    """Other versions' NaN or strange scores leave the date unknown, and the champion's score as it is."""
    minutes = np.linspace(119, 65, 100).tolist()
    _labelled(_log(tmp_path), minutes, [1] * 50 + [0] * 50, [0.9] * 50 + [0.8] * 50)
    assert _look(tmp_path, {**AUC, "metric": "accuracy"})["signals"]["auc"]["changed_at"] is not None
    _labelled(_log(tmp_path), [121] * 3, [1] * 3, [float("nan")] * 3, version=6, prefix="v6-")
    signal = _look(tmp_path, {**AUC, "metric": "accuracy"})["signals"]["auc"]
    assert (signal["value"], signal["changed_at"]) == (0.5, None)


def test_label_delay_is_observed_where_the_policy_gives_none(tmp_path: Path) -> None:
    """Without `label_delay` the window ends where 99 % of the labels that arrived lately had come in."""
    _labelled(_log(tmp_path), list(range(60, 260)), [0, 1] * 100, [0.2, 0.7] * 100, lag_min=50)
    signal = _look(tmp_path, AUC, policy=policy(label_time="arrived_at"))["signals"]["auc"]
    assert signal["window_end"] == (NOW - timedelta(minutes=50)).isoformat()
    assert signal["value"] == 1.0


@pytest.mark.parametrize(
    ("labels", "scores", "reason"),
    [
        ([0, 1] * 4 + [None] * 4, [0.2, 0.7] * 6, "8 matured labelled rows of v7 in the window, 10 needed"),
        ([1] * 12, [0.7] * 12, "one class only"),
        ([0, 1] * 6, [0.2, float("nan")] * 6, "6 of 12 rows were answered with NaN or infinity"),
        (["maybe"] * 12, [0.5] * 12, "0 matured labelled rows of v7 in the window, 10 needed"),
    ],
)
def test_unknown_performance_has_a_reason(tmp_path: Path, labels: list[Any], scores: list[float], reason: str) -> None:
    """Too few labels, one class, NaN answers, labels of no class: no value, and the reason in words."""
    _labelled(_log(tmp_path), [90] * 12, labels, scores)
    signal = _look(tmp_path, AUC)["signals"]["auc"]
    assert signal["value"] is None
    assert reason in signal["reason"]


def test_empty_log_is_unknown_not_zero(tmp_path: Path) -> None:
    """A model that nobody asks has no score and no drift; it has 0 new labels."""
    signals = _look(tmp_path, AUC, DRIFT, VOLUME, policy=policy())["signals"]
    assert signals["auc"]["value"] is None
    assert signals["auc"]["reason"] == "no label has arrived yet, so nothing has matured"
    assert signals["drift"]["value"] is None
    assert signals["volume"]["value"] == 0


def test_without_champion_everything_is_unknown(tmp_path: Path) -> None:
    """Before the first promotion, or with a damaged model folder, every query is answered with the reason."""
    assert _look(tmp_path, AUC, champion=None)["signals"]["auc"]["reason"] == "no version has been promoted yet"
    signals = _look(tmp_path, AUC, champion={"number": 7, "model_dir": str(tmp_path / "gone")})["signals"]
    assert "champion v7" in signals["auc"]["reason"]
    assert "model.json" in signals["auc"]["reason"]


def test_damaged_segment_costs_its_rows_and_is_named(tmp_path: Path) -> None:
    """A torn Parquet file is reported in `problems`; the rest is measured."""
    _labelled(_log(tmp_path), [90] * 10, [0, 1] * 5, [0.2, 0.7] * 5)
    (_log(tmp_path) / "predictions" / "20130510T000001000000-1-aa.parquet").write_bytes(b"PAR1")
    output = _look(tmp_path, AUC)
    assert output["signals"]["auc"]["value"] == 1.0
    assert any("20130510T000001000000-1-aa.parquet" in problem for problem in output["problems"])


# ---------------------------------------------------------------- volume
def test_volume_counts_matured_labelled_rows_newer_than_training(tmp_path: Path) -> None:
    """Rows of any version after the newest training row (6 h ago) and older than the label delay (1 h), labelled, live."""
    _labelled(_log(tmp_path), [90, 120, 350, 370, 30], [0, 1, 1, 1, 0], [0.5] * 5, lag_min=20)
    _labelled(_log(tmp_path), [100, 100], [1, None], [0.5] * 2, prefix="v", version=8)
    assert _look(tmp_path, VOLUME)["signals"]["volume"]["value"] == 4


def test_volume_without_training_time_is_unknown(tmp_path: Path) -> None:
    """A champion whose rows have no time cannot say which labels are new."""
    champion = {"number": 7, "model_dir": str(model_folder(tmp_path / "7", fake=False)), "trained_to": None}
    assert "data.time" in _look(tmp_path, VOLUME, champion=champion)["signals"]["volume"]["reason"]


# ---------------------------------------------------------------- drift
def _reference(tmp_path: Path, rows: int = 1_200) -> None:
    rng = np.random.default_rng(0)
    folder = model_folder(tmp_path / "7", fake=False)
    frame = pd.DataFrame({"x": rng.normal(size=rows), "origin": rng.choice(["EWR", "JFK"], rows), "late": 0})
    frame.to_parquet(folder / "reference.parquet")


def _asked(tmp_path: Path, x: Any, origin: Any, minutes: float = 60) -> None:
    ids = [f"d{minutes}-{i}" for i in range(len(x))]
    at = minutes_before(NOW, [minutes] * len(ids))
    write_predictions(_log(tmp_path), ids, at, [0.5] * len(ids), x=list(x), origin=list(origin))


def test_too_few_rows_for_drift_are_unknown(tmp_path: Path) -> None:
    """Rows of the running window do not count yet; with too few in the newest whole one the reason says which window it was."""
    _reference(tmp_path)
    _asked(tmp_path, np.zeros(200), ["EWR"] * 200, minutes=10)
    signal = _look(tmp_path, DRIFT)["signals"]["drift"]
    assert signal["value"] is None
    assert "0 rows in the window that ended at 2013-05-10 12:00, 50 needed" in signal["reason"]


def test_drift_without_reference_is_unknown(tmp_path: Path) -> None:
    """A model folder without reference rows is named in the reason."""
    _asked(tmp_path, np.zeros(100), ["EWR"] * 100)
    assert "reference.parquet cannot be read" in _look(tmp_path, DRIFT)["signals"]["drift"]["reason"]


def test_windows_end_at_multiples_of_their_length() -> None:
    """Two looks inside one window see the same end; the next window has the next end."""
    window = timedelta(hours=2)
    first = window_end(NOW, window)
    assert first == NOW.replace(hour=12, minute=0)
    assert window_end(NOW + timedelta(minutes=89), window) == first
    assert window_end(NOW + timedelta(minutes=90), window) == first + window


def test_drift_is_evidently_s_verdict_and_is_measured_once_a_window(tmp_path: Path) -> None:
    """One of two features moved: share one half, named in the evidence; a second look takes the kept result even if the log is gone;
    a feature with no value at all has drifted; damaged keepings are measured anew and reported."""
    evidently_was_here = "evidently" in sys.modules
    _reference(tmp_path)
    rng = np.random.default_rng(1)
    _asked(tmp_path, rng.normal(2, 1, 400), rng.choice(["EWR", "JFK"], 400))
    output = _look(tmp_path, DRIFT)
    assert output["signals"]["drift"]["value"] == 0.5
    assert output["signals"]["drift"]["window_end"] == "2013-05-10T12:00:00+00:00"
    assert output["evidence"]["drift"]["drifted"] == ["x"]
    x = output["evidence"]["drift"]["scores"]["x"]
    assert x["value"] > 1
    assert (x["method"], x["threshold"], x["drifted"]) == ("Wasserstein distance (normed)", 0.1, True)
    assert output["signals"]["drift"]["detail"].startswith("x (Wasserstein distance (normed) ")
    assert "evidently" not in sys.modules or evidently_was_here

    for segment in (_log(tmp_path) / "predictions").iterdir():
        segment.unlink()
    assert _look(tmp_path, DRIFT)["signals"] == output["signals"]

    _asked(tmp_path, [float("inf")] * 400, rng.choice(["EWR", "JFK"], 400))
    (kept,) = (tmp_path / "cache" / "drift").iterdir()
    kept.write_text("{torn")
    again = _look(tmp_path, DRIFT)
    assert again["signals"]["drift"]["value"] == 0.5
    assert again["evidence"]["drift"]["drifted"] == ["x"]
    assert any("measured again" in problem for problem in again["problems"])


# ---------------------------------------------------------------- comparison
ASKED = {
    "challenger": 8, "champion": 7, "since": (NOW - timedelta(hours=5)).isoformat(), "margin": 0.02, "alpha": 0.05,
    "mode": "live",
}  # fmt: skip


def _scores(rng: np.random.Generator, labels: np.ndarray, quality: float) -> list[float]:
    """Probabilities that lean towards the truth by `quality`."""
    return np.clip(0.5 + quality * (labels - 0.5) + rng.normal(0, 0.1, len(labels)), 0, 1).tolist()


@pytest.mark.parametrize(("quality", "state"), [(0.2, "worse"), (0.6, "no_worse")])
def test_shadowed_rows_are_compared_pair_by_pair(tmp_path: Path, quality: float, state: str) -> None:
    """A challenger in shadow answers the same ids; with 500 pairs a clear difference is decided either way."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 500)
    minutes = np.linspace(250, 40, 500).tolist()
    _labelled(_log(tmp_path), minutes, labels.tolist(), _scores(rng, labels, 0.5))
    ids = [f"r{i}" for i in range(500)]
    write_predictions(
        _log(tmp_path), ids, minutes_before(NOW, minutes), _scores(rng, labels, quality), version=8, role="shadow"
    )
    comparison = _look(tmp_path, comparison={**ASKED, "mode": "shadow"})["comparison"]
    assert comparison["state"] == state, comparison["sentence"]
    assert comparison["challenger_rows"] == comparison["champion_rows"] == 500
    assert comparison["sentence"].startswith(f"{state.replace('_', ' ')}: Brier score of v8 ")


def test_weighted_traffic_is_compared_in_blocks_and_shadow_evidence_is_kept(tmp_path: Path) -> None:
    """At weight 10 % each challenger row is set against the champion's rows of the same time; earlier shadow pairs still count."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    minutes = np.linspace(250, 40, 300)
    mine = rng.random(300) < 0.1
    for version, rows in ((7, ~mine), (8, mine)):
        _labelled(
            _log(tmp_path), minutes[rows].tolist(), labels[rows].tolist(), _scores(rng, labels[rows], 0.5), version=version,
            prefix=f"v{version}-",
        )  # fmt: skip
    alone = _look(tmp_path, comparison=ASKED)["comparison"]
    assert alone["state"] == "undecided"
    assert alone["challenger_rows"] == mine.sum()
    assert alone["champion_rows"] == (~mine).sum()

    early = np.linspace(290, 255, 400).tolist()
    shadowed = rng.integers(0, 2, 400)
    _labelled(_log(tmp_path), early, shadowed.tolist(), _scores(rng, shadowed, 0.5), prefix="s")
    write_predictions(
        _log(tmp_path), [f"s{i}" for i in range(400)], minutes_before(NOW, early), _scores(rng, shadowed, 0.6),
        version=8, role="shadow",
    )  # fmt: skip
    both = _look(tmp_path, comparison=ASKED)["comparison"]
    assert both["state"] == "no_worse", both["sentence"]
    assert both["challenger_rows"] == mine.sum() + 400


def test_rows_outside_since_and_until_are_not_compared(tmp_path: Path) -> None:
    """Only predictions of the rollout count, and during a bake only those made before the promotion."""
    _labelled(_log(tmp_path), [400, 200, 100], [1, 1, 1], [0.5] * 3)
    _labelled(_log(tmp_path), [400, 200, 100], [1, 1, 1], [0.5] * 3, version=8, prefix="c")
    until = (NOW - timedelta(minutes=150)).isoformat()
    assert _look(tmp_path, comparison=ASKED)["comparison"]["challenger_rows"] == 2
    assert _look(tmp_path, comparison={**ASKED, "until": until})["comparison"]["challenger_rows"] == 1


def test_answers_that_are_not_finite_are_the_worst_answers(tmp_path: Path) -> None:
    """A challenger that answers NaN is found worse, not overlooked."""
    labels = [0, 1] * 60
    minutes = np.linspace(250, 40, 120).tolist()
    _labelled(_log(tmp_path), minutes, labels, [0.3, 0.7] * 60)
    ids = [f"r{i}" for i in range(120)]
    write_predictions(_log(tmp_path), ids, minutes_before(NOW, minutes), [float("nan")] * 120, version=8, role="shadow")
    comparison = _look(tmp_path, comparison=ASKED)["comparison"]
    assert comparison["state"] == "worse"
    assert comparison["challenger_score"] == 1.0


def test_comparison_without_labels_is_undecided(tmp_path: Path) -> None:
    """Nothing labelled yet: undecided, no scores, and the sentence says what is missing."""
    comparison = _look(tmp_path, comparison=ASKED)["comparison"]
    assert comparison["state"] == "undecided"
    assert comparison["challenger_score"] is None
    assert comparison["sentence"].startswith("undecided: no labelled outcomes of both yet")


def _regression(tmp_path: Path, reference_labels: list[float]) -> dict[str, Any]:
    folder = model_folder(tmp_path / "7", task="regression", classes=None, fake=False)
    pd.DataFrame({"late": reference_labels}).to_parquet(folder / "reference.parquet")
    rng = np.random.default_rng(0)
    y = rng.normal(100, 5, 400)
    minutes = np.linspace(250, 40, 400).tolist()
    _labelled(_log(tmp_path), minutes, y.tolist(), (y + rng.normal(0, 1, 400)).tolist())
    _labelled(_log(tmp_path), minutes, y.tolist(), (y + rng.normal(0, 9, 400)).tolist(), prefix="c", version=8)
    return _look(
        tmp_path, comparison=ASKED, policy=policy(task="regression", metric="mae", label_delay="1h")
    )["comparison"]  # fmt: skip


def test_regressions_are_compared_by_error_in_units_of_the_label_s_deviation(tmp_path: Path) -> None:
    """Errors are scaled by the standard deviation of the champion's reference labels, so that a margin means the same for every model."""
    comparison = _regression(tmp_path, np.random.default_rng(1).normal(100, 5, 500).tolist())
    assert comparison["state"] == "worse"
    assert 0 < comparison["champion_score"] < 0.25 < comparison["challenger_score"]
    assert "scaled absolute error" in comparison["sentence"]


def test_a_promotion_does_not_change_the_unit_of_errors(tmp_path: Path) -> None:
    """The challenger is champion now and learnt labels of ten times the spread: what was shown before the promotion is shown still."""
    before = _regression(tmp_path, np.random.default_rng(1).normal(100, 5, 500).tolist())
    wide = pd.DataFrame({"late": np.random.default_rng(1).normal(100, 50, 500)})
    wide.to_parquet(model_folder(tmp_path / "8", task="regression", classes=None, fake=False) / "reference.parquet")
    dirs = {str(number): str(tmp_path / str(number) / "model") for number in (7, 8)}
    baking = {**ASKED, "model_dirs": dirs, "promoted_at": (NOW - timedelta(minutes=5)).isoformat()}
    asked = policy(task="regression", metric="mae", label_delay="1h")
    promoted = {"number": 8, "model_dir": dirs["8"], "trained_to": None}
    after = _look(tmp_path, comparison=baking, policy=asked, champion=promoted)["comparison"]
    assert (after["champion_score"], after["challenger_score"]) == (
        before["champion_score"],
        before["challenger_score"],
    )


def test_regression_without_spread_is_undecided(tmp_path: Path) -> None:
    """Reference labels that do not vary give errors no unit: undecided, with the file's name."""
    comparison = _regression(tmp_path, [1.0] * 50)
    assert comparison["state"] == "undecided"
    assert "reference.parquet do not vary" in comparison["sentence"]


def test_multiclass_rows_are_compared_and_strange_class_counts_are_undecided(tmp_path: Path) -> None:
    """Probability vectors are compared by Brier score; a version with another number of classes cannot be."""
    model_folder(tmp_path / "7", task="multiclass", classes=["a", "b", "c"], fake=False)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, 200)
    labels = [["a", "b", "c"][i] for i in codes]
    minutes = np.linspace(250, 40, 200).tolist()
    sharp = (0.1 + 0.7 * np.eye(3)[codes]).tolist()
    _labelled(_log(tmp_path), minutes, labels, [[1 / 3] * 3] * 200)
    _labelled(_log(tmp_path), minutes, labels, sharp, prefix="c", version=8)
    spec = policy(task="multiclass", metric="accuracy", label_delay="1h")
    accuracy = {**AUC, "key": "acc", "metric": "accuracy"}
    output = _look(tmp_path, accuracy, comparison=ASKED, policy=spec)
    assert output["comparison"]["state"] == "no_worse", output["comparison"]["sentence"]
    assert output["signals"]["acc"]["value"] is not None
    _labelled(_log(tmp_path), [45.0], ["a"], [[0.5, 0.5]], prefix="two", version=8)
    sentence = _look(tmp_path, comparison=ASKED, policy=spec)["comparison"]["sentence"]
    assert sentence == "undecided: v8 was logged with 2 scores a row where 3 are expected"
    _labelled(_log(tmp_path), [75.0], ["a"], [[0.5, 0.5]], prefix="two-live")
    reason = _look(tmp_path, accuracy, policy=spec)["signals"]["acc"]["reason"]
    assert reason == "v7 was logged with 2 scores a row where 3 are expected"


def _of_other_classes(
    tmp_path: Path, labels: list[Any], mine: list[Any], other: list[Any], **folders: Any
) -> dict[str, Any]:
    """v7 knows a and b, v8 what `folders` say; both answered the same rows, of which all have their labels."""
    model_folder(tmp_path / "7", task="multiclass", classes=["a", "b"], fake=False)
    model_folder(tmp_path / "8", task="multiclass", fake=False, **folders)
    minutes = np.linspace(290, 70, len(labels)).tolist()
    _labelled(_log(tmp_path), minutes, labels, other, prefix="r")
    ids = [f"r{i}" for i in range(len(labels))]
    write_predictions(_log(tmp_path), ids, minutes_before(NOW, minutes), mine, version=8, role="shadow")
    dirs = {str(number): str(tmp_path / str(number) / "model") for number in (7, 8)}
    asked = policy(task="multiclass", metric="accuracy", label_delay="1h")
    comparison: dict[str, Any] = _look(tmp_path, policy=asked, comparison={**ASKED, "model_dirs": dirs})["comparison"]
    return comparison


def test_versions_that_know_other_classes_are_compared_over_all_of_them(tmp_path: Path) -> None:
    """A window may hold a class that is new, and one that is gone. A class that a version does not know has probability 0 from it, so that
    one who knows the new class is better on its rows; before, as many scores were taken to be of the same classes."""
    labels = ["b", "c"] * 200
    comparison = _of_other_classes(
        tmp_path, labels, [[0.9, 0.1], [0.1, 0.9]] * 200, [[0.1, 0.9], [0.1, 0.9]] * 200, classes=["b", "c"]
    )
    assert comparison["challenger_score"] == pytest.approx(0.01)
    assert comparison["champion_score"] == pytest.approx((0.01 + (0.01 + 0.81 + 1) / 2) / 2)
    assert comparison["state"] == "no_worse"


def test_a_version_that_knows_one_class_more_can_be_compared(tmp_path: Path) -> None:
    """Once such a challenger stayed undecided to its deadline."""
    comparison = _of_other_classes(
        tmp_path,
        ["a", "c"] * 200,
        [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]] * 200,
        [[1.0, 0.0]] * 400,
        classes=["a", "b", "c"],
    )
    assert (comparison["challenger_score"], comparison["champion_score"]) == (0.0, pytest.approx(0.5))
    assert comparison["state"] == "no_worse"


def test_rows_speak_for_a_challenger_once_matured_and_against_it_at_once(tmp_path: Path) -> None:
    """Quick labels are no fair sample: they can take a challenger back, but neither clear it nor enter the interval."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 500)
    for start, quality, state in ((250, 0.6, "no_worse"), (55, 0.6, "undecided"), (55, 0.2, "worse")):
        home = tmp_path / f"{start}-{quality}"
        minutes = np.linspace(start, start - 50, 500).tolist()
        for version, lean in ((7, 0.5), (8, quality)):
            write_predictions(
                _log(home), [f"r{i}" for i in range(500)], minutes_before(NOW, minutes), _scores(rng, labels, lean),
                version=version, role="live" if version == 7 else "shadow",
            )  # fmt: skip
        write_labels(
            _log(home), [f"r{i}" for i in range(500)], minutes_before(NOW, [m - 1 for m in minutes]), labels.tolist()
        )
        comparison = _look(home, comparison=ASKED)["comparison"]
        assert comparison["state"] == state, comparison["sentence"]
        assert (comparison["difference"] is None) == (start == 55)


def test_after_a_promotion_the_holdback_tells_the_realised_difference(tmp_path: Path) -> None:
    """Only what both were asked since the promotion enters it; what the rollout showed before does not."""
    rng = np.random.default_rng(0)
    for prefix, first, last, quality in (("roll", 290, 200, 0.5), ("bake", 190, 70, 0.8)):
        labels = rng.integers(0, 2, 600)
        minutes = np.linspace(first, last, 600)
        mine = rng.random(600) < (0.1 if prefix == "roll" else 0.95)
        for version, rows, lean in ((7, ~mine, 0.5), (8, mine, quality)):
            _labelled(
                _log(tmp_path), minutes[rows].tolist(), labels[rows].tolist(), _scores(rng, labels[rows], lean), version=version,
                prefix=f"{prefix}{version}-",
            )  # fmt: skip
    promoted = (NOW - timedelta(minutes=195)).isoformat()
    assert _look(tmp_path, comparison=ASKED)["comparison"]["realised"] is None
    comparison = _look(tmp_path, comparison={**ASKED, "promoted_at": promoted})["comparison"]
    assert comparison["realised"]["outcomes"] < comparison["difference"]["outcomes"]
    assert comparison["realised"]["value"] < comparison["difference"]["value"] < 0
    assert comparison["realised"]["low"] < comparison["realised"]["value"] < comparison["realised"]["high"]
