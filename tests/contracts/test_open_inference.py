"""The serving runtime against the Open Inference Protocol, version 2 (REST), and the routes of our own beside it.

Shapes follow the protocol's OpenAPI description (`open_inference_rest.yaml`): required members, their types, and what an error is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import numpy as np
import pytest
from litestar.testing import TestClient
from serving_rig import FEATURES, fitted, json_rows, logged, rows, write_model, write_multiclass, write_regression
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from serving.clock import Clock
from serving.model import load_model
from serving.runtime.app import make_app
from serving.runtime.settings import Settings
from serving.runtime.worker import Shared, Worker

STRINGS = {"type": "array", "items": {"type": "string"}}
DATATYPE = {
    "enum": [
        "BOOL",
        "UINT8",
        "UINT16",
        "UINT32",
        "UINT64",
        "INT8",
        "INT16",
        "INT32",
        "INT64",
        "FP16",
        "FP32",
        "FP64",
        "BYTES",
    ]
}
TENSOR_METADATA = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string"},
        "datatype": DATATYPE,
        "shape": {"type": "array", "items": {"type": "integer"}},
    },
    "additionalProperties": False,
}
TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype", "data"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": DATATYPE,
        "parameters": {"type": "object"},
        "data": {"type": "array"},
    },
    "additionalProperties": False,
}


def shape(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    """An object with these members and no others."""
    properties = required | (optional or {})
    return {"type": "object", "required": list(required), "properties": properties, "additionalProperties": False}


SERVER_METADATA = shape({"name": {"type": "string"}, "version": {"type": "string"}, "extensions": STRINGS})
MODEL_METADATA = shape(
    {
        "name": {"type": "string"},
        "platform": {"type": "string"},
        "inputs": {"type": "array", "items": TENSOR_METADATA},
        "outputs": {"type": "array", "items": TENSOR_METADATA},
    },
    {"versions": STRINGS},
)
INFERENCE = shape(
    {"model_name": {"type": "string"}, "outputs": {"type": "array", "items": TENSOR}},
    {"model_version": {"type": "string"}, "id": {"type": "string"}, "parameters": {"type": "object"}},
)
ERROR = shape({"error": {"type": "string", "minLength": 1}})


def serve(model_dir: Path, tmp_path: Path, **options: Any) -> TestClient[Any]:
    """A client of version 7 of `shop`, in this process."""
    settings = Settings(model_dir=model_dir, name="shop", version=7, log_dir=tmp_path / "log", **options)
    model = load_model(model_dir)
    worker = Worker(settings, model, Shared.of(settings, model.manifest), Clock())
    return TestClient(make_app(worker), raise_server_exceptions=False)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient[Any]]:
    """A binary model over numbers, a boolean and a category."""
    with serve(write_model(tmp_path / "model"), tmp_path) as made:
        yield made


def checked(response: Any, schema: dict[str, Any], status: int = 200) -> Any:
    """The JSON of a response of that status and shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    jsonschema.validate(response.json(), schema)
    return response.json()


def tensors(count: int) -> list[dict[str, Any]]:
    """The rows of `json_rows` as one tensor a feature."""
    columns = rows(count)
    kinds = {"age": "FP64", "price": "FP32", "member": "BOOL", "city": "BYTES"}
    data = {name: columns[name].tolist() for name in kinds} | {"member": [bool(v) for v in columns["member"]]}
    return [{"name": name, "shape": [count], "datatype": kind, "data": data[name]} for name, kind in kinds.items()]


# ---------------------------------------------------------------- health and metadata
def test_health_and_metadata_have_the_protocols_shapes(client: TestClient[Any]) -> None:
    """Server, health, model metadata and readiness answer as the protocol says, with and without the version in the path."""
    checked(client.get("/v2"), SERVER_METADATA)
    assert checked(client.get("/v2/health/live"), shape({"live": {"type": "boolean"}})) == {"live": True}
    assert checked(client.get("/v2/health/ready"), shape({"ready": {"type": "boolean"}})) == {"ready": True}
    for path in ("/v2/models/shop", "/v2/models/shop/versions/7"):
        ready = checked(client.get(path + "/ready"), shape({"name": {"type": "string"}, "ready": {"type": "boolean"}}))
        assert ready == {"name": "shop", "ready": True}
        metadata = checked(client.get(path), MODEL_METADATA)
        assert metadata["versions"] == ["7"]
        assert [(t["name"], t["datatype"], t["shape"]) for t in metadata["inputs"]] == [
            ("age", "FP64", [-1]),
            ("price", "FP64", [-1]),
            ("member", "BOOL", [-1]),
            ("city", "BYTES", [-1]),
        ]


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/v2/models/other", "GET", 404),
        ("/v2/models/shop/versions/8", "GET", 404),
        ("/v2/models/shop/versions/8/infer", "POST", 404),
        ("/v1/models/other:predict", "POST", 404),
        ("/", "GET", 404),
        ("/v2/models/shop/infer", "GET", 405),
        ("/v1/models/shop/feedback", "DELETE", 405),
    ],
)
def test_what_is_not_served_is_a_json_error(client: TestClient[Any], path: str, method: str, status: int) -> None:
    """Another model, another version and another method are refused with the protocol's error object."""
    checked(client.request(method, path), ERROR, status)


# ---------------------------------------------------------------- infer
def test_one_tensor_a_feature_is_scored(client: TestClient[Any], tmp_path: Path) -> None:
    """Scores are the estimator's own, labels follow the threshold, and the request's id comes back and is the log's."""
    answer = checked(client.post("/v2/models/shop/infer", json={"id": "r1", "inputs": tensors(5)}), INFERENCE)
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("shop", "7", "r1")
    scores, label = answer["outputs"]
    wanted = fitted().predict_proba(rows(5))[:, 1]
    np.testing.assert_allclose(scores["data"], wanted, rtol=1e-6)
    assert (scores["name"], scores["shape"], scores["datatype"]) == ("scores", [5], "FP64")
    assert label == {"name": "label", "shape": [5], "datatype": "INT64", "data": [int(p >= 0.5) for p in wanted]}
    assert [row["id"] for row in logged(tmp_path / "log")] == [f"r1-{i}" for i in range(5)]


def test_missing_tensors_nulls_and_columns_of_one_are_taken(client: TestClient[Any]) -> None:
    """A feature without a tensor is missing in every row; null is missing in its row; [n, 1] is as good as [n]."""
    inputs = [
        {"name": "age", "shape": [2, 1], "datatype": "INT64", "data": [[41], [None]]},
        {"name": "city", "shape": [2], "datatype": "BYTES", "data": [None, "Atlantis"]},
    ]
    answer = checked(client.post("/v2/models/shop/infer", json={"inputs": inputs}), INFERENCE)
    assert answer["outputs"][0]["shape"] == [2]
    assert answer["id"]


def test_outputs_can_be_chosen(client: TestClient[Any]) -> None:
    """Only the outputs asked for are given, in that order; an unknown one is refused."""
    body = {"inputs": tensors(1), "outputs": [{"name": "label"}]}
    answer = checked(client.post("/v2/models/shop/infer", json=body), INFERENCE)
    assert [output["name"] for output in answer["outputs"]] == ["label"]
    refused = client.post("/v2/models/shop/infer", json={"inputs": tensors(1), "outputs": [{"name": "logits"}]})
    assert "the model has scores, label but got 'logits'" in checked(refused, ERROR, 400)["error"]


def test_a_single_matrix_of_numbers_is_scored_in_feature_order(tmp_path: Path) -> None:
    """A 2-D tensor of any name, flat or nested, is read as columns in the order of model.json."""
    numbers = ["age", "price"]
    estimator = make_pipeline(ColumnTransformer([("all", SimpleImputer(), numbers)]), LogisticRegression())
    estimator.fit(rows(200), rows(200).price > 0)
    features = [feature for feature in FEATURES if feature["name"] in numbers]
    write_model(tmp_path / "model", estimator, features=features, classes=[False, True])
    matrix = rows(4)[numbers].to_numpy()
    with serve(tmp_path / "model", tmp_path) as client:
        for data in (matrix.tolist(), matrix.ravel().tolist()):
            tensor = {"name": "input-0", "shape": [4, 2], "datatype": "FP64", "data": data}
            answer = checked(client.post("/v2/models/shop/infer", json={"inputs": [tensor]}), INFERENCE)
            np.testing.assert_allclose(answer["outputs"][0]["data"], estimator.predict_proba(rows(4))[:, 1])
            assert answer["outputs"][1]["datatype"] == "BOOL"
        tensor = {"name": "input-0", "shape": [4, 3], "datatype": "FP64", "data": [0.0] * 12}
        error = checked(client.post("/v2/models/shop/infer", json={"inputs": [tensor]}), ERROR, 400)["error"]
        assert "shape must be [4, 2] but got [4, 3]" in error


def test_multiclass_and_regression_have_their_own_outputs(tmp_path: Path) -> None:
    """Multiclass: scores (n, k) and a label of strings; regression: scores (n,) and no label. Metadata says so beforehand."""
    with serve(write_multiclass(tmp_path / "m"), tmp_path) as client:
        scores, label = checked(client.post("/v2/models/shop/infer", json={"inputs": tensors(3)}), INFERENCE)["outputs"]
        assert (scores["shape"], len(scores["data"]), label["datatype"]) == ([3, 3], 9, "BYTES")
        assert set(label["data"]) <= {"low", "mid", "top"}
        described = checked(client.get("/v2/models/shop"), MODEL_METADATA)["outputs"]
        assert [(o["name"], o["shape"]) for o in described] == [("scores", [-1, 3]), ("label", [-1])]
    with serve(write_regression(tmp_path / "r"), tmp_path / "r") as client:
        (scores,) = checked(client.post("/v2/models/shop/infer", json={"inputs": tensors(3)}), INFERENCE)["outputs"]
        assert scores["shape"] == [3]
        assert [o["name"] for o in checked(client.get("/v2/models/shop"), MODEL_METADATA)["outputs"]] == ["scores"]


def _tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "age", "shape": [2], "datatype": "FP64", "data": [1.0, 2.0]} | changes


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "missing required field `inputs`"),
        ({"inputs": []}, "inputs: must hold at least one tensor"),
        ({"inputs": [_tensor(name="colour")]}, "unknown feature 'colour'; the model has age, price, member, city"),
        ({"inputs": [_tensor(), _tensor()]}, "'age' is given more than once"),
        ({"inputs": [_tensor(shape=[3])]}, "data must hold 3 values for shape [3] but holds 2"),
        ({"inputs": [_tensor(shape=[2, 2])]}, "data must hold 4 values"),
        ({"inputs": [_tensor(shape=[])]}, "shape must be [rows] or [rows, columns] but got []"),
        ({"inputs": [_tensor(shape=[-1])]}, "but got [-1]"),
        ({"inputs": [_tensor(shape=[0], data=[])]}, "must hold at least 1 row"),
        ({"inputs": [_tensor(), _tensor(name="price", shape=[1], data=[1])]}, "'age' has 2 and 'price' 1"),
        ({"inputs": [_tensor(datatype="BYTES")]}, "'age': datatype must be one of FP64"),
        ({"inputs": [_tensor(datatype="COMPLEX")]}, "but got 'COMPLEX'"),
        (
            {"inputs": [_tensor(data=[1.0, "x"])]},
            "row 1: feature 'age' is numeric and takes a finite number or null but got 'x'",
        ),
        ({"inputs": [_tensor(data=[1.0, [2.0]])]}, "row 1: feature 'age'"),
        ({"inputs": [{"name": "all", "shape": [1, 4], "datatype": "FP64", "data": [1, 2, 3, 4]}]}, "city"),
        ({"inputs": [_tensor()], "id": ""}, "id: must have 1 to 200 characters but has 0"),
        ({"inputs": [_tensor(binary="x")]}, "unknown field `binary`"),
        ({"inputs": "x"}, "at `$.inputs`"),
    ],
)
def test_what_does_not_fit_is_a_400_that_names_it(client: TestClient[Any], body: dict[str, Any], said: str) -> None:
    """A request that breaks the protocol or the model's features is refused with input, field, row and value."""
    assert said in checked(client.post("/v2/models/shop/infer", json=body), ERROR, 400)["error"]


# ---------------------------------------------------------------- predict and feedback
def test_predict_answers_with_scores_ids_and_version(client: TestClient[Any], tmp_path: Path) -> None:
    """Scores are the estimator's own, ids those given, and all of it is on record with role, key and features."""
    body = {"instances": json_rows(3), "ids": ["a", "b\n", "ü"]}
    headers = {"x-ratchet-role": "shadow", "x-ratchet-key": "customer-1"}
    response = client.post("/v1/models/shop:predict", json=body, headers=headers)
    assert response.status_code == 200
    answer = response.json()
    np.testing.assert_allclose(answer["predictions"], fitted().predict_proba(rows(3))[:, 1])
    assert (answer["ids"], answer["version"]) == (["a", "b\n", "ü"], 7)
    found = logged(tmp_path / "log")
    assert [row["id"] for row in found] == ["a", "b\n", "ü"]
    assert {(row["role"], row["key"], row["version"]) for row in found} == {("shadow", "customer-1", 7)}
    assert [row["score"] for row in found] == [[p] for p in answer["predictions"]]
    assert found[0]["f"].keys() == {"age", "price", "member", "city"}


def test_ids_come_from_the_request_id_or_are_made_up(client: TestClient[Any]) -> None:
    """`x-ratchet-request-id` numbers its rows; without it every request has an id of its own."""
    send = {"instances": json_rows(2)}
    named = client.post("/v1/models/shop:predict", json=send, headers={"x-ratchet-request-id": "r9"}).json()["ids"]
    assert named == ["r9-0", "r9-1"]
    made = [i for _ in range(3) for i in client.post("/v1/models/shop:predict", json=send).json()["ids"]]
    assert len(set(made)) == 6


def test_feedback_is_accepted_logged_and_counted(client: TestClient[Any], tmp_path: Path) -> None:
    """Labels of known and unknown ids are accepted; the known one is a count of the confusion matrix."""
    client.post("/v1/models/shop:predict", json={"instances": json_rows(1), "ids": ["a"]})
    labels = {"labels": [{"id": "a", "label": 1}, {"id": "stranger", "label": "0"}]}
    response = client.post("/v1/models/shop/feedback", json=labels)
    assert (response.status_code, response.json()) == (200, {"accepted": 2})
    assert [(row["id"], row["label"]) for row in logged(tmp_path / "log", "labels")] == [
        ("a", "1"),
        ("stranger", '"0"'),
    ]
    metrics = client.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    assert 'ratchet_predictions_total{model="shop",role="live",version="7"} 1.0' in metrics.text
    assert 'ratchet_feedback_unmatched_total{model="shop",version="7"} 1.0' in metrics.text
    assert 'actual="1",model="shop",predicted=' in metrics.text
    assert "ratchet_request_seconds_bucket" in metrics.text


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"instances": [{"age": NaN}]}', "not valid JSON"),
        (b'{"instances": [{"age": 1e999}]}', "out of range"),
        (b'{"instances": [{"age": ' + b"[" * 5000, "nested too deeply"),
        (b'\xff{"instances": []}', "not valid JSON"),
        (b'{"instances": []}', "instances: must hold at least 1 row"),
        (b'{"instances": [1]}', "at `$.instances[0]`"),
        (b'{"rows": []}', "`rows`"),
        (b'{"instances": [{"age": 1}, {"age": "x"}]}', "instances: row 1: feature 'age' is numeric"),
        (b'{"instances": [{"colour": 1}]}', "row 0: unknown feature 'colour'"),
        (b'{"instances": [{}, {}], "ids": ["a"]}', "ids: must be one an instance, 2, but got 1"),
        (b'{"instances": [{}, {}], "ids": ["a", "a"]}', "'a' comes more than once"),
        (b'{"instances": [{}], "ids": [""]}', "ids[0]: must have 1 to 256 characters but has 0"),
        (b'{"instances": [{}], "ids": ["' + b"x" * 257 + b'"]}', "but has 257"),
        (b'{"instances": [{}], "ids": [1]}', "at `$.ids[0]`"),
    ],
)
def test_bad_predictions_are_a_400_that_names_it(
    client: TestClient[Any], tmp_path: Path, body: bytes, said: str
) -> None:
    """What cannot be read or scored is refused with field, feature, value and row, and leaves nothing in the log."""
    response = client.post("/v1/models/shop:predict", content=body)
    assert said in checked(response, ERROR, 400)["error"]
    assert not (tmp_path / "log" / "predictions").exists()


@pytest.mark.parametrize(
    ("header", "value", "said"),
    [
        ("x-ratchet-role", "ghost", "must be live or shadow but got 'ghost'"),
        ("x-ratchet-request-id", "x" * 300, "header x-ratchet-request-id: must have 1 to 200 characters but has 300"),
        ("x-ratchet-key", "", "header x-ratchet-key"),
    ],
)
def test_bad_headers_are_refused_by_name(client: TestClient[Any], header: str, value: str, said: str) -> None:
    """A header that the log could not hold is refused."""
    response = client.post("/v1/models/shop:predict", json={"instances": [{}]}, headers={header: value})
    assert said in checked(response, ERROR, 400)["error"]


def test_bodies_and_requests_have_bounds(tmp_path: Path) -> None:
    """Too many bytes, or too many rows, are 413, and the next request is served."""
    with serve(write_model(tmp_path / "model"), tmp_path, body_bytes_max=2000, request_rows_max=5) as client:
        for path, body in (("/v1/models/shop:predict", b" " * 3000), ("/v1/models/shop/feedback", b" " * 3000)):
            checked(client.post(path, content=body), ERROR, 413)
        error = checked(client.post("/v1/models/shop:predict", json={"instances": [{}] * 6}), ERROR, 413)["error"]
        assert "may hold at most 5 rows but holds 6" in error
        huge = {"inputs": [{"name": "age", "shape": [10**12], "datatype": "FP64", "data": []}]}
        checked(client.post("/v2/models/shop/infer", json=huge), ERROR, 413)
        assert client.post("/v1/models/shop:predict", json={"instances": [{}]}).status_code == 200


# ---------------------------------------------------------------- models that misbehave
CODE = """
import time
import numpy as np
def load(model_dir):
    class Loaded:
        def predict(self, frame):
            ages = frame["age"].to_numpy()
            if (ages == 666).any():
                raise RuntimeError("cursed\\nTraceback (most recent call last)")
            if (ages == 99).any():
                time.sleep(1.0)
            return np.where(ages == -1, np.nan, 0.5)
    return Loaded()
"""


@pytest.fixture
def moody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient[Any]]:
    """An owner's model that fails, gives NaN or is slow, depending on the age."""
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.delitem(sys.modules, "moody_contract", raising=False)
    model = write_model(
        tmp_path / "model", predictor={"kind": "entrypoint", "module": "moody_contract", "code": "code"}
    )
    (model / "code").mkdir()
    (model / "code" / "moody_contract.py").write_text(CODE)
    with serve(model, tmp_path, timeout_s=0.2, waiting_rows_max=3) as made:
        yield made


def test_a_failing_model_is_a_500_without_a_stack_trace(moody: TestClient[Any], tmp_path: Path) -> None:
    """What the model raises, or a score that is not finite, is told in one sentence, is not logged, and passes."""
    for age, said in (
        (666, "the model failed: RuntimeError: cursed"),
        (-1, "row 0: the model gave nan, which is not finite"),
    ):
        response = moody.post("/v1/models/shop:predict", json={"instances": [{"age": age}]})
        error = checked(response, ERROR, 500)["error"]
        assert said in error
        assert "Traceback" not in error
    assert moody.post("/v1/models/shop:predict", json={"instances": [{"age": 30}]}).status_code == 200
    assert len(logged(tmp_path / "log")) == 1


def test_a_slow_model_is_a_504_and_then_not_ready(moody: TestClient[Any]) -> None:
    """A request that is not answered in time is told so; while the model is stuck the replica says that it is not ready."""
    response = moody.post("/v1/models/shop:predict", json={"instances": [{"age": 99}]})
    assert "did not answer within 0.2 s" in checked(response, ERROR, 504)["error"]
    assert moody.get("/v2/health/ready").status_code == 503
    assert moody.get("/v2/health/live").status_code == 200
    assert json.loads(moody.get("/v2/models/shop/ready").text) == {"name": "shop", "ready": False}
