"""What else an owner might have done: on streams where the answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import streams

from backtest.rivals import Recipe, last_label, periodic, score_of
from backtest.stream import Stream

FIRST = 200


def linear(stream: Stream) -> Recipe:
    regression = stream.classes is None
    return Recipe(
        component="sklearn.ridge" if regression else "sklearn.logistic_regression",
        parameters={"alpha": 1.0} if regression else {"C": 1.0, "max_iter": 300, "class_weight": None},
        window_s=None,
    )


def test_last_label_repeats_the_newest_that_was_known(tmp_path: Path) -> None:
    """With labels three rows late, the label of three rows before, or the one known then where that has none."""
    table = streams.rows(40)
    table["y"][20] = None  # type: ignore[call-overload]
    stream = streams.stream(tmp_path, table, data=", label_delay: 3s")
    answers = last_label(stream, 10)
    assert np.isnan(answers[:10]).all()
    expected = [stream.truth[i - 3] if i != 23 else stream.truth[19] for i in range(10, 40)]
    assert (answers[10:] > 0.5).tolist() == [value == 1 for value in expected]


def test_scores_are_of_labelled_rows_in_the_span(tmp_path: Path) -> None:
    """The objective's own, on the rows asked for; not a number where there are none."""
    table = streams.rows(40)
    table["y"][30] = None  # type: ignore[call-overload]
    stream = streams.stream(tmp_path, table)
    right = np.where(np.isfinite(stream.truth), stream.truth, 0.0)
    assert score_of(stream, right, 10) == 1.0
    wrong = right.copy()
    wrong[35:] = 1 - wrong[35:]
    assert score_of(stream, wrong, 10) == pytest.approx(24 / 29)
    assert score_of(stream, wrong, 36, 40) == 0.0
    assert np.isnan(score_of(stream, right, 30, 31))


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_periodic_follows_a_change_at_its_next_date(tmp_path: Path, task: str) -> None:
    """Where the world turns round, the window of the newest rows wins, and it is better after its retrain than before."""
    stream = streams.stream(tmp_path, streams.rows(1_000, change=400, task=task), task=task)
    told: list[str] = []
    found = periodic(stream, FIRST, linear(stream), 3, [None, FIRST], told.append)
    assert (found.retrains, found.window) == (3, "newest 200 rows")
    assert found.answers is not None
    assert found.score == pytest.approx(score_of(stream, found.answers, FIRST))
    assert score_of(stream, found.answers, 600) > score_of(stream, found.answers, 400, 600) + 0.3
    assert told == ["periodic rival, expanding", "periodic rival, newest 200 rows"]


def test_periodic_learns_only_from_labels_that_were_known(tmp_path: Path) -> None:
    """Labels that come after the end teach nothing: only the rows before the first date are learnt from."""
    table = streams.rows(600, change=300)
    late = streams.stream(
        tmp_path, table | {"k": [0 if i < FIRST else 10_000 for i in range(600)]}, data=", label_time: k"
    )
    found = periodic(late, FIRST, linear(late), 3, [None], lambda _: None)
    assert found.answers is not None
    assert score_of(late, found.answers, 300) < 0.3


def test_without_retrains_periodic_is_one_training(tmp_path: Path) -> None:
    """As often as Ratchet did: never."""
    stream = streams.stream(tmp_path, streams.rows(400))
    found = periodic(stream, FIRST, linear(stream), 0, [None, FIRST], lambda _: None)
    assert found.retrains == 0
    assert found.score > 0.8
