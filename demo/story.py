"""What happens in the demonstration and when: how fast time goes, when the daemon is killed, when upstream data breaks.

The plot only sets conditions. What becomes of them is the daemon's doing, and is read back from its API.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from demo.simclock import SimClock
from demo.system import DemoError, Ratchet
from demo.traffic import Traffic
from demo.upstream import Fault, Warehouse, inverted_labels, unrelated_labels

MODEL = "flight-late"
HEAVY = frozenset({"queued", "preparing", "tuning", "training", "judging", "packaging"})
DAYS_PER_S = {"heavy": 0.3, "rolling_out": 0.8, "baking": 0.8, "idle": 3.0}
HURRIED = frozenset({"idle"})
"""Only these go faster when time runs short: a job takes the real time that it takes, and in a hurry what was measured of a canary, or of a
new champion that is watched, is too old before it is read."""
DAYS_PER_S_MAX = 8.0
"""Faster, and what the plot waits for is over before it looks again; on a slow machine the year takes longer instead."""
FROZEN = 0.001
LAG_MAX = timedelta(hours=8)
REFUSED = frozenset({"rejected", "rolled_back", "failed"})
YEAR_END = datetime(2014, 1, 1, tzinfo=UTC)


@dataclass
class Poisoning:
    """One upstream fault, and the retraining that falls into it."""

    name: str
    fault: Fault
    after: datetime
    cycle: int | None = None
    outcome: str | None = None


@dataclass
class View:
    """What the daemon last said."""

    model: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    cycles: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def cycle(self) -> dict[str, Any] | None:
        return self.model.get("cycle")

    @property
    def phase(self) -> str | None:
        return self.cycle["phase"] if self.cycle else None


class Story:
    """Plays the plot, a moment a call."""

    def __init__(self, ratchet: Ratchet, clock: SimClock, warehouse: Warehouse, budget_s: float) -> None:
        self.ratchet = ratchet
        self.view = View()
        self.killed_in: int | None = None
        self.kills = 0
        self.poisonings = [
            Poisoning("labels of other flights, by a wrong join", unrelated_labels, datetime(2013, 5, 1, tzinfo=UTC)),
            Poisoning("labels inverted", inverted_labels, datetime(2013, 8, 20, tzinfo=UTC)),
        ]
        self._clock = clock
        self._warehouse = warehouse
        self._deadline = time.monotonic() + budget_s

    # ------------------------------------------------------------ reading back
    def look(self) -> None:
        """Read the model, its new events and its cycles from the API."""
        model = self.ratchet.get(f"models/{MODEL}")
        if model is None:
            return
        self.view.model = model
        after = self.view.events[-1]["seq"] if self.view.events else 0
        answer = self.ratchet.get("events", model=MODEL, after=after, limit=500)
        self.view.events.extend(answer["events"] if answer else [])
        cycles = self.ratchet.get(f"models/{MODEL}/cycles", limit=200)
        for cycle in cycles["cycles"] if cycles else []:
            self.view.cycles[cycle["number"]] = cycle

    @property
    def cycle_survived(self) -> bool:
        """Whether the cycle in which the daemon was killed has ended, under its own number and none missing."""
        numbers = sorted(self.view.cycles)
        ended = self.view.cycles.get(self.killed_in or -1, {}).get("outcome")
        return ended is not None and ended != "aborted" and numbers == list(range(1, len(numbers) + 1))

    # ------------------------------------------------------------ the plot
    def play(self, traffic: Traffic | None) -> None:
        """One moment: kill, break or mend what the plot asks for, and set the pace."""
        now = self._clock.now()
        self._warehouse.advance(now)
        if self.killed_in is None and (self.view.cycle or {}).get("number", 0) >= 2 and self.view.phase == "tuning":
            self._kill()
        for poisoning in self.poisonings:
            self._poison(poisoning, now)
        self._pace(traffic, now)

    def _kill(self) -> None:
        assert self.view.cycle is not None
        self.killed_in = self.view.cycle["number"]
        self.ratchet.kill()
        self.kills += 1
        self.ratchet.start()

    def _poison(self, poisoning: Poisoning, now: datetime) -> None:
        if poisoning.cycle is None:
            if now >= poisoning.after and self.view.cycle is None and self._quiet():
                # Else weeks go by while files are written and the command starts, and a cycle opens in the middle of it.
                self._clock.run(FROZEN)
                self._warehouse.break_with(poisoning.fault)
                self._refresh(poisoning)
        elif poisoning.outcome is None:
            poisoning.outcome = self.view.cycles.get(poisoning.cycle, {}).get("outcome")
            if poisoning.outcome is not None:
                self._warehouse.break_with(None)

    def _refresh(self, poisoning: Poisoning) -> None:
        """Somebody orders a retraining while upstream is broken; unless a trigger was quicker, which does as well."""
        try:
            self.ratchet.run("trigger", MODEL, "--reason", "quarterly refresh", "--yes")
        except DemoError:
            self._warehouse.break_with(None)  # a cycle opened just before, on data that was still sound
            return
        self.look()
        poisoning.cycle = max(self.view.cycles, default=0)

    def _quiet(self) -> bool:
        """No other fault is upstream at the moment."""
        return self._warehouse.fault is None

    def _pace(self, traffic: Traffic | None, now: datetime) -> None:
        if traffic is not None and traffic.lag > LAG_MAX:
            self._clock.run(FROZEN)
            return
        phase = self.view.phase
        kind = "heavy" if phase in HEAVY else phase or "idle"
        left_s = max(self._deadline - time.monotonic(), 5.0)
        needed = max(YEAR_END - now, timedelta(0)) / timedelta(days=1) / left_s
        hurry = max(1.0, needed / 1.6) if kind in HURRIED else 1.0
        self._clock.run(min(DAYS_PER_S.get(kind, 1.0) * hurry, DAYS_PER_S_MAX))
