"""Writes prediction logs of the documented layout, for the tests of what reads them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

NOW = datetime(2013, 5, 10, 12, 30, tzinfo=UTC)
_AT = pa.timestamp("us", tz="UTC")


def write_predictions(
    log_dir: Path,
    ids: Sequence[str],
    at: Sequence[datetime],
    scores: Sequence[float | Sequence[float]],
    *,
    version: int = 7,
    role: str = "live",
    **features: Sequence[Any],
) -> None:
    """One segment of answers of one version."""
    n = len(ids)
    columns = {
        "id": pa.array(ids, pa.string()),
        "at": pa.array(at, _AT),
        "version": pa.array([version] * n, pa.int32()),
        "role": pa.array([role] * n, pa.string()),
        "key": pa.array([None] * n, pa.string()),
        "score": pa.array([s if isinstance(s, list) else [float(s)] for s in scores], pa.list_(pa.float64())),
    }  # fmt: skip
    columns |= {f"f.{name}": pa.array(list(values)) for name, values in features.items()}
    _write(log_dir / "predictions", pa.table(columns))


def write_labels(log_dir: Path, ids: Sequence[str], at: Sequence[datetime], labels: Sequence[Any]) -> None:
    """One segment of labels."""
    columns = {
        "id": pa.array(ids, pa.string()),
        "at": pa.array(at, _AT),
        "label": pa.array([json.dumps(label) for label in labels], pa.string()),
    }
    _write(log_dir / "labels", pa.table(columns))


def _write(folder: Path, table: pa.Table) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / f"20130510T000000000000-1-{secrets.token_hex(4)}.parquet")


def minutes_before(now: datetime, minutes: Sequence[float]) -> list[datetime]:
    return [now - timedelta(minutes=float(m)) for m in minutes]
