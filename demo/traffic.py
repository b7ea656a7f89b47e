"""The clients: ask for predictions when flights are scheduled, and report back when they have landed. All over HTTP."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import aiohttp
import numpy as np
import pandas as pd

from demo.flights import ID, LABEL, LABEL_TIME, TIME, instances
from demo.simclock import SimClock

IN_FLIGHT = 6
TIMEOUT_S = 30.0
FEEDBACK_EVERY = timedelta(hours=6)


@dataclass
class Tally:
    """What came back. Arrays are by row of the flights, NaN or 0 where nothing was asked yet."""

    score: np.ndarray
    version: np.ndarray
    sent: int = 0
    failed: int = 0
    errors: list[str] = field(default_factory=list)


class Traffic(threading.Thread):
    """Sends what is due at the simulated time, from one thread, until all rows are sent and reported or it is stopped."""

    def __init__(self, clock: SimClock, flights: pd.DataFrame, first_row: int, url: str, model: str) -> None:
        super().__init__(name="traffic", daemon=True)
        self._clock = clock
        self._flights = flights
        self._base = f"{url}/v1/models/{model}"
        self._stopping = threading.Event()
        self._groups = _groups(flights, first_row)
        self._labels = _labels(flights, first_row)
        self.tally = Tally(score=np.full(len(flights), np.nan), version=np.zeros(len(flights), dtype=int))
        self.next_row = first_row
        self.lag = timedelta(0)
        """How far the clients are behind the clock."""

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        asyncio.run(self._run())

    @property
    def done(self) -> bool:
        return not self._groups

    async def _run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while not self._stopping.is_set() and (self._groups or self._labels):
                now = pd.Timestamp(self._clock.now())
                batch: list[tuple[pd.Timestamp, int, int]] = []
                while self._groups and self._groups[0][0] <= now and len(batch) < IN_FLIGHT:
                    batch.append(self._groups.popleft())
                self.lag = (now - batch[0][0]).to_pytimedelta() if batch else timedelta(0)
                await asyncio.gather(*(self._predict(session, first, last) for _, first, last in batch))
                await self._report(session, now)
                if not batch:
                    await asyncio.sleep(0.02)

    async def _predict(self, session: aiohttp.ClientSession, first: int, last: int) -> None:
        rows = self._flights.iloc[first:last]
        body = {"instances": instances(rows), "ids": rows[ID].tolist()}
        headers = {"x-ratchet-key": str(rows[ID].iloc[0])}
        answer = await self._post(session, f"{self._base}:predict", body, headers)
        if answer is not None:
            self.tally.score[first:last] = answer["predictions"]
            self.tally.version[first:last] = answer["version"]
        self.next_row = max(self.next_row, last)

    async def _report(self, session: aiohttp.ClientSession, now: pd.Timestamp) -> None:
        if not self._labels or self._labels[0][0] + FEEDBACK_EVERY > now:
            return
        due: list[dict[str, object]] = []
        while self._labels and self._labels[0][0] <= now and len(due) < 2000:
            _, row_id, label = self._labels.popleft()
            due.append({"id": row_id, "label": label})
        await self._post(session, f"{self._base}/feedback", {"labels": due}, {})

    async def _post(self, session: aiohttp.ClientSession, url: str, body: Any, headers: dict[str, str]) -> Any | None:
        self.tally.sent += 1
        try:
            async with session.post(url, json=body, headers=headers) as response:
                if response.status == 200:
                    return await response.json()
                problem = f"{response.status}: {(await response.text())[:200]}"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            problem = f"{type(error).__name__}: {error}"
        self.tally.failed += 1
        self.tally.errors.append(f"{url}: {problem}")
        return None


def _groups(flights: pd.DataFrame, first_row: int) -> deque[tuple[pd.Timestamp, int, int]]:
    """One request an hour of schedule: (time at which it is asked, first row, last row)."""
    hours = flights[TIME].dt.floor("h").to_numpy(dtype="datetime64[us]")[first_row:]
    starts = np.flatnonzero(np.r_[True, hours[1:] != hours[:-1]])
    ends = np.r_[starts[1:], len(hours)]
    return deque(
        (pd.Timestamp(hours[a]).tz_localize("UTC"), first_row + int(a), first_row + int(b))
        for a, b in zip(starts, ends, strict=True)
    )


def _labels(flights: pd.DataFrame, first_row: int) -> deque[tuple[pd.Timestamp, str, int]]:
    later = flights.iloc[first_row:].sort_values(LABEL_TIME, kind="stable")
    return deque(zip(later[LABEL_TIME], later[ID], (int(y) for y in later[LABEL]), strict=True))
