"""What a block of rows looks like, in a few numbers a column: the stuff that a quality profile is made of. Pure NumPy and pandas.

Statistics that decide are taken over *chunks* of about `CHUNK` consecutive rows, and kept as their smallest and largest: shares and
quantiles of a longer window lie between those of its chunks, so what is known of chunks bounds windows of any greater length.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.data.labels import label_key, plain_label
from policies.metrics import Task

CHUNK = 250
"""Rows."""
LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Quantiles whose range over chunks is kept."""
GRID = tuple(np.linspace(0.02, 0.98, 25).tolist())
"""Quantiles of the whole block, which stand for its distribution."""
NUMBERS_SHARE = 0.95
"""Of the values of a column of text that read as numbers, for the column to be one of numbers."""
TOP = 50
"""Most frequent values, or classes, that are kept."""
SAMPLED = 64
"""Rows of a block whose label is remembered by the hash of the row."""
LOG_ROWS_MIN = 20
"""Values other than 0 that a chunk must hold to tell its order of magnitude."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column of one block."""

    kind: str
    """`number`, `text`, or `empty` where nothing but missing values was seen."""
    nulls: tuple[float, float]
    """Smallest and largest share of missing values in a chunk."""
    distinct: int
    """Values other than missing ones."""
    run: int
    """Longest run of rows with the same value."""
    grid: tuple[float, ...] = ()
    """Numbers: quantiles at `GRID`; text: those of its length."""
    low: tuple[float, ...] = ()
    """Numbers: smallest quantile of a chunk at each of `LEVELS`."""
    high: tuple[float, ...] = ()
    """The largest."""
    log_low: tuple[float, ...] = ()
    """As `low`, of log10 |x| of the values other than 0; empty if no chunk has enough of them."""
    log_high: tuple[float, ...] = ()
    top: Mapping[str, float] = field(default_factory=dict)
    """Text: share of the most frequent values."""
    lift: float | None = None
    """How far the column alone tells the label, 0 to 1 (`pipelines.data.quality.telling`); None if that cannot be told."""
    trend: float | None = None
    """Rank correlation with the label of numbers or two classes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Some consecutive rows. `start` and `end` are microseconds since 1970, or row numbers where rows have no time; the end is included."""

    start: int
    end: int
    rows: int
    columns: Mapping[str, Column]
    duplicates: float
    """Largest share of rows of a chunk that equal an earlier row of it, label included."""
    copies: float
    """Share of rows that equal an earlier row of the block."""
    digest: str = ""
    """Of the rows with their labels, whatever their order: equal digests, equal rows."""
    refused: str = ""
    """Digest of the same stretch in a later snapshot that had other rows there and was not believed; empty if there was none."""
    refused_end: int = 0
    """As `end`: of the newest row of that snapshot."""
    reach: int = 0
    """As `end`, where later blocks were given up and only this one still speaks for their rows; else 0."""
    repeated: float | None = None
    """Share of rows that equal any earlier row of the table; None where only the block is known."""
    classes: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Class → smallest and largest share in a chunk; empty for regression."""
    gaps: Mapping[str, int] = field(default_factory=dict)
    """Class → most rows without it between two with it."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Class → share of the block."""
    sample: Mapping[str, int] = field(default_factory=dict)
    """Hash of a row without its label → hash of its label."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Which columns of a table are what."""

    features: tuple[str, ...]
    label: str | None = None
    task: Task | None = None


def chunks_of(rows: int) -> list[slice]:
    """Consecutive chunks of about `CHUNK` rows, at least one."""
    count = max(1, rows // CHUNK)
    edges = np.linspace(0, rows, count + 1).round().astype(int)
    assert rows, "a block has rows"
    return [slice(int(a), int(b)) for a, b in pairwise(edges)]


def is_classes(shape: Shape) -> bool:
    return shape.task is not None and shape.task is not Task.REGRESSION


# ---------------------------------------------------------------- columns
def numbers_of(column: pd.Series) -> Floats | None:
    """The column as float64 (n,), missing and infinite as NaN; None if its values are not numbers."""
    if pd.api.types.is_bool_dtype(column) or pd.api.types.is_numeric_dtype(column):
        values = column.to_numpy(dtype="float64", na_value=np.nan)
    elif pd.api.types.is_datetime64_any_dtype(column):
        return None
    else:
        present = column.notna().to_numpy()
        read = pd.to_numeric(column, errors="coerce")
        values = read.to_numpy(dtype="float64", na_value=np.nan)
        if present.any() and np.isfinite(values[present]).mean() < NUMBERS_SHARE:
            return None
    return np.where(np.isfinite(values), values, np.nan)


def summarise_column(column: pd.Series, chunks: Sequence[slice]) -> Column:
    """One column, without what it has to do with the label."""
    numbers = numbers_of(column)
    codes, uniques = pd.factorize(column if numbers is None else pd.Series(numbers))
    missing = codes < 0
    shares = [float(missing[c].mean()) for c in chunks]
    plain = {"nulls": (min(shares), max(shares)), "distinct": len(uniques), "run": longest_run(codes)}
    if missing.all():
        return Column(kind="empty", **plain)  # type: ignore[arg-type]  # a mapping of three kinds of value
    if numbers is None:
        texts = column[~missing].astype(str)
        counts = np.bincount(codes[~missing], minlength=len(uniques)) / max(1, int((~missing).sum()))
        order = np.argsort(-counts, kind="stable")[:TOP]
        return Column(
            kind="text",
            grid=_rounded(np.quantile(texts.str.len().to_numpy(dtype="float64"), GRID)),
            top={str(uniques[i])[:80]: round(float(counts[i]), 5) for i in order},
            **plain,  # type: ignore[arg-type]
        )
    low, high = _range([numbers[c] for c in chunks], 1)
    with np.errstate(divide="ignore"):
        logs = np.where(numbers != 0, np.log10(np.abs(numbers)), np.nan)
    log_low, log_high = _range([logs[c] for c in chunks], LOG_ROWS_MIN)
    grid = _rounded(np.nanquantile(numbers, GRID))
    return Column(kind="number", grid=grid, low=low, high=high, log_low=log_low, log_high=log_high, **plain)  # type: ignore[arg-type]


def _range(parts: Sequence[Floats], least: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    known = [part[~np.isnan(part)] for part in parts]
    quantiles = [np.quantile(part, LEVELS) for part in known if len(part) >= least]
    if not quantiles:
        return (), ()
    found = np.array(quantiles)
    return _rounded(found.min(axis=0)), _rounded(found.max(axis=0))


def _rounded(values: NDArray[Any]) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)


def longest_run(codes: NDArray[Any]) -> int:
    """Most consecutive rows of one code.

    >>> longest_run(np.array([1, 1, 2, 2, 2, 1]))
    3
    """
    if not len(codes):
        return 0
    edges = np.flatnonzero(np.diff(codes)) + 1
    return int(np.diff(np.concatenate([[0], edges, [len(codes)]])).max())


# ---------------------------------------------------------------- rows and labels
def row_hashes(frame: pd.DataFrame) -> NDArray[np.uint64]:
    """(n,) one number a row, equal for equal rows whatever the columns' types: `1` and `1.0` are equal."""
    total = np.zeros(len(frame), dtype="uint64")
    for name in sorted(frame.columns):
        numbers = numbers_of(frame[name])
        plain = frame[name].astype(str).astype(object) if numbers is None else pd.Series(numbers)
        hashed = pd.util.hash_pandas_object(plain, index=False).to_numpy().astype("uint64")
        total = total * np.uint64(1_000_003) + hashed  # wraps round
    return total


def digest_of(hashes: NDArray[np.uint64]) -> str:
    """Of a set of row hashes, in any order."""
    return f"{len(hashes):x}-{int(hashes.sum(dtype='uint64')):x}"


def duplicate_share(hashes: NDArray[np.uint64]) -> float:
    """Share of rows that equal an earlier one.

    >>> duplicate_share(np.array([1, 2, 1, 1], dtype="uint64"))
    0.5
    """
    return 1.0 - len(np.unique(hashes)) / len(hashes) if len(hashes) else 0.0


def label_codes(label: pd.Series) -> tuple[NDArray[np.int64], list[str]]:
    """(n,) the index of each row's class, -1 where there is none, and the classes' spellings."""
    codes, uniques = pd.factorize(label)
    return np.asarray(codes, dtype="int64"), [label_key(plain_label(value)) for value in uniques]


def summarise_classes(label: pd.Series, chunks: Sequence[slice]) -> dict[str, Any]:
    """`classes`, `gaps` and `shares` of a block."""
    codes, names = label_codes(label)
    labelled = codes >= 0
    counts = np.bincount(codes[labelled], minlength=len(names))
    classes, gaps, shares = {}, {}, {}
    for i in np.argsort(-counts, kind="stable")[:TOP]:
        here = codes == i
        parts = [float(here[c].sum() / max(1, labelled[c].sum())) for c in chunks]
        places = np.flatnonzero(here)
        edges = np.concatenate([[-1], places, [len(codes)]])
        classes[names[i]] = (round(min(parts), 5), round(max(parts), 5))
        gaps[names[i]] = int(np.diff(edges).max()) - 1
        shares[names[i]] = round(float(counts[i] / max(1, labelled.sum())), 5)
    return {"classes": classes, "gaps": gaps, "shares": shares}


def sample_rows(hashes: NDArray[np.uint64], label: pd.Series) -> dict[str, int]:
    """Of `SAMPLED` rows that no other equals, chosen by their hash, the hash of the label."""
    unique, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    labelled = label.notna().to_numpy()
    single = [i for i in np.flatnonzero(counts == 1) if labelled[first[i]]][
        :SAMPLED
    ]  # sorted by hash: as good as drawn
    return {f"{int(unique[i]):x}": label_hash(label.iloc[first[i]]) for i in single}


def label_hash(value: Any) -> int:
    """Equal for labels that `label_key` spells alike."""
    return zlib.crc32(label_key(plain_label(value)).encode())
