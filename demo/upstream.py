"""The warehouse that models are trained from: one Parquet file a day, and the faults that upstream systems have."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from demo.flights import LABEL, TIME

WRITTEN_AFTER = timedelta(days=2)
"""A day's file is written when all its flights have long arrived."""

USUAL_LATE = 0.25

Fault = Callable[[pd.DataFrame], pd.DataFrame]


def unrelated_labels(rows: pd.DataFrame) -> pd.DataFrame:
    """Labels joined from other days: the usual share of late flights, but nothing can be learnt from them."""
    rng = np.random.default_rng(zlib.crc32(str(rows[TIME].iloc[0]).encode()))
    return rows.assign(**{LABEL: (rng.random(len(rows)) < USUAL_LATE).astype(int)})


def inverted_labels(rows: pd.DataFrame) -> pd.DataFrame:
    """`on time` delivered as `late`: a challenger looks brilliant on data that is as wrong as it is."""
    return rows.assign(**{LABEL: 1 - rows[LABEL]})


class Warehouse:
    """Grows by whole days as time passes."""

    def __init__(self, folder: Path, flights: pd.DataFrame) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._days = {str(day): rows for day, rows in flights.groupby(flights[TIME].dt.date)}
        self._due = sorted(self._days)
        self._written: list[str] = []
        self.fault: Fault | None = None

    def advance(self, now: datetime) -> None:
        """Write the files of all days that are due."""
        horizon = str((now - WRITTEN_AFTER).date())
        while self._due and self._due[0] <= horizon:
            day = self._due.pop(0)
            self._write(day)
            self._written.append(day)

    def break_with(self, fault: Fault | None, days: int = 120) -> None:
        """Deliver the newest days (and all to come) with a fault, or again as they should be."""
        self.fault = fault
        for day in self._written[-days:]:
            self._write(day)

    def _write(self, day: str) -> None:
        rows = self._days[day] if self.fault is None else self.fault(self._days[day])
        partial = self._folder / f".{day}.part"
        rows.to_parquet(partial, index=False)
        os.replace(partial, self._folder / f"{day}.parquet")
