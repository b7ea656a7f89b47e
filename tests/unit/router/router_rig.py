"""A router inside the test's own event loop, with stand-ins for replicas whose behaviour a test sets."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from serving.router.proxy import ProxyLimits
from serving.router.server import RouterOptions, running


@dataclass
class Replica:
    """Answers every request as told and remembers what came."""

    status: int = 200
    delay_s: float = 0.0
    body: bytes = b'{"predictions": [0.5]}'
    die: bool = False
    """Close the connection instead of answering."""
    gate: asyncio.Event | None = None
    """Answer only once it is set."""
    url: str = ""
    seen: list[tuple[str, Mapping[str, str], bytes]] = field(default_factory=list)
    """(raw path, headers, body)"""
    _runner: web.ServerRunner | None = None

    async def handle(self, request: web.BaseRequest) -> web.Response:
        body = await request.read()
        self.seen.append((request.raw_path, {k.lower(): v for k, v in request.headers.items()}, body))
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(self.delay_s)
        if self.die:
            assert request.transport is not None
            request.transport.abort()
        return web.Response(status=self.status, body=self.body, content_type="application/json")

    async def stop(self) -> None:
        """From now on connections are refused."""
        assert self._runner is not None
        await self._runner.cleanup()

    @property
    def roles(self) -> list[str | None]:
        return [headers.get("x-ratchet-role") for _, headers, _ in self.seen]


@dataclass
class Rig:
    folder: Path
    session: aiohttp.ClientSession
    limits: ProxyLimits
    port: int = 0
    replicas: list[Replica] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def replica(self, **behaviour: Any) -> Replica:
        replica = Replica(**behaviour)
        replica._runner = web.ServerRunner(web.Server(replica.handle, access_log=None), shutdown_timeout=0.05)
        await replica._runner.setup()
        site = web.TCPSite(replica._runner, "127.0.0.1", 0)
        await site.start()
        replica.url = f"http://127.0.0.1:{replica._runner.addresses[0][1]}"
        self.replicas.append(replica)
        return replica

    async def admin(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connector = aiohttp.UnixConnector(str(self.folder / "admin.sock"))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(method, f"http://router{path}", data=data) as answer,
        ):
            return answer.status, json.loads(await answer.read())

    async def route(
        self,
        backends: Mapping[str, list[Replica]],
        weights: Mapping[str, float],
        shadow: str | None = None,
        generation: int = 1,
        epoch: int = 1,
    ) -> None:
        table = {
            "epoch": epoch,
            "generation": generation,
            "backends": {version: [r.url for r in replicas] for version, replicas in backends.items()},
            "weights": weights,
            "shadow": shadow,
        }
        status, answer = await self.admin("PUT", "/models/m", table)
        assert (status, answer["persisted"]) == (200, True), answer

    async def stats(self) -> Any:
        return (await self.admin("GET", "/models/m"))[1]["stats"]

    async def ask(
        self, path: str = "/v1/models/m:predict", method: str = "POST", body: bytes = b"{}", **headers: str
    ) -> tuple[int, Mapping[str, str], Any]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.request(method, self.url + path, data=body, headers=named) as answer:
            return answer.status, answer.headers, json.loads(await answer.read())


def with_router(folder: Path, scenario: Callable[[Rig], Awaitable[None]], limits: ProxyLimits | None = None) -> None:
    """Run a scenario against a router whose files are in `folder`."""

    async def run() -> None:
        async with started(folder, limits) as rig:
            await asyncio.wait_for(scenario(rig), 30)

    asyncio.run(run())


@contextlib.asynccontextmanager
async def started(folder: Path, limits: ProxyLimits | None = None) -> AsyncIterator[Rig]:
    limits = limits or ProxyLimits()
    options = RouterOptions(
        host="127.0.0.1", port=0, admin_socket=folder / "admin.sock", state=folder / "state.json", limits=limits
    )
    async with aiohttp.ClientSession() as session:
        rig = Rig(folder, session, limits)
        async with running(options) as port:
            rig.port = port
            try:
                yield rig
            finally:
                for replica in rig.replicas:
                    await replica.stop()


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait for a condition of the event loop's own making."""
    for _ in range(1000):
        found = condition()
        if (await found) if isinstance(found, Awaitable) else found:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{what}: not within 10 s")
