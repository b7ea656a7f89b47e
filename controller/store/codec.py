"""Records as JSON text, each in an envelope that says which schema wrote it: `{"schema": 1, "value": {…}}`.

Reading checks the envelope, so that an older release never guesses at what a newer one meant. NaN and the infinities survive (as the
constants that Python's own `json` reads and writes): a score that came out as NaN stays unknown and does not turn into a missing one.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from controller.state import SCHEMA
from controller.store.port import CorruptStoreError, StoreError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Envelope(Generic[T]):
    schema: int
    value: T


@cache
def _adapter(kind: Hashable) -> TypeAdapter[_Envelope[Any]]:
    return TypeAdapter(_Envelope[kind])  # type: ignore[valid-type]  # generic at run time, once a record type


def encode(value: object) -> str:
    """The value (a record of `controller.state`, or plain JSON) as JSON text.

    Raises StoreError if something inside has no JSON form."""
    try:
        return to_json({"schema": SCHEMA, "value": value}, inf_nan_mode="constants").decode()
    except (PydanticSerializationError, ValueError) as exc:
        raise StoreError(f"{type(value).__name__} cannot be written: {exc}; give plain JSON values") from exc


def decode(kind: type[T], text: str, *, where: str) -> T:
    """The record of type `kind` that `encode` wrote. `where` names its place (file and row) in messages.

    Raises CorruptStoreError if the text is damaged or of a newer schema than this release knows."""
    try:
        envelope = _adapter(cast(Hashable, kind)).validate_json(text)
    except ValidationError as exc:
        _refuse_newer(_written_schema(text), where)
        raise CorruptStoreError(
            f"{where}: not a readable {kind.__name__} ({_first_error(exc)}); restore the database from a backup"
        ) from exc
    _refuse_newer(envelope.schema, where)
    return cast(T, envelope.value)


def _refuse_newer(schema: int, where: str) -> None:
    if schema > SCHEMA:
        raise CorruptStoreError(
            f"{where}: written by a newer release (schema {schema}, this one reads up to {SCHEMA}); install that release"
        )


def _written_schema(text: str) -> int:
    """The schema that an envelope claims; 0 if the text is not even an envelope."""
    try:
        schema = from_json(text)["schema"]
    except (ValueError, TypeError, KeyError):
        return 0
    return schema if isinstance(schema, int) else 0


def _first_error(exc: ValidationError) -> str:
    error = exc.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in error["loc"])
    return f"{field}: {error['msg']}" if field else error["msg"]
