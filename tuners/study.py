"""The study of one cycle: its storage, which survives a kill at any moment, its budget, and who may start which trial.

Optuna's journal file is the one record, unless the settings name a database (`tuners.shared_study`). Several processes write it; the
kernel's file lock keeps them apart, and unlike Optuna's own lock file it does not outlive a killed process. A trial is claimed under a
second lock, so that all processes together never start more trials than the budget has.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock  # what JournalFileBackend asks for, without a public name
from optuna.trial import FrozenTrial, TrialState

from tuners.shared_study import StudyPlace, open_shared
from tuners.space import Encoded

STUDY = "study"
JOURNAL = "study.journal"
LOST = "lost"
"""User attribute of a trial that a killed process left unfinished; it does not count."""
RETRY_OF = "retry_of"
CPU_S, WALL_S, ERROR, PID = "cpu_s", "wall_s", "error", "pid"
_SEED_STRIDE = 1_000_003


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What a search may use. Real seconds and CPU seconds; None: no limit."""

    trials: int
    timeout_s: float | None = None
    compute_s: float | None = None

    def exhausted_by(self, tally: Tally, elapsed_s: float) -> str:
        """`trials`, `timeout` or `compute`, whichever is used up; empty while there is some of each."""
        if tally.taken >= self.trials:
            return "trials"
        if self.timeout_s is not None and elapsed_s >= self.timeout_s:
            return "timeout"
        if self.compute_s is not None and tally.cpu_s >= self.compute_s:
            return "compute"
        return ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """What a study has come to."""

    complete: int
    pruned: int
    failed: int
    running: int
    cpu_s: float
    wall_s: float
    """Of all trials together, parallel ones added up."""
    best: FrozenTrial | None

    @property
    def ended(self) -> int:
        return self.complete + self.pruned + self.failed

    @property
    def taken(self) -> int:
        """Trials that count against the budget."""
        return self.ended + self.running


def tally(trials: Sequence[FrozenTrial], *, maximize: bool) -> Tally:
    """Count a study's trials; of equally good ones the earliest is the best, so that the champion's parameters win ties."""
    counted = [t for t in trials if LOST not in t.user_attrs]
    by_state = {state: [t for t in counted if t.state is state] for state in TrialState}
    complete = by_state[TrialState.COMPLETE]
    sign = -1 if maximize else 1
    return Tally(
        complete=len(complete),
        pruned=len(by_state[TrialState.PRUNED]),
        failed=len(by_state[TrialState.FAIL]),
        running=len(by_state[TrialState.RUNNING]),
        cpu_s=sum(float(t.user_attrs.get(CPU_S, 0.0)) for t in trials),
        wall_s=sum(float(t.user_attrs.get(WALL_S, 0.0)) for t in trials),
        best=min(complete, key=lambda t: (sign * float(t.value or 0.0), t.number), default=None),
    )


def failures(trials: Sequence[FrozenTrial]) -> list[str]:
    """Why trials failed, in order."""
    return [str(t.user_attrs[ERROR]) for t in trials if ERROR in t.user_attrs]


# ---------------------------------------------------------------- storage
class KernelFileLock(BaseJournalFileLock):
    """A lock on the journal that goes when its holder does. Taking it also mends the journal.

    A process killed while it appended leaves a line without an end. Nobody else writes while the lock is held, so such a tail is dead and
    is cut off before the next line would be glued to it.
    """

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._handle = -1

    def acquire(self) -> bool:
        handle = os.open(self._journal.with_name(self._journal.name + ".flock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            cut_torn_tail(self._journal)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        return True

    def release(self) -> None:
        os.close(self._handle)
        self._handle = -1


def cut_torn_tail(journal: Path) -> None:
    """Remove what follows the last line end of the file."""
    with open(journal, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return
        file.seek(size - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def unpruned_trials(trials: int) -> int:
    """Trials that are never cut short, for the others to be compared with: a quarter of the search, from 2 (the champion's parameters and
    the defaults) to 5.

    >>> [unpruned_trials(n) for n in (1, 6, 12, 100)]
    [2, 2, 3, 5]
    """
    return min(5, max(2, trials // 4))


def random_trials(trials: int) -> int:
    """Trials before the sampler learns from earlier ones: Optuna's 10, but a third of a short search.

    >>> [random_trials(n) for n in (6, 20, 100)]
    [4, 6, 10]
    """
    return min(10, max(4, trials // 3))


def open_study(
    workdir: Path, *, maximize: bool, signature: str, trials: int = 20, shared: StudyPlace | None = None
) -> optuna.Study:
    """The study in `workdir`, or at `shared`, made if it is not there; `trials` is how many it is to have.

    `signature` says what is searched on which rows: a study of another signature, or one whose journal is damaged other than at its end,
    is kept aside under a new name and a new study begun. Raises OSError.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    if shared is not None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        return open_shared(shared, direction=_direction(maximize), pruner=make_pruner(trials), signature=signature)
    journal = workdir / JOURNAL
    if journal.exists() and not _is_readable(journal):
        _set_aside(journal)
    study = _load(journal, maximize=maximize, trials=trials)
    known = study.user_attrs.get("signature")
    if known not in (None, signature):
        _set_aside(journal)
        study = _load(journal, maximize=maximize, trials=trials)
    if study.user_attrs.get("signature") is None:
        study.set_user_attr("signature", signature)
    return study


def _load(journal: Path, *, maximize: bool, trials: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=KernelFileLock(journal)))
    direction = _direction(maximize)
    return optuna.create_study(
        study_name=STUDY, storage=storage, direction=direction, pruner=make_pruner(trials), load_if_exists=True
    )


def _direction(maximize: bool) -> optuna.study.StudyDirection:
    return optuna.study.StudyDirection.MAXIMIZE if maximize else optuna.study.StudyDirection.MINIMIZE


def make_pruner(trials: int) -> optuna.pruners.BasePruner:
    """Three folds are three steps. WilcoxonPruner, made for folds, cannot reach significance with three pairs (its smallest one-sided p is
    1/8), and halving needs more rungs; the median of the same fold's running mean is usable from the first fold on."""
    return optuna.pruners.MedianPruner(n_startup_trials=unpruned_trials(trials), n_warmup_steps=0)


def _is_readable(journal: Path) -> bool:
    try:
        lines = journal.read_bytes().split(b"\n")[:-1]
        return all(isinstance(json.loads(line), dict) for line in lines)
    except ValueError:
        return False


def _set_aside(journal: Path) -> None:
    number = sum(1 for _ in journal.parent.glob(f"{journal.name}.old-*"))
    journal.rename(journal.with_name(f"{journal.name}.old-{number}"))


# ---------------------------------------------------------------- trials
@contextlib.contextmanager
def claiming(workdir: Path) -> Iterator[None]:
    """Only one process at a time decides about starting trials."""
    with open(workdir / "study.claim", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def enqueue(study: optuna.Study, starts: Sequence[Encoded]) -> None:
    """Put the given points first in line, once: a study that was begun before has them already."""
    if not study.get_trials(deepcopy=False):
        for number, parameters in enumerate(starts):
            study.enqueue_trial(parameters, user_attrs={"start": number})


def ask(study: optuna.Study, *, seed: int, families: int, trials: int = 20) -> optuna.Trial:
    """The next trial. What the sampler draws depends on the seed, the trial's number and the trials that ended, on nothing else: a resumed
    study goes on as if it had not been stopped. Call it under `claiming`."""
    number = len(study.get_trials(deepcopy=False))
    with warnings.catch_warnings():
        # `group` (fit the parameters of each family by themselves) is marked experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=random_trials(trials), seed=(seed * _SEED_STRIDE + number) % 2**32, group=families > 1
        )
    trial = study.ask()
    trial.set_user_attr(PID, os.getpid())
    return trial


def release_lost(study: optuna.Study) -> int:
    """Give back the slots of trials that a killed process left running; their number.

    Only to be called while no process works on the study. Each is tried once more, first of all; one that is lost a second time has failed,
    since it may be what kills the process.
    """
    lost = [t for t in study.get_trials(deepcopy=False) if t.state is TrialState.RUNNING]
    for trial in lost:
        if RETRY_OF in trial.user_attrs:
            fail(study, trial, "its process was killed twice while it ran")
            continue
        parameters = trial.params or trial.system_attrs.get("fixed_params", {})
        mark(study, trial, {LOST: True})
        study.tell(trial.number, state=TrialState.FAIL)
        if parameters:
            start = {k: v for k, v in trial.user_attrs.items() if k == "start"}
            study.enqueue_trial(dict(parameters), user_attrs={RETRY_OF: trial.number, **start})
    return len(lost)


def fail(study: optuna.Study, trial: FrozenTrial | optuna.Trial, reason: str) -> None:
    """End a running trial as failed, with the reason on record."""
    mark(study, trial, {ERROR: reason})
    study.tell(trial.number, state=TrialState.FAIL)


def mark(study: optuna.Study, trial: FrozenTrial | optuna.Trial, attributes: Mapping[str, Any]) -> None:
    """Set user attributes of a running trial, whichever process runs it."""
    handle = trial if isinstance(trial, optuna.Trial) else optuna.Trial(study, trial._trial_id)
    for name, value in attributes.items():
        handle.set_user_attr(name, value)
