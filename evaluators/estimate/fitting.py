"""The judging job's part: fit the challenger's estimator on the hold-out rows that it has just answered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluators.answers import Floats, ModelFolder
from evaluators.estimate.estimator import FILE, EstimateError, fit_estimator
from pipelines.data.features import features_from_json
from policies.metrics import Task


def keep_estimator(
    task: Task,
    model: ModelFolder,
    rows: Path,
    usable: NDArray[np.bool_],
    labels: Floats,
    scores: Floats,
    workdir: Path,
) -> tuple[Path | None, str]:
    """Write `estimator.json` into `workdir`; its path, or None and why performance will not be estimated.

    `rows`: the Parquet file of the hold-out; `usable` its rows with a label, (n,); `labels` and `scores` of those. That a version cannot
    be estimated is no fault of the version: nothing is raised.
    """
    import pandas as pd

    path = workdir / FILE
    try:
        frame = pd.read_parquet(rows)[usable] if task is Task.REGRESSION else None
        estimator = fit_estimator(task, labels, scores, frame=frame, features=features_from_json(model.features))
        estimator.write(path)
    except (EstimateError, OSError) as error:
        return None, f"performance will not be estimated: {error}"
    return path, f"performance can be estimated, from {estimator.rows:,} matured rows"
