"""May the challenger pass? Every gate of a policy, decided on scores that models gave to the same hold-out rows.

Pure: numbers in, verdicts with sentences out. A comparison (`evaluators.paired_gates`, `evaluators.slice_gates`) has three outcomes,
never two. With too few rows, one class only, or a metric that is not defined on these rows, the verdict is inconclusive as well.
"""

from __future__ import annotations

import math

import numpy as np

from evaluators.paired_gates import judge_baseline, judge_better, judge_no_worse
from evaluators.scored import Challenge, Floats, GateResult, Scored, Verdict, too_few, undefined
from evaluators.slice_gates import judge_slices
from evaluators.wording import count, number
from policies.metrics import METRICS
from policies.schema import (
    AtLeastGate,
    AtMostGate,
    BaselineGate,
    BetterGate,
    Gate,
    LatencyGate,
    NoWorseGate,
    SizeGate,
    SlicesGate,
)  # fmt: skip


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
            return judge_no_worse(gate, challenge)
        case BetterGate():
            return judge_better(gate, challenge)
        case BaselineGate():
            return judge_baseline(gate, challenge)
        case SlicesGate():
            return judge_slices(gate.slices, challenge)
        case LatencyGate():
            return _latency(gate.latency_ms_p95_max, challenge.latency_ms)
        case SizeGate():
            return _size(gate.size_mb_max, challenge.size_mb)


# ---------------------------------------------------------------- one number against a limit
def _limit(metric: str, limit: float, relation: str, min_rows: int, scored: Scored) -> GateResult:
    name = f"{metric} {relation} {limit:g}"
    if scored.rows < min_rows:
        return too_few(name, scored.rows, min_rows)
    value = scored.score(metric, scored.challenger)
    if not math.isfinite(value):
        return undefined(name, metric, "the challenger", scored, scored.challenger)
    verdict = Verdict.PASS if (value >= limit if relation == "at least" else value <= limit) else Verdict.FAIL
    return GateResult(
        gate=name,
        verdict=verdict,
        sentence=f"{metric}: challenger {number(value)} on {count(scored.rows, 'matured row')}; {relation} {number(limit)} asked; "
        f"{verdict.word}",
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
        sentence=f"latency: 95 % of {len(latency_ms)} single-row answers within {p95:.3g} ms, {limit_ms:g} ms allowed; {verdict.word}",
        numbers={"latency_ms_p95": p95, "limit": limit_ms, "calls": len(latency_ms)},
    )


def _size(limit_mb: float, size_mb: float) -> GateResult:
    verdict = Verdict.PASS if size_mb <= limit_mb else Verdict.FAIL
    return GateResult(
        gate=f"size_mb_max {limit_mb:g}",
        verdict=verdict,
        sentence=f"size: {size_mb:.3g} MB, {limit_mb:g} MB allowed; {verdict.word}",
        numbers={"size_mb": size_mb, "limit": limit_mb},
    )
