"""What Linux says about a tree of processes, and how to end one. Standard library only: the nanny of every job uses it.

A process that is a *subreaper* adopts its orphaned descendants, so that walking down from it misses none, daemonised ones included.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_KILL_PATIENCE_S = 5.0
_LIBC = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent`, which forked it, ends; exits at once if it ended already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def boot_id() -> str:
    """Changes with each start of the machine; process ids and monotonic times of another boot mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def descendants(pid: int) -> list[int]:
    """Children of `pid`, their children and so on, zombies included; parents before children."""
    found: list[int] = []
    queue = [pid]
    while queue:
        children = _children(queue.pop())
        found += children
        queue += children
    return found


def _children(pid: int) -> list[int]:
    children: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            children += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return children


def resident_bytes(pids: Iterable[int], *, at_most: int) -> int:
    """Memory of the processes together, exact only when it is above `at_most` (which is what one wants to know).

    The cheap sum counts a page once for each process that maps it; only if that is too much are shared pages divided up
    (proportional set size), which costs milliseconds a gigabyte.
    """
    pids = list(pids)
    upper_bound = sum(map(_rss_bytes, pids))
    return upper_bound if upper_bound <= at_most else sum(map(_pss_bytes, pids))


def _rss_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def end_descendants(grace_s: float) -> bool:
    """Ask all descendants of this process to end, kill after `grace_s` those that have not; whether all are gone.

    Only for a process that adopts orphans: it reaps whatever ended.
    """
    return _end(signal.SIGTERM, grace_s) or _end(signal.SIGKILL, _KILL_PATIENCE_S)


def _end(signal_number: int, patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    told: set[int] = set()
    while True:
        _reap()
        alive = descendants(os.getpid())
        if not alive:
            return True
        for pid in set(alive) - told:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal_number)
        told.update(alive)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot: with the pid it names a process for good. None if there is none."""
    try:
        # The name, in brackets, may itself hold spaces and brackets; starttime is the 22nd field, the 20th after the name.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return None


def sweep_group(group: int, leader_start_ticks: int) -> None:
    """Kill what is left of a process group of this boot, given when its leader started.

    The kernel gives the number of a group to no new process while the group has a member. So if another process has that number now, the
    group was empty: hands off.
    """
    if start_ticks(group) in (None, leader_start_ticks):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
