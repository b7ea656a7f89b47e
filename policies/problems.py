"""What is wrong with a policy file, said so that its owner can put it right: where, which rule, which value, what to do."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Path: TypeAlias = tuple[str | int, ...]
"""A place in a document: keys and list indices from the top."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One mistake. Line and column count from 1; line 0 means the file as a whole."""

    file: str
    line: int = 0
    column: int = 0
    path: str = ""
    """Such as `spec.triggers.any[1].performance.below`; empty for the file as a whole."""
    rule: str
    value: str = ""
    """What stands there instead, as text; empty where the rule already says it."""
    suggestion: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        got = f", but got {self.value}" if self.value else ""
        hint = f"; {self.suggestion}" if self.suggestion else ""
        return f"{where}: {self.path}{': ' if self.path else ''}{self.rule}{got}{hint}"


def spell_path(path: Path) -> str:
    """
    >>> spell_path(("spec", "gates", 0, "metric")), spell_path(("metadata", "labels", "a.b"))
    ('spec.gates[0].metric', "metadata.labels['a.b']")
    """
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif re.fullmatch(r"[\w%-]+", step):
            text += f".{step}"
        else:
            text += f"[{shown(step)}]"
    return text.removeprefix(".")


def shown(value: Any) -> str:
    """A value as the owner wrote it, shortened; containers only by their kind, since they may hold secrets."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return _shorten(repr(value))
        case Mapping():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case _:
            return _shorten("'" + json.dumps(str(value), ensure_ascii=False)[1:-1].replace('\\"', '"') + "'")


def did_you_mean(word: object, choices: Iterable[str]) -> str:
    """
    >>> did_you_mean("tirggers", ["tune", "triggers"])
    "did you mean 'triggers'?"
    """
    close = difflib.get_close_matches(str(word)[:80], list(choices), n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else ""


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}…"
