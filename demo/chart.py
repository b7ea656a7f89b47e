"""The picture: score through the year for what was served and for the first version, with versions and marks, as SVG."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from demo.scores import Point

WIDTH, HEIGHT = 1000, 380
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 44, 60
MARK_COLORS = {"firing": "var(--quiet)", "refused": "var(--bad)", "rolled back": "var(--bad)"}


@dataclass(frozen=True)
class Span:
    """A version's time as champion."""

    start: pd.Timestamp
    end: pd.Timestamp
    name: str


@dataclass(frozen=True)
class Mark:
    """Something that happened."""

    at: pd.Timestamp
    kind: str
    sign: str
    sentence: str


def draw(points: Sequence[Point], spans: Sequence[Span], marks: Sequence[Mark]) -> str:
    """The whole SVG element."""
    values = [v for p in points for v in (p.served, p.first) if not math.isnan(v)]
    if not values or not spans:
        return "<p>There were too few labelled rows to draw a score.</p>"
    low, high = math.floor(min(values) * 20) / 20, math.ceil(max(values) * 20) / 20
    start, end = spans[0].start, max(points[-1].middle + pd.Timedelta(days=7), spans[-1].start)

    def x(at: pd.Timestamp) -> float:
        share = float((at - start) / (end - start))
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max(share, 0.0), 1.0)

    def y(score: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - score) / max(high - low, 1e-9)

    body = [
        *(_band(span, index, x) for index, span in enumerate(spans)), *_axis(low, high, start, end, x, y),
        _line([(x(p.middle), y(p.first)) for p in points if not math.isnan(p.first)], "var(--quiet)", "5 4"),
        _line([(x(p.middle), y(p.served)) for p in points if not math.isnan(p.served)], "var(--good)", ""),
        *(_mark(mark, x) for mark in marks), _legend(),
    ]  # fmt: skip
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="ROC AUC through the year">{"".join(body)}</svg>'


def _band(span: Span, index: int, x: Callable[[pd.Timestamp], float]) -> str:
    left, right = x(span.start), x(span.end)
    fill = "var(--band)" if index % 2 == 0 else "none"
    return (
        f'<rect x="{left:.1f}" y="{TOP}" width="{max(right - left, 0):.1f}" height="{HEIGHT - TOP - BOTTOM}" fill="{fill}"/>'
        f'<text x="{left + 4:.1f}" y="{TOP + 14}" font-size="12" font-weight="600" fill="currentColor">{span.name}</text>'
    )


def _axis(
    low: float,
    high: float,
    start: pd.Timestamp,
    end: pd.Timestamp,
    x: Callable[[pd.Timestamp], float],
    y: Callable[[float], float],
) -> list[str]:
    lines = []
    for step in range(round((high - low) * 20) + 1):
        score = low + step / 20
        lines.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(score):.1f}" y2="{y(score):.1f}" stroke="var(--line)"/>'
            f'<text x="{LEFT - 8}" y="{y(score) + 4:.1f}" font-size="12" text-anchor="end" fill="var(--quiet)">{score:.2f}</text>'
        )
    for month in pd.date_range(start.normalize(), end, freq="MS"):
        lines.append(
            f'<text x="{x(month):.1f}" y="{HEIGHT - BOTTOM + 18}" font-size="12" fill="var(--quiet)">{month:%b}</text>'
        )
    return lines


def _line(places: Sequence[tuple[float, float]], color: str, dashes: str) -> str:
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2.2" stroke-dasharray="{dashes}"/>'


def _mark(mark: Mark, x: Callable[[pd.Timestamp], float]) -> str:
    color = MARK_COLORS.get(mark.kind, "var(--quiet)")
    bottom = HEIGHT - BOTTOM
    row = bottom + 34 if mark.kind == "firing" else bottom + 50
    title = html.escape(f"{mark.at:%d %b}: {mark.kind}. {mark.sentence}")
    return (
        f'<g><title>{title}</title><line x1="{x(mark.at):.1f}" x2="{x(mark.at):.1f}" y1="{TOP}" y2="{bottom}" '
        f'stroke="{color}" stroke-opacity=".35"/><text x="{x(mark.at):.1f}" y="{row}" font-size="13" text-anchor="middle" '
        f'fill="{color}">{mark.sign}</text></g>'
    )


def _legend() -> str:
    items = (("var(--good)", "", "served"), ("var(--quiet)", "5 4", "first version, frozen"))
    parts = []
    for index, (color, dashes, name) in enumerate(items):
        left = LEFT + 120 * index
        parts.append(
            f'<line x1="{left}" x2="{left + 26}" y1="20" y2="20" stroke="{color}" stroke-width="2.2" stroke-dasharray="{dashes}"/>'
            f'<text x="{left + 32}" y="24" font-size="13" fill="currentColor">{name}</text>'
        )
    parts.append(
        f'<text x="{LEFT + 330}" y="24" font-size="13" fill="var(--quiet)">▲ cycle opened   ✕ refused   ↩ rolled back   '
        "? inconclusive   (ROC AUC of two-week blocks)</text>"
    )
    return "".join(parts)
