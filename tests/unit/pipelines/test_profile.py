"""Profiles of reference rows: what they hold, that the same rows give the same bytes, and that no file is believed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipelines.data.profile import (
    BLOCK,
    PROFILE_FILE,
    VALUES_FILE,
    ProfileError,
    profile_rows,
    read_profile,
    write_profile,
)

FEATURES = [
    {"name": "x", "kind": "numeric"}, {"name": "level", "kind": "numeric"}, {"name": "carrier", "kind": "categorical"},
    {"name": "storm", "kind": "boolean"}, {"name": "title", "kind": "text"}, {"name": "gone", "kind": "numeric"},
]  # fmt: skip


def _rows(n: int = 500) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    x = rng.normal(1e6, 1, n)
    x[:5] = [np.nan, np.inf, -np.inf, 0.0, -0.0]
    return pd.DataFrame(
        {
            "x": x, "level": rng.integers(0, 3, n), "carrier": rng.choice(["AA", "B6", None], n),
            "storm": rng.random(n) < 0.5, "title": "t",
        }
    )  # fmt: skip


def test_profile_holds_sorted_values_and_counted_categories(tmp_path: Path) -> None:
    """Read back: finite values ascending with one zero, running sums of them, few values counted, categories as text, absent columns
    empty."""
    rows = _rows()
    write_profile(tmp_path, profile_rows(rows, FEATURES))
    profile = read_profile(tmp_path)
    assert profile is not None
    numbers = profile.numbers
    finite = np.sort(rows["x"][np.isfinite(rows["x"])])
    assert numbers.names == ("x", "level", "gone")
    assert numbers.counts.tolist() == [497, 500, 0]
    assert np.array_equal(numbers.values[0, :497], finite)
    assert not np.signbit(numbers.values[0, :2]).any()
    centred = numbers.values[0] - numbers.centres[0]
    assert numbers.sums[0, 3] == pytest.approx(centred[: 3 * BLOCK].sum(), rel=1e-12)
    assert numbers.scales[0] == pytest.approx(finite.std(), rel=1e-12)
    assert numbers.few[0] is None
    assert numbers.few[1] is not None
    assert numbers.few[1][0].tolist() == [0, 1, 2]
    assert numbers.few[1][1].tolist() == rows["level"].value_counts().sort_index().tolist()
    assert dict(profile.categories["carrier"]) == rows["carrier"].value_counts().to_dict()
    assert sorted(profile.categories["storm"]) == ["0.0", "1.0"]
    assert profile.texts == ("title",)
    assert profile.rows == 500


def test_categories_of_any_type_are_counted_as_their_text(tmp_path: Path) -> None:
    """Whole numbers, texts and a mixture; the same text is one category, and missing values are none."""
    rows = pd.DataFrame({"a": [1, 2, 2], "b": pd.Series([1, "1", float("nan")], dtype=object)})
    profile = profile_rows(rows, [{"name": "a", "kind": "categorical"}, {"name": "b", "kind": "categorical"}])
    assert profile.categories == {"a": {"1": 1, "2": 2}, "b": {"1": 2}}


def test_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    """Whatever zeros have a sign: the digest of a model must not depend on it."""
    for name, zero in (("a", 0.0), ("b", -0.0)):
        (tmp_path / name).mkdir()
        write_profile(tmp_path / name, profile_rows(_rows().replace(0.0, zero), FEATURES))
    for file in (PROFILE_FILE, VALUES_FILE):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_folder_without_profile_has_none(tmp_path: Path) -> None:
    """Versions that older releases made."""
    assert read_profile(tmp_path) is None


@pytest.mark.parametrize("rows", [0, 1])
def test_hardly_any_rows_are_a_profile_too(tmp_path: Path, rows: int) -> None:
    """Nothing to divide by, nothing to map."""
    write_profile(tmp_path, profile_rows(_rows(20).tail(rows), FEATURES))
    profile = read_profile(tmp_path)
    assert profile is not None
    assert profile.numbers.counts.tolist() == [rows, rows, 0]


Damage = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: d.update(format=2), "format must be 1 but is 2"),
        (lambda d: d.update(rows=10**9), "rows must be at most 20,000"),
        (lambda d: d.update(width=10**6), "width must be at most rows"),
        (lambda d: d.update(width=480), "width"),
        (lambda d: d.pop("numeric"), "numeric"),
        (lambda d: d.update(categories=[1]), "AttributeError"),
        (lambda d: d["categories"].update(carrier={"AA": -1}), "categories of 'carrier'"),
        (lambda d: d["categories"].update(carrier={"AA": 501}), "categories of 'carrier'"),
        (lambda d: d["categories"].update(carrier={"AA": True}), "categories of 'carrier'"),
        (lambda d: d["numeric"][0].update(count=-1), "counts must be whole numbers"),
        (lambda d: d["numeric"][0].update(count=501), "counts must be at most width"),
        (lambda d: d["numeric"][0].update(count=10**30), "OverflowError"),
        (lambda d: d["numeric"][0].update(centre=float("nan")), "centres and scales must be numbers"),
        (lambda d: d["numeric"][0].update(centre=0.5), "running sums"),
        (lambda d: d["numeric"][0].update(scale=0.0), "centres and scales must be numbers"),
        (lambda d: d["numeric"][1].update(few=[[2.0, 1.0], [250, 250]]), "few of 'level'"),
        (lambda d: d["numeric"][1].update(few=[[1.0], [400]]), "few of 'level'"),
        (lambda d: d["numeric"].append(d["numeric"][0]), "must have"),
    ],
)
def test_description_that_does_not_fit_is_refused(tmp_path: Path, damage: Damage, said: str) -> None:
    """Each with the file and the rule."""
    write_profile(tmp_path, profile_rows(_rows(), FEATURES))
    described = json.loads((tmp_path / PROFILE_FILE).read_text())
    damage(described)
    (tmp_path / PROFILE_FILE).write_text(json.dumps(described))
    with pytest.raises(ProfileError, match=said) as error:
        read_profile(tmp_path)
    assert str(tmp_path / PROFILE_FILE) in str(error.value)


@pytest.mark.parametrize("place", [3, 100, -1, -20])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300, -1e300])
def test_values_that_do_not_fit_are_refused(tmp_path: Path, place: int, value: float) -> None:
    """One number wrong among the values or their sums: not finite, not in order, or no sum of its values."""
    write_profile(tmp_path, profile_rows(_rows(), FEATURES[:1]))
    flat = np.fromfile(tmp_path / VALUES_FILE, dtype="<f8")
    flat[place] = value
    flat.tofile(tmp_path / VALUES_FILE)
    with pytest.raises(ProfileError, match=r"must ascend|must be finite|running sums"):
        read_profile(tmp_path)


def test_torn_files_are_refused(tmp_path: Path) -> None:
    """Half a file of values, none at all, and what is no JSON."""
    write_profile(tmp_path, profile_rows(_rows(), FEATURES))
    content = (tmp_path / VALUES_FILE).read_bytes()
    (tmp_path / VALUES_FILE).write_bytes(content[:-8])
    with pytest.raises(ProfileError, match="must have"):
        read_profile(tmp_path)
    (tmp_path / VALUES_FILE).unlink()
    with pytest.raises(ProfileError, match="is missing"):
        read_profile(tmp_path)
    for text in ("[" * 100_000, "{", "[]", '"x"'):
        (tmp_path / PROFILE_FILE).write_text(text)
        with pytest.raises(ProfileError, match="is no profile"):
            read_profile(tmp_path)
