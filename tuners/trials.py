"""Running trials: what one trial does, and processes that do one trial after the other until the budget is used up."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import optuna
from optuna.trial import TrialState

from pipelines import scores
from pipelines.components.base import Component
from pipelines.data.features import Feature
from pipelines.jobs.port import RetryableJobError
from pipelines.jobs.processes import die_with_parent
from pipelines.jobs.worker import describe
from pipelines.losses import classification_losses
from policies.metrics import METRICS, Task
from tuners.folds import Floats, Fold, Indices, lacks, within_window
from tuners.shared_study import StudyPlace, forget_old
from tuners.space import Candidate, SearchSpace
from tuners.study import (
    CPU_S,
    PID,
    WALL_S,
    Budget,
    Tally,
    ask,
    claiming,
    fail,
    mark,
    open_study,
    release_lost,
    tally,
)

if TYPE_CHECKING:
    import pandas as pd

HOPELESS_AFTER = 5
"""Failed trials, with none that succeeded, after which a search gives up."""
LOSSES = "losses"
"""User attribute of a trial that came to its end: its mean loss in each block of each fold."""
BLOCKS = 10
"""Blocks a fold. Rows close in time are alike, and a block keeps what is alike together."""
_LOOK_EVERY_S = 0.1
_DEATHS_WITHOUT_A_TRIAL_MAX = 3


FITTED_ROWS_MAX = 10_000
"""A trial is fitted on at most so many rows: enough to tell candidates apart, and a search on a long history stays short. What is
chosen is then trained on all rows."""


def thinned(rows: Indices) -> Indices:
    """At most FITTED_ROWS_MAX of the rows, evenly spaced.

    >>> thinned(np.arange(5)).tolist(), len(thinned(np.arange(50_000)))
    ([0, 1, 2, 3, 4], 10000)
    """
    if len(rows) <= FITTED_ROWS_MAX:
        return rows
    chosen: Indices = rows[np.linspace(0, len(rows) - 1, FITTED_ROWS_MAX).astype(np.int64)]
    return chosen


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What is searched, and on which rows. Nothing in it changes while the study runs."""

    frame: pd.DataFrame
    """Features of the n training rows, as components take them."""
    target: pd.Series
    """(n,) class index or value."""
    labels: Floats
    """The same as an array."""
    times: Floats
    """(n,) seconds, ascending; of rows without a time, one after the other."""
    folds: Sequence[Fold]
    features: Sequence[Feature]
    task: Task
    classes: Sequence[Any] | None
    metric: str
    threshold: float
    fit_seed: int
    components: Mapping[str, Component]
    space: SearchSpace
    since_change_s: float | None = None
    """Seconds from the last change to the newest row; None if none is known."""

    @property
    def maximize(self) -> bool:
        return METRICS[self.metric].higher_is_better

    def score(self, candidate: Candidate, fold: Fold) -> tuple[float, list[float]]:
        """Fit on the past part of the fold and score on the rest: the score, and the mean loss of each block of the rest.

        Raises ValueError where there is nothing to fit on or no score.
        """
        rows = thinned(self._rows(fold, candidate.window_s))
        if reason := lacks(self.labels, rows, self.classes):
            raise ValueError(f"window {candidate.window_s or 0:g} s leaves {reason}")
        present, target = self._target(rows)
        fitted = self.components[candidate.component].fit(
            self.frame.iloc[rows],
            target,
            features=self.features,
            task=self.task,
            classes=None if self.classes is None else [self.classes[i] for i in present],
            parameters=candidate.parameters,
            seed=self.fit_seed,
        )
        predicted = self._over_all_classes(fitted.predict(self.frame.iloc[fold.score]), present)
        codes = None if self.classes is None else list(range(len(self.classes)))
        value = scores.score(self.metric, self.labels[fold.score], predicted, classes=codes, threshold=self.threshold)
        if not np.isfinite(value):
            raise ValueError(
                f"{self.metric} of a fold is {value}: nothing predicted positive, or predictions not finite"
            )
        losses = self._losses(self.labels[fold.score], predicted)
        return value, [float(block.mean()) for block in np.array_split(losses, min(BLOCKS, len(losses)))]

    def _losses(self, truth: Floats, predicted: Floats) -> Floats:
        """Of each row, (n,): what tells two candidates apart on fewer rows than the objective does."""
        if self.task is not Task.REGRESSION:
            return classification_losses(truth, predicted)
        errors = np.abs(truth - predicted)
        return errors if self.metric == "mae" else np.square(errors)

    def _rows(self, fold: Fold, window_s: float | None) -> Indices:
        """The fold's rows to fit on. One since a change begins at the change in every fold."""
        if window_s is not None and window_s == self.since_change_s:
            inside: Indices = fold.fit[self.times[fold.fit] > self.times[-1] - window_s]
            if len(inside):
                return inside
        return within_window(fold, self.times, window_s)

    def _target(self, rows: Indices) -> tuple[Indices, pd.Series]:
        """The classes that occur in the rows, (p,), and the rows' targets as positions in those; a regression has none and its values."""
        target = self.target.iloc[rows]
        if self.task is Task.REGRESSION:
            return np.zeros(0, dtype=np.int64), target
        present, positions = np.unique(target.to_numpy(), return_inverse=True)
        return present, target * 0 + positions

    def _over_all_classes(self, predicted: Floats, present: Indices) -> Floats:
        """Scores over all classes: a class that was not fitted has none."""
        if self.task is not Task.MULTICLASS or self.classes is None or len(present) == len(self.classes):
            return predicted
        scores_of_all = np.zeros((len(predicted), len(self.classes)))
        scores_of_all[:, present] = predicted
        return scores_of_all


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """A study being worked on, by this process or by several."""

    problem: Problem
    workdir: Path
    signature: str
    budget: Budget
    seed: int
    began: float
    """Monotonic time of the study's start, put back by what earlier attempts took."""
    shared: StudyPlace | None = None
    """Where the study is, if not in `workdir`."""

    def open(self) -> optuna.Study:
        """A connection of this process's own: one must not be shared across a fork."""
        maximize, trials = self.problem.maximize, self.budget.trials
        return open_study(self.workdir, maximize=maximize, signature=self.signature, trials=trials, shared=self.shared)

    def tally(self, study: optuna.Study) -> Tally:
        return tally(study.get_trials(deepcopy=False), maximize=self.problem.maximize)

    def exhausted_by(self, known: Tally) -> str:
        """What is used up: `trials`, `timeout`, `compute`, or nothing yet."""
        return self.budget.exhausted_by(known, time.monotonic() - self.began)

    def with_time_used(self, seconds: float) -> Search:
        """The same, with so much of the time budget used before."""
        return dataclasses.replace(self, began=self.began - seconds)

    def may_start(self, known: Tally) -> bool:
        """Whether another trial may begin. Time and compute leave room for one result: without any, nothing could be trained.
        When the first trials all failed, the fault is not in their parameters, and no more are tried."""
        if not known.complete and known.failed >= HOPELESS_AFTER:
            return False
        reason = self.exhausted_by(known)
        return not reason or (reason != "trials" and not known.complete)

    def claim(self, study: optuna.Study) -> optuna.Trial | None:
        """The next trial for this process, or None if the budget has no more."""
        with claiming(self.workdir):
            if not self.may_start(self.tally(study)):
                return None
            families = len(self.problem.space.families)
            return ask(study, seed=self.seed, families=families, trials=self.budget.trials)

    def run(self, study: optuna.Study, trial: optuna.Trial) -> None:
        """One trial, to whichever end. Only an error of the storage is raised."""
        wall, cpu = time.monotonic(), _cpu_s()
        value, error, state = None, "", TrialState.COMPLETE
        try:
            value = self._mean_score(study, trial)
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        except (Exception, SystemExit) as raised:  # noqa: BLE001 - a candidate that cannot be fitted is a result
            state, error = TrialState.FAIL, describe(raised)
            traceback.print_exc()
        mark(study, trial, {CPU_S: round(_cpu_s() - cpu, 4), WALL_S: round(time.monotonic() - wall, 4)})
        if state is TrialState.FAIL:
            fail(study, trial, error)
        else:
            study.tell(trial, value, state=None if value is not None else state)

    def _mean_score(self, study: optuna.Study, trial: optuna.Trial) -> float:
        """Mean over the folds; after each fold the mean so far is compared with other trials' at the same fold."""
        candidate = self.problem.space.suggest(trial)
        for known in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if known.params == trial.params and known.value is not None:
                trial.set_user_attr(LOSSES, known.user_attrs[LOSSES])
                return known.value  # small spaces repeat themselves, and the same fit gives the same score
        found: list[float] = []
        losses: list[float] = []
        for step, fold in enumerate(self.problem.folds):
            score, of_blocks = self.problem.score(candidate, fold)
            found.append(score)
            losses += of_blocks
            trial.report(float(np.mean(found)), step)
            is_last = len(found) == len(self.problem.folds)
            if not is_last and (trial.should_prune() or self._must_stop(study)):
                raise optuna.TrialPruned
        trial.set_user_attr(LOSSES, losses)
        return float(np.mean(found))

    def _must_stop(self, study: optuna.Study) -> bool:
        """Whether time or compute ran out in the middle of a trial, with a result at hand already."""
        known = self.tally(study)
        return bool(known.complete) and self.exhausted_by(known) in ("timeout", "compute")


def work(search: Search, study: optuna.Study, ended: Callable[[Tally], None]) -> None:
    """Trial after trial in this process; `ended` is told the tally after each."""
    while (trial := search.claim(study)) is not None:
        search.run(study, trial)
        ended(search.tally(study))


def work_in_parallel(search: Search, study: optuna.Study, processes: int, ended: Callable[[Tally], None]) -> None:
    """The same in several forked processes. One that dies costs its trial, recorded as failed, and is replaced.

    Raises RetryableJobError if processes die without even starting a trial.
    """
    children: set[int] = set()
    deaths = 0
    known = search.tally(study)
    try:
        while True:
            while len(children) < processes and search.may_start(known):
                children.add(_fork_worker(search))
            for pid, exit_code in _ended(children):
                children.discard(pid)
                if exit_code != 0 and not _bury(search, study, pid, exit_code):
                    deaths += 1
            if deaths > _DEATHS_WITHOUT_A_TRIAL_MAX:
                raise RetryableJobError(
                    f"tuning: {deaths} trial processes ended before their first trial; see the job's log"
                )
            before, known = known, search.tally(study)
            if known.ended != before.ended:
                ended(known)
            if not children and not search.may_start(known):
                return
            time.sleep(_LOOK_EVERY_S)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _fork_worker(search: Search) -> int:
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _be_worker(search, parent)
    return pid


def _be_worker(search: Search, parent: int) -> NoReturn:
    exit_code = 1
    try:
        die_with_parent(parent)
        work(search, search.open(), lambda _: None)
        exit_code = 0
    except Exception:  # noqa: BLE001 - nothing may go on into the parent's code
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(exit_code)


def _ended(children: set[int]) -> list[tuple[int, int]]:
    """Processes that ended since the last look, with their exit codes (negative: the signal)."""
    looked = [os.waitpid(pid, os.WNOHANG) for pid in children]
    return [(pid, os.waitstatus_to_exitcode(status)) for pid, status in looked if pid]


def _bury(search: Search, study: optuna.Study, pid: int, exit_code: int) -> bool:
    """Fail the trial that a dead process was at; whether there was one."""
    how = f"killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"ended with code {exit_code}"
    with claiming(search.workdir):
        trials = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        orphans = [t for t in trials if t.user_attrs.get(PID) == pid]
        for trial in orphans:
            fail(study, trial, f"its process was {how}")
    return bool(orphans)


def resume(search: Search) -> optuna.Study:
    """Open the study and give back what a killed attempt left behind. Before any process works on it."""
    study = search.open()
    with claiming(search.workdir):
        release_lost(study)
    if search.shared is not None:
        forget_old(search.shared)
    return study


def _cpu_s() -> float:
    """CPU seconds of this process, all its threads, and its children that ended."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
