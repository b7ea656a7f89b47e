"""The Open Inference Protocol, version 2 (REST): shapes and translation only.

Source: https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md. One input tensor a feature, or a single
2-D tensor of numbers in feature order; outputs `scores` and, for classifiers, `label`. The answer's `id` is the request's, else made up;
feedback on row i goes to `<id>-<i>`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from serving.frame import InputError, Row, Schema, shown
from serving.manifest import ClassValue, FeatureKind, Manifest
from serving.runtime.requests import (
    DECODE_ERRORS,
    REQUEST_ID_CHARACTERS_MAX,
    Caller,
    RequestError,
    check_id,
    check_rows,
    decode_error,
)
from serving.runtime.scoring import ScoreAnswer, ScoreRequest

_DATATYPE: dict[FeatureKind, str] = {"numeric": "FP64", "boolean": "BOOL", "categorical": "BYTES", "text": "BYTES"}
_FLOATS = ("FP64", "FP32", "FP16")
_INTEGERS = ("INT64", "INT32", "INT16", "INT8", "UINT64", "UINT32", "UINT16", "UINT8")
_ACCEPTED: dict[FeatureKind, tuple[str, ...]] = {
    "numeric": _FLOATS + _INTEGERS,
    "boolean": ("BOOL", *_FLOATS, *_INTEGERS),
    "categorical": ("BYTES",),
    "text": ("BYTES",),
}


class InputTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `request_input`; `data` is row-major, nested or flat."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any]
    parameters: dict[str, Any] = {}


class RequestedOutput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `request_output`."""

    name: str
    parameters: dict[str, Any] = {}


class InferBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An `inference_request`."""

    inputs: list[InputTensor]
    id: str | None = None
    parameters: dict[str, Any] = {}
    outputs: list[RequestedOutput] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class InferRequest:
    """A request to score, and what its answer must carry."""

    request: ScoreRequest
    request_id: str
    outputs: tuple[str, ...]


_decoder = msgspec.json.Decoder(InferBody)
_encoder = msgspec.json.Encoder()


def read_infer(body: bytes, caller: Caller, schema: Schema, manifest: Manifest, *, rows_max: int) -> InferRequest:
    """The score request in a body. Raises RequestError naming the input, the field and the value."""
    try:
        parsed = _decoder.decode(body)
    except DECODE_ERRORS as error:
        raise decode_error(error) from None
    if not parsed.inputs:
        raise RequestError(400, "inputs: must hold at least one tensor but holds none")
    count = _row_count(parsed.inputs)
    check_rows(count, "inputs", rows_max)
    rows = _rows(parsed.inputs, count, schema)
    if parsed.id is not None:
        caller = dataclasses.replace(caller, request_id=check_id(parsed.id, "id", REQUEST_ID_CHARACTERS_MAX))
    request = ScoreRequest(rows=rows, ids=caller.ids(None, count), role=caller.role, key=caller.key)
    return InferRequest(request=request, request_id=caller.request_id, outputs=_outputs(parsed.outputs, manifest))


def write_infer(asked: InferRequest, answer: ScoreAnswer, manifest: Manifest, model: str, version: int) -> bytes:
    """An `inference_response`."""
    tensors: dict[str, dict[str, Any]] = {
        "scores": {
            "name": "scores",
            "shape": list(answer.scores.shape),
            "datatype": "FP64",
            "data": answer.scores.ravel().tolist(),
        }
    }
    if answer.labels is not None:
        assert manifest.classes is not None
        datatype, values = class_tensor(manifest.classes)
        data = [values[i] for i in answer.labels]
        tensors["label"] = {"name": "label", "shape": [len(data)], "datatype": datatype, "data": data}
    outputs = [tensors[name] for name in asked.outputs]
    return _encoder.encode(
        {"model_name": model, "model_version": str(version), "id": asked.request_id, "outputs": outputs}
    )


def model_metadata(manifest: Manifest, model: str, version: int) -> dict[str, Any]:
    """A `metadata_model_response`."""
    rows = -1
    outputs = [
        {"name": "scores", "datatype": "FP64", "shape": [rows] if manifest.width is None else [rows, manifest.width]}
    ]
    if manifest.classes is not None:
        outputs.append({"name": "label", "datatype": class_tensor(manifest.classes)[0], "shape": [rows]})
    return {
        "name": model,
        "versions": [str(version)],
        "platform": f"ratchet_{type(manifest.predictor).__name__.removesuffix('Predictor').lower()}",
        "inputs": [{"name": f.name, "datatype": _DATATYPE[f.kind], "shape": [rows]} for f in manifest.features],
        "outputs": outputs,
    }


def class_tensor(classes: Sequence[ClassValue]) -> tuple[str, list[ClassValue]]:
    """Datatype of the `label` tensor and what it holds for each class: of one type, strings where classes are mixed."""
    kinds = {type(value) for value in classes}
    if kinds == {bool}:
        return "BOOL", list(classes)
    if kinds == {int} and all(-(2**63) <= value < 2**63 for value in classes if isinstance(value, int)):
        return "INT64", list(classes)
    if kinds <= {int, float}:
        return "FP64", list(classes)
    return "BYTES", [value if isinstance(value, str) else _encoder.encode(value).decode() for value in classes]


def _outputs(asked: Sequence[RequestedOutput] | None, manifest: Manifest) -> tuple[str, ...]:
    known = ("scores",) if manifest.classes is None else ("scores", "label")
    if asked is None or not asked:
        return known
    for output in asked:
        if output.name not in known:
            raise RequestError(400, f"outputs: the model has {', '.join(known)} but got {shown(output.name)}")
    return tuple(dict.fromkeys(output.name for output in asked))


def _row_count(inputs: Sequence[InputTensor]) -> int:
    """Rows that all inputs agree on. Raises RequestError."""
    for tensor in inputs:
        if not 1 <= len(tensor.shape) <= 2 or min(tensor.shape) < 0:
            raise RequestError(
                400,
                f"inputs: {shown(tensor.name)}: shape must be [rows] or [rows, columns] but got {shown(tensor.shape)}",
            )
    first = inputs[0]
    for tensor in inputs:
        if tensor.shape[0] != first.shape[0]:
            raise RequestError(
                400,
                f"inputs: all must have as many rows, but {shown(first.name)} has {first.shape[0]} "
                f"and {shown(tensor.name)} {tensor.shape[0]}",
            )
    return first.shape[0]


def _rows(inputs: Sequence[InputTensor], count: int, schema: Schema) -> list[Row]:
    if len(inputs) == 1 and schema.position(inputs[0].name) is None and len(inputs[0].shape) == 2:
        return _matrix_rows(inputs[0], count, schema)
    rows = schema.missing_rows(count)
    named = set()
    for tensor in inputs:
        position = schema.position(tensor.name)
        if position is None:
            raise RequestError(
                400, f"inputs: unknown feature {shown(tensor.name)}; the model has {', '.join(schema.names)}"
            )
        if tensor.name in named:
            raise RequestError(400, f"inputs: {shown(tensor.name)} is given more than once")
        named.add(tensor.name)
        _check_datatype(tensor, _ACCEPTED[schema.features[position].kind])
        values = _flat(tensor, count if len(tensor.shape) == 1 else count * tensor.shape[1])
        if len(values) != count:
            raise RequestError(
                400,
                f"inputs: {shown(tensor.name)}: shape must be [{count}] or [{count}, 1] but got {shown(tensor.shape)}",
            )
        _fill(rows, position, values, schema)
    return rows


def _matrix_rows(tensor: InputTensor, count: int, schema: Schema) -> list[Row]:
    """Rows of a 2-D tensor whose columns are the features in their order."""
    width = len(schema.names)
    texts = [name for name, numeric in zip(schema.names, schema.numeric, strict=True) if not numeric]
    if texts:
        raise RequestError(
            400,
            f"inputs: {shown(tensor.name)}: a single tensor fits only models of numbers; "
            f"give one tensor a feature ({', '.join(texts)} take strings)",
        )
    if tensor.shape[1] != width:
        raise RequestError(
            400, f"inputs: {shown(tensor.name)}: shape must be [{count}, {width}] but got {shown(tensor.shape)}"
        )
    _check_datatype(tensor, _FLOATS + _INTEGERS)
    values = _flat(tensor, count * width)
    rows = schema.missing_rows(count)
    for position in range(width):
        _fill(rows, position, values[position::width], schema)
    return rows


def _fill(rows: Sequence[Row], position: int, values: Iterable[object], schema: Schema) -> None:
    for index, value in enumerate(values):
        try:
            rows[index][position] = schema.value(position, value, index)
        except InputError as error:
            raise RequestError(400, f"inputs: {error}") from None


def _check_datatype(tensor: InputTensor, accepted: Sequence[str]) -> None:
    if tensor.datatype not in accepted:
        raise RequestError(
            400,
            f"inputs: {shown(tensor.name)}: datatype must be one of {', '.join(accepted)} but got {shown(tensor.datatype)}",
        )


def _flat(tensor: InputTensor, size: int) -> list[Any]:
    """The tensor's values, row-major, whether it came nested or flat. Raises RequestError."""
    data = tensor.data
    if len(tensor.shape) == 2 and data and all(isinstance(part, list) for part in data):
        if any(len(part) != tensor.shape[1] for part in data):
            raise RequestError(400, f"inputs: {shown(tensor.name)}: data does not have the shape {tensor.shape}")
        data = [value for part in data for value in part]
    if len(data) != size:
        raise RequestError(
            400,
            f"inputs: {shown(tensor.name)}: data must hold {size} values for shape {tensor.shape} but holds {len(data)}",
        )
    return data
