"""Processes that outlive whoever started them, at most one a slot.

A slot is a folder with a lock file. The starter takes the lock (flock) and the process inherits it, so the lock is held exactly as long as
the process or a child of it lives: no pid needs to be trusted to know that. Before the program runs, its own shell writes down who it is
(pid, start time, boot), so that a starter killed in between leaves no process that nobody knows, and so that no signal ever goes to a
stranger who got the same pid later.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

LOG_BYTES_MAX = 4 * 2**20
"""A log that is longer is begun anew; the old one, or its newest part, is kept once, as `.1`."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_LAUNCH = (
    '{ ulimit -Sn 65536 || ulimit -Sn "$(ulimit -Hn)"; } 2>/dev/null; '  # a connection is a file, and the usual limit is 1024
    "read -r stat </proc/$$/stat && read -r boot </proc/sys/kernel/random/boot_id"
    ' && echo "$boot $stat" >"$0" && exec "$@"'
)
_ERROR = re.compile(r"\b(ERROR|CRITICAL)\b")
_children: dict[int, subprocess.Popen[bytes]] = {}
"""Processes that this one started, to be reaped by it, whichever slot object started them."""


class Presence(StrEnum):
    GONE = "gone"
    RUNNING = "running"
    ORPHANED = "orphaned"
    """The process is dead, but children of it live on."""
    UNKNOWN = "unknown"
    """Who could say does not answer: the container engine is away."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A process that no other can be taken for."""

    boot: str
    pid: int
    started_ticks: int
    """Clock ticks since boot, field 22 of /proc/PID/stat (proc(5))."""

    @classmethod
    def parse(cls, text: str) -> Identity | None:
        """From `BOOT_ID CONTENT_OF_STAT`; None if it is not whole. The command's name in it may hold blanks and brackets."""
        head, bracket, tail = text.rpartition(")")
        fields = tail.split()
        if not bracket or len(fields) < 20:
            return None
        boot, pid = head.split(maxsplit=2)[:2]
        return cls(boot, int(pid), int(fields[19]))

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """Of a process that lives now (a zombie does not)."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        if stat.rpartition(")")[2].split()[0] in "ZX":
            return None
        return cls.parse(f"{boot_id()} {stat}")


def boot_id() -> str:
    return _BOOT_ID.read_text().strip()


def reap() -> None:
    """Collect children that ended, so that they do not stay as zombies."""
    for pid, child in list(_children.items()):
        if child.poll() is not None:
            _children.pop(pid, None)


@contextlib.contextmanager
def locked(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold the file's lock while the block runs. Raises TimeoutError if another holds it for longer than `timeout_s`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + timeout_s
        while not _try_lock(handle, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path} has been locked by another process for {timeout_s:g} s")
            time.sleep(0.01)
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one process. Its folder may be deleted when the process is gone."""

    folder: Path

    @property
    def announce(self) -> Path:
        """Where the process says that it accepts requests."""
        return self.folder / "announce.json"

    @property
    def _lock(self) -> Path:
        return self.folder / "lock"

    @property
    def _identity(self) -> Path:
        return self.folder / "process"

    def presence(self) -> Presence:
        if not self._held():
            return Presence.GONE
        known = self.identity()
        if known is not None and Identity.of(known.pid) != known and self._held():
            return Presence.ORPHANED
        return Presence.RUNNING

    def _held(self) -> bool:
        try:
            handle = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not _try_lock(handle, fcntl.LOCK_SH)
        finally:
            os.close(handle)

    def identity(self) -> Identity | None:
        """Who was started here last; None if nobody, or if it is just being started."""
        try:
            return Identity.parse(self._identity.read_text())
        except FileNotFoundError:
            return None

    def start(self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> bool:
        """Start the program in a session of its own; False if a process is here already. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not _try_lock(handle, fcntl.LOCK_EX):
                return False
            self.announce.unlink(missing_ok=True)
            self._identity.unlink(missing_ok=True)
            with log.open("ab") as output:
                child = subprocess.Popen(
                    ["/bin/sh", "-c", _LAUNCH, str(self._identity), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    pass_fds=(handle,),
                    env=dict(env),
                    cwd=cwd,
                )
            _children[child.pid] = child
            return True
        finally:
            os.close(handle)

    def terminate(self) -> None:
        """Ask the process to finish what it does and to end."""
        known = self.identity()
        if known is not None and Identity.of(known.pid) == known:
            _signal(known.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the process and all that it started, at once."""
        known = self.identity()
        if known is not None and Identity.of(known.pid) == known:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(known.pid, signal.SIGKILL)
        for pid in self._holders():
            _signal(pid, signal.SIGKILL)

    def _holders(self) -> Iterator[int]:
        """Processes that have this slot's lock file open: the process and its children, whoever their parent is now."""
        wanted = os.stat(self._lock) if self._lock.exists() else None
        for entry in Path("/proc").iterdir():
            if wanted is None or not entry.name.isdecimal() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                for descriptor in (entry / "fd").iterdir():
                    if os.path.samestat(os.stat(descriptor), wanted):
                        yield int(entry.name)
                        break

    def clear(self) -> None:
        """Forget a process that is gone."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def begin_log(path: Path) -> int:
    """Put a log aside that has grown too long, and say at which byte the next process begins to write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return 0
    if size <= LOG_BYTES_MAX:
        return size
    os.replace(path, path.with_name(path.name + ".1"))
    return 0


def trim_log(path: Path) -> None:
    """Begin the log of a running process anew once it has grown too long, so that nobody who makes it complain fills the disk.

    The process appends (O_APPEND), so it goes on at the new end. The newest part is kept once, as `.1`, if there is room for it."""
    try:
        size = path.stat().st_size
        if size <= LOG_BYTES_MAX:
            return
        with contextlib.suppress(OSError), path.open("rb") as file:
            file.seek(size - LOG_BYTES_MAX)
            path.with_name(path.name + ".1").write_bytes(file.read(LOG_BYTES_MAX))
        os.truncate(path, 0)
    except OSError:  # no log yet, or no right to it: no reason to stop looking after the process
        return


def last_words(log: Path, begin: int, *, bytes_max: int = 8192, length_max: int = 400) -> str:
    """What a process that wrote from byte `begin` said last: its last line of level ERROR, else its last line, else nothing."""
    try:
        with log.open("rb") as file:
            size = log.stat().st_size
            file.seek(max(begin if begin <= size else 0, size - bytes_max))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return last_line(lines, length_max=length_max)


def last_line(lines: Sequence[str], *, length_max: int = 400) -> str:
    """The last line of level ERROR, else the last that says anything, else nothing.

    >>> last_line(["10:00 ERROR model.refused", "bye", " "])
    '10:00 ERROR model.refused'
    """
    spoken = [line.strip() for line in lines if line.strip()]
    errors = [line for line in spoken if _ERROR.search(line)]
    return next(reversed(errors or spoken), "")[-length_max:]
