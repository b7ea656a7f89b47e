"""Direct loss estimation for regressions: a small forest, fitted on matured rows, that says how far off an answer is likely to be.

It learns |error| and error² from the answer itself and from the features, on rows that the model was not trained on. Source: NannyML's
documentation of DLE ("How it works"), with a small forest in place of its LightGBM. Limits: it knows only errors of the kind that it
was fitted on, so that it sees rows that are harder than the average one, but neither a changed relation of features to labels nor
values beyond those that it has seen (a tree answers these as it does the outermost ones). Text is not looked at.

The forest is kept as plain arrays and evaluated with numpy, so that measuring loads no scikit-learn and unpickles nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipelines.data.features import Feature, FeatureKind, features_from_json, model_frame

if TYPE_CHECKING:
    import pandas as pd

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

TREES = 30
DEPTH = 6
LEAF_SHARE = 0.005
"""Rows of a leaf, at least, as a share of all; never under LEAF_ROWS."""
LEAF_ROWS = 20
CATEGORIES_MAX = 50
"""Of a column, the most frequent; the others are one."""
_SEED = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tree:
    """Arrays over nodes; the root is node 0. A leaf has `left` -1."""

    column: Integers
    above: Floats
    """A row whose value is above this goes right."""
    left: Integers
    right: Integers
    losses: Floats
    """(nodes, 2): mean |error| and error² of the node's rows."""

    def __call__(self, table: Floats) -> Floats:
        """(n, 2) of an (n, columns) table without NaN."""
        node = np.zeros(len(table), dtype=np.int64)
        rows = np.arange(len(table))
        for _ in range(DEPTH):
            inner = self.left[node] >= 0
            right = table[rows, self.column[node]] > self.above[node]
            node = np.where(inner, np.where(right, self.right[node], self.left[node]), node)
        return self.losses[node]

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name).tolist() for name in ("column", "above", "left", "right", "losses")}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Raises KeyError, ValueError if it is something else."""
        whole = {name: np.asarray(value[name], dtype=np.int64) for name in ("column", "left", "right")}
        above, losses = (np.asarray(value[name], dtype=np.float64) for name in ("above", "losses"))
        nodes = len(above)
        if losses.shape != (nodes, 2) or any(len(array) != nodes for array in whole.values()) or not nodes:
            raise ValueError("a tree's arrays must have one entry a node")
        if max(whole["left"].max(), whole["right"].max()) >= nodes:
            raise ValueError("a tree's children must be among its nodes")
        return cls(above=above, losses=losses, **whole)


@dataclass(frozen=True, kw_only=True, slots=True)
class LossModel:
    """What the errors of a regression model are likely to be."""

    features: tuple[Feature, ...]
    """Those that it looks at, beside the answer, which is column 0 of its table."""
    categories: Mapping[str, Sequence[str]]
    """Of each categorical feature, the ones that it knows, most frequent first."""
    lowest: Floats
    """(columns,): stands for a missing value; lower than every value that was fitted on."""
    trees: tuple[_Tree, ...]

    def __call__(self, answers: Floats, frame: pd.DataFrame) -> Floats:
        """(n, 2): expected |error| and error² of each answer. Raises KeyError, ValueError if a feature is not there or not a number."""
        table = _table(answers, frame, self.features, self.categories)
        table = np.where(np.isnan(table), self.lowest, table)
        return np.asarray(np.mean([tree(table) for tree in self.trees], axis=0))

    def as_json(self) -> dict[str, Any]:
        return {
            "features": [feature.as_json() for feature in self.features],
            "categories": {name: list(known) for name, known in self.categories.items()},
            "lowest": self.lowest.tolist(),
            "trees": [tree.as_json() for tree in self.trees],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Raises KeyError, TypeError, ValueError if it is something else."""
        model = cls(
            features=features_from_json(value["features"]),
            categories={name: tuple(map(str, known)) for name, known in value["categories"].items()},
            lowest=np.asarray(value["lowest"], dtype=np.float64),
            trees=tuple(_Tree.from_json(tree) for tree in value["trees"]),
        )
        if len(model.lowest) != 1 + len(model.features) or not model.trees:
            raise ValueError("a loss model has trees, and a lowest value for the answer and for each feature")
        return model


def fit_losses(answers: Floats, truth: Floats, frame: pd.DataFrame, features: Sequence[Feature]) -> LossModel:
    """Fit on n rows: `answers` and `truth` (n,), `frame` with the features. The same rows give the same model.

    Raises KeyError, ValueError as `pipelines.data.features.model_frame` does.
    """
    from sklearn.ensemble import RandomForestRegressor

    looked_at = tuple(feature for feature in features if feature.kind is not FeatureKind.TEXT)
    ready = model_frame(frame, looked_at)
    kinds = [feature.name for feature in looked_at if feature.kind is FeatureKind.CATEGORICAL]
    categories = {name: _most_frequent(ready[name]) for name in kinds}
    table = _table(answers, ready, looked_at, categories)
    lowest = _below(table)
    errors = np.stack([np.abs(truth - answers), np.square(truth - answers)], axis=1)
    # Both count alike in the choice of splits, whatever the unit of the label.
    unit = np.maximum(errors.std(axis=0), np.finfo(np.float64).tiny)
    forest = RandomForestRegressor(
        n_estimators=TREES,
        max_depth=DEPTH,
        min_samples_leaf=max(LEAF_ROWS, round(LEAF_SHARE * len(table))),
        max_features=0.5,
        random_state=_SEED,
    )
    forest.fit(np.where(np.isnan(table), lowest, table), errors / unit)
    trees = tuple(_tree(estimator.tree_, unit) for estimator in forest.estimators_)
    return LossModel(features=looked_at, categories=categories, lowest=lowest, trees=trees)


def _most_frequent(column: pd.Series) -> tuple[str, ...]:
    """Of equally frequent ones the first by name."""
    counts = column.value_counts().sort_index()
    return tuple(counts.sort_values(ascending=False, kind="stable").index[:CATEGORIES_MAX])


def _tree(fitted: Any, unit: Floats) -> _Tree:
    return _Tree(
        column=np.maximum(np.asarray(fitted.feature, dtype=np.int64), 0),
        above=np.asarray(fitted.threshold, dtype=np.float64),
        left=np.asarray(fitted.children_left, dtype=np.int64),
        right=np.asarray(fitted.children_right, dtype=np.int64),
        losses=np.asarray(fitted.value, dtype=np.float64)[:, :, 0] * unit,
    )


def _table(
    answers: Floats, frame: pd.DataFrame, features: Sequence[Feature], categories: Mapping[str, Sequence[str]]
) -> Floats:
    """(n, 1 + features): the answer, then numbers as they are and categories by their place; NaN where missing or unknown.

    In float32's precision, in which scikit-learn compares with its thresholds.
    """
    import pandas as pd

    ready = model_frame(frame, features)
    columns = [answers]
    for feature in features:
        column = ready[feature.name]
        if feature.kind is FeatureKind.CATEGORICAL:
            codes = pd.Categorical(column, categories=list(categories[feature.name])).codes.astype(np.float64)
            columns.append(np.where(codes < 0, np.nan, codes))
        else:
            columns.append(column.to_numpy(dtype="float64"))
    limit = float(np.finfo(np.float32).max)
    return np.clip(np.stack(columns, axis=1), -limit, limit).astype(np.float32).astype(np.float64)


def _below(table: Floats) -> Floats:
    """(columns,): a value under all of a column's, so that a split can tell missing ones apart."""
    filled = np.where(np.isnan(table), np.inf, table).min(axis=0)
    return np.asarray(
        np.where(np.isinf(filled), -1.0, filled - 1.0 - np.abs(filled)).astype(np.float32), dtype=np.float64
    )
