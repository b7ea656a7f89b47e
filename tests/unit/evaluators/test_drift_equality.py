"""Our drift against Evidently's, given the same reference rows: on real streams, and on whatever Hypothesis finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from evidently_peer import evidently_alone, preset, same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from real_streams import folder, stream

from evaluators.drift.comparing import compare
from pipelines.data.profile import Profile, profile_rows, read_profile, write_profile


def _kinds(
    frame: pd.DataFrame, categorical: tuple[str, ...] = (), boolean: tuple[str, ...] = ()
) -> list[dict[str, str]]:
    def kind(name: str) -> str:
        return "categorical" if name in categorical else "boolean" if name in boolean else "numeric"

    return [{"name": name, "kind": kind(name)} for name in frame.columns]


def _elec() -> tuple[pd.DataFrame, list[dict[str, str]]]:
    """vicprice, vicdemand and transfer are constant at first and then go live; day is a category of seven."""
    frame = stream("elec2").drop(columns=["t", "date"])
    return frame, _kinds(frame, categorical=("day", "class"))


def _bikes() -> tuple[pd.DataFrame, list[dict[str, str]]]:
    """Few-valued numbers, truth values, and missing ones."""
    frame = stream("bike_sharing_hourly").drop(columns=["t"])
    frame.loc[::7, "hum"] = np.nan
    frame.loc[::11, "weathersit"] = np.nan
    return frame, _kinds(frame, categorical=("season", "weathersit"), boolean=("holiday", "workingday"))


def _census() -> tuple[pd.DataFrame, list[dict[str, str]]]:
    frame = stream("acs_employment_MA").drop(columns=["t"]).head(60_000)
    return frame, _kinds(frame, categorical=("RAC1P", "ANC", "RELP"), boolean=("employed",))


def _digits() -> tuple[pd.DataFrame, list[dict[str, str]]]:
    """Some pixels are always 0, in the reference or on both sides."""
    pixels = np.load(folder("digits_domain_shift") / "digits_domain_shift.npz")["x"].reshape(-1, 64)[:, :24]
    frame = pd.DataFrame(pixels, columns=[f"p{i}" for i in range(24)]).astype("float64")
    return frame, _kinds(frame)


Source = Callable[[], tuple[pd.DataFrame, list[dict[str, str]]]]


def _through_files(profile: Profile, at: Path) -> Profile:
    """What a check really reads."""
    write_profile(at, profile)
    read = read_profile(at)
    assert read is not None
    return read


@pytest.mark.parametrize("source", [_elec, _bikes, _census, _digits])
@pytest.mark.parametrize("reference_rows", [700, 1_001, 9_000])
def test_every_window_of_a_real_stream_is_judged_as_evidently_does(
    tmp_path: Path, source: Source, reference_rows: int
) -> None:
    """Windows of 30 to 5,000 rows all along four streams, small and large references: the same methods, scores and verdicts."""
    frame, features = source()
    reference = frame.head(reference_rows)
    profile = _through_files(profile_rows(reference, features), tmp_path)
    for rows in (30, 1_000, 5_000):
        for share in (0.1, 0.5, 0.9):
            start = int(share * (len(frame) - rows))
            window = frame.iloc[start : start + rows]
            same(compare(profile, window), evidently_alone(reference, window, features))


@pytest.mark.slow
@pytest.mark.parametrize(("source", "reference_rows"), [(_elec, 12_000), (_bikes, 900)])
def test_the_whole_preset_says_the_same(source: Source, reference_rows: int) -> None:
    """What a user of DataDriftPreset would see, its share of drifted columns included."""
    frame, features = source()
    reference, window = frame.head(reference_rows), frame.tail(2_000)
    ours = compare(profile_rows(reference, features), window)
    theirs, share = preset(reference, window, features)
    same(ours, theirs)
    assert sum(found.drifted for found in ours.values()) / len(features) == pytest.approx(share, abs=1e-12)


_ODD = st.sampled_from([0.0, -0.0, 1.0, 1e-12, 1e9, 1e9 + 1, -1e15, float("nan"), float("inf"), float("-inf")])
_COLUMNS = st.one_of(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60),
    st.lists(_ODD, min_size=1, max_size=60),
    st.lists(st.integers(0, 6).map(float), min_size=1, max_size=60),
    st.lists(st.floats(-1, 1).map(lambda x: round(x, 1)), min_size=1, max_size=60),
    st.lists(st.floats(0, 1).map(lambda x: 1e7 + x), min_size=1, max_size=60),
)
_REPEATS = st.sampled_from([1, 40])
"""Sixty values, and forty times each: references on both sides of 1,000 rows, with ties."""


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(reference=_COLUMNS, window=_COLUMNS, old=_REPEATS, new=_REPEATS)
def test_any_numbers_are_judged_as_evidently_does(
    reference: list[float], window: list[float], old: int, new: int
) -> None:
    """Ties, zeros of both signs, constants, few values, far origins, missing and infinite values, one row."""
    _hold(pd.Series(np.repeat(reference, old)), pd.Series(np.repeat(window, new)), "numeric")


_WORDS = st.lists(st.sampled_from(["a", "b", "c", "dd", "é", "", None]), min_size=1, max_size=60)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(reference=_WORDS, window=_WORDS, old=_REPEATS, new=_REPEATS)
def test_any_categories_are_judged_as_evidently_does(
    reference: list[str | None], window: list[str | None], old: int, new: int
) -> None:
    """New and vanished categories, missing ones, one category, the empty text."""
    _hold(pd.Series(reference * old, dtype=object), pd.Series(window * new, dtype=object), "categorical")


@settings(max_examples=40, deadline=None, derandomize=True)
@given(reference=_COLUMNS, window=_COLUMNS, old=_REPEATS, new=_REPEATS)
def test_any_truth_values_are_judged_as_evidently_does(
    reference: list[float], window: list[float], old: int, new: int
) -> None:
    """Booleans reach Evidently as categories, whatever numbers stand for them; to it minus zero is another category than zero."""
    _hold(pd.Series(np.repeat(reference, old) + 0.0), pd.Series(np.repeat(window, new) + 0.0), "boolean")


def _hold(reference: pd.Series, window: pd.Series, kind: str) -> None:
    features = [{"name": "x", "kind": kind}]
    old, new = pd.DataFrame({"x": reference}), pd.DataFrame({"x": window})
    same(compare(profile_rows(old, features), new), evidently_alone(old, new, features))
