"""What a replay came to: the JSON that `ratchet backtest -o json` prints, and its parts for the report."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from backtest.replay import Replayed, ended, trained
from backtest.rivals import Periodic, score_of
from backtest.stream import Stream
from controller.state import Cycle, Outcome, Version

BLOCKS = 60
"""Windows in which the score is told, about; each is of one champion."""
_TOOK = re.compile(r",? in [0-9][0-9.,]* s\b")
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
    """The whole result. Scores that are not defined are null. `windows` of the rivals are scores in the windows of `ratchet`."""
    stream, first, cycles = replayed.stream, replayed.first_row, replayed.cycles

    def rival(answers: Any) -> dict[str, Any]:
        return {
            "score": finite(score_of(stream, answers, first)),
            "windows": [window.score for window in windows(replayed, answers)],
        }

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
            "static": rival(static),
            "periodic": {
                "score": finite(periodic.score),
                "retrains": periodic.retrains,
                "window": periodic.window,
                "windows": [] if periodic.answers is None else rival(periodic.answers)["windows"],
            },
            "last_label": rival(last_label),
        },
        "versions": [_version(replayed, version) for _, version in sorted(replayed.state.versions.items())],
        "cycles": [_cycle(stream, cycle) for cycle in sorted(cycles, key=lambda c: c.number)],
        "events": [
            {"row": row_of(stream, event.at), "kind": event.kind, "sentence": without_times(event.sentence)}
            for event in replayed.events
            if event.kind not in NO_NEWS
        ],
        "seconds": round(seconds, 1),
    }


def _version(replayed: Replayed, version: Version) -> dict[str, Any]:
    lineage, number = version.lineage, version.number
    return {
        "number": number,
        "cycle": version.cycle,
        "row": row_of(replayed.stream, version.created_at),
        "status": version.status.value,
        "component": lineage.get("component"),
        "parameters": lineage.get("parameters"),
        "rows": lineage.get("rows"),
        "window_s": lineage.get("window_s"),
        "answered": int(np.count_nonzero(replayed.version == number)),
    }


def _cycle(stream: Stream, cycle: Cycle) -> dict[str, Any]:
    return {
        "number": cycle.number,
        "row": row_of(stream, cycle.opened_at),
        "to_row": None if cycle.closed_at is None else row_of(stream, cycle.closed_at),
        "outcome": None if cycle.outcome is None else cycle.outcome.value,
        "version": cycle.challenger,
        "held": held([cycle]),
        "cause": cycle.cause,
        "sentence": without_times(cycle.sentence),
    }


def held(cycles: Sequence[Cycle]) -> int:
    """Windows of data that were held back because something was wrong with them."""
    return sum(len(cycle.outputs.get("preparing", {}).get("held") or ()) for cycle in cycles)


def row_of(stream: Stream, moment: datetime) -> int:
    """The first row that was asked for after the moment."""
    return int(np.searchsorted(stream.asked, round(moment.timestamp() * 1e6), side="right"))


def without_times(sentence: str) -> str:
    """Without how long something took on this machine, so that the same replay says the same again.

    >>> without_times("ridge trained on 4,000 rows in 0.8 s")
    'ridge trained on 4,000 rows'
    """
    return _TOOK.sub("", sentence)


def finite(value: float) -> float | None:
    """The score to four decimals, or None where it is not defined."""
    return round(value, 4) if math.isfinite(value) else None
