"""The real streams that some tests measure on, and models of them: the first rows train, the following ones are answered."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

_FOLDER = Path(os.environ.get("RATCHET_TEST_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))


def folder(name: str) -> Path:
    """Skips the test where the data are not."""
    if not (_FOLDER / name).is_dir():
        pytest.skip(f"{_FOLDER / name} is not there (RATCHET_TEST_DATA)")
    return _FOLDER / name


@cache
def stream(name: str) -> pd.DataFrame:
    return pd.read_csv(next(folder(name).glob("*.csv.gz")))


@cache
def answered(name: str, label: str, drop: tuple[str, ...], train: int) -> tuple[Any, Any]:
    """Scores and labels (0 or 1) of all rows after the first `train`, on which the model was fitted."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    rows = stream(name)
    truth = pd.factorize(rows[label], sort=True)[0]
    table = rows.drop(columns=[label, *drop]).to_numpy(dtype="float64")
    model = HistGradientBoostingClassifier(max_iter=40, random_state=0, early_stopping=False).fit(
        table[:train], truth[:train]
    )
    return model.predict_proba(table[train:])[:, 1], truth[train:].astype(np.float64)
