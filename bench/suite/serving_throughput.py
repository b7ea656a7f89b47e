"""How many predictions a second one machine serves, against the service that one would write by hand."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.harness import Bench, Sides
from bench.load import measure
from bench.models import NAME, request_body, small_model
from bench.processes import free_port, replica, server, wait_for

CONNECTIONS = 16
SECONDS = 5.0
WORKERS = max(1, (os.cpu_count() or 2) - 1)
"""One core is left to the load generator."""
PEER_THREADS = 8
"""gunicorn's plain workers close every connection; threads let it keep them, which is much faster."""
PATH = f"/v1/models/{NAME}:predict"


@contextmanager
def _setup(folder: Path) -> Iterator[Sides]:
    model_dir = small_model(folder / "model")
    body = request_body(model_dir, folder / "request.json")

    def rate(port: int) -> float:
        return measure(f"http://127.0.0.1:{port}{PATH}", body, connections=CONNECTIONS, seconds=SECONDS).per_s

    with (
        replica(model_dir, folder / "ours", name=NAME, workers=WORKERS) as (port, _),
        _flask(model_dir, folder) as peer,
    ):
        for warm_up in (port, peer):
            rate(warm_up)
        yield Sides(ours=lambda: rate(port), peer=lambda: rate(peer))


@contextmanager
def _flask(model_dir: Path, folder: Path) -> Iterator[int]:
    port, log = free_port(), folder / "flask.txt"
    command = [sys.executable, "-m", "gunicorn", f'bench.peers.flask_service:make_app("{model_dir}")']
    command += [
        "--bind",
        f"127.0.0.1:{port}",
        "--workers",
        str(WORKERS),
        "--threads",
        str(PEER_THREADS),
        "--worker-class",
        "gthread",
    ]
    with server(command, log, env={"OMP_NUM_THREADS": "1"}) as process:
        yield wait_for(port, process, log)


BENCH = Bench(
    name="serving_throughput",
    unit="requests/s",
    better="higher",
    peer=f"Flask + gunicorn, {WORKERS} worker(s) of {PEER_THREADS} threads, same model",
    runs=5,
    setup=_setup,
)
