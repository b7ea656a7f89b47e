"""The job host: a process that has the heavy libraries loaded once and forks a nanny for each job, in milliseconds instead of seconds.

`python -m pipelines.jobs.host --home HOME` returns as soon as a host listens on `HOME/run/jobs.sock`: this one, or the one before.
The host holds no state: whether a job may start is decided by the job's folder alone, so the host may be killed at any moment, and two
requests for one job start one job. It has one thread, always: a fork of a process with more is not safe. What it preloads (what it is told
to, and then the modules of the jobs that were asked for) it loads between requests, so that even the very first job waits for no import
but its own.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.jobs.nanny import Surroundings, supervise
from pipelines.jobs.records import JobFolder

SINGLE_THREADED = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pyarrow's allocator
}
"""Environment in which numpy, scipy, scikit-learn and pyarrow start no thread when they are imported."""
_ROOMS = ("policies", "pipelines", "tuners", "evaluators", "deployers")
_REQUEST_S = 5.0
_LOOK_AROUND_S = 5.0


def socket_path(home: Path) -> Path:
    return home / "run" / "jobs.sock"


def reachable(path: Path, folder: int) -> str:
    """The socket's address by way of its opened folder: Unix sockets have 108 characters for a path, homes may need more."""
    return f"/proc/self/fd/{folder}/{path.name}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.jobs.host", description="Start the job host of a home.")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--preload", default="", help="modules, separated by commas")
    parser.add_argument("--idle-s", type=float, default=300.0, help="end after so long without a request")
    options = parser.parse_args(arguments)
    path = socket_path(options.home.absolute())
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(path.with_name("jobs-host.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    listener = _listen(path)
    if os.fork():
        os._exit(0)
    os.setsid()
    preload = [m for m in options.preload.split(",") if m]
    _Host(options.home.absolute(), listener, lock, preload, options.idle_s).serve()
    return 0


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)
    try:
        listener.bind(reachable(path, folder))
    finally:
        os.umask(umask)
        os.close(folder)
    listener.listen(64)
    return listener


class _Host:
    def __init__(self, home: Path, listener: socket.socket, lock: int, preload: list[str], idle_s: float) -> None:
        self._home, self._listener, self._lock, self._idle_s = home, listener, lock, idle_s
        self._preload = preload
        self._tried = set(preload)
        self._path = socket_path(home)
        self._inode = self._path.stat().st_ino
        self._loaded_at: dict[str, int] = {}
        self._leaving = False

    def serve(self) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nannies leave no zombies
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        try:
            self._note_code()
            self._loop()
        finally:
            with contextlib.suppress(OSError):
                if self._is_ours():
                    self._path.unlink()

    def _loop(self) -> None:
        last_asked = time.monotonic()
        while not self._leaving and self._is_ours():
            patience = 0.0 if self._preload else min(self._idle_s, _LOOK_AROUND_S)
            if select.select([self._listener], [], [], patience)[0]:
                self._answer()
                last_asked = time.monotonic()
            elif self._preload:
                self._load(self._preload.pop(0))
            elif time.monotonic() - last_asked >= self._idle_s:
                return

    def _is_ours(self) -> bool:
        """Whether clients still find this host: the home may have been deleted."""
        try:
            return self._path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    def _load(self, module: str) -> None:
        began = time.monotonic()
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 - jobs that need it will say so; others can still run
            print(f"not preloaded: {module}: {error}", file=sys.stderr, flush=True)
            return
        self._note_code()
        gc.collect()
        gc.freeze()  # the collector then does not touch, and so not copy, the pages that children share
        threads = len(os.listdir("/proc/self/task"))
        print(f"preloaded {module} in {time.monotonic() - began:.2f} s; {threads} thread(s)", flush=True)

    # ---------------------------------------------------------------- requests
    def _answer(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(_REQUEST_S)
            try:
                reply = self._handle(json.loads(_read_all(connection)), connection)
                connection.sendall(json.dumps(reply).encode())
            except (OSError, ValueError) as error:
                print(f"request dropped: {error}", file=sys.stderr, flush=True)

    def _handle(self, request: dict[str, Any], connection: socket.socket) -> dict[str, Any]:
        if request.get("op") == "stop" or self._is_outdated():
            self._leaving = True
            self._path.unlink(missing_ok=True)
            os.close(self._lock)  # so that the successor may start at once
            return {"leaving": True}
        if request.get("op") == "start":
            try:
                self._start(request, connection)
            except (OSError, ValueError) as error:
                return {"error": f"{type(error).__name__}: {error}"}
        return {"ok": True}

    def _start(self, request: dict[str, Any], connection: socket.socket) -> None:
        """Fork the job's nanny, unless the job was started or cancelled before. Raises OSError, ValueError."""
        folder = JobFolder.of(self._home / "jobs", request["job_id"])
        spec = folder.spec()
        lock = folder.begin() if spec is not None else None
        if spec is None or lock is None:
            return
        surroundings = Surroundings(env=request["env"], path=request["path"], grace_s=request["grace_s"])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", DeprecationWarning
                )  # Python 3.12 on fork with threads: reported by _load
                nanny = os.fork()
        except OSError:
            folder.unbegin(lock)
            raise
        if nanny == 0:
            os.close(self._lock)
            self._listener.close()
            connection.close()
            supervise(folder, spec, lock, surroundings)
        os.close(lock)
        self._learn(spec.entry.partition(":")[0])

    def _learn(self, module: str) -> None:
        """What was asked for will be asked for again: have our own job modules loaded the next time. An owner's code never."""
        if module.partition(".")[0] in _ROOMS and module not in self._tried:
            self._tried.add(module)
            self._preload.append(module)

    # ---------------------------------------------------------------- own code
    def _note_code(self) -> None:
        for file in _own_files():
            self._loaded_at.setdefault(file, _modified_ns(file))

    def _is_outdated(self) -> bool:
        """Whether our own code changed since this process loaded it: jobs must run what the daemon that asks runs."""
        return any(_modified_ns(file) != loaded for file, loaded in self._loaded_at.items())


def _own_files() -> list[str]:
    modules = [m for name, m in list(sys.modules.items()) if name.partition(".")[0] in _ROOMS]
    return [file for m in modules if (file := getattr(m, "__file__", None))]


def _modified_ns(file: str) -> int:
    try:
        return os.stat(file).st_mtime_ns
    except OSError:
        return 0


def _read_all(connection: socket.socket) -> bytes:
    chunks = []
    while chunk := connection.recv(2**16):
        chunks.append(chunk)
    return b"".join(chunks)


if __name__ == "__main__":
    sys.exit(main())
