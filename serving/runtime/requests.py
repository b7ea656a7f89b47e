"""The errors that a client can get, and what every scoring route reads from the request's headers."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from serving.frame import shown
from serving.runtime.metrics import Role

ID_CHARACTERS_MAX = 256
REQUEST_ID_CHARACTERS_MAX = 200
"""Shorter, because a row's id is the request's with its number."""
DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for a body that is not the JSON it should be."""


class RequestError(Exception):
    """An answer that is not 2xx. The message goes to the client as `{"error": message}`."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """What a request's headers say."""

    role: Role = "live"
    request_id: str = field(default_factory=lambda: secrets.token_hex(16))
    """Given by the router or the client, else made up."""
    key: str | None = None

    def ids(self, given: Sequence[str] | None, rows: int) -> list[str]:
        """One id a row: those given, or the request's id numbered. Raises RequestError."""
        if given is None:
            return [f"{self.request_id}-{i}" for i in range(rows)]
        if len(given) != rows:
            raise RequestError(400, f"ids: must be one an instance, {rows}, but got {len(given)}")
        for i, row_id in enumerate(given):
            check_id(row_id, f"ids[{i}]")
        if len(set(given)) < rows:
            twice = Counter(given).most_common(1)[0][0]
            raise RequestError(400, f"ids: must differ from each other but {shown(twice)} comes more than once")
        return list(given)


def read_caller(headers: Mapping[bytes, bytes]) -> Caller:
    """The caller of a request, from its headers by lower-case name. Raises RequestError."""
    role = headers.get(b"x-ratchet-role", b"live")
    if role not in (b"live", b"shadow"):
        raise RequestError(400, f"header x-ratchet-role: must be live or shadow but got {shown(_text(role))}")
    key = _optional_id(headers, b"x-ratchet-key", ID_CHARACTERS_MAX)
    request_id = _optional_id(headers, b"x-ratchet-request-id", REQUEST_ID_CHARACTERS_MAX)
    spoken: Role = "shadow" if role == b"shadow" else "live"
    if request_id is None:
        return Caller(role=spoken, key=key)
    return Caller(role=spoken, key=key, request_id=request_id)


def _optional_id(headers: Mapping[bytes, bytes], name: bytes, characters_max: int) -> str | None:
    value = headers.get(name)
    return None if value is None else check_id(_text(value), f"header {name.decode()}", characters_max)


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")  # what HTTP says a header is


def check_id(text: str, where: str, characters_max: int = ID_CHARACTERS_MAX) -> str:
    """An id as it may enter the log: 1 to `characters_max` characters, any of Unicode. Raises RequestError."""
    if not 0 < len(text) <= characters_max:
        raise RequestError(400, f"{where}: must have 1 to {characters_max} characters but has {len(text)}")
    return text


def check_rows(rows: int, where: str, rows_max: int) -> None:
    """Refuse no rows, and more than one request may hold. Raises RequestError."""
    if rows == 0:
        raise RequestError(400, f"{where}: must hold at least 1 row but holds none")
    if rows > rows_max:
        raise RequestError(413, f"{where}: may hold at most {rows_max} rows but holds {rows}; send several requests")


def decode_error(error: Exception) -> RequestError:
    """The client's error for a body that msgspec could not read."""
    if isinstance(error, msgspec.ValidationError):
        return RequestError(400, str(error))
    if isinstance(error, RecursionError):
        return RequestError(400, "the body is nested too deeply")
    return RequestError(400, f"the body is not valid JSON: {error}")


def unavailable(message: str) -> RequestError:
    """The error of a replica that cannot take a request right now."""
    return RequestError(503, message, {"retry-after": "1"})
