"""The prediction log's writer: what was answered is on record before the answer goes out, and outlives a kill -9.

Every process appends to a journal of its own by `write(2)`, so that the kernel holds the row when the process dies. From time to
time a journal becomes a Parquet segment: written aside, flushed, renamed to `<stem>.parquet`, and only then is `<stem>.jsonl`
removed. A reader that finds both ignores the journal, so no instant loses or doubles a row.

A live writer holds a lock (flock) on its journal; a journal without one was left by a dead process and is taken over by whoever
comes next. Several processes may write one folder.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from serving.segments import is_segment, write_segment

logger = logging.getLogger("serving.log")

JOURNAL_SUFFIX = ".jsonl"
SEGMENT_SUFFIX = ".parquet"


class PredictionRow(msgspec.Struct, frozen=True, kw_only=True):
    """One answered row, as the journal has it."""

    id: str
    at: float
    """Seconds since the epoch, UTC."""
    version: int
    role: Literal["live", "shadow"]
    key: str | None
    """The sticky key of the request."""
    score: list[float]
    f: dict[str, float | str | None]
    """Feature → value; NaN is written as null."""


class LabelRow(msgspec.Struct, frozen=True, kw_only=True):
    """One reported label, as the journal has it."""

    id: str
    at: float
    label: str
    """The label's JSON encoding, such as `1` or `"yes"`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rotation:
    """When a journal becomes a segment: at whichever bound comes first."""

    rows: int = 50_000
    size_bytes: int = 32 * 1024 * 1024
    age_s: float = 300.0
    """Real seconds since the journal's first row."""


class Journal:
    """A file of one JSON object a line that only this process appends to. Not safe for several threads."""

    def __init__(self, path: Path, *, fsync: bool = False) -> None:
        """Create and lock the file. Raises OSError; FileExistsError also when another process took it for an orphan."""
        self.path = path
        self._fsync = fsync
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(self._fd).st_nlink == 0:
                raise FileExistsError(f"{path} was taken over by another process before it was locked")
        except BlockingIOError as error:
            os.close(self._fd)
            raise FileExistsError(f"{path} was taken over by another process before it was locked") from error
        except BaseException:
            os.close(self._fd)
            raise
        self.rows = 0
        self.size_bytes = 0
        self._torn = False
        self.opened_at = time.monotonic()

    def append(self, lines: bytes, rows: int) -> None:
        """Append whole lines: all of them or, when this raises OSError (disk full), none."""
        block = b"\n" + lines if self._torn else lines
        written = 0
        try:
            while written < len(block):
                written += os.write(self._fd, memoryview(block)[written:])
            if self._fsync:
                os.fdatasync(self._fd)
        except OSError:
            if written:
                self._cut_back()
            raise
        self._torn = False
        self.size_bytes += len(block)
        self.rows += rows

    def _cut_back(self) -> None:
        """Drop what a failed append left; if even that fails, the next append starts on a new line."""
        try:
            os.ftruncate(self._fd, self.size_bytes)
        except OSError:
            self._torn = True
            self.size_bytes = os.fstat(self._fd).st_size

    def is_removed(self) -> bool:
        """Whether somebody deleted the file, so that what is appended would be lost."""
        return os.fstat(self._fd).st_nlink == 0

    def close(self) -> None:
        """Close the file, which gives up the lock."""
        os.close(self._fd)


class LogWriter:
    """Appends rows of one kind under `folder` (named `predictions` or `labels`) and turns full journals into segments.

    `append` may be called from any thread. `now` gives seconds since the epoch and names the files.
    """

    def __init__(
        self, folder: Path, *, now: Callable[[], float], rotation: Rotation | None = None, fsync: bool = False
    ) -> None:
        self._folder = folder
        self._now = now
        self._rotation = rotation or Rotation()
        self._fsync = fsync
        self._encoder = msgspec.json.Encoder()
        self._lock = threading.Lock()
        self._journal: Journal | None = None
        self._full: list[Journal] = []
        self._closing = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._rotate_forever, name=f"log-{folder.name}", daemon=True)

    def start(self) -> None:
        """Take over journals of dead processes and start rotating, both in the background."""
        self._thread.start()

    def append(self, rows: Sequence[PredictionRow] | Sequence[LabelRow]) -> None:
        """Put rows on record; they survive a kill -9 once this returns. Raises OSError, and then none of them is on record."""
        lines = self._encoder.encode_lines(rows)
        with self._lock:
            if self._journal is not None and self._journal.is_removed():
                self._journal.close()
                self._journal = None
            if self._journal is None:
                self._journal = self._open()
            self._journal.append(lines, len(rows))
            if self._journal.rows >= self._rotation.rows or self._journal.size_bytes >= self._rotation.size_bytes:
                self._retire()

    def close(self) -> None:
        """Turn what is left into segments and stop. What cannot be turned stays as a journal for the next process."""
        with self._lock:
            self._closing = True
            self._retire()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self._drain()

    def _open(self) -> Journal:
        self._folder.mkdir(parents=True, exist_ok=True)
        for _ in range(8):
            stem = f"{datetime.fromtimestamp(self._now(), UTC):%Y%m%dT%H%M%S%f}-{os.getpid()}-{secrets.token_hex(4)}"
            try:
                return Journal(self._folder / (stem + JOURNAL_SUFFIX), fsync=self._fsync)
            except FileExistsError:
                continue
        raise FileExistsError(f"{self._folder}: no journal could be created in 8 attempts")

    def _retire(self) -> None:
        if self._journal is not None:
            self._full.append(self._journal)
            self._journal = None
            self._wake.set()

    def _rotate_forever(self) -> None:
        while not self._closing:
            recover(self._folder)
            self._wake.wait(min(self._rotation.age_s, 60.0))
            self._wake.clear()
            with self._lock:
                if self._journal is not None and time.monotonic() - self._journal.opened_at >= self._rotation.age_s:
                    self._retire()
            self._drain()

    def _drain(self) -> None:
        """Turn all retired journals into segments."""
        while True:
            with self._lock:
                if not self._full:
                    return
                journal = self._full.pop(0)
            try:
                convert(journal.path)
            except Exception as error:  # noqa: BLE001 - the rows are safe in the journal; the thread must go on
                logger.warning("journal.kept %s: %s; it is tried again later", journal.path, error)
            finally:
                journal.close()


def convert(journal: Path) -> None:
    """Turn one journal, whose lock the caller holds, into its segment and remove it. Raises OSError, ArrowException."""
    segment = journal.with_suffix(SEGMENT_SUFFIX)
    if not is_segment(segment):
        write_segment(journal, segment)
    journal.unlink(missing_ok=True)


def recover(folder: Path) -> list[Path]:
    """Turn the journals of dead processes into segments. Returns the journals that it turned; never raises for a bad one."""
    turned = []
    for path in sorted(folder.glob("*" + JOURNAL_SUFFIX)):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink > 0:
                convert(path)
                turned.append(path)
        except BlockingIOError:
            continue
        except Exception as error:  # noqa: BLE001 - one bad journal must not keep the others, or the process, from going on
            logger.warning("journal.kept %s: %s", path, error)
        finally:
            os.close(fd)
    return turned
