"""Real streams as tables to look for faults in, with the columns that a policy would exclude left out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.data.quality.column_rules import Found, column_faults
from pipelines.data.quality.profile import History, summarise
from pipelines.data.quality.summary import Block, Shape
from pipelines.data.quality.table_rules import table_faults
from policies.metrics import Task

FOLDER = Path(os.environ.get("RATCHET_TEST_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))


@dataclass(frozen=True, kw_only=True)
class Stream:
    name: str
    frame: pd.DataFrame
    shape: Shape

    @property
    def label(self) -> str:
        assert self.shape.label is not None
        return self.shape.label

    def blocks(self, size: int, first: int, last: int) -> list[Block]:
        """Summaries of consecutive windows that start at row `first`, none after `last`."""
        return [self.block(self.frame.iloc[row : row + size], row) for row in range(first, last - size + 1, size)]

    def block(self, rows: pd.DataFrame, start: int = 10**9) -> Block:
        return summarise(rows, self.shape, start=start, end=start + len(rows) - 1)

    def faults(self, history: list[Block], window: Block) -> list[Found]:
        past = History(blocks=tuple(history))
        return column_faults(past, window) + table_faults(past, window, self.shape)


def _csv(name: str, label: str, task: Task, *leave_out: str) -> Stream:
    frame = pd.read_csv(FOLDER / name / f"{name}.csv.gz").drop(columns=["t", *leave_out])
    return _stream(name, frame, label, task)


def _stream(name: str, frame: pd.DataFrame, label: str, task: Task) -> Stream:
    features = tuple(column for column in frame if column != label)
    return Stream(name=name, frame=frame, shape=Shape(features=features, label=label, task=task))


def _digits() -> Stream:
    with np.load(FOLDER / "digits_domain_shift" / "digits_domain_shift.npz") as file:
        frame = pd.DataFrame(file["x"].reshape(len(file["x"]), -1)).add_prefix("p").assign(y=file["y"])
    return _stream("digits_domain_shift", frame, "y", Task.MULTICLASS)


_STREAMS: dict[str, Callable[[], Stream]] = {
    "elec2": lambda: _csv("elec2", "class", Task.BINARY, "date"),
    "bike_sharing_hourly": lambda: _csv("bike_sharing_hourly", "cnt", Task.REGRESSION, "casual", "registered"),
    "sea50k_synthetic": lambda: _csv("sea50k_synthetic", "y", Task.BINARY, "concept"),
    "flipkart_titles": lambda: _csv("flipkart_titles", "category", Task.MULTICLASS, "uniq_id"),
    "digits_domain_shift": _digits,
    "acs_employment_MA": lambda: _csv("acs_employment_MA", "employed", Task.BINARY),
}
NAMES = tuple(_STREAMS)


@cache
def _read(name: str) -> Stream:
    return _STREAMS[name]()


def stream(name: str) -> Stream:
    if not (FOLDER / name).is_dir():
        pytest.skip(f"{FOLDER / name} is not there (RATCHET_TEST_DATA)")
    return _read(name)
