"""The fake against the real store: after any sequence of calls, both hold and answer the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest

from controller.invariants import InvariantBroken
from controller.state import Cycle, Event, ModelState, NoticeRecord, Outcome, Phase, Version, VersionStatus
from controller.store.memory import MemoryStore
from controller.store.port import Commit, Store, StoreError
from controller.store.sql import SqlStore, open_store

NOW = datetime(2026, 3, 1, tzinfo=UTC)
NAMES = ("ant", "bee")


class Walk:
    """Makes random calls on both stores, one in ten of them wrong (stale, fenced, against an invariant)."""

    def __init__(self, seed: int, sql: SqlStore) -> None:
        self.chance = Random(seed)
        self.memory = MemoryStore(audit=True)
        self.sql = sql
        self.now = NOW
        self.epoch = 0
        self.keys = ["unknown"]
        """Of notices sent, newest last."""

    def both(self, call: Callable[[Store], Any]) -> Any:
        """Make the call on both: same answer, or same kind of refusal."""
        answers = []
        for store in (self.memory, self.sql):
            try:
                answers.append(call(store))
            except (StoreError, InvariantBroken) as exc:
                answers.append(type(exc))
        assert answers[0] == answers[1]
        return answers[0]

    def step(self) -> None:
        """One call of any kind; commits are the most frequent."""
        kinds = (self.commit, self.create, self.mark, self.lead, self.release, self.delete)
        (call,) = self.chance.choices(kinds, (12, 4, 4, 4, 1, 1))
        call(self.chance.choice(NAMES))
        self.both(lambda store: [store.names(), store.load_all(), store.open_cycles()])
        self.both(lambda store: [store.cycles(), store.events(limit=1000), store.pending_notices(), store.waiting()])
        self.both(lambda store: [store.cycles("ant", limit=2), store.events("bee", after=2, limit=3, newest=True)])

    def slip(self) -> int:
        """How far a number is off: mostly 0, so that long right sequences come about."""
        return self.chance.random() < 0.03

    def event(self, name: str) -> Event:
        return Event(model=name, kind="a.b", sentence=self.now.isoformat(), at=self.now, data={"n": 1})

    def lead(self, _name: str) -> None:
        self.now += timedelta(seconds=self.chance.choice([1, 20, 40]))
        holder = self.chance.choice("aab")
        self.epoch = self.both(lambda store: store.acquire(holder, self.now, 30)) or self.epoch

    def release(self, _name: str) -> None:
        holder = self.chance.choice("ab")
        self.both(lambda store: store.release(holder))

    def create(self, name: str) -> None:
        state = ModelState(name=name, policy="{}", policy_digest="d", created_at=self.now)
        epoch = self.epoch - self.slip()
        self.both(lambda store: store.create(epoch, state, [self.event(name)]))

    def delete(self, name: str) -> None:
        epoch = self.epoch - self.slip()
        self.both(lambda store: store.delete(epoch, name, [self.event(name)]))

    def mark(self, _name: str) -> None:
        key = self.chance.choice(self.keys[-4:])
        done = self.chance.choice([True, False])
        self.both(lambda store: store.route_notices({key: ["log", "slack:#a"]}, self.now))
        self.both(lambda store: store.begin_deliveries("log", [key], key))
        self.both(lambda store: store.end_deliveries("log", [key], at=self.now, done=done))
        self.both(lambda store: store.end_deliveries("slack:#a", [key], at=self.now, done=True))

    def commit(self, name: str) -> None:
        state = self.memory.load(name) or ModelState(name=name, policy="{}", policy_digest="d", created_at=NOW)
        cycle, version = self.next_cycle(name), self.next_version(state)
        fate = self.chance.choice(["open", "close", "keep"])
        closed = replace(cycle, outcome=Outcome.ABORTED, closed_at=self.now) if fate == "close" else None
        versions = {**state.versions, version.number: version}
        after = replace(state, row_version=state.row_version - self.slip(), versions=versions)
        if fate != "keep":
            after = replace(after, cycle=cycle if fate == "open" else None)
        key = f"{name}/{cycle.number}/{fate}"
        self.keys.append(key)
        notice = NoticeRecord(key=key, model=name, kind="k", text="t", at=self.now)
        commit = Commit(model=after, closed=closed, events=[self.event(name)], notices=[notice])
        epoch = self.epoch - self.slip()
        self.both(lambda store: store.commit(epoch, commit))

    def next_cycle(self, name: str) -> Cycle:
        """The open cycle again, or the one after the last closed."""
        newest = self.memory.cycles(name, limit=1)
        number = newest[0].number + (newest[0].outcome is not None) if newest else 1
        return Cycle(
            model=name, number=number - self.slip(), phase=Phase.QUEUED, sentence="s", cause="c", opened_at=self.now,
            phase_since=NOW,
        )  # fmt: skip

    def next_version(self, state: ModelState) -> Version:
        """A new version, or one that is there with another status."""
        return Version(
            model=state.name, number=self.chance.randint(1, len(state.versions) + 1), cycle=1, created_at=NOW,
            digest="y" if self.slip() else "x", status=self.chance.choice(list(VersionStatus)),
        )  # fmt: skip


@pytest.fixture
def sql(tmp_path: Path) -> Iterator[SqlStore]:
    """An empty SQL store."""
    made = open_store(f"sqlite:///{tmp_path}/state.db")
    yield made
    made.close()


@pytest.mark.parametrize("seed", range(8))
def test_memory_and_sql_agree_after_any_sequence_of_calls(seed: int, sql: SqlStore) -> None:
    """Whatever is called in whatever order, the fake answers and refuses as the SQL store does."""
    walk = Walk(seed, sql)
    walk.lead("ant")
    for _ in range(60):
        walk.step()
