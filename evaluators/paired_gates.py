"""May the challenger pass beside another predictor: the champion, or one that needs no model? Paired tests on the same rows. Pure.

With L, U one-sided bounds of the difference D = challenger - rival (turned so that more is better), each at the confidence at which the
verdict is taken (`evaluators.reuse`):

                    asked      pass       fail       inconclusive
    no worse by m   D >= -m    L >= -m    U < -m     else: these rows cannot tell, the champion stays
    better by m     D > m      L > m      U < m      else

So P(pass | what is asked does not hold) <= 1 - confidence, and so for P(fail | it holds). Source: S. Wellek, Testing Statistical
Hypotheses of Equivalence and Noninferiority (2010), chapters 1 and 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from evaluators.pairs import Difference, effective_rows, rows_to_settle
from evaluators.scored import Challenge, Floats, GateResult, Scored, Verdict, too_few, undefined, worst
from evaluators.wording import about, comparison, number
from policies.metrics import METRICS
from policies.schema import BaselineGate, BetterGate, NoWorseGate

BEST = "best"
"""Every baseline that there is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a comparison must show of D."""

    limit: float
    """D >= limit, or D > limit if `strictly`: -margin for "no worse", margin for "better"."""
    strictly: bool
    confidence: float
    """By the policy."""
    min_rows: int

    def verdict(self, lower: float, upper: float) -> Verdict:
        """
        >>> no_worse = Asked(limit=-0.01, strictly=False, confidence=0.95, min_rows=100)
        >>> [no_worse.verdict(*bounds).value for bounds in ((-0.005, 0.03), (-0.08, -0.02), (-0.02, 0.05))]
        ['pass', 'fail', 'inconclusive']
        >>> better = Asked(limit=0.0, strictly=True, confidence=0.95, min_rows=100)
        >>> [better.verdict(*bounds).value for bounds in ((0.001, 0.03), (-0.08, -0.02), (0.0, 0.0))]
        ['pass', 'fail', 'inconclusive']
        """
        if lower > self.limit or (lower == self.limit and not self.strictly):
            return Verdict.PASS
        return Verdict.FAIL if upper < self.limit else Verdict.INCONCLUSIVE

    @property
    def words(self) -> str:
        return f"{'more than' if self.strictly else 'at least'} {number(self.limit)} asked"


# ---------------------------------------------------------------- against the champion
def judge_no_worse(gate: NoWorseGate, challenge: Challenge) -> GateResult:
    name = f"{gate.metric} no worse than champion by {gate.no_worse_than_champion:g}"
    asked = Asked(
        limit=-gate.no_worse_than_champion, strictly=False, confidence=gate.confidence, min_rows=gate.min_rows
    )
    return _against_champion(name, gate.metric, asked, challenge)


def judge_better(gate: BetterGate, challenge: Challenge) -> GateResult:
    name = f"{gate.metric} better than champion by {gate.better_than_champion:g}"
    asked = Asked(limit=gate.better_than_champion, strictly=True, confidence=gate.confidence, min_rows=gate.min_rows)
    return _against_champion(name, gate.metric, asked, challenge)


def _against_champion(name: str, metric: str, asked: Asked, challenge: Challenge) -> GateResult:
    if missing := no_comparison(name, challenge):
        return missing
    assert challenge.scored.champion is not None
    return _against(name, metric, asked, challenge, "champion", challenge.scored.champion)


def no_comparison(name: str, challenge: Challenge) -> GateResult | None:
    """The verdict where there is no champion, or one that gave no answers."""
    if challenge.champion_problem:
        return GateResult(gate=name, verdict=Verdict.ERROR, sentence=challenge.champion_problem)
    if challenge.scored.champion is None:
        return GateResult(gate=name, verdict=Verdict.PASS, sentence=f"{name}: no champion yet; passed")
    return None


# ---------------------------------------------------------------- against what needs no model
def judge_baseline(gate: BaselineGate, challenge: Challenge) -> GateResult:
    """Better than one baseline, or with `best` than each of them.

    Passing needs every comparison at the confidence asked (an intersection-union test: no correction); failing on one of k at 1 - (1 -
    confidence) / k (Bonferroni).
    """
    name = (
        f"{gate.metric} better than {'every baseline' if gate.baseline == BEST else gate.baseline} by {gate.margin:g}"
    )
    known = challenge.baselines
    chosen = sorted(known) if gate.baseline == BEST else [gate.baseline] if gate.baseline in known else []
    defined = [
        each for each in chosen if math.isfinite(challenge.scored.score(gate.metric, known[each].answers(gate.metric)))
    ]
    if not defined:
        return GateResult(
            gate=name,
            verdict=Verdict.INCONCLUSIVE,
            sentence=f"{name}: {_why_no_baseline(gate, bool(chosen))}; inconclusive",
        )
    asked = Asked(limit=gate.margin, strictly=True, confidence=gate.confidence, min_rows=gate.min_rows)
    results = [
        _against(
            name, gate.metric, asked, challenge, f"'{known[each].words}'", known[each].answers(gate.metric), tests=len(defined)
        )
        for each in defined
    ]  # fmt: skip
    verdict = worst([result.verdict for result in results])
    decided = min(
        (result for result in results if result.verdict is verdict),
        key=lambda result: result.numbers.get("lower", -math.inf),
    )
    return replace(decided, numbers={**decided.numbers, "baselines": defined})


def _why_no_baseline(gate: BaselineGate, there: bool) -> str:
    if there:
        return f"{gate.metric} is not defined for {gate.baseline} on these rows"
    if gate.baseline == "seasonal_naive":
        return "the rows have no time, or not three days or weeks of rows at the same hours"
    return "there are no labelled rows before the hold-out to know it from"


# ---------------------------------------------------------------- the paired test
def _against(
    name: str, metric: str, asked: Asked, challenge: Challenge, rival: str, answers: Floats, *, tests: int = 1
) -> GateResult:
    """`tests`: how many comparisons of this kind could fail the challenger."""
    scored = challenge.scored.against(answers)
    if scored.rows < max(asked.min_rows, 2):
        return too_few(name, scored.rows, max(asked.min_rows, 2))
    for who, its in (("the challenger", scored.challenger), (rival, answers)):
        if not math.isfinite(scored.score(metric, its)):
            return undefined(name, metric, who if who == "the challenger" else f"the {rival}", scored, its)
    difference = scored.difference(metric, seed=challenge.seed)
    decided_at = challenge.allowance.confidence(asked.confidence)
    lower, _ = difference.bounds(decided_at)
    _, upper = difference.bounds(1 - (1 - decided_at) / tests)
    if not math.isfinite(upper - lower):
        return undefined(name, metric, "either model", scored, scored.challenger)
    verdict = asked.verdict(lower, upper)
    numbers = {
        **paired_numbers(metric, difference, scored, challenge, asked.confidence),
        "lower": lower,
        "upper": upper,
        "asked": asked.limit,
        "p_worse": difference.p_worse(-asked.limit),
    }
    sentence = comparison(
        metric=metric,
        higher_is_better=METRICS[metric].higher_is_better,
        challenger=numbers["challenger"],
        rival=rival,
        rival_score=numbers["rival"],
        rows=scored.rows,
        difference=difference.value,
        interval=(numbers["interval"][0], numbers["interval"][1]),
        level=asked.confidence,
        bounds=(lower, upper),
        decided_at=decided_at,
        because=challenge.allowance.because,
        asked=asked.words,
        verdict=verdict.word,
    )
    needed = (
        rows_to_settle(difference, -asked.limit, decided_at, scored.rows) if verdict is Verdict.INCONCLUSIVE else None
    )
    if needed and needed > scored.rows:
        sentence += f" (about {about(needed)} rows would settle a difference of this size)"
    return GateResult(gate=name, verdict=verdict, sentence=sentence, numbers=numbers)


def paired_numbers(
    metric: str, difference: Difference, scored: Scored, challenge: Challenge, confidence: float
) -> Mapping[str, Any]:
    """What a comparison at the policy's `confidence` rests on, as JSON. `scored` holds the rival in the champion's place."""
    assert scored.champion is not None
    allowance = challenge.allowance
    return {
        "challenger": scored.score(metric, scored.challenger),
        "rival": scored.score(metric, scored.champion),
        "difference": difference.value,
        "interval": list(difference.bounds((1 + confidence) / 2)),
        "rows": scored.rows,
        **_independence(metric, scored),
        "confidence": confidence,
        "decided_at": allowance.confidence(confidence),
        "reused": allowance.reused,
        "method": difference.method,
        **difference.evidence(),
    }


def _independence(metric: str, scored: Scored) -> dict[str, int]:
    """For means over rows: what the rows are worth if those in a row err alike. The tests take rows as independent."""
    if not METRICS[metric].per_row:
        return {}
    assert scored.champion is not None
    old, new = (scored.row_values(metric, answers) for answers in (scored.champion, scored.challenger))
    return {"effective_rows": effective_rows(new - old)}
