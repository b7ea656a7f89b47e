"""Turns, ticks and what a look's end leads to: no model waits because of another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, tzinfo
from typing import Any

import pytest
from controller_states import NOW, policy, state

from controller.loop import Loop, Turns
from controller.notices.outbox import outbox_of_one
from controller.notices.port import Message, Notifier
from controller.reconcile import LostLeadership
from controller.state import ModelState, NoticeRecord
from controller.store.memory import MemoryStore
from controller.store.port import Commit, ConflictError, StoreError
from policies.schema import ModelPolicy


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


# ---------------------------------------------------------------- turns
def test_a_name_that_waits_waits_once() -> None:
    """In the order of asking; after its turn it may wait again."""
    turns = Turns()
    for name in ("a", "b", "a", "c", "b"):
        turns.put(name)
    assert [turns.take() for _ in range(3)] == [("a", None), ("b", None), ("c", None)]
    turns.put("a")
    assert turns.take() == ("a", None)


def test_taking_waits_for_a_name_or_the_end() -> None:
    """A thread that waits is woken by either."""
    turns, taken = Turns(), []
    thread = threading.Thread(target=lambda: taken.extend(iter(turns.take, None)))
    thread.start()
    turns.put("a")
    wait_for(lambda: taken == [("a", None)])
    turns.close()
    thread.join(10)
    assert not thread.is_alive()
    turns.put("b")
    assert turns.take() is None


# ---------------------------------------------------------------- the loop
@dataclass
class Looks:
    """A reconciler that does what a test says for each name."""

    done: list[str] = field(default_factory=list)
    raises: dict[str, list[Exception]] = field(default_factory=dict)
    restless: set[str] = field(default_factory=set)
    left_over: list[str] = field(default_factory=list)

    def reconcile(self, name: str, _clock: Callable[[], datetime], _seen: ModelState | None = None) -> str:
        self.done.append(name)
        if self.raises.get(name):
            raise self.raises[name].pop(0)
        return f"{name} serves"

    def policy(self, made: ModelState) -> ModelPolicy:
        return ModelPolicy.model_validate_json(made.policy)

    def strays(self) -> list[str]:
        return self.left_over


@dataclass
class Told(Notifier):
    keys: list[str] = field(default_factory=list)

    def deliver(self, message: Message) -> None:
        self.keys.append(message.key)


class Rig:
    """A loop around a store in memory, started by a test and stopped at its end."""

    def __init__(self, **changes: Any) -> None:
        self.store, self.looks, self.told, self.lost = MemoryStore(), Looks(), Told(), []
        self.renewals = 0
        epoch = self.store.acquire("rig", NOW, 1e9)
        assert epoch is not None
        self.epoch = epoch
        outbox = outbox_of_one(self.store, self.told)
        given = {"tick_s": 0.05, "lease_ttl_s": 0.4, "renew": self._renew, **changes}
        self.loop = Loop(
            store=self.store,
            reconciler=self.looks,
            tell=lambda: outbox.deliver_all(NOW),
            now=lambda: NOW,
            on_lost=self.lost.append,
            **given,
        )  # type: ignore[arg-type]

    def _renew(self) -> None:
        self.renewals += 1

    def add(self, name: str, **changes: Any) -> None:
        self.store.create(self.epoch, replace(state(), name=name, row_version=0, versions={}, **changes), [])


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.loop.stop()


def test_every_model_is_looked_at_every_tick(rig: Rig) -> None:
    """And what was said of each is known."""
    for name in ("a", "b"):
        rig.add(name)
    rig.loop.start()
    wait_for(lambda: rig.looks.done.count("a") >= 3 and rig.looks.done.count("b") >= 3)
    assert rig.loop.sentences == {"a": "a serves", "b": "b serves"}
    assert rig.loop.last_tick > 0


def test_a_clock_that_is_set_back_silences_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ticks and the lease go by the wall clock's seconds, not by its hour: an hour back must not mean an hour without either."""
    real = time.time
    rig.add("a")
    rig.loop.start()
    wait_for(lambda: rig.looks.done.count("a") >= 2 and rig.renewals >= 1)

    class SetBack(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) - timedelta(hours=1)

    monkeypatch.setattr(time, "time", lambda: real() - 3600)
    monkeypatch.setattr("apscheduler.schedulers.base.datetime", SetBack)
    monkeypatch.setattr("controller.loop.datetime", SetBack)
    looks, renewals = rig.looks.done.count("a"), rig.renewals
    wait_for(lambda: rig.looks.done.count("a") >= looks + 5 and rig.renewals >= renewals + 3)


@pytest.mark.parametrize("error", [StoreError("disk full"), RuntimeError("a bug"), KeyError("x")])
def test_a_failing_model_does_not_stop_the_others(rig: Rig, error: Exception) -> None:
    """Its sentence says what is wrong, and it is looked at again."""
    rig.looks.raises["a"] = [error] * 3
    rig.add("a")
    rig.add("b")
    rig.loop.start()
    wait_for(lambda: "so nothing changes" in rig.loop.sentences.get("a", ""))
    wait_for(lambda: rig.loop.sentences.get("a") == "a serves" and rig.loop.sentences.get("b") == "b serves")
    assert not rig.lost


def test_a_conflict_is_looked_at_again_at_once() -> None:
    """A person's order came in between; the next tick need not be waited for."""
    rig = Rig(tick_s=3600)
    try:
        rig.looks.raises["a"] = [ConflictError("row version is 2, not 1")] * 2
        rig.add("a")
        rig.loop.start()
        wait_for(lambda: rig.loop.sentences.get("a") == "a serves")
        assert rig.looks.done == ["a"] * 3
    finally:
        rig.loop.stop()


def test_lost_leadership_stops_all_looks(rig: Rig) -> None:
    """Whoever leads now must not be disturbed (invariant 6)."""
    rig.looks.raises["a"] = [LostLeadership("another controller holds the lease")]
    rig.add("a")
    rig.loop.start()
    wait_for(lambda: bool(rig.lost))
    assert rig.lost[0] == "another controller holds the lease"
    seen = len(rig.looks.done)
    rig.loop.wake("a")
    rig.loop.stop()
    assert len(rig.looks.done) == seen


def test_the_lease_is_renewed_and_its_loss_noticed() -> None:
    """Several times in its life; a store that is away is only said."""
    answers: list[Exception | None] = [None, StoreError("away"), None, LostLeadership("taken")]
    asked: list[int] = []

    def renew() -> None:
        asked.append(1)
        if error := answers[min(len(asked), len(answers)) - 1]:
            raise error

    rig = Rig(renew=renew, tick_s=3600, lease_ttl_s=0.2)
    try:
        rig.loop.start()
        wait_for(lambda: rig.lost == ["taken"] or len(rig.lost) > 1)
        assert len(asked) >= 4
    finally:
        rig.loop.stop()


def test_a_woken_or_restless_model_is_looked_at_before_the_next_tick() -> None:
    """An order takes effect at once, and so does a job's end."""
    rig = Rig(tick_s=3600)
    try:
        rig.loop.start()
        rig.loop.wake("woken")
        wait_for(lambda: "woken" in rig.looks.done)
        rig.looks.restless.add("restless")
        wait_for(lambda: rig.looks.done.count("restless") >= 2)
    finally:
        rig.loop.stop()


def test_what_deleted_models_left_is_cleared_at_the_start() -> None:
    """A daemon that died between deleting and clearing has left it to the next."""
    rig = Rig()
    rig.looks.left_over = ["deleted"]
    try:
        rig.loop.start()
        wait_for(lambda: "deleted" in rig.looks.done)
    finally:
        rig.loop.stop()


def test_a_deleted_model_is_spoken_of_no_more(rig: Rig) -> None:
    """Its sentence goes with it; the mapping that others hold is the same one."""
    held = rig.loop.sentences
    rig.add("a")
    rig.loop.start()
    wait_for(lambda: "a" in held)
    rig.store.delete(rig.epoch, "a", [])
    wait_for(lambda: "a" not in held)


def test_notices_go_out(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """By themselves, beside the looks."""
    monkeypatch.setattr("controller.loop.NOTICE_INTERVAL_S", 0.05)
    rig.add("a")
    news = NoticeRecord(key="k", model="a", kind="cycle.opened", text="news", at=NOW)
    made = rig.store.load("a")
    assert made is not None
    rig.store.commit(rig.epoch, Commit(model=made, notices=[news]))
    rig.loop.start()
    wait_for(lambda: rig.told.keys == ["k"])


def test_housekeeping_is_done_and_its_trouble_only_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk that cannot be tidied is no reason to stop."""
    monkeypatch.setattr("controller.loop.HOUSEKEEPING_AFTER_S", 0.0)
    monkeypatch.setattr("controller.loop.HOUSEKEEPING_INTERVAL_S", 0.05)
    done: list[int] = []

    def sweep() -> None:
        done.append(1)
        raise OSError("no space left")

    rig = Rig(housekeep=sweep)
    try:
        rig.loop.start()
        wait_for(lambda: len(done) >= 2)
    finally:
        rig.loop.stop()


def test_cron_triggers_get_a_look_at_their_minute(rig: Rig) -> None:
    """One job a schedule, gone when the schedule is; a policy that cannot be read costs only its own."""
    weekly = policy(triggers={"any": [{"schedule": "0 4 * * 1"}]})
    rig.add("a", policy=weekly.model_dump_json(by_alias=True))
    rig.add("b", policy="{}")
    rig.loop.start()
    scheduler = rig.loop._scheduler
    wait_for(lambda: scheduler.get_job("cron:a:0 4 * * 1") is not None)
    rig.store.delete(rig.epoch, "a", [])
    wait_for(lambda: scheduler.get_job("cron:a:0 4 * * 1") is None)


def test_a_turn_keeps_the_state_that_was_read_until_something_happens() -> None:
    """A tick's own reading spares the look's; an order that comes in between makes the look read anew, whatever is read later."""
    read = state()
    later = replace(read, row_version=read.row_version + 1)
    turns = Turns()
    turns.put("a", read)
    turns.put("a", later)
    assert turns.take() == ("a", later)
    for order in ((read, None, later), (None, read), (read, None)):
        for seen in order:
            turns.put("a", seen)
        assert turns.take() == ("a", None)
