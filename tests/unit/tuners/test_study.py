"""Storage, budgets and claims of a study."""

from __future__ import annotations

import doctest
import os
import signal
import threading
import time
from pathlib import Path
from types import ModuleType

import optuna
import pytest
from optuna.trial import TrialState

from tuners import folds, space
from tuners import study as study_module
from tuners.study import (
    CPU_S,
    ERROR,
    JOURNAL,
    LOST,
    WALL_S,
    Budget,
    KernelFileLock,
    ask,
    claiming,
    cut_torn_tail,
    enqueue,
    fail,
    failures,
    mark,
    open_study,
    release_lost,
    tally,
)


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    return open_study(tmp_path, maximize=True, signature="s")


def finish(study: optuna.Study, value: float, *, x: float = 0.5) -> None:
    study.enqueue_trial({"x": x})
    trial = ask(study, seed=0, families=1)
    trial.suggest_float("x", 0, 1)
    mark(study, trial, {CPU_S: 2.0, WALL_S: 3.0})
    study.tell(trial, value)


def test_counts(study: optuna.Study) -> None:
    """Ended and running trials count, lost ones do not, and their CPU time does."""
    finish(study, 0.5)
    fail(study, ask(study, seed=0, families=1), "no")
    study.tell(ask(study, seed=0, families=1), state=TrialState.PRUNED)
    lost = ask(study, seed=0, families=1)
    mark(study, lost, {LOST: True, CPU_S: 1.0})
    study.tell(lost, state=TrialState.FAIL)
    ask(study, seed=0, families=1)
    known = tally(study.get_trials(), maximize=True)
    assert (known.complete, known.pruned, known.failed, known.running) == (1, 1, 1, 1)
    assert (known.ended, known.taken, known.cpu_s, known.wall_s) == (3, 4, 3.0, 3.0)
    assert failures(study.get_trials()) == ["no"]


@pytest.mark.parametrize(("maximize", "best"), [(True, 1), (False, 0)])
def test_best_is_the_earliest_of_equals(study: optuna.Study, maximize: bool, best: int) -> None:
    """A later trial must be better, not as good, to replace an earlier one."""
    for value in (0.2, 0.9, 0.9, 0.2):
        finish(study, value)
    known = tally(study.get_trials(), maximize=maximize)
    assert known.best is not None
    assert known.best.number == best


def test_budget_names_what_is_used_up(study: optuna.Study) -> None:
    """Trials, then time, then compute; nothing while there is some of each."""
    finish(study, 0.5)
    known = tally(study.get_trials(), maximize=True)
    assert Budget(trials=1).exhausted_by(known, 0) == "trials"
    assert Budget(trials=2, timeout_s=5).exhausted_by(known, 5) == "timeout"
    assert Budget(trials=2, compute_s=2).exhausted_by(known, 0) == "compute"
    assert Budget(trials=2, timeout_s=5, compute_s=3).exhausted_by(known, 4) == ""


def test_reopened_study_knows_everything(tmp_path: Path, study: optuna.Study) -> None:
    """Another process that opens the study sees the finished trials."""
    finish(study, 0.5)
    again = open_study(tmp_path, maximize=True, signature="s")
    assert [t.value for t in again.get_trials()] == [0.5]


@pytest.mark.parametrize("tail", [b'{"op_code":5,"tri', b"{", b"\xff"])
def test_torn_tail_is_cut_off(tmp_path: Path, study: optuna.Study, tail: bytes) -> None:
    """What a killed process wrote in part is dropped, and the study goes on."""
    finish(study, 0.5)
    with open(tmp_path / JOURNAL, "ab") as file:
        file.write(tail)
    again = open_study(tmp_path, maximize=True, signature="s")
    finish(again, 0.6)
    assert [t.value for t in open_study(tmp_path, maximize=True, signature="s").get_trials()] == [0.5, 0.6]


def test_cutting_leaves_whole_files_alone(tmp_path: Path) -> None:
    """Empty, whole and endless files."""
    path = tmp_path / "j"
    for before, after in ((b"", b""), (b"a\nb\n", b"a\nb\n"), (b"a\nb", b"a\n"), (b"a", b"")):
        path.write_bytes(before)
        cut_torn_tail(path)
        assert path.read_bytes() == after


def test_damaged_journal_is_kept_aside(tmp_path: Path, study: optuna.Study) -> None:
    """A journal damaged in its middle is not lost, and a new study begins."""
    finish(study, 0.5)
    damaged = (tmp_path / JOURNAL).read_bytes().replace(b"{", b"#", 1)
    (tmp_path / JOURNAL).write_bytes(damaged)
    again = open_study(tmp_path, maximize=True, signature="s")
    assert again.get_trials() == []
    assert (tmp_path / f"{JOURNAL}.old-0").read_bytes() == damaged


def test_study_of_something_else_is_kept_aside(tmp_path: Path, study: optuna.Study) -> None:
    """Trials on other rows or in another space say nothing, so another signature begins a new study."""
    finish(study, 0.5)
    assert open_study(tmp_path, maximize=True, signature="other").get_trials() == []
    assert open_study(tmp_path, maximize=True, signature="third").get_trials() == []
    assert (tmp_path / f"{JOURNAL}.old-1").exists()


def test_lost_trial_is_tried_once_more(tmp_path: Path, study: optuna.Study) -> None:
    """A trial left running gives back its slot and is next in line with the same parameters; lost again, it has failed."""
    enqueue(study, [{"x": 0.25}])
    ask(study, seed=0, families=1).suggest_float("x", 0, 1)
    assert release_lost(study) == 1
    assert tally(study.get_trials(), maximize=True).taken == 0
    trial = ask(study, seed=0, families=1)
    assert trial.suggest_float("x", 0, 1) == 0.25
    assert trial.user_attrs["start"] == 0
    assert release_lost(study) == 1
    known = tally(study.get_trials(), maximize=True)
    assert (known.failed, known.taken) == (1, 1)
    assert failures(study.get_trials()) == ["its process was killed twice while it ran"]
    assert release_lost(study) == 0


def test_lost_before_its_first_parameter(study: optuna.Study) -> None:
    """Killed between being claimed and its first parameter, a trial put in line keeps its place."""
    enqueue(study, [{"x": 0.25}])
    ask(study, seed=0, families=1)
    release_lost(study)
    assert ask(study, seed=0, families=1).suggest_float("x", 0, 1) == 0.25


def test_starts_are_put_in_line_once(study: optuna.Study) -> None:
    """A resumed study does not begin again with the champion."""
    enqueue(study, [{"x": 0.1}, {"x": 0.2}])
    enqueue(study, [{"x": 0.1}, {"x": 0.2}])
    assert len(study.get_trials()) == 2


def test_sampling_depends_on_seed_and_history_only(tmp_path: Path) -> None:
    """Two studies with the same trials draw the same next ones, whether or not they were reopened in between."""

    def draw(folder: str, reopen: bool) -> list[float]:
        study = open_study(tmp_path / folder, maximize=True, signature="s")
        drawn = []
        for _ in range(14):
            study = open_study(tmp_path / folder, maximize=True, signature="s") if reopen else study
            trial = ask(study, seed=7, families=1)
            drawn.append(trial.suggest_float("x", 0, 1))
            study.tell(trial, -abs(drawn[-1] - 0.3))
        return drawn

    assert draw("a", reopen=False) == draw("b", reopen=True)


def test_lock_goes_with_its_holder(tmp_path: Path) -> None:
    """kill -9 of a process that holds the journal's lock delays nobody."""
    journal = tmp_path / "j"
    journal.touch()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        KernelFileLock(journal).acquire()
        os.write(writer, b".")
        time.sleep(60)
        os._exit(0)
    os.read(reader, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    began = time.monotonic()
    lock = KernelFileLock(journal)
    lock.acquire()
    lock.release()
    assert time.monotonic() - began < 1
    os.close(reader)
    os.close(writer)


def test_claiming_excludes_others(tmp_path: Path) -> None:
    """While one decides, another waits."""
    order: list[str] = []

    def other() -> None:
        with claiming(tmp_path):
            order.append("other")

    with claiming(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(timeout=0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_failure_keeps_its_reason(study: optuna.Study) -> None:
    """A failed trial has its reason on record."""
    fail(study, ask(study, seed=0, families=1), "too steep")
    assert study.get_trials()[0].user_attrs[ERROR] == "too steep"


@pytest.mark.parametrize("module", [folds, space, study_module])
def test_examples_in_docstrings(module: ModuleType) -> None:
    """The worked examples beside the arithmetic are true."""
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed
