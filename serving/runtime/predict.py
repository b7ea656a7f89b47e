"""`POST /v1/models/NAME:predict`: rows as JSON objects, after TensorFlow Serving's REST interface. Shapes and translation only."""

from __future__ import annotations

from typing import Any

import msgspec

from serving.frame import InputError, Row, Schema
from serving.runtime.requests import DECODE_ERRORS, Caller, RequestError, check_rows, decode_error
from serving.runtime.scoring import ScoreAnswer, ScoreRequest


class PredictBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client sends."""

    instances: list[dict[str, Any]]
    ids: list[str] | None = None


_decoder = msgspec.json.Decoder(PredictBody)
_encoder = msgspec.json.Encoder()


def read_predict(body: bytes, caller: Caller, schema: Schema, *, rows_max: int) -> ScoreRequest:
    """The score request in a body. Raises RequestError naming the field, or the feature, value and row."""
    try:
        parsed = _decoder.decode(body)
    except DECODE_ERRORS as error:
        raise decode_error(error) from None
    check_rows(len(parsed.instances), "instances", rows_max)
    try:
        rows: list[Row] = [schema.row(values, i) for i, values in enumerate(parsed.instances)]
    except InputError as error:
        raise RequestError(400, f"instances: {error}") from None
    return ScoreRequest(rows=rows, ids=caller.ids(parsed.ids, len(rows)), role=caller.role, key=caller.key)


def write_predict(request: ScoreRequest, answer: ScoreAnswer, version: int) -> bytes:
    """The body of the answer: `predictions` by the score convention."""
    return _encoder.encode({"predictions": answer.scores.tolist(), "ids": request.ids, "version": version})
