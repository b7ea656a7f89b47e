"""The parent of a replica's workers: forks them from one loaded model, replaces those that die, drains them at the end.

Memory is shared by copy-on-write: what is loaded before the fork exists once, as long as nobody writes to its pages. The garbage
collector would (it marks objects), so everything alive at the fork is frozen out of its sight; the allocator's free pages go back
to the system first. The listening socket is shared too: connections that a dead worker had not accepted go to its siblings.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import logging
import os
import select
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

logger = logging.getLogger("serving.supervisor")

EXIT_GAVE_UP = 1
BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 10.0
SETTLED_S = 30.0
"""A worker that lived this long was well: its death is the first of a new row."""
FAST_DEATHS_MAX = 10
"""After so many deaths in a row of workers that never settled the replica ends, for whoever runs it to see."""
KILL_AFTER_S = 5.0
"""Seconds beyond the drain after which workers that still live are killed."""
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


@dataclass(slots=True)
class _Child:
    number: int
    ready_fd: int
    """Readable, by one byte, once the worker accepts requests."""
    started_at: float
    ready: bool = False


class Supervisor:
    """Keeps `workers` processes of `serve(number, ready_fd, life_fd)` alive, numbered from 0; a successor has its predecessor's number.

    `serve` runs in the child and returns its exit status. It writes a byte to `ready_fd` when it accepts requests, and drains when
    SIGTERM comes or `life_fd` reaches its end, which means that the parent is gone.
    """

    def __init__(
        self,
        serve: Callable[[int, int, int], int],
        *,
        listener: socket.socket,
        workers: int,
        drain_s: float,
        announce: Path | None,
    ) -> None:
        self._serve = serve
        self._listener = listener
        self._workers = workers
        self._drain_s = drain_s
        self._announce = announce
        self._announced = False
        self._children: dict[int, _Child] = {}
        self._life_read, self._life_write = os.pipe()
        self._wake_read, self._wake_write = os.pipe()
        self._asked_to_stop = False
        self._stop_at: float | None = None
        self._fast_deaths = 0
        self._restart_at = 0.0

    def run(self) -> int:
        """Run until SIGTERM or SIGINT, or until workers cannot be kept alive. Returns the exit status."""
        share_memory()
        with self._signals():
            for _ in range(self._workers):
                self._start()
            while True:
                self._wait()
                if self._asked_to_stop:
                    self._stop()
                status = self._reap()
                self._note_ready()
                if status is not None:
                    return status
                if self._stop_at is None:
                    self._replace()
                elif time.monotonic() > self._stop_at + self._drain_s + KILL_AFTER_S:
                    self._send(signal.SIGKILL)

    def _start(self) -> None:
        """Fork one worker. Raises OSError when the system has no process or file descriptor left."""
        number = min(set(range(self._workers)) - {child.number for child in self._children.values()})
        ready_read, ready_write = os.pipe()
        signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)  # or a child could run the parent's handlers
        try:
            pid = os.fork()
            if pid == 0:
                os.close(ready_read)
                self._be_worker(number, ready_write)
            self._children[pid] = _Child(number=number, ready_fd=ready_read, started_at=time.monotonic())
        except OSError:
            os.close(ready_read)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
            os.close(ready_write)

    def _be_worker(self, number: int, ready_fd: int) -> NoReturn:
        """The rest of a child's life; it never returns into the parent's code."""
        status = EXIT_GAVE_UP
        try:
            self._leave_parent()
            status = self._serve(number, ready_fd, self._life_read)
        except BaseException:
            logger.exception("worker.failed")
        finally:
            os._exit(status)

    def _leave_parent(self) -> None:
        """In a new child: drop what belongs to the parent, above all its end of the life pipe."""
        signal.set_wakeup_fd(-1)
        for number in _HANDLED:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
        for fd in (self._life_write, self._wake_read, self._wake_write, *(c.ready_fd for c in self._children.values())):
            os.close(fd)

    def _wait(self) -> None:
        """Until a signal, a worker that became ready, or a second has passed."""
        waiting = [child.ready_fd for child in self._children.values() if not child.ready]
        timeout = max(0.0, min(1.0, self._restart_at - time.monotonic())) if self._missing() else 1.0
        readable, _, _ = select.select([self._wake_read, *waiting], [], [], timeout)
        if self._wake_read in readable:
            os.read(self._wake_read, 4096)

    def _missing(self) -> int:
        return self._workers - len(self._children)

    def _reap(self) -> int | None:
        """Take note of dead workers. The replica's exit status, if it must end."""
        for pid, child in list(self._children.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found == 0:
                continue
            code = os.waitstatus_to_exitcode(status)
            del self._children[pid]
            os.close(child.ready_fd)
            if self._stop_at is not None:
                continue
            logger.warning("worker.died pid=%d status=%d", pid, code)
            if not self._announced:
                self._stop()
                return self._finish(code if code > 0 else EXIT_GAVE_UP)
            settled = time.monotonic() - child.started_at >= SETTLED_S
            self._fast_deaths = 1 if settled else self._fast_deaths + 1
            if self._fast_deaths > FAST_DEATHS_MAX:
                logger.error("replica.gave_up after %d workers died young", self._fast_deaths)
                self._stop()
                return self._finish(EXIT_GAVE_UP)
            self._restart_at = time.monotonic() + min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2 ** (self._fast_deaths - 1))
        return 0 if self._stop_at is not None and not self._children else None

    def _finish(self, status: int) -> int:
        """Let the remaining workers end, then give back `status`."""
        deadline = time.monotonic() + self._drain_s + KILL_AFTER_S
        while self._children:
            self._wait()
            self._reap()
            if time.monotonic() > deadline:
                self._send(signal.SIGKILL)
        return status

    def _replace(self) -> None:
        while self._missing() and time.monotonic() >= self._restart_at:
            try:
                self._start()
            except OSError as error:
                logger.warning("worker.not_started: %s", error)
                self._restart_at = time.monotonic() + BACKOFF_MAX_S

    def _note_ready(self) -> None:
        """Announce once all workers accept requests."""
        for child in self._children.values():
            if not child.ready and select.select([child.ready_fd], [], [], 0)[0]:
                child.ready = os.read(child.ready_fd, 1) != b""
        if self._announced or self._stop_at is not None or self._missing():
            return
        if all(child.ready for child in self._children.values()):
            self._announced = self._write_announcement()

    def _write_announcement(self) -> bool:
        port = self._listener.getsockname()[1]
        logger.info("replica.ready port=%d workers=%d", port, self._workers)
        if self._announce is None:
            return True
        try:
            write_announcement(self._announce, port)
        except OSError as error:
            logger.warning("announce.failed %s: %s; it is tried again each second", self._announce, error)
            return False
        return True

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        os.set_blocking(self._wake_write, False)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in _HANDLED:
            signal.signal(number, self._note_signal)
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)

    def _note_signal(self, number: int, _: object) -> None:
        """Only take note: a handler may run between any two instructions, so `run` acts on it."""
        if number != signal.SIGCHLD:
            self._asked_to_stop = True

    def _stop(self) -> None:
        """Stop taking connections and let the workers finish. The parent's socket closes too, or new connections would hang in it."""
        if self._stop_at is None:
            self._stop_at = time.monotonic()
            self._listener.close()
            self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def share_memory() -> None:
    """Make what is loaded now stay shared after a fork: no garbage, no free pages, no collector that touches it."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # malloc_trim is glibc's
        ctypes.CDLL(None).malloc_trim(0)
    gc.freeze()


def write_announcement(path: Path, port: int) -> None:
    """Write `{"pid", "port"}` of this process by rename. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump({"pid": os.getpid(), "port": port}, file, sort_keys=True)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
