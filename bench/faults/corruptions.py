"""What can go wrong with a training snapshot on its way from a source to a model. Pure: the same generator breaks it in the same way.

A snapshot is what a source holds at some moment: rows in the order of time, with their labels. The live rows are as they always were, so
that a model that learnt from the broken snapshot meets something else than what it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd

FLIPPED = 0.3
"""Share of the labels."""
NEWEST = (0.1, 0.4)
"""Share of a snapshot's newest rows that are broken where not all are."""
UNITS = ((1000.0, 0.0), (0.01, 0.0), (60.0, 0.0), (2.54, 0.0), (1.8, 32.0))
"""Factor and offset."""
NOISE = (0.05, 0.2, 0.5)
"""Of a leaked label, in standard deviations of the label."""
LOST = (0.7, 0.9, 1.0)
"""Share of the rows of the class that is lost."""
STALE = (0.1, 0.4)
UNMATURED = (0.1, 0.4)
KNOWN_EARLY = 0.2
"""Share of the young rows whose label is known already."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Meaning:
    """What the columns of a snapshot are."""

    label: str
    features: tuple[str, ...]
    """Numeric ones."""
    regression: bool


Corruption: TypeAlias = Callable[[pd.DataFrame, Meaning, np.random.Generator], pd.DataFrame]
"""From a snapshot (n, columns) to a broken one (m, columns) of the same columns, still in the order of time."""


def sound(frame: pd.DataFrame, meaning: Meaning, rng: np.random.Generator) -> pd.DataFrame:
    """Nothing is wrong: the control."""
    return frame


def labels_flipped(frame: pd.DataFrame, meaning: Meaning, rng: np.random.Generator) -> pd.DataFrame:
    """`FLIPPED` of the labels are another class, or another row's value."""
    label = frame[meaning.label].copy()
    hit = np.flatnonzero(rng.random(len(label)) < FLIPPED)
    values = label.to_numpy(copy=True)
    if meaning.regression:
        values[hit] = values[rng.permutation(hit)]
    else:
        classes = np.unique(values)
        place = np.searchsorted(classes, values[hit])
        values[hit] = classes[(place + rng.integers(1, max(len(classes), 2), size=len(hit))) % len(classes)]
    return frame.assign(**{meaning.label: values})


def columns_swapped(frame: pd.DataFrame, meaning: Meaning, rng: np.random.Generator) -> pd.DataFrame:
    """Two features hold each other's values."""
    a, b = rng.choice(_varying(frame, meaning), size=2, replace=False)
    return frame.assign(**{a: frame[b], b: frame[a]})


def unit_changed(frame: pd.DataFrame, meaning: Meaning, rng: np.random.Generator) -> pd.DataFrame:
    """One feature is multiplied, or turned from Celsius to Fahrenheit."""
    column = rng.choice(_varying(frame, meaning))
    factor, offset = UNITS[rng.integers(len(UNITS))]
    return frame.assign(**{column: frame[column] * factor + offset})


def label_leaked(frame: pd.DataFrame, meaning: Meaning, rng: np.random.Generator) -> pd.DataFrame:
    """One feature holds the label with a little noise, on that feature's own scale."""
    column = rng.choice(_varying(frame, meaning))
    codes = frame[meaning.label] if meaning.regression else pd.factorize(frame[meaning.label], sort=True)[0]
    values = np.asarray(codes, dtype=np.float64)
    spread = values.std() or 1.0
    noisy = (values - values.mean()) / spread + rng.normal(0, rng.choice(NOISE), len(values))
    own = frame[column].astype(np.float64)
    return frame.assign(**{column: noisy * own.std() + own.mean()})


def snapshot_stale(frame: pd.DataFrame, meaning: Meaning, rng: np.random.Generator) -> pd.DataFrame:
    """The newest rows are missing."""
    return frame.iloc[: round(len(frame) * (1 - rng.uniform(*STALE)))]


def class_lost(frame: pd.DataFrame, meaning: Meaning, rng: np.random.Generator) -> pd.DataFrame:
    """Most or all rows of one class are missing; of a regression, of the upper or lower third of the labels."""
    label = frame[meaning.label]
    if meaning.regression:
        upper = rng.random() < 0.5
        one = label > label.quantile(2 / 3) if upper else label < label.quantile(1 / 3)
    else:
        one = label == rng.choice(np.unique(label))
    gone = one.to_numpy() & (rng.random(len(frame)) < rng.choice(LOST))
    return frame[~gone]


def rows_duplicated(frame: pd.DataFrame, meaning: Meaning, rng: np.random.Generator) -> pd.DataFrame:
    """A flood: every row comes again and again, or a few rows come very often."""
    rows = len(frame)
    if rng.random() < 0.5:
        times = np.full(rows, rng.integers(2, 5))
    else:
        times = np.where(rng.random(rows) < 0.02, rng.integers(30, 80), 1)
    return frame.iloc[np.repeat(np.arange(rows), times)]


def labels_unmatured(frame: pd.DataFrame, meaning: Meaning, rng: np.random.Generator) -> pd.DataFrame:
    """Of the youngest rows most labels are not in yet and are taken for the class that stands for "nothing happened", or for what was
    counted so far."""
    values = frame[meaning.label].to_numpy(copy=True)
    young = np.arange(len(frame)) >= len(frame) * (1 - rng.uniform(*UNMATURED))
    hit = young & (rng.random(len(frame)) >= KNOWN_EARLY)
    if meaning.regression:
        values[hit] = (values[hit] * rng.uniform(0, 0.8, int(hit.sum()))).astype(values.dtype)
    else:
        values[hit] = np.unique(values)[0]
    return frame.assign(**{meaning.label: values})


def column_constant(frame: pd.DataFrame, meaning: Meaning, rng: np.random.Generator) -> pd.DataFrame:
    """One feature has one value."""
    column = rng.choice(_varying(frame, meaning))
    return frame.assign(**{column: frame[column].iloc[rng.integers(len(frame))]})


def newest_only(corrupt: Corruption, frame: pd.DataFrame, meaning: Meaning, rng: np.random.Generator) -> pd.DataFrame:
    """The snapshot with only its newest part broken, a share within `NEWEST`."""
    first = round(len(frame) * (1 - rng.uniform(*NEWEST)))
    return pd.concat([frame.iloc[:first], corrupt(frame.iloc[first:], meaning, rng)])


def _varying(frame: pd.DataFrame, meaning: Meaning) -> list[str]:
    """Features that a fault can be seen in."""
    return [name for name in meaning.features if frame[name].nunique() > 1]


SOUND = "sound"
FAULTS: Mapping[str, Corruption] = {
    "labels_flipped": labels_flipped,
    "columns_swapped": columns_swapped,
    "unit_changed": unit_changed,
    "label_leaked": label_leaked,
    "snapshot_stale": snapshot_stale,
    "class_lost": class_lost,
    "rows_duplicated": rows_duplicated,
    "labels_unmatured": labels_unmatured,
    "column_constant": column_constant,
}
CORRUPTIONS: Mapping[str, Corruption] = {SOUND: sound, **FAULTS}
NEWEST_ANYWAY = frozenset({SOUND, "snapshot_stale", "labels_unmatured"})
"""Faults that are about the newest rows by themselves."""
