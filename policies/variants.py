"""One policy with other values in some places: the settings that a grid of replays compares.

`cooldown=100s,500s` names a place below `spec` (or `spec.…` itself) and the values to try; positions in lists are numbers, as in
`triggers.any.0.performance.window=1d,7d`. Whatever the policy's own rules say of a place or a value, they say here too.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from policies.documents import Document, parse_document
from policies.problems import Path as Place
from policies.problems import Problem
from policies.reading import read_document
from policies.schema import ModelPolicy

SETTINGS_MAX = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One place and the values to try there."""

    key: str
    """As it was written."""
    place: Place
    texts: tuple[str, ...]
    values: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """The policy with one value for each axis."""

    values: dict[str, str]
    """Key → value, as they were written."""
    policy: ModelPolicy


def parse_axis(text: str) -> Axis:
    """`cooldown=100s,500s`. Raises ValueError.

    >>> parse_axis("train.window=[1d,all],30d").values
    (['1d', 'all'], '30d')
    """
    key, sign, values = text.partition("=")
    key = key.strip()
    if not sign or not key or not all(key.split(".")):
        raise ValueError(f"must be KEY=VALUE,VALUE,… such as cooldown=6h,12h, but got {text!r}")
    texts = tuple(_split(values))
    if not all(texts):
        raise ValueError(f"{key}: a value is missing in {values!r}")
    if len(set(texts)) < len(texts):
        raise ValueError(f"{key}: each value once, but got {values!r}")
    steps = key.split(".")
    place = tuple(
        int(step) if step.isdecimal() else step for step in (steps if steps[0] == "spec" else ["spec", *steps])
    )
    return Axis(key=key, place=place, texts=texts, values=tuple(_value(key, one) for one in texts))


def settings(
    content: bytes, axes: Sequence[Axis], *, file: str, directory: Path
) -> tuple[list[Setting], list[Problem]]:
    """Every combination of values in the policy, or all that is wrong with them. Raises ValueError if there are too many or twice a key."""
    if len({axis.place for axis in axes}) < len(axes):
        raise ValueError("a key may be given once only")
    combinations = list(
        itertools.islice(itertools.product(*(range(len(axis.values)) for axis in axes)), SETTINGS_MAX + 1)
    )
    if len(combinations) > SETTINGS_MAX:
        raise ValueError(f"at most {SETTINGS_MAX} settings are replayed, but these are more")
    document, problems = parse_document(content, file=file)
    if document is None or problems:
        return [], problems
    found: list[Setting] = []
    wrong: dict[str, Problem] = {}
    for chosen in combinations:
        values = {axis.key: axis.texts[i] for axis, i in zip(axes, chosen, strict=True)}
        tried = document
        for axis, i in zip(axes, chosen, strict=True):
            tried = _with(tried, axis, axis.values[i])
        reading = read_document(tried, file=file, directory=directory)
        found += [Setting(values=values, policy=one.policy) for one in reading.policies]
        wrong |= {str(problem): problem for problem in reading.problems}
    return found, list(wrong.values())


def _with(document: Document, axis: Axis, value: Any) -> Document:
    """Raises ValueError if the place is none: below a value that holds nothing, or beyond the end of a list."""
    root = copy.deepcopy(document.value)
    holder: Any = root
    for i, step in enumerate(axis.place):
        last = i == len(axis.place) - 1
        if isinstance(holder, list):
            if not isinstance(step, int) or step >= len(holder):
                raise ValueError(
                    f"{axis.key}: {_spelled(axis.place[:i])} is a list of {len(holder)}, which has no {step!r}"
                )
        elif not isinstance(holder, dict):
            raise ValueError(f"{axis.key}: {_spelled(axis.place[:i])} holds nothing in which {step!r} could be set")
        elif not last:
            holder.setdefault(step, {})
        if last:
            holder[step] = value
        else:
            holder = holder[step]
    return replace(document, value=root)


def _spelled(place: Place) -> str:
    return ".".join(map(str, place)) or "the policy"


def _split(text: str) -> list[str]:
    """At commas outside brackets and quotes.

    >>> _split("[a, b],{c: 1, d: 2},'x,y'")
    ['[a, b]', '{c: 1, d: 2}', "'x,y'"]
    """
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += character
    return [part.strip() for part in parts]


def _value(key: str, text: str) -> Any:
    document, problems = parse_document(text.encode(), file=key)
    if document is None or problems:
        raise ValueError(f"{key}: {text!r}: {problems[0].rule if problems else 'is no value'}")
    return document.value
