"""The private side, on a Unix socket that only the owner may open: the controller writes and reads the table here."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

from aiohttp import web

from serving.router.fleet import Fleet, StaleRouteError
from serving.router.metrics import RouterMetrics
from serving.router.storage import save_routes
from serving.router.table import RouteError, parse_route

_BODY_BYTES_MAX = 2**20
log = logging.getLogger("router")


class Admin:
    """`PUT|GET|DELETE /models/NAME`, `GET /models`."""

    def __init__(self, fleet: Fleet, metrics: RouterMetrics, state: Path) -> None:
        self._fleet = fleet
        self._metrics = metrics
        self._state = state
        self._saving = asyncio.Lock()

    def application(self) -> web.Application:
        app = web.Application(client_max_size=_BODY_BYTES_MAX)
        app.router.add_get("/models", self._list)
        app.router.add_get("/models/{model}", self._get)
        app.router.add_put("/models/{model}", self._put)
        app.router.add_delete("/models/{model}", self._delete)
        return app

    async def _list(self, _request: web.Request) -> web.Response:
        return web.json_response({name: traffic.to_json() for name, traffic in self._fleet.models.items()})

    async def _get(self, request: web.Request) -> web.Response:
        traffic = self._fleet.models.get(request.match_info["model"])
        if traffic is None:
            return _refuse(404, f"no model {request.match_info['model']!r}")
        return web.json_response(traffic.to_json())

    async def _put(self, request: web.Request) -> web.Response:
        try:
            route = parse_route(request.match_info["model"], json.loads(await request.read()))
            for version in self._fleet.apply(route):
                self._metrics.forget(route.model, version)
        except StaleRouteError as error:
            return _refuse(409, str(error))
        except RouteError as error:
            return _refuse(400, "the table breaks rules", errors=error.errors)
        except ValueError as error:
            return _refuse(400, f"the body is not JSON: {error}")
        log.info(
            "%s: generation %d: weights %s, shadow %s", route.model, route.generation, dict(route.weights), route.shadow
        )
        return web.json_response({**route.to_json(), "persisted": await self._save()})

    async def _delete(self, request: web.Request) -> web.Response:
        model, epoch = request.match_info["model"], request.query.get("epoch", "")
        if not epoch.isdecimal():
            return _refuse(400, f"epoch: must be a whole number, 0 or more, but got {epoch!r}")
        try:
            if not self._fleet.remove(model, int(epoch)):
                return _refuse(404, f"no model {model!r}")
        except StaleRouteError as error:
            return _refuse(409, str(error))
        self._metrics.forget(model)
        log.info("%s: removed", model)
        return web.json_response({"persisted": await self._save()})

    async def _save(self) -> bool:
        """Write the table down. A full disk must not stop a rollback, so traffic has moved already and False is only reported."""
        async with self._saving:
            routes = [traffic.route for traffic in self._fleet.models.values()]
            try:
                await asyncio.to_thread(save_routes, self._state, routes)
            except OSError as error:
                log.error(
                    "table %s not written (%s); it is in force, but a restart would bring the older one",
                    self._state,
                    error,
                )
                return False
        return True


def _refuse(status: int, message: str, **more: Any) -> web.Response:
    return web.json_response({"error": message, **more}, status=status)
