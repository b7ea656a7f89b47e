"""May the challenger pass on every slice of the rows? Champion against challenger, value by value of some columns. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.paired_gates import no_comparison, paired_numbers
from evaluators.pairs import holm
from evaluators.resampling import DRAWS
from evaluators.scored import Challenge, GateResult, Verdict, worst
from evaluators.wording import count, number, percent
from policies.schema import SliceRule

SLICE_DRAWS_MAX = 10_000
"""Draws of a slice's bootstrap, at most; more slices need more draws, because each is tested at a smaller level."""
MISSING = "(missing)"


def judge_slices(rule: SliceRule, challenge: Challenge) -> GateResult:
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
    if missing := no_comparison(name, challenge):
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
        sentence=_slices_sentence(rule, challenge, judged, len(parts) - len(judged), verdict),
        numbers={
            "slices": judged,
            "skipped": len(parts) - len(judged),
            "margin": rule.no_worse_than_champion,
            "confidence": rule.confidence,
            "decided_at": challenge.allowance.confidence(rule.confidence),
            "reused": challenge.allowance.reused,
        },
    )


def _judge_slices(
    rule: SliceRule, challenge: Challenge, parts: Sequence[tuple[str, str, NDArray[np.int64]]]
) -> list[dict[str, Any]]:
    """The numbers and verdict of each slice on which the metric is defined for both."""
    decided_at = challenge.allowance.confidence(rule.confidence)
    alpha = 1 - decided_at
    draws = min(SLICE_DRAWS_MAX, max(DRAWS, math.ceil(20 * len(parts) / alpha)))
    judged: list[dict[str, Any]] = []
    for column, value, rows in parts:
        scored = challenge.scored.where(rows)
        assert scored.champion is not None
        if not all(math.isfinite(scored.score(rule.metric, a)) for a in (scored.challenger, scored.champion)):
            continue
        difference = scored.difference(rule.metric, seed=challenge.seed, draws=draws)
        lower, upper = difference.bounds(decided_at)
        if math.isfinite(upper - lower):
            numbers = paired_numbers(rule.metric, difference, scored, challenge, rule.confidence)
            p_worse = difference.p_worse(rule.no_worse_than_champion)
            judged.append({"by": column, "value": value, **numbers, "lower": lower, "upper": upper, "p_worse": p_worse})
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


def _slices_sentence(
    rule: SliceRule, challenge: Challenge, judged: Sequence[Mapping[str, Any]], skipped: int, verdict: Verdict
) -> str:
    lowest = min(judged, key=lambda each: each["difference"])
    of_verdict = [f"{each['by']}={each['value']}" for each in judged if each["verdict"] == verdict.value]
    told = {
        Verdict.FAIL: f"shown worse for {_listed(of_verdict)}",
        Verdict.INCONCLUSIVE: f"undecided for {_listed(of_verdict)}",
        Verdict.PASS: f"shown no worse in all {count(len(judged), 'slice')}",
    }[verdict]
    because = f" because {challenge.allowance.because}" if challenge.allowance.because else ""
    return (
        f"{rule.metric} by {', '.join(rule.by)}: {told}; lowest {lowest['by']}={lowest['value']}, challenger "
        f"{number(lowest['challenger'])} against champion {number(lowest['rival'])} on {count(lowest['rows'], 'matured row')}; "
        f"difference {number(lowest['difference'])}, {percent(rule.confidence)} interval {number(lowest['interval'][0])} to "
        f"{number(lowest['interval'][1])}; {percent(lowest['decided_at'])} confidence{because}, "
        f"at least {number(-rule.no_worse_than_champion)} asked"
        + (f"; {count(skipped, 'value')} with too little data not judged" if skipped else "")
        + f"; {verdict.word}"
    )


def _listed(names: Sequence[str], at_most: int = 5) -> str:
    """
    >>> _listed(["a=1", "a=2", "a=3"], at_most=2)
    'a=1, a=2 and 1 more'
    """
    shown = ", ".join(names[:at_most])
    return shown if len(names) <= at_most else f"{shown} and {len(names) - at_most} more"
