"""Who may ask what: the checks that stand before every handler.

A page in a browser on this machine can send requests to loopback addresses, under any name that its owner's DNS gives them. So on
loopback only loopback's own names are accepted as Host; and everything needs the token, which no other site can read, save for the few
paths that are listed here. It is the open paths that are listed and not the closed ones, because the router behind takes more than one
spelling of a path for the same: `//api/v1/models` is `/api/v1/models` to it.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from typing import TYPE_CHECKING

from litestar.enums import ScopeType
from litestar.response.base import ASGIResponse
from litestar.serialization import encode_json

if TYPE_CHECKING:
    from litestar.types import ASGIApp, Message, Receive, Scope, Send

OPEN_PATHS = frozenset(
    {"/", "/dashboard.js", "/dashboard.css", "/healthz", "/readyz", "/metrics", "/api/v1/schema", "/api/v1/schema/"}
)
"""For everybody, in just this spelling."""
OWN_KEYS = frozenset({"/hooks/alertmanager", "/hooks/slack"})
"""They ask for a key of their own (`controller.web.hooks`): who has it may not have the token."""
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


class Guard:
    """ASGI application round another: Host check, bearer token, and headers that keep browsers strict."""

    def __init__(self, app: ASGIApp, *, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        refusal = self._refusal(scope["path"], headers, scope.get("server"))
        if refusal is not None:
            status, error, code = refusal
            extra = {"www-authenticate": 'Bearer realm="ratchet"'} if status == 401 else {}
            await _json(status, error, code, extra)(scope, receive, _with_headers(send))
            return
        await self._app(scope, receive, _with_headers(send))

    def _refusal(
        self, path: str, headers: Mapping[str, str], server: tuple[str, int | None] | None
    ) -> tuple[int, str, str] | None:
        host = headers.get("host", "")
        if server is not None and is_loopback(server[0]) and not is_loopback_name(host):
            return 403, f"Host must be a name of this machine, such as 127.0.0.1, but got {host[:100]!r}", "bad_host"
        if path not in OPEN_PATHS | OWN_KEYS and not self._is_authorised(headers.get("authorization", "")):
            return (
                401,
                "needs 'Authorization: Bearer TOKEN'; the token is in run/token of the state folder",
                "unauthorized",
            )
        return None

    def _is_authorised(self, header: str) -> bool:
        scheme, _, given = header.partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token)


def is_loopback(address: str) -> bool:
    """
    >>> is_loopback("127.0.0.1"), is_loopback("10.0.0.1")
    (True, False)
    """
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def is_loopback_name(host: str) -> bool:
    """Of a Host header, with or without a port.

    >>> is_loopback_name("localhost:8640"), is_loopback_name("[::1]:80"), is_loopback_name("evil.example")
    (True, True, False)
    """
    name, _, port = host.rpartition(":")
    bare = name if port.isdigit() and name else host
    return bare.lower() in _LOOPBACK_NAMES


def _json(status: int, error: str, code: str, headers: Mapping[str, str]) -> ASGIResponse:
    return ASGIResponse(
        body=encode_json({"error": error, "code": code}), status_code=status, media_type="application/json",
        headers=dict(headers),
    )  # fmt: skip


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message["headers"]}
            added = [(k.encode(), v.encode()) for k, v in _HEADERS.items() if k.encode() not in present]
            message["headers"] = [*message["headers"], *added]
        await send(message)

    return wrapped
