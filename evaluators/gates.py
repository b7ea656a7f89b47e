"""May the challenger pass? Every gate of a policy, decided on scores that both models gave to the same hold-out rows.

Pure: numbers in, verdicts with sentences out. A comparison has three outcomes, never two (L, U: one-sided bounds of the difference D =
challenger - champion, turned so that more is better, each at the gate's confidence; margin m):

    pass          L >= -m     shown to be no worse than the champion by more than the margin
    fail          U <  -m     shown to be worse by more than the margin
    inconclusive  otherwise   these rows cannot tell; the champion stays

So P(pass | truly worse than the margin) <= 1 - confidence, and so for P(fail | truly not). Source: S. Wellek, Testing Statistical
Hypotheses of Equivalence and Noninferiority (2010), chapters 1 and 2. With too few rows, one class only, or a metric that is not defined
on these rows, the verdict is inconclusive as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from evaluators.pairs import Difference, PairedProportions, compare, holm, rows_to_settle
from evaluators.resampling import DRAWS
from evaluators.wording import count, number, percent
from pipelines.scores import score
from policies.metrics import METRICS, Task
from policies.schema import AtLeastGate, AtMostGate, Gate, LatencyGate, NoWorseGate, SizeGate, SliceRule, SlicesGate

Floats: TypeAlias = NDArray[np.float64]

SLICE_DRAWS_MAX = 10_000
"""Draws of a slice's bootstrap, at most; more slices need more draws, because each is tested at a smaller level."""
MISSING = "(missing)"


class Verdict(StrEnum):
    """From worst to best: the verdict on several gates is the worst of theirs."""

    ERROR = "error"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    PASS = "pass"  # noqa: S105 - no password


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """error > fail > inconclusive > pass; of none: pass.

    >>> worst([Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.PASS]).value
    'inconclusive'
    """
    return next((v for v in Verdict if v in verdicts), Verdict.PASS)


@dataclass(frozen=True, kw_only=True, slots=True)
class GateResult:
    """What one gate said."""

    gate: str
    verdict: Verdict
    sentence: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """JSON, finite: everything that decided it."""

    def as_json(self) -> dict[str, Any]:
        return {
            "gate": self.gate,
            "verdict": self.verdict.value,
            "sentence": self.sentence,
            "numbers": dict(self.numbers),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """Matured hold-out rows with the answers of one model or two."""

    task: Task
    labels: Floats
    """(n,): positions in `classes` (below 0: none of them), or values for a regression."""
    classes: int | None
    """How many; None for a regression. In binary tasks class 1 is positive."""
    threshold: float
    challenger: Floats
    champion: Floats | None = None
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Column → (n,) values, for slices."""

    @property
    def rows(self) -> int:
        return len(self.labels)

    def where(self, selected: NDArray[np.int64]) -> Scored:
        """The same of some rows (without `columns`)."""
        return Scored(
            task=self.task,
            labels=self.labels[selected],
            classes=self.classes,
            threshold=self.threshold,
            challenger=self.challenger[selected],
            champion=None if self.champion is None else self.champion[selected],
        )

    def score(self, metric: str, answers: Floats) -> float:
        return score(metric, self.labels, answers, classes=self._codes, threshold=self.threshold)

    def difference(self, metric: str, *, seed: int, draws: int = DRAWS) -> Difference:
        """The champion must be there, both scores finite, and rows >= 2."""
        assert self.champion is not None
        return compare(
            metric,
            self.labels,
            self.champion,
            self.challenger,
            champion_score=self.score(metric, self.champion),
            challenger_score=self.score(metric, self.challenger),
            classes=self._codes,
            threshold=self.threshold,
            seed=seed,
            draws=draws,
        )

    @property
    def _codes(self) -> list[int] | None:
        return None if self.classes is None else list(range(self.classes))


@dataclass(frozen=True, kw_only=True, slots=True)
class Challenge:
    """Everything that the gates decide on."""

    scored: Scored
    champion_problem: str = ""
    """Why there are no answers of a champion that exists; empty if there are, or if no model was promoted yet."""
    latency_ms: Floats | None = None
    """Wall-clock time of single-row answers, one each."""
    size_mb: float
    """Of the model folder, in 10^6 bytes."""
    seed: int = 0


def all_scores(scored: Scored, answers: Floats) -> dict[str, float]:
    """Every metric of the task that is defined on these rows."""
    values = {m.name: scored.score(m.name, answers) for m in METRICS.values() if scored.task in m.tasks}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def judge_gate(gate: Gate, challenge: Challenge) -> GateResult:
    """The verdict of one gate of the policy."""
    match gate:
        case AtLeastGate():
            return _limit(gate.metric, gate.at_least, "at least", gate.min_rows, challenge.scored)
        case AtMostGate():
            return _limit(gate.metric, gate.at_most, "at most", gate.min_rows, challenge.scored)
        case NoWorseGate():
            return _no_worse(gate, challenge)
        case SlicesGate():
            return _slices(gate.slices, challenge)
        case LatencyGate():
            return _latency(gate.latency_ms_p95_max, challenge.latency_ms)
        case SizeGate():
            return _size(gate.size_mb_max, challenge.size_mb)


# ---------------------------------------------------------------- one number against a limit
def _limit(metric: str, limit: float, relation: str, min_rows: int, scored: Scored) -> GateResult:
    name = f"{metric} {relation} {limit:g}"
    if scored.rows < min_rows:
        return _too_few(name, scored.rows, min_rows)
    value = scored.score(metric, scored.challenger)
    if not math.isfinite(value):
        return _undefined(name, metric, "the challenger", scored, scored.challenger)
    passed = value >= limit if relation == "at least" else value <= limit
    return GateResult(
        gate=name,
        verdict=Verdict.PASS if passed else Verdict.FAIL,
        sentence=f"{metric}: challenger {number(value)} on {count(scored.rows, 'matured row')}, {relation} {number(limit)} asked; "
        + _word(Verdict.PASS if passed else Verdict.FAIL),
        numbers={"challenger": value, "limit": limit, "rows": scored.rows},
    )


def _latency(limit_ms: float, latency_ms: Floats | None) -> GateResult:
    name = f"latency_ms_p95_max {limit_ms:g}"
    if latency_ms is None or not len(latency_ms):
        return GateResult(gate=name, verdict=Verdict.INCONCLUSIVE, sentence="latency: no single-row answers were timed")
    p95 = float(np.quantile(latency_ms, 0.95))
    verdict = Verdict.PASS if p95 <= limit_ms else Verdict.FAIL
    return GateResult(
        gate=name,
        verdict=verdict,
        sentence=f"latency: 95 % of {len(latency_ms)} single-row answers within {p95:.3g} ms, {limit_ms:g} ms allowed; {_word(verdict)}",
        numbers={"latency_ms_p95": p95, "limit": limit_ms, "calls": len(latency_ms)},
    )


def _size(limit_mb: float, size_mb: float) -> GateResult:
    verdict = Verdict.PASS if size_mb <= limit_mb else Verdict.FAIL
    return GateResult(
        gate=f"size_mb_max {limit_mb:g}",
        verdict=verdict,
        sentence=f"size: {size_mb:.3g} MB, {limit_mb:g} MB allowed; {_word(verdict)}",
        numbers={"size_mb": size_mb, "limit": limit_mb},
    )


# ---------------------------------------------------------------- against the champion
def _no_worse(gate: NoWorseGate, challenge: Challenge) -> GateResult:
    name = f"{gate.metric} no worse than champion by {gate.no_worse_than_champion:g}"
    scored = challenge.scored
    if missing := _no_comparison(name, challenge):
        return missing
    assert scored.champion is not None
    if scored.rows < max(gate.min_rows, 2):
        return _too_few(name, scored.rows, max(gate.min_rows, 2))
    for who, answers in (("the challenger", scored.challenger), ("the champion", scored.champion)):
        if not math.isfinite(scored.score(gate.metric, answers)):
            return _undefined(name, gate.metric, who, scored, answers)
    difference = scored.difference(gate.metric, seed=challenge.seed)
    lower, upper = difference.bounds(gate.confidence)
    if not math.isfinite(upper - lower):
        return _undefined(name, gate.metric, "either model", scored, scored.challenger)
    verdict = _three_way(lower, upper, gate.no_worse_than_champion)
    numbers = _numbers(gate.metric, difference, lower, upper, scored) | {
        "margin": gate.no_worse_than_champion,
        "confidence": gate.confidence,
        "p_worse": difference.p_worse(gate.no_worse_than_champion),
        "method": difference.method,
    }
    if isinstance(difference, PairedProportions):
        numbers |= {"gained": difference.gained, "lost": difference.lost, "mcnemar_p": difference.mcnemar_p()}
    return GateResult(
        gate=name, verdict=verdict, sentence=_comparison_sentence(gate, numbers, verdict, difference), numbers=numbers
    )


def _three_way(lower: float, upper: float, margin: float) -> Verdict:
    """
    >>> [_three_way(*bounds, 0.01).value for bounds in ((-0.005, 0.03), (-0.08, -0.02), (-0.02, 0.05))]
    ['pass', 'fail', 'inconclusive']
    """
    if lower >= -margin:
        return Verdict.PASS
    return Verdict.FAIL if upper < -margin else Verdict.INCONCLUSIVE


def _numbers(metric: str, difference: Difference, lower: float, upper: float, scored: Scored) -> dict[str, Any]:
    assert scored.champion is not None
    return {
        "challenger": scored.score(metric, scored.challenger),
        "champion": scored.score(metric, scored.champion),
        "difference": difference.value,
        "lower": lower,
        "upper": upper,
        "rows": scored.rows,
    }


def _comparison_sentence(
    gate: NoWorseGate, numbers: Mapping[str, Any], verdict: Verdict, difference: Difference
) -> str:
    rows, margin = numbers["rows"], gate.no_worse_than_champion
    text = (
        f"{gate.metric}: challenger {number(numbers['challenger'])} against champion {number(numbers['champion'])} on "
        f"{count(rows, 'matured row')}; {'gain' if difference.value >= 0 else 'loss'} {number(abs(difference.value))}, "
        f"{percent(gate.confidence)} bounds {number(numbers['lower'])} to {number(numbers['upper'])}, "
        f"margin {number(margin)}; {_word(verdict)}"
    )
    needed = rows_to_settle(difference, margin, gate.confidence, rows) if verdict is Verdict.INCONCLUSIVE else None
    return text + (
        f" (about {needed:,} rows would settle a difference of this size)" if needed and needed > rows else ""
    )


def _slices(rule: SliceRule, challenge: Challenge) -> GateResult:
    """Every value of every column with enough rows is compared.

    Fails if some slice is shown worse, by Holm's adjusted p-values (P(false fail) <= 1 - confidence over all slices together); passes if
    every slice is shown no worse at the confidence (an intersection-union test, which needs no correction: R. Berger, Technometrics 24
    (1982) 295-300); else inconclusive.
    """
    name = f"{rule.metric} by {', '.join(rule.by)} no worse than champion by {rule.no_worse_than_champion:g}"
    if absent := [column for column in rule.by if column not in challenge.scored.columns]:
        return GateResult(
            gate=name,
            verdict=Verdict.ERROR,
            sentence=f"gates.slices.by: no column {absent[0]!r} in the hold-out rows; name one of their columns",
        )
    if missing := _no_comparison(name, challenge):
        return missing
    parts = [(column, value, rows) for column in rule.by for value, rows in _values(challenge.scored.columns[column])]
    large = [part for part in parts if len(part[2]) >= max(rule.min_rows, 2)]
    judged = _judge_slices(rule, challenge, large)
    if not judged:
        return GateResult(
            gate=name,
            verdict=Verdict.INCONCLUSIVE,
            sentence=f"{rule.metric} by {', '.join(rule.by)}: no value has {rule.min_rows} rows on which it is defined for both models",
            numbers={"slices": [], "skipped": len(parts)},
        )
    verdict = worst([Verdict(each["verdict"]) for each in judged])
    return GateResult(
        gate=name,
        verdict=verdict,
        sentence=_slices_sentence(rule, judged, len(parts) - len(judged), verdict),
        numbers={
            "slices": judged,
            "skipped": len(parts) - len(judged),
            "margin": rule.no_worse_than_champion,
            "confidence": rule.confidence,
        },
    )


def _judge_slices(
    rule: SliceRule, challenge: Challenge, parts: Sequence[tuple[str, str, NDArray[np.int64]]]
) -> list[dict[str, Any]]:
    """The numbers and verdict of each slice on which the metric is defined for both."""
    alpha = 1 - rule.confidence
    draws = min(SLICE_DRAWS_MAX, max(DRAWS, math.ceil(20 * len(parts) / alpha)))
    judged: list[dict[str, Any]] = []
    for column, value, rows in parts:
        scored = challenge.scored.where(rows)
        assert scored.champion is not None
        if not all(math.isfinite(scored.score(rule.metric, a)) for a in (scored.challenger, scored.champion)):
            continue
        difference = scored.difference(rule.metric, seed=challenge.seed, draws=draws)
        lower, upper = difference.bounds(rule.confidence)
        if math.isfinite(upper - lower):
            numbers = _numbers(rule.metric, difference, lower, upper, scored)
            p_worse = difference.p_worse(rule.no_worse_than_champion)
            judged.append({"by": column, "value": value, **numbers, "p_worse": p_worse})
    for each, adjusted in zip(judged, holm([each["p_worse"] for each in judged]), strict=True):
        shown_no_worse = each["lower"] >= -rule.no_worse_than_champion
        verdict = Verdict.FAIL if adjusted <= alpha else Verdict.PASS if shown_no_worse else Verdict.INCONCLUSIVE
        each |= {"p_worse_adjusted": adjusted, "verdict": verdict.value}
    return judged


def _values(column: NDArray[Any]) -> list[tuple[str, NDArray[np.int64]]]:
    """Each value with the positions of its rows, sorted by the value's text; None and NaN are one value."""
    positions: dict[str, list[int]] = {}
    for i, value in enumerate(column.tolist()):
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        positions.setdefault(MISSING if missing else str(value), []).append(i)
    return [(text, np.array(rows, dtype=np.int64)) for text, rows in sorted(positions.items())]


def _slices_sentence(rule: SliceRule, judged: Sequence[Mapping[str, Any]], skipped: int, verdict: Verdict) -> str:
    lowest = min(judged, key=lambda each: each["difference"])
    of_verdict = [f"{each['by']}={each['value']}" for each in judged if each["verdict"] == verdict.value]
    told = {
        Verdict.FAIL: f"shown worse for {_listed(of_verdict)}",
        Verdict.INCONCLUSIVE: f"undecided for {_listed(of_verdict)}",
        Verdict.PASS: f"shown no worse in all {count(len(judged), 'slice')}",
    }[verdict]
    return (
        f"{rule.metric} by {', '.join(rule.by)}: {told}; lowest {lowest['by']}={lowest['value']}, challenger "
        f"{number(lowest['challenger'])} against champion {number(lowest['champion'])} on {count(lowest['rows'])}, margin "
        f"{number(rule.no_worse_than_champion)}" + (f"; {count(skipped, 'value')} with too little data not judged" if skipped else "")
        + f"; {_word(verdict)}"
    )  # fmt: skip


def _listed(names: Sequence[str], at_most: int = 5) -> str:
    """
    >>> _listed(["a=1", "a=2", "a=3"], at_most=2)
    'a=1, a=2 and 1 more'
    """
    shown = ", ".join(names[:at_most])
    return shown if len(names) <= at_most else f"{shown} and {len(names) - at_most} more"


# ---------------------------------------------------------------- when there is nothing to compare
def _no_comparison(name: str, challenge: Challenge) -> GateResult | None:
    if challenge.champion_problem:
        return GateResult(gate=name, verdict=Verdict.ERROR, sentence=challenge.champion_problem)
    if challenge.scored.champion is None:
        return GateResult(gate=name, verdict=Verdict.PASS, sentence=f"{name}: no champion yet; passed")
    return None


def _too_few(name: str, rows: int, needed: int) -> GateResult:
    return GateResult(
        gate=name,
        verdict=Verdict.INCONCLUSIVE,
        sentence=f"{name}: only {count(rows, 'matured row')} where {needed:,} are needed; inconclusive",
        numbers={"rows": rows, "min_rows": needed},
    )


def _undefined(name: str, metric: str, who: str, scored: Scored, answers: Floats) -> GateResult:
    return GateResult(
        gate=name,
        verdict=Verdict.INCONCLUSIVE,
        sentence=f"{name}: {metric} is not defined for {who}: {why_undefined(scored, answers)}; inconclusive",
        numbers={"rows": scored.rows},
    )


def why_undefined(scored: Scored, answers: Floats) -> str:
    """Why a metric of `answers` (or of resampled rows of them) has no value, in words."""
    if scored.classes is None:
        return "the labels do not vary"
    if len(np.unique(scored.labels)) < 2:
        return f"the labels of {count(scored.rows, 'row')} hold one class only"
    if answers.ndim == 1 and not (answers >= scored.threshold).any():
        return f"no row is predicted positive at threshold {scored.threshold:g}"
    return "too many resamples of these rows have one class only or nothing predicted positive"


def _word(verdict: Verdict) -> str:
    return {"pass": "passed", "fail": "failed", "inconclusive": "inconclusive", "error": "error"}[verdict.value]
