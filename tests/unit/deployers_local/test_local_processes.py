"""Slots: one process at a time, known for certain, and no signal to a stranger."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deployers.routed.processes import (
    LOG_BYTES_MAX,
    Identity,
    Presence,
    Slot,
    begin_log,
    boot_id,
    last_words,
    locked,
    reap,
    trim_log,
)


@pytest.fixture
def slot(tmp_path: Path) -> Iterator[Slot]:
    found = Slot(tmp_path / "slot")
    yield found
    found.kill()
    wait(lambda: found.presence() is Presence.GONE)
    reap()


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def run(slot: Slot, code: str) -> bool:
    command = [sys.executable, "-S", "-c", code]
    return slot.start(command, env={"WORD": "said"}, cwd=slot.folder.parent, log=slot.folder.parent / "log")


def identity(slot: Slot) -> Identity:
    wait(lambda: slot.identity() is not None)
    found = slot.identity()
    assert found is not None
    return found


def test_slot_holds_one_process(slot: Slot) -> None:
    """A second start is refused while the first process lives, and works when it is gone."""
    assert slot.presence() is Presence.GONE
    assert run(slot, "input() if 0 else __import__('time').sleep(60)")
    assert slot.presence() is Presence.RUNNING
    assert not run(slot, "pass")
    assert not run(Slot(slot.folder), "pass")
    known = identity(slot)
    assert Identity.of(known.pid) == known
    os.kill(known.pid, signal.SIGKILL)
    wait(lambda: slot.presence() is Presence.GONE)
    assert run(slot, "pass")


def test_process_has_its_own_session_environment_folder_and_log(slot: Slot) -> None:
    """The process is cut loose from its starter: own session, no input, given environment, output in the log."""
    run(
        slot,
        "import os,sys; print(os.getsid(0) == os.getpid(), os.environ['WORD'], os.getcwd(), sys.stdin.read() == '')",
    )
    log = slot.folder.parent / "log"
    wait(lambda: slot.presence() is Presence.GONE)
    assert last_words(log, 0) == f"True said {slot.folder.parent} True"


def test_signal_never_goes_to_a_stranger(slot: Slot) -> None:
    """A process that has the recorded pid but started at another time is left alone."""
    with subprocess.Popen(["sleep", "60"]) as stranger:
        real = Identity.of(stranger.pid)
        assert real is not None
        slot.folder.mkdir()
        stat = Path(f"/proc/{stranger.pid}/stat").read_text()
        older = stat.replace(f" {real.started_ticks} ", f" {real.started_ticks - 1} ")
        for text in (f"{boot_id()} {older}", f"another-boot {stat}"):
            (slot.folder / "process").write_text(text)
            slot.terminate()
            slot.kill()
            assert stranger.poll() is None
        stranger.kill()


def test_children_that_outlive_their_parent_are_found_and_killed(slot: Slot) -> None:
    """When the process died and a child of it lives on, the slot is orphaned, cannot be used, and can be cleaned."""
    run(slot, "import os,time; os.fork() or os.setsid(); time.sleep(60)")
    parent = identity(slot).pid
    children = Path(f"/proc/{parent}/task/{parent}/children")
    wait(lambda: bool(children.read_text().split()))
    child = int(children.read_text())
    os.kill(parent, signal.SIGKILL)
    wait(lambda: slot.presence() is Presence.ORPHANED)
    assert not run(slot, "pass")
    slot.kill()
    wait(lambda: slot.presence() is Presence.GONE)
    assert Identity.of(child) is None


@pytest.mark.parametrize("text", ["", "boot", "boot 12 (name", "boot 12 (na) me) S 1 2", "boot 12 (x) " + "1 " * 5])
def test_torn_identity_is_none(text: str) -> None:
    """What a shell was killed while writing is no identity."""
    assert Identity.parse(text) is None


def test_identity_survives_odd_names() -> None:
    """A command named with blanks and brackets does not shift the fields."""
    assert Identity.parse("b 12 (a) (b c)) S " + " ".join(map(str, range(1, 25)))) == Identity("b", 12, 19)


def test_long_log_is_begun_anew(tmp_path: Path) -> None:
    """A log over the limit is put aside once when the next process starts."""
    log = tmp_path / "serving" / "log"
    assert begin_log(log) == 0
    log.write_bytes(b"short")
    assert begin_log(log) == 5
    log.write_bytes(b"x" * (LOG_BYTES_MAX + 1))
    assert begin_log(log) == 0
    assert log.with_name("log.1").stat().st_size == LOG_BYTES_MAX + 1
    assert not log.exists()


def test_log_of_a_running_process_is_bounded_too(slot: Slot) -> None:
    """One that never stops and complains of every bad request must not fill the disk: its newest lines are kept, and it goes on."""
    line = "x" * 1023
    run(slot, f"import time\nfor i in range({LOG_BYTES_MAX // 1024 + 10}): print({line!r})\nprint('last', flush=True)\n"
              "time.sleep(1); print('after', flush=True); time.sleep(60)")  # fmt: skip
    log = slot.folder.parent / "log"
    wait(lambda: log.exists() and log.read_text().endswith("last\n"))
    trim_log(log)
    wait(lambda: log.read_text() == "after\n")
    old = log.with_name("log.1")
    assert (old.stat().st_size, old.read_text().endswith("last\n")) == (LOG_BYTES_MAX, True)
    trim_log(log)
    assert log.read_text() == "after\n"


def test_process_may_have_many_connections(slot: Slot) -> None:
    """The soft limit of open files, often 1024, is raised as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        run(slot, "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    wait(lambda: slot.presence() is Presence.GONE)
    assert int(last_words(slot.folder.parent / "log", 0)) == min(hard, 65536)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ""),
        ("one\n\n  \n", "one"),
        ("1 ERROR model refused\n2 WARNING worker died\n", "1 ERROR model refused"),
        ("Traceback\n  File x\nValueError: bad\n", "ValueError: bad"),
    ],
)
def test_last_words_are_the_last_error_of_this_process(tmp_path: Path, text: str, words: str) -> None:
    """The last ERROR line, else the last line; what an earlier process wrote does not count."""
    log = tmp_path / "log"
    earlier = "0 ERROR of the process before\n"
    log.write_text(earlier + text)
    assert last_words(log, len(earlier)) == words
    assert last_words(tmp_path / "none", 0) == ""


def test_lock_is_waited_for_only_so_long(tmp_path: Path) -> None:
    """A lock that another holds raises after the time-out, naming the file, and is free after release."""
    with locked(tmp_path / "lock", 1), pytest.raises(TimeoutError, match="lock"), locked(tmp_path / "lock", 0.05):
        pass
    with locked(tmp_path / "lock", 0.05):
        pass
