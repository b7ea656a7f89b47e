"""Mirroring: a shadow sees what the champion saw, and nothing that it does can be felt."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from router_rig import Rig, until, with_router

from serving.router import shadow


def test_shadow_gets_the_same_request_with_the_same_id(tmp_path: Path) -> None:
    """The copy has the live request's body, id and key, and the shadow's role; feedback is not copied."""

    async def scenario(rig: Rig) -> None:
        one, two = await rig.replica(), await rig.replica()
        await rig.route({"1": [one], "2": [two]}, {"1": 100}, shadow="2")
        await rig.ask("/v1/models/m/feedback")
        await rig.ask(body=b'{"instances": [1]}', x_ratchet_key="ann")
        await until(lambda: len(two.seen) == 1, "the copy")
        (path, live, body), (copied_path, copy, copied_body) = one.seen[-1], two.seen[0]
        assert (copied_path, copied_body) == (path, body)
        assert copy["x-ratchet-request-id"] == live["x-ratchet-request-id"]
        assert copy["x-ratchet-key"] == "ann"
        assert (one.roles, two.roles) == ([None, None], ["shadow"])

    with_router(tmp_path, scenario)


def test_stuck_shadow_is_not_felt_and_its_copies_are_bounded(tmp_path: Path) -> None:
    """While the shadow hangs, live answers are as quick as ever; copies over the bound are dropped and counted."""

    async def scenario(rig: Rig) -> None:
        one, two = await rig.replica(), await rig.replica(gate=asyncio.Event())
        await rig.route({"1": [one], "2": [two]}, {"1": 100}, shadow="2")
        sent = shadow.QUEUE_MAX + shadow.CONCURRENCY_MAX + 20
        started = time.monotonic()
        assert {(await rig.ask())[0] for _ in range(sent)} == {200}
        assert time.monotonic() - started < shadow.TIMEOUT_S
        assert len(two.seen) <= shadow.CONCURRENCY_MAX
        assert (await rig.stats())["2"]["shadow_dropped"] >= 20
        assert two.gate is not None
        two.gate.set()
        await until(lambda: len(two.seen) >= shadow.QUEUE_MAX, "the queue to empty")

    with_router(tmp_path, scenario)


def test_failing_shadow_is_counted_apart(tmp_path: Path) -> None:
    """Errors and lost connections of a shadow are shadow errors, and no live request or error of anyone."""

    async def scenario(rig: Rig) -> None:
        one, two = await rig.replica(), await rig.replica(status=500)
        await rig.route({"1": [one], "2": [two]}, {"1": 100}, shadow="2")
        await rig.ask()
        await until(lambda: len(two.seen) == 1, "the copy")
        await two.stop()
        await rig.ask()

        async def counted() -> bool:
            return bool((await rig.stats())["2"]["shadow_errors"] == 2)

        await until(counted, "two shadow errors")
        stats = await rig.stats()
        assert (stats["2"]["requests"], stats["2"]["errors"], stats["1"]["errors"]) == (0, 0, 0)
        async with rig.session.get(rig.url + "/metrics") as answer:
            assert 'ratchet_router_shadow_total{model="m",result="error",version="2"} 2.0' in await answer.text()

    with_router(tmp_path, scenario)


def test_copies_for_a_version_that_is_shadow_no_more_are_dropped(tmp_path: Path) -> None:
    """Copies that wait when the shadow changes do not reach a version that now carries live traffic."""

    async def scenario(rig: Rig) -> None:
        one, two = await rig.replica(), await rig.replica(gate=asyncio.Event())
        await rig.route({"1": [one], "2": [two]}, {"1": 100}, shadow="2")
        for _ in range(10):
            await rig.ask()
        await until(lambda: len(two.seen) == shadow.CONCURRENCY_MAX, "all senders busy")
        await rig.route({"1": [one], "2": [two]}, {"2": 100}, generation=2)
        assert two.gate is not None
        two.gate.set()
        assert (await rig.ask())[1]["x-ratchet-version"] == "2"
        assert two.roles.count("shadow") == shadow.CONCURRENCY_MAX

    with_router(tmp_path, scenario)
