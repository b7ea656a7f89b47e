"""What a replay came to: the JSON that `ratchet backtest -o json` prints, and its parts for the report."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backtest.replay import Replayed, ended, trained
from backtest.rivals import Periodic, score_of
from backtest.stream import Stream
from controller.state import Event, Outcome

BLOCKS = 60
"""Windows in which the score is told, about; each is of one champion."""
NO_NEWS = frozenset(
    {"policy.applied", "cycle.started", "data.prepared", "study.finished", "traffic.changed", "step.reached"}
)
"""Events that only say that something goes on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Rows that follow each other and had one champion."""

    from_row: int
    to_row: int
    """The first row after it."""
    version: int
    score: float | None


def windows(replayed: Replayed, answers: Any = None) -> list[Window]:
    """The replayed rows in blocks, cut where another version became champion. Scores of `answers`, by default of what was served."""
    stream, first = replayed.stream, replayed.first_row
    scored = replayed.served if answers is None else answers
    block = max(1, math.ceil((len(stream) - first) / BLOCKS))
    changes = first + 1 + np.flatnonzero(np.diff(replayed.champion[first:]))
    cuts = sorted({first, len(stream), *changes.tolist(), *range(first, len(stream), block)})
    return [
        Window(from_row=a, to_row=b, version=int(replayed.champion[a]), score=finite(score_of(stream, scored, a, b)))
        for a, b in itertools.pairwise(cuts)
    ]


def as_json(replayed: Replayed, *, static: Any, periodic: Periodic, last_label: Any, seconds: float) -> dict[str, Any]:
    """The whole result. Scores that are not defined are null."""
    stream, first, cycles = replayed.stream, replayed.first_row, replayed.cycles
    return {
        "model": stream.policy.name,
        "rows": len(stream),
        "first_row": first,
        "metric": {"name": stream.metric.name, "higher_is_better": stream.metric.higher_is_better},
        "ratchet": {
            "score": finite(score_of(stream, replayed.served, first)),
            "retrains": trained(cycles),
            "promotions": ended(cycles, Outcome.PROMOTED),
            "rejected": ended(cycles, Outcome.REJECTED, Outcome.INCONCLUSIVE),
            "rolled_back": ended(cycles, Outcome.ROLLED_BACK),
            "failed": ended(cycles, Outcome.FAILED),
            "held": held(cycles),
            "train_seconds": round(replayed.train_seconds, 1),
            "windows": [
                {"from_row": w.from_row, "to_row": w.to_row, "score": w.score, "version": w.version}
                for w in windows(replayed)
            ],
        },
        "baselines": {
            "static": {"score": finite(score_of(stream, static, first))},
            "periodic": {"score": finite(periodic.score), "retrains": periodic.retrains, "window": periodic.window},
            "last_label": {"score": finite(score_of(stream, last_label, first))},
        },
        "events": [
            {"row": row_of(stream, event), "kind": event.kind, "sentence": event.sentence}
            for event in replayed.events
            if event.kind not in NO_NEWS
        ],
        "seconds": round(seconds, 1),
    }


def held(cycles: Sequence[Any]) -> int:
    """Windows of data that were held back because something was wrong with them."""
    return sum(len(cycle.outputs.get("preparing", {}).get("held") or ()) for cycle in cycles)


def row_of(stream: Stream, event: Event) -> int:
    """The first row that was asked for after the event."""
    moment_us = round(event.at.timestamp() * 1e6)
    return int(np.searchsorted(stream.asked, moment_us, side="right"))


def finite(value: float) -> float | None:
    """The score to four decimals, or None where it is not defined."""
    return round(value, 4) if math.isfinite(value) else None
