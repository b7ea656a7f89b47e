"""Faults of rows that were seen before: what a new snapshot says about the same time than the last one did. Pure.

Late labels, late rows and a few corrections are normal. Not normal is that a good part of the labels are others than they were, that a
class has vanished, or that a column's values are now distributed otherwise in the very same rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipelines.data.quality.column_rules import MOVED_AT_LEAST, NULLS_MARGIN, ROWS_MIN, Found
from pipelines.data.quality.profile import distance
from pipelines.data.quality.summary import Block, Shape, is_classes

FOUND_MIN = 20
"""Sampled rows that must be there again to speak about their labels."""
LABELS_CHANGED = 0.12
"""Share of labels that may be corrected."""
ROWS_SHARE = 0.5
"""Of the rows that there were; with fewer, the source no longer keeps them all."""
CLASS_SHARE = 0.02
"""A class of a smaller share may vanish by a correction."""


def rewritten_faults(old: Block, new: Block, labels: dict[str, int], shape: Shape) -> list[Found]:
    """What the same stretch of time was (`old`) and is said to have been now (`new`).

    `labels` holds the hash of the label, by the hash of the row, of the rows of now that `old.sample` names.
    """
    if new.rows < ROWS_MIN:
        return []
    found = list(_labels(old, labels, shape))
    found += _lost(old, new, shape)
    if new.rows >= ROWS_SHARE * old.rows:
        found += _columns(old, new)
    return found


def _labels(old: Block, labels: dict[str, int], shape: Shape) -> Iterator[Found]:
    if len(labels) < FOUND_MIN or shape.label is None:
        return
    changed = sum(labels[row] != old.sample[row] for row in labels)
    if changed > LABELS_CHANGED * len(labels):
        sentence = f"{changed} of {len(labels)} rows looked at again have another {shape.label!r} than before"
        yield Found(kind="labels_rewritten", subject=shape.label, sentence=sentence)


def _lost(old: Block, new: Block, shape: Shape) -> Iterator[Found]:
    if not is_classes(shape):
        return
    for name, share in old.shares.items():
        if share >= max(CLASS_SHARE, 10 / old.rows) and name not in new.shares:
            sentence = f"class {name!r} of {shape.label!r} had {share:.0%} of these rows and has vanished from them"
            subject = f"{shape.label}: {name}"
            yield Found(kind="class_lost", subject=subject, sentence=sentence, columns=(shape.label or "",))


def _columns(old: Block, new: Block) -> Iterator[Found]:
    for name, before in old.columns.items():
        now = new.columns.get(name)
        if now is None or before.kind == "empty":
            continue
        if now.nulls[0] > before.nulls[1] + NULLS_MARGIN:
            sentence = f"{now.nulls[0]:.0%} of {name!r} is missing in rows where at most {before.nulls[1]:.0%} was"
            yield Found(kind="column_rewritten", subject=name, sentence=sentence)
        elif before.grid and now.grid and before.kind == now.kind:
            apart = distance(np.array(before.grid), np.array(now.grid))
            if apart > MOVED_AT_LEAST:
                sentence = f"{name!r} has other values in rows that were seen before (distance {apart:.2f})"
                yield Found(kind="column_rewritten", subject=name, sentence=sentence)
