"""The scikit-learn families, each a pre-processing and an estimator in one Pipeline, with a twin for regression where there is one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pipelines.components import preprocessing
from pipelines.components.base import Fitted, ParameterRange, ParameterValue, SavedPredictor
from pipelines.components.parameters import merged
from pipelines.data.features import Feature, FeatureKind, model_frame
from pipelines.jobs.port import PermanentJobError
from pipelines.skops_files import dump_deterministic, untrusted_types
from policies.metrics import Task
from policies.schema import FloatRange, IntRange

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

ESTIMATOR_FILE = "estimator.skops"
DISTRIBUTIONS = ("scikit-learn", "numpy", "scipy", "pandas", "skops")
Parameters: TypeAlias = Mapping[str, Any]
Builder: TypeAlias = Callable[[Sequence[Feature], Task, Parameters, int], Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedSklearn:
    """A fitted scikit-learn estimator that takes a data frame of the features."""

    estimator: Any
    features: Sequence[Feature]
    task: Task

    def predict(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        import numpy as np

        rows = model_frame(frame, self.features)
        if self.task is Task.REGRESSION:
            return np.asarray(self.estimator.predict(rows), dtype=np.float64).reshape(len(rows))
        scores = np.asarray(self.estimator.predict_proba(rows), dtype=np.float64)
        return scores[:, 1] if self.task is Task.BINARY else scores

    def save(self, model_dir: Path) -> SavedPredictor:
        """Raises PermanentJobError if serving would not load what is saved."""
        try:
            content = dump_deterministic(self.estimator)
        except Exception as error:  # skops raises whatever the object's own state methods raise
            raise PermanentJobError(
                f"the estimator cannot be saved by skops: {type(error).__name__}: {error}"
            ) from error
        if refused := untrusted_types(content):
            raise PermanentJobError(
                f"the estimator holds types that serving does not load: {', '.join(refused)};"
                " use scikit-learn's own, or return None and offer load(model_dir) in your module"
            )
        (model_dir / ESTIMATOR_FILE).write_bytes(content)
        return SavedPredictor(predictor={"kind": "sklearn", "file": ESTIMATOR_FILE}, distributions=DISTRIBUTIONS)


@dataclass(frozen=True, kw_only=True, slots=True)
class SklearnFamily:
    """A component whose models are scikit-learn pipelines."""

    name: str
    tasks: frozenset[Task]
    ranges: Mapping[str, ParameterRange]
    parameters: Mapping[str, ParameterValue]
    build: Builder

    def space(self) -> Mapping[str, ParameterRange]:
        return self.ranges

    def defaults(self) -> dict[str, ParameterValue]:
        return dict(self.parameters)

    def fit(
        self,
        frame: pd.DataFrame,
        target: pd.Series,
        *,
        features: Sequence[Feature],
        task: Task,
        classes: Sequence[Any] | None,
        parameters: Mapping[str, ParameterValue],
        seed: int,
    ) -> Fitted:
        # OpenMP threads that spin while they wait would take the cores from the versions that serve meanwhile.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from sklearn.exceptions import ConvergenceWarning

        pipeline = self.build(features, task, merged(self.name, self.parameters, parameters), seed)
        with warnings.catch_warnings():
            # A linear model that stops before it has converged is a model all the same; its score says how good.
            warnings.simplefilter("ignore", ConvergenceWarning)
            try:
                pipeline.fit(frame, target.to_numpy())
            except (ValueError, TypeError) as error:
                raise PermanentJobError(f"{self.name} cannot be fitted with {dict(parameters)}: {error}") from error
        return FittedSklearn(estimator=pipeline, features=tuple(features), task=task)


def _pipeline(prepare: Any, estimator: Any) -> Any:
    from sklearn.pipeline import Pipeline

    return Pipeline([("prepare", prepare), ("estimate", estimator)])


def _hist_gradient_boosting(features: Sequence[Feature], task: Task, p: Parameters, seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    prepare, categorical = preprocessing.for_trees(features)
    kind = HistGradientBoostingRegressor if task is Task.REGRESSION else HistGradientBoostingClassifier
    options = {"categorical_features": categorical or None, "early_stopping": False, "random_state": seed}
    return _pipeline(prepare, kind(**p, **options))


def _poisson_boosting(features: Sequence[Feature], task: Task, p: Parameters, seed: int) -> Any:
    """For counts and amounts, which are not negative and whose errors grow with them: effects multiply."""
    return _hist_gradient_boosting(features, task, {**p, "loss": "poisson"}, seed)


def _random_forest(features: Sequence[Feature], task: Task, p: Parameters, seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    text = {"max_features": preprocessing.TREE_TEXT_TERMS}
    prepare = preprocessing.for_distances(features, scale=False, dense=True, text=text)
    kind = RandomForestRegressor if task is Task.REGRESSION else RandomForestClassifier
    return _pipeline(prepare, kind(**p, random_state=seed))


def _extra_trees(features: Sequence[Feature], task: Task, p: Parameters, seed: int) -> Any:
    from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

    text = {"max_features": preprocessing.TREE_TEXT_TERMS}
    prepare = preprocessing.for_distances(features, scale=False, dense=True, text=text)
    kind = ExtraTreesRegressor if task is Task.REGRESSION else ExtraTreesClassifier
    return _pipeline(prepare, kind(**p, random_state=seed))


def _tree_blend(features: Sequence[Feature], task: Task, p: Parameters, seed: int) -> Any:
    """The mean of two models that err differently: boosted trees and random trees.

    Where the world moves there are few rows to choose a family by; the mean of several is seldom far from the best of them. Sources:
    L. Hansen, P. Salamon, Neural network ensembles, IEEE PAMI 12 (1990) 993-1001; J. Bates, C. Granger, The combination of forecasts,
    Operational Research Quarterly 20 (1969) 451-468.
    """
    from sklearn.ensemble import VotingClassifier, VotingRegressor

    members = _trees(features, task, p, seed)
    return VotingRegressor(members) if task is Task.REGRESSION else VotingClassifier(members, voting="soft")


def _blend(features: Sequence[Feature], task: Task, p: Parameters, seed: int) -> Any:
    """The same with a linear model, which goes on where trees stand still: beyond what was seen."""
    from sklearn.ensemble import VotingClassifier

    linear = _logistic_regression(features, task, {"C": 1.0, "max_iter": 300}, seed)
    return VotingClassifier([*_trees(features, task, p, seed), ("linear", linear)], voting="soft")


def _trees(features: Sequence[Feature], task: Task, p: Parameters, seed: int) -> list[tuple[str, Any]]:
    boosted = {
        "learning_rate": p["learning_rate"], "max_iter": p["max_iter"], "max_leaf_nodes": p["max_leaf_nodes"],
        "l2_regularization": p["l2_regularization"],
    }  # fmt: skip
    random = {"n_estimators": p["n_estimators"], "min_samples_leaf": p["min_samples_leaf"], "max_features": 0.6}
    return [
        ("boosted", _hist_gradient_boosting(features, task, boosted, seed)),
        ("random", _extra_trees(features, task, random, seed)),
    ]


def _logistic_regression(features: Sequence[Feature], _task: Task, p: Parameters, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    return _pipeline(preprocessing.for_distances(features), LogisticRegression(**p, random_state=seed))


def _ridge(features: Sequence[Feature], _task: Task, p: Parameters, seed: int) -> Any:
    from sklearn.linear_model import Ridge

    return _pipeline(preprocessing.for_distances(features), Ridge(**p, random_state=seed))


def _text_linear(features: Sequence[Feature], task: Task, p: Parameters, seed: int) -> Any:
    """TF-IDF and a linear model; Ridge's penalty alpha = 1 / (2 C) is the same as C's in LogisticRegression's terms."""
    from sklearn.linear_model import LogisticRegression, Ridge

    if not any(feature.kind is FeatureKind.TEXT for feature in features):
        kinds = ", ".join(f"{feature.name} ({feature.kind.value})" for feature in features)
        raise PermanentJobError(f"train.component: sklearn.text_linear needs a text feature but there are {kinds}")
    text = {"ngram_range": (1, p["ngram_max"]), "min_df": p["min_df"], "max_features": p["max_features"]}
    prepare = preprocessing.for_distances(features, text=text)
    if task is Task.REGRESSION:
        return _pipeline(prepare, Ridge(alpha=1 / (2 * p["C"]), random_state=seed))
    return _pipeline(prepare, LogisticRegression(C=p["C"], max_iter=p["max_iter"], random_state=seed))


_ALL_TASKS = frozenset(Task)
_CLASSIFICATION = frozenset({Task.BINARY, Task.MULTICLASS})

_BLEND_RANGES: Mapping[str, ParameterRange] = {
    "learning_rate": FloatRange(low=0.03, high=0.15, log=True),
    "max_leaf_nodes": IntRange(low=6, high=63, log=True),
    "min_samples_leaf": IntRange(low=1, high=30, log=True),
}
_BLEND_PARAMETERS: Mapping[str, ParameterValue] = {
    "learning_rate": 0.06,
    "max_iter": 100,
    "max_leaf_nodes": 12,
    "l2_regularization": 3.0,
    "n_estimators": 50,
    "min_samples_leaf": 6,
}

FAMILIES = (
    SklearnFamily(
        name="sklearn.blend",
        tasks=_CLASSIFICATION,
        ranges=_BLEND_RANGES,
        parameters=_BLEND_PARAMETERS,
        build=_blend,
    ),
    SklearnFamily(
        name="sklearn.tree_blend",
        tasks=_ALL_TASKS,
        ranges=_BLEND_RANGES,
        parameters=_BLEND_PARAMETERS,
        build=_tree_blend,
    ),
    SklearnFamily(
        name="sklearn.hist_gradient_boosting",
        tasks=_ALL_TASKS,
        ranges={
            "learning_rate": FloatRange(low=0.02, high=0.3, log=True),
            "max_iter": IntRange(low=40, high=400, log=True),
            "max_leaf_nodes": IntRange(low=7, high=127, log=True),
            "min_samples_leaf": IntRange(low=5, high=200, log=True),
            "l2_regularization": FloatRange(low=1e-4, high=10.0, log=True),
        },
        parameters={
            "learning_rate": 0.1,
            "max_iter": 100,
            "max_leaf_nodes": 31,
            "min_samples_leaf": 20,
            "l2_regularization": 1e-3,
            "max_depth": None,
            "max_features": 1.0,
        },
        build=_hist_gradient_boosting,
    ),
    SklearnFamily(
        name="sklearn.poisson_boosting",
        tasks=frozenset({Task.REGRESSION}),
        ranges={
            "learning_rate": FloatRange(low=0.03, high=0.2, log=True),
            "max_iter": IntRange(low=100, high=500, log=True),
            "max_leaf_nodes": IntRange(low=7, high=63, log=True),
        },
        parameters={
            "learning_rate": 0.08,
            "max_iter": 300,
            "max_leaf_nodes": 31,
            "min_samples_leaf": 20,
            "l2_regularization": 1e-3,
        },
        build=_poisson_boosting,
    ),
    SklearnFamily(
        name="sklearn.random_forest",
        tasks=_ALL_TASKS,
        ranges={
            "n_estimators": IntRange(low=50, high=300, log=True),
            "min_samples_leaf": IntRange(low=1, high=50, log=True),
            "max_features": FloatRange(low=0.1, high=1.0),
        },
        parameters={"n_estimators": 100, "min_samples_leaf": 5, "max_features": 0.5, "max_depth": None},
        build=_random_forest,
    ),
    SklearnFamily(
        name="sklearn.extra_trees",
        tasks=_ALL_TASKS,
        ranges={
            "min_samples_leaf": IntRange(low=1, high=50, log=True),
            "max_features": FloatRange(low=0.1, high=1.0),
        },
        parameters={"n_estimators": 50, "min_samples_leaf": 5, "max_features": 0.5, "max_depth": None},
        build=_extra_trees,
    ),
    SklearnFamily(
        name="sklearn.logistic_regression",
        tasks=_CLASSIFICATION,
        ranges={"C": FloatRange(low=1e-3, high=100.0, log=True)},
        parameters={"C": 1.0, "class_weight": None, "max_iter": 300},
        build=_logistic_regression,
    ),
    SklearnFamily(
        name="sklearn.ridge",
        tasks=frozenset({Task.REGRESSION}),
        ranges={"alpha": FloatRange(low=1e-3, high=1000.0, log=True)},
        parameters={"alpha": 1.0},
        build=_ridge,
    ),
    SklearnFamily(
        name="sklearn.text_linear",
        tasks=_ALL_TASKS,
        ranges={
            "C": FloatRange(low=1e-2, high=100.0, log=True),
            "ngram_max": IntRange(low=1, high=2),
            "min_df": IntRange(low=1, high=10, log=True),
        },
        parameters={"C": 10.0, "ngram_max": 1, "min_df": 2, "max_features": 50_000, "max_iter": 300},
        build=_text_linear,
    ),
)
