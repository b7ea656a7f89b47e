"""Cron expressions, in UTC, with the meaning that crontab(5) gives them.

APScheduler does the calendar arithmetic, but its `from_crontab` counts weekdays from Monday = 0 where cron counts
from Sunday = 0 (so that `0 4 * * 1` would fire on Tuesdays), and asks for day of month *and* day of week where cron
takes *either* if both are given. Both are put right here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from apscheduler.triggers.cron import CronTrigger

_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_DAY_PART = re.compile(r"(?:(\*)|([a-z]+|\d)(?:-([a-z]+|\d))?)(?:/(\d{1,2}))?")
_LEAP_DECADE = datetime(2024, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cron:
    """A parsed expression; fires whenever one of its parts does."""

    expression: str
    parts: tuple[CronTrigger, ...]

    def next_after(self, moment: datetime) -> datetime | None:
        """The first firing later than `moment` (UTC), or None if there is none in the calendar."""
        try:
            start = moment.astimezone(UTC) + timedelta(microseconds=1)
            found = [part.get_next_fire_time(None, start) for part in self.parts]
        except OverflowError:
            return None
        return min((fire.astimezone(UTC) for fire in found if fire is not None), default=None)


@lru_cache(maxsize=4096)
def parse_cron(expression: str) -> Cron:
    """Five fields: minute, hour, day of month, month, day of week (0 or 7 is Sunday).

    Raises ValueError, saying what is wrong, also for dates that never come, such as 30 February.

    >>> parse_cron("0 4 * * 1").next_after(datetime(2026, 11, 22, tzinfo=UTC)).strftime("%A %H:%M")
    'Monday 04:00'
    """
    rule = "a cron expression has five fields: minute, hour, day of month, month, day of week"
    fields = expression.lower().split()
    if len(fields) != 5 or len(expression) > 200:
        raise ValueError(f"{rule}, but got {expression!r}")
    minute, hour, day, month, weekday = ["*" if field == "?" else field for field in fields]
    weekday = _weekday_names(weekday, expression)
    if day.startswith("*") or weekday == "*":
        spellings = [[minute, hour, day, month, weekday]]
    else:
        spellings = [[minute, hour, day, month, "*"], [minute, hour, "*", month, weekday]]
    try:
        parts = tuple(CronTrigger.from_crontab(" ".join(s), timezone=UTC) for s in spellings)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{rule} ({error}), but got {expression!r}") from error
    cron = Cron(expression=expression, parts=parts)
    if cron.next_after(_LEAP_DECADE) is None:
        raise ValueError(f"a schedule must name dates that exist, but got {expression!r}")
    return cron


def _weekday_names(field: str, expression: str) -> str:
    """Cron's numbers (0 or 7 is Sunday), names, ranges and steps as the list of names that APScheduler understands."""
    if field == "*":
        return "*"
    days: set[str] = set()
    for part in field.split(","):
        match = _DAY_PART.fullmatch(part)
        if match is None:
            raise ValueError(f"a day of week is 0-7 or sun-sat, a range, or a step, but got {part!r} in {expression!r}")
        star, first, last, step = match.groups()
        low = 0 if star else _day_number(first, expression)
        high = 6 if star or (step and last is None) else _day_number(last or first, expression)
        every = int(step or 1)
        if every == 0:
            raise ValueError(f"a step must be at least 1, but got {part!r} in {expression!r}")
        days.update(_DAYS[day % 7] for day in range(low, (high if high >= low else high + 7) + 1, every))
    return ",".join(sorted(days, key=_DAYS.index))


def _day_number(text: str, expression: str) -> int:
    if text.isdigit() and int(text) <= 7:
        return int(text)
    if text in _DAYS:
        return _DAYS.index(text)
    raise ValueError(f"a day of week is 0-7 or sun-sat, but got {text!r} in {expression!r}")
