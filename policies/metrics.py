"""The metrics a policy may name: for which task, and which way is better. The arithmetic is in `evaluators.scores`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Task(StrEnum):
    BINARY = "binary"
    MULTICLASS = "multiclass"
    REGRESSION = "regression"


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One metric, by scikit-learn's name for it."""

    name: str
    tasks: frozenset[Task]
    higher_is_better: bool = True
    needs_scores: bool = False
    """Whether it ranks or weighs probabilities rather than counting decisions."""
    per_row: bool = False
    """Whether it is the mean of a number per row (so that McNemar or a paired mean test applies)."""


def _metric(name: str, *tasks: Task, higher: bool = True, scores: bool = False, per_row: bool = False) -> Metric:
    return Metric(name=name, tasks=frozenset(tasks), higher_is_better=higher, needs_scores=scores, per_row=per_row)


_B, _M, _R = Task.BINARY, Task.MULTICLASS, Task.REGRESSION
METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        _metric("accuracy", _B, _M, per_row=True),
        _metric("balanced_accuracy", _B, _M),
        _metric("precision", _B),
        _metric("recall", _B),
        _metric("f1", _B),
        _metric("f1_macro", _M),
        _metric("roc_auc", _B, scores=True),
        _metric("average_precision", _B, scores=True),
        _metric("log_loss", _B, _M, higher=False, scores=True, per_row=True),
        _metric("brier", _B, higher=False, scores=True, per_row=True),
        _metric("mae", _R, higher=False, per_row=True),
        _metric("rmse", _R, higher=False),
        _metric("r2", _R),
    )
}
