"""Taking a recorded decision again, and saying whether it comes out the same (invariant 9). Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from controller.reconcile import GROUNDS, replay
from controller.state import Event

_DATA = TypeAdapter(dict[str, Any])


class UnknownEvent(LookupError):
    """The record holds no such event."""


class NotReplayable(Exception):
    """The event was no decision of the controller, or the record does not hold what it rested on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayedEvent:
    """An event as recorded, and as the same decision gives it today; None where one of them does not have it."""

    kind: str
    recorded: str | None
    replayed: str | None
    same: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Replayed:
    """A decision taken twice."""

    seq: int
    model: str
    at: str
    same: bool
    events: Sequence[ReplayedEvent]
    snapshot: Mapping[str, Any]
    """What it rested on, as recorded."""


def compare(event: Event, recorded: Sequence[Event]) -> Replayed:
    """Replay the decision that `event` belongs to; `recorded` are the events of the same commit, in order.

    Raises NotReplayable."""
    if event.actor != "ratchet":
        raise NotReplayable(f"event {event.seq} is {event.actor}'s order, not a decision of the controller")
    mine = _of_decision(event, recorded)
    grounds = mine[0].data
    try:
        again = replay(grounds).events
    except (ValidationError, ValueError, KeyError) as error:
        raise NotReplayable(f"what event {mine[0].seq} rested on cannot be read by this release: {error}") from error
    pairs = [
        _pair(mine[i] if i < len(mine) else None, again[i] if i < len(again) else None)
        for i in range(max(len(mine), len(again)))
    ]
    return Replayed(
        seq=mine[0].seq, model=event.model, at=str(grounds["now"]), same=all(pair.same for pair in pairs),
        events=pairs, snapshot=grounds["snapshot"],
    )  # fmt: skip


def _of_decision(event: Event, recorded: Sequence[Event]) -> Sequence[Event]:
    """The run of events that starts at the one with grounds and holds `event`."""
    starts = [i for i, e in enumerate(recorded) if "snapshot" in e.data and e.seq <= event.seq]
    if not starts:
        raise NotReplayable(f"what event {event.seq} rested on was not recorded")
    first = starts[-1]
    ends = [i for i, e in enumerate(recorded) if i > first and ("snapshot" in e.data or e.actor != "ratchet")]
    return recorded[first : ends[0] if ends else None]


def _pair(recorded: Event | None, replayed: Event | None) -> ReplayedEvent:
    one = recorded or replayed
    assert one is not None
    return ReplayedEvent(
        kind=one.kind,
        recorded=recorded.sentence if recorded else None,
        replayed=replayed.sentence if replayed else None,
        same=recorded is not None and replayed is not None and _essence(recorded) == _essence(replayed),
    )


def _essence(event: Event) -> tuple[object, ...]:
    """What must be equal: all but the sequence number, as it looks after a stay in the store."""
    data = {k: v for k, v in event.data.items() if k not in GROUNDS}
    return event.kind, event.sentence, event.cycle, event.at, json.loads(_DATA.dump_json(data))
