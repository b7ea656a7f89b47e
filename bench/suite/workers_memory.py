"""Memory of four workers that share one model by copy-on-write, against four processes that each load it.

Memory is the proportional set size after every worker has answered: a page that two processes share counts half in each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.harness import Bench, Sides
from bench.load import measure
from bench.models import NAME, heavy_model, request_body
from bench.processes import pss_mb, replica

WORKERS = 4
MODEL_MB = 500
SECONDS = 5.0
PATH = f"/v1/models/{NAME}:predict"


@contextmanager
def _setup(folder: Path) -> Iterator[Sides]:
    model_dir = heavy_model(folder / "model", size_mb=MODEL_MB)
    body = request_body(model_dir, folder / "request.json")

    def use(port: int, connections: int) -> None:
        measure(f"http://127.0.0.1:{port}{PATH}", body, connections=connections, seconds=SECONDS)

    with ExitStack() as stack:
        port, pid = stack.enter_context(replica(model_dir, folder / "shared", name=NAME, workers=WORKERS))
        alone = [
            stack.enter_context(replica(model_dir, folder / f"alone{i}", name=NAME, workers=1)) for i in range(WORKERS)
        ]

        def ours() -> float:
            use(port, 4 * WORKERS)
            return pss_mb(pid)

        def peer() -> float:
            for alone_port, _ in alone:
                use(alone_port, 4)
            return pss_mb(*(alone_pid for _, alone_pid in alone))

        yield Sides(ours=ours, peer=peer, note=lambda value: f"{value / pss_mb(alone[0][1]):.2f} x one process")


BENCH = Bench(
    name="workers_memory",
    unit="MB",
    better="lower",
    peer=f"{WORKERS} separate processes, a {MODEL_MB} MB model each",
    runs=3,
    setup=_setup,
)
