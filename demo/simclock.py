"""The accelerated clock that daemon and serving processes follow: a file with an origin and a speed."""

from __future__ import annotations

import json
import os
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

DAY_S = 86_400.0


class SimClock:
    """Writes the clock file, and reads the same time as everybody else. Thread-safe."""

    def __init__(self, path: Path, start: datetime) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._sim, self._real, self._speed = start.timestamp(), time.time(), 1.0
        self._write()

    def now(self) -> datetime:
        with self._lock:
            return datetime.fromtimestamp(self._at(time.time()), UTC)

    @property
    def speed(self) -> float:
        """Simulated seconds a second."""
        return self._speed

    def run(self, days_per_s: float) -> None:
        """Go on from the present moment at another speed."""
        speed = max(days_per_s * DAY_S, 1.0)
        with self._lock:
            if abs(speed - self._speed) < 1e-9:
                return
            real = time.time()
            self._sim, self._real, self._speed = self._at(real), real, speed
            self._write()

    def _at(self, real: float) -> float:
        return self._sim + (real - self._real) * self._speed

    def _write(self) -> None:
        content = json.dumps({"sim_origin": self._sim, "real_origin": self._real, "speed": self._speed})
        partial = self._path.with_suffix(".part")
        partial.write_text(content)
        os.replace(partial, self._path)
