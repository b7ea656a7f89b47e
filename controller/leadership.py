"""Who acts: a file lock on this machine, and a lease with a fencing epoch in the store (invariant 6).

The file lock dies with its process, so a daemon that was killed is succeeded at once; the lease is what every write carries.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from controller.reconcile import Leadership, LostLeadership
from controller.store.port import Store
from controller.telemetry.metrics import LEADER_EPOCH


class AlreadyRunning(Exception):
    """Another daemon leads here; the message says which."""


class FileLeadership(Leadership):
    """Leads from `start` until `stop`, as long as `renew` is called often enough.

    A leader that could not renew stops acting a quarter of the lease before anybody else may start."""

    def __init__(
        self, store: Store, lock_path: Path, ttl_s: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._path = lock_path
        self._ttl_s = ttl_s
        self._monotonic = monotonic
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{time.time_ns()}"
        self._lock: int | None = None
        self._epoch: int | None = None
        self._renewed = 0.0

    def start(self) -> int:
        """Take the lock and the lease; the epoch. Raises AlreadyRunning, StoreError, and OSError if the lock file cannot be made."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            other = _holder_in(handle) or "unknown"
            os.close(handle)
            raise AlreadyRunning(f"another daemon ({other}) runs on {self._path.parent.parent}") from None
        self._lock = handle
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
                f"{error}; it runs on another machine, or its lock {self._path} was deleted"
            ) from error
        return self.epoch()

    def renew(self) -> None:
        """Prolong the lease. Raises LostLeadership if another took it, StoreError if the store is away."""
        asked = self._monotonic()
        epoch = self._store.acquire(self._holder, datetime.now(UTC), self._ttl_s)
        if epoch is None or (self._epoch is not None and epoch != self._epoch):
            self._epoch = None
            LEADER_EPOCH.set(0)
            raise LostLeadership("another controller holds the lease")
        self._epoch, self._renewed = epoch, asked
        LEADER_EPOCH.set(epoch)

    def epoch(self) -> int:
        if self._epoch is None:
            raise LostLeadership("this controller holds no lease")
        if self._monotonic() > self._renewed + 0.75 * self._ttl_s:
            raise LostLeadership(f"the lease could not be renewed for {0.75 * self._ttl_s:g} s")
        return self._epoch

    def stop(self) -> None:
        """Give lease and lock up. Raises StoreError if the store is away; the lock is freed all the same."""
        try:
            if self._epoch is not None:
                self._store.release(self._holder)
        finally:
            self._epoch = None
            LEADER_EPOCH.set(0)
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _holder_in(lock: int) -> str:
    """Who wrote himself into the lock file; empty if nobody did."""
    return os.pread(lock, 200, 0).decode(errors="replace").strip()
