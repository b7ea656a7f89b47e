"""The router's public side, over real sockets: who answers, what is repeated, what the client sees."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from router_rig import Rig, until, with_router

from serving.router.proxy import ProxyLimits


def test_request_and_answer_pass_unchanged(tmp_path: Path) -> None:
    """Path, query, body and end-to-end headers arrive; hop-by-hop ones and a forged role do not; the answer says who gave it."""

    async def scenario(rig: Rig) -> None:
        one = await rig.replica(body=b'{"predictions": [1]}')
        await rig.route({"1": [one]}, {"1": 100})
        status, headers, body = await rig.ask(
            "/v2/models/m/infer?x=%20y",
            body=b'{"a": 1}',
            x_mine="yes",
            connection="x-hop",
            x_hop="no",
            x_ratchet_role="shadow",
        )
        assert (status, body, headers["x-ratchet-version"]) == (200, {"predictions": [1]}, "1")
        ((path, sent, content),) = one.seen
        assert (path, content, sent["x-mine"]) == ("/v2/models/m/infer?x=%20y", b'{"a": 1}', "yes")
        assert not {"x-hop", "x-ratchet-role"} & set(sent)
        assert sent["x-ratchet-request-id"] == headers["x-ratchet-request-id"] != ""
        assert sent["host"] == one.url.removeprefix("http://")

    with_router(tmp_path, scenario)


def test_compressed_body_is_not_touched(tmp_path: Path) -> None:
    """A body with Content-Encoding goes on as it came."""
    packed = zlib.compress(b'{"instances": []}')

    async def scenario(rig: Rig) -> None:
        one = await rig.replica()
        await rig.route({"1": [one]}, {"1": 100})
        async with rig.session.post(
            rig.url + "/v1/models/m:predict", data=packed, headers={"Content-Encoding": "deflate"}
        ) as answer:
            assert answer.status == 200
        assert one.seen[0][1]["content-encoding"] == "deflate"
        assert one.seen[0][1]["content-length"] == str(len(packed))

    with_router(tmp_path, scenario)


def test_client_keeps_its_own_request_id(tmp_path: Path) -> None:
    """A request id of the client goes through; otherwise each request gets one of its own."""

    async def scenario(rig: Rig) -> None:
        one = await rig.replica()
        await rig.route({"1": [one]}, {"1": 100})
        assert (await rig.ask(x_ratchet_request_id="mine"))[1]["x-ratchet-request-id"] == "mine"
        given = {(await rig.ask())[1]["x-ratchet-request-id"] for _ in range(5)}
        assert len(given) == 5

    with_router(tmp_path, scenario)


def test_key_sticks_to_its_version(tmp_path: Path) -> None:
    """Requests with one key go to one version; with many keys, to both."""

    async def scenario(rig: Rig) -> None:
        one, two = await rig.replica(), await rig.replica()
        await rig.route({"1": [one], "2": [two]}, {"1": 50, "2": 50})
        of_a_key = {(await rig.ask(x_ratchet_key="ann"))[1]["x-ratchet-version"] for _ in range(10)}
        of_many = {(await rig.ask(x_ratchet_key=str(i)))[1]["x-ratchet-version"] for i in range(40)}
        assert (len(of_a_key), of_many) == (1, {"1", "2"})

    with_router(tmp_path, scenario)


def test_least_busy_replica_is_asked(tmp_path: Path) -> None:
    """While one replica is busy, the other one of the version gets the requests."""

    async def scenario(rig: Rig) -> None:
        stuck, free = await rig.replica(gate=asyncio.Event()), await rig.replica()
        await rig.route({"1": [stuck, free]}, {"1": 100})
        first = asyncio.create_task(rig.ask())
        second = asyncio.create_task(rig.ask())
        await until(lambda: len(stuck.seen) == 1, "one request stuck")
        for _ in range(5):
            await rig.ask()
        assert (len(stuck.seen), len(free.seen)) == (1, 6)
        assert stuck.gate is not None
        stuck.gate.set()
        assert (await first)[0] == (await second)[0] == 200

    with_router(tmp_path, scenario)


@pytest.mark.parametrize("kind", ["refuses", "dies"])
def test_replica_that_is_gone_is_passed_over(tmp_path: Path, kind: str) -> None:
    """A request whose replica refuses or dies before answering is answered by another replica of the same version."""

    async def scenario(rig: Rig) -> None:
        gone, well = await rig.replica(die=kind == "dies"), await rig.replica()
        await rig.route({"1": [gone, well]}, {"1": 100})
        if kind == "refuses":
            await gone.stop()
        assert {(await rig.ask())[0] for _ in range(6)} == {200}
        stats = (await rig.stats())["1"]
        assert 1 <= stats["errors"] <= 2, "a suspect is left alone for a while"
        assert stats["requests"] == 6 + stats["errors"]

    with_router(tmp_path, scenario)


def test_other_version_answers_when_a_version_has_no_replica_left(tmp_path: Path) -> None:
    """With the champion's only replica gone a request is answered by the challenger, and the other way round."""

    async def scenario(rig: Rig) -> None:
        one, two = await rig.replica(), await rig.replica()
        await rig.route({"1": [one], "2": [two]}, {"1": 50, "2": 50})
        await one.stop()
        assert {(await rig.ask(x_ratchet_key=str(i)))[0] for i in range(10)} == {200}
        await rig.route({"1": [], "2": [two]}, {"1": 50, "2": 50}, generation=2)
        assert {(await rig.ask(x_ratchet_key=str(i)))[1]["x-ratchet-version"] for i in range(10)} == {"2"}

    with_router(tmp_path, scenario)


def test_suspect_replica_is_asked_again_when_it_is_the_last(tmp_path: Path) -> None:
    """A lone replica that failed once is asked at once by the next request."""

    async def scenario(rig: Rig) -> None:
        one = await rig.replica(die=True)
        await rig.route({"1": [one]}, {"1": 100})
        status, _, body = await rig.ask()
        assert (status, len(one.seen)) == (503, 2), "a lost connection is tried once more on a fresh one"
        assert "'m'" in body["error"]
        one.die = False
        assert (await rig.ask())[0] == 200

    with_router(tmp_path, scenario)


@pytest.mark.parametrize("status", [500, 503])
def test_champion_answers_for_a_failing_challenger(tmp_path: Path, status: int) -> None:
    """A challenger's 5xx is counted against it and never reaches the client."""

    async def scenario(rig: Rig) -> None:
        one, two = await rig.replica(), await rig.replica(status=status)
        await rig.route({"1": [one], "2": [two]}, {"1": 60, "2": 40})
        answers = [await rig.ask(x_ratchet_key=str(i)) for i in range(20)]
        assert {(a, headers["x-ratchet-version"]) for a, headers, _ in answers} == {(200, "1")}
        stats = await rig.stats()
        assert stats["2"]["errors"] == stats["2"]["requests"] == len(two.seen) > 0
        assert stats["1"]["errors"] == 0

    with_router(tmp_path, scenario)


def test_champion_answers_for_a_challenger_that_is_too_slow(tmp_path: Path) -> None:
    """A challenger that exceeds its time is counted as failing, and the champion answers."""

    async def scenario(rig: Rig) -> None:
        one, two = await rig.replica(), await rig.replica(delay_s=5)
        await rig.route({"1": [one], "2": [two]}, {"1": 99, "2": 1})
        await rig.route({"1": [one], "2": [two]}, {"1": 51, "2": 49}, generation=2)
        answers = [await rig.ask(x_ratchet_key=str(i)) for i in range(4)]
        assert {a for a, _, _ in answers} == {200}
        assert (await rig.stats())["2"]["errors"] >= 1

    with_router(tmp_path, scenario, ProxyLimits(challenger_timeout_s=0.1))


def test_errors_of_the_champion_reach_the_client(tmp_path: Path) -> None:
    """A 500 of the champion, a time-out of it and a 4xx of anyone are the answer."""

    async def scenario(rig: Rig) -> None:
        one = await rig.replica(status=500)
        await rig.route({"1": [one]}, {"1": 100})
        assert (await rig.ask())[0] == 500
        assert len(one.seen) == 1
        one.status = 422
        assert (await rig.ask())[0] == 422
        one.status, one.delay_s = 200, 5
        status, _, body = await rig.ask()
        assert (status, "in time" in body["error"]) == (504, True)
        assert (await rig.stats())["1"]["errors"] == 2

    with_router(tmp_path, scenario, ProxyLimits(timeout_s=0.2))


def test_feedback_goes_to_the_champion_and_else_to_anyone(tmp_path: Path) -> None:
    """Feedback is not split by weight, and is taken by another version when the champion cannot take it."""

    async def scenario(rig: Rig) -> None:
        one, two = await rig.replica(), await rig.replica()
        await rig.route({"1": [one], "2": [two]}, {"1": 51, "2": 49})
        for _ in range(10):
            assert (await rig.ask("/v1/models/m/feedback"))[1]["x-ratchet-version"] == "1"
        one.status = 500
        status, headers, _ = await rig.ask("/v1/models/m/feedback")
        assert (status, headers["x-ratchet-version"]) == (200, "2")
        await one.stop()
        assert (await rig.ask("/v1/models/m/feedback"))[0] == 200
        assert (await rig.stats())["1"]["requests"] == 0, "only predictions are evidence"

    with_router(tmp_path, scenario)


def test_version_asked_for_by_name_answers_or_nobody(tmp_path: Path) -> None:
    """A path with a version reaches that version if it carries traffic; a shadow or unknown one is 404, never another."""

    async def scenario(rig: Rig) -> None:
        one, two, three = await rig.replica(), await rig.replica(), await rig.replica()
        await rig.route({"1": [one], "2": [two], "3": [three]}, {"1": 99, "2": 1}, shadow="3")
        assert (await rig.ask("/v2/models/m/versions/2/infer"))[1]["x-ratchet-version"] == "2"
        status, _, body = await rig.ask("/v2/models/m/versions/3/infer")
        assert (status, "serving: 1, 2" in body["error"]) == (404, True)
        await two.stop()
        assert (await rig.ask("/v2/models/m/versions/2/infer"))[0] == 503

    with_router(tmp_path, scenario)


def test_refusals_name_what_is_wrong(tmp_path: Path) -> None:
    """Unknown model and path, no version, wrong method: each a status and a sentence in JSON."""

    async def scenario(rig: Rig) -> None:
        assert (await rig.ask("/v1/models/none:predict"))[0] == 404
        assert "'none'" in (await rig.ask("/v1/models/none:predict"))[2]["error"]
        assert (await rig.ask("/v1/models/m/../../metrics"))[0] == 404
        assert (await rig.ask("/elsewhere"))[0] == 404
        await rig.route({}, {})
        status, headers, body = await rig.ask()
        assert (status, headers["retry-after"], "no version" in body["error"]) == (503, "1", True)
        assert (await rig.ask(method="DELETE"))[0] in (405, 503)
        one = await rig.replica()
        await rig.route({"1": [one]}, {"1": 100}, generation=2)
        assert (await rig.ask(method="DELETE"))[0] == 405
        await one.stop()
        assert (await rig.ask())[0] == 503

    with_router(tmp_path, scenario)


@pytest.mark.parametrize("chunked", [False, True])
def test_too_large_a_body_is_refused(tmp_path: Path, chunked: bool) -> None:
    """A body over the limit is 413, announced or not, and reaches no replica."""

    async def scenario(rig: Rig) -> None:
        one = await rig.replica()
        await rig.route({"1": [one]}, {"1": 100})

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(10):
                yield b"x" * 1000

        async with rig.session.post(
            rig.url + "/v1/models/m:predict", data=chunks() if chunked else b"x" * 10_000
        ) as answer:
            assert answer.status == 413
            assert "5000 bytes" in (await answer.json())["error"]
        assert one.seen == []

    with_router(tmp_path, scenario, ProxyLimits(body_bytes_max=5000))


def test_bodies_together_are_bounded(tmp_path: Path) -> None:
    """Many large requests at once cannot fill the memory: what does not fit is 503 at once, and there is room again afterwards."""

    async def scenario(rig: Rig) -> None:
        one = await rig.replica(gate=asyncio.Event())
        await rig.route({"1": [one]}, {"1": 100})
        waiting = [asyncio.create_task(rig.ask(body=b"x" * 4000)) for _ in range(2)]
        await until(lambda: len(one.seen) == 2, "two in flight")
        status, _, body = await rig.ask(body=b"x" * 4000)
        assert (status, "full" in body["error"]) == (503, True)
        small = asyncio.create_task(rig.ask(body=b"{}"))
        await until(lambda: len(one.seen) == 3, "a small one fits")
        assert one.gate is not None
        one.gate.set()
        assert [(await task)[0] for task in (*waiting, small)] == [200] * 3
        assert (await rig.ask(body=b"x" * 4000))[0] == 200

    with_router(tmp_path, scenario, ProxyLimits(bodies_bytes_max=10_000))


def test_body_that_never_comes_is_given_up(tmp_path: Path) -> None:
    """A client that announces a body and sends none gets 408."""

    async def scenario(rig: Rig) -> None:
        await rig.route({"1": [await rig.replica()]}, {"1": 100})
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        writer.write(b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
        assert b" 408 " in await reader.readline()
        writer.close()

    with_router(tmp_path, scenario, ProxyLimits(body_timeout_s=0.1))


def test_client_that_waits_for_continue_gets_it(tmp_path: Path) -> None:
    """A client that asks `Expect: 100-continue` is told to go on, then answered."""

    async def scenario(rig: Rig) -> None:
        one = await rig.replica()
        await rig.route({"1": [one]}, {"1": 100})
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        writer.write(
            b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        )
        assert b" 100 " in await reader.readline()
        await reader.readline()
        writer.write(b"{}")
        assert b" 200 " in await reader.readline()
        writer.close()

    with_router(tmp_path, scenario)


@pytest.mark.parametrize(
    "head",
    [
        b"/v1/models/m:predict HTTP/1.1\r\nX-Odd: \xff\xfe",
        b"/v1/models/m:predict?a=\xff HTTP/1.1",
        b"/v1/models/\xff:predict HTTP/1.1",
    ],
)
def test_odd_bytes_are_no_replicas_fault(tmp_path: Path, head: bytes) -> None:
    """Bytes that are no UTF-8 are refused or passed on, and never counted as a version's error."""

    async def scenario(rig: Rig) -> None:
        await rig.route({"1": [await rig.replica()]}, {"1": 100})
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        writer.write(b"POST " + head + b"\r\nHost: x\r\nX-Ratchet-Key: \xff\r\nContent-Length: 2\r\n\r\n{}")
        assert (await reader.readline()).split()[1] in (b"200", b"400", b"404")
        writer.close()
        assert (await rig.stats())["1"]["errors"] == 0

    with_router(tmp_path, scenario)


def test_full_router_says_so(tmp_path: Path) -> None:
    """Beyond the limit of requests in flight the answer is 503 at once, and those in flight are answered."""

    async def scenario(rig: Rig) -> None:
        one = await rig.replica(gate=asyncio.Event())
        await rig.route({"1": [one]}, {"1": 100})
        waiting = [asyncio.create_task(rig.ask()) for _ in range(2)]
        await until(lambda: len(one.seen) == 2, "two in flight")
        status, _, body = await rig.ask()
        assert (status, "full" in body["error"]) == (503, True)
        assert one.gate is not None
        one.gate.set()
        assert [(await task)[0] for task in waiting] == [200, 200]

    with_router(tmp_path, scenario, ProxyLimits(in_flight_max=2))


def test_metrics_tell_what_happened(tmp_path: Path) -> None:
    """Answers are counted by model, version and code, and timed; health is answered by the router itself."""

    async def scenario(rig: Rig) -> None:
        one = await rig.replica()
        await rig.route({"1": [one]}, {"1": 100})
        await rig.ask()
        async with rig.session.get(rig.url + "/metrics") as answer:
            text = await answer.text()
        assert 'ratchet_router_requests_total{code="200",model="m",version="1"} 1.0' in text
        assert 'ratchet_router_request_seconds_count{model="m",version="1"} 1.0' in text
        assert (await rig.ask("/healthz", method="GET"))[0] == 200

    with_router(tmp_path, scenario)
