"""Limits on distances that a version learns from its own quiet beginning.

A distance depends on how many rows a window has, on the hour and the season, and a sample of the training rows never looks quite like live
traffic. So how far a feature is from the reference while nothing is wrong is measured, in the first windows after the version was made:
each feature's limit is `MARGIN` times the greatest of `WINDOWS` quiet distances, but at least `FLOOR`. With the greatest distance itself
for a limit, one window in eleven would exceed it by chance. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

WINDOWS = 10
"""Quiet windows that are needed."""
SPAN = 4 * WINDOWS
"""They must be among so many after the version was made; what is later is no beginning."""
MARGIN = 1.5
FLOOR = 0.05
"""No smaller move is worth a firing, however steady a feature is: half of what Evidently takes for drift."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmUp:
    """What was seen so far of a version's beginning."""

    next_end: datetime
    """End of the first window that was not looked at yet."""
    looked_at: int = 0
    quiet: Sequence[Mapping[str, float]] = ()
    """Feature → distance, of each window in which nothing spoke against the version."""

    @property
    def is_over(self) -> bool:
        return len(self.quiet) >= WINDOWS or self.looked_at >= SPAN

    def limits(self) -> dict[str, float] | None:
        """Feature → limit; None until there are enough windows. A feature that some of them lack has none.

        >>> WarmUp(next_end=datetime(2020, 1, 1), quiet=[{"x": 0.04}] * 9 + [{"x": 0.1}]).limits()
        {'x': 0.15000000000000002}
        """
        if len(self.quiet) < WINDOWS:
            return None
        names = set.intersection(*(set(distances) for distances in self.quiet))
        return {name: max(FLOOR, MARGIN * max(seen[name] for seen in self.quiet)) for name in sorted(names)}

    def words(self) -> str:
        if len(self.quiet) >= WINDOWS:
            return f"limits calibrated on {WINDOWS} quiet windows"
        if self.looked_at >= SPAN:
            return f"Evidently's limits, because only {len(self.quiet)} of the first {SPAN} windows were quiet, {WINDOWS} needed"
        return f"Evidently's limits until {WINDOWS} quiet windows are in, {len(self.quiet)} so far"

    def as_json(self) -> dict[str, Any]:
        return {
            "next_end": self.next_end.isoformat(),
            "looked_at": self.looked_at,
            "quiet": [dict(distances) for distances in self.quiet],
        }

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> WarmUp:
        """Raises KeyError, ValueError, TypeError, AttributeError for what is none."""
        return cls(
            next_end=datetime.fromisoformat(item["next_end"]),
            looked_at=int(item["looked_at"]),
            quiet=[{str(k): float(v) for k, v in distances.items()} for distances in item["quiet"]],
        )
