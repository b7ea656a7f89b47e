"""A load generator in a process of its own: keep-alive connections that each send one request after the other.

    python -m bench.load http://127.0.0.1:8000/v1/models/m:predict BODY.json --connections 16 --seconds 5

Prints JSON: `requests`, `failed`, `seconds`, `per_s`, and `p50_ms`, `p99_ms` of the latency. Sends only to this machine, for a bounded
time. Written on bare asyncio streams because a full HTTP client costs more CPU a request than the servers under test.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

LOOPBACK = frozenset({"127.0.0.1", "localhost"})
SECONDS_MAX = 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What came of one run."""

    requests: int
    """Answered with 200."""
    failed: int
    """Answered with anything else; a lost connection ends the run with an error."""
    seconds: float
    per_s: float
    p50_ms: float
    p99_ms: float


async def send(url: str, body: bytes, *, connections: int, seconds: float) -> Load:
    """Post `body` to `url` over `connections` connections for `seconds`. Raises ValueError for another machine, OSError."""
    target = urlsplit(url)
    if target.hostname not in LOOPBACK or target.port is None:
        raise ValueError(f"{url}: load goes to a port on this machine only")
    if not 0 < seconds <= SECONDS_MAX:
        raise ValueError(f"seconds must be above 0 and at most {SECONDS_MAX:g} but got {seconds:g}")
    head = (
        f"POST {target.path} HTTP/1.1\r\nHost: {target.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    started = time.perf_counter()
    clients = [
        _client(target.hostname, target.port, head.encode() + body, started + seconds) for _ in range(connections)
    ]
    outcomes = await asyncio.gather(*clients)
    elapsed = time.perf_counter() - started
    latencies_s = sorted(latency for latencies, _ in outcomes for latency in latencies)
    if len(latencies_s) < 2:
        raise ValueError(f"{url}: only {len(latencies_s)} requests were answered with 200 in {seconds:g} s")
    return Load(
        requests=len(latencies_s),
        failed=sum(failed for _, failed in outcomes),
        seconds=elapsed,
        per_s=len(latencies_s) / elapsed,
        p50_ms=statistics.median(latencies_s) * 1000,
        p99_ms=latencies_s[int(0.99 * (len(latencies_s) - 1))] * 1000,
    )


async def _client(host: str, port: int, request: bytes, until: float) -> tuple[list[float], int]:
    """One connection's latencies in seconds, and how many answers were not 200."""
    reader, writer = await asyncio.open_connection(host, port)
    latencies: list[float] = []
    failed = 0
    try:
        while (before := time.perf_counter()) < until:
            writer.write(request)
            if await _answer(reader) == 200:
                latencies.append(time.perf_counter() - before)
            else:
                failed += 1
    finally:
        writer.close()
    return latencies, failed


async def _answer(reader: asyncio.StreamReader) -> int:
    """Read one answer, which must carry its length; its status."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    _, mark, rest = head.partition(b"\r\ncontent-length:")
    if not mark:
        raise ValueError(f"an answer without content-length: {head!r}")
    await reader.readexactly(int(rest.split(b"\r\n", 1)[0]))
    return int(head.split(b" ", 2)[1])


def measure(url: str, body: Path, *, connections: int, seconds: float) -> Load:
    """`send` in a process of its own. Raises RuntimeError if a request failed: a bench of failures means nothing."""
    command = [sys.executable, "-m", "bench.load", url, str(body)]
    command += ["--connections", str(connections), "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the load generator ended with {done.returncode}: {done.stderr[-2000:]}")
    load = Load(**json.loads(done.stdout))
    if load.failed:
        raise RuntimeError(f"{url}: {load.failed} of {load.requests + load.failed} requests were not answered with 200")
    return load


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.load")
    parser.add_argument("url")
    parser.add_argument("body", type=Path)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    load = asyncio.run(
        send(
            arguments.url,
            arguments.body.read_bytes(),
            connections=arguments.connections,
            seconds=arguments.seconds,
        )
    )
    print(json.dumps(asdict(load)))


if __name__ == "__main__":
    main()
