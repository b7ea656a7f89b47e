"""Numbers as people read them in the sentences of gates and comparisons."""

from __future__ import annotations


def number(value: float) -> str:
    """Three decimals, as tables have them; four below .01, where differences lie; none from a thousand on.

    >>> [number(x) for x in (0.6124, -0.0312, 0.00461, 0.0, 12.3456, 4210.4, 1.0)]
    ['0.612', '-0.031', '0.0046', '0.000', '12.346', '4,210', '1.000']
    """
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    text = f"{value:.4f}" if 0 < size < 0.01 else f"{value:.3f}"
    return text.removeprefix("-") if float(text) == 0 else text


def count(rows: int, noun: str = "row") -> str:
    """
    >>> count(1), count(4210), count(3, "slice")
    ('1 row', '4,210 rows', '3 slices')
    """
    return f"{rows:,} {noun}{'' if rows == 1 else 's'}"


def percent(confidence: float) -> str:
    """
    >>> percent(0.95), percent(0.999)
    ('95 %', '99.9 %')
    """
    return f"{100 * confidence:g} %"
