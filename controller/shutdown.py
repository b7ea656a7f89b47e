"""Stopping everything that lives for a state folder: the daemon, the job host and its jobs, the router and the replicas.

For demonstrations, tests, and taking a machine out of service. What was persisted stays: the next daemon starts it all again.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from controller.leadership import LOCK, PRESENT
from deployers.docker import used_docker_host
from deployers.local import ProcessHost
from deployers.routed.replicas import Host
from deployers.routed.target import RoutedTarget
from deployers.target import TargetError
from pipelines.jobs.local import LocalJobRunner

DAEMON_PATIENCE_S = 30.0
_POLL_S = 0.05


class NotStopped(Exception):
    """Something did not end; the message says what."""


def stop_everything(home: Path) -> Iterator[str]:
    """Stop in the order in which nothing is started again; yields a line for each thing done. May be repeated.

    Raises NotStopped."""
    pids = stop_daemons(home)
    yield from (f"the daemon (pid {pid}) has stopped" for pid in pids)
    if not pids:
        yield "no daemon was running"
    jobs = LocalJobRunner(home)
    active = sorted(jobs.active())
    for job_id in active:
        jobs.cancel(job_id)
    jobs.stop_host()
    yield f"{len(active)} jobs were stopped{': ' + ', '.join(active) if active else ''}"
    try:
        _stop_serving(home)
    except (TargetError, OSError) as error:
        raise NotStopped(f"serving did not stop: {error}; try again") from error
    yield "the router and all replicas have stopped"


def _stop_serving(home: Path) -> None:
    """Raises TargetError, OSError."""
    hosts: dict[str, Host] = {"local": ProcessHost(home)}
    if (containers := used_docker_host(home)) is not None:
        hosts["docker"] = containers
    RoutedTarget(home, hosts, port=0).stop_all()


def stop_daemons(home: Path) -> list[int]:
    """End the daemon, and those that stand by on this machine, and wait until they have; their pids. Raises NotStopped."""
    present = sorted((home / "run" / PRESENT).glob(f"{socket.gethostname()}-*.lock"))
    found = {path: pid for path in [*present, home / "run" / LOCK] if (pid := _holder(path)) is not None}
    for pid in found.values():  # all at once, so that none takes over from another
        try:
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGCONT)  # one that was suspended would never hear of it
        except ProcessLookupError:
            continue
        except PermissionError as error:
            raise NotStopped(f"the daemon (pid {pid}) belongs to another user") from error
    deadline = time.monotonic() + DAEMON_PATIENCE_S
    for path, pid in found.items():
        while _holder(path) is not None:
            if time.monotonic() > deadline:
                raise NotStopped(f"the daemon (pid {pid}) did not stop within {DAEMON_PATIENCE_S:g} s")
            time.sleep(_POLL_S)
    return list(found.values())


def _holder(path: Path) -> int | None:
    """The process that holds the daemon's lock: as long as it is held, the pid written in it is nobody else's."""
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        parts = os.pread(handle, 200, 0).decode(errors="replace").split(":")
        return int(parts[-2]) if len(parts) >= 3 and parts[-2].isdigit() else None
    finally:
        os.close(handle)
    return None
