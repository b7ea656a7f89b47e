"""Puts the daemon's web application together: guard, API, metrics, health, dashboard."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

from litestar import Litestar, MediaType, Response, get
from litestar.config.app import AppConfig
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from controller.service import Service
from controller.telemetry.metrics import REGISTRY
from controller.web.api import ROUTER
from controller.web.dashboard import PAGES
from controller.web.errors import HANDLERS
from controller.web.guard import Guard
from controller.web.hooks import HOOKS, NO_HOOKS, Hooks

BODY_BYTES_MAX = 8 * 2**20
LATE_AFTER_S = 60.0
"""A loop that has not ticked for so long is stuck."""


class Ticking(Protocol):
    last_tick: float
    """Monotonic time of the last tick; 0 before the first."""
    store_answers: bool
    """Whether the store answered it."""


def _never() -> bool:
    return False


def build_app(
    service: Service, loop: Ticking, token: str, stands_by: Callable[[], bool] = _never, hooks: Hooks = NO_HOOKS
) -> Guard:
    """The ASGI application; `token` opens all but the guard's open paths. The guard stands before the routing, so that not even the
    existence of a path is told to strangers. `stands_by`: whether this daemon waits for its turn, without a loop."""

    @get("/metrics", sync_to_thread=False, include_in_schema=False)
    def metrics() -> Response[bytes]:
        return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)

    @get("/healthz", sync_to_thread=False, include_in_schema=False)
    def healthz() -> Response[dict[str, Any]]:
        if stands_by():
            return Response({"ok": True, "role": "standby"}, media_type=MediaType.JSON)
        age_s = time.monotonic() - loop.last_tick
        healthy = loop.last_tick > 0 and age_s < LATE_AFTER_S
        said = {"ok": healthy, "role": "leader", "last_tick_age_s": round(age_s, 1) if loop.last_tick else None}
        said["store"] = "answers" if loop.store_answers else "away"
        return Response(said, status_code=200 if healthy else 503, media_type=MediaType.JSON)

    @get("/readyz", sync_to_thread=False, include_in_schema=False)
    def readyz() -> Response[dict[str, Any]]:
        leads = service.leads()
        return Response({"ok": leads, "leads": leads}, status_code=200 if leads else 503, media_type=MediaType.JSON)

    config = AppConfig(
        route_handlers=[ROUTER, metrics, healthz, readyz, *HOOKS, *PAGES],
        dependencies={
            "service": Provide(lambda: service, sync_to_thread=False),
            "hooks": Provide(lambda: hooks, sync_to_thread=False),
        },
        exception_handlers={**HANDLERS},
        request_max_body_size=BODY_BYTES_MAX,
        openapi_config=OpenAPIConfig(
            title="Ratchet", version=_release(), path="/api/v1/schema", use_handler_docstrings=True,
            render_plugins=[JsonRenderPlugin(path="/")],
        ),
    )  # fmt: skip
    return Guard(Litestar.from_config(config), token=token)


def _release() -> str:
    try:
        return version("ratchetd")
    except PackageNotFoundError:
        return "0"
