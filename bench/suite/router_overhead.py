"""What going through the router costs a request: its time one at a time, against that of calling the server directly.

The overhead is `value - peer_value`; the ratio is below 1 by nature.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from bench.harness import Bench, Sides
from bench.load import measure
from bench.models import NAME, request_body, small_model
from bench.processes import replica, server, wait_for

SECONDS = 4.0
PATH = f"/v1/models/{NAME}:predict"


@contextmanager
def _setup(folder: Path) -> Iterator[Sides]:
    model_dir = small_model(folder / "model")
    body = request_body(model_dir, folder / "request.json")

    def latency_ms(port: int) -> float:
        return measure(f"http://127.0.0.1:{port}{PATH}", body, connections=1, seconds=SECONDS).p50_ms

    with replica(model_dir, folder / "replica", name=NAME, workers=1) as (direct, _), _router(folder, direct) as router:
        for warm_up in (router, direct):
            latency_ms(warm_up)
        direct_ms: list[float] = []

        def peer() -> float:
            direct_ms.append(latency_ms(direct))
            return direct_ms[-1]

        yield Sides(
            ours=lambda: latency_ms(router),
            peer=peer,
            note=lambda value: f"the router adds {value - sorted(direct_ms)[len(direct_ms) // 2]:.2f} ms",
        )


@contextmanager
def _router(folder: Path, backend: int) -> Iterator[int]:
    announce, log, admin = folder / "router-announce.json", folder / "router.txt", folder / "router.sock"
    command = [
        sys.executable,
        "-m",
        "serving.router",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--announce",
        str(announce),
    ]
    command += ["--admin-socket", str(admin), "--state", str(folder / "router.json")]
    with server(command, log) as process:
        port = wait_for(announce, process, log)
        table = {
            "epoch": 1,
            "generation": 1,
            "backends": {"1": [f"http://127.0.0.1:{backend}"]},
            "weights": {"1": 100},
            "shadow": None,
        }
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(admin))) as client:
            client.put(f"http://router/models/{NAME}", json=table).raise_for_status()
        yield port


BENCH = Bench(
    name="router_overhead",
    unit="ms/request",
    better="lower",
    peer="calling the server directly",
    runs=5,
    setup=_setup,
)
