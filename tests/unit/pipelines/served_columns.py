"""Frames as the serving runtime takes them."""

from __future__ import annotations

from typing import Any

import pandas as pd


def as_columns(frame: pd.DataFrame) -> dict[str, Any]:
    """One array a column: numbers as float64, the rest as objects."""
    return {str(name): column.to_numpy() for name, column in frame.items()}
