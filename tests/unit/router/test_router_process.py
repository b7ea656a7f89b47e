"""The router as a process: announcement, exit codes, and an end that fails no request."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deployers.routed.http import call_unix


def start(folder: Path, port: int = 0) -> subprocess.Popen[str]:
    options = {"--port": str(port), "--admin-socket": "a.sock", "--state": "s.json", "--announce": "announce.json"}
    paths = {name: value if name == "--port" else str(folder / value) for name, value in options.items()}
    command = [sys.executable, "-m", "serving.router", *(word for pair in paths.items() for word in pair)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def router(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = start(tmp_path)
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "announce.json").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.communicate()


class Slow(BaseHTTPRequestHandler):
    arrived = threading.Event()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.arrived.set()
        time.sleep(0.5)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


def test_sigterm_lets_requests_finish(tmp_path: Path, router: subprocess.Popen[str]) -> None:
    """On SIGTERM a request in flight is answered and the exit code is 0."""
    announced = json.loads((tmp_path / "announce.json").read_text())
    assert announced["pid"] == router.pid
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as backend:
        threading.Thread(target=backend.serve_forever, daemon=True).start()
        urls = [f"http://127.0.0.1:{backend.server_port}"]
        table = {"epoch": 1, "generation": 1, "backends": {"1": urls}, "weights": {"1": 100}, "shadow": None}
        assert call_unix(tmp_path / "a.sock", "PUT", "/models/m", table, timeout_s=5)[0] == 200
        statuses: list[int] = []

        def ask() -> None:
            url = f"http://127.0.0.1:{announced['port']}/v1/models/m:predict"
            with urllib.request.urlopen(url, data=b"{}", timeout=20) as answer:
                statuses.append(answer.status)

        client = threading.Thread(target=ask)
        client.start()
        assert Slow.arrived.wait(20)
        router.send_signal(signal.SIGTERM)
        client.join()
        assert router.wait(20) == 0
        backend.shutdown()
    assert statuses == [200]


def test_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    """A port that another process holds ends the router with exit code 3 and one line that names it."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        process = start(tmp_path, port)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 3
    (line,) = errors.splitlines()
    assert f"127.0.0.1:{port}" in line


def test_router_imports_nothing_heavy_and_nothing_of_ours() -> None:
    """The router's process holds no ML library and no other room of the project."""
    code = (
        "import sys, serving.router.__main__; "
        "print([m for m in sys.modules if m.split('.')[0] in "
        "{'sklearn', 'pandas', 'numpy', 'pyarrow', 'tensorflow', 'policies', 'controller', 'deployers', 'pipelines'}"
        " or m.startswith('serving.') and not m.startswith('serving.router')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
