"""Git over HTTP as forges serve it: `git http-backend` behind a small server that asks for a name and password."""

from __future__ import annotations

import base64
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

BACKEND = Path("/usr/lib/git-core/git-http-backend")


@dataclass
class GitHttp:
    """`root` holds bare repositories. `redirect`: where every request is sent instead; `delay_s`: how long each answer takes."""

    root: Path
    user: str = ""
    password: str = ""
    redirect: str = ""
    hang: threading.Event | None = None
    """Answers only once it is set."""
    port: int = 0
    seen: list[tuple[str, str]] = field(default_factory=list)
    """(path, Authorization) of every request."""

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"


@contextmanager
def serving_git(root: Path, user: str = "", password: str = "") -> Iterator[GitHttp]:
    """A server on a free port of loopback, in a thread of the test run, gone at the end."""
    told = GitHttp(root, user, password)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._serve(b"")

        def do_POST(self) -> None:
            self._serve(self._body())

        def log_message(self, *_args: object) -> None:
            pass

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            found = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found

        def _serve(self, body: bytes) -> None:
            told.seen.append((self.path, self.headers.get("Authorization", "")))
            if told.hang is not None:
                told.hang.wait(60)
            if told.redirect:
                return self._answer(302, [("Location", told.redirect + self.path)], b"")
            known = "Basic " + base64.b64encode(f"{told.user}:{told.password}".encode()).decode()
            if told.user and self.headers.get("Authorization") != known:
                return self._answer(401, [("WWW-Authenticate", 'Basic realm="git"')], b"who are you?")
            url = urlsplit(self.path)
            env = {
                "PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(told.root), "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": url.path,
                "QUERY_STRING": url.query, "REQUEST_METHOD": self.command, "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(len(body)), "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""), "REMOTE_USER": told.user or "anybody", "REMOTE_ADDR": "127.0.0.1",
                "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1",
            }  # fmt: skip
            done = subprocess.run([str(BACKEND)], input=body, env=env, capture_output=True, check=False)
            head, _, content = done.stdout.partition(b"\r\n\r\n")
            lines = [line.decode().split(": ", 1) for line in head.split(b"\r\n") if b": " in line]
            headers = [(name, value) for name, value in lines if name != "Status"]
            status = next((int(value.split()[0]) for name, value in lines if name == "Status"), 200)
            return self._answer(status, headers, content)

        def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_told: None  # type: ignore[method-assign]  # clients are killed in the middle, on purpose
    told.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield told
    finally:
        if told.hang is not None:
            told.hang.set()
        server.shutdown()
        server.server_close()
