"""Durations as people write them in policies: `10m`, `36h`, `60d`, `1h30m`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
PATTERN = r"^([0-9]+(\.[0-9]+)?[smhdw])+$"
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhdw])")
LONGEST = timedelta(days=36_500)
"""A longer one is a typing error, and would carry `now` minus it out of the calendar."""


def parse_duration(value: object) -> timedelta:
    """`10m` → 600 s. Raises ValueError for anything that does not say its unit, or exceeds a hundred years.

    >>> parse_duration("1h30m").total_seconds()
    5400.0
    """
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str) or len(value) > 100 or not re.fullmatch(PATTERN, value):
        raise ValueError(f"a duration is a number with a unit (s, m, h, d, w), such as 30m or 1h30m, but got {value!r}")
    seconds = sum(float(n) * _UNIT_S[u] for n, u in _PART.findall(value))
    if seconds > LONGEST.total_seconds():
        raise ValueError(f"a duration is at most {LONGEST.days}d, but got {value!r}")
    return timedelta(seconds=seconds)


def format_duration(value: timedelta) -> str:
    """For people: the shortest spelling; fractions of a second are rounded.

    >>> format_duration(timedelta(hours=36))
    '1d12h'
    """
    return _spell(round(value.total_seconds()))


def spell_duration(value: timedelta) -> str:
    """For machines: like `format_duration` but exact, so that `parse_duration` gives the same value back.

    >>> spell_duration(timedelta(seconds=90.25))
    '1m30.25s'
    """
    whole = value - timedelta(microseconds=value.microseconds)
    if not value.microseconds or value < timedelta(0):
        return _spell(round(value.total_seconds()))
    minutes, seconds = divmod(round(whole.total_seconds()), 60)
    fraction = f"{value.microseconds:06d}".rstrip("0")
    return (_spell(minutes * 60) if minutes else "") + f"{seconds}.{fraction}s"


def about(value: timedelta) -> str:
    """For sentences: the two largest units.

    >>> about(timedelta(days=3, hours=2, minutes=59))
    '3d2h'
    """
    left = round(value.total_seconds())
    parts = re.findall(r"[0-9]+[smhdw]", _spell(left))
    return "".join(parts[:2])


def _spell(left: int) -> str:
    if left <= 0:
        return "0s"
    parts = []
    for unit in ("d", "h", "m", "s"):
        count, left = divmod(left, _UNIT_S[unit])
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


_JSON_SCHEMA = WithJsonSchema({"type": "string", "pattern": PATTERN, "examples": ["10m", "36h", "60d"]})
Duration = Annotated[
    timedelta, BeforeValidator(parse_duration), PlainSerializer(spell_duration, return_type=str), _JSON_SCHEMA
]
"""A time span, `0s` included."""
PositiveDuration = Annotated[
    timedelta,
    Field(gt=timedelta(0)),
    BeforeValidator(parse_duration),
    PlainSerializer(spell_duration, return_type=str),
    _JSON_SCHEMA,
]
