"""`ratchet watch`: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from controller.cli.client import CliError, Exit, call
from controller.cli.output import console, sayable, sayable_line, second, shown, stops, traffic, version_name, words

if TYPE_CHECKING:
    from rich.console import RenderableType

WAIT_S = 20.0
"""Of one long poll."""
REFRESH_S = 1.0
LAST_EVENTS = 12


def watch_lines(name: str | None, after: int | None) -> None:
    """Print each event when it happens, for ever; a daemon that is away for a while is waited for, and nothing is missed."""
    seen = newest_seq(name) if after is None else after
    away = False
    while True:
        try:
            events = call(
                "GET", "/events", params={"model": name, "after": seen, "wait_s": WAIT_S}, timeout_s=WAIT_S + 30
            )["events"]
        except CliError as error:
            if error.code is not Exit.UNREACHABLE:
                raise
            if not away:
                print(sayable(f"ratchet: {error}; waiting for it"), file=sys.stderr, flush=True)
            away = True
            time.sleep(REFRESH_S)
            continue
        away = False
        for event in events:
            seen = event["seq"]
            print(
                sayable_line(
                    f"{event['seq']} {second(event['at'])} {event['model']} {event['kind']}: {event['sentence']}"
                ),
                flush=True,
            )


def newest_seq(name: str | None) -> int:
    events = call("GET", "/events", params={"model": name, "newest": True, "limit": 1})["events"]
    return int(events[-1]["seq"]) if events else 0


def watch_table(name: str | None) -> None:
    """Redraw until interrupted; a daemon that is away for a while is waited for."""
    from rich.live import Live
    from rich.text import Text

    screen = console()
    with Live(_screen(name), console=screen, auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(REFRESH_S)
            try:
                live.update(_screen(name), refresh=True)
            except CliError as error:
                if error.code is not Exit.UNREACHABLE:
                    raise
                live.update(Text(f"{error}; waiting for it", "bold red"), refresh=True)


def _screen(name: str | None) -> RenderableType:
    from rich.console import Group
    from rich.rule import Rule

    models = call("GET", "/models")["models"]
    events = call("GET", "/events", params={"model": name, "newest": True, "limit": LAST_EVENTS})["events"]
    chosen = [m for m in models if name is None or m["name"] == name]
    return Group(_models(chosen), Rule(style="dim", characters="-"), _events(events, of_one=name is not None))


def _models(models: list[dict[str, Any]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, expand=True, header_style="bold", pad_edge=False)
    for column in ("MODEL", "CHAMPION", "PHASE", "TRAFFIC"):
        table.add_column(column, no_wrap=True)
    table.add_column("SENTENCE", ratio=1)
    for m in models:
        phase = ", ".join(part for part in (words(m["phase"]), stops(m["held"])) if part)
        cells = (m["name"], version_name(m["champion"]), shown(phase), traffic(m["traffic"]), m["sentence"])
        table.add_row(*(Text(sayable(cell)) for cell in cells))
    return table


def _events(events: list[dict[str, Any]], *, of_one: bool) -> RenderableType:
    """Newest first. Times of the newest's day without the date, and of one model without its name: sentences need the room."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2), expand=True)
    for style in ("dim", "") if of_one else ("dim", "dim", ""):
        table.add_column(style=style, no_wrap=True)
    table.add_column(ratio=1)
    today = second(events[-1]["at"])[:10] if events else ""
    for event in reversed(events):
        at = second(event["at"]).removeprefix(today).strip()
        cells = (at, *([] if of_one else [event["model"]]), event["kind"], event["sentence"])
        table.add_row(*(Text(sayable(cell)) for cell in cells))
    return table
