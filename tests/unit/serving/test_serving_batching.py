"""Requests that wait together are answered together, each with its own outcome."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.batching import Batcher, QueueFullError

Run = Callable[[Sequence[int]], Sequence[int | Exception]]


def with_batcher(
    run: Run, use: Callable[[Batcher[int, int]], Awaitable[None]], *, rows_max: int = 100, waiting_rows_max: int = 1000
) -> None:
    """Run `use` with a started batcher, in an event loop of its own."""

    async def body() -> None:
        batcher: Batcher[int, int] = Batcher(run, rows_max=rows_max, waiting_rows_max=waiting_rows_max)
        batcher.start()
        try:
            async with asyncio.timeout(20):
                await use(batcher)
        finally:
            batcher.close()
        assert not batcher.alive()

    asyncio.run(body())


class Gate:
    """A model that holds its first call until told to go on, and remembers what each call was given."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.entered = threading.Event()
        self.open = threading.Event()

    def run(self, items: Sequence[int]) -> Sequence[int | Exception]:
        self.calls.append(list(items))
        self.entered.set()
        assert self.open.wait(20)
        return [item * 2 for item in items]


def test_an_idle_model_is_called_at_once() -> None:
    """One request alone is answered without waiting for company."""

    async def use(batcher: Batcher[int, int]) -> None:
        assert await batcher.submit(4, 1) == 8
        assert batcher.busy_s() == 0.0

    with_batcher(lambda items: [item * 2 for item in items], use)


def test_what_arrives_during_a_call_is_joined_into_the_next() -> None:
    """Ten requests that wait behind one call are answered by one more."""
    gate = Gate()

    async def use(batcher: Batcher[int, int]) -> None:
        first = asyncio.create_task(batcher.submit(0, 1))
        await asyncio.to_thread(gate.entered.wait)
        others = [asyncio.create_task(batcher.submit(i, 1)) for i in range(1, 11)]
        await asyncio.sleep(0)
        assert batcher.busy_s() > 0
        gate.open.set()
        assert await asyncio.gather(first, *others) == [i * 2 for i in range(11)]

    with_batcher(gate.run, use)
    assert gate.calls == [[0], list(range(1, 11))]


def test_a_call_never_has_more_rows_than_allowed() -> None:
    """Waiting requests are split over calls of at most rows_max rows, in order; a larger request goes alone."""
    gate = Gate()
    rows = [1, 4, 4, 4, 25, 3, 3, 3, 3]

    async def use(batcher: Batcher[int, int]) -> None:
        tasks = [asyncio.create_task(batcher.submit(i, r)) for i, r in enumerate(rows[:1])]
        await asyncio.to_thread(gate.entered.wait)
        tasks += [asyncio.create_task(batcher.submit(i, r)) for i, r in enumerate(rows[1:], start=1)]
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(*tasks)

    with_batcher(gate.run, use, rows_max=10)
    assert gate.calls == [[0], [1, 2], [3], [4], [5, 6, 7], [8]]


def test_a_full_queue_refuses_and_takes_again_when_it_empties() -> None:
    """Beyond the bound a request is refused at once; what waited is still answered."""
    gate = Gate()

    async def use(batcher: Batcher[int, int]) -> None:
        waiting = [asyncio.create_task(batcher.submit(i, 4)) for i in range(2)]
        await asyncio.to_thread(gate.entered.wait)
        with pytest.raises(QueueFullError, match="8 rows are waiting, of at most 10"):
            await batcher.submit(9, 4)
        gate.open.set()
        assert await asyncio.gather(*waiting) == [0, 2]
        assert await batcher.submit(9, 4) == 18
        assert await batcher.submit(7, 50) == 14  # alone, it may be larger than the bound

    with_batcher(gate.run, use, waiting_rows_max=10)


def test_a_cancelled_request_is_not_scored() -> None:
    """A request whose caller gave up before its call began is taken out of the queue."""
    gate = Gate()

    async def use(batcher: Batcher[int, int]) -> None:
        first = asyncio.create_task(batcher.submit(0, 1))
        await asyncio.to_thread(gate.entered.wait)
        given_up = asyncio.create_task(batcher.submit(1, 1))
        kept = asyncio.create_task(batcher.submit(2, 1))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.sleep(0)
        gate.open.set()
        assert [await first, await kept] == [0, 4]

    with_batcher(gate.run, use)
    assert gate.calls == [[0], [2]]


def test_a_call_that_raises_fails_its_requests_and_nothing_more() -> None:
    """The thread outlives an exception: the next request is answered."""
    broken = [True]

    def run(items: Sequence[int]) -> Sequence[int | Exception]:
        if broken.pop() if broken else False:
            raise RuntimeError("no")
        return list(items)

    async def use(batcher: Batcher[int, int]) -> None:
        with pytest.raises(RuntimeError, match="no"):
            await batcher.submit(1, 1)
        assert await batcher.submit(2, 1) == 2
        assert batcher.alive()

    with_batcher(run, use)


def test_closing_answers_what_waits() -> None:
    """Requests that were taken before close() are answered before it returns."""
    gate = Gate()

    async def body() -> None:
        batcher: Batcher[int, int] = Batcher(gate.run, rows_max=10, waiting_rows_max=100)
        batcher.start()
        tasks = [asyncio.create_task(batcher.submit(i, 1)) for i in range(3)]
        await asyncio.to_thread(gate.entered.wait)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        gate.open.set()
        await closing
        assert await asyncio.gather(*tasks) == [0, 2, 4]

    asyncio.run(asyncio.wait_for(body(), 20))


@settings(max_examples=40, deadline=None)
@given(
    items=st.lists(st.tuples(st.integers(-50, 50), st.integers(1, 7), st.integers(0, 3)), max_size=40),
    rows_max=st.integers(1, 20),
)
def test_every_request_gets_its_own_outcome(items: list[tuple[int, int, int]], rows_max: int) -> None:
    """Whatever arrives in whatever rhythm: each caller gets the result, or the error, of its own item, and no call is too large."""
    sizes: list[int] = []

    def run(batch: Sequence[tuple[int, int]]) -> Sequence[int | Exception]:
        sizes.append(sum(rows for _, rows in batch) if len(batch) > 1 else 0)
        return [ValueError(str(value)) if value < 0 else value * 3 for value, _ in batch]

    async def call(batcher: Batcher[tuple[int, int], int], value: int, rows: int, pauses: int) -> None:
        for _ in range(pauses):
            await asyncio.sleep(0)
        if value < 0:
            with pytest.raises(ValueError, match=str(value)):
                await batcher.submit((value, rows), rows)
        else:
            assert await batcher.submit((value, rows), rows) == value * 3

    async def body() -> None:
        batcher: Batcher[tuple[int, int], int] = Batcher(run, rows_max=rows_max, waiting_rows_max=10_000)
        batcher.start()
        await asyncio.wait_for(asyncio.gather(*(call(batcher, *item) for item in items)), 20)
        batcher.close()

    asyncio.run(body())
    assert max(sizes, default=0) <= rows_max
