"""The measurements' frame: taken in turn, medians, the report's form, and a load generator that stays on this machine."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import pytest

from bench.harness import Bench, Result, Sides, find_benches, run_bench, write_report
from bench.load import measure, send

ROOT = Path(__file__).resolve().parents[3]


def bench_of(taken: list[str], better: Literal["higher", "lower"], values: list[float], peers: list[float]) -> Bench:
    @contextmanager
    def setup(folder: Path) -> Iterator[Sides]:
        ours, theirs = iter(values), iter(peers)

        def take(side: str, numbers: Iterator[float]) -> float:
            taken.append(side)
            return next(numbers)

        yield Sides(
            ours=lambda: take("ours", ours),
            peer=(lambda: take("peer", theirs)) if peers else None,
            note=lambda value: f"median {value:g}",
        )

    return Bench(name="b", unit="s", better=better, peer="p", runs=len(values), setup=setup)


@pytest.mark.parametrize(("better", "ratio"), [("lower", 2.5), ("higher", 0.4)])
def test_sides_are_taken_in_turn_and_medians_compared(
    better: Literal["higher", "lower"], ratio: float, tmp_path: Path
) -> None:
    """Ours and the peer's are measured in turn, the medians count, and a ratio above 1 means that ours is better."""
    taken: list[str] = []
    result = run_bench(bench_of(taken, better, [9, 2, 1], [5, 4, 100]), tmp_path, lambda text: None)
    assert taken == ["ours", "peer"] * 3
    assert result.as_json() == {
        "value": 2, "unit": "s", "peer": "p", "peer_value": 5, "ratio": ratio, "runs": 3, "note": "median 2",
    }  # fmt: skip


def test_report_keeps_what_was_not_measured_again(tmp_path: Path) -> None:
    """A bench without peer has a null ratio, and a partial run replaces only its own lines of the report."""
    path = tmp_path / "bench-report" / "results.json"
    bench = bench_of([], "lower", [1], [])
    write_report(path, {"old": Result(bench=bench, values=(1,), peer_values=())})
    write_report(path, {"new": run_bench(bench, tmp_path, lambda text: None)})
    report = json.loads(path.read_text())
    assert sorted(report) == ["new", "old"]
    assert (report["new"]["peer_value"], report["new"]["ratio"]) == (None, None)


def test_every_module_of_the_suite_is_a_bench() -> None:
    """Each file of bench/suite is found under its name, and the command line names them all."""
    names = {p.stem for p in (ROOT / "bench" / "suite").glob("*.py")} - {"__init__"}
    assert set(find_benches()) == names
    command = [sys.executable, "-m", "bench", "--only", "no-such-bench"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert all(name in done.stderr for name in names)


@contextmanager
def http_server(status: int) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("url", ["http://192.0.2.1:80/", "http://example.org:80/", "http://127.0.0.1/"])
def test_load_stays_on_this_machine(url: str) -> None:
    """The load generator refuses any address but a port on the loopback."""
    with pytest.raises(ValueError, match="load goes to a port on this machine only"):
        asyncio.run(send(url, b"", connections=1, seconds=1))


def test_load_is_counted(tmp_path: Path) -> None:
    """A run reports answered requests and their latencies, and one with failed requests is an error, not a number."""
    body = tmp_path / "body.json"
    body.write_text("{}")
    with http_server(200) as port:
        load = measure(f"http://127.0.0.1:{port}/", body, connections=2, seconds=0.2)
    assert load.requests > 2
    assert load.failed == 0
    assert 0 < load.p50_ms <= load.p99_ms
    with http_server(503) as port, pytest.raises(RuntimeError, match="only 0 requests were answered with 200"):
        measure(f"http://127.0.0.1:{port}/", body, connections=2, seconds=0.2)
