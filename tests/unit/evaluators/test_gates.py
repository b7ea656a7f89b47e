"""Gates on made-up scores: which verdict, with which numbers, and what is said of it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from evaluators.gates import Challenge, GateResult, Scored, Verdict, all_scores, judge_gate, worst
from policies.metrics import METRICS, Task
from policies.schema import Gate

GATE: TypeAdapter[Any] = TypeAdapter(Gate)
NO_WORSE = {"metric": "roc_auc", "no_worse_than_champion": 0.01}


def _scored(
    rows: int = 2_000, *, seed: int = 0, champion_noise: float | None = 1.0, noise: float = 1.0, groups: int = 2
) -> Scored:
    """Binary rows; a model is the better, the less noise it sees the signal through. No champion: noise None."""
    rng = np.random.default_rng(seed)
    y = (rng.random(rows) < 0.4).astype(float)

    def model(blur: float) -> np.ndarray:
        return 1 / (1 + np.exp(-(2 * y - 1 + rng.normal(0, blur, rows))))

    return Scored(
        task=Task.BINARY,
        labels=y,
        classes=2,
        threshold=0.5,
        challenger=model(noise),
        champion=None if champion_noise is None else model(champion_noise),
        columns={"origin": np.array([f"g{i % groups}" for i in range(rows)], dtype=object)},
    )


def _judge(gate: dict[str, Any], scored: Scored, **changes: Any) -> GateResult:
    values = {"scored": scored, "size_mb": 1.5, "latency_ms": np.linspace(1, 5, 100), **changes}
    result = judge_gate(GATE.validate_python(gate), Challenge(**values))
    json.dumps(result.as_json(), allow_nan=False)
    return result


def _with(scored: Scored, **changes: Any) -> Scored:
    names = ("task", "labels", "classes", "threshold", "challenger", "champion", "columns")
    return Scored(**{**{name: getattr(scored, name) for name in names}, **changes})


@pytest.mark.parametrize(
    ("gate", "verdict"),
    [
        ({"metric": "roc_auc", "at_least": 0.8}, "pass"),
        ({"metric": "roc_auc", "at_least": 0.99}, "fail"),
        ({"metric": "log_loss", "at_most": 0.69}, "pass"),
        ({"metric": "log_loss", "at_most": 0.01}, "fail"),
        ({"metric": "roc_auc", "at_least": 0.8, "min_rows": 2_001}, "inconclusive"),
        ({"latency_ms_p95_max": 4.9}, "pass"),
        ({"latency_ms_p95_max": 4.7}, "fail"),
        ({"size_mb_max": 1.5}, "pass"),
        ({"size_mb_max": 1.4}, "fail"),
    ],
)
def test_limits(gate: dict[str, Any], verdict: str) -> None:
    """A limit is met, missed, or cannot be judged on so few rows."""
    result = _judge(gate, _scored())
    assert result.verdict == verdict
    assert result.sentence


@pytest.mark.parametrize(("noise", "verdict"), [(0.6, "pass"), (1.0, "inconclusive"), (1.5, "fail")])
@pytest.mark.parametrize("metric", ["roc_auc", "accuracy", "log_loss", "f1"])
def test_comparison_has_three_outcomes(metric: str, noise: float, verdict: str) -> None:
    """A clearly better challenger passes, a clearly worse one fails, an equal one is undecided at margin 0, for every kind of metric."""
    gate = {"metric": metric, "no_worse_than_champion": 0.0}
    assert _judge(gate, _scored(noise=noise, seed=3)).verdict == verdict


def test_margin_lets_an_equal_challenger_pass() -> None:
    """With a margin that the rows can resolve, equal is good enough."""
    assert _judge({**NO_WORSE, "no_worse_than_champion": 0.05}, _scored()).verdict is Verdict.PASS


def test_sentence_of_a_comparison_tells_both_scores_rows_bounds_and_verdict() -> None:
    """The sentence holds every number that decided."""
    result = _judge(NO_WORSE, _scored(noise=0.6))
    n = result.numbers
    assert result.sentence == (
        f"roc_auc: challenger {n['challenger']:.3f} against champion {n['champion']:.3f} on 2,000 matured rows; gain "
        f"{n['difference']:.3f}, 95 % bounds {n['lower']:.3f} to {n['upper']:.3f}, margin 0.010; passed"
    )


def test_undecided_comparison_says_how_many_rows_would_do() -> None:
    """An owner learns whether waiting or a wider margin would help."""
    assert "rows would settle a difference of this size" in _judge(NO_WORSE, _scored(rows=300, seed=1)).sentence


def test_accuracy_reports_mcnemar() -> None:
    """The accuracy gate says how many rows changed sides, and McNemar's exact p-value."""
    numbers = _judge({"metric": "accuracy", "no_worse_than_champion": 0.0}, _scored(noise=0.6)).numbers
    assert numbers["gained"] - numbers["lost"] == round(numbers["difference"] * 2_000)
    assert 0 <= numbers["mcnemar_p"] <= 1
    assert numbers["method"] == "Tango's interval (McNemar)"


@pytest.mark.parametrize("gate", [NO_WORSE, {"slices": {"by": ["origin"], **NO_WORSE}}])
def test_without_a_champion_comparisons_pass(gate: dict[str, Any]) -> None:
    """The first version has nothing to be compared with."""
    result = _judge(gate, _scored(champion_noise=None))
    assert result.verdict is Verdict.PASS
    assert "no champion yet" in result.sentence


@pytest.mark.parametrize("gate", [NO_WORSE, {"slices": {"by": ["origin"], **NO_WORSE}}])
def test_a_champion_that_cannot_answer_is_an_error(gate: dict[str, Any]) -> None:
    """A champion exists but gave no scores: that is never read as `no champion yet`."""
    result = _judge(gate, _scored(champion_noise=None), champion_problem="champion v7 could not answer")
    assert result.verdict is Verdict.ERROR
    assert result.sentence == "champion v7 could not answer"


@pytest.mark.parametrize("gate", [NO_WORSE, {"metric": "roc_auc", "at_least": 0.5}])
def test_one_class_only_is_inconclusive(gate: dict[str, Any]) -> None:
    """Rows of one class tell nothing of a ranking, and the sentence says so."""
    result = _judge(gate, _with(_scored(), labels=np.zeros(2_000)))
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "one class only" in result.sentence


def test_nothing_predicted_positive_is_inconclusive_for_precision() -> None:
    """A champion that never says yes has no precision, so that the challenger cannot be compared with it."""
    scored = _with(_scored(), champion=np.full(2_000, 0.1))
    result = _judge({"metric": "precision", "no_worse_than_champion": 0.1}, scored)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "no row is predicted positive at threshold 0.5" in result.sentence


def test_too_few_rows_are_inconclusive_before_anything_is_computed() -> None:
    """Below min_rows nothing is said of either model."""
    result = _judge({**NO_WORSE, "min_rows": 500}, _scored(rows=499))
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "only 499 matured rows where 500 are needed" in result.sentence


@given(st.integers(0, 8))
@settings(max_examples=9, deadline=None)
def test_tiny_tables_never_raise(rows: int) -> None:
    """However few the rows, every gate that looks at them is inconclusive or decided, never an exception."""
    scored = _scored(rows=rows)
    for metric in ("roc_auc", "accuracy", "brier", "recall"):
        for gate in (
            {"metric": metric, "no_worse_than_champion": 0.0, "min_rows": 1},
            {"slices": {"by": ["origin"], "metric": metric, "no_worse_than_champion": 0.0, "min_rows": 1}},
        ):
            assert _judge(gate, scored).verdict is not Verdict.ERROR


# ---------------------------------------------------------------- slices
SLICES = {"slices": {"by": ["origin"], "metric": "roc_auc", "no_worse_than_champion": 0.05}}


def test_slices_pass_when_every_slice_is_shown_no_worse() -> None:
    """Two large slices of an equal challenger pass at a margin of .05."""
    result = _judge(SLICES, _scored(rows=6_000))
    assert result.verdict is Verdict.PASS
    assert [(s["by"], s["value"], s["rows"]) for s in result.numbers["slices"]] == [
        ("origin", "g0", 3_000), ("origin", "g1", 3_000),
    ]  # fmt: skip


def test_one_bad_slice_fails_the_gate_and_is_named() -> None:
    """A challenger that is good over all but broken for one value fails, and the sentence names the value."""
    scored = _scored(rows=3_000, noise=0.6, groups=3)
    challenger = scored.challenger.copy()
    hit = scored.columns["origin"] == "g1"
    challenger[hit] = np.random.default_rng(1).random(hit.sum())
    result = _judge(SLICES, _with(scored, challenger=challenger))
    assert result.verdict is Verdict.FAIL
    assert "shown worse for origin=g1; lowest origin=g1" in result.sentence
    assert [s["verdict"] for s in result.numbers["slices"]] == ["pass", "fail", "pass"]


def test_many_slices_of_an_equal_challenger_rarely_fail() -> None:
    """With 8 slices, 60 equal challengers and margin 0, Holm keeps false failures near 5 % where uncorrected they were a third."""
    gate = {"slices": {"by": ["origin"], "metric": "accuracy", "no_worse_than_champion": 0.0}}
    results = [_judge(gate, _scored(rows=1_600, seed=seed, groups=8)) for seed in range(60)]
    assert sum(r.verdict is Verdict.FAIL for r in results) <= 7
    assert sum(any(s["p_worse"] <= 0.05 for s in r.numbers["slices"]) for r in results) > 10


def test_small_and_missing_values_are_counted_not_judged() -> None:
    """Values with too few rows are left out and counted; None and NaN are one value of their own."""
    scored = _scored(rows=900)
    column = np.array(["a"] * 500 + [None] * 150 + [float("nan")] * 150 + ["rare"] * 100, dtype=object)
    gate = {"slices": {**SLICES["slices"], "min_rows": 200, "no_worse_than_champion": 0.2}}
    result = _judge(gate, _with(scored, columns={"origin": column}))
    assert [(s["value"], s["rows"]) for s in result.numbers["slices"]] == [("(missing)", 300), ("a", 500)]
    assert "1 value with too little data not judged" in result.sentence


def test_no_slice_large_enough_is_inconclusive() -> None:
    """A gate that could look at nothing has not been passed."""
    gate = {"slices": {**SLICES["slices"], "min_rows": 5_000}}
    assert _judge(gate, _scored()).verdict is Verdict.INCONCLUSIVE


def test_slicing_by_an_unknown_column_is_an_error_that_names_it() -> None:
    """A column that the rows do not have is the policy's mistake."""
    result = _judge({"slices": {**SLICES["slices"], "by": ["orgin"]}}, _scored())
    assert result.verdict is Verdict.ERROR
    assert "no column 'orgin'" in result.sentence


# ---------------------------------------------------------------- all together
def test_every_metric_of_each_task_is_reported() -> None:
    """Scores name every metric that is defined for the task, and leave out what is not defined on the rows."""
    binary = _scored()
    assert set(all_scores(binary, binary.challenger)) == {m.name for m in METRICS.values() if Task.BINARY in m.tasks}
    assert "roc_auc" not in all_scores(_with(binary, labels=np.ones(2_000)), binary.challenger)
    rng = np.random.default_rng(0)
    y = rng.normal(size=50)
    regression = Scored(task=Task.REGRESSION, labels=y, classes=None, threshold=0.5, challenger=y + 0.1)
    assert all_scores(regression, regression.challenger)["mae"] == pytest.approx(0.1)
    three = Scored(
        task=Task.MULTICLASS, labels=rng.integers(0, 3, 50).astype(float), classes=3, threshold=0.5,
        challenger=rng.dirichlet([1, 1, 1], 50),
    )  # fmt: skip
    assert set(all_scores(three, three.challenger)) == {m.name for m in METRICS.values() if Task.MULTICLASS in m.tasks}


def test_worst_verdict_wins() -> None:
    """error > fail > inconclusive > pass, and no gates at all are a pass."""
    order = [Verdict.ERROR, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS]
    for i, verdict in enumerate(order):
        assert worst(order[i:][::-1]) is verdict
    assert worst([]) is Verdict.PASS


def test_same_seed_same_verdict() -> None:
    """Judging again gives the same numbers to the last bit, so that a decision can be replayed."""
    scored = _scored()
    assert _judge(NO_WORSE, scored, seed=4).as_json() == _judge(NO_WORSE, scored, seed=4).as_json()
    assert _judge(NO_WORSE, scored, seed=4).numbers["lower"] != _judge(NO_WORSE, scored, seed=5).numbers["lower"]
