"""Durations as people write them in policies: `10m`, `36h`, `60d`, `1h30m`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
PATTERN = r"^([0-9]+(\.[0-9]+)?[smhdw])+$"
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhdw])")


def parse_duration(value: object) -> timedelta:
    """`10m` → 600 s. Raises ValueError for anything that does not say its unit.

    >>> parse_duration("1h30m").total_seconds()
    5400.0
    """
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str) or not re.fullmatch(PATTERN, value):
        raise ValueError(f"a duration is a number with a unit (s, m, h, d, w), such as 30m or 1h30m, but got {value!r}")
    try:
        return timedelta(seconds=sum(float(n) * _UNIT_S[u] for n, u in _PART.findall(value)))
    except OverflowError as error:
        raise ValueError(f"a duration must be under 2.7 million years but got {value!r}") from error


def format_duration(value: timedelta) -> str:
    """The shortest exact spelling; fractions of a second are rounded.

    >>> format_duration(timedelta(hours=36))
    '1d12h'
    """
    left = round(value.total_seconds())
    if left <= 0:
        return "0s"
    parts = []
    for unit in ("d", "h", "m", "s"):
        count, left = divmod(left, _UNIT_S[unit])
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": PATTERN, "examples": ["10m", "36h", "60d"]}),
]
