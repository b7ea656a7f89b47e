"""The HTTP face of one worker: routes, bounds and errors. What a request means is in the modules it calls."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import msgspec
from litestar import Litestar, Request, Response, get, post
from litestar.exceptions import HTTPException

from serving.runtime.feedback import read_feedback
from serving.runtime.inference import model_metadata, read_infer, write_infer
from serving.runtime.metrics import CONTENT_TYPE, Route
from serving.runtime.predict import read_predict, write_predict
from serving.runtime.requests import RequestError, read_caller
from serving.runtime.scoring import ScoreAnswer
from serving.runtime.worker import Worker

logger = logging.getLogger("serving.app")
HttpRequest: TypeAlias = Request[Any, Any, Any]
Answer: TypeAlias = Response[bytes]
_Endpoint: TypeAlias = Callable[[HttpRequest], Awaitable[Answer]]
_encode = msgspec.json.Encoder().encode


def make_app(worker: Worker) -> Litestar:
    """The application of one worker, which starts and stops with it."""

    async def started() -> None:
        worker.start()

    async def stopped() -> None:
        worker.close()

    return Litestar(
        route_handlers=[*_own_routes(worker), *_inference_routes(worker), *_health_routes(worker)],
        on_startup=[started],
        on_shutdown=[stopped],
        request_max_body_size=worker.settings.body_bytes_max,
        exception_handlers={RequestError: _refused, HTTPException: _not_served, Exception: _failed},
        openapi_config=None,
        logging_config=None,
    )


def _own_routes(worker: Worker) -> list[Any]:
    """Prediction and feedback in the manner of TensorFlow Serving."""
    settings = worker.settings

    async def predict(request: HttpRequest) -> Answer:
        caller = read_caller(dict(request.scope["headers"]))
        asked = read_predict(await request.body(), caller, worker.model.schema, rows_max=settings.request_rows_max)
        answer = await worker.score(asked)
        return _answer(write_predict(asked, answer, settings.version), answer)

    async def feedback(request: HttpRequest) -> Answer:
        labels = read_feedback(await request.body(), rows_max=settings.request_rows_max)
        return _json({"accepted": await worker.take_labels(labels)})

    return [
        post(f"/v1/models/{settings.name}:predict", status_code=200)(_counted(worker, "predict", predict)),
        post(f"/v1/models/{settings.name}/feedback", status_code=200)(_counted(worker, "feedback", feedback)),
    ]


def _inference_routes(worker: Worker) -> list[Any]:
    """The Open Inference Protocol's model routes."""
    settings, manifest = worker.settings, worker.model.manifest
    base = f"/v2/models/{settings.name}"
    paths = [base, f"{base}/versions/{settings.version}"]

    async def infer(request: HttpRequest) -> Answer:
        caller = read_caller(dict(request.scope["headers"]))
        asked = read_infer(
            await request.body(), caller, worker.model.schema, manifest, rows_max=settings.request_rows_max
        )
        answer = await worker.score(asked.request)
        return _answer(write_infer(asked, answer, manifest, settings.name, settings.version), answer)

    @get(paths)
    async def metadata() -> Answer:
        return _json(model_metadata(manifest, settings.name, settings.version))

    @get([f"{path}/ready" for path in paths])
    async def model_ready() -> Answer:
        ready = worker.ready()
        return _json({"name": settings.name, "ready": ready}, 200 if ready else 503)

    route = post([f"{path}/infer" for path in paths], status_code=200)
    return [route(_counted(worker, "infer", infer)), metadata, model_ready]


def _health_routes(worker: Worker) -> list[Any]:
    """What asks for no model by name: the server's health, metadata and metrics."""

    @get("/v2")
    async def server() -> Answer:
        return _json({"name": "ratchet", "version": "1", "extensions": []})

    @get("/v2/health/live")
    async def live() -> Answer:
        return _json({"live": True})

    @get("/v2/health/ready")
    async def ready() -> Answer:
        is_ready = worker.ready()
        return _json({"ready": is_ready}, 200 if is_ready else 503)

    @get("/metrics")
    async def metrics() -> Answer:
        return Response(worker.metrics.render(), headers={"content-type": CONTENT_TYPE})

    return [server, live, ready, metrics]


def _counted(worker: Worker, route: Route, endpoint: _Endpoint) -> _Endpoint:
    """`endpoint`, counted and timed under `route`; what it refuses becomes an answer."""

    async def handler(request: HttpRequest) -> Answer:
        began = time.perf_counter()
        try:
            answer = await endpoint(request)
        except Exception as error:  # noqa: BLE001 - counted here, and no client ever sees a stack trace
            answer = _answer_error(request, error)
        worker.metrics.answered(route, answer.status_code or 200, time.perf_counter() - began)
        return answer

    functools.update_wrapper(handler, endpoint, assigned=("__name__", "__qualname__"))
    return handler


def _answer_error(request: HttpRequest, error: Exception) -> Answer:
    if isinstance(error, RequestError):
        return _refused(request, error)
    return _not_served(request, error) if isinstance(error, HTTPException) else _failed(request, error)


def _refused(_: HttpRequest, error: RequestError) -> Answer:
    return _json({"error": str(error)}, error.status, error.headers)


def _not_served(request: HttpRequest, error: HTTPException) -> Answer:
    """What Litestar itself refuses: no such route (404), wrong method (405), body too large (413)."""
    path = request.url.path
    said = {
        404: f"there is no {path} here; there are NAME:predict and NAME/feedback under /v1/models, NAME/infer under /v2/models",
        405: f"{path} does not answer {request.method}",
    }
    message = said.get(error.status_code, error.detail)
    return _json({"error": message}, error.status_code, error.headers or {})


def _failed(request: HttpRequest, error: Exception) -> Answer:
    logger.error("request.failed %s", request.url.path, exc_info=error)
    return _json({"error": "the replica failed on this request; its log says why"}, 500)


def _answer(body: bytes, answer: ScoreAnswer) -> Answer:
    headers = {} if answer.logged else {"x-ratchet-unlogged": "true"}
    return Response(body, media_type="application/json", headers=headers)


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    return Response(_encode(value), media_type="application/json", status_code=status, headers=dict(headers or {}))
