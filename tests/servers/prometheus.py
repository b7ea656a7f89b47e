"""Debian's prometheus, fed by an exporter that the test writes or by a file of history."""

from __future__ import annotations

import json
import subprocess
import threading
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from servers import free_port, need, running, wait_until


@dataclass(frozen=True, kw_only=True, slots=True)
class PrometheusServer:
    """One that runs."""

    url: str
    log: Path

    def query(self, promql: str, **options: Any) -> list[dict[str, Any]]:
        """The instant vector. Raises HTTPError."""
        asked = urlencode({"query": promql, **options})
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{asked}", timeout=30) as answer:
            return list(json.load(answer)["data"]["result"])


@contextmanager
def prometheus(
    folder: Path, *, scrape: Sequence[Mapping[str, Any]] = (), rules: Sequence[Path] = (), interval_s: float = 0.5,
    history: str = "",
) -> Iterator[PrometheusServer]:  # fmt: skip
    """Run Prometheus below `folder`. `scrape`: its scrape_configs; `history`: OpenMetrics text with times, which it begins with."""
    command = need("prometheus")
    folder.mkdir(parents=True, exist_ok=True)
    data, log, config, port = folder / "data", folder / "prometheus.log", folder / "prometheus.yml", free_port()
    if history:
        blocks(folder, history, data)
    every = f"{round(interval_s * 1000)}ms"
    config.write_text(
        json.dumps({
            "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
            "scrape_configs": list(scrape), "rule_files": [str(path) for path in rules],
        })
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    arguments = [
        f"--config.file={config}", f"--storage.tsdb.path={data}", f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
        "--storage.tsdb.retention.time=10y",
    ]  # fmt: skip
    with running([command, *arguments], log) as child:
        wait_until(lambda: _is_ready(url), child, log)
        yield PrometheusServer(url=url, log=log)


def blocks(folder: Path, history: str, data: Path) -> None:
    """Make the blocks of a database from OpenMetrics text."""
    text = folder / "history.om"
    text.write_text(history)
    command = [need("promtool", "prometheus"), "tsdb", "create-blocks-from", "openmetrics", str(text), str(data)]
    subprocess.run(command, check=True, capture_output=True)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@dataclass
class Exporter:
    """What Prometheus scrapes: a text that the test changes."""

    text: str = ""
    port: int = 0
    up: bool = True
    scraped: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def show(self, text: str) -> None:
        """Change the text, and wait until it was scraped once."""
        with self.changed:
            self.text = text
            seen = self.scraped
            assert self.changed.wait_for(lambda: self.scraped >= seen + 2, timeout=30), "Prometheus does not scrape"


@contextmanager
def exporter(text: str = "") -> Iterator[Exporter]:
    """A `/metrics` on a port of its own."""
    shown = Exporter(text=text)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with shown.changed:
                body, up = shown.text.encode(), shown.up
                shown.scraped += 1
                shown.changed.notify_all()
            self.send_response(200 if up else 503)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with serving(Handler) as port:
        shown.port = port
        yield shown


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """An HTTP server in a thread; its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
