"""Does what is to serve hold what the model that was judged has shown?

With `train.refit` the recipe that passed is fitted once more, on the hold-out rows too. No rows are left to judge the second fit by, so the
gates judge the first, and this asks of the second only what can be known: that it works, and that on rows which it has been fitted on it is
not shown worse than the first one, which never saw them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from evaluators.answers import Answers, AnswersError, Asker, ModelFolder, WrongAnswersError, align
from evaluators.holdout import HoldOut
from evaluators.scored import Challenge, GateResult, Scored, Verdict, undefined
from evaluators.wording import count, number, percent

REFIT = "refit holds"
CONFIDENCE = 0.95


def judge_refit(
    folder: Path, metric: str, challenge: Challenge, hold_out: HoldOut, ask: Asker, *, workdir: Path, timeout_s: float
) -> GateResult:
    """Fail where the paired upper bound of refit less judged model, of the objective, lies below 0.

    Equal models fail at most as often as 1 - CONFIDENCE, and a refit looks better than it is on rows that it has seen. A metric that these
    rows leave undefined for both models compares nothing; for the refit alone, it is inconclusive.
    """
    try:
        model = ModelFolder.read(folder)
    except AnswersError as error:
        return _does_not_work(Verdict.FAIL, error)
    try:
        given: Answers = ask(
            model,
            hold_out.path,
            task=challenge.scored.task,
            row_count=hold_out.rows,
            workdir=workdir,
            timeout_s=timeout_s,
        )
        answers = align(given.scores, model.classes, hold_out.classes)[hold_out.usable]
    except AnswersError as error:
        return _does_not_work(Verdict.FAIL if isinstance(error, WrongAnswersError) else Verdict.ERROR, error)
    return compare_refit(
        metric, replace(challenge.scored, challenger=answers, champion=challenge.scored.challenger), challenge.seed
    )


def _does_not_work(verdict: Verdict, error: AnswersError) -> GateResult:
    return GateResult(gate=REFIT, verdict=verdict, sentence=f"refit: it does not work: {error}")


def compare_refit(metric: str, scored: Scored, seed: int) -> GateResult:
    """`scored`: the refit in the challenger's place, the judged model in the champion's."""
    assert scored.champion is not None
    refit, judged = scored.score(metric, scored.challenger), scored.score(metric, scored.champion)
    if scored.rows < 2 or not math.isfinite(judged):
        return _said(Verdict.PASS, f"answered {count(scored.rows)}, which cannot tell how it compares by {metric}")
    if not math.isfinite(refit):
        return undefined(REFIT, metric, "the refit", scored, scored.challenger)
    difference = scored.difference(metric, seed=seed)
    _, upper = difference.bounds(CONFIDENCE)
    numbers = {
        "refit": refit,
        "judged": judged,
        "difference": difference.value,
        "rows": scored.rows,
        "confidence": CONFIDENCE,
    }
    words = f"{metric} {number(refit)} against {number(judged)} of the model that was judged, on {count(scored.rows)} that it knows"
    if math.isfinite(upper):
        numbers["upper"] = upper
    if upper < 0:
        bound = f"better by at most {number(upper)} with {percent(CONFIDENCE)} confidence"
        return _said(Verdict.FAIL, f"{words}; {bound}, less than 0", numbers)
    return _said(Verdict.PASS, words, numbers)


def _said(verdict: Verdict, words: str, numbers: Mapping[str, float] | None = None) -> GateResult:
    return GateResult(gate=REFIT, verdict=verdict, sentence=f"refit: {words}; {verdict.word}", numbers=numbers or {})
