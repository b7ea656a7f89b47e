"""What else an owner might have done with the same stream: nothing (static), retrain by the calendar (periodic), or repeat the last label.

The periodic rival trains as often as Ratchet did, evenly spaced, by the recipe of the first version, and gets the best of several training
windows in hindsight. It never asks whether the new model is any better.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from backtest.models import Models
from backtest.replay import Replayed
from backtest.stream import Stream
from evaluators.answers import align
from evaluators.baselines import LAST_LABEL, Labelled, baselines
from pipelines import scores
from pipelines.components import registry
from pipelines.data import kinds
from pipelines.data.features import Feature, model_frame
from pipelines.data.labels import classes_of, encode_labels
from policies.metrics import Task

CHUNK_ROWS = 20_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How the first version was made."""

    component: str
    parameters: dict[str, Any]
    window_s: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Periodic:
    """The periodic rival with its best window."""

    score: float
    retrains: int
    window: str
    """`expanding`, or `newest N rows`."""
    answers: NDArray[np.float64] | None = None
    """(n,) or (n, k); NaN before the first row that is replayed."""


def score_of(stream: Stream, answers: NDArray[np.float64], first_row: int, end: int | None = None) -> float:
    """The objective's score of answers (n,) or (n, k) on the labelled rows from `first_row` to `end`; NaN where it is not defined."""
    rows = np.arange(first_row, len(stream) if end is None else end)
    truth = stream.truth[rows]
    labelled = np.isfinite(truth)
    if not labelled.any():
        return float("nan")
    codes = None if stream.classes is None else list(range(len(stream.classes)))
    return float(
        scores.score(
            stream.metric.name,
            truth[labelled],
            answers[rows][labelled],
            classes=codes,
            threshold=stream.spec.objective.threshold,
        )
    )


def static(replayed: Replayed, models: Models) -> NDArray[np.float64]:
    """What the first version would have answered to all rows, (n,) or (n, k)."""
    stream, first = replayed.stream, replayed.first_row
    pieces = []
    for start in range(first, len(stream), CHUNK_ROWS):
        rows = np.arange(start, min(start + CHUNK_ROWS, len(stream)))
        pieces.append(models.over_all_classes(replayed.first_model, models.scores(replayed.first_model, rows)))
    return _after(first, np.concatenate(pieces))


def last_label(stream: Stream, first_row: int) -> NDArray[np.float64]:
    """The label of the newest row whose label was known, (n,) or (n, k); NaN before `first_row`."""
    rows = Labelled(labels=stream.truth, time_us=stream.asked, known_us=stream.known)
    past = Labelled(labels=rows.labels[:first_row], time_us=stream.asked[:first_row], known_us=stream.known[:first_row])
    judged = Labelled(
        labels=rows.labels[first_row:], time_us=stream.asked[first_row:], known_us=stream.known[first_row:]
    )
    found = baselines(past, judged, None if stream.classes is None else len(stream.classes))
    return _after(first_row, found[LAST_LABEL].answers(stream.metric.name))


def _after(first_row: int, answers: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([np.full((first_row, *answers.shape[1:]), np.nan), answers])


# ---------------------------------------------------------------- periodic
def periodic(
    stream: Stream,
    first_row: int,
    recipe: Recipe,
    retrains: int,
    windows: Sequence[int | None],
    tell: Callable[[str], None],
) -> Periodic:
    """The best of the training windows (in rows; None: all rows so far) in hindsight. `retrains` beside the first training."""
    starts = np.linspace(first_row, len(stream), retrains + 2)[:-1].round().astype(int)
    context = multiprocessing.get_context("fork")
    workers = max(1, min(os.cpu_count() or 1, len(windows)))
    found: list[Periodic] = []
    with ProcessPoolExecutor(max_workers=workers, mp_context=context) as pool:
        asked: list[tuple[int | None, Future[NDArray[np.float64]]]] = [
            (window, pool.submit(_answers_by_calendar, stream, first_row, recipe, starts, window)) for window in windows
        ]
        for window, future in asked:
            tell(f"periodic rival, {_window_words(window)}")
            answers = future.result()
            score = score_of(stream, answers, first_row)
            found.append(Periodic(score=score, retrains=retrains, window=_window_words(window), answers=answers))
    best = max if stream.metric.higher_is_better else min
    none = Periodic(score=float("nan"), retrains=retrains, window=_window_words(None))
    return best((one for one in found if np.isfinite(one.score)), key=lambda one: one.score, default=none)


def _window_words(window: int | None) -> str:
    return "expanding" if window is None else f"newest {window:,} rows"


def _answers_by_calendar(
    stream: Stream, first_row: int, recipe: Recipe, starts: NDArray[np.int64], window: int | None
) -> NDArray[np.float64]:
    ends = [*starts[1:].tolist(), len(stream)]
    pieces = [
        _fit_and_answer(stream, int(start), int(end), recipe, window)
        for start, end in zip(starts, ends, strict=True)
        if end > start
    ]
    return _after(first_row, np.concatenate(pieces))


def _fit_and_answer(stream: Stream, start: int, end: int, recipe: Recipe, window: int | None) -> NDArray[np.float64]:
    """Answers to the rows [start, end) of a model trained on the newest `window` rows whose labels were known at `start`."""
    spec = stream.spec
    known = np.flatnonzero(stream.known[:start] <= stream.asked[start])
    known = known[-window:] if window is not None else known
    rows = stream.frame.iloc[known]
    features, _ = kinds.infer_features(rows, spec.data)
    labels = rows[spec.data.label]
    classes = classes_of(labels, spec.task)
    target = encode_labels(labels, classes)
    if classes is not None and len(classes) < 2:
        return _constant(stream, classes, end - start)
    fitted = registry.get(recipe.component).fit(
        model_frame(rows, features),
        pd.Series(target if spec.task is Task.REGRESSION else target.astype("int64"), index=rows.index),
        features=features,
        task=spec.task,
        classes=classes,
        parameters=recipe.parameters,
        seed=spec.train.seed,
    )
    answers = fitted.predict(_frame(stream, start, end, features))
    return align(answers, classes, stream.classes)


def _frame(stream: Stream, start: int, end: int, features: Sequence[Feature]) -> pd.DataFrame:
    return model_frame(stream.frame.iloc[start:end], features)


def _constant(stream: Stream, classes: list[Any], rows: int) -> NDArray[np.float64]:
    """Where only one class was ever seen there is nothing to fit."""
    only = encode_labels(pd.Series([classes[0]]), stream.classes)[0]
    if stream.spec.task is Task.BINARY:
        return np.full(rows, only)
    answers = np.zeros((rows, len(stream.classes or ())))
    answers[:, int(only)] = 1.0
    return answers


def windows_of(first_row: int) -> list[int | None]:
    """Training windows of the periodic rival, in rows: all so far, or as many as the first version was trained on."""
    return [None, first_row]


def recipe_of(replayed: Replayed) -> Recipe:
    """Of the first version. Raises KeyError if it is none of ours."""
    version = replayed.state.versions[min(replayed.state.versions)]
    return Recipe(
        component=str(version.lineage["component"]),
        parameters=dict(version.lineage["parameters"]),
        window_s=version.lineage.get("window_s"),
    )
