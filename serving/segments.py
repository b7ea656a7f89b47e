"""From a journal (one JSON object a line) to a Parquet segment. Nothing here decides when; `serving.log` does."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

FEATURE_PREFIX = "f."
_TIMESTAMP = pa.timestamp("us", tz="UTC")
_COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "predictions": {
        "id": pa.string(),
        "at": _TIMESTAMP,
        "version": pa.int32(),
        "role": pa.string(),
        "key": pa.string(),
        "score": pa.list_(pa.float64()),
    },
    "labels": {"id": pa.string(), "at": _TIMESTAMP, "label": pa.string()},
}
"""Kind of journal → its columns, beside one `f.<feature>` a feature of predictions."""


def write_segment(journal: Path, segment: Path) -> int:
    """Write the whole rows of `journal` to `segment` by rename, flushed to the disk. Returns the rows; 0 writes no file.

    The kind of rows is the name of the journal's folder (`predictions` or `labels`). Raises OSError.
    """
    rows = read_journal(journal)
    if not rows:
        return 0
    table = rows_to_table(rows, journal.parent.name)
    temporary = segment.with_name(f".{segment.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, segment)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return len(rows)


def is_segment(path: Path) -> bool:
    """Whether a whole segment is there: one whose footer can be read."""
    try:
        pq.read_metadata(path)
    except (OSError, pa.ArrowException):
        return False
    return True


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The rows of a journal. Lines that are torn, or no object with an id and a time, are left out."""
    rows = []
    decoder = msgspec.json.Decoder()
    with path.open("rb") as file:
        for line in file:
            try:
                row = decoder.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue
            if isinstance(row, dict) and isinstance(row.get("id"), str) and isinstance(row.get("at"), int | float):
                rows.append(row)
    return rows


def rows_to_table(rows: Sequence[Mapping[str, Any]], kind: str) -> pa.Table:
    """Journal rows as a table of the segment's columns; features that are null throughout have no column."""
    columns: dict[str, pa.Array] = {}
    for name, column_type in _COLUMNS[kind].items():
        if name == "at":
            columns[name] = pa.array([round(row["at"] * 1e6) for row in rows], type=pa.int64()).cast(column_type)
        else:
            columns[name] = pa.array([row.get(name) for row in rows], type=column_type)
    if kind == "predictions":
        columns.update(_feature_columns(rows))
    return pa.table(columns)


def _feature_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, pa.Array]:
    features = [row.get("f") or {} for row in rows]
    names = dict.fromkeys(name for values in features for name in values)
    columns = {}
    for name in names:
        values = [feature.get(name) for feature in features]
        if all(value is None for value in values):
            continue
        if any(isinstance(value, str) for value in values):
            columns[FEATURE_PREFIX + name] = pa.array(
                [value if value is None or isinstance(value, str) else str(value) for value in values], type=pa.string()
            )
        else:
            columns[FEATURE_PREFIX + name] = pa.array(
                [None if v is None else float(v) for v in values], type=pa.float64()
            )
    return columns
