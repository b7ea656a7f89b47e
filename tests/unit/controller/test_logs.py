"""Logs: one line an event, and no secret in any of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from controller.telemetry import logs
from controller.telemetry.logs import mask


@pytest.fixture
def _logging_put_back() -> Iterator[None]:
    """Whatever a test configures ends with it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize(
    ("value", "masked"),
    [
        ("cannot reach postgresql://bob:pa55@db:5432/x", "cannot reach postgresql://bob:***@db:5432/x"),
        ("redis://:pa55@cache", "redis://:***@cache"),
        ("postgresql://db/x?user=bob&password=pa55&a=1", "postgresql://db/x?user=bob&password=***&a=1"),
        ("Authorization: Bearer pa55pa55pa55", "Authorization: Bearer ***"),
        ({"url": "http://u:pa55@h", "deep": [{"api_key": "pa55"}]}, {"url": "http://u:***@h", "deep": [{"api_key": "***"}]}),
        (("http://u:pa55@h",), ["http://u:***@h"]),
        (ValueError("http://u:pa55@h"), "http://u:***@h"),
        ("http://host:8600/v1/models/x", "http://host:8600/v1/models/x"),
        (3, 3),
    ],
)  # fmt: skip
def test_mask_finds_secrets_however_deep(value: object, masked: object) -> None:
    """And leaves the rest alone."""
    assert mask(value) == masked


@pytest.mark.usefixtures("_logging_put_back")
def test_no_secret_reaches_a_log_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Under a telling key, in a URL, in an exception, ours or a library's."""
    logs.configure("info", "json")
    log = structlog.get_logger()
    log.info("daemon.started", token="pa55", url="http://u:pa55@h", settings={"password": "pa55"})
    try:
        raise ValueError("postgresql://bob:pa55@db/x")
    except ValueError:
        log.exception("store.failed")
        logging.getLogger("sqlalchemy").exception("cannot connect to %s", "postgresql://bob:pa55@db/x")
    written = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert "pa55" not in json.dumps(written)
    assert [line["event"] for line in written] == [
        "daemon.started", "store.failed", "cannot connect to postgresql://bob:***@db/x",
    ]  # fmt: skip
    assert written[0]["token"] == "***"
    assert "ValueError: postgresql://bob:***@db/x" in written[1]["exception"]
