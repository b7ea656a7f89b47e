"""What a rule makes of a metric's newest answer: bad, not bad, or unknown. Pure.

A share acts by Wilson's bound, so that 2 errors of 10 are not 20 %: E. B. Wilson, Probable inference, the law of succession, and
statistical inference, J. Am. Stat. Assoc. 22 (1927), 209-212.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

from policies.durations import about
from policies.metric_shapes import MetricRule
from policies.signals import Basis, Signal

CLOCK_SKEW = timedelta(minutes=1)
"""How far ahead of ours the clock of whoever measured may be; facts from further in the future are unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a rule says. `doubtful`: not shown to be bad, but the point is beyond the limit."""

    state: Literal["bad", "fine", "unknown"]
    sentence: str
    doubtful: bool = False


def wilson(value: float, count: float, confidence: float) -> tuple[float, float]:
    """One-sided bounds of a share: each holds with this confidence.

    With z the normal quantile: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n).

    >>> low, high = wilson(12 / 571, 571, 0.95)
    >>> round(low, 4), round(high, 4)
    (0.0132, 0.0334)
    >>> wilson(0.0, 0, 0.95)
    (0.0, 1.0)
    """
    if count <= 0:
        return 0.0, 1.0
    z2 = _quantile(confidence) ** 2
    middle = value + z2 / (2 * count)
    spread = math.sqrt(z2 * (max(value * (1 - value), 0.0) / count + z2 / (4 * count * count)))
    scale = 1 + z2 / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


@lru_cache(maxsize=256)
def _quantile(confidence: float) -> float:
    return NormalDist().inv_cdf(confidence)


def judge(rule: MetricRule, signal: Signal | None, now: datetime, max_age: timedelta) -> Verdict:
    """One look. `max_age` bounds what has no bound of its own."""
    reason = why_unknown(rule, signal, now, max_age)
    if signal is None or signal.value is None or reason:
        return Verdict(state="unknown", sentence=f"{rule.label} is unknown: {reason}")
    side, limit = ("above", rule.above) if rule.above is not None else ("below", rule.below)
    assert limit is not None
    point_beyond = signal.value > limit if side == "above" else signal.value < limit
    if signal.basis is not Basis.SHARE:
        counted = f" ({signal.rows} counted)" if signal.basis is Basis.COUNTED else ""
        state: Literal["bad", "fine"] = "bad" if point_beyond else "fine"
        beyond = side if point_beyond else f"not {side}"
        unit = f" {signal.detail}" if signal.detail else ""
        words = f"{rule.label} {_number(signal.value)}{unit} is {beyond} {limit:g}{unit}{counted}"
        return Verdict(state=state, sentence=words)
    low, high = wilson(signal.value, signal.rows, rule.confidence)
    shown = low > limit if side == "above" else high < limit
    bound = f"at least {_number(low)}" if side == "above" else f"at most {_number(high)}"
    words = f"{rule.label} {_number(signal.value)} ({signal.detail or f'of {signal.rows}'}), {bound} at {100 * rule.confidence:g} %,"
    if shown:
        return Verdict(state="bad", sentence=f"{words} is {side} {limit:g}")
    so_far = ", though the point is" if point_beyond else ""
    return Verdict(state="fine", sentence=f"{words} is not shown {side} {limit:g}{so_far}", doubtful=point_beyond)


def why_unknown(rule: MetricRule, signal: Signal | None, now: datetime, max_age: timedelta) -> str:
    """Why the answer cannot be used, or an empty string."""
    if signal is None:
        return "not asked for yet"
    if signal.value is None:
        return signal.reason or "no value"
    if not math.isfinite(signal.value):
        return f"it is {signal.value}"
    age = now - signal.observed_at
    if age < -CLOCK_SKEW:
        return f"answered {about(-age)} in the future, so a clock is wrong"
    if age > max_age or (signal.good_until is not None and now > signal.good_until):
        return f"the newest answer is from {about(age)} ago; is Prometheus away, or slow?"
    if rule.min_count and signal.basis is Basis.BARE:
        return "nothing says how many it rests on: give total beside query, or min_count: 0"
    if signal.basis is not Basis.BARE and signal.rows < rule.min_count:
        return f"it rests on {signal.rows} counted, of {rule.min_count} needed (min_count)"
    return ""


def _number(value: float) -> str:
    if value and abs(value) < 0.01:
        return f"{value:.3g}"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.6g}"
