"""The public side: finds the model, chooses the version, forwards, repeats elsewhere what failed, and answers.

Repeating is safe because predictions and feedback mean the same when they are sent twice. The rules:

- a replica that refuses, dies before the whole answer, or says 503 is passed over for another replica or version;
- a challenger's 5xx or time-out is counted against it and the champion answers instead;
- the champion's own 5xx and time-outs reach the client, save for feedback, which any version may take.

At most `ATTEMPTS_MAX` times; the last failure is what the client sees.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aiohttp import ClientError, web
from multidict import CIMultiDict

from serving.router.fleet import SUSPECT_S, Backend, Fleet, ModelTraffic
from serving.router.metrics import RouterMetrics
from serving.router.shadow import ROLE_HEADER, Mirror
from serving.router.upstream import Answer, Call, Unanswered, Upstream, end_to_end

ATTEMPTS_MAX = 3
REQUEST_ID_HEADER = "x-ratchet-request-id"
KEY_HEADER = "x-ratchet-key"
VERSION_HEADER = "x-ratchet-version"
_REQUEST_ID_LENGTH_MAX = 200
_PATH = re.compile(
    r"/v[12]/models/(?P<model>[^/:?]+)(?:/versions/(?P<version>[^/:?]+))?(?P<verb>(?:[/:][A-Za-z_]+)*)(?:\?.*)?"
)
_PREDICTING = {":predict", "/infer", ":classify", ":regress"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ProxyLimits:
    """Bounds on what one request, and all together, may take."""

    body_bytes_max: int = 16 * 2**20
    bodies_bytes_max: int = 512 * 2**20
    """Of all bodies that are held at the same time."""
    in_flight_max: int = 1024
    body_timeout_s: float = 30.0
    """From the headers to the end of the client's body."""
    timeout_s: float = 30.0
    """For an answer of the champion."""
    challenger_timeout_s: float = 10.0
    """For an answer of another version, after which the champion is asked."""


class RequestError(Exception):
    """A request that the router itself answers."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Address:
    """What a request's path means."""

    model: str
    version: str | None
    """Asked for by name, so that no other may answer."""
    verb: str

    @property
    def predicts(self) -> bool:
        return self.verb in _PREDICTING

    @property
    def is_feedback(self) -> bool:
        return self.verb == "/feedback"


def parse_address(raw_path: str) -> Address:
    """Raises RequestError (404) if it is no path of a model."""
    match = _PATH.fullmatch(raw_path)
    if match is None:
        raise RequestError(
            404, f"nothing is served at {raw_path[:200]!r}; models are at /v1/models/NAME and /v2/models/NAME"
        )
    return Address(match["model"], match["version"], match["verb"])


class Proxy:
    """Handles public requests for the models of a fleet."""

    def __init__(self, fleet: Fleet, upstream: Upstream, metrics: RouterMetrics, limits: ProxyLimits) -> None:
        self._fleet = fleet
        self._upstream = upstream
        self._metrics = metrics
        self._limits = limits
        self._mirrors: dict[str, Mirror] = {}
        self._in_flight = 0
        self._held_bytes = 0
        self._id_prefix = os.urandom(8).hex()
        self._id_count = 0

    async def close(self) -> None:
        for mirror in self._mirrors.values():
            await mirror.close()

    async def handle(self, request: web.BaseRequest) -> web.Response:
        """The answer to a client; every failure is JSON `{"error": sentence}`."""
        self._in_flight += 1
        try:
            return await self._handle(request)
        except RequestError as error:
            return error_response(error.status, str(error))
        except UnicodeEncodeError:
            return error_response(400, "the path and the headers must be UTF-8")
        finally:
            self._in_flight -= 1

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        address = parse_address(request.raw_path)
        traffic = self._fleet.models.get(address.model)
        if traffic is None:
            known = ", ".join(sorted(self._fleet.models)[:10]) or "none yet"
            raise RequestError(404, f"no model {address.model!r} is served here; served: {known}")
        if self._in_flight > self._limits.in_flight_max:
            raise RequestError(
                503, f"the router is full: {self._limits.in_flight_max} requests are in flight; try again"
            )
        with self._holding() as hold:
            call = await self._read(request, hold)
            return await self._answer(traffic, address, call)

    @contextmanager
    def _holding(self) -> Iterator[Callable[[int], None]]:
        """Count the bytes that the block says it holds, until it ends. Over the bound, saying so raises RequestError."""
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            if self._held_bytes + size > self._limits.bodies_bytes_max:
                raise RequestError(503, "the router is full: the requests in flight are too large together; try again")
            self._held_bytes += size
            held += size

        try:
            yield hold
        finally:
            self._held_bytes -= held

    async def _answer(self, traffic: ModelTraffic, address: Address, call: Call) -> web.Response:
        started = time.perf_counter()
        try:
            arm, answer = await self._forward(traffic, address, call)
        except RequestError as error:
            self._metrics.requests.labels(address.model, "none", error.status).inc()
            raise
        version = traffic.route.version_of(arm)
        self._metrics.requests.labels(address.model, version, answer.status).inc()
        self._metrics.seconds.labels(address.model, version).observe(time.perf_counter() - started)
        if address.predicts and traffic.route.shadow is not None and answer.status < 400:
            self._mirror(traffic).offer(call)
        answer.headers[VERSION_HEADER] = version
        answer.headers[REQUEST_ID_HEADER] = call.headers[REQUEST_ID_HEADER]
        return web.Response(status=answer.status, headers=answer.headers, body=answer.body)

    async def _read(self, request: web.BaseRequest, hold: Callable[[int], None]) -> Call:
        """The whole request, with an id. Raises RequestError."""
        if request.method not in ("GET", "POST"):
            raise RequestError(405, f"method {request.method} is not served; use GET or POST")
        if (request.content_length or 0) > self._limits.body_bytes_max:
            raise RequestError(413, f"the body may have at most {self._limits.body_bytes_max} bytes")
        body = b""
        if request.can_read_body:
            if "Expect" in request.headers and request.transport is not None:
                request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = await self._read_body(request, hold)
        headers = end_to_end(request.headers, (ROLE_HEADER,))
        request_id = headers.get(REQUEST_ID_HEADER, "")
        if not request_id or len(request_id) > _REQUEST_ID_LENGTH_MAX:
            self._id_count += 1
            headers[REQUEST_ID_HEADER] = f"{self._id_prefix}-{self._id_count:x}"
        return Call(request.method, request.raw_path, headers, body)

    async def _read_body(self, request: web.BaseRequest, hold: Callable[[int], None]) -> bytes:
        """Held as it arrives, not as it is announced: who announces much and sends little takes little from others."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                async for chunk in request.content.iter_any():
                    hold(len(chunk))
                    body += chunk
                    if len(body) > self._limits.body_bytes_max:
                        raise RequestError(413, f"the body may have at most {self._limits.body_bytes_max} bytes")
        except TimeoutError as error:
            raise RequestError(408, f"the body did not arrive within {self._limits.body_timeout_s:g} s") from error
        except (web.RequestPayloadError, ClientError, ConnectionError) as error:
            raise RequestError(400, f"the body could not be read: {error}") from error
        return bytes(body)

    async def _forward(self, traffic: ModelTraffic, address: Address, call: Call) -> tuple[str, Answer]:
        """The version (or the baseline) that answered and what it said. Raises RequestError if none did."""
        preferred, only = self._choose(traffic, address, call)
        tried: list[Backend] = []
        lost: Backend | None = None
        failure = RequestError(503, f"no replica of model {address.model!r} is ready; try again")
        refused: tuple[str, Answer] | None = None
        for _ in range(ATTEMPTS_MAX):
            backend = traffic.pick(preferred, tried, only=only)
            fresh = backend is None
            if backend is None:  # nobody else: perhaps only the pooled connection was dead
                backend, lost = lost, None
            if backend is None:
                break
            tried.append(backend)
            is_champion = backend.version == traffic.champion
            outcome = await self._attempt(traffic, backend, address, call, is_champion=is_champion, fresh=fresh)
            if isinstance(outcome, Answer):
                if _is_final(outcome.status, is_champion=is_champion, is_feedback=address.is_feedback):
                    return backend.version, outcome
                refused = backend.version, outcome
            else:
                failure = _as_error(outcome, address.model, traffic.route.version_of(backend.version))
                if outcome.kind == "timeout" and is_champion and not address.is_feedback:
                    break
                lost = backend if outcome.kind == "lost" and not fresh else None
            passed_over = isinstance(outcome, Unanswered) and outcome.kind != "timeout"
            if not passed_over and not only and traffic.champion is not None:
                preferred = traffic.champion
        if refused is not None:
            return refused
        raise failure

    def _choose(self, traffic: ModelTraffic, address: Address, call: Call) -> tuple[str, bool]:
        """The version (or the baseline) that should answer, and whether no other may."""
        route = traffic.route
        if traffic.champion is None:
            raise RequestError(503, f"no version of model {address.model!r} serves yet; try again")
        if address.version is not None:
            if address.version not in route.weights:
                serving = ", ".join(sorted(route.weights, key=int))
                raise RequestError(
                    404, f"version {address.version!r} of model {address.model!r} does not serve; serving: {serving}"
                )
            return address.version, True
        if address.is_feedback:
            return traffic.champion, False
        key = call.headers.get(KEY_HEADER) or call.headers[REQUEST_ID_HEADER]
        return route.choose(key), False

    async def _attempt(
        self, traffic: ModelTraffic, backend: Backend, address: Address, call: Call, *, is_champion: bool, fresh: bool
    ) -> Answer | Unanswered:
        """One exchange, counted; failures are values because the next attempt depends on them."""
        started = time.perf_counter()
        outcome: Answer | Unanswered
        timeout_s = self._limits.timeout_s if is_champion else self._limits.challenger_timeout_s
        with traffic.occupying(backend) as stats:
            try:
                outcome = await self._upstream.exchange(backend.url, call, timeout_s=timeout_s, fresh=fresh)
                backend.suspect_until = 0.0
            except Unanswered as failure:
                backend.suspect_until = time.monotonic() + SUSPECT_S
                outcome = failure
            if address.predicts:
                stats.requests += 1
                stats.errors += isinstance(outcome, Unanswered) or outcome.status >= 500
                stats.latencies_ms.append((time.perf_counter() - started) * 1e3)
        return outcome

    def _mirror(self, traffic: ModelTraffic) -> Mirror:
        mirror = self._mirrors.get(traffic.route.model)
        if mirror is None or mirror.traffic is not traffic:
            mirror = self._mirrors[traffic.route.model] = Mirror(traffic, self._upstream, self._metrics)
        return mirror


def _is_final(status: int, *, is_champion: bool, is_feedback: bool) -> bool:
    if status < 500:
        return True
    return is_champion and not is_feedback and status != 503


def _as_error(failure: Unanswered, model: str, version: str) -> RequestError:
    if failure.kind == "timeout":
        return RequestError(504, f"version {version} of model {model!r} did not answer in time")
    return RequestError(
        503, f"version {version} of model {model!r}: connection {failure.kind}; no other replica could answer"
    )


def error_response(status: int, message: str) -> web.Response:
    headers = CIMultiDict({"Retry-After": "1"} if status == 503 else {})
    return web.Response(
        status=status, headers=headers, body=json.dumps({"error": message}).encode(), content_type="application/json"
    )
