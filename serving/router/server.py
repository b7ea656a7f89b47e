"""The router as a process: sockets, start, and an end that fails no request."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from serving.router.admin import Admin
from serving.router.fleet import Fleet
from serving.router.metrics import RouterMetrics
from serving.router.proxy import Proxy, ProxyLimits
from serving.router.storage import load_routes, write_atomic
from serving.router.upstream import Upstream

_BACKLOG = 1024
log = logging.getLogger("router")


class CannotStartError(Exception):
    """Another process holds the port or the admin socket, or a path cannot be used. The message is one line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterOptions:
    host: str
    port: int
    admin_socket: Path
    state: Path
    announce: Path | None = None
    drain_s: float = 15.0
    """On SIGTERM, how long requests in flight may take to finish."""
    limits: ProxyLimits = field(default_factory=ProxyLimits)


async def serve(options: RouterOptions) -> None:
    """Route until SIGTERM or SIGINT. Raises CannotStartError."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with running(options) as port:
        log.info("serving on http://%s:%d, admin on %s", options.host, port, options.admin_socket)
        await stopping.wait()
        log.info("stopping: requests in flight may take %g s more", options.drain_s)


@contextlib.asynccontextmanager
async def running(options: RouterOptions) -> AsyncIterator[int]:
    """A router that serves while the block runs; gives its port. Raises CannotStartError."""
    public = _listen(options.host, options.port)
    with public, _only_one(options.admin_socket), _admin_listener(options.admin_socket) as private:
        fleet, metrics, upstream = Fleet(), RouterMetrics(), Upstream()
        for route in load_routes(options.state):
            fleet.apply(route)
        proxy = Proxy(fleet, upstream, metrics, options.limits)
        public_runner = web.ServerRunner(_public_server(proxy, metrics), shutdown_timeout=options.drain_s)
        admin_runner = web.AppRunner(
            Admin(fleet, metrics, options.state).application(), access_log=None, shutdown_timeout=1.0
        )
        try:
            await public_runner.setup()
            await admin_runner.setup()
            await web.SockSite(admin_runner, private).start()
            await web.SockSite(public_runner, public, backlog=_BACKLOG).start()
            port = int(public.getsockname()[1])
            if options.announce is not None:
                write_atomic(options.announce, json.dumps({"port": port, "pid": os.getpid()}))
            yield port
        finally:
            await public_runner.cleanup()
            await proxy.close()
            await upstream.close()
            await admin_runner.cleanup()


def _public_server(proxy: Proxy, metrics: RouterMetrics) -> web.Server:
    async def handle(request: web.BaseRequest) -> web.Response:
        path = request.raw_path
        if path == "/metrics":
            body = await asyncio.to_thread(generate_latest, metrics.registry)
            return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})
        if path in ("/healthz", "/v2/health/live", "/v2/health/ready"):
            return web.json_response({"status": "ok", "live": True, "ready": True})
        return await proxy.handle(request)

    return web.Server(handle, access_log=None, auto_decompress=False)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise CannotStartError(
            f"cannot listen on {host}:{port}: {error}; give another --port or stop what uses it"
        ) from error


@contextlib.contextmanager
def _only_one(admin_socket: Path) -> Iterator[None]:
    """Hold the lock beside the admin socket, so that a second router cannot take the socket away from the first."""
    path = admin_socket.with_name(admin_socket.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotStartError(f"cannot use {path}: {error}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise CannotStartError(f"another router already holds {admin_socket}; stop it first") from error
    try:
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _admin_listener(path: Path) -> Iterator[socket.socket]:
    """A Unix socket of mode 0600. Bound through its folder's descriptor, because a socket's path may have only 107 bytes."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    mask = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
    except OSError as error:
        listener.close()
        raise CannotStartError(f"cannot bind the admin socket {path}: {error}") from error
    finally:
        os.umask(mask)
        os.close(folder)
    try:
        yield listener
    finally:
        listener.close()
        path.unlink(missing_ok=True)
