"""A model folder in memory, asked for scores.

Scores are the same everywhere: binary P(positive) of shape (n,); multiclass (n, k) in the order of `classes`; regression (n,).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from serving.estimators import TRUSTED_TYPES
from serving.frame import Columns, InputError, Schema, row_count
from serving.manifest import Manifest, ModelFolderError, brief, read_manifest
from serving.rows_file import read_columns
from serving.scorers import Scorer, make_scorer

__all__ = ["TRUSTED_TYPES", "Model", "ModelFolderError", "PredictionError", "Scores", "load_model"]

Scores: TypeAlias = NDArray[np.float64]
SAMPLE_ROWS = 200
UNHEARD_OF = "\ue000 a category that nobody has"


class PredictionError(Exception):
    """The model failed on rows that fit its features. The message says how."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A loaded model."""

    manifest: Manifest
    schema: Schema
    scorer: Scorer
    example: Columns
    """One row that the model must be able to answer: of those that it was trained on, or of missing values if none is kept."""

    def predict(self, columns: Columns) -> Scores:
        """Scores of at least one row by the score convention. Raises PredictionError."""
        count = row_count(columns)
        try:
            scores = np.asarray(self.scorer(columns), dtype=np.float64)
        except Exception as error:
            raise PredictionError(f"the model failed: {brief(error)}") from error
        width = self.manifest.width
        if width is None and scores.shape == (count, 1):
            scores = scores[:, 0]
        wanted = (count,) if width is None else (count, width)
        if scores.shape != wanted:
            raise PredictionError(f"the model gave scores of shape {scores.shape} for {count} rows, not {wanted}")
        return scores

    def labels(self, scores: Scores) -> NDArray[np.intp] | None:
        """Index into `classes` that each row's score decides for, shape (n,); None for regression."""
        if self.manifest.task == "regression":
            return None
        if self.manifest.task == "multiclass":
            return np.asarray(np.argmax(scores, axis=1), dtype=np.intp)
        assert self.manifest.threshold is not None, "a binary manifest without threshold is refused when read"
        return (scores >= self.manifest.threshold).astype(np.intp)


def load_model(folder: Path) -> Model:
    """Load a model folder. Raises ModelFolderError."""
    manifest = read_manifest(folder)
    schema = Schema(manifest.features)
    sample = sample_columns(folder, schema)
    example = {name: values[:1] for name, values in sample.items()}
    return Model(
        manifest=manifest, schema=schema, scorer=make_scorer(folder, manifest, schema, sample), example=example
    )


def sample_columns(folder: Path, schema: Schema) -> Columns:
    """Rows to try a model with: some that it was trained on, one of missing values, one of categories that it never saw."""
    strange = schema.missing_rows(2)
    strange[1] = [0.0 if numeric else UNHEARD_OF for numeric in schema.numeric]
    made = schema.columns(strange)
    try:
        seen = read_columns(schema, folder / "reference.parquet", rows_max=SAMPLE_ROWS)
    except InputError:  # no reference is no reason not to serve
        return made
    return {name: np.concatenate([seen[name], made[name]]) for name in schema.names}
