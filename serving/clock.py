"""The time that is written into the log: real, or a simulated one that every process on the machine reads from one file.

Only *recorded* times come from here. Waits, time-outs and latencies use the monotonic real clock, which nothing can turn back.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

RESTAT_S = 0.05
"""The clock file is looked at again at most this often, in real seconds."""


class Clock:
    """Seconds since the epoch that never run backwards within a process.

    With a `path` to `{"sim_origin": s, "real_origin": s, "speed": x}`: now = sim_origin + (real now - real_origin) * speed.
    A file that is missing or not valid leaves what was last read in force (real time, if nothing ever was).
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        real: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._real = real
        self._monotonic = monotonic
        self._checked_at = float("-inf")
        self._identity: tuple[int, int, int] | None = None
        self._origins = (0.0, 0.0, 1.0)
        self._latest = float("-inf")

    @classmethod
    def from_environment(cls) -> Clock:
        """The clock that `RATCHET_CLOCK` names, or real time where it is not set."""
        name = os.environ.get("RATCHET_CLOCK")
        return cls(Path(name) if name else None)

    def now(self) -> float:
        """Seconds since the epoch, UTC. Stands still rather than going back when the underlying clock does."""
        if self._path is not None and self._monotonic() - self._checked_at >= RESTAT_S:
            self._checked_at = self._monotonic()
            self._reload(self._path)
        sim_origin, real_origin, speed = self._origins  # one tuple: another thread may replace it meanwhile
        now = sim_origin + (self._real() - real_origin) * speed
        self._latest = max(self._latest, now)
        return self._latest

    def _reload(self, path: Path) -> None:
        try:
            stat = path.stat()
            identity = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if identity == self._identity:
                return
            document = json.loads(path.read_bytes())
            origins = float(document["sim_origin"]), float(document["real_origin"]), float(document["speed"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        self._identity = identity
        if all(math.isfinite(value) for value in origins):
            self._origins = origins
