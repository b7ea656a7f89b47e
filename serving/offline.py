"""Scoring a Parquet file with exactly the code that serves. `serving.predict` is its command line."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.frame import Columns, row_count
from serving.model import Model, Scores
from serving.rows_file import read_columns

CHUNK_ROWS = 65_536
"""Rows a call of the model, so that memory does not grow with the file."""


def score_file(model: Model, path: Path) -> tuple[Scores, Columns]:
    """Scores of all rows of a Parquet file, and the columns they were made from. Raises InputError, PredictionError."""
    columns = read_columns(model.schema, path)
    count = row_count(columns)
    if count == 0:
        width = model.manifest.width
        return np.empty((0,) if width is None else (0, width)), columns
    pieces = [
        {name: values[start : start + CHUNK_ROWS] for name, values in columns.items()}
        for start in range(0, count, CHUNK_ROWS)
    ]
    return np.concatenate([model.predict(piece) for piece in pieces]), columns


def time_rows(model: Model, columns: Columns, count: int) -> NDArray[np.float64]:
    """Milliseconds that each of `count` single-row requests takes, from JSON values to score, over the rows in turn.

    Shape (count,), or (0,) where there are no rows.
    """
    available = row_count(columns)
    taken = np.empty(count if available else 0)
    for i in range(len(taken)):
        values = {name: values[i % available] for name, values in columns.items()}
        row = {name: value for name, value in values.items() if value is not None and value == value}  # NaN is missing
        began = time.perf_counter()
        model.predict(model.schema.columns([model.schema.row(row, 0)]))
        taken[i] = (time.perf_counter() - began) * 1000
    return taken
