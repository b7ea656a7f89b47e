"""The catalogue's corruptions: each breaks what its name says, nothing else, and in the same way for the same seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from bench.faults.catalogue import plan, report, sound_refused, worse_promoted
from bench.faults.corruptions import CORRUPTIONS, FAULTS, Meaning, newest_only
from bench.faults.trial import Asked, Found, from_json

ROWS = 1_000
CLASSES = Meaning(label="y", features=("a", "b", "still"), regression=False)
VALUES = Meaning(label="y", features=("a", "b", "still"), regression=True)


def frame_of(meaning: Meaning) -> pd.DataFrame:
    rng = np.random.default_rng(7)
    a, b = rng.normal(5, 1, ROWS), rng.normal(-3, 2, ROWS)
    y = 10 + a - b if meaning.regression else np.where(a + b > 2, "UP", "DOWN")
    return pd.DataFrame({"at": np.arange(ROWS), "a": a, "b": b, "still": 1.0, "y": y})


def broken(fault: str, meaning: Meaning, seed: int = 0) -> pd.DataFrame:
    return CORRUPTIONS[fault](frame_of(meaning), meaning, np.random.default_rng(seed))


@pytest.mark.parametrize("meaning", [CLASSES, VALUES], ids=["classes", "regression"])
@pytest.mark.parametrize("fault", CORRUPTIONS)
def test_a_corruption_is_seeded_and_keeps_the_shape(fault: str, meaning: Meaning) -> None:
    """The same columns of the same types in the order of time, the same again from the same seed, and the snapshot given is not touched."""
    whole = frame_of(meaning)
    once = CORRUPTIONS[fault](whole, meaning, np.random.default_rng(3))
    again = CORRUPTIONS[fault](whole, meaning, np.random.default_rng(3))
    pd.testing.assert_frame_equal(once, again)
    pd.testing.assert_frame_equal(whole, frame_of(meaning))
    assert list(once.columns) == list(whole.columns)
    assert once["at"].is_monotonic_increasing
    assert once.equals(whole) == (fault == "sound")


@pytest.mark.parametrize("meaning", [CLASSES, VALUES], ids=["classes", "regression"])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_broken_in_the_newest_part_leaves_the_rest(fault: str, meaning: Meaning) -> None:
    """Only rows of the newest two fifths may differ."""
    whole = frame_of(meaning)
    part = newest_only(CORRUPTIONS[fault], whole, meaning, np.random.default_rng(1))
    old = round(ROWS * 0.6)
    pd.testing.assert_frame_equal(part.iloc[:old], whole.iloc[:old])
    assert not part.equals(whole)


def _flipped(frame: pd.DataFrame, whole: pd.DataFrame) -> bool:
    return bool(0.25 < (frame["y"] != whole["y"]).mean() < 0.35)


def _swapped(frame: pd.DataFrame, whole: pd.DataFrame) -> bool:
    return frame["a"].equals(whole["b"].rename("a")) and frame["b"].equals(whole["a"].rename("b"))


def _unit(frame: pd.DataFrame, whole: pd.DataFrame) -> bool:
    changed = [name for name in ("a", "b") if not frame[name].equals(whole[name])]
    return len(changed) == 1 and bool(np.isclose(frame[changed[0]].corr(whole[changed[0]]), 1.0))


def _leaked(frame: pd.DataFrame, whole: pd.DataFrame) -> bool:
    return max(abs(frame[name].corr(pd.Series(pd.factorize(frame["y"])[0]))) for name in ("a", "b")) > 0.85


def _stale(frame: pd.DataFrame, whole: pd.DataFrame) -> bool:
    return 0.6 * ROWS <= len(frame) <= 0.9 * ROWS and frame.equals(whole.iloc[: len(frame)])


def _lost(frame: pd.DataFrame, whole: pd.DataFrame) -> bool:
    before, after = whole["y"].value_counts(), frame["y"].value_counts()
    return (before.sub(after, fill_value=0) >= 0.6 * before).sum() == 1


def _flooded(frame: pd.DataFrame, whole: pd.DataFrame) -> bool:
    return len(frame) >= 1.5 * ROWS and frame.drop_duplicates().equals(whole)


def _unmatured(frame: pd.DataFrame, whole: pd.DataFrame) -> bool:
    changed = np.flatnonzero(frame["y"] != whole["y"])
    return bool(changed.min() >= 0.6 * ROWS) and set(frame["y"].iloc[changed]) == {"DOWN"}


def _constant(frame: pd.DataFrame, whole: pd.DataFrame) -> bool:
    return sorted(frame[["a", "b"]].nunique()) == [1, ROWS]


SIGNS: dict[str, Callable[[pd.DataFrame, pd.DataFrame], bool]] = {
    "labels_flipped": _flipped,
    "columns_swapped": _swapped,
    "unit_changed": _unit,
    "label_leaked": _leaked,
    "snapshot_stale": _stale,
    "class_lost": _lost,
    "rows_duplicated": _flooded,
    "labels_unmatured": _unmatured,
    "column_constant": _constant,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_corruption_is_what_its_name_says(fault: str) -> None:
    """With each of five seeds."""
    for seed in range(5):
        assert SIGNS[fault](broken(fault, CLASSES, seed), frame_of(CLASSES)), f"seed {seed}"


# ---------------------------------------------------------------- what is counted
def found(fault: str, ended: str, gain: float | None, seed: int = 0, stream: str = "elec2") -> Found:
    return Found(
        asked=Asked(stream=stream, fault=fault, seed=seed, quality="hold"), newest_only=False, ended=ended,  # type: ignore[arg-type]
        sentence="", rows_held=0, kinds=(), gain=gain, stderr=None if gain is None else 0.005, seconds=1.0, held_after=0,
    )  # fmt: skip


def test_worse_is_beyond_margin_and_chance() -> None:
    """A loss counts from the margin on, if it is more than 2.326 standard errors; in R² the margin is .02."""
    assert found("labels_flipped", "promoted", -0.0117).worse
    assert not found("labels_flipped", "promoted", -0.0115).worse, "here 2.3 standard errors"
    assert not found("labels_flipped", "promoted", -0.015, stream="bike_sharing_hourly").worse
    assert not found("labels_flipped", "held", None).worse


def test_what_must_hold_is_counted() -> None:
    """Worse ones that serve, and sound ones that do not; controls that are worse and refused, or the same model again, are neither."""
    every = [
        found("labels_flipped", "promoted", -0.1, 1), found("labels_flipped", "rolled_back", -0.1, 2),
        found("class_lost", "gate", 0.1, 3), found("sound", "promoted", 0.0, 4), found("sound", "undecided", 0.02, 5),
        found("sound", "gate", -0.02, 6), found("sound", "held", None, 7), found("sound", "twin", 0.0, 8),
    ]  # fmt: skip
    assert [one.asked.seed for one in worse_promoted(every)] == [1]
    assert [one.asked.seed for one in sound_refused(every)] == [5, 7]
    told = report(every)
    assert (told["faulty"], told["sound"], told["worse_challengers"]) == (3, 3, 2)
    assert {line["fault"]: line["trials"] for line in told["table"]} == {
        "sound": 5,
        "labels_flipped": 2,
        "class_lost": 1,
    }


def test_an_outcome_is_read_back_as_it_was_written() -> None:
    """A run that goes on counts what the stopped one found."""
    one = found("unit_changed", "gate", -0.2)
    assert from_json(one.as_json()) == one


def test_the_plan_has_every_fault_in_every_stream() -> None:
    """Eight seeds of nine faults in three streams are 216 trials, each of its own name."""
    asked = plan(range(8), range(20), warn_seeds=range(3))
    assert len({one.name for one in asked}) == len(asked) == 216 + 60 + 81
