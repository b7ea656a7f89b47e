"""Faults of the rows and of the label. Pure. Each rule has a margin beyond everything that the history itself ever did."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pipelines.data.quality.column_rules import ROWS_MIN, TIMES_LONGER, Found
from pipelines.data.quality.profile import History
from pipelines.data.quality.summary import CHUNK, Block, Shape, is_classes

DUPLICATES_MARGIN = 0.2
DUPLICATES_USUAL, DUPLICATES_FLOOD = 0.05, 0.95
"""Where more than the one repeat anyway, because there are few values (a census), only as much as the other is a flood."""
RATE_MARGIN = 0.2
RATE_ROWS_MIN = 2_500
"""Rows of history without which no label rate is unusual."""
TIMES_HISTORY = 4
"""How much longer than the window the history must be to speak about classes."""
LOST_ROWS_MIN = 20
"""Rows of a class that must have been expected before it is called lost."""
ALWAYS_SHARE = 0.05
"""One of two classes that had at least this share of every chunk cannot be away from a whole one by chance."""
LOST_TO = 0.02
"""Share of what is expected to which a class must have fallen to be called lost."""
TELLS = 0.97
"""A column that tells this much of the label holds the label."""
TOLD_MARGIN = 0.12
"""More than any column of its name told before."""
TREND_TELLS = 0.995


def table_faults(history: History, window: Block, shape: Shape) -> list[Found]:
    """What is wrong with the window's rows as a whole and with its label."""
    if not history.is_enough or window.rows < ROWS_MIN:
        return []
    found = list(_duplicates(history, window))
    if shape.label is not None:
        found += _leaks(history, window, shape)
        if is_classes(shape):
            found += _classes(history, window, shape.label)
    return found


def _duplicates(history: History, window: Block) -> Iterator[Found]:
    """Of rows near each other; of the window, against blocks of its length at least; and of the table so far."""
    long = [block.copies for block in history.blocks if block.rows >= 0.9 * window.rows]
    before = [block.repeated for block in history.blocks if block.repeated is not None]
    for share, usual, where in (
        (window.duplicates, [block.duplicates for block in history.blocks], "another nearby"),
        (window.copies, long, "another of theirs"),
        (window.repeated or 0.0, before[1:], "an earlier one"),
    ):
        if len(usual) < 3:
            continue
        if share > (max(usual) + DUPLICATES_MARGIN if max(usual) <= DUPLICATES_USUAL else DUPLICATES_FLOOD):
            sentence = f"{share:.0%} of rows repeat {where}, where at most {max(usual):.0%} ever did"
            yield Found(kind="rows_duplicated", subject="", sentence=sentence)
            return


def _leaks(history: History, window: Block, shape: Shape) -> Iterator[Found]:
    for name in shape.features:
        now, past = window.columns.get(name), history.column(name)
        if now is None:
            continue
        before = past.lift if past is not None else None
        trends = past.trends if past is not None else None
        told = (now.lift or 0.0) >= TELLS and (now.lift or 0.0) >= (before or 0.0) + TOLD_MARGIN * (before is not None)
        if not is_classes(shape):
            strongest = max(map(abs, trends)) if trends else 0.0
            told = (told or abs(now.trend or 0.0) >= TREND_TELLS) and strongest < TREND_TELLS - 0.01
        if told:
            ever = f"told at most {before:.0%} before" if before is not None else "is new"
            sentence = (
                f"{name!r} alone tells {max(now.lift or 0.0, 0.0):.0%} of the label and {ever}: does it hold the label?"
            )
            yield Found(kind="label_leaked", subject=name, sentence=sentence)


def _classes(history: History, window: Block, label: str) -> Iterator[Found]:
    """Classes that are gone, and of two classes shares that are outside of all history.

    Of more than two, shares come and go with what is asked (a shop adds a shelf), which is drift.
    """
    blocks = [block for block in history.blocks if block.classes]
    if not blocks or sum(block.rows for block in blocks) < TIMES_HISTORY * window.rows:
        return
    names = blocks[-1].classes
    for name in names:
        if sentence := _lost(name, blocks, window):
            found = f"class {name!r} of {label!r} is lost: {sentence}"
            yield Found(kind="class_lost", subject=f"{label}: {name}", sentence=found, columns=(label,))
            return
    known = {name for block in blocks for name in block.classes}
    if len(known) == 2 and sum(block.rows for block in blocks) >= RATE_ROWS_MIN:
        name = max(known)
        ranges = [block.classes.get(name, (0.0, 0.0)) for block in blocks]
        low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
        share = window.shares.get(name, 0.0)
        margin = max(RATE_MARGIN, 0.75 * (high - low), 5 * math.sqrt(0.25 / window.rows))
        if not low - margin <= share <= high + margin:
            found = f"{share:.0%} of rows have {label} {name!r}, where {low:.0%} to {high:.0%} always had"
            yield Found(kind="label_rate", subject=label, sentence=found)


def _lost(name: str, blocks: Sequence[Block], window: Block) -> str:
    """How a class is gone, an empty string if it is not: hardly a row of it, for much longer than ever before."""
    rows = sum(block.rows for block in blocks)
    expected = sum(block.shares.get(name, 0.0) * block.rows for block in blocks) / rows * window.rows
    longest = max(block.gaps.get(name, block.rows) for block in blocks)
    gap, count = window.gaps.get(name, window.rows), round(window.shares.get(name, 0.0) * window.rows)
    two = len({known for block in blocks for known in block.classes}) == 2
    everywhere = two and min(block.classes.get(name, (0.0, 0.0))[0] for block in blocks) >= ALWAYS_SHARE
    if expected < LOST_ROWS_MIN or count >= LOST_TO * expected:
        return ""
    if gap < TIMES_LONGER * longest and not (everywhere and rows >= RATE_ROWS_MIN and window.rows >= CHUNK):
        return ""
    return f"{count:,} of {window.rows:,} rows, where about {expected:,.0f} were usual and it was never away for more than {longest:,}"
