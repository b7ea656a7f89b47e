"""What is known of a model's data: summaries of the blocks of rows that were accepted, oldest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.data.quality.summary import (
    LEVELS,
    Block,
    Column,
    Floats,
    Shape,
    chunks_of,
    digest_of,
    duplicate_share,
    is_classes,
    label_codes,
    numbers_of,
    row_hashes,
    sample_rows,
    summarise_classes,
    summarise_column,
)
from pipelines.data.quality.telling import lift, trend

RECENT = 12
"""Blocks, the newest ones, whose pooled distribution a window is compared with."""
ROWS_MIN = 1_000
"""Rows of history without which nothing is called unusual."""


def summarise(frame: pd.DataFrame, shape: Shape, *, start: int, end: int, repeated: float | None = None) -> Block:
    """A block of the rows of `frame`, at least one, which are in the order of time. Without a label, nothing is said about it."""
    chunks = chunks_of(len(frame))
    columns = {name: summarise_column(frame[name], chunks) for name in shape.features if name in frame}
    if shape.label is None:
        hashes = row_hashes(frame[list(columns)])
        return Block(start=start, end=end, rows=len(frame), columns=columns, **_crowding(hashes, chunks))
    label = frame[shape.label]
    classes = is_classes(shape)
    numbers = numeric_label(label, shape)
    columns = {
        name: replace(
            column,
            lift=_rounded(lift(frame[name], label, classes=classes)),
            trend=_rounded(None if numbers is None else trend(frame[name], numbers)),
        )
        for name, column in columns.items()
    }
    of_classes: dict[str, Any] = summarise_classes(label, chunks) if classes else {}
    if not classes:
        columns[shape.label] = summarise_column(label, chunks)
    features, whole = hashes_of(frame, shape)
    return Block(
        start=start,
        end=end,
        rows=len(frame),
        columns=columns,
        digest=digest_of(whole),
        repeated=repeated,
        sample=sample_rows(features, label),
        **_crowding(whole, chunks),
        **of_classes,
    )


def hashes_of(frame: pd.DataFrame, shape: Shape) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """(n,) hashes of the rows' features, and of the rows with their label."""
    features = row_hashes(frame[[name for name in shape.features if name in frame]])
    return features, features if shape.label is None else features * np.uint64(31) + row_hashes(frame[[shape.label]])


def numeric_label(label: pd.Series, shape: Shape) -> Floats | None:
    """The label as numbers where it has an order: regression, or two classes, the second in sorting order as 1."""
    if not is_classes(shape):
        return numbers_of(label)
    codes, names = label_codes(label)
    if len(names) != 2:
        return None
    positive = names.index(max(names))
    return np.where(codes < 0, np.nan, (codes == positive).astype("float64"))


def _crowding(hashes: NDArray[np.uint64], chunks: Sequence[slice]) -> dict[str, Any]:
    near = max(duplicate_share(hashes[c]) for c in chunks)
    return {"duplicates": round(near, 5), "copies": round(duplicate_share(hashes), 5)}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


@dataclass(frozen=True, kw_only=True)
class History:
    """Blocks of accepted rows, as one thing to compare a window with."""

    blocks: tuple[Block, ...]

    @cached_property
    def rows(self) -> int:
        return sum(block.rows for block in self.blocks)

    @property
    def is_enough(self) -> bool:
        return self.rows >= ROWS_MIN

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Columns that any block has, in the order of their appearance."""
        return tuple(dict.fromkeys(name for block in self.blocks for name in block.columns))

    def column(self, name: str) -> PastColumn | None:
        """None if no block has the column."""
        seen = [block.columns[name] for block in self.blocks if name in block.columns]
        return PastColumn(name=name, blocks=tuple(seen)) if seen else None

    @cached_property
    def columns(self) -> Mapping[str, PastColumn]:
        return {name: past for name in self.names if (past := self.column(name)) is not None}


@dataclass(frozen=True, kw_only=True)
class PastColumn:
    """One column over the history."""

    name: str
    blocks: tuple[Column, ...]

    @cached_property
    def live(self) -> tuple[Column, ...]:
        """Blocks since it began to vary, without the one in which it began; all if there are none."""
        first = next((i for i, block in enumerate(self.blocks) if block.distinct > 1), 0)
        return self.blocks[first + 1 :] or self.blocks[first:] if first else self.blocks

    @cached_property
    def filled(self) -> tuple[Column, ...]:
        """Those of them in which it held anything."""
        return tuple(block for block in self.live if block.kind != "empty")

    @cached_property
    def kind(self) -> str:
        """The one kind that it always had; `mixed` if it changed before, `empty` if it never held anything."""
        kinds = {block.kind for block in self.filled}
        return kinds.pop() if len(kinds) == 1 else "mixed" if kinds else "empty"

    @cached_property
    def nulls(self) -> tuple[float, float]:
        return min(block.nulls[0] for block in self.live), max(block.nulls[1] for block in self.live)

    @cached_property
    def run(self) -> int:
        """Longest run of one value. One value throughout neighbouring blocks counts together."""
        longest = together = 0
        for block in self.live:
            together = together + block.run if block.distinct <= 1 else 0
            longest = max(longest, block.run, together)
        return longest

    @cached_property
    def ever_constant(self) -> bool:
        """Also once for a whole block, since it first varied."""
        return any(block.distinct <= 1 for block in self.live)

    @cached_property
    def is_counter(self) -> bool:
        """Whether each of at least three blocks begins where the one before it ended, as dates and row numbers do."""
        medians = [(block.low[2], block.high[2]) for block in self.filled if block.low]
        steps = list(pairwise(medians))
        up, down = (all(a[1] <= b[0] for a, b in steps), all(a[0] >= b[1] for a, b in steps))
        return len(steps) >= 2 and (up or down) and medians[0] != medians[-1]

    def envelope(self, *, logs: bool = False) -> tuple[Floats, Floats] | None:
        """Smallest and largest quantiles of any chunk, each (len(LEVELS),); None if there are none."""
        low = [block.log_low if logs else block.low for block in self.filled]
        high = [block.log_high if logs else block.high for block in self.filled]
        if not any(low):
            return None
        size = len(LEVELS)
        lows = np.array([part for part in low if len(part) == size])
        highs = np.array([part for part in high if len(part) == size])
        return lows.min(axis=0), highs.max(axis=0)

    @cached_property
    def pooled(self) -> Floats:
        """The distribution over the newest blocks, as a sample in ascending order; may be empty."""
        grids = [block.grid for block in self.filled[-RECENT:] if block.grid]
        return np.sort(np.concatenate([np.array(grid) for grid in grids])) if grids else np.array([])

    @cached_property
    def unrest(self) -> float:
        """How far any block's distribution was from that of the blocks before it (`distance`): 0 to 1; 1 if there is only one block."""
        grids = [np.array(block.grid) for block in self.filled if block.grid]
        if len(grids) < 2:
            return 1.0
        before = [np.sort(np.concatenate(grids[max(0, i - RECENT) : i])) for i in range(1, len(grids))]
        return max(distance(old, new) for old, new in zip(before, grids[1:], strict=True))

    @cached_property
    def lift(self) -> float | None:
        return max((block.lift for block in self.blocks if block.lift is not None), default=None)

    @cached_property
    def trends(self) -> tuple[float, float] | None:
        """Smallest and largest rank correlation with the label."""
        known = [block.trend for block in self.blocks if block.trend is not None]
        return (min(known), max(known)) if known else None


def distance(a: Floats, b: Floats) -> float:
    """Kolmogorov and Smirnov's distance of two samples: the largest difference of their shares below any value, 0 to 1.

    >>> distance(np.array([1.0, 2.0]), np.array([2.0, 3.0]))
    0.5
    """
    if not len(a) or not len(b):
        return 1.0
    a, b = np.sort(a), np.sort(b)
    points = np.concatenate([a, b])
    below_a = np.searchsorted(a, points, side="right") / len(a)
    below_b = np.searchsorted(b, points, side="right") / len(b)
    return float(np.abs(below_a - below_b).max())
