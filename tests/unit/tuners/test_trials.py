"""What one trial scores: a candidate fitted on the rows of a fold that lie in its window."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from pipelines import scores
from pipelines.components.base import Component
from policies.metrics import Task
from policies.schema import FloatRange
from tuners.folds import Fold
from tuners.space import Candidate, Family, SearchSpace
from tuners.trials import Problem


class Shares:
    """Answers with each class's share of what it was fitted on; notes what it was given."""

    name = "test.shares"

    def __init__(self) -> None:
        self.given: list[tuple[list[Any] | None, list[float]]] = []

    def fit(self, frame: pd.DataFrame, target: pd.Series, *, classes: Sequence[Any] | None, **_: Any) -> Shares:
        assert frame.index.tolist() == target.index.tolist()
        self.given.append((None if classes is None else list(classes), target.tolist()))
        return self

    def predict(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        classes, target = self.given[-1]
        if classes is None:
            return np.full(len(frame), np.mean(target))
        shares = np.bincount(np.array(target, dtype=int), minlength=len(classes)) / len(target)
        return np.full(len(frame), shares[1]) if len(classes) == 2 and self.binary else np.tile(shares, (len(frame), 1))

    binary = False

    def save(self, model_dir: Path) -> Any:
        raise NotImplementedError("nobody saves what only a test fits")


def problem(labels: Sequence[float], classes: Sequence[Any] | None, task: Task, metric: str, component: Any) -> Problem:
    """Rows a second apart, of which the first 6 are fitted on and the others scored."""
    count = len(labels)
    codes = np.array(labels, dtype=float)
    fold = Fold(np.arange(6), np.arange(6, count))
    kind = "float64" if classes is None else "int64"
    made: dict[str, Component] = {component.name: component}
    ranges = {"x": FloatRange(low=0, high=1)}
    return Problem(
        frame=pd.DataFrame({"f": np.arange(float(count))}), target=pd.Series(codes.astype(kind)), labels=codes,
        times=np.arange(float(count)), folds=[fold], features=(), task=task, classes=classes, metric=metric, threshold=0.5,
        fit_seed=0, components=made,
        space=SearchSpace(families=(Family(name=component.name, ranges=ranges, given={}),), windows=()),
    )  # fmt: skip


def candidate(window_s: float | None = None) -> Candidate:
    return Candidate(component="test.shares", parameters={}, window_s=window_s)


def test_a_class_that_was_not_fitted_has_no_chance() -> None:
    """The component is given the classes that occur, numbered from 0; of the others the answers have probability 0, in their place."""
    shares = Shares()
    asked = problem([0, 2, 2, 2, 3, 3, 2, 1], ["a", "b", "c", "d", "e"], Task.MULTICLASS, "log_loss", shares)
    value, _ = asked.score(candidate(), asked.folds[0])
    assert shares.given == [(["a", "c", "d"], [0, 1, 1, 1, 2, 2])]
    over_all = np.tile([1 / 6, 0, 3 / 6, 2 / 6, 0], (2, 1))
    assert value == scores.score("log_loss", np.array([2.0, 1.0]), over_all, classes=list(range(5)), threshold=0.5)
    assert np.isfinite(value)


def test_a_window_may_know_fewer_classes_than_all_rows() -> None:
    """The newest three rows of the fold hold two classes; a window of one class cannot be fitted on, and says so."""
    shares = Shares()
    asked = problem([0, 2, 1, 2, 1, 1, 2, 1], ["a", "b", "c"], Task.MULTICLASS, "accuracy", shares)
    assert asked.score(candidate(3.0), asked.folds[0])[0] == 0.5
    assert shares.given == [(["b", "c"], [1, 0, 0])]
    with pytest.raises(ValueError, match="window 2 s leaves no row of class 'a' to fit on"):
        asked.score(candidate(2.0), asked.folds[0])


def test_both_classes_of_a_binary_task_are_needed() -> None:
    """Its answers are a probability of the second."""
    shares = Shares()
    shares.binary = True
    asked = problem([1, 1, 0, 1, 1, 1, 1, 0], ["no", "yes"], Task.BINARY, "brier", shares)
    assert asked.score(candidate(), asked.folds[0])[0] == pytest.approx(((1 / 6) ** 2 + (5 / 6) ** 2) / 2)
    assert shares.given == [(["no", "yes"], [1, 1, 0, 1, 1, 1])]
    with pytest.raises(ValueError, match="window 3 s leaves no row of class 'no' to fit on"):
        asked.score(candidate(3.0), asked.folds[0])


def test_a_regression_is_given_its_values() -> None:
    """No classes, nothing numbered."""
    shares = Shares()
    asked = problem([1.5, 2, 3, 4, 5, 6, 7, 9], None, Task.REGRESSION, "mae", shares)
    assert asked.score(candidate(2.0), asked.folds[0])[0] == pytest.approx((1.5 + 3.5) / 2)
    assert shares.given == [(None, [5.0, 6.0])]
