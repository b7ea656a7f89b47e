"""Runs `git`, through GitPython, with every call bounded in time and in what it may say and write.

GitPython starts the process; waiting for it is done here, because its own time limit does not reach a transport that was started by `git`:
each call has a process group of its own, which is killed as a whole. What went wrong is said without secrets, in one line.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote

from controller.sources.git.access import Access, environment, options, secrets_of
from controller.sources.port import SourceAway

if TYPE_CHECKING:
    from git import Git

LOCAL_TIMEOUT_S = 120.0
OUTPUT_MAX = 64 << 20
"""Bytes that a call may answer."""
WORDS_MAX = 400
_POLL_S = 0.05
_CHUNK = 1 << 16
_USERINFO = re.compile(r"(\w+://)[^/@\s]+@")
_NOISE = re.compile(r"^(hint|warning|remote: (Enumerating|Counting|Compressing|Total))", re.IGNORECASE)


class GitFailed(SourceAway):
    """`git` did not do it. `words` is what it said, without secrets."""

    def __init__(self, message: str, words: str = "") -> None:
        super().__init__(message)
        self.words = words


class TooLarge(GitFailed):
    """More came, or was said, than is allowed."""


@dataclass(slots=True)
class GitCommand:
    """`git` for one repository on disk and one on a server."""

    access: Access
    git_dir: Path
    _running: dict[int, Any] = field(default_factory=dict)
    _closed: bool = False

    def run(
        self,
        *arguments: str,
        stdin: bytes | None = None,
        timeout_s: float = LOCAL_TIMEOUT_S,
        output_max: int = OUTPUT_MAX,
        watch: Callable[[], str] = lambda: "",
        variables: dict[str, str] | None = None,
    ) -> bytes:
        """What it printed. `watch` is asked now and then, and stops it with the sentence that it returns.

        Raises GitFailed, TooLarge."""
        with self.started(*arguments, stdin=stdin, timeout_s=timeout_s, watch=watch, variables=variables) as out:
            found = out.read(output_max + 1)
            if len(found) > output_max:
                raise TooLarge(f"git {arguments[0]} answers more than {output_max:,} bytes")
            return found

    @contextmanager
    def started(
        self,
        *arguments: str,
        stdin: bytes | None = None,
        timeout_s: float = LOCAL_TIMEOUT_S,
        watch: Callable[[], str] = lambda: "",
        variables: dict[str, str] | None = None,
    ) -> Iterator[IO[bytes]]:
        """Its output as a stream; when the block ends without an error, it must have ended well. Raises GitFailed, TooLarge."""
        if self._closed:
            raise GitFailed("the daemon stops")
        with _input(stdin) as source:
            process = self._start(arguments, source, variables or {})
            guard = _Guard(process, time.monotonic() + timeout_s, watch, arguments[0], timeout_s)
            self._running[process.pid] = process
            try:
                assert process.stdout is not None
                yield process.stdout
                while process.stdout.read(_CHUNK):
                    pass
                process.wait()
            except BaseException:
                guard.stop_process()
                process.wait()
                raise
            finally:
                self._running.pop(process.pid, None)
                stopped = guard.end()
                for pipe in (process.stdout, process.stderr):
                    if pipe is not None:
                        pipe.close()
        if stopped:
            raise TooLarge(stopped) if guard.watched else GitFailed(stopped)
        if process.returncode != 0:
            words = sayable(guard.errors.decode("utf-8", "replace"), self.access)
            raise GitFailed(f"git {arguments[0]}: {words or f'exit status {process.returncode}'}", words)

    def _start(self, arguments: Sequence[str], source: Any, variables: dict[str, str]) -> subprocess.Popen[bytes]:
        wanted = {**environment(self.access), "GIT_DIR": str(self.git_dir), **variables}
        command = [*_without(wanted), program(), *options(self.access), *arguments]
        cwd = self.git_dir if self.git_dir.is_dir() else Path("/")
        made: Any = git_of(cwd).execute(command, istream=source, as_process=True, env=wanted, start_new_session=True)
        process: subprocess.Popen[bytes] = made.proc
        made.proc = None  # GitPython would end it when its wrapper is collected; here the guard does
        return process

    def close(self) -> None:
        """Stop what runs; nothing can be started any more."""
        self._closed = True
        for process in list(self._running.values()):
            _kill(process)


@dataclass(slots=True)
class _Guard:
    """Watches one process from a thread of its own: its time, its errors, and what it writes."""

    process: subprocess.Popen[bytes]
    deadline: float
    watch: Callable[[], str]
    verb: str
    timeout_s: float
    errors: bytes = b""
    reason: str = ""
    watched: bool = False
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: tuple[threading.Thread, ...] = ()

    def __post_init__(self) -> None:
        self._threads = tuple(threading.Thread(target=run, daemon=True) for run in (self._listen, self._look))
        for thread in self._threads:
            thread.start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        with suppress(OSError, ValueError):
            while chunk := self.process.stderr.read1(_CHUNK):  # type: ignore[attr-defined]  # a BufferedReader
                self.errors = (self.errors + chunk)[-(WORDS_MAX * 16) :]

    def _look(self) -> None:
        while not self._over.wait(_POLL_S) and self.process.poll() is None:
            if time.monotonic() > self.deadline:
                self.reason = f"git {self.verb} took longer than {self.timeout_s:g} s and was stopped"
            elif said := self.watch():
                self.reason, self.watched = said, True
            if self.reason:
                self.stop_process()
                return

    def stop_process(self) -> None:
        _kill(self.process)

    def end(self) -> str:
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=5)
        return self.reason


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def _input(content: bytes | None) -> Iterator[Any]:
    """A file to read from: no thread must feed a pipe, however much the other side says meanwhile."""
    if content is None:
        yield None
        return
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        yield file


def _without(wanted: dict[str, str]) -> list[str]:
    """GitPython hands the daemon's environment on; variables of it that `git` or ssh heed, and that are not ours, are taken away."""
    foreign = [n for n in os.environ if n not in wanted and n.startswith(("GIT_", "SSH_", "GCM_", "CURL_", "GNUPG"))]
    return ["env", *(part for name in sorted(foreign) for part in ("-u", name))] if foreign else []


def program() -> str:
    """The `git` to run. Raises GitFailed, saying how to get it."""
    found = shutil.which("git")
    if found is None:
        raise GitFailed(
            "the command git is not on the daemon's PATH: install it (Debian: apt-get install git), or unset RATCHET_GIT_URL"
        )
    return found


def git_of(folder: Path) -> Git:
    """GitPython, imported only where Git is used: without `git` it would fail when imported."""
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import git

    return git.Git(folder)


def sayable(words: str, access: Access) -> str:
    """What `git` or a server said, in one line: no secret, no control characters, bounded."""
    lines = [line.strip() for line in words.splitlines() if line.strip() and not _NOISE.match(line.strip())]
    text = _USERINFO.sub(r"\1", "; ".join(lines))
    for secret in secrets_of(access):
        for form in {secret, quote(secret, safe="")}:
            text = text.replace(form, "***")
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= WORDS_MAX else f"{text[:WORDS_MAX]}…"
