"""Micro-batching: requests that arrive while the model is busy are joined into its next call.

An idle model is called at once, so nobody waits for company; a busy one sees few large calls instead of many small ones, and what a
call costs besides its rows (building frames, dispatch, the log's write) is shared. One thread calls the model.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class QueueFullError(Exception):
    """More rows are waiting than the bound allows; the request was not taken."""


@dataclass(slots=True)
class _Ticket(Generic[Item, Result]):
    item: Item
    rows: int
    future: asyncio.Future[Result]
    outcome: Result | Exception | None = field(default=None)


class Batcher(Generic[Item, Result]):
    """Runs `run(items)` in one thread, over as many waiting items as fit `rows_max`.

    `run` gives one outcome an item, in order: a result, or an exception that fails that item alone. If `run` itself raises, all items of
    the call fail with that exception. An item larger than `rows_max` goes alone. Use from one event loop.
    """

    def __init__(
        self, run: Callable[[Sequence[Item]], Sequence[Result | Exception]], *, rows_max: int, waiting_rows_max: int
    ) -> None:
        self._run = run
        self._rows_max = rows_max
        self._waiting_rows_max = waiting_rows_max
        self._waiting_rows = 0
        self._queue: queue.SimpleQueue[_Ticket[Item, Result] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._busy_since: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Start the thread. Call from the event loop that will submit."""
        self._loop = asyncio.get_running_loop()
        # Made here, not in the constructor: a thread object made before a fork counts as dead in the child for ever.
        self._thread = threading.Thread(target=self._loop_forever, name="batcher", daemon=True)
        self._thread.start()

    async def submit(self, item: Item, rows: int) -> Result:
        """The outcome of `item`, which stands for `rows` rows. Raises QueueFullError at once, or what `run` gave for the item.

        Cancelling the caller (time-out, client gone) takes the item out of the queue unless its call has begun.
        """
        assert self._loop is not None, "start() comes before submit()"
        if self._waiting_rows and self._waiting_rows + rows > self._waiting_rows_max:
            raise QueueFullError(f"{self._waiting_rows} rows are waiting, of at most {self._waiting_rows_max}")
        ticket: _Ticket[Item, Result] = _Ticket(item, rows, self._loop.create_future())
        self._waiting_rows += rows
        self._queue.put(ticket)
        try:
            return await ticket.future
        finally:
            self._waiting_rows -= rows

    def busy_s(self) -> float:
        """How long the present call has run, in seconds; 0 when idle."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def close(self) -> None:
        """Finish what is waiting and stop the thread."""
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join()

    def _loop_forever(self) -> None:
        held: _Ticket[Item, Result] | None = None
        while True:
            first = held or self._queue.get()
            if first is None:
                return
            batch, held, closing = self._gather(first)
            batch = [ticket for ticket in batch if not ticket.future.cancelled()]
            if batch:
                self._call(batch)
            if closing:
                return

    def _gather(
        self, first: _Ticket[Item, Result]
    ) -> tuple[list[_Ticket[Item, Result]], _Ticket[Item, Result] | None, bool]:
        """Everything that waits and fits with `first`; then the one that did not fit, and whether to stop."""
        batch, rows = [first], first.rows
        while True:
            try:
                ticket = self._queue.get_nowait()
            except queue.Empty:
                return batch, None, False
            if ticket is None:
                return batch, None, True
            if rows + ticket.rows > self._rows_max:
                return batch, ticket, False
            batch.append(ticket)
            rows += ticket.rows

    def _call(self, batch: list[_Ticket[Item, Result]]) -> None:
        self._busy_since = time.monotonic()
        try:
            outcomes = self._run([ticket.item for ticket in batch])
            assert len(outcomes) == len(batch), (len(outcomes), len(batch))
        except Exception as error:  # noqa: BLE001 - the thread outlives whatever one call raises
            outcomes = [error] * len(batch)
        finally:
            self._busy_since = None
        assert self._loop is not None
        for ticket, outcome in zip(batch, outcomes, strict=True):
            ticket.outcome = outcome
        self._loop.call_soon_threadsafe(_deliver, batch)


def _deliver(batch: Sequence[_Ticket[Item, Result]]) -> None:
    for ticket in batch:
        if ticket.future.done():
            continue
        if isinstance(ticket.outcome, Exception):
            ticket.future.set_exception(ticket.outcome)
        else:
            assert ticket.outcome is not None
            ticket.future.set_result(ticket.outcome)
