"""A replica that obeys the command line and routes of `serving.runtime` without any model; quick to start.

Its behaviour is read, each time that it matters, from `behaviour.json` in the model folder, or where that cannot be changed any more, from
`behaviour/NAME.json` in the log folder: `name`, `mode` (ready, unready, broken, hungry), `message`, `delay_s`, `status`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

parser = argparse.ArgumentParser()
for option in ("model-dir", "name", "version", "log-dir", "host", "port", "workers", "announce"):
    parser.add_argument(f"--{option}", required=True)
options = parser.parse_args()
in_flight: set[int] = set()


def behaviour() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(options.model_dir, "behaviour.json").read_text())
    changed = Path(options.log_dir, "behaviour", f"{found.get('name')}.json")
    if changed.exists():
        found = json.loads(changed.read_text())
    return found


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def log_message(self, *_arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        ready = self.path == "/v2/health/ready" and behaviour().get("mode") != "unready"
        self.answer(200 if ready else 503, {"ready": ready})

    def do_POST(self) -> None:
        in_flight.add(threading.get_ident())
        try:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            time.sleep(behaviour().get("delay_s", 0))
            body = {"predictions": [0.5], "version": int(options.version), "pid": os.getpid()}
            self.answer(behaviour().get("status", 200), body)
            self.wfile.flush()
        finally:
            in_flight.discard(threading.get_ident())

    def answer(self, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def finish(*_arguments: object) -> None:
    def wait() -> None:
        while in_flight:
            time.sleep(0.01)
        os._exit(0)

    threading.Thread(target=wait).start()


if behaviour().get("mode") == "broken":
    sys.exit(behaviour()["message"])
if behaviour().get("mode") == "hungry":
    print("eating memory", flush=True)
    eaten = [os.urandom(1 << 20) for _ in range(4096)]
signal.signal(signal.SIGTERM, finish)
server = ThreadingHTTPServer((options.host, int(options.port)), Handler)
whole = Path(options.announce + ".part")
whole.write_text(json.dumps({"port": server.server_port, "pid": os.getpid()}))
whole.replace(options.announce)
server.serve_forever()
