"""Real servers for the tests: each a child of the test run, on loopback, in a folder of its own, gone when the run is.

One module a server. Import as `from servers.registry import …`; `tests/conftest.py` keeps this folder itself off the path, where a
`docker.py` would hide the library of that name.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def need(command: str, package: str | None = None, folders: Sequence[str] = ()) -> str:
    """The path of a command that a test needs, looked for in `folders` too. Without it the test is skipped, saying so; in CI it fails."""
    found = shutil.which(command) or shutil.which(command, path=":".join(["/usr/sbin:/sbin:/usr/local/sbin", *folders]))
    if found is not None:
        return found
    said = (
        f"{command} is not installed; as root on Debian: apt-get install {package or command} (scripts/setup.sh --test)"
    )
    if os.environ.get("CI") == "true":
        pytest.fail(said)
    pytest.skip(said)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listened on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _die_with_parent(number: signal.Signals) -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(number))


@contextmanager
def running(
    command: Sequence[str],
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    user: str | None = None,
    grace_s: float = 10.0,
    dies_by: signal.Signals = signal.SIGKILL,
) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process group of its own, ended at the end: SIGTERM, then SIGKILL to the group. If the test run is
    killed it gets `dies_by`."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, cwd=cwd,
            user=user, start_new_session=True, preexec_fn=partial(_die_with_parent, dies_by),  # noqa: PLW1509 - one thread forks here, and nothing else helps
        )  # fmt: skip
    try:
        yield child
    finally:
        stop(child, grace_s)


def stop(child: subprocess.Popen[bytes], grace_s: float = 10.0) -> None:
    """End a server and whatever it started."""
    if child.poll() is None:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(grace_s)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def wait_until(ready: Callable[[], bool], child: subprocess.Popen[bytes], log: Path, timeout_s: float = 30.0) -> None:
    """Wait for a server to be ready. Fails the test with its last words if it ends or takes too long."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if child.poll() is not None:
            break
        if ready():
            return
        time.sleep(0.05)
    state = f"ended with {child.returncode}" if child.returncode is not None else f"not ready in {timeout_s:g} s"
    pytest.fail(f"{child.args!r} {state}; its log ends: {log.read_text(errors='replace')[-2000:]}")


def answers(port: int) -> bool:
    """Whether somebody accepts connections on this port of 127.0.0.1."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
