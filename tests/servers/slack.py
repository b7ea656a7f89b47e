"""Slack's Web API as far as Ratchet uses it, since Slack itself cannot be had: what is posted is held against the documented limits.

Limits: docs.slack.dev/reference/block-kit (blocks, block elements, composition objects), chat.postMessage, message metadata.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "xoxb-very-secret-token"
SCOPES = frozenset(
    {"chat.postMessage", "chat.update", "chat.postEphemeral", "conversations.history", "conversations.replies"}
)


@dataclass
class FakeSlack:
    """One workspace. `faults` are taken one a request: a status, `slow`, `cut`, `cut-after`, `nonsense`, or one of Slack's error words."""

    url: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)
    ephemeral: list[dict[str, Any]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    faults: list[Any] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """What was posted that Slack would have refused or shown wrong."""
    scopes: frozenset[str] = SCOPES
    channels: frozenset[str] = frozenset({"#ops", "C1"})
    go_on: threading.Event = field(default_factory=threading.Event)

    def parents(self) -> list[dict[str, Any]]:
        """Messages in the channel itself."""
        return [m for m in self.messages if "thread_ts" not in m]

    def replies(self, ts: str) -> list[dict[str, Any]]:
        return [m for m in self.messages if m.get("thread_ts") == ts]

    def answer(self, method: str, given: dict[str, Any]) -> dict[str, Any]:
        if method not in self.scopes:
            return {"ok": False, "error": "missing_scope"}
        for key in ("blocks", "metadata"):
            if isinstance(given.get(key), str):
                given[key] = json.loads(given[key])
        self.broken += problems(given)
        if given.get("channel") not in self.channels:
            return {"ok": False, "error": "channel_not_found"}
        match method:
            case "chat.postMessage":
                ts = f"17000000{len(self.messages):02}.000100"
                self.messages.append({**given, "ts": ts})
                return {"ok": True, "channel": "C1", "ts": ts}
            case "chat.update":
                found = next((m for m in self.messages if m["ts"] == given["ts"]), None)
                if found is None:
                    return {"ok": False, "error": "message_not_found"}
                found.update(given)
                return {"ok": True, "channel": "C1", "ts": given["ts"]}
            case "chat.postEphemeral":
                self.ephemeral.append(given)
                return {"ok": True}
            case "conversations.history":
                return {"ok": True, "messages": self.parents()[::-1]}
            case _:
                return {"ok": True, "messages": self.replies(given["ts"])}


@contextmanager
def fake_slack() -> Iterator[FakeSlack]:
    slack = FakeSlack()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            method = self.path.rsplit("/", 1)[-1].partition("?")[0]
            slack.calls.append(method)
            fault = slack.faults.pop(0) if slack.faults else None
            if fault == "slow":
                slack.go_on.wait(30)
                return
            if fault == "cut":
                self._cut()
                return
            if isinstance(fault, tuple):
                self._send(fault[0], {"ok": False, "error": "ratelimited"}, {"retry-after": str(fault[1])})
                return
            if isinstance(fault, int):
                self._send(fault, {"ok": False})
                return
            if fault == "nonsense":
                self._raw(200, b"<html>")
                return
            if fault not in (None, "cut-after"):
                self._send(200, {"ok": False, "error": fault})
                return
            if self.headers.get("authorization") != f"Bearer {TOKEN}":
                self._send(200, {"ok": False, "error": "invalid_auth"})
                return
            answer = slack.answer(method, _decoded(self.headers.get("content-type", ""), body, self.path))
            if fault == "cut-after":
                self._cut()
                return
            self._send(200, answer)

        do_GET = do_POST  # noqa: N815 - http.server asks for it

        def _cut(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

        def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
            self._raw(status, json.dumps(value).encode(), headers)

        def _raw(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, text in {
                "content-type": "application/json",
                "content-length": str(len(body)),
                **(headers or {}),
            }.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

        def finish(self) -> None:
            try:
                super().finish()
            except (OSError, ValueError):
                return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    slack.url = f"http://127.0.0.1:{server.server_address[1]}/api/"
    try:
        yield slack
    finally:
        slack.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


def _decoded(content_type: str, body: bytes, path: str) -> dict[str, Any]:
    if "json" in content_type:
        return dict(json.loads(body or b"{}"))
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(path).query)
    return {key: values[0] for key, values in {**query, **urllib.parse.parse_qs(body.decode())}.items()}


# ---------------------------------------------------------------- limits
def problems(given: dict[str, Any]) -> list[str]:
    """What Slack would not take."""
    found: list[str] = []
    blocks = given.get("blocks") or []
    if len(blocks) > 50:
        found.append(f"{len(blocks)} blocks")
    if len(given.get("text", "")) > 4_000:
        found.append("text of more than 4,000 characters")
    if any(char in given.get("text", "").replace("&lt;", "").replace("&gt;", "") for char in "<>"):
        found.append(f"markup in the text: {given['text'][:80]}")
    for block in blocks:
        found += _block(block)
    found += _metadata(given.get("metadata"))
    ids = [e["action_id"] for b in blocks if b["type"] == "actions" for e in b["elements"]]
    return found + (["action ids are not unique"] if len(ids) != len(set(ids)) else [])


def _block(block: dict[str, Any]) -> list[str]:
    match block["type"]:
        case "header":
            return _text(block["text"], 150, "plain_text")
        case "section":
            if ("text" in block) == ("fields" in block):
                return ["a section has text or fields here"]
            if "text" in block:
                return _text(block["text"], 3_000)
            fields = block["fields"]
            count = [] if 1 <= len(fields) <= 10 else [f"{len(fields)} fields"]
            return count + [p for one in fields for p in _text(one, 2_000)]
        case "context":
            return [p for one in block["elements"][:11] for p in _text(one, 2_000)]
        case "actions":
            count = [] if 1 <= len(block["elements"]) <= 25 else ["elements of actions"]
            return count + [p for one in block["elements"] for p in _button(one)]
        case other:
            return [f"unknown block {other}"]


def _text(text: dict[str, Any], longest: int, kind: str | None = None) -> list[str]:
    found = []
    if kind and text["type"] != kind:
        found.append(f"must be {kind}")
    if not 1 <= len(text["text"]) <= longest:
        found.append(f"{len(text['text'])} characters, of 1 to {longest}: {text['text'][:40]!r}")
    if text["type"] == "mrkdwn":
        bare = text["text"].replace("&lt;", "").replace("&gt;", "").replace("&amp;", "")
        found += [f"markup: {text['text'][:80]!r}"] if any(char in bare for char in "<>&") else []
        found += ["links are made of what looks like one"] if not text.get("verbatim") else []
    elif set(text) - {"type", "text", "emoji"}:
        found.append("keys of plain_text")
    return found


def _button(button: dict[str, Any]) -> list[str]:
    found = _text(button["text"], 75, "plain_text")
    found += [] if len(button["action_id"]) <= 255 else ["action_id"]
    found += [] if len(button.get("value", "")) <= 2_000 else ["value"]
    found += [] if len(button.get("url", "")) <= 3_000 else ["url"]
    if "confirm" in button:
        confirm = button["confirm"]
        for part, longest in (("title", 100), ("text", 300), ("confirm", 30), ("deny", 30)):
            found += _text(confirm[part], longest, "plain_text")
    return found


def _metadata(metadata: Any) -> list[str]:
    if metadata is None:
        return []
    fine = set(metadata) == {"event_type", "event_payload"} and len(json.dumps(metadata)) < 8_000
    flat = all(isinstance(value, str | int | float | bool) for value in metadata["event_payload"].values())
    return [] if fine and flat else ["metadata"]


def wait_for(condition: Any, timeout_s: float = 10.0) -> None:
    """Until it holds; fails the test if it does not."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)
