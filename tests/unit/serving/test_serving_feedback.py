"""Labels become a confusion matrix in counters as far as their predictions are remembered; the log has them all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_rig import logged

from serving.log import LogWriter
from serving.runtime.feedback import Feedback, class_name, read_feedback
from serving.runtime.metrics import Metrics
from serving.runtime.recent import CLASSES_MAX, WAYS, RecentPredictions
from serving.runtime.requests import RequestError


class Rig:
    """Feedback on a model of the given classes, with what it counts."""

    def __init__(self, folder: Path, classes: Sequence[Any] | None) -> None:
        self.recent = RecentPredictions(64)
        self.metrics = Metrics("shop", 7, [class_name(value) for value in classes or ()])
        self.log = LogWriter(folder / "labels", now=lambda: 1.0)
        self.feedback = Feedback(classes, log=self.log, recent=self.recent, metrics=self.metrics, now=lambda: 1.0)

    def counted(self) -> dict[str, float]:
        """`predicted/actual` → count, and `unmatched`."""
        found: dict[str, float] = {}
        for line in self.metrics.render().decode().splitlines():
            name, _, value = line.rpartition(" ")
            if name.startswith("ratchet_feedback_total{"):
                labels = dict(part.split("=") for part in name[name.index("{") + 1 : -1].split(","))
                found[f"{labels['predicted']}/{labels['actual']}".replace('"', "")] = float(value)
            if name.startswith("ratchet_feedback_unmatched_total"):
                found["unmatched"] = float(value)
        return found


def test_labels_are_counted_by_predicted_and_actual_class(tmp_path: Path) -> None:
    """Each label of a remembered prediction is one count of its cell; others are counted as unmatched; all are logged."""
    rig = Rig(tmp_path, [0, 1])
    rig.recent.remember("a", 1)
    rig.recent.remember("b", 0)
    assert rig.feedback.take([("a", 1), ("b", 1), ("c", 0)]) == 3
    assert rig.counted() == {"1/1": 1, "0/1": 1, "unmatched": 1}
    assert [(row["id"], row["label"]) for row in logged(tmp_path, "labels")] == [("a", "1"), ("b", "1"), ("c", "0")]


def test_a_label_sent_twice_counts_once(tmp_path: Path) -> None:
    """A client may send a label again; the log keeps both and the counters one."""
    rig = Rig(tmp_path, ["no", "yes"])
    rig.recent.remember("a", 0)
    for _ in range(3):
        rig.feedback.take([("a", "yes")])
    assert rig.counted() == {"no/yes": 1, "unmatched": 0}
    assert len(logged(tmp_path, "labels")) == 3


@pytest.mark.parametrize(
    ("classes", "label", "cell"),
    [
        ([0, 1], 1.0, "1/1"),
        ([0, 1], True, "1/1"),
        ([False, True], 1, "true/true"),
        ([0, 1], "1", "1/other"),
        (["a", "b"], "a", "b/a"),
        (["a", "b"], "z", "b/other"),
    ],
)
def test_actual_is_one_of_the_classes_or_other(tmp_path: Path, classes: list[Any], label: Any, cell: str) -> None:
    """Equal JSON numbers are one class; what is no class is `other`, so that clients cannot make new series."""
    rig = Rig(tmp_path, classes)
    rig.recent.remember("a", 1)
    rig.feedback.take([("a", label)])
    assert rig.counted() == {cell: 1, "unmatched": 0}


def test_a_regression_has_no_confusion_matrix(tmp_path: Path) -> None:
    """Labels of a regression are logged, and nothing is counted by class."""
    rig = Rig(tmp_path, None)
    assert rig.feedback.take([("a", 12.5)]) == 1
    assert rig.counted() == {"unmatched": 1}
    assert logged(tmp_path, "labels")[0]["label"] == "12.5"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            b'{"labels":[{"id":"a","label":null}]}',
            "labels[0].label: must be a string, a number, true or false but got None",
        ),
        (b'{"labels":[{"id":"a","label":[1]}]}', "labels[0].label"),
        (b'{"labels":[{"id":"a","label":NaN}]}', "not valid JSON"),
        (b'{"labels":[{"id":"a","label":1e999}]}', "out of range"),
        (b'{"labels":[{"id":"a","label":99999999999999999999}]}', "must fit 64 bits"),
        (b'{"labels":[{"id":"a"}]}', "missing required field `label`"),
        (b'{"labels":[{"id":5,"label":1}]}', "at `$.labels[0].id`"),
        (b'{"labels":[{"id":"","label":1}]}', "labels[0].id: must have 1 to 256 characters but has 0"),
        (b'{"labels":[{"id":"' + b"x" * 300 + b'","label":1}]}', "but has 300"),
        (b'{"labels":[{"id":"a","label":"' + b"x" * 2000 + b'"}]}', "at most 1024 characters"),
        (b'{"labels":{}}', "at `$.labels`"),
        (b'{"label":[]}', "`label`"),
        (b'{"labels":[' + b'{"id":"a","label":1},' * 20 + b'{"id":"a","label":1}]}', "at most 10 but holds 21"),
    ],
)
def test_bad_labels_are_refused_by_name(body: bytes, said: str) -> None:
    """Labels that are no finite JSON scalar, and ids that are no bounded string, are refused with field and value."""
    with pytest.raises(RequestError) as caught:
        read_feedback(body, rows_max=10)
    assert said in str(caught.value)


def test_no_labels_are_no_error(tmp_path: Path) -> None:
    """An empty list accepts 0 and writes nothing."""
    assert read_feedback(b'{"labels":[]}', rows_max=10) == []
    assert Rig(tmp_path, [0, 1]).feedback.take([]) == 0
    assert not (tmp_path / "labels").exists()


# ---------------------------------------------------------------- the memory of predictions
@given(st.dictionaries(st.text(min_size=1), st.integers(0, 5), max_size=3))
def test_the_last_few_predictions_are_always_remembered(predicted: dict[str, int]) -> None:
    """As many ids as one set has places are found again, with their class, once as new and then as taken."""
    assert len(predicted) <= WAYS
    recent = RecentPredictions(8)
    for row_id, index in predicted.items():
        recent.remember(row_id, index)
    assert {row_id: recent.take(row_id) for row_id in predicted} == {
        i: (index, False) for i, index in predicted.items()
    }
    assert {row_id: recent.take(row_id) for row_id in predicted} == {i: (index, True) for i, index in predicted.items()}
    assert recent.take("never seen") is None


def test_memory_is_bounded_and_forgets_the_oldest() -> None:
    """Of many more ids than places, only as many as there are places are found, and the newest among them."""
    recent = RecentPredictions(64)
    for i in range(10_000):
        recent.remember(f"id-{i}", i % 3)
    found = [i for i in range(10_000) if recent.take(f"id-{i}")]
    assert len(found) <= 64
    assert 9_999 in found


def test_memory_is_shared_with_forked_workers() -> None:
    """What one worker predicted, another matches with its label."""
    recent = RecentPredictions(64)
    pid = os.fork()
    if pid == 0:
        recent.remember("a", 2)
        os._exit(0)
    os.waitpid(pid, 0)
    assert recent.take("a") == (2, False)


def test_a_class_beyond_the_table_is_not_remembered() -> None:
    """An index that a slot cannot hold is left out rather than cut."""
    recent = RecentPredictions(64)
    recent.remember("a", CLASSES_MAX)
    assert recent.take("a") is None
