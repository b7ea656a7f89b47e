"""Server processes under test: started, awaited, stopped with all their children; and how much memory a tree of them holds."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

START_S = 120.0
STOP_S = 30.0


@contextmanager
def server(command: Sequence[str], log: Path, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a process group of its own until the block ends; its output goes to the file `log`."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **(env or {})}, start_new_session=True
        )
        try:
            yield process
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_S)


def wait_for(ready: Path | int, process: subprocess.Popen[bytes], log: Path) -> int:
    """Wait until a server has written its announcement file, or accepts connections on a port; its port.

    Raises RuntimeError, with the end of its log, if it ends or is not ready in time."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        if isinstance(ready, Path) and ready.is_file():
            return int(json.loads(ready.read_bytes())["port"])
        if isinstance(ready, int) and _accepts(ready):
            return ready
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} did not start:\n{log.read_text()[-2000:]}")


def _accepts(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def replica(model_dir: Path, folder: Path, *, name: str, workers: int) -> Iterator[tuple[int, int]]:
    """Our serving runtime on a model folder; gives its port and pid."""
    folder.mkdir()
    announce, log = folder / "announce.json", folder / "log.txt"
    command = [sys.executable, "-m", "serving.runtime", "--model-dir", str(model_dir), "--name", name, "--version", "1"]
    command += ["--log-dir", str(folder / "log"), "--workers", str(workers), "--announce", str(announce)]
    with server(command, log) as process:
        yield wait_for(announce, process, log), process.pid


def pss_mb(*pids: int) -> float:
    """Proportional set size, in MB, of processes and all their descendants: shared pages are counted once in all."""
    family = {p.pid: p for pid in pids for p in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]}
    return float(sum(process.memory_full_info().pss for process in family.values())) / 1e6
