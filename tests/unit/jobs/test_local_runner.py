"""What only real processes can show: kills at any moment, limits, races, a full disk, and what a start costs."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.jobs.host import SINGLE_THREADED, socket_path
from pipelines.jobs.local import PRELOAD, LocalJobRunner
from pipelines.jobs.port import JobSpec, JobState, JobStatus, Limits, RetryableJobError
from pipelines.jobs.records import VANISHED, JobFolder

ENTRIES = Path(__file__).parents[2] / "contracts"
JOB_MODULES = (
    "pipelines.prepare", "tuners.tune", "tuners.train", "evaluators.judge", "evaluators.observe", "deployers.package"
)  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(ENTRIES))
    yield tmp_path / "home"
    runner = runner_of(tmp_path / "home")
    for job_id in runner.active():
        runner.cancel(job_id)
    runner.stop_host()


def runner_of(home: Path, *, preload: tuple[str, ...] = ()) -> LocalJobRunner:
    return LocalJobRunner(home, preload=preload, idle_s=20, grace_s=0.3)


def spec_of(entry: str, job_id: str = "j1", *, timeout_s: float = 60, memory_mb: int = 2048, **inputs: Any) -> JobSpec:
    limits = Limits(timeout_s=timeout_s, memory_mb=memory_mb)
    return JobSpec(job_id=job_id, entry=f"job_entries:{entry}", inputs=inputs, limits=limits)


def until(condition: Callable[[], Any], patience_s: float = 20.0) -> Any:
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still waiting after {patience_s} s"
        time.sleep(0.005)
    return value


def ended(runner: LocalJobRunner, job_id: str = "j1") -> JobStatus:
    def look() -> JobStatus | None:
        status = runner.poll(job_id)
        assert status is not None
        return status if status.state is not JobState.RUNNING else None

    status = until(look)
    assert isinstance(status, JobStatus)
    return status


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def host_pid(home: Path) -> int:
    """The process whose command line is this home's host."""
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"pipelines.jobs.host" in words and str(home).encode() in words and is_alive(int(entry)):
                return int(entry)
    return 0


# ---------------------------------------------------------------- kills
def test_daemon_killed_job_goes_on(home: Path, tmp_path: Path) -> None:
    """kill -9 of the process that asked: the same job goes on, and another process polls its result."""
    script = f"""
        import sys; sys.path.insert(0, {str(ENTRIES)!r})
        from pathlib import Path
        from pipelines.jobs.local import LocalJobRunner
        from pipelines.jobs.port import JobSpec, Limits
        runner = LocalJobRunner(Path({str(home)!r}), preload=(), idle_s=20)
        inputs = {{"gate": {str(tmp_path / "gate")!r}, "starts": {str(tmp_path / "starts")!r}}}
        spec = JobSpec(job_id="j1", entry="job_entries:count_starts", inputs=inputs, limits=Limits(timeout_s=60, memory_mb=999))
        runner.ensure(spec)
        print("asked", flush=True)
        import time; time.sleep(600)
    """
    daemon = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    with daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == b"asked\n"
        daemon.kill()
    runner = runner_of(home)
    assert runner.active() == {"j1"}
    runner.ensure(spec_of("count_starts", gate=str(tmp_path / "gate"), starts=str(tmp_path / "starts")))
    (tmp_path / "gate").touch()
    assert ended(runner).output == {"through": True}
    assert (tmp_path / "starts").read_text() == "j1\n"


def test_host_killed_jobs_go_on_and_new_ones_start(home: Path, tmp_path: Path) -> None:
    """kill -9 of the host: its jobs go on, and the next job gets a new host."""
    runner = runner_of(home)
    runner.ensure(spec_of("gated", gate=str(tmp_path / "gate")))
    first = host_pid(home)
    os.kill(first, signal.SIGKILL)
    until(lambda: not is_alive(first))
    runner.ensure(spec_of("echo", "j2"))
    assert ended(runner, "j2").state is JobState.SUCCEEDED
    assert host_pid(home) not in (0, first)
    (tmp_path / "gate").touch()
    assert ended(runner).state is JobState.SUCCEEDED


def test_nanny_killed_is_vanished_with_nothing_left(home: Path, tmp_path: Path) -> None:
    """kill -9 of the nanny: the job is failed and retryable, and its process group is gone before anybody may try again."""
    runner = runner_of(home)
    runner.ensure(spec_of("stubborn_tree", pids=str(tmp_path / "pids")))
    until((tmp_path / "pids").exists)
    worker, _own_session, same_group = map(int, (tmp_path / "pids").read_text().split())
    os.kill(JobFolder(home / "jobs" / "j1").pids()["nanny"], signal.SIGKILL)
    status = ended(runner)
    assert (status.state, status.error, status.retryable) == (JobState.FAILED, VANISHED, True)
    until(lambda: not is_alive(worker))
    # The second child is in the worker's session only if it made none; one that left the group is out of reach of a dead nanny.
    until(lambda: not is_alive(same_group))
    os.kill(_own_session, signal.SIGKILL)
    assert runner.poll("j1") == status


def test_worker_killed_is_retryable(home: Path) -> None:
    """A worker killed from outside (the machine out of memory) may do better next time; its last words are told."""
    runner = runner_of(home)
    runner.ensure(spec_of("dies", signal=9))
    status = ended(runner)
    assert status.error == (
        "its process was killed by SIGKILL (is the machine out of memory?); it last printed: the last words"
    )
    assert status.retryable


def test_crash_and_exit_are_permanent(home: Path) -> None:
    """A worker that crashes, or leaves without a result, would do so again."""
    runner = runner_of(home)
    runner.ensure(spec_of("dies", signal=int(signal.SIGSEGV)))
    runner.ensure(spec_of("exits", "j2"))
    assert ended(runner).error.startswith("its process was killed by SIGSEGV")
    assert ended(runner, "j2").error == "its process ended without a result (exit code 7)"
    assert not ended(runner).retryable
    assert not ended(runner, "j2").retryable


def test_told_to_stop_from_outside_is_retryable(home: Path, tmp_path: Path) -> None:
    """SIGTERM to the nanny, as at shutdown, ends the job as one to be tried again."""
    runner = runner_of(home)
    runner.ensure(spec_of("gated", gate=str(tmp_path / "gate")))
    nanny = until(lambda: JobFolder(home / "jobs" / "j1").pids().get("nanny"))
    os.kill(nanny, signal.SIGTERM)
    status = ended(runner)
    assert status.error.startswith("it was told to stop from outside")
    assert status.retryable


# ---------------------------------------------------------------- between the steps
def test_recorded_but_never_started_is_started_by_the_next_ensure(home: Path) -> None:
    """A controller that died between writing the spec and starting the job: not running, and startable."""
    folder = JobFolder(home / "jobs" / "j1")
    folder.accept(spec_of("echo"))
    runner = runner_of(home)
    assert runner.poll("j1") is None
    assert runner.active() == frozenset()
    runner.ensure(spec_of("echo"))
    assert ended(runner).state is JobState.SUCCEEDED


def test_started_but_never_forked_is_vanished(home: Path) -> None:
    """A host that died between claiming the start and forking: failed and retryable, never a second start under this name."""
    folder = JobFolder(home / "jobs" / "j1")
    folder.accept(spec_of("echo"))
    lock = folder.begin()
    assert lock is not None
    runner = runner_of(home)
    assert runner.active() == {"j1"}
    os.close(lock)
    runner.ensure(spec_of("echo"))
    status = runner.poll("j1")
    assert status is not None
    assert (status.error, status.retryable) == (VANISHED, True)
    assert folder.begin() is None


def test_start_given_back_can_be_claimed_again(home: Path) -> None:
    """When nothing could be forked, the claim is undone."""
    folder = JobFolder(home / "jobs" / "j1")
    folder.accept(spec_of("echo"))
    lock = folder.begin()
    assert lock is not None
    assert folder.begin() is None
    folder.unbegin(lock)
    assert folder.status() is None
    again = folder.begin()
    assert again is not None
    os.close(again)


def test_record_of_another_boot_is_vanished(home: Path) -> None:
    """After the machine restarted no pid of the record is believed, and the job is failed and retryable."""
    folder = JobFolder(home / "jobs" / "j1")
    folder.accept(spec_of("echo"))
    (folder.path / "started.json").write_text(json.dumps({"boot": "before", "monotonic": 1e9, "at": ""}))
    (folder.path / "pids.json").write_text(json.dumps({"boot": "before", "nanny": 1, "worker": 1, "worker_start": 1}))
    assert folder.pids() == {}
    status = runner_of(home).poll("j1")
    assert status is not None
    assert (status.error, status.seconds) == (VANISHED, 0.0)


def test_damaged_result_is_named(home: Path) -> None:
    """A torn result file (power cut) is a failure that names the file, not an exception in the controller."""
    folder = JobFolder(home / "jobs" / "j1")
    folder.accept(spec_of("echo"))
    (folder.path / "result.json").write_text("{")
    status = runner_of(home).poll("j1")
    assert status is not None
    assert status.retryable
    assert str(folder.path / "result.json") in status.error


def test_races_start_one_job_and_one_host(home: Path, tmp_path: Path) -> None:
    """Threads and processes that ask at the same moment, with no host up yet, start each job once."""
    specs = [
        spec_of("count_starts", f"j{i}", gate=str(tmp_path), starts=str(tmp_path / f"starts{i}")) for i in range(3)
    ]
    script = f"""
        import sys; sys.path.insert(0, {str(ENTRIES)!r})
        from pathlib import Path
        from pipelines.jobs.local import LocalJobRunner
        from pipelines.jobs.port import JobSpec, Limits
        runner = LocalJobRunner(Path({str(home)!r}), preload=(), idle_s=20)
        for i in range(3):
            inputs = {{"gate": {str(tmp_path)!r}, "starts": {str(tmp_path / "starts")!r} + str(i)}}
            limits = Limits(timeout_s=60, memory_mb=2048)
            runner.ensure(JobSpec(job_id=f"j{{i}}", entry="job_entries:count_starts", inputs=inputs, limits=limits))
    """
    others = [
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], cwd=Path(__file__).parents[3])
        for _ in range(2)
    ]
    threads = [threading.Thread(target=lambda: [runner_of(home).ensure(s) for s in specs]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait() for other in others] == [0, 0]
    runner = runner_of(home)
    for spec in specs:
        assert ended(runner, spec.job_id).state is JobState.SUCCEEDED
        assert Path(spec.inputs["starts"]).read_text() == f"{spec.job_id}\n"


# ---------------------------------------------------------------- limits
def test_time_limit_ends_the_whole_tree(home: Path, tmp_path: Path) -> None:
    """Past the time limit every process of the job is gone, also those that ignore SIGTERM or left its session."""
    runner = runner_of(home)
    runner.ensure(spec_of("stubborn_tree", timeout_s=1.0, pids=str(tmp_path / "pids")))
    status = ended(runner)
    assert status.error == "it took longer than its time limit of 1 s and was ended"
    assert not status.retryable
    assert 1.0 <= status.seconds < 10
    assert not any(map(is_alive, map(int, (tmp_path / "pids").read_text().split())))


@pytest.mark.parametrize("children", [0, 1])
def test_memory_limit(home: Path, children: int) -> None:
    """The memory of all processes of the job together counts; past the limit it is ended, and would be again."""
    runner = runner_of(home)
    runner.ensure(spec_of("eats_memory", memory_mb=150, mb=200 // (children + 1), children=children))
    status = ended(runner)
    assert status.state is JobState.FAILED
    assert "more than its limit of 150 MB" in status.error
    assert not status.retryable


def test_shared_pages_count_once(home: Path, tmp_path: Path) -> None:
    """A child that shares its parent's memory does not count double."""
    runner = runner_of(home)
    runner.ensure(spec_of("shares_memory", memory_mb=190, mb=120, gate=str(tmp_path / "gate")))
    until(lambda: (runner.poll("j1") or JobStatus(state=JobState.FAILED)).progress)
    until(lambda: (runner.poll("j1") or JobStatus(state=JobState.FAILED)).seconds > 0.7)
    assert runner.active() == {"j1"}


def test_cancel_ends_the_whole_tree(home: Path, tmp_path: Path) -> None:
    """When cancel returns, also from a restarted daemon, none of the job's processes is alive."""
    runner_of(home).ensure(spec_of("stubborn_tree", pids=str(tmp_path / "pids")))
    until((tmp_path / "pids").exists)
    runner_of(home).cancel("j1")
    assert not any(map(is_alive, map(int, (tmp_path / "pids").read_text().split())))
    status = runner_of(home).poll("j1")
    assert status is not None
    assert status.state is JobState.CANCELLED


def test_cancel_with_a_stopped_nanny(home: Path, tmp_path: Path) -> None:
    """Even a suspended nanny cannot keep a job alive."""
    runner = runner_of(home)
    runner.ensure(spec_of("gated", gate=str(tmp_path / "gate")))
    pids = until(JobFolder(home / "jobs" / "j1").pids)
    os.kill(pids["nanny"], signal.SIGSTOP)
    runner.cancel("j1")
    until(lambda: not is_alive(pids["worker"]))
    assert not is_alive(pids["nanny"])


def test_nothing_is_left_after_success(home: Path, tmp_path: Path) -> None:
    """Processes that a job leaves behind are gone once it is reported ended."""
    runner = runner_of(home)
    runner.ensure(spec_of("leaves_child", pids=str(tmp_path / "pids")))
    assert ended(runner).state is JobState.SUCCEEDED
    assert not is_alive(int((tmp_path / "pids").read_text()))


def test_full_disk_while_writing_the_result(home: Path) -> None:
    """A result for which the disk has no room is a failure that says so, at once (here: a limit on the size of files)."""
    runner = runner_of(home)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        runner.warm()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    runner.ensure(spec_of("large", bytes=100_000))
    status = ended(runner)
    assert status.error.endswith("the job ended but its result could not be written: File too large")
    assert status.retryable


def test_record_cannot_be_written(home: Path) -> None:
    """A home where nothing can be written is an error to try again later, naming the folder; nothing runs."""
    home.mkdir()
    (home / "jobs").write_text("in the way")
    with pytest.raises(RetryableJobError, match=r"cannot be recorded in .*jobs/j1"):
        runner_of(home).ensure(spec_of("echo"))


def test_log_is_bounded(home: Path, tmp_path: Path) -> None:
    """A job that prints without end does not fill the disk."""
    runner = runner_of(home)
    runner.ensure(spec_of("chatty", gate=str(tmp_path / "gate")))
    log = home / "jobs" / "j1" / "log"
    until(lambda: runner.poll("j1").progress)  # type: ignore[union-attr]
    until(lambda: log.stat().st_size < 2**20)
    (tmp_path / "gate").touch()
    assert ended(runner).state is JobState.SUCCEEDED


# ---------------------------------------------------------------- the host
def test_surroundings(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job has the environment of the daemon that asked (not of the one that started the host), without its settings; one thread."""
    runner = runner_of(home, preload=("numpy",))
    runner.warm()
    monkeypatch.setenv("TEST_LATE", "yes")
    monkeypatch.setenv("RATCHET_TOKEN", "no job's business")
    numbers = set()
    for i in range(2):
        spec = spec_of("surroundings", f"j{i}", keys=["TEST_LATE", "OMP_NUM_THREADS", "RATCHET_TOKEN"])
        runner.ensure(spec)
        output = ended(runner, f"j{i}").output
        assert output is not None
        assert output["env"] == {"TEST_LATE": "yes", "OMP_NUM_THREADS": "1", "RATCHET_TOKEN": None}
        assert output["group"] == output["pid"]
        assert output["cwd"] == str(home / "jobs" / f"j{i}" / "work")
        assert output["threads"] == 1
        numbers.add(output["random"])
    assert len(numbers) == 2


def test_host_socket_is_private_and_home_may_be_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the owner can reach the host, and a home with a path longer than a socket address works."""
    monkeypatch.syspath_prepend(str(ENTRIES))
    home = tmp_path / ("d" * 100) / "home"
    runner = runner_of(home)
    try:
        runner.ensure(spec_of("echo"))
        assert ended(runner).state is JobState.SUCCEEDED
        assert socket_path(home).stat().st_mode & 0o777 == 0o600
        assert socket_path(home).parent.stat().st_mode & 0o777 == 0o700
    finally:
        runner.stop_host()


def test_idle_host_ends(tmp_path: Path) -> None:
    """A host without work goes away and takes its socket along; so does one whose home was deleted."""
    runner = LocalJobRunner(tmp_path / "home", preload=(), idle_s=0.1)
    runner.warm()
    pid = host_pid(tmp_path / "home")
    until(lambda: not is_alive(pid))
    assert not socket_path(tmp_path / "home").exists()


def test_bad_preload_is_no_obstacle(home: Path) -> None:
    """A module that cannot be preloaded is noted in the host's log, and jobs still run."""
    runner = runner_of(home, preload=("no_such_module",))
    runner.ensure(spec_of("echo"))
    assert ended(runner).state is JobState.SUCCEEDED
    until(lambda: "not preloaded: no_such_module" in (home / "run" / "jobs-host.log").read_text())


def test_changed_code_gets_a_new_host(tmp_path: Path) -> None:
    """A host that loaded our code before it changed makes way for one that loads it anew."""
    from pipelines.jobs.host import _Host

    socket_path(tmp_path).parent.mkdir()
    socket_path(tmp_path).touch()
    host = _Host(tmp_path, None, os.open(os.devnull, os.O_RDONLY), [], 1.0)  # type: ignore[arg-type]
    host._note_code()
    assert not host._is_outdated()
    host._loaded_at[str(Path(__file__))] = 1
    assert host._handle({"op": "ping"}, None) == {"leaving": True}  # type: ignore[arg-type]
    assert not socket_path(tmp_path).exists()


def test_start_is_quick_once_warm(home: Path) -> None:
    """From asking to the job's first line, with the libraries loaded: about 30 ms (the best of 9 counts, since the cores may be busy)."""
    runner = runner_of(home, preload=("numpy", "pandas"))
    runner.warm()
    until(lambda: "preloaded pandas" in (home / "run" / "jobs-host.log").read_text())
    took = []
    for i in range(9):
        asked = time.monotonic()
        runner.ensure(spec_of("surroundings", f"j{i}", keys=[]))
        output = ended(runner, f"j{i}").output
        assert output is not None
        assert "pandas" in output["modules"]
        took.append(output["started"] - asked)
    took.sort()
    print(f"start in {took[4] * 1000:.0f} ms (median); all {[round(t * 1000) for t in took]}")
    assert took[0] < 0.1, took


def test_job_modules_are_learned(home: Path) -> None:
    """After the first job of one of our own modules the host has that module loaded."""
    runner = runner_of(home)
    runner.ensure(
        JobSpec(job_id="j1", entry="pipelines.scores:score", inputs={}, limits=Limits(timeout_s=30, memory_mb=512))
    )
    until(lambda: "preloaded pipelines.scores" in (home / "run" / "jobs-host.log").read_text())


def test_what_is_preloaded_starts_no_thread() -> None:
    """The default list and the modules of all jobs leave the host with one thread, and without TensorFlow and Evidently."""
    script = f"""
        import importlib, os, sys
        for name in {(*PRELOAD, *JOB_MODULES)!r}:
            importlib.import_module(name)
        print(len(os.listdir("/proc/self/task")), *({{"tensorflow", "evidently"}} & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, **SINGLE_THREADED},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["1"]
