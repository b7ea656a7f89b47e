"""Tells each channel from a thread of its own, so that one that is dead or slow holds neither the loop nor another channel."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime

import structlog

from controller.notices.outbox import Outbox
from controller.notices.secrets import redacted
from controller.store.port import StoreError
from controller.telemetry.metrics import NOTICES_WAITING

log = structlog.get_logger()

THREADS_MAX = 16
"""Channels that are told at the same time."""


class Dispatcher:
    """`round` is called again and again; it never waits for a channel."""

    def __init__(self, outbox: Outbox, now: Callable[[], datetime]) -> None:
        self._outbox = outbox
        self._now = now
        self._lock = threading.Lock()
        self._busy: dict[str, threading.Thread] = {}
        self._kinds: set[str] = set()

    def round(self) -> None:
        """Route what is new and set every channel to work that has something to tell. Raises StoreError."""
        self._outbox.route_new(self._now())
        waiting = self._outbox.waiting()
        self._count(waiting)
        for name in waiting:
            if self._outbox.is_due(name, self._now()):
                self._start(name)

    def wait(self, timeout_s: float) -> None:
        """Until the channels are done with what they were given, for so long at the most."""
        for thread in list(self._busy.values()):
            thread.join(timeout_s)

    def _start(self, name: str) -> None:
        with self._lock:
            if name in self._busy or len(self._busy) >= THREADS_MAX:
                return
            thread = threading.Thread(target=self._work, args=[name], name="notices", daemon=True)
            self._busy[name] = thread
        thread.start()

    def _work(self, name: str) -> None:
        try:
            self._outbox.deliver(name, self._now())
        except StoreError as error:
            log.error("outbox.failed", channel=redacted(name), error=str(error))
        except Exception:
            log.exception("outbox.failed", channel=redacted(name))
        finally:
            with self._lock:
                self._busy.pop(name, None)

    def _count(self, waiting: dict[str, int]) -> None:
        """By kind of channel: their names come from policies, and there may be as many."""
        counts = dict.fromkeys(self._kinds, 0)
        for name, count in waiting.items():
            kind = name.partition(":")[0]
            counts[kind] = counts.get(kind, 0) + count
        self._kinds |= counts.keys()
        for kind, count in counts.items():
            NOTICES_WAITING.labels(kind).set(count)
