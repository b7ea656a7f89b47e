"""Cut a table into windows by time, and hold each against the history before it. Pure.

Windows that are accepted become blocks of the profile, so the profile grows only by sound rows. What was accepted is looked at again in
each new snapshot (`rewritten`); what was held may be sound by now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.data.quality.column_rules import ROWS_MIN, Found, column_faults, gone_live
from pipelines.data.quality.kept import BLOCKS_MAX, HeldRange, Profile
from pipelines.data.quality.profile import History, hashes_of, summarise
from pipelines.data.quality.rewritten import rewritten_faults
from pipelines.data.quality.summary import CHUNK, Block, Shape, digest_of, label_hash
from pipelines.data.quality.table_rules import table_faults

WINDOWS = 20
"""Into how many windows the first table is cut, within `CHUNK` to `WINDOW_MAX` rows each."""
WINDOW_MAX = 5_000
REWRITTEN_SHARE = 0.5
"""Of the rows that were accepted before; if more are faulty now, it is the snapshot."""
STALE_SHARE = 0.1
"""Of the newest block's length, that may be missing again from a new snapshot."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldWindow:
    """Rows that are held, and why."""

    start: int
    end: int
    """As `Block.start` and `end`."""
    rows: int
    found: tuple[Found, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Examined:
    """The outcome for a table of n rows."""

    held: NDArray[np.bool_]
    """(n,)"""
    windows: tuple[HeldWindow, ...]
    """Those with faults, oldest first."""
    profile: Profile
    """To keep."""
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows to be examined, in the order of time."""

    frame: pd.DataFrame
    """(n, columns), features and label."""
    ordinal: NDArray[np.int64]
    """(n,) ascending: microseconds since 1970, or row numbers."""
    counts: NDArray[np.bool_]
    """(n,) rows that may be trained on."""
    shape: Shape
    ignore: frozenset[str] = field(default_factory=frozenset)
    """Columns in which nothing is looked for."""


def examine(table: Table, known: Profile | None, key: str, *, hold: bool = True) -> Examined:
    """Find the windows with faults. Without `hold` they are told of, but accepted."""
    if known is not None and (stale := _stale(table, known)) is not None:
        return _whole_table(table, known, (stale,), hold)
    examination = _Examination(table, known or Profile(key=key, window=_window(int(table.counts.sum()))), hold)
    return examination.first() if known is None else examination.again()


def _window(rows: int) -> int:
    return int(np.clip(rows // WINDOWS, CHUNK, WINDOW_MAX))


def _stale(table: Table, known: Profile) -> Found | None:
    """A snapshot that ends before what was known before."""
    if not known.blocks or not len(table.ordinal):
        return None
    newest = known.blocks[-1]
    if table.ordinal[-1] >= newest.end - STALE_SHARE * (newest.end - newest.start):
        return None
    return Found(kind="stale_snapshot", subject="", sentence="its newest row is older than rows that were read before")


def _whole_table(table: Table, known: Profile, found: tuple[Found, ...], hold: bool) -> Examined:
    """A snapshot of which nothing is to be believed, nor learnt for the profile."""
    window = HeldWindow(
        start=int(table.ordinal[0]), end=int(table.ordinal[-1]), rows=int(table.counts.sum()), found=found
    )
    return Examined(held=np.full(len(table.counts), hold), windows=(window,), profile=known, notes=())


class _Examination:
    """One pass over one table."""

    def __init__(self, table: Table, known: Profile, hold: bool) -> None:
        self.table = table
        self.known = known
        self.hold = hold
        self.features, self.whole = hashes_of(table.frame, table.shape)
        _, first = np.unique(self.whole, return_index=True)
        self.is_copy = np.ones(len(self.whole), dtype=bool)
        self.is_copy[first] = False
        self.held = np.zeros(len(table.counts), dtype=bool)
        self.blocks: list[Block] = []
        self.windows: list[HeldWindow] = []
        self.notes: list[str] = []

    def first(self) -> Examined:
        """A table of which nothing is known yet."""
        for rows in self._new():
            self._judge(rows)
        if self.held.sum() > self.table.counts.sum() / 2:
            self._let_go()
        return self._examined()

    def again(self) -> Examined:
        """A new snapshot. What was accepted is looked at first: if it has changed, what is new is not to be believed either."""
        looked_at = 0
        for block in self.known.blocks:
            rows = self._rows(block.start, max(block.end, block.reach))
            looked_at += len(rows)
            self._again(block, self._rows(block.start, block.end), rows)
        found = {(f.kind, f.subject): f for window in self.windows for f in window.found}
        if self.held.sum() > REWRITTEN_SHARE * looked_at:
            return _whole_table(self.table, self.known, tuple(found.values()), self.hold)
        newest = self.known.blocks[-1].start if self.known.blocks else None
        tainted = next((window.found for window in self.windows if window.start == newest), ())
        for held in self.known.held:
            if len(rows := self._rows(held.start, held.end)):
                self._judge(rows, tainted)
        for rows in self._new():
            self._judge(rows, tainted)
        self._note_new_columns()
        return self._examined()

    def _examined(self) -> Examined:
        known = {block.start for block in self.known.blocks}
        held = [HeldRange(start=w.start, end=w.end) for w in self.windows if w.start not in known]
        blocks = _thinned(sorted(self.blocks, key=lambda block: block.start))
        return Examined(
            held=self.held if self.hold else np.zeros_like(self.held),
            windows=tuple(sorted(self.windows, key=lambda window: window.start)),
            profile=replace(self.known, blocks=tuple(blocks), held=tuple(held) if self.hold else ()),
            notes=tuple(dict.fromkeys(self.notes)),
        )

    def _rows(self, start: int, end: int) -> NDArray[np.intp]:
        """Rows of a stretch that count."""
        a = np.searchsorted(self.table.ordinal, start, side="left")
        b = np.searchsorted(self.table.ordinal, end, side="right")
        return np.flatnonzero(self.table.counts[a:b]) + a

    def _new(self) -> list[NDArray[np.intp]]:
        """Rows after all that is known, in windows of about one length; rows of one time stay together."""
        end = self.known.end
        fresh = np.flatnonzero(self.table.counts & (True if end is None else self.table.ordinal > end))
        if not len(fresh):
            return []
        count = max(1, round(len(fresh) / self.known.window))
        edges = np.linspace(0, len(fresh), count + 1).round().astype(int)[1:-1]
        times = self.table.ordinal[fresh]
        edges = np.unique(np.searchsorted(times, times[edges], side="left")) if len(edges) else edges
        return [part for part in np.split(fresh, edges) if len(part)]

    def _summary(self, rows: NDArray[np.intp]) -> Block:
        return summarise(
            self.table.frame.iloc[rows],
            self.table.shape,
            start=int(self.table.ordinal[rows[0]]),
            end=int(self.table.ordinal[rows[-1]]),
            repeated=round(float(self.is_copy[rows].mean()), 5),
        )

    def _judge(self, rows: NDArray[np.intp], tainted: Sequence[Found] = ()) -> None:
        """A window that is not known to be sound. `tainted`: faults of the rows before it that were not there when they were accepted."""
        block = self._summary(rows)
        history = History(blocks=tuple(b for b in self.blocks if b.end < block.start))
        found = self._meant([*_faults(history, block, self.table.shape), *tainted])
        self._settle(block, rows, found)
        if history.is_enough and not found:
            self.notes += [f"column {name!r} varies since it held one value only" for name in gone_live(history, block)]

    def _again(self, old: Block, rows: NDArray[np.intp], beyond: NDArray[np.intp]) -> None:
        """A stretch that was accepted before; `beyond` are its rows and those that it speaks for."""
        if len(rows) < ROWS_MIN:
            self.blocks.append(old)  # the source no longer holds it
            return
        digest = digest_of(self.whole[rows])
        if old.digest == digest:
            self.blocks.append(replace(old, refused="", refused_end=0))
            return
        new = replace(self._summary(rows), start=old.start, end=old.end)
        history = History(blocks=tuple(b for b in self.known.blocks if b.end <= old.end))
        found = _faults(history, new, self.table.shape)
        if not self._is_insisted_on(old, digest):
            found += rewritten_faults(old, new, self._labels_again(old, rows), self.table.shape)
        self._settle(replace(new, reach=old.reach), beyond, self._meant(found), otherwise=self._refused(old, digest))

    def _is_insisted_on(self, old: Block, digest: str) -> bool:
        """Whether an older snapshot had the same other rows in this stretch. Nobody knows which version was the broken one; a source that
        says the same again, in another snapshot, is believed, or rows that came in broken would be held for ever once they are mended."""
        return bool(old.refused) and old.refused == digest and self._newest() > old.refused_end

    def _refused(self, old: Block, digest: str) -> Block:
        return old if old.refused == digest else replace(old, refused=digest, refused_end=self._newest())

    def _newest(self) -> int:
        counted = self.table.ordinal[self.table.counts]
        return int(counted[-1]) if len(counted) else 0

    def _labels_again(self, old: Block, rows: NDArray[np.intp]) -> dict[str, int]:
        assert self.table.shape.label is not None
        place = {f"{int(h):x}": i for i, h in zip(rows, self.features[rows], strict=True)}
        label = self.table.frame[self.table.shape.label]
        return {row: label_hash(label.iloc[place[row]]) for row in old.sample if row in place}

    def _meant(self, found: Sequence[Found]) -> tuple[Found, ...]:
        """Without columns that the owner ignores, and each fault of a subject once."""
        kept = {(f.kind, f.subject): f for f in found if not f.about & self.table.ignore}
        return tuple(kept.values())

    def _settle(
        self, block: Block, rows: NDArray[np.intp], found: tuple[Found, ...], *, otherwise: Block | None = None
    ) -> None:
        """Accept or hold. What was known of a stretch that is held now stays known."""
        if found:
            end = max(block.end, block.reach)
            self.windows.append(HeldWindow(start=block.start, end=end, rows=len(rows), found=found))
            self.held[rows] = True
        if found and self.hold:
            self.blocks += [otherwise] if otherwise is not None else []
        elif len(rows) >= max(ROWS_MIN, self.known.window // 2) or otherwise is not None:
            self.blocks.append(block)

    def _note_new_columns(self) -> None:
        if self.known.blocks:
            new = [
                n
                for n in self.table.shape.features
                if n in self.table.frame and not any(n in block.columns for block in self.known.blocks)
            ]
            self.notes += [f"column {name!r} is new" for name in new]

    def _let_go(self) -> None:
        """Of a first table most is held: then it is its beginning that is odd, and nobody has said which part is right."""
        first = self.windows[0].found[0].sentence
        self.notes.append(f"most rows differ from the oldest, so none is held: {first}")
        self.held[:] = False
        self.windows.clear()
        self.blocks = [self._summary(rows) for rows in self._new()]


def _faults(history: History, block: Block, shape: Shape) -> list[Found]:
    return column_faults(history, block) + table_faults(history, block, shape)


def _thinned(blocks: list[Block]) -> list[Block]:
    """At most `BLOCKS_MAX`: of the older half every second one goes, and the one before it speaks for its rows."""
    while len(blocks) > BLOCKS_MAX:
        half = len(blocks) // 4 * 2
        pairs = zip(blocks[:half:2], blocks[1:half:2], strict=True)
        blocks = [replace(kept, reach=max(gone.end, gone.reach)) for kept, gone in pairs] + blocks[half:]
    return blocks
