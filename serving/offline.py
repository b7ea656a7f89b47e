"""Scoring a Parquet file with exactly the code that serves. `serving.predict` is its command line."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from serving.frame import InputError
from serving.model import Model, Scores

CHUNK_ROWS = 65_536
"""Rows a call of the model, so that memory does not grow with the file."""


def score_file(model: Model, path: Path) -> tuple[Scores, pd.DataFrame]:
    """Scores of all rows of a Parquet file, and the frame they were made from. Raises InputError, PredictionError."""
    frame = read_rows(model, path)
    if len(frame) == 0:
        width = model.manifest.width
        return np.empty((0,) if width is None else (0, width)), frame
    starts = range(0, len(frame), CHUNK_ROWS)
    return np.concatenate([model.predict(frame.iloc[start : start + CHUNK_ROWS]) for start in starts]), frame


def read_rows(model: Model, path: Path) -> pd.DataFrame:
    """The model's features from a Parquet file, of the types that serving gives them.

    Absent columns are missing throughout, as are infinite numbers, which a client could not even send. Raises InputError.
    """
    try:
        present = set(pq.read_schema(path).names)
        table = pq.read_table(path, columns=[name for name in model.schema.names if name in present], use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: is not a whole Parquet file: {error}") from error
    columns = {}
    for feature, numeric in zip(model.schema.features, model.schema.numeric, strict=True):
        column = table.column(feature.name) if feature.name in present else pa.nulls(table.num_rows)
        try:
            columns[feature.name] = _numbers(column) if numeric else _strings(column)
        except pa.ArrowException as error:
            raise InputError(
                f"{path}: column {feature.name!r} ({column.type}) is not {feature.kind}: {error}"
            ) from error
    return pd.DataFrame(columns)


def _numbers(column: pa.ChunkedArray) -> pd.Series:
    """As float64, NaN where missing or infinite. Raises ArrowException."""
    values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return pd.Series(np.where(np.isinf(values), np.nan, values), dtype="float64")


def _strings(column: pa.ChunkedArray) -> pd.Series:
    """As objects, each a string or None. Raises ArrowException."""
    values = np.array(column.cast(pa.string()).to_pylist(), dtype=object)
    return pd.Series(values, dtype="object")


def time_rows(model: Model, frame: pd.DataFrame, count: int) -> NDArray[np.float64]:
    """Milliseconds that each of `count` single-row requests takes, from JSON values to score, over the rows in turn. Shape (count,)."""
    rows = frame.head(count).astype(object).where(frame.head(count).notna(), None).to_dict("records")
    taken = np.empty(count if rows else 0)
    for i in range(len(taken)):
        began = time.perf_counter()
        model.predict(model.schema.frame([model.schema.row(rows[i % len(rows)], 0)]))
        taken[i] = (time.perf_counter() - began) * 1000
    return taken
