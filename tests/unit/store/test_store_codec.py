"""JSON documents: what survives, and what is refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from controller.state import SCHEMA, Event, ModelState, NoticeRecord, Version, VersionStatus
from controller.store.codec import decode, encode
from controller.store.port import CorruptStoreError, StoreError
from deployers.target import TrafficPlan

NOW = datetime(2026, 3, 1, tzinfo=UTC)
STATE = ModelState(
    name="m", policy="{}", policy_digest="d", created_at=NOW,
    plan=TrafficPlan(model="m", epoch=1, generation=1, digests={1: "a", 12: "b"}, weights={1: 5.0, 12: 95.0}),
)  # fmt: skip


@pytest.mark.parametrize(
    "record",
    [
        STATE,
        Version(model="m", number=1, digest="d", status=VersionStatus.RETIRED, created_at=NOW, cycle=1),
        Event(model="m", kind="cycle.opened", sentence="…", at=NOW, data={"a": {"b": [1, None]}}, seq=4),
        NoticeRecord(key="k", model="m", kind="x", text="t", at=NOW, data={"score": 0.5}),
    ],
    ids=lambda record: type(record).__name__,
)
def test_records_survive_their_json_form(record: object) -> None:
    """Decoding what was encoded gives an equal record of the same type."""
    assert decode(type(record), encode(record), where="here") == record


def test_documents_are_plain_json_with_their_schema() -> None:
    """Whoever reads the database with other tools finds ordinary JSON and the schema that wrote it."""
    document = json.loads(encode(STATE))
    assert document["schema"] == SCHEMA
    assert document["value"]["plan"]["weights"] == {"1": 5.0, "12": 95.0}


def test_a_document_of_a_newer_schema_is_refused() -> None:
    """An older release does not guess at a newer shape, whether or not it happens to fit, and says what to install."""
    fits = encode(STATE).replace(f'"schema":{SCHEMA},"value"', f'"schema":{SCHEMA + 1},"value"', 1)
    for text in (fits, json.dumps({"schema": SCHEMA + 1, "value": {"renamed": 1}})):
        with pytest.raises(CorruptStoreError, match=rf"state.db: model m: .*newer release .*schema {SCHEMA + 1},"):
            decode(ModelState, text, where="state.db: model m")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": 1}', '{"schema": 1, "value": {"name": 3}}', '{"schema": "x"}']
)
def test_a_damaged_document_is_refused(text: str) -> None:
    """A document that cannot be read is an error that names its place and the field."""
    with pytest.raises(CorruptStoreError, match=r"state.db: model m: not a readable ModelState"):
        decode(ModelState, text, where="state.db: model m")


def test_what_is_no_json_is_refused_at_writing() -> None:
    """A value without JSON form is refused before it reaches a file."""
    with pytest.raises(StoreError, match="Event cannot be written"):
        encode(Event(model="m", kind="x", sentence="s", at=NOW, data={"bad": object()}))
    with pytest.raises(StoreError, match="cannot be written"):
        encode({"text": "\ud800"})
