"""Rows from a Parquet file, of the types that serving gives a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from serving.frame import Columns, InputError, Schema


def read_columns(schema: Schema, path: Path, *, rows_max: int | None = None) -> Columns:
    """The features of a file's rows, of all or of the first `rows_max`.

    Absent columns are missing throughout, as are infinite numbers, which a client could not even send. Columns that are no feature are
    not read. Raises InputError.
    """
    try:
        with pq.ParquetFile(path) as file:
            present = [name for name in schema.names if name in set(file.schema_arrow.names)]
            count = file.metadata.num_rows
            table = _read(file, present, rows_max)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: is not a whole Parquet file: {error}") from error
    rows = count if rows_max is None else min(count, rows_max)
    columns = {}
    for feature, numeric in zip(schema.features, schema.numeric, strict=True):
        column = table.column(feature.name) if feature.name in present else pa.nulls(rows)
        try:
            columns[feature.name] = _numbers(column) if numeric else _strings(column)
        except pa.ArrowException as error:
            raise InputError(
                f"{path}: column {feature.name!r} ({column.type}) is not {feature.kind}: {error}"
            ) from error
    return columns


def _read(file: pq.ParquetFile, names: list[str], rows_max: int | None) -> pa.Table:
    if rows_max is None:
        return file.read(columns=names, use_threads=False)
    batches = file.iter_batches(batch_size=rows_max, columns=names, use_threads=False)
    schema = pa.schema([file.schema_arrow.field(name) for name in names])
    return pa.Table.from_batches([batch for batch, _ in zip(batches, range(1), strict=False)], schema)


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """As float64, NaN where missing or infinite. Raises ArrowException."""
    values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return np.where(np.isinf(values), np.nan, values)


def _strings(column: pa.ChunkedArray) -> NDArray[Any]:
    """As objects, each a string or None. Raises ArrowException."""
    strings = column.cast(pa.string()).to_pylist()
    values = np.empty(len(strings), dtype=object)
    values[:] = strings
    return values
