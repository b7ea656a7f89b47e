"""Numbers as people read them, and the one form in which every comparison of two models is told."""

from __future__ import annotations


def number(value: float) -> str:
    """Three decimals and no zero before the point, as tables have them; four below .01, where differences lie; none from a thousand on.

    >>> [number(x) for x in (0.6124, -0.0312, 0.00461, 0.0, 12.3456, 4210.4, 1.0, 0.9996)]
    ['.612', '-.031', '.0046', '0', '12.346', '4,210', '1.000', '1.000']
    """
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    text = f"{value:.4f}" if 0 < size < 0.01 else f"{value:.3f}"
    if float(text) == 0:
        return "0"
    return text.replace("0.", ".", 1) if size < 1 and abs(float(text)) < 1 else text


def count(rows: int, noun: str = "row") -> str:
    """
    >>> count(1), count(4210), count(3, "slice")
    ('1 row', '4,210 rows', '3 slices')
    """
    return f"{rows:,} {noun}{'' if rows == 1 else 's'}"


def about(rows: int) -> str:
    """To two digits, since such numbers are guesses.

    >>> about(13_071), about(96)
    ('13,000', '96')
    """
    return f"{float(f'{rows:.2g}'):,.0f}"


def percent(confidence: float) -> str:
    """At most two digits after the point, and never rounded up to certainty.

    >>> percent(0.95), percent(0.999), percent(0.97604), percent(0.999999)
    ('95 %', '99.9 %', '97.6 %', '99.9999 %')
    """
    rounded = round(100 * confidence, 2)
    return f"{rounded:g} %" if rounded < 100 else f"{100 * confidence:.8g} %"


def comparison(
    *,
    metric: str,
    higher_is_better: bool,
    challenger: float,
    rival: str,
    rival_score: float,
    rows: int,
    difference: float,
    interval: tuple[float, float],
    level: float,
    bounds: tuple[float, float],
    decided_at: float,
    because: str,
    asked: str,
    verdict: str,
) -> str:
    """What two models scored on the same rows, and what follows.

    `difference`, `interval` (two-sided, at `level`) and `bounds` (one-sided each, at `decided_at`) are turned so that more is better.
    The interval says how sure the difference is; the bound says what decided, and is named apart, since the two are not the same number.

    >>> told = dict(metric="accuracy", higher_is_better=True, challenger=.612, rival="champion", rival_score=.581, rows=4210, level=.95,
    ...             difference=.031, interval=(.012, .050), bounds=(.014, .048), decided_at=.96, asked="at least -.005 asked")
    >>> print(comparison(**told, because="", verdict="passed"))
    accuracy: challenger .612 against champion .581 on 4,210 matured rows; difference .031, 95 % interval .012 to .050; at least .014 with 96 % confidence, at least -.005 asked; passed
    """  # noqa: E501 - the sentence is one line
    lower, upper = bounds
    shown = {
        "passed": f"at least {number(lower)}",
        "failed": f"at most {number(upper)}",
    }.get(verdict, f"at least {number(lower)} and at most {number(upper)}, each")
    word = "difference" if higher_is_better else "gain (less is better)"
    reason = f" because {because}" if because else ""
    return (
        f"{metric}: challenger {number(challenger)} against {rival} {number(rival_score)} on {count(rows, 'matured row')}; "
        f"{word} {number(difference)}, {percent(level)} interval {number(interval[0])} to {number(interval[1])}; "
        f"{shown} with {percent(decided_at)} confidence{reason}, {asked}; {verdict}"
    )
