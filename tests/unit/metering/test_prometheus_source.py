"""Prometheus as an attacker or bad luck would have it: whatever comes back, one sentence and no secret comes of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from servers import free_port
from servers.prometheus import serving

from controller.metering.port import MetricsError, Question
from controller.metering.prometheus import Access, PrometheusSource

VECTOR = {
    "status": "success",
    "data": {"resultType": "vector", "result": [{"metric": {"model": "a"}, "value": [1, "2"]}]},
}


class Handler(BaseHTTPRequestHandler):
    """Answers as the test says."""

    answer: Callable[[BaseHTTPRequestHandler], None]
    asked: list[tuple[str, dict[str, str]]]

    def do_GET(self) -> None:
        self.asked.append((self.path, dict(self.headers)))
        type(self).answer(self)

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate((timestamp or time.time()) + getattr(type(self), "ahead_s", 0.0), usegmt=True)


@contextmanager
def answering(
    status: int = 200, body: bytes | dict[str, Any] = b"", headers: dict[str, str] | None = None, *,
    say: Callable[[Any], None] | None = None, ahead_s: float = 0.0, **access: Any,
) -> Iterator[tuple[PrometheusSource, list[tuple[str, dict[str, str]]]]]:  # fmt: skip
    content = json.dumps(body).encode() if isinstance(body, dict) else body

    def plain(handler: Any) -> None:
        handler.send_response(status)
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    asked: list[tuple[str, dict[str, str]]] = []
    kind = type("One", (Handler,), {"answer": staticmethod(say or plain), "asked": asked, "ahead_s": ahead_s})
    with serving(kind) as port:
        source = PrometheusSource(Access(**{"url": f"http://127.0.0.1:{port}", "timeout_s": 2.0, **access}))
        yield source, asked
        source.close()


def refusal(source: PrometheusSource, promql: str = "up") -> str:
    with pytest.raises(MetricsError) as refused:
        list(source.ask(Question(promql=promql, at=1.5)))
    return str(refused.value)


def test_the_question_is_an_instant_query_with_a_time_limit() -> None:
    """Prometheus gives up when the daemon does, and evaluates at the moment that was asked for."""
    with answering(body=VECTOR) as (source, asked):
        assert [tuple(sample) for sample in source.ask(Question(promql="up", at=1.5))] == [({"model": "a"}, 2.0)]
    assert asked[0][0] == "/api/v1/query?query=up&time=1.500&timeout=2s"


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (400, {"status": "error", "error": "parse\nerror"}, "Prometheus answers 400 (parse error): the PromQL is wrong"),
        (422, {"status": "error", "error": "many-to-many"}, "answers 422 (many-to-many): the PromQL cannot be evaluated"),
        (404, b"no", "answers 404: prometheus_url leads elsewhere"),
        (401, b"", "refuses the credentials (401): see prometheus_token_file"),
        (403, b"", "refuses the credentials (403)"),
        (429, b"", "answers 429: it is asked too often"),
        (500, b"", "answers 500: the query or the server is at fault"),
        (503, {"status": "error", "error": "timeout"}, "answers 503 (timeout): it is overloaded"),
        (200, b"<html>", "does not speak like Prometheus"),
        (200, b"", "does not speak like Prometheus"),
        (200, b"[" * 100_000, "does not speak like Prometheus"),
        (200, {"status": "success"}, "does not speak like Prometheus"),
        (200, {"status": "error", "error": "x"}, "does not speak like Prometheus"),
        (200, {**VECTOR, "warnings": ["a store is away"]}, "answers in part only: a store is away"),
        (200, {"status": "success", "data": {"resultType": "matrix", "result": []}}, "gives a matrix, but must give an instant vector"),
        (200, {"status": "success", "data": {"resultType": "vector", "result": [{"metric": {}, "value": [1, "x"]}]}}, "cannot be read"),
        (200, {"status": "success", "data": {"resultType": "vector", "result": {}}}, "cannot be read"),
    ],
)  # fmt: skip
def test_what_is_no_answer_says_why_and_what_to_do(status: int, body: Any, said: str) -> None:
    """One line each, of bounded length."""
    with answering(status, body) as (source, _):
        words = refusal(source)
    assert said in words
    assert "\n" not in words
    assert len(words) < 400


def test_a_redirect_is_not_followed() -> None:
    """It may lead to where the token must not go; its query is not repeated."""
    with answering(body=VECTOR) as (other, elsewhere):
        goal = f"{other._access.url}/login?secret=hunter2"
        with answering(302, b"", {"Location": goal}) as (source, _):
            words = refusal(source)
    assert "redirect to http://127.0.0.1:" in words
    assert "hunter2" not in words
    assert not elsewhere


def test_an_answer_without_end_is_given_up() -> None:
    """Size and time are bounded, also of one that comes byte by byte."""

    def flood(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b" " * 100_000)

    with answering(say=flood, answer_bytes_max=1_000_000) as (source, _):
        assert "more than 1000000 bytes (prometheus_max_mb)" in refusal(source)
    done = threading.Event()

    def drip(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not done.wait(0.05):
            handler.wfile.write(b" ")
            handler.wfile.flush()

    with answering(say=drip, timeout_s=0.5) as (source, _):
        began = time.monotonic()
        assert "did not end within the time" in refusal(source)
        assert time.monotonic() - began < 5
        done.set()


def test_a_redirect_without_end_is_given_up_too() -> None:
    """The HTTP library would read all of it before it says that it is one."""

    def flood(handler: Any) -> None:
        handler.send_response(302)
        handler.send_header("Location", "/elsewhere")
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b" " * 100_000)

    with answering(say=flood, answer_bytes_max=1_000_000) as (source, _):
        assert "more than 1000000 bytes" in refusal(source)


def test_one_that_does_not_answer_is_given_up() -> None:
    """Silence ends with the time-out, a closed port at once; neither is retried within a tick."""
    done = threading.Event()
    with answering(say=lambda _: done.wait(5), timeout_s=0.3) as (source, asked):
        assert "did not answer within 0.3 s (prometheus_timeout_s)" in refusal(source)
        assert len(asked) == 1
        done.set()
    nobody = PrometheusSource(Access(url=f"http://127.0.0.1:{free_port()}"))
    assert "is not reached (ConnectionError): is it up, and is prometheus_url right?" in refusal(nobody)


def test_a_clock_that_differs_is_said() -> None:
    """Evaluated at a moment that Prometheus has not reached, everything would be missing."""
    with answering(body=VECTOR, ahead_s=-300) as (source, _):
        assert "the clocks of Prometheus and of this machine differ by" in refusal(source)


def test_credentials_come_from_files_and_are_never_said(tmp_path: Path) -> None:
    """They are read at each question, so that they may be exchanged; no refusal repeats them."""
    token, more = tmp_path / "token", tmp_path / "headers"
    token.write_text("hunter2\n")
    more.write_text("# who we are\nX-Scope-OrgID: team-7\n")
    with answering(body=VECTOR, token_file=token, headers_file=more) as (source, asked):
        list(source.ask(Question(promql="up", at=1)))
        token.write_text("hunter3")
        list(source.ask(Question(promql="up", at=1)))
        assert [headers["Authorization"] for _, headers in asked] == ["Bearer hunter2", "Bearer hunter3"]
        assert asked[0][1]["X-Scope-OrgID"] == "team-7"
        more.write_text("hunter4\n")
        assert refusal(source) == f"{more}:1: a header is NAME: VALUE"
        more.unlink()
        assert refusal(source) == f"{more} cannot be read: No such file or directory"
    with answering(401, b"hunter2", token_file=token) as (source, _):
        more.write_text("")
        assert "hunter" not in refusal(source)
    token.write_bytes(b"two\nlines")
    with answering(body=VECTOR, token_file=token) as (source, _):
        words = refusal(source)
    assert "two" not in words


def test_a_password_goes_as_basic_authentication(tmp_path: Path) -> None:
    """User by name, password by file; the environment's own credentials and proxies are not used."""
    (tmp_path / "password").write_text("hunter2")
    with answering(body=VECTOR, user="ann", password_file=tmp_path / "password") as (source, asked):
        list(source.ask(Question(promql="up", at=1)))
    assert asked[0][1]["Authorization"] == "Basic YW5uOmh1bnRlcjI="
