"""Faults of single columns, and of two that changed places. Pure.

Every rule asks for more than being unusual: drift is unusual too. A column has *gone constant* only if it never stood still for a fifth
as long, a *unit* has changed only if undoing it brings all quantiles back to where they always were, columns are *swapped* only if each
looks like the other's past. Where a large part of the table moved at once, that is another population and no broken column.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from pipelines.data.quality.profile import History, PastColumn, distance
from pipelines.data.quality.summary import LEVELS, Block, Column, Floats

ROWS_MIN = 100
"""Rows of a window without which only missing columns and types are looked at."""
TIMES_LONGER = 5
"""A column has gone constant when it stands still this many times longer than ever before."""
NULLS_MARGIN = 0.2
MOVED_AT_LEAST = 0.25
"""Distance from which a column's distribution counts as moved."""
MOVED_SHARE = 0.25
"""Share of a table's columns; when more than that moved, and at least three, it is no single column's fault."""
STEADY = 0.6
"""A column whose blocks were further apart than this before (a counter, a date) has no usual place to leave."""
SWAP_OWN, SWAP_CROSS = 0.35, 0.25
"""Distance from its own past that a swapped column has at least, and from the other's at most."""
TREND_APART = 0.25
"""How much the rank correlations of two columns with the label must always have differed, for an exchange of them to be told."""
SMALL_FACTOR = 6.0
"""Under this, growth alone might do it, and the factor must be met exactly."""
EXACT = 0.04
"""How exactly, relative."""
UNITS: Mapping[str, float] = {
    **{f"times {10**n:,}": float(10**n) for n in range(1, 7)},
    "kilograms to pounds": 2.20462,
    "miles to kilometres": 1.60934,
    "metres to feet": 3.28084,
    "inches to centimetres": 2.54,
    "hours to minutes": 60.0,
    "hours to seconds": 3600.0,
    "days to hours": 24.0,
    "weeks to days": 7.0,
    "days to minutes": 1440.0,
    "days to seconds": 86400.0,
    "feet to inches": 12.0,
    "gallons to litres": 3.78541,
    "degrees to radians, undone": 57.29578,
    "ounces to grams": 28.3495,
}
"""Usual changes of unit; each may also be undone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A fault, not yet placed in time."""

    kind: str
    subject: str
    sentence: str
    columns: tuple[str, ...] = ()
    """What it is about, where that is not the subject alone."""

    @property
    def about(self) -> frozenset[str]:
        return frozenset(self.columns or (self.subject,))


def column_faults(history: History, window: Block, *, schema: bool = True) -> list[Found]:
    """What is wrong with the window's columns. With `schema`, columns that are missing count."""
    pairs = {name: (past, window.columns[name]) for name, past in history.columns.items() if name in window.columns}
    found = list(_missing(history, window)) if schema else []
    for name, (past, now) in pairs.items():
        found += _type_changed(name, past, now)
    if not history.is_enough or window.rows < ROWS_MIN:
        return found
    for name, (past, now) in pairs.items():
        found += _nulls_jumped(name, past, now)
    moved = {name for name, (past, now) in pairs.items() if has_moved(past, now)}
    suspects = [f for name, (past, now) in pairs.items() for f in _column_alone(name, past, now, window.rows)]
    suspects += _swaps(pairs)
    others = len(moved.difference(*(fault.about for fault in suspects)))
    if others < 3 or others <= MOVED_SHARE * len(pairs):
        found += suspects
    return found


def gone_live(history: History, window: Block) -> list[str]:
    """Columns that held one value or nothing as long as they are known, and vary now: no fault, but worth knowing."""
    return [
        name
        for name, past in history.columns.items()
        if name in window.columns and window.columns[name].distinct > 1 and all(b.distinct <= 1 for b in past.blocks)
    ]


def has_moved(past: PastColumn, now: Column) -> bool:
    """Whether the distribution is far from that of the newest blocks, also by this column's own measure."""
    if not now.grid or not len(past.pooled):
        return False
    return distance(np.array(now.grid), past.pooled) > max(MOVED_AT_LEAST, past.unrest)


# ---------------------------------------------------------------- schema
def _missing(history: History, window: Block) -> Iterator[Found]:
    """Columns that the newest accepted block had."""
    newest = history.blocks[-1].columns if history.blocks else {}
    for name in newest:
        if name not in window.columns:
            yield Found(kind="column_missing", subject=name, sentence=f"column {name!r} is missing")


def _type_changed(name: str, past: PastColumn, now: Column) -> Iterator[Found]:
    if {past.kind, now.kind} == {"number", "text"}:
        words = {"number": "numbers", "text": "text"}
        sentence = f"column {name!r} held {words[past.kind]} and now holds {words[now.kind]}"
        yield Found(kind="type_changed", subject=name, sentence=sentence)


# ---------------------------------------------------------------- one column
def _nulls_jumped(name: str, past: PastColumn, now: Column) -> Iterator[Found]:
    """The share of missing values is above all history by `NULLS_MARGIN` and half of what it ever varied."""
    low, high = past.nulls
    share = sum(now.nulls) / 2
    if share > high + max(NULLS_MARGIN, (high - low) / 2):
        sentence = f"{share:.0%} of {name!r} is missing, where at most {high:.0%} ever was"
        yield Found(kind="nulls_jumped", subject=name, sentence=sentence)


def _column_alone(name: str, past: PastColumn, now: Column, rows: int) -> Iterator[Found]:
    if now.kind == "empty" or past.kind not in ("number", "text") or past.kind != now.kind:
        return
    if now.distinct == 1:
        if not past.ever_constant and now.run >= TIMES_LONGER * past.run:
            sentence = (
                f"{name!r} has had one value for {rows:,} rows, where it never had one for more than {past.run:,}"
            )
            yield Found(kind="gone_constant", subject=name, sentence=sentence)
        return
    if past.kind == "number" and (words := unit_change(past, now)):
        yield Found(kind="unit_changed", subject=name, sentence=f"the unit of {name!r} seems to have changed: {words}")


def unit_change(past: PastColumn, now: Column) -> str:
    """What happened to a numeric column's unit, in words; an empty string if nothing did.

    For a factor k, with q the quantiles of log10 |x| in the window and [l, h] their range over all chunks of the history: q lies outside of
    [l, h] by half of log10 k, and q - log10 k lies inside, give or take a tenth of log10 k. Under `SMALL_FACTOR`, and for degrees, where
    growth alone might do it, the values themselves are looked at, and must be the newest ones converted (`_is_conversion`). Any other jump
    by more than 10 at all quantiles alike, or to three times the range of all history beyond it, is said without a name.
    """
    if past.is_counter or past.unrest == 1.0 or len(past.filled) < 2:
        return ""
    logs = past.envelope(logs=True)
    if logs is not None and now.log_low:
        quantiles = _middle(now.log_low, now.log_high)
        for words, factor in _factors():
            if max(factor, 1 / factor) >= SMALL_FACTOR and _is_factor(quantiles, logs, np.log10(factor)):
                return words
        if jump := _coherent_jump(quantiles, logs):
            return f"all its values are about {_times(jump)} what they were"
    for words, factor in _factors():
        if max(factor, 1 / factor) < SMALL_FACTOR and _is_conversion(past, now, factor, 0.0):
            return words
    for words, scale, shift in (("Celsius to Fahrenheit", 1.8, 32.0), ("Fahrenheit to Celsius", 1 / 1.8, -32 / 1.8)):
        if _is_conversion(past, now, scale, shift):
            return words
    return _far_away(past, now)


def _middle(low: Sequence[float], high: Sequence[float]) -> Floats:
    return np.asarray((np.array(low) + np.array(high)) / 2)


def _factors() -> Iterator[tuple[str, float]]:
    for words, factor in UNITS.items():
        yield f"{words} (times {factor:g})", factor
        yield f"{words}, the other way round (divided by {factor:g})", 1 / factor


def _is_factor(quantiles: Floats, envelope: tuple[Floats, Floats], shift: float) -> bool:
    low, high = envelope
    margin, slack = abs(shift) / 2, abs(shift) / 10
    outside = np.all(quantiles > high + margin) if shift > 0 else np.all(quantiles < low - margin)
    undone = quantiles - shift
    return bool(outside and np.all(undone >= low - slack) and np.all(undone <= high + slack))


def _coherent_jump(quantiles: Floats, envelope: tuple[Floats, Floats]) -> float:
    """log10 of the factor by which all quantiles left their range alike, if by more than 10; else 0."""
    low, high = envelope
    for shift, outside in ((quantiles - high, quantiles > high + 1), (quantiles - low, quantiles < low - 1)):
        if outside.all() and shift.max() - shift.min() < 0.3:
            return float(np.median(shift))
    return 0.0


def _times(log10: float) -> str:
    return f"{10**log10:,.0f} times" if log10 > 0 else f"{10**-log10:,.0f} times less than"


def _is_conversion(past: PastColumn, now: Column, scale: float, shift: float) -> bool:
    """Whether most quantiles left their range, all are inside it once converted back, and the quartiles are the newest ones converted."""
    envelope = past.envelope()
    if envelope is None or not now.low or past.unrest > STEADY:
        return False
    quantiles = _middle(now.low, now.high)
    undone = (quantiles - shift) / scale
    return _left(quantiles, envelope) and _within(undone, envelope) and _is_exact(past, now, scale, shift)


def _left(quantiles: Floats, envelope: tuple[Floats, Floats]) -> bool:
    """Whether most quantiles lie outside of their range by more than half its width."""
    low, high = envelope
    margin = (high - low) / 2
    return bool(np.sum((quantiles > high + margin) | (quantiles < low - margin)) > len(LEVELS) / 2)


def _within(quantiles: Floats, envelope: tuple[Floats, Floats]) -> bool:
    """Whether all quantiles lie in their range, give or take a tenth of its width."""
    low, high = envelope
    slack = (high - low) / 10 + 1e-6 * np.abs(high)
    return bool(np.all(quantiles >= low - slack) and np.all(quantiles <= high + slack))


def _is_exact(past: PastColumn, now: Column, scale: float, shift: float) -> bool:
    """Whether the newest distribution, converted, has the window's quartiles to `EXACT` of its spread and location."""
    at = [LEVELS.index(level) for level in (0.25, 0.5, 0.75)]
    before = np.quantile(past.pooled, (0.25, 0.5, 0.75)) * scale + shift
    quantiles = _middle(now.low, now.high)[at]
    size = max(float(np.abs(before).max()), float(np.ptp(before)))
    return bool(np.all(np.abs(quantiles - before) <= EXACT * size))


def _far_away(past: PastColumn, now: Column) -> str:
    """Words for values that lie further beyond all that ever was than three times its whole range; else an empty string."""
    envelope = past.envelope()
    if envelope is None or not now.low or past.unrest > STEADY:
        return ""
    least, most = float(envelope[0].min()), float(envelope[1].max())
    quantiles = _middle(now.low, now.high)
    far = 3 * (most - least)
    if far > 0 and (quantiles.min() > most + far or quantiles.max() < least - far):
        return f"its values lie about {float(quantiles[2]):g}, where they always lay from {least:g} to {most:g}"
    return ""


# ---------------------------------------------------------------- two columns
def _swaps(pairs: Mapping[str, tuple[PastColumn, Column]]) -> Iterator[Found]:
    """Pairs of columns of one kind that look each like the other's past and unlike their own."""
    able = {name: pair for name, pair in pairs.items() if pair[1].grid and pair[0].kind == pair[1].kind}
    found = set()
    for rule, suspect in ((_look_swapped, _looks_odd), (_lie_swapped, _lies_odd), (_behave_swapped, _behaves_odd)):
        odd = [name for name, (past, now) in able.items() if not past.is_counter and suspect(past, now)]
        found |= {
            (a, b) for a, b in combinations(odd, 2) if able[a][0].kind == able[b][0].kind and rule(able[a], able[b])
        }
    for a, b in sorted(found):
        sentence = f"columns {a!r} and {b!r} look as the other did: were they swapped?"
        yield Found(kind="columns_swapped", subject=f"{a} and {b}", sentence=sentence, columns=(a, b))


def _looks_odd(past: PastColumn, now: Column) -> bool:
    if past.unrest > STEADY or past.ever_constant:
        return False
    return distance(np.array(now.grid), past.pooled) >= SWAP_OWN + past.unrest / 2


def _lies_odd(past: PastColumn, now: Column) -> bool:
    envelope = past.envelope()
    return envelope is not None and bool(now.low) and _left(_middle(now.low, now.high), envelope)


def _behaves_odd(past: PastColumn, now: Column) -> bool:
    trends = past.trends
    return trends is not None and now.trend is not None and not trends[0] <= now.trend <= trends[1]


def _look_swapped(a: tuple[PastColumn, Column], b: tuple[PastColumn, Column]) -> bool:
    """By their distributions: each far from its own past, and nearer to the other's than half of that."""
    own_a, own_b = (distance(np.array(now.grid), past.pooled) for past, now in (a, b))
    cross_a = distance(np.array(a[1].grid), b[0].pooled) - b[0].unrest / 2
    cross_b = distance(np.array(b[1].grid), a[0].pooled) - a[0].unrest / 2
    return max(cross_a, cross_b) <= min(SWAP_CROSS, own_a / 2, own_b / 2)


def _lie_swapped(a: tuple[PastColumn, Column], b: tuple[PastColumn, Column]) -> bool:
    """By their values: each has left its own range and lies in the other's."""
    range_a, range_b = a[0].envelope(), b[0].envelope()
    if range_a is None or range_b is None or not a[1].low or not b[1].low:
        return False
    now_a, now_b = _middle(a[1].low, a[1].high), _middle(b[1].low, b[1].high)
    return _within(now_a, range_b) and _within(now_b, range_a)


def _behave_swapped(a: tuple[PastColumn, Column], b: tuple[PastColumn, Column]) -> bool:
    """By their rank correlations with the label, where the distributions are alike."""
    past_a, past_b, now_a, now_b = a[0].trends, b[0].trends, a[1].trend, b[1].trend
    if past_a is None or past_b is None or now_a is None or now_b is None:
        return False
    apart = max(past_a[0] - past_b[1], past_b[0] - past_a[1])
    slack = apart / 4
    exchanged = past_b[0] - slack <= now_a <= past_b[1] + slack and past_a[0] - slack <= now_b <= past_a[1] + slack
    if apart < TREND_APART or not exchanged:
        return False
    cross = max(distance(np.array(a[1].grid), b[0].pooled), distance(np.array(b[1].grid), a[0].pooled))
    return cross <= SWAP_CROSS
