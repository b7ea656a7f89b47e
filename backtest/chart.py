"""The pictures of a report, as SVG that needs nothing from outside: scores along the rows, and score against training cost."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 1000, 430
LEFT, RIGHT, TOP, BOTTOM = 56, 22, 56, 78
SCATTER_HEIGHT = 380
BAND_NAME_MIN = 26.0
"""Narrower bands have no room for the version's name; their tooltips have."""
OUTLIERS = 0.02
"""Share of the scores at the lower end that may lie outside the picture, so that one bad window does not flatten all others."""

Point = tuple[float, float]
Scale = Callable[[float], float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One contestant's scores."""

    name: str
    css: str
    """Class that gives it colour and dashes."""
    points: Sequence[tuple[float, float | None]]
    """(row, score), score None where it is not defined."""
    tips: Sequence[str] = ()
    """What is said of each point; none are marked if empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """Rows with one champion."""

    start: int
    end: int
    name: str
    tip: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A cycle that ended, or rows that were held."""

    row: int
    css: str
    sign: str
    tip: str


def draw(
    lines: Sequence[Line], bands: Sequence[Band], marks: Sequence[Mark], *, first: int, last: int, metric: str, higher_is_better: bool
) -> str:  # fmt: skip
    """The whole SVG element; a sentence where there is nothing to draw."""
    values = [score for line in lines for _, score in line.points if score is not None]
    if not values:
        return "<p>There were too few labelled rows to draw a score.</p>"
    low, high, step = _range(values, higher_is_better)

    def x(row: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (row - first) / max(last - first, 1)

    def y(score: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - score) / (high - low)

    body = [
        f'<clipPath id="inside"><rect x="{LEFT}" y="{TOP - 3}" width="{WIDTH - LEFT - RIGHT}" '
        f'height="{HEIGHT - TOP - BOTTOM + 6}"/></clipPath>',
        *(_band(band, index, x) for index, band in enumerate(bands)),
        *_score_axis(low, high, step, y, HEIGHT - BOTTOM),
        *_row_axis(first, last, x),
        *(_mark(mark, x) for mark in marks),
        f'<g clip-path="url(#inside)">{"".join(_line(line, x, y) for line in reversed(lines))}</g>',
        _legend(lines, marks),
    ]  # fmt: skip
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(metric)} along the rows">{"".join(body)}</svg>'


def scatter(points: Sequence[tuple[str, float, float]], best: int, *, metric: str) -> str:
    """One dot a setting: (name, training seconds, score)."""
    if not points:
        return "<p>No setting came to a score.</p>"
    low, high, step = _range([score for _, _, score in points], None)
    most = _round_up(max([1.0, *(seconds for _, seconds, _ in points)]))
    bottom = SCATTER_HEIGHT - 50

    def x(seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - 170) * seconds / most

    def y(score: float) -> float:
        return 24 + (bottom - 24) * (high - score) / (high - low)

    dots = []
    for index, (name, seconds, score) in enumerate(points):
        css = "dot best" if index == best else "dot"
        dots.append(
            f"<g><title>{html.escape(f'{name}: {metric} {score:.4f}, {seconds:.0f} s of training')}</title>"
            f'<circle class="{css}" cx="{x(seconds):.1f}" cy="{y(score):.1f}" r="6"/>'
            f'<text x="{x(seconds) + 10:.1f}" y="{y(score) + 4:.1f}" class="name">{html.escape(_short(name))}</text></g>'
        )
    ticks = [
        f'<text x="{x(most * i / 4):.1f}" y="{bottom + 20}" class="tick" text-anchor="middle">{most * i / 4:g}</text>'
        for i in range(5)
    ]
    title = (
        f'<text x="{LEFT}" y="{bottom + 42}" class="tick">seconds of search and training after the first version</text>'
    )
    lines = "".join(_score_axis(low, high, step, y, bottom))
    return (
        f'<svg viewBox="0 0 {WIDTH} {SCATTER_HEIGHT}" role="img" aria-label="{html.escape(metric)} against training cost">'
        f"{lines}{''.join(ticks)}{title}{''.join(dots)}</svg>"
    )


# ---------------------------------------------------------------- parts
def _range(values: Sequence[float], higher_is_better: bool | None) -> tuple[float, float, float]:
    """Bounds of the score axis on its steps, and the step; a few of the worst scores may lie outside.

    >>> _range([0.71, 0.84], True)
    (0.7, 0.85, 0.05)
    """
    ordered = sorted(values)
    cut = int(OUTLIERS * len(ordered)) if higher_is_better is not None else 0
    low = ordered[cut] if higher_is_better else ordered[0]
    high = ordered[-1 - cut] if higher_is_better is False else ordered[-1]
    room = max(high - low, abs(high) * 1e-3, 1e-6)
    step = 10 ** math.floor(math.log10(room / 3))
    step *= next(factor for factor in (1, 2, 5, 10) if room / (step * factor) <= 6)
    digits = max(0, -math.floor(math.log10(step)) + 1)
    bottom, top = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return round(bottom, digits), round(max(top, bottom + step), digits), round(step, digits)


def _round_up(value: float) -> float:
    """
    >>> _round_up(37.0), _round_up(4.1)
    (40.0, 5.0)
    """
    unit = 10.0 ** math.floor(math.log10(value))
    return math.ceil(value / unit) * unit


def _score_axis(low: float, high: float, step: float, y: Scale, bottom: float) -> list[str]:
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    found = []
    for index in range(round((high - low) / step) + 1):
        score = low + index * step
        found.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(score):.1f}" y2="{y(score):.1f}"/>'
            f'<text x="{LEFT - 8}" y="{y(score) + 4:.1f}" text-anchor="end" class="tick">{score:.{digits}f}</text>'
        )
    return found


def _row_axis(first: int, last: int, x: Scale) -> list[str]:
    step = _round_up(max((last - first) / 8, 1))
    rows = [row for row in range(0, last + 1, int(step)) if row >= first]
    return [
        f'<text x="{x(row):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" class="tick">{row:,}</text>' for row in rows
    ]  # fmt: skip


def _band(band: Band, index: int, x: Scale) -> str:
    left, right = x(band.start), x(band.end)
    css = "band odd" if index % 2 else "band"
    name = (
        f'<text x="{left + 4:.1f}" y="{TOP - 7}" class="version">{html.escape(band.name)}</text>'
        if right - left >= BAND_NAME_MIN
        else ""
    )
    return (
        f"<g><title>{html.escape(band.tip)}</title>"
        f'<rect class="{css}" x="{left:.1f}" y="{TOP - 22}" width="{max(right - left, 0.5):.1f}" '
        f'height="{HEIGHT - TOP - BOTTOM + 22}"/>{name}</g>'
    )


def _line(line: Line, x: Scale, y: Scale) -> str:
    """The line is broken where there is no score."""
    pieces: list[list[Point]] = [[]]
    for row, score in line.points:
        if score is None:
            pieces.append([])
        else:
            pieces[-1].append((x(row), y(score)))
    drawn = "".join(
        f'<polyline class="line {line.css}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in piece)}"/>'
        for piece in pieces
        if piece
    )
    dots = "".join(
        f'<circle class="point {line.css}" cx="{x(row):.1f}" cy="{y(score):.1f}" r="2.6"><title>{html.escape(tip)}</title></circle>'
        for (row, score), tip in zip(line.points, line.tips, strict=False)
        if score is not None
    )
    return drawn + dots


def _mark(mark: Mark, x: Scale) -> str:
    bottom = HEIGHT - BOTTOM
    return (
        f'<g class="mark {mark.css}"><title>{html.escape(mark.tip)}</title>'
        f'<line x1="{x(mark.row):.1f}" x2="{x(mark.row):.1f}" y1="{TOP}" y2="{bottom + 26}"/>'
        f'<text x="{x(mark.row):.1f}" y="{bottom + 39}" text-anchor="middle">{mark.sign}</text></g>'
    )


def _legend(lines: Sequence[Line], marks: Sequence[Mark]) -> str:
    parts, left = [], float(LEFT)
    for line in lines:
        parts.append(
            f'<line class="line {line.css}" x1="{left:.0f}" x2="{left + 26:.0f}" y1="14" y2="14"/>'
            f'<text x="{left + 32:.0f}" y="18" class="name">{html.escape(line.name)}</text>'
        )
        left += 50 + 7 * len(line.name)
    signs = {mark.css: mark.sign for mark in marks}
    left = float(LEFT)
    for css, sign in signs.items():
        words = css.replace("_", " ")
        parts.append(
            f'<g class="mark {css}"><text x="{left:.0f}" y="{HEIGHT - 10}">{sign}</text></g>'
            f'<text x="{left + 15:.0f}" y="{HEIGHT - 10}" class="tick">{words}</text>'
        )
        left += 36 + 7 * len(words)
    return "".join(parts)


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"
