"""Mirroring: copies of live requests to a version whose answers are thrown away.

A copy is offered after the live answer has been received, is never waited for, and is dropped and counted when too many wait already. So a
shadow version that is slow, dead or wrong cannot slow or fail a live answer.
"""

from __future__ import annotations

import asyncio
from collections import deque

from multidict import CIMultiDict

from serving.router.fleet import ModelTraffic
from serving.router.metrics import RouterMetrics
from serving.router.upstream import Call, Unanswered, Upstream

CONCURRENCY_MAX = 4
QUEUE_MAX = 128
QUEUE_BYTES_MAX = 32 * 2**20
TIMEOUT_S = 5.0
ROLE_HEADER = "x-ratchet-role"


class Mirror:
    """The bounded queue of one model's copies and the tasks that send them."""

    def __init__(self, traffic: ModelTraffic, upstream: Upstream, metrics: RouterMetrics) -> None:
        self.traffic = traffic
        self._upstream = upstream
        self._metrics = metrics
        self._waiting: deque[tuple[str, Call]] = deque()
        self._waiting_bytes = 0
        self._senders: set[asyncio.Task[None]] = set()

    def offer(self, call: Call) -> None:
        """Queue a copy for the model's shadow version, if it has one and there is room. Never waits, never raises."""
        version = self.traffic.route.shadow
        if version is None:
            return
        if len(self._waiting) >= QUEUE_MAX or self._waiting_bytes + len(call.body) > QUEUE_BYTES_MAX:
            self._count(version, "dropped")
            return
        self._waiting.append((version, call))
        self._waiting_bytes += len(call.body)
        if len(self._senders) < CONCURRENCY_MAX:
            sender = asyncio.create_task(self._send_waiting())
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)

    async def close(self) -> None:
        self._waiting.clear()
        for sender in list(self._senders):
            sender.cancel()
        await asyncio.gather(*self._senders, return_exceptions=True)

    async def _send_waiting(self) -> None:
        while self._waiting:
            version, call = self._waiting.popleft()
            self._waiting_bytes -= len(call.body)
            self._count(version, await self._send(version, call))

    async def _send(self, version: str, call: Call) -> str:
        backend = self.traffic.pick(version, (), only=True) if self.traffic.route.shadow == version else None
        if backend is None:
            return "dropped"
        headers = CIMultiDict(call.headers)
        headers[ROLE_HEADER] = "shadow"
        copy = Call(call.method, call.path, headers, call.body)
        with self.traffic.occupying(backend) as stats:
            stats.shadow_requests += 1
            try:
                status = await self._upstream.mirror(backend.url, copy, timeout_s=TIMEOUT_S)
                result = "ok" if status < 400 else "error"
            except Unanswered as failure:
                result = "timeout" if failure.kind == "timeout" else "error"
            stats.shadow_errors += result != "ok"
        return result

    def _count(self, version: str, result: str) -> None:
        self._metrics.shadow.labels(self.traffic.route.model, version, result).inc()
        if result == "dropped" and version in self.traffic.stats:
            self.traffic.stats[version].shadow_dropped += 1
