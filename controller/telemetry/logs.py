"""Structured logs: one line an event, `room.past_participle` plus keys, secrets masked."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal

import structlog

_INTERNAL = ("_record", "_from_structlog")
_SECRET_KEY = re.compile(r"(token|secret|password|passwd|authorization|api_?key|credential)", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://[^\s:/@]*):[^\s@/]+@")
_PARAMETER = re.compile(r"(?P<name>[?&;](?:password|passwd|pwd|token|secret|api_?key)=)[^\s&;'\"]+", re.IGNORECASE)
_BEARER = re.compile(r"\b(Bearer|Basic) +[A-Za-z0-9._~+/=-]{8,}")


def mask(value: object) -> object:
    """Passwords inside URLs, tokens in headers, and what stands under a telling key, masked however deep it lies.

    >>> mask("postgresql://ratchet:hunter2@db/x")
    'postgresql://ratchet:***@db/x'
    >>> mask({"headers": {"Authorization": "x"}, "note": ["Bearer abcdefghij"]})
    {'headers': {'Authorization': '***'}, 'note': ['Bearer ***']}
    """
    match value:
        case str():
            value = _PARAMETER.sub(r"\g<name>***", _URL_PASSWORD.sub(r"\g<scheme>:***@", value))
            return _BEARER.sub(r"\1 ***", value)
        case Mapping():
            return {k: "***" if _SECRET_KEY.search(str(k)) and v else mask(v) for k, v in value.items()}
        case list() | tuple():
            return [mask(item) for item in value]
        case BaseException():
            return mask(str(value))
        case _:
            return value


def _mask_secrets(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    kept = {k: v for k, v in event.items() if k in _INTERNAL}  # structlog's own, for the standard library's records
    masked = mask({k: v for k, v in event.items() if k not in _INTERNAL})
    assert isinstance(masked, dict)
    return {**masked, **kept}


def configure(level: str = "info", form: Literal["json", "console"] = "console") -> None:
    """Send all logs, ours and the libraries', to standard error."""
    number = logging.getLevelNamesMapping()[level.upper()]
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _mask_secrets,
    ]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=[
        structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer,
    ], foreign_pre_chain=shared))  # fmt: skip
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[handler], force=True)
