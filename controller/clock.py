"""The controller's clock: real UTC, or the accelerated one of a demonstration.

Only the edges read it; `decide` is given `now`. `serving/clock.py` follows the same file, so that the whole system lives at one time.
"""

from __future__ import annotations

import json
import math
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

RECHECK_S = 0.05
"""How often, at most, the clock file is looked at."""


class Clock(Protocol):
    def now(self) -> datetime:
        """UTC. Never goes back within one process."""


class SystemClock:
    """Real time; a step back of the system's clock is held until it has caught up."""

    def __init__(self) -> None:
        self._latest = datetime.now(UTC)
        self._lock = threading.Lock()

    def now(self) -> datetime:
        with self._lock:
            self._latest = max(self._latest, datetime.now(UTC))
            return self._latest


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """`now = sim_origin + (real - real_origin) × speed`, all in epoch seconds.

    >>> Rate(sim_origin=1000, real_origin=50, speed=10).at(52)
    1020
    """

    sim_origin: float
    real_origin: float
    speed: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in (self.sim_origin, self.real_origin, self.speed)):
            raise ValueError("sim_origin, real_origin and speed must be finite numbers")
        if self.speed < 0:
            raise ValueError(f"speed must not be negative, but got {self.speed:g}")

    def at(self, real: float) -> float:
        return self.sim_origin + (real - self.real_origin) * self.speed


class ScaledClock:
    """Follows a file `{"sim_origin", "real_origin", "speed"}` that may be replaced at any time.

    Raises ValueError on construction if the file is missing or malformed; later troubles keep the last good rate.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._checked = time.monotonic()
        self._stamp = self._stat()
        self._rate = self._read()
        self._latest = datetime.fromtimestamp(self._rate.at(time.time()), UTC)
        self._lock = threading.Lock()

    def _stat(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino

    def _read(self) -> Rate:
        try:
            raw = json.loads(self._path.read_bytes())
            rate = Rate(**{k: float(raw[k]) for k in ("sim_origin", "real_origin", "speed")})
            datetime.fromtimestamp(rate.at(time.time()), UTC)
        except KeyError as error:
            raise ValueError(f"clock file {self._path}: {error} is missing") from error
        except (OSError, ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"clock file {self._path}: {error}") from error
        return rate

    def now(self) -> datetime:
        with self._lock:
            return self._now()

    def _now(self) -> datetime:
        tick = time.monotonic()
        if tick - self._checked >= RECHECK_S:
            self._checked = tick
            stamp = self._stat()
            if stamp is not None and stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._rate = self._read()
                except ValueError:
                    self._stamp = None  # half a file is no news; look again
        self._latest = max(self._latest, datetime.fromtimestamp(self._rate.at(time.time()), UTC))
        return self._latest
