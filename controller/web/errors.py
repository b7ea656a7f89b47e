"""Errors as JSON `{"error", "code"}`: one sentence for a person, one word for a program, never a stack trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import structlog
from litestar import MediaType, Request, Response
from litestar.exceptions import HTTPException, ValidationException

from controller.invariants import InvariantBroken
from controller.overrides import OverrideRefused, StalePreview
from controller.replaying import NotReplayable, UnknownEvent
from controller.service import NotLeading, PolicyRefused, UnknownModel, UnknownReport
from controller.store.port import StoreError
from deployers.target import TargetError

log = structlog.get_logger()

_KNOWN: Mapping[type[Exception], tuple[int, str]] = {
    UnknownModel: (404, "unknown_model"),
    UnknownEvent: (404, "unknown_event"),
    UnknownReport: (404, "unknown_report"),
    NotReplayable: (409, "not_replayable"),
    StalePreview: (409, "stale_preview"),
    OverrideRefused: (409, "refused"),
    PolicyRefused: (422, "invalid_policy"),
    NotLeading: (503, "not_leading"),
    StoreError: (503, "store_unavailable"),
    TargetError: (503, "target_unavailable"),
}
"""Exception → status and code; a subclass before its base."""
_HTTP_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "bad_media_type"}

Handler = Callable[[Request[Any, Any, Any], Any], Response[dict[str, Any]]]


def _answer(status: int, error: str, code: str, **more: Any) -> Response[dict[str, Any]]:
    return Response({"error": error, "code": code, **more}, status_code=status, media_type=MediaType.JSON)


def _known(_request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, Any]]:
    status, code = next(found for kind, found in _KNOWN.items() if isinstance(error, kind))
    more = {"problems": [str(p) for p in error.problems]} if isinstance(error, PolicyRefused) else {}
    return _answer(status, str(error), code, **more)


def _http(_request: Request[Any, Any, Any], error: HTTPException) -> Response[dict[str, Any]]:
    detail = error.detail
    if isinstance(error, ValidationException) and isinstance(error.extra, list):
        parts = [f"{e.get('key', 'request')}: {e.get('message', '')}" for e in error.extra if isinstance(e, dict)]
        detail = "; ".join(parts) or detail
    return _answer(error.status_code, detail, _HTTP_CODES.get(error.status_code, "error"))


def _too_deep(_request: Request[Any, Any, Any], _error: Exception) -> Response[dict[str, Any]]:
    return _answer(400, "the request's JSON is nested too deeply", "bad_request")


def _unexpected(request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, Any]]:
    log.error("request.failed", path=request.url.path, exc_info=error)
    if isinstance(error, InvariantBroken):
        return _answer(500, f"refused, because it would break {error}; this is a bug, please report it", "invariant")
    return _answer(500, "an error in the daemon; its log says more", "internal")


HANDLERS: Mapping[int | type[Exception], Handler] = {
    **dict.fromkeys(_KNOWN, _known),
    HTTPException: _http,
    RecursionError: _too_deep,
    Exception: _unexpected,
}
