"""One controller acts at a time, and the next one need not wait for a dead one (invariant 6)."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controller.leadership import AlreadyRunning, FileLeadership
from controller.reconcile import LostLeadership
from controller.store.memory import MemoryStore
from controller.store.port import StoreError
from controller.store.sql import open_store

TTL_S = 8.0


class Ticks:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def leads(tmp_path: Path) -> Iterator[Callable[..., FileLeadership]]:
    """Makes contenders for one lock and one store; all are stopped at the end."""
    made: list[FileLeadership] = []
    store = MemoryStore()

    def make(**changes: object) -> FileLeadership:
        given = {"store": store, "run": tmp_path / "run", "ttl_s": TTL_S, **changes}
        made.append(FileLeadership(**given))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for leader in made:
        leader.stop()


def test_a_second_daemon_on_the_same_folder_is_told_who_leads(leads: Callable[..., FileLeadership]) -> None:
    """And changes nothing for the first."""
    first, second = leads(), leads()
    epoch = first.start()
    with pytest.raises(AlreadyRunning, match=r"another daemon \(.*:[0-9]+:[0-9]+\) runs on"):
        second.start()
    assert first.epoch() == epoch


def test_the_next_leader_has_a_greater_epoch(leads: Callable[..., FileLeadership]) -> None:
    """Whoever led before can be told from whoever leads now."""
    first, second = leads(), leads()
    before = first.start()
    first.stop()
    assert second.start() > before
    with pytest.raises(LostLeadership, match="holds no lease"):
        first.epoch()


def test_a_killed_leader_is_succeeded_at_once(tmp_path: Path) -> None:
    """Its lock died with it, so its lease need not run out."""
    url = f"sqlite:///{tmp_path / 'state.db'}"
    store = open_store(url)
    code = (
        "import sys, time; from pathlib import Path; from controller.leadership import FileLeadership; "
        "from controller.store.sql import SqlStore; "
        f"leader = FileLeadership(SqlStore({url!r}), Path({str(tmp_path / 'run')!r}), 600.0); "
        "print(leader.start(), flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        before = int(process.stdout.readline())
        successor = FileLeadership(store, tmp_path / "run", TTL_S)
        with pytest.raises(AlreadyRunning):
            successor.start()
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
    began = time.monotonic()
    assert successor.start() > before
    assert time.monotonic() - began < 5
    successor.stop()
    store.close()


def test_a_leader_that_cannot_renew_stops_before_another_may_start(leads: Callable[..., FileLeadership]) -> None:
    """It stops acting at three quarters of the lease; the store gives the lease away at the whole."""
    ticks, store = Ticks(), MemoryStore()
    leader = leads(store=store, monotonic=ticks)
    epoch, taken = leader.start(), datetime.now(UTC)
    ticks.now += 0.75 * TTL_S
    assert leader.epoch() == epoch
    assert store.acquire("another", taken + timedelta(seconds=0.76 * TTL_S), TTL_S) is None
    ticks.now += 0.01
    with pytest.raises(LostLeadership, match="could not be renewed for 6 s"):
        leader.epoch()
    assert store.acquire("another", taken + timedelta(seconds=TTL_S + 1), TTL_S) == epoch + 1
    with pytest.raises(LostLeadership, match="another controller holds the lease"):
        leader.renew()


def test_renewing_keeps_the_epoch(leads: Callable[..., FileLeadership]) -> None:
    """As long as it is done in time, nothing changes."""
    ticks = Ticks()
    leader = leads(monotonic=ticks)
    epoch = leader.start()
    for _ in range(5):
        ticks.now += 0.5 * TTL_S
        leader.renew()
        assert leader.epoch() == epoch


def test_a_lease_held_elsewhere_is_no_start(leads: Callable[..., FileLeadership]) -> None:
    """The lock is free but the lease is not: the other one runs on another machine, or its lock was deleted."""
    store = MemoryStore()
    store.acquire("elsewhere", datetime.now(UTC), 600)
    leader = leads(store=store)
    with pytest.raises(AlreadyRunning, match="another controller holds the lease; it runs on another machine"):
        leader.start()
    store.release("elsewhere")
    assert leader.start() > 0


def test_a_store_that_is_away_frees_the_lock_again(leads: Callable[..., FileLeadership]) -> None:
    """A failed start must not be in the way of the next."""

    class Away(MemoryStore):
        def acquire(self, holder: str, now: datetime | None, ttl_s: float) -> int | None:
            raise StoreError("disk full")

    with pytest.raises(StoreError, match="disk full"):
        leads(store=Away()).start()
    assert leads().start() > 0
