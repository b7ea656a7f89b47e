"""What is shown while it runs: model, versions, traffic, score over time, phase, and the controller's own sentence."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from demo.scores import Point
from demo.story import View

PHASES = ("preparing", "tuning", "training", "judging", "packaging", "rolling_out", "baking")
PICTURE_AFTER_WEEKS = 16
"""The picture that is kept is taken late enough for there to be something to see."""
BARS = "▁▂▃▄▅▆▇█"
GOOD, BAD, NEW, QUIET = "green", "red", "cyan", "dim"
STYLES = {
    "cycle.opened": "bold yellow", "version.promoted": "bold green", "cycle.promoted": "green",
    "cycle.rejected": "bold red", "cycle.rolled_back": "bold red", "cycle.failed": "red",
    "cycle.ended_inconclusive": "yellow",
}  # fmt: skip
SHOWN = (*STYLES, "gates.passed", "study.finished", "version.created", "step.passed")


class Screen:
    """A live picture on a terminal; plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=False) if console.is_terminal else None
        self._seen = 0
        self._picture: RenderableType | None = None

    def __enter__(self) -> Screen:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, text: str, style: str = "bold") -> None:
        """A line about the demonstration itself."""
        self._console.print(Text(text, style=style))

    def show(
        self,
        view: View,
        points: Sequence[Point],
        *,
        now: datetime,
        days_per_s: float,
        elapsed_s: float,
        sent: int,
        failed: int,
    ) -> None:
        if self._live is None:
            self._print_lines(view)
        head = Text.assemble(
            (f" {now:%a %d %b %Y} ", "bold reverse"), f"  {days_per_s:.1f} days a second   {elapsed_s:.0f} s   requests {sent:,}  ",
            (f"failed {failed}", BAD if failed else GOOD),
        )  # fmt: skip
        body = Group(
            head, _versions(view.model), _scores(points), _phase(view), _sentence(view.model), _events(view.events)
        )
        frame = Panel(body, title="Ratchet · flight-late", border_style="blue")
        if self._live is not None:
            self._live.update(frame)
        shared = len((view.model.get("traffic") or {}).get("weights") or {}) > 1
        if shared and len(points) > PICTURE_AFTER_WEEKS:
            self._picture = frame

    def save_picture(self, path: Path) -> None:
        """The last frame of a canary, as SVG."""
        if self._picture is not None:
            canvas = Console(record=True, width=120, file=io.StringIO(), force_terminal=True, color_system="truecolor")
            canvas.print(self._picture)
            canvas.save_svg(str(path), title="make demo")

    def _print_lines(self, view: View) -> None:
        for event in view.events[self._seen :]:
            if event["kind"] in SHOWN:
                self._console.print(
                    f"{event['at'][:16]}  {event['kind']:<26} {event['sentence']}", markup=False, soft_wrap=True
                )
        self._seen = len(view.events)


def _versions(model: dict[str, Any]) -> RenderableType:
    table = Table(box=None, pad_edge=False, expand=True)
    for name, style in (("version", "bold"), ("status", ""), ("traffic", NEW), ("hold-out ROC AUC", ""), ("trained to", ""),
                        ("image", QUIET)):  # fmt: skip
        table.add_column(name, style=style)
    traffic = model.get("traffic") or {}
    weights = {int(v): w for v, w in (traffic.get("weights") or {}).items()}
    for version in (model.get("versions") or [])[-6:]:
        number = version["number"]
        share = weights.get(number, 0.0)
        bar = "█" * math.ceil(share / 5) + f" {share:g} %" if share else ""
        if traffic.get("shadow") == number:
            bar = "shadow (mirrored)"
        status = version["status"]
        color = {"champion": GOOD, "quarantined": BAD, "candidate": NEW}.get(status, QUIET)
        score = (version.get("scores") or {}).get("roc_auc")
        table.add_row(
            f"v{number}", Text(status, style=color), bar, f"{score:.3f}" if score is not None else "",
            (version.get("trained_to") or "")[:10], version["digest"][7:19],
        )  # fmt: skip
    return table


def sparkline(values: Sequence[float], low: float, high: float) -> str:
    """One character a value; a space where there is none.

    >>> sparkline([0.5, 0.75, float("nan"), 1.0], 0.5, 1.0)
    '▁▄ █'
    """
    span = max(high - low, 1e-9)
    cells = []
    for value in values:
        if math.isnan(value):
            cells.append(" ")
            continue
        position = min(max((value - low) / span, 0.0), 1.0)
        cells.append(BARS[int(position * (len(BARS) - 1))])
    return "".join(cells)


def _scores(points: Sequence[Point]) -> RenderableType:
    both = [v for p in points for v in (p.served, p.first) if not math.isnan(v)]
    if not both:
        return Text("no labels yet", style=QUIET)
    low, high = min(both), max(both)
    served, first = [p.served for p in points], [p.first for p in points]
    return Text.assemble(
        ("\nROC AUC by weeks, served     ", ""), (sparkline(served, low, high), GOOD), f"  now {served[-1]:.3f}\n",
        ("the first version, frozen    ", QUIET), (sparkline(first, low, high), QUIET), f"  now {first[-1]:.3f}\n",
    )  # fmt: skip


def _phase(view: View) -> RenderableType:
    text = Text()
    for name in PHASES:
        here = name == view.phase
        text.append(f" {name.replace('_', ' ')} ", style="bold black on yellow" if here else QUIET)
        text.append("▸" if name != PHASES[-1] else "", style=QUIET)
    if view.cycle:
        text.append(f"   cycle {view.cycle['number']}", style="bold")
    return text


def _sentence(model: dict[str, Any]) -> RenderableType:
    return Text(f"\n“{model.get('sentence') or 'starting'}”\n", style="italic", overflow="ellipsis")


def _events(events: Sequence[dict[str, Any]]) -> RenderableType:
    lines = [e for e in events if e["kind"] in SHOWN][-7:]
    table = Table(box=None, show_header=False, pad_edge=False, expand=True)
    table.add_column(min_width=10, no_wrap=True, style=QUIET)
    table.add_column(overflow="ellipsis", no_wrap=True, ratio=1)
    for event in lines:
        table.add_row(event["at"][:10], Text(event["sentence"], style=STYLES.get(event["kind"], "")))
    return table
