"""The profile of a version's reference rows: what a drift check needs of them, made once, so that it touches only the new rows.

Two files in the model folder. `profile.json` describes the features: of categories how often each occurs, of numbers how many there are,
their spread, and of those with few values how often each occurs. `profile.f64` holds, little-endian, a row a numeric feature of its values
in ascending order, and then a row each of their running sums, one at every `BLOCK` values. The same rows give the same bytes. What is read
may be damaged or made by somebody else: it holds no code, and sizes, order and sums are checked before anything is made of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipelines.jobs.files import write_json_atomic

if TYPE_CHECKING:
    import pandas as pd

Floats: TypeAlias = NDArray[np.float64]
Counts: TypeAlias = Mapping[str, int]

FORMAT = 1
PROFILE_FILE = "profile.json"
VALUES_FILE = "profile.f64"
REFERENCE_FILE = "reference.parquet"
REFERENCE_FILES = frozenset({REFERENCE_FILE, PROFILE_FILE, VALUES_FILE})
"""What a model folder holds for the measuring of drift alone."""
REFERENCE_ROWS_MAX = 20_000
BLOCK = 16
"""Values between one running sum and the next."""
FEW = 5
"""A numeric feature with at most so many values is compared value by value, as Evidently does."""
_FEATURES_MAX = 100_000
_JSON_BYTES_MAX = 256 * 2**20
_SCALE_MIN = 0.001
"""Evidently's least divisor of a distance, for features that hardly vary."""


class ProfileError(Exception):
    """There is no usable profile; the message names the file and what is wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbers:
    """All numeric features, feature by feature."""

    names: tuple[str, ...]
    counts: NDArray[np.int64]
    """(f,): finite values of each."""
    centres: Floats
    """(f,): the middle value of each, from which sums are taken, so that a far origin costs no digits."""
    scales: Floats
    """(f,): standard deviation (of the whole, not of a sample), but at least 0.001."""
    values: Floats
    """(f, n): ascending; what is beyond a feature's count repeats its last value."""
    sums: Floats
    """(f, n // BLOCK + 1): sum of `values - centre` before each BLOCK-th value."""
    few: tuple[tuple[Floats, NDArray[np.int64]] | None, ...]
    """Of features with at most `FEW` values these, ascending, and how often each occurs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    rows: int
    numbers: Numbers
    categories: Mapping[str, Counts]
    """Categorical and boolean feature → value as text → how often; missing values are not counted."""
    booleans: frozenset[str]
    """Those of the categories that are truth values."""
    texts: tuple[str, ...]
    """Features of free text: what a check needs of them are the reference rows themselves."""


# ---------------------------------------------------------------- columns
def numbers_of(column: pd.Series) -> Floats:
    """(n,): a column as numbers; what is missing or no number is NaN."""
    import pandas as pd

    if column.dtype == np.float64:
        return np.asarray(column.to_numpy())
    return np.asarray(pd.to_numeric(column, errors="coerce").to_numpy(dtype="float64", na_value=np.nan))


def counts_of(column: pd.Series, kind: str) -> dict[str, int]:
    """Value as text → how often it occurs, ascending by value; missing ones are left out. Booleans are counted as numbers: `0.0`, `1.0`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if kind == "boolean":
        numbers = numbers_of(column)
        values, counts = np.unique(numbers[np.isfinite(numbers)] + 0.0, return_counts=True)
        pairs = list(zip(values.tolist(), counts.tolist(), strict=True))
    else:
        try:
            found = pc.value_counts(pa.array(column, from_pandas=True))
            pairs = list(zip(found.field(0).to_pylist(), found.field(1).to_pylist(), strict=True))
        except pa.ArrowException:  # of several types
            pairs = [(value, 1) for value in column.dropna().tolist()]
    total: dict[str, int] = {}
    for value, count in pairs:
        if value is not None and value == value:  # NaN is not, and Arrow counts it as a value
            total[str(value)] = total.get(str(value), 0) + count
    return dict(sorted(total.items()))


# ---------------------------------------------------------------- making
def profile_rows(rows: pd.DataFrame, features: Sequence[Mapping[str, str]]) -> Profile:
    """The profile of reference rows. `features`: `{"name", "kind"}` each; a column that is absent has no values."""
    import pandas as pd

    def column(name: str) -> pd.Series:
        return rows[name] if name in rows else pd.Series(np.nan, index=rows.index)

    kinds = {feature["name"]: feature["kind"] for feature in features}
    numeric = [name for name, kind in kinds.items() if kind == "numeric"]
    return Profile(
        rows=len(rows),
        numbers=_numbers(numeric, [numbers_of(column(name)) for name in numeric]),
        categories={
            name: counts_of(column(name), kind) for name, kind in kinds.items() if kind in ("categorical", "boolean")
        },
        booleans=frozenset(name for name, kind in kinds.items() if kind == "boolean"),
        texts=tuple(name for name, kind in kinds.items() if kind == "text"),
    )


def _numbers(names: Sequence[str], columns: Sequence[Floats]) -> Numbers:
    finite = [column[np.isfinite(column)] + 0.0 for column in columns]  # + 0.0: there is one zero, not two
    kept = [np.sort(values) for values in finite]
    width = max((len(values) for values in kept), default=0)
    matrix = np.zeros((len(kept), width))
    for row, values in zip(matrix, kept, strict=True):
        row[: len(values)] = values
        row[len(values) :] = values[-1] if len(values) else 0.0
    centres = np.array([values[len(values) // 2] if len(values) else 0.0 for values in kept])
    with np.errstate(over="ignore", invalid="ignore"):
        running = np.cumsum(matrix - centres[:, None], axis=1)
        scales = np.array([_scale(values) for values in finite])
    sums = np.zeros((len(kept), width // BLOCK + 1))
    sums[:, 1:] = running[:, BLOCK - 1 :: BLOCK]
    return Numbers(
        names=tuple(names),
        counts=np.array([len(values) for values in kept], dtype=np.int64),
        centres=centres,
        scales=scales,
        values=matrix,
        sums=sums,
        few=tuple(_few(values) for values in kept),
    )


def _scale(values: Floats) -> float:
    """Standard deviation of values in the order of their rows, by the two passes of pandas: Evidently's, to the last digits that it has."""
    if not len(values):
        return _SCALE_MIN
    variance = ((values.sum() / len(values) - values) ** 2).sum() / len(values)
    return max(math.sqrt(variance), _SCALE_MIN) if math.isfinite(variance) else math.inf


def _few(values: Floats) -> tuple[Floats, NDArray[np.int64]] | None:
    distinct, counts = np.unique(values, return_counts=True)
    return (distinct, counts.astype(np.int64)) if len(distinct) <= FEW else None


# ---------------------------------------------------------------- files
def write_profile(folder: Path, profile: Profile) -> None:
    """Both files; `profile.json` is the last, so that it stands for a whole profile. Raises OSError."""
    numbers = profile.numbers
    with (folder / VALUES_FILE).open("wb") as file:
        file.write(numbers.values.astype("<f8").tobytes())
        file.write(numbers.sums.astype("<f8").tobytes())
    described = {
        "format": FORMAT,
        "rows": profile.rows,
        "width": numbers.values.shape[1],
        "numeric": [
            {
                "name": name,
                "count": int(numbers.counts[i]),
                "centre": float(numbers.centres[i]),
                "scale": None if math.isinf(numbers.scales[i]) else float(numbers.scales[i]),
                "few": _few_as_json(numbers.few[i]),
            }
            for i, name in enumerate(numbers.names)
        ],
        "categories": {name: dict(counts) for name, counts in profile.categories.items()},
        "booleans": sorted(profile.booleans),
        "texts": list(profile.texts),
    }
    write_json_atomic(folder / PROFILE_FILE, described)


def _few_as_json(few: tuple[Floats, NDArray[np.int64]] | None) -> list[list[Any]] | None:
    return None if few is None else [few[0].tolist(), few[1].tolist()]


def read_profile(folder: Path) -> Profile | None:
    """The profile of a model folder; None if it has none, as those have not that older releases made. Raises ProfileError."""
    path = folder / PROFILE_FILE
    try:
        if path.stat().st_size > _JSON_BYTES_MAX:
            raise ProfileError(f"{path}: must be at most {_JSON_BYTES_MAX:,} bytes but is {path.stat().st_size:,}")
        described = json.loads(path.read_bytes())
        return _checked(described, folder / VALUES_FILE)
    except FileNotFoundError as error:
        if error.filename == str(path):
            return None
        raise ProfileError(f"{path}: {VALUES_FILE}, which belongs to it, is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ProfileError(f"{path}: is no profile: {type(error).__name__}: {error}") from error


def _checked(described: Any, path: Path) -> Profile:
    """Raises ValueError, KeyError, TypeError, AttributeError, OverflowError, OSError for what is no profile."""
    _must(described["format"] == FORMAT, f"format must be {FORMAT} but is {described['format']!r}")
    rows, width, numeric = described["rows"], described["width"], described["numeric"]
    _must(_is_count(rows) and rows <= REFERENCE_ROWS_MAX, f"rows must be at most {REFERENCE_ROWS_MAX:,}")
    _must(_is_count(width) and width <= rows, f"width must be at most rows ({rows}) but is {width!r}")
    _must(isinstance(numeric, list) and len(numeric) <= _FEATURES_MAX, "numeric must be a list of features")
    categories = {str(name): _checked_counts(name, counts, rows) for name, counts in described["categories"].items()}
    counts = np.array([feature["count"] for feature in numeric], dtype=np.int64)
    _must(all(_is_count(feature["count"]) for feature in numeric), "counts must be whole numbers")
    _must(bool(np.all(counts <= width)), f"counts must be at most width ({width})")
    centres = np.array([float(feature["centre"]) for feature in numeric])
    scales = np.array([math.inf if feature["scale"] is None else float(feature["scale"]) for feature in numeric])
    _must(bool(np.isfinite(centres).all()) and bool((scales >= _SCALE_MIN).all()), "centres and scales must be numbers")
    values, sums = _checked_values(path, width, centres, scales)
    return Profile(
        rows=rows,
        numbers=Numbers(
            names=tuple(str(feature["name"]) for feature in numeric),
            counts=counts,
            centres=centres,
            scales=scales,
            values=values,
            sums=sums,
            few=tuple(_checked_few(feature) for feature in numeric),
        ),
        categories=categories,
        booleans=frozenset(str(name) for name in described["booleans"]),
        texts=tuple(str(name) for name in described["texts"]),
    )


def _checked_values(path: Path, width: int, centres: Floats, scales: Floats) -> tuple[Floats, Floats]:
    """The two matrices. That values ascend from a finite one to a finite one says that all are finite; and the sums of
    blocks of them ascend too, within what the least and the greatest value allow (unless these are so great that their spread has no
    number)."""
    features, blocks = len(centres), width // BLOCK
    size = 8 * features * (width + blocks + 1)
    found = path.stat().st_size
    _must(found == size, f"{VALUES_FILE} must have {size:,} bytes but has {found:,}")
    flat = np.fromfile(path, dtype="<f8", count=size // 8)
    _must(flat.nbytes == size, f"{VALUES_FILE} must have {size:,} bytes but ended earlier")
    values = flat[: features * width].reshape(features, width)
    sums = flat[features * width :].reshape(features, blocks + 1)
    if width:
        _must(bool(np.isfinite(values[:, [0, -1]]).all()), "values must be finite")
        _must(bool((values[:, 1:] >= values[:, :-1]).all()), "values must ascend")
    if blocks:
        with np.errstate(over="ignore", invalid="ignore"):
            steps = np.diff(sums)
            slack = 1e-9 * np.maximum(np.abs(sums).max(axis=1), 1e-300)
            fits = (steps[:, 1:] >= steps[:, :-1] - slack[:, None]).all(axis=1)
            fits &= np.isfinite(slack)
            fits &= steps[:, 0] >= BLOCK * (values[:, 0] - centres) - slack
            fits &= steps[:, -1] <= BLOCK * (values[:, -1] - centres) + slack
        _must(bool(fits[np.isfinite(scales)].all()), "running sums must be those of the values")
    _must(not sums[:, 0].any(), "running sums must begin at 0")
    return values, sums


def _checked_few(feature: Mapping[str, Any]) -> tuple[Floats, NDArray[np.int64]] | None:
    if feature["few"] is None:
        return None
    distinct, counts = feature["few"]
    values = np.array([float(value) for value in distinct])
    fits = len(values) == len(counts) <= FEW and all(map(_is_count, counts)) and bool((np.diff(values) > 0).all())
    fits = fits and sum(counts) == feature["count"] and 0 not in counts and bool(np.isfinite(values).all())
    _must(fits, f"few of {feature['name']!r} must be ascending values and how often each occurs")
    return values, np.array(counts, dtype=np.int64)


def _checked_counts(name: str, counts: Any, rows: int) -> dict[str, int]:
    fits = isinstance(counts, dict) and all(_is_count(count) and count > 0 for count in counts.values())
    _must(fits and sum(counts.values()) <= rows, f"categories of {name!r} must be values and how often each occurs")
    return dict(counts)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _must(holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(rule)
