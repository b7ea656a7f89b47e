"""What the commands print: tables for people, JSON and YAML for programs; plain where colour or Unicode cannot be shown."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from controller.cli.client import CliError, Exit

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 4096
"""Nothing is cut off or wrapped where no terminal is."""


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters but tab and newline, and those that turn the direction of writing."""
Output = Annotated[Format, typer.Option("--output", "-o", help="How to print: table, json or yaml.")]


def console(*, stderr: bool = False) -> Console:
    """For people. Colours only on terminals, and not with NO_COLOR."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=False)


def speaks_unicode() -> bool:
    """Whether bars and arrows can be printed."""
    return (sys.stdout.encoding or "").lower().replace("-", "") in ("utf8", "utf16", "utf32")


def sayable(text: str) -> str:
    r"""The text as standard output can show it, and no more than text: what would steer the terminal is spelled out.

    Reasons, errors of an owner's code and the like come from anybody; a terminal takes their escape sequences for orders.

    >>> sayable("\x1b]0;gotcha\x07")
    '\\x1b]0;gotcha\\x07'
    """
    encoding = sys.stdout.encoding or "ascii"
    return _STEERING.sub(_spelled, text).encode(encoding, "replace").decode(encoding)


def sayable_line(text: str) -> str:
    """`sayable`, on one line whatever the text holds, so that no text can pass for a line of its own."""
    return sayable(" ".join(text.splitlines()))


def _spelled(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def print_data(value: Any, form: Format) -> None:
    """JSON or YAML, exactly as the API gave it."""
    if form is Format.JSON:
        text = json.dumps(value, indent=2, ensure_ascii=not speaks_unicode())
        print(
            _STEERING.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
        )  # JSON's own way for what json leaves as it is
        return
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 4096
    yaml.allow_unicode = speaks_unicode()
    yaml.dump(value, sys.stdout)


LAST_COLUMN_MIN = 40
"""Narrower, sentences turn into towers: they then stand below their row."""


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """Like kubectl: no lines, headings in capitals. Only the last column is wrapped; what must be read whole is never cut."""
    from rich.cells import cell_len
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    cells = [[sayable_line(shown(cell)) for cell in row] for row in rows]
    if not cells:
        print(empty, file=sys.stderr)
        return
    lines = [[heading.upper() for heading in columns], *cells]
    widths = [max(cell_len(line[i]) for line in lines) for i in range(len(columns) - 1)]
    screen, whole = console(), console()
    whole.width = max(whole.width, sum(widths) + 2 * len(widths))
    beside = screen.width >= sum(widths) + 2 * len(widths) + LAST_COLUMN_MIN
    for i, line in enumerate(lines):
        grid = Table.grid(padding=(0, 2, 0, 0))
        for width in widths:
            grid.add_column(no_wrap=True, width=width)
        texts = [Text(cell, "" if i else "bold") for cell in line]
        if beside:
            grid.add_column(overflow="fold")
            grid.add_row(*texts)
            screen.print(grid)
        else:
            grid.add_row(*texts[:-1])
            whole.print(grid)
            screen.print(Padding(texts[-1], (0, 0, 0, 2)))


def shown(cell: Any) -> str:
    if cell is None or cell == "":
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def moment(text: str | None) -> str:
    """An ISO time as people read it.

    >>> moment("2013-03-02T04:00:00Z")
    '2013-03-02 04:00'
    """
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M}" if text else "-"


def second(text: str) -> str:
    """An ISO time to the second, for what follows closely.

    >>> second("2013-03-02T04:00:07.5Z")
    '2013-03-02 04:00:07'
    """
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M:%S}"


def version_name(number: int | None) -> str:
    return "-" if number is None else f"v{number}"


def words(name: str | None) -> str:
    """A phase or outcome as people read it; nothing for none.

    >>> words("rolling_out"), words(None)
    ('rolling out', '')
    """
    return (name or "").replace("_", " ")


def traffic(view: Mapping[str, Any]) -> str:
    """For example `v3 95 %, v4 5 %`."""
    parts = [f"v{number} {weight:g} %" for number, weight in sorted(view["weights"].items(), key=lambda kv: int(kv[0]))]
    parts += [f"v{view['shadow']} in shadow"] if view["shadow"] is not None else []
    return ", ".join(parts) or "-"


def stops(held: Mapping[str, Any]) -> str:
    """The names of the holds that are on."""
    return ", ".join(name for name, hold in held.items() if hold)


def confirm(question: str, *, yes: bool) -> None:
    """Ask on a terminal. Raises CliError when told no, or when there is nobody to ask."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise CliError("nobody can be asked, since this is no terminal: say --yes to go ahead", Exit.USAGE)
    if not typer.confirm(question, err=True):
        raise CliError("nothing was changed")
