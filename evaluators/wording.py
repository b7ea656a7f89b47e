"""Numbers as people read them in the sentences of gates and comparisons."""

from __future__ import annotations


def number(value: float) -> str:
    """Three decimals below 1 (four below .01), without the zero before the point; four digits above.

    >>> [number(x) for x in (0.6124, -0.0312, 0.00461, 0.0, 12.3456, 4210.4, 1.0)]
    ['.612', '-.031', '.0046', '.000', '12.35', '4,210', '1.000']
    """
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.2f}"
    text = f"{value:.4f}" if 0 < size < 0.01 else f"{value:.3f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


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
