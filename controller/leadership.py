"""Who acts: a lease with a fencing epoch in the store (invariant 6), and on one machine a file lock before it.

The file lock dies with its process, so a daemon that was killed is succeeded at once; the lease is what every write carries. Where several
machines share the store there is the lease alone, counted by the store's clock, and whoever does not hold it stands by until it runs out:
a process that was suspended holds its file locks, so they could not tell who leads.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from controller.reconcile import LapsedLease, Leadership, LostLeadership
from controller.store.port import Store
from controller.telemetry.metrics import LEADER_EPOCH

LOCK = "daemon.lock"
PRESENT = "daemons"
"""Folder of `run/` in which each daemon without the file lock has a lock of its own, with its name in it."""


class AlreadyRunning(Exception):
    """Another daemon leads here; the message says which."""


def seconds_since_boot() -> float:
    """Unlike the monotonic clock of Python, this one goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LeaseLeadership(Leadership):
    """Leads from a `start` that gave an epoch until `stop`, as long as `renew` is called often enough.

    A leader that could not renew stops acting a quarter of the lease before anybody else may start."""

    def __init__(
        self, store: Store, run: Path, ttl_s: float, monotonic: Callable[[], float] = seconds_since_boot
    ) -> None:
        """`run`: the folder where daemons of this state folder say that they run."""
        self._store = store
        self._run = run
        self._ttl_s = ttl_s
        self._monotonic = monotonic
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{time.time_ns()}"
        self._locks: list[int] = []
        self._epoch: int | None = None
        self._renewed = 0.0
        self._other = ""

    @property
    def retry_s(self) -> float:
        """How long to wait between two calls of `start`."""
        return min(1.0, self._ttl_s / 8)

    def start(self) -> int | None:
        """Take the lease if it is free; the epoch, or None while another leads, to be asked again.

        Raises AlreadyRunning if a daemon with a database of its own runs on the state folder, StoreError, and OSError."""
        if not self._locks:
            self._appear()
        asked = self._monotonic()
        epoch = self._store.acquire(self._holder, None, self._ttl_s)
        if epoch is None:
            self._other = self._store.holder() or ""
            return None
        self._epoch, self._renewed = epoch, asked
        LEADER_EPOCH.set(epoch)
        return epoch

    def _appear(self) -> None:
        """Say that this process runs here, for `ratchet shutdown`, and keep out a daemon that leads by the file lock."""
        shared = self._run / LOCK
        self._locks.append(_locked(shared, fcntl.LOCK_SH))
        os.ftruncate(self._locks[0], 0)
        own = self._run / PRESENT / f"{socket.gethostname()}-{os.getpid()}.lock"
        self._locks.append(_locked(own, fcntl.LOCK_EX))
        os.ftruncate(self._locks[1], 0)
        os.pwrite(self._locks[1], self._holder.encode(), 0)

    def renew(self) -> None:
        """Prolong the lease. Raises LostLeadership if another took it, StoreError if the store is away."""
        asked = self._monotonic()
        epoch = self._store.acquire(self._holder, None, self._ttl_s)
        if epoch is None or (self._epoch is not None and epoch != self._epoch):
            self._epoch = None
            LEADER_EPOCH.set(0)
            raise LostLeadership("another controller holds the lease")
        self._epoch, self._renewed = epoch, asked
        LEADER_EPOCH.set(epoch)

    def epoch(self) -> int:
        if self._epoch is None:
            raise LostLeadership(f"this daemon stands by: {self._other or 'no other one'} leads")
        if self._monotonic() > self._renewed + 0.75 * self._ttl_s:
            raise LapsedLease(f"the lease could not be renewed for {0.75 * self._ttl_s:g} s")
        return self._epoch

    def stop(self) -> None:
        """Give lease and locks up. Raises StoreError if the store is away; the locks are freed all the same."""
        try:
            if self._epoch is not None:
                self._store.release(self._holder)
        finally:
            self._epoch = None
            LEADER_EPOCH.set(0)
            self._unlock()

    def _unlock(self) -> None:
        (self._run / PRESENT / f"{socket.gethostname()}-{os.getpid()}.lock").unlink(missing_ok=True)
        while self._locks:
            os.close(self._locks.pop())


class FileLeadership(LeaseLeadership):
    """For a store that only this machine has: one daemon a state folder, by a lock on a file."""

    def start(self) -> int:
        """Take the lock and the lease; the epoch. Raises AlreadyRunning, StoreError, and OSError if the lock file cannot be made."""
        handle = _locked(self._run / LOCK, fcntl.LOCK_EX)
        self._locks.append(handle)
        try:
            return self._succeed(handle)
        except BaseException:
            self._unlock()
            raise

    def _succeed(self, lock: int) -> int:
        """Take the lease from whoever held the lock before: its lock is ours, so it is dead, and its lease need not run out."""
        if predecessor := _holder_in(lock):
            self._store.release(predecessor)
        os.ftruncate(lock, 0)
        os.pwrite(lock, self._holder.encode(), 0)
        try:
            self.renew()
        except LostLeadership as error:
            raise AlreadyRunning(
                f"{error}; it runs on another machine, or its lock {self._run / LOCK} was deleted"
            ) from error
        return self.epoch()

    def epoch(self) -> int:
        if self._epoch is None:
            raise LostLeadership("this controller holds no lease")
        return super().epoch()

    def _unlock(self) -> None:
        while self._locks:
            os.close(self._locks.pop())


def _locked(path: Path, kind: int) -> int:
    """The descriptor of a file that is locked until it is closed. Raises AlreadyRunning, OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except OSError:
        other = _holder_in(handle) or "unknown"
        os.close(handle)
        raise AlreadyRunning(f"another daemon ({other}) runs on {path.parent.parent}") from None
    return handle


def _holder_in(lock: int) -> str:
    """Who wrote himself into the lock file; empty if nobody did."""
    return os.pread(lock, 200, 0).decode(errors="replace").strip()
