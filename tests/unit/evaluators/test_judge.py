"""The judging job with real processes: what a challenger must survive before it may be compared, and what the job hands back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from model_folders import context, hold_out, model_folder, policy

from evaluators.answers import Answers, AnswersError, ModelFolder, align
from evaluators.judge import judge, run
from evaluators.refit import compare_refit
from evaluators.scored import Scored, Verdict
from pipelines.jobs.port import PermanentJobError, RetryableJobError
from policies.metrics import Task

NO_WORSE = {"metric": "roc_auc", "no_worse_than_champion": 0.01}


def _judge(tmp_path: Path, challenger: Path, *gates: dict[str, Any], **changes: Any) -> dict[str, Any]:
    inputs = {
        "policy": changes.pop("policy", None) or policy(*gates),
        "home": str(tmp_path),
        "prepared": changes.pop("prepared", None) or hold_out(tmp_path / "holdout.parquet"),
        "model_dir": str(challenger),
        "champion": None,
        "seed": 1,
        **changes,
    }
    result = run(inputs, context(tmp_path))
    json.dumps(result, allow_nan=False)
    return result


def test_better_challenger_passes_and_both_are_scored(tmp_path: Path) -> None:
    """Champion and challenger answer the same rows; all gates pass; scores of both, latency and size are handed back."""
    champion = model_folder(tmp_path / "7", columns=["bad"])
    result = _judge(
        tmp_path, model_folder(tmp_path / "8", columns=["good"]), NO_WORSE, {"latency_ms_p95_max": 20}, {"size_mb_max": 1},
        {"slices": {"by": ["origin"], "metric": "roc_auc", "no_worse_than_champion": 0.03}},
        champion={"number": 7, "model_dir": str(champion)},
    )  # fmt: skip
    assert result["verdict"] == "pass", result["sentence"]
    assert [g["verdict"] for g in result["gates"]] == ["pass"] * 5
    assert result["scores"]["roc_auc"] > result["champion_scores"]["roc_auc"]
    assert result["rows"] == 1_500
    assert result["latency_ms_p95"] == 2.0
    assert 0 < result["size_mb"] < 0.01
    assert result["sentence"].startswith("passed all 4 gates; roc_auc: challenger .8")


def test_worse_challenger_fails_with_the_failing_gate_in_the_sentence(tmp_path: Path) -> None:
    """The sentence is that of the gate that said no."""
    champion = model_folder(tmp_path / "7", columns=["good"])
    result = _judge(
        tmp_path, model_folder(tmp_path / "8", columns=["bad"]), NO_WORSE, {"size_mb_max": 1},
        champion={"number": 7, "model_dir": str(champion)},
    )  # fmt: skip
    assert result["verdict"] == "fail"
    assert result["sentence"].startswith("fail: roc_auc: challenger .")
    assert "size" not in result["sentence"]


def test_first_version_passes_without_champion(tmp_path: Path) -> None:
    """With no champion there are no champion scores, and comparisons pass."""
    result = _judge(tmp_path, model_folder(tmp_path / "1", columns=["good"]), NO_WORSE)
    assert result["verdict"] == "pass"
    assert result["champion_scores"] is None
    assert "no champion yet" in result["sentence"]


@pytest.mark.parametrize(
    ("misbehaves", "verdict", "words"),
    [
        ("exit", "error", "ended with exit code 1: ModuleNotFoundError: no module named 'lightning'"),
        ("hang", "error", "no answers within 3 s: waiting for a GPU"),
        ("refuse", "fail", "serving refused it: estimator.skops: is not a whole skops file"),
        ("nan", "fail", "1 of 1,500 rows were answered with NaN or infinity"),
        ("short", "fail", "scores must have shape (1500,) but have (1499,)"),
        ("silent", "fail", "wrote no readable scores"),
    ],
)
def test_challenger_that_does_not_work(tmp_path: Path, misbehaves: str, verdict: str, words: str) -> None:
    """A process that dies or hangs is an error; a model that cannot be loaded or answers nonsense has failed. Never an exception."""
    timeout_s = 3 if misbehaves == "hang" else 120
    result = _judge(tmp_path, model_folder(tmp_path / "8", columns=["good"], **{misbehaves: True}), timeout_s=timeout_s)
    assert result["verdict"] == verdict
    assert words in result["sentence"]
    assert result["scores"] == {}


def test_champion_that_does_not_work_is_an_error_only_for_comparisons(tmp_path: Path) -> None:
    """Without the champion's answers a comparison is an error, never a pass; the challenger's own limits are still judged."""
    champion = model_folder(tmp_path / "7", columns=["good"], exit=True)
    result = _judge(
        tmp_path, model_folder(tmp_path / "8", columns=["good"]), {"metric": "roc_auc", "at_least": 0.5}, NO_WORSE,
        champion={"number": 7, "model_dir": str(champion)},
    )  # fmt: skip
    assert [g["verdict"] for g in result["gates"]] == ["pass", "pass", "error"]
    assert "champion v7 could not answer the hold-out rows: the scoring process ended" in result["sentence"]


def test_champion_that_knows_other_classes_iscompare_refitd_on_the_common_ones(tmp_path: Path) -> None:
    """A class that only the challenger knows counts as probability 0 from the champion; column orders are matched by class."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 3, 900)
    frame = pd.DataFrame({"late": np.array(["a", "b", "c"])[kinds], "origin": "x"})
    for i, kind in enumerate("abc"):
        frame[kind] = np.where(kinds == i, 0.8, 0.1)
    frame.to_parquet(tmp_path / "rows.parquet")
    champion = model_folder(tmp_path / "7", task="multiclass", classes=["b", "a"], columns=["b", "a"])
    result = run(
        {
            "policy": policy(
                {"metric": "accuracy", "no_worse_than_champion": 0.0}, task="multiclass", metric="accuracy"
            ),
            "home": str(tmp_path),
            "prepared": {"holdout": str(tmp_path / "rows.parquet"), "classes": ["a", "b", "c"]},
            "model_dir": str(
                model_folder(tmp_path / "8", task="multiclass", classes=["a", "b", "c"], columns=["a", "b", "c"])
            ),
            "champion": {"number": 7, "model_dir": str(champion)},
            "seed": 0,
        },
        context(tmp_path),
    )
    assert result["verdict"] == "pass", result["sentence"]
    assert result["scores"]["accuracy"] == 1.0
    assert result["champion_scores"]["accuracy"] == pytest.approx(np.mean(kinds < 2), abs=1e-9)


def test_regression_is_judged(tmp_path: Path) -> None:
    """Regressions have no classes, and their errors are compared."""
    rng = np.random.default_rng(0)
    y = rng.normal(100, 5, 600)
    frame = pd.DataFrame({"late": y, "close": y + rng.normal(0, 1, 600), "far": y + rng.normal(0, 3, 600)})
    frame.to_parquet(tmp_path / "rows.parquet")
    result = run(
        {
            "policy": policy(
                {"metric": "rmse", "no_worse_than_champion": 0.1}, {"metric": "mae", "at_most": 1.0},
                task="regression", metric="rmse",
            ),
            "home": str(tmp_path),
            "prepared": {"holdout": str(tmp_path / "rows.parquet"), "classes": None},
            "model_dir": str(model_folder(tmp_path / "8", task="regression", classes=None, columns=["close"])),
            "champion": {
                "number": 7,
                "model_dir": str(model_folder(tmp_path / "7", task="regression", classes=None, columns=["far"])),
            },
            "seed": 0,
        },
        context(tmp_path),
    )  # fmt: skip
    assert result["verdict"] == "pass", result["sentence"]
    assert set(result["scores"]) == {"mae", "rmse", "r2"}


@pytest.mark.parametrize("labels", [[], [None, None, None], ["maybe", "maybe", None]])
def test_rows_without_usable_labels_are_inconclusive(tmp_path: Path, labels: list[Any]) -> None:
    """No rows, all-null labels, or labels of no class: nothing is run and nothing is said."""
    path = tmp_path / "rows.parquet"
    pd.DataFrame({"late": pd.Series(labels, dtype=object), "good": [0.5] * len(labels)}).to_parquet(path)
    result = _judge(
        tmp_path, model_folder(tmp_path / "8", columns=["good"]), NO_WORSE,
        prepared={"holdout": str(path), "classes": [0, 1]},
    )  # fmt: skip
    assert result["verdict"] == "inconclusive"
    assert "matured label" in result["sentence"]


def test_bad_hold_out_files_are_named(tmp_path: Path) -> None:
    """A missing file may come back and is retryable; a torn one or one without the label column is permanent."""
    challenger = model_folder(tmp_path / "8", columns=["good"])
    with pytest.raises(RetryableJobError, match=r"gone\.parquet are gone"):
        _judge(tmp_path, challenger, prepared={"holdout": str(tmp_path / "gone.parquet"), "classes": [0, 1]})
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(b"PAR1 torn")
    with pytest.raises(PermanentJobError, match=r"torn\.parquet cannot be read"):
        _judge(tmp_path, challenger, prepared={"holdout": str(torn), "classes": [0, 1]})
    pd.DataFrame({"x": [1.0]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(PermanentJobError, match=r"data\.label: no column 'late'"):
        _judge(tmp_path, challenger, prepared={"holdout": str(tmp_path / "other.parquet"), "classes": [0, 1]})


def test_challenger_without_model_json_fails(tmp_path: Path) -> None:
    """A folder that is no model fails its first gate."""
    (tmp_path / "empty").mkdir()
    result = _judge(tmp_path, tmp_path / "empty")
    assert result["verdict"] == "fail"
    assert "model.json does not describe a model" in result["sentence"]


def test_binary_models_of_different_classes_cannot_be_aligned(tmp_path: Path) -> None:
    """Yes/no answers to another question are not comparable."""
    with pytest.raises(AnswersError, match="tells"):
        align(np.array([0.5]), ["cat", "dog"], [0, 1])


def test_format_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    """A model folder of an unknown format is not guessed at."""
    folder = model_folder(tmp_path / "8")
    (folder / "model.json").write_text('{"format": 2}')
    with pytest.raises(AnswersError, match="format must be 1 but is 2"):
        ModelFolder.read(folder)


@pytest.mark.slow
def test_real_serving_code_scores_a_real_estimator(tmp_path: Path) -> None:
    """A scikit-learn pipeline saved by skops is scored by the project's own `serving.predict`, timed and compared with a worse one."""
    prepared = hold_out(tmp_path / "holdout.parquet")
    for number, with_signal in (("7", False), ("8", True)):
        _real_model(tmp_path / number, pd.read_parquet(prepared["holdout"]), with_signal=with_signal)
    result = _judge(
        tmp_path, tmp_path / "8" / "model", NO_WORSE, {"latency_ms_p95_max": 1_000}, prepared=prepared,
        champion={"number": 7, "model_dir": str(tmp_path / "7" / "model")},
    )  # fmt: skip
    assert result["verdict"] == "pass", result["sentence"]
    assert result["scores"]["roc_auc"] > result["champion_scores"]["roc_auc"]
    assert result["latency_ms_p95"] > 0


def _real_model(root: Path, rows: pd.DataFrame, *, with_signal: bool) -> None:
    """A logistic regression that looks at the origin, and at the signal `x` or not."""
    import skops.io
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    features = rows[["x", "origin"]].assign(origin=rows["origin"].astype(object))
    columns = [("c", OneHotEncoder(), ["origin"])] + ([("n", StandardScaler(), ["x"])] if with_signal else [])
    estimator = Pipeline([("columns", ColumnTransformer(columns)), ("model", LogisticRegression())])
    folder = model_folder(root, fake=False)
    skops.io.dump(estimator.fit(features, rows["late"]), folder / "estimator.skops")


def test_answers_may_come_another_way(tmp_path: Path) -> None:
    """A replay asks models in its own process: the judge then starts none, and the verdict is that of the answers it was given."""
    rows = pd.read_parquet(hold_out(tmp_path / "holdout.parquet")["holdout"])

    def ask(model: ModelFolder, rows_path: Path, **_: Any) -> Answers:
        column = "good" if model.path.parent.name == "8" else "bad"
        return Answers(scores=rows[column].to_numpy(), latency_ms=np.zeros(0))

    result = judge(
        {
            "policy": policy(NO_WORSE), "home": str(tmp_path), "seed": 1,
            "prepared": {"holdout": str(tmp_path / "holdout.parquet"), "classes": [0, 1]},
            "model_dir": str(model_folder(tmp_path / "8", columns=["good"], exit=True)),
            "champion": {"number": 7, "model_dir": str(model_folder(tmp_path / "7", columns=["good"], exit=True))},
        },
        context(tmp_path), ask=ask,
    )  # fmt: skip
    assert result["verdict"] == "pass", result["sentence"]
    assert result["scores"]["roc_auc"] > result["champion_scores"]["roc_auc"]


# ---------------------------------------------------------------- what was used, and what needs no model
def _rows_of_time(tmp_path: Path, *, first: str, rows: int = 600, seed: int = 0) -> dict[str, Any]:
    """Hourly hold-out rows from `first` on, of labels that stay what they were nine times in ten, after as many training rows."""
    rng = np.random.default_rng(seed)
    late = np.cumsum(rng.random(2 * rows) > 0.9) % 2
    frame = pd.DataFrame({"at": pd.date_range(end=pd.Timestamp(first, tz="UTC"), periods=rows, freq="h")})
    frame = pd.concat([frame, frame + pd.Timedelta(hours=rows)], ignore_index=True)
    frame["late"] = late
    for name, right in (("good", 0.8), ("bad", 0.7)):
        frame[name] = np.where(rng.random(2 * rows) < right, late, 1 - late) * 0.98 + 0.01
    paths = {"train": tmp_path / "train.parquet", "holdout": tmp_path / f"holdout-{first}.parquet"}
    frame[:rows].to_parquet(paths["train"])
    frame[rows:].to_parquet(paths["holdout"])
    told = {"rows_table": 2 * rows, "classes": [0, 1]}
    return {**{k: str(v) for k, v in paths.items()}, **told}


def _judge_times(tmp_path: Path, prepared: dict[str, Any], *gates: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """In this process: the challenger is column `good`, the champion `bad`."""

    def ask(model: ModelFolder, rows_path: Path, **_: Any) -> Answers:
        column = "good" if model.path.parent.name == "8" else "bad"
        return Answers(scores=pd.read_parquet(rows_path)[column].to_numpy(), latency_ms=np.zeros(0))

    folders = {n: tmp_path / n / "model" if (tmp_path / n).exists() else model_folder(tmp_path / n) for n in ("7", "8")}
    result = judge(
        {
            "policy": policy(*gates, metric="accuracy"), "home": str(tmp_path), "seed": 1, "prepared": prepared,
            "model_dir": str(folders["8"]), "champion": {"number": 7, "model_dir": str(folders["7"])}, **changes,
        },
        context(tmp_path), ask=ask,
    )  # fmt: skip
    json.dumps(result, allow_nan=False)
    return result


NOT_WORSE = {"metric": "accuracy", "no_worse_than_champion": 0.0}


def test_what_a_verdict_used_is_handed_back_and_paid_for_by_the_next(tmp_path: Path) -> None:
    """The record of a verdict names the span of its rows; a later verdict on 60 % of them is taken at a higher confidence and says so."""
    first = _judge_times(tmp_path, _rows_of_time(tmp_path, first="2026-01-26"), NOT_WORSE)
    assert first["used"]["rows"] == 600
    assert first["used"]["left"] == pytest.approx(0.2)
    again = _judge_times(tmp_path, _rows_of_time(tmp_path, first="2026-02-05"), NOT_WORSE, earlier=[first["used"]])
    assert "with 97.6 % confidence because 1 earlier cycle used 60 % of these rows" in again["sentence"]
    assert again["used"]["oldest"] > first["used"]["oldest"]


def test_a_verdict_without_a_comparison_uses_nothing(tmp_path: Path) -> None:
    """Limits are no paired tests: they have no error rate to spend, so nothing is put on the rows' account."""
    prepared = _rows_of_time(tmp_path, first="2026-01-26")
    assert _judge_times(tmp_path, prepared, {"metric": "accuracy", "at_least": 0.5})["used"] is None
    assert _judge_times(tmp_path, prepared, NOT_WORSE, champion=None)["used"] is None


def test_baselines_are_scored_beside_every_verdict_and_said_when_they_win(tmp_path: Path) -> None:
    """Repeating the last label is right nine times in ten here, more often than the challenger: the verdict says so, and a gate can ask."""
    prepared = _rows_of_time(tmp_path, first="2026-01-26")
    result = _judge_times(tmp_path, prepared, NOT_WORSE)
    assert result["verdict"] == "pass"
    assert set(result["baselines"]) == {"last_label", "majority", "seasonal_naive"}
    assert result["baselines"]["last_label"]["score"] == pytest.approx(0.9, abs=0.04)
    assert "; note: 'same as last label' scores .8" in result["sentence"] or "scores .9" in result["sentence"]
    asked = _judge_times(tmp_path, prepared, NOT_WORSE, {"baseline": "best", "metric": "accuracy"})
    assert asked["verdict"] == "fail"
    assert "against 'same as last label'" in asked["sentence"]


# ---------------------------------------------------------------- the refit that is to serve
def test_a_refit_that_holds_is_one_more_gate(tmp_path: Path) -> None:
    """It answers the same rows, and the verdict says how. The scores, and what was used of the rows, are those of the model judged."""
    champion = model_folder(tmp_path / "7", columns=["bad"])
    judged = model_folder(tmp_path / "8", columns=["good"])
    given = {"champion": {"number": 7, "model_dir": str(champion)}}
    plain = _judge(tmp_path, judged, NO_WORSE, **given)
    refit = model_folder(tmp_path / "8r", columns=["good"])
    result = _judge(tmp_path, judged, NO_WORSE, refit_dir=str(refit), **given)
    assert result["verdict"] == "pass"
    assert [gate["gate"] for gate in result["gates"]][-1] == "refit holds"
    assert result["gates"][:-1] == plain["gates"]
    assert result["sentence"].startswith("passed all 1 gate; roc_auc: challenger .8")
    score = f"{plain['scores']['roc_auc']:.3f}".removeprefix("0")
    assert result["sentence"].endswith(
        f"; refit: roc_auc {score} against {score} of the model that was judged, on 1,500 rows that it knows"
    )
    for key in ("scores", "champion_scores", "used", "rows", "baselines"):
        assert result[key] == plain[key]
    assert [gate["gate"] for gate in plain["gates"]] == ["loads and predicts", plain["gates"][1]["gate"]]


def test_a_refit_that_is_shown_worse_fails(tmp_path: Path) -> None:
    """On rows that it has been fitted on it should look better, so something is wrong with it."""
    judged, refit = model_folder(tmp_path / "8", columns=["good"]), model_folder(tmp_path / "8r", columns=["bad"])
    result = _judge(tmp_path, judged, refit_dir=str(refit))
    assert result["verdict"] == "fail"
    assert result["sentence"].startswith("fail: refit: roc_auc .6")
    assert "better by at most -." in result["sentence"]
    assert result["estimator"] is None
    turned = _judge(tmp_path / "turned", model_folder(tmp_path / "9", columns=["bad"]), refit_dir=str(judged),
                    prepared=hold_out(tmp_path / "holdout.parquet"))  # fmt: skip
    assert turned["verdict"] == "pass"


@pytest.mark.parametrize(
    ("misbehaves", "verdict", "words"),
    [
        ({"exit": True}, "error", "error: refit: it does not work: the scoring process ended with exit code 1"),
        ({"nan": True}, "fail", "fail: refit: it does not work: 1 of 1,500 rows were answered with NaN or infinity"),
        (
            {"classes": (1, 2)},
            "fail",
            "fail: refit: it does not work: it tells [1, 2] apart, but the labels are [0, 1]",
        ),
        (None, "fail", "fail: refit: it does not work: "),
    ],
)
def test_a_refit_that_does_not_work(
    tmp_path: Path, misbehaves: dict[str, Any] | None, verdict: str, words: str
) -> None:
    """As with the challenger itself: a process that dies is an error, a model at fault, or none at all, a failure."""
    if misbehaves is not None:
        model_folder(tmp_path / "8r", columns=["good"], **misbehaves)
    judged = model_folder(tmp_path / "8", columns=["good"])
    result = _judge(tmp_path, judged, refit_dir=str(tmp_path / "8r" / "model"))
    assert (result["verdict"], result["sentence"][: len(words)]) == (verdict, words)
    assert result["scores"]["roc_auc"] > 0.8
    assert [gate["verdict"] for gate in result["gates"]] == ["pass", verdict]


def test_a_refit_is_not_asked_where_a_gate_said_no(tmp_path: Path) -> None:
    """There is nothing to serve then."""
    result = _judge(
        tmp_path, model_folder(tmp_path / "8", columns=["bad"]), {"metric": "roc_auc", "at_least": 0.9},
        refit_dir=str(model_folder(tmp_path / "8r", columns=["good"], exit=True)),
    )  # fmt: skip
    assert result["verdict"] == "fail"
    assert len(result["gates"]) == 2


def test_rows_that_leave_the_objective_undefinedcompare_refit_no_refit(tmp_path: Path) -> None:
    """Of one class only, no ROC can be drawn, of either model: it works, and no more is known; of the refit alone: inconclusive."""
    prepared = hold_out(tmp_path / "holdout.parquet")
    rows = pd.read_parquet(prepared["holdout"])
    rows.assign(late=0).to_parquet(prepared["holdout"])
    judged, refit = model_folder(tmp_path / "8", columns=["good"]), model_folder(tmp_path / "8r", columns=["bad"])
    result = _judge(tmp_path, judged, refit_dir=str(refit), prepared=prepared)
    assert result["verdict"] == "pass"
    assert result["sentence"].endswith("; refit: answered 1,500 rows, which cannot tell how it compares by roc_auc")
    rows.assign(never=0.1).to_parquet(prepared["holdout"])
    silent = model_folder(tmp_path / "9r", columns=["never"])
    result = _judge(tmp_path, judged, refit_dir=str(silent), prepared=prepared, policy=policy(metric="precision"))
    assert result["verdict"] == "inconclusive"
    assert "precision is not defined for the refit: no row is predicted positive" in result["sentence"]


def test_the_estimator_rests_on_answers_to_rows_that_were_not_seen(tmp_path: Path) -> None:
    """The refit knows the hold-out rows and is too sure of them; what it will score by is fitted on the answers of the model judged. If
    the two tell other classes apart, there is none."""
    judged, refit = model_folder(tmp_path / "8", columns=["good"]), model_folder(tmp_path / "8r", columns=["sure"])
    prepared = hold_out(tmp_path / "holdout.parquet")
    rows = pd.read_parquet(prepared["holdout"])
    rows.assign(sure=np.where(rows["late"] == 1, 0.99, 0.01)).to_parquet(prepared["holdout"])
    made = {}
    for name, folder in (("plain", None), ("refit", str(refit))):
        result = _judge(tmp_path, judged, refit_dir=folder, prepared=prepared)
        assert result["verdict"] == "pass"
        made[name] = Path(result["estimator"]).read_bytes()
    assert made["plain"] == made["refit"]
    turned = model_folder(tmp_path / "9r", columns=["bad"], classes=(1, 0))
    rows.assign(bad=1 - rows["good"]).to_parquet(prepared["holdout"])
    result = _judge(tmp_path, judged, refit_dir=str(turned), prepared=prepared)
    assert (result["verdict"], result["estimator"]) == ("pass", None)
    assert "classes" in result["estimator_said"]


def test_a_sound_refit_is_refused_in_at_most_one_of_twenty() -> None:
    """Even one that has learnt nothing from the rows: 1,000 pairs of models that are equally good fail at most at 5 %, give or take three
    standard errors; one that errs on 5 points more of 2,000 rows is found in most."""
    rng = np.random.default_rng(0)
    labels = np.zeros(2000)

    def fails(extra: float) -> bool:
        right = rng.random((2, 2000)) < np.array([[0.8], [0.8 - extra]])
        judged, refit = (np.where(each, 0.2, 0.8) for each in right)
        scored = Scored(task=Task.BINARY, labels=labels, classes=2, threshold=0.5, challenger=refit, champion=judged)
        return compare_refit("accuracy", scored, 0).verdict is Verdict.FAIL

    assert 0.01 < np.mean([fails(0.0) for _ in range(1000)]) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)
    assert np.mean([fails(0.05) for _ in range(200)]) > 0.9
