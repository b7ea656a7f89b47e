"""Gates on made-up scores: which verdict, with which numbers, and what is said of it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from evaluators.baselines import Labelled, baselines
from evaluators.gates import all_scores, judge_gate
from evaluators.pairs import PairedProportions, holm
from evaluators.reuse import Allowance
from evaluators.scored import Challenge, GateResult, Scored, Verdict, worst
from evaluators.wording import number
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


def test_sentence_of_a_comparison_tells_both_scores_rows_interval_bound_and_verdict() -> None:
    """The sentence holds every number that decided: the interval for people, two-sided, and the bound that the margin is set against."""
    result = _judge(NO_WORSE, _scored(noise=0.6))
    n = result.numbers
    assert result.sentence == (
        f"roc_auc: challenger {number(n['challenger'])} against champion {number(n['rival'])} on 2,000 matured rows; difference "
        f"{number(n['difference'])}, 95 % interval {number(n['interval'][0])} to {number(n['interval'][1])}; at least "
        f"{number(n['lower'])} with 95 % confidence, at least -.010 asked; passed"
    )
    assert n["interval"][0] < n["lower"] < n["difference"] < n["upper"] < n["interval"][1]


def test_sentence_of_a_failure_and_of_errors() -> None:
    """A failure is said with the upper bound, and where less is better the difference is called a gain, so that its sign is plain."""
    result = _judge({"metric": "log_loss", "no_worse_than_champion": 0.01}, _scored(noise=1.5))
    assert result.verdict is Verdict.FAIL
    assert "; gain (less is better) -" in result.sentence
    assert (
        f"; at most {number(result.numbers['upper'])} with 95 % confidence, at least -.010 asked; failed"
        in result.sentence
    )


def test_undecided_comparison_says_how_many_rows_would_do() -> None:
    """An owner learns whether waiting or a wider margin would help."""
    assert "rows would settle a difference of this size" in _judge(NO_WORSE, _scored(rows=300, seed=1)).sentence


def test_accuracy_reports_mcnemar() -> None:
    """The accuracy gate says how many rows changed sides, McNemar's exact and mid p-values, and how large the effect is."""
    numbers = _judge({"metric": "accuracy", "no_worse_than_champion": 0.0}, _scored(noise=0.6)).numbers
    assert numbers["gained"] - numbers["lost"] == round(numbers["difference"] * 2_000)
    assert 0 <= numbers["mcnemar_mid_p"] < numbers["mcnemar_p"] <= 1
    assert numbers["method"] == "Tango's interval (McNemar)"
    assert numbers["effect"] == "Cohen's g"
    assert numbers["odds_ratio"] == pytest.approx((0.5 + numbers["effect_size"]) / (0.5 - numbers["effect_size"]))


@pytest.mark.parametrize(("metric", "effect"), [("brier", "Cohen's d_z"), ("roc_auc", "difference")])
def test_every_comparison_has_an_effect_size(metric: str, effect: str) -> None:
    """A difference in its own standard deviations for means over rows, the difference itself for the rest."""
    numbers = _judge({"metric": metric, "no_worse_than_champion": 0.0}, _scored(noise=0.6)).numbers
    assert numbers["effect"] == effect
    assert numbers["effect_size"] > 0


# ---------------------------------------------------------------- better than the champion
@pytest.mark.parametrize(("noise", "verdict"), [(0.6, "pass"), (1.0, "inconclusive"), (1.5, "fail")])
@pytest.mark.parametrize("metric", ["roc_auc", "accuracy", "log_loss", "f1"])
def test_better_has_three_outcomes(metric: str, noise: float, verdict: str) -> None:
    """Better is shown, refuted, or cannot be told; and where a margin is asked, being better by less than that has failed."""
    gate = {"metric": metric, "better_than_champion": 0.0}
    assert _judge(gate, _scored(noise=noise, seed=3)).verdict == verdict
    if verdict == "pass":
        assert _judge({**gate, "better_than_champion": 0.6}, _scored(noise=noise, seed=3)).verdict is Verdict.FAIL


@pytest.mark.parametrize("metric", ["accuracy", "brier"])
def test_a_challenger_that_is_not_better_rarely_passes_as_better(metric: str) -> None:
    """Of 400 challengers exactly as good as the champion, at most 10 % (and chance) pass at 90 % confidence; nor do more fail."""
    gate = {"metric": metric, "better_than_champion": 0.0, "confidence": 0.9}
    verdicts = [_judge(gate, _scored(rows=300, seed=seed)).verdict for seed in range(400)]
    allowed = 0.1 * 400 + 3 * (0.1 * 0.9 * 400) ** 0.5
    assert sum(v is Verdict.PASS for v in verdicts) <= allowed
    assert sum(v is Verdict.FAIL for v in verdicts) <= allowed
    assert any(v is Verdict.PASS for v in verdicts)


# ---------------------------------------------------------------- rows that earlier verdicts used
def test_used_rows_ask_for_more_confidence_and_the_sentence_says_why() -> None:
    """The same scores pass on new rows and are inconclusive once earlier cycles have spent what the rows had."""
    scored = _scored(rows=1_500, noise=0.9, seed=1)
    gate = {"metric": "accuracy", "no_worse_than_champion": 0.0}
    spent = Allowance(share=0.02, left=0.005, reused=1.0, cycles=3)
    new, used = _judge(gate, scored), _judge(gate, scored, allowance=spent)
    assert (new.verdict, used.verdict) == (Verdict.PASS, Verdict.INCONCLUSIVE)
    assert used.numbers["lower"] < new.numbers["lower"]
    assert used.numbers["interval"] == new.numbers["interval"]
    assert (
        "with 99.9 % confidence because 3 earlier cycles used all of these rows, at least 0 asked; inconclusive"
        in used.sentence
    )
    slices = _judge(SLICES, scored, allowance=spent)
    assert "99.9 % confidence because 3 earlier cycles used all of these rows" in slices.sentence
    assert slices.numbers["decided_at"] == pytest.approx(0.999)


# ---------------------------------------------------------------- predictors without a model
def _persistent(rows: int = 2_000, *, stays: float = 0.9, right: float = 0.8, seed: int = 0) -> Challenge:
    """Labels that stay what they were with probability `stays`, and a challenger that is right with probability `right`."""
    rng = np.random.default_rng(seed)
    labels = (np.cumsum(rng.random(2 * rows) > stays) % 2).astype(float)
    past, judged = labels[:rows], labels[rows:]
    wrong = rng.random(rows) > right
    return Challenge(
        scored=Scored(
            task=Task.BINARY, labels=judged, classes=2, threshold=0.5, challenger=np.where(wrong, 1 - judged, judged)
        ),
        size_mb=1.0,
        baselines=baselines(Labelled(labels=past), Labelled(labels=judged), 2),
    )  # fmt: skip


def _ask(gate: dict[str, Any], challenge: Challenge) -> GateResult:
    result = judge_gate(GATE.validate_python(gate), challenge)
    json.dumps(result.as_json(), allow_nan=False)
    return result


@pytest.mark.parametrize(
    ("baseline", "right", "verdict"),
    [("last_label", 0.8, "fail"), ("last_label", 0.95, "pass"), ("majority", 0.8, "pass"), ("best", 0.8, "fail"), ("best", 0.95, "pass")],
)  # fmt: skip
def test_a_challenger_may_be_asked_to_beat_what_needs_no_model(baseline: str, right: float, verdict: str) -> None:
    """With or without a champion: on labels that mostly stay, 80 % right is worse than repeating the last one (90 %)."""
    result = _ask({"baseline": baseline, "metric": "accuracy"}, _persistent(right=right))
    assert result.verdict == verdict
    if baseline != "majority":
        assert (
            "against 'same as last label' .8" in result.sentence or "against 'same as last label' .9" in result.sentence
        )
    assert "more than 0 asked" in result.sentence


def test_baselines_that_the_rows_do_not_allow_are_inconclusive() -> None:
    """Rows without time have no season; a metric may not be defined for a baseline: neither is passed."""
    result = _ask({"baseline": "seasonal_naive", "metric": "accuracy"}, _persistent())
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "the rows have no time" in result.sentence
    challenge = _persistent(stays=0.9, seed=2)
    mostly_no = np.where(np.arange(2_000) % 5 == 0, 1.0, 0.0)
    never_yes = baselines(Labelled(labels=mostly_no), Labelled(labels=challenge.scored.labels), 2)
    precision = _ask({"baseline": "majority", "metric": "precision"}, replace(challenge, baselines=never_yes))
    assert precision.verdict is Verdict.INCONCLUSIVE
    assert "precision is not defined for majority" in precision.sentence


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


def test_holm_keeps_the_level_over_all_slices_together() -> None:
    """Of 2,000 challengers as good as the champion in each of 12 slices of 400 rows, at most 5 % (and chance) have a slice shown worse;
    without the correction it would be nearly half."""
    rng = np.random.default_rng(0)
    discordant = rng.binomial(400, 0.2, (2_000, 12))
    gained = rng.binomial(discordant, 0.5)
    p_values = [
        [PairedProportions(gained=int(g), lost=int(d - g), rows=400).p_worse(0.0) for g, d in zip(*pair, strict=True)]
        for pair in zip(gained, discordant, strict=True)
    ]
    failed = np.mean([min(holm(each)) <= 0.05 for each in p_values])
    assert failed <= 0.05 + 3 * (0.05 * 0.95 / 2_000) ** 0.5
    assert np.mean([min(each) <= 0.05 for each in p_values]) > 0.4


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
