"""Any HTTP endpoint that is posted to: keeps what came, and misbehaves on request."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Listener:
    """`faults` are taken one a request: (status, headers) or (status, headers, body), `slow`, `drip`, `cut`, `cut-after`."""

    url: str = ""
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    faults: list[Any] = field(default_factory=list)
    go_on: threading.Event = field(default_factory=threading.Event)
    asked: int = 0


@contextmanager
def listener() -> Iterator[Listener]:
    kept = Listener()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            kept.asked += 1
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            fault = kept.faults.pop(0) if kept.faults else (200, {})
            if fault == "slow":
                kept.go_on.wait(30)
                return
            if fault == "drip":
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                while not kept.go_on.wait(0.05):
                    self.wfile.write(b"x: y\r\n")
                return
            if fault != "cut" and (fault == "cut-after" or fault[0] == 200):
                kept.requests.append(({k.lower(): v for k, v in self.headers.items()}, body))
            if fault in ("cut", "cut-after"):
                self.connection.close()
                return
            status, headers, said = fault if len(fault) == 3 else (*fault, b"{}")
            self.send_response(status)
            for name, value in {"content-length": str(len(said)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(said)

        def do_GET(self) -> None:
            kept.requests.append(({"method": "GET", **{k.lower(): v for k, v in self.headers.items()}}, b""))

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
    kept.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield kept
    finally:
        kept.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
