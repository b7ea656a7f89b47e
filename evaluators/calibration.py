"""Do the champion's answers still keep what they promise? Compares matured labels with the answers themselves, not with an earlier score.

A score also falls when rows are merely harder, which a model knows by itself: its probabilities move to the middle, and a new training
would bring nothing. What it cannot know is that labels have come to mean something else. Then labels deviate from its probabilities to one
side, or sure answers are wrong more often than they say, and that stands out of the noise long before accuracy does.

    binary      y - p,  and  (y - p)(1 - 2p), the part of Brier's score that a calibrated model has on average 0 of
    multiclass  1[the answer is right] - its probability
    regression  y - y',  and  |y - y'| - 1.5 times what that was for such answers when the version was judged

The mean of each is 0 for a calibrated model, or less. Sources: D. Spiegelhalter, Statistics in Medicine 5 (1986) 421-433 (binary); D. Cox,
Biometrika 45 (1958) 562-565 (calibration in the large). An answer of a regression does not say how sure it is, so the hold-out says
it for it: errors often grow with the answer (Breusch and Pagan, Econometrica 47 (1979) 1287-1294), so answers of one size are compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluators.change import BLOCKS, ROWS_MIN, rise
from evaluators.scene import Query, Scene, StrangeScoresError, known_labels, logged_scores
from evaluators.scored import Floats
from evaluators.wording import count, number
from policies.metrics import Task
from policies.signals import Signal

if TYPE_CHECKING:
    import pandas as pd

_INSTANT = timedelta(microseconds=1)
LARGER = 1.5
"""Errors so many times the usual ones are still no sign of a change: a hold-out is short, and seasons make errors larger and smaller."""
OFF_BEFORE, OFF_BEFORE_ROWS = 4.0, 200
"""Standard errors, on at least so many rows, from which on a version counts as having been off when it was judged. What stays as it was
then does not count against it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kind:
    """One kind of residual: in words, and which sign of its mean is bad (0: both; a model that is better than it says does no harm)."""

    words: str
    bad: int = 0


_KINDS: Mapping[Task, tuple[_Kind, ...]] = {
    Task.BINARY: (
        _Kind(words="positives are more often than promised, by"),
        _Kind(words="Brier score is above what was promised, by", bad=1),
    ),
    Task.MULTICLASS: (_Kind(words="answers are right more often than promised, by", bad=-1),),
    Task.REGRESSION: (
        _Kind(words="labels are above what was predicted, by"),
        _Kind(words=f"errors are more than {LARGER:g} times as large as when it was judged, by", bad=1),
    ),
}
SIZES = 5
"""Groups of answers, by size, that errors are compared within."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Deviation:
    """Mean of one kind of residual, with the standard error of that mean."""

    value: float
    stderr: float
    rows: int = 0


_NONE = Deviation(value=0.0, stderr=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class UsualErrors:
    """Mean absolute error of answers of each size, on the rows that a version was judged on."""

    edges: Sequence[float]
    """Where one group ends and the next begins, ascending, in the label's unit."""
    means: Sequence[float]
    """One more than edges."""
    stderr: float
    """Of the mean over all groups."""
    rows: int

    def of(self, answers: Floats) -> Floats:
        """(n,) what is usual for answers (n,)."""
        groups: Floats = np.asarray(self.means)[np.searchsorted(self.edges, answers)]
        return groups


def usual_errors(task: Task, codes: Floats, answers: Floats) -> dict[str, Any] | None:
    """`UsualErrors` of n labels (n,) and answers (n,) in the order of time, for a record; None of a classifier, or of too few rows."""
    if task is not Task.REGRESSION:
        return None
    sizes = np.abs(codes - answers)
    whole = deviation(sizes)
    if whole is None:
        return None
    edges = np.unique(np.quantile(answers, np.linspace(0, 1, SIZES + 1)[1:-1]))
    groups = np.searchsorted(edges, answers)
    means = [float(sizes[groups == g].mean()) if (groups == g).any() else whole.value for g in range(len(edges) + 1)]
    return asdict(UsualErrors(edges=edges.tolist(), means=means, stderr=whole.stderr, rows=whole.rows))


def residuals(task: Task, codes: Floats, answers: Floats) -> Floats:
    """(k, n) of n answers, (n,) or (n, c), whose labels' codes or values are `codes` (n,); k as in the table above.

    >>> residuals(Task.BINARY, np.array([1.0, 0.0]), np.array([0.75, 0.5])).tolist()
    [[0.25, -0.5], [-0.125, -0.0]]
    >>> residuals(Task.MULTICLASS, np.array([2.0, 0.0]), np.array([[0.0, 0.25, 0.75], [0.25, 0.5, 0.25]])).tolist()
    [[0.25, -0.5]]
    """
    match task:
        case Task.REGRESSION:
            return np.stack([codes - answers])
        case Task.MULTICLASS:
            right = np.argmax(answers, axis=1) == codes
            return np.stack([right - answers.max(axis=1)])
        case _:
            return np.stack([codes - answers, (codes - answers) * (1 - 2 * answers)])


def deviation(values: Floats) -> Deviation | None:
    """Of the residuals (n,) of one kind, in the order of time; None of fewer than ROWS_MIN, or if one is not finite.

    The error is that of independent rows or that of as many blocks, whichever is larger: rows close in time are often alike.
    """
    if len(values) < ROWS_MIN or not np.isfinite(values).all():
        return None
    of_blocks = np.array([block.mean() for block in np.array_split(values, BLOCKS)])
    by_rows, by_blocks = (float(v.std(ddof=1)) / math.sqrt(len(v)) for v in (values, of_blocks))
    return Deviation(value=float(values.mean()), stderr=max(by_rows, by_blocks), rows=len(values))


def promised(task: Task, codes: Floats, answers: Floats) -> list[dict[str, float]] | None:
    """The deviations on the rows that a version was judged on, for its record; None if they are too few."""
    found = [deviation(values) for values in residuals(task, codes, answers)]
    return [asdict(each) for each in found if each is not None] if all(found) else None


def calibration(query: Query, scene: Scene) -> Signal:
    """How many standard errors the champion's matured live answers of the newest window deviate from what they promise, at the most.

    The window is that of `evaluators.live.performance`. Unknown with fewer than `min_rows` labelled rows, or an answer that is not finite.
    """
    assert query.window is not None
    delay = scene.label_delay
    if delay is None:
        return Signal.unknown("no label has arrived yet, so nothing has matured", observed_at=scene.now)
    if scene.stalled is not None:
        return Signal.unknown(f"the label feed has stalled: {scene.stalled.sentence}", observed_at=scene.now)
    end = scene.now - delay
    frame = scene.log.labelled(
        since=end - query.window + _INSTANT, until=end + _INSTANT, labels_until=scene.now + _INSTANT, role="live",
        versions=[scene.champion], features=False, problems=scene.problems,
    ).drop_duplicates("id", keep="last").sort_values("at", kind="stable")  # fmt: skip
    codes, usable = known_labels(frame["label"], scene.folder.classes, scene.spec.task)
    frame, codes = frame[usable], codes[usable]
    needed = max(query.min_rows, ROWS_MIN)
    if len(frame) < needed:
        reason = f"{count(len(frame), 'matured labelled row')} of v{scene.champion} in the window, {needed:,} needed"
        return Signal.unknown(reason, observed_at=scene.now, rows=len(frame))
    try:
        answers = logged_scores(frame, scene.folder.classes, scene.spec.task)
    except StrangeScoresError as error:
        return Signal.unknown(str(error), observed_at=scene.now, rows=len(frame))
    every = residuals(scene.spec.task, codes, answers)
    before: list[Deviation | UsualErrors | None] = [*_off_before(scene.champion_promised, len(every))]
    if scene.champion_usual_errors is not None:
        usual = UsualErrors(**scene.champion_usual_errors)
        every = np.vstack([every, np.abs(codes - answers) - LARGER * usual.of(answers)])
        before.append(usual)
    return _signal(frame, every, before, scene, end)


def _signal(
    frame: pd.DataFrame, every: Floats, before: Sequence[Deviation | UsualErrors | None], scene: Scene, end: datetime
) -> Signal:
    found = [deviation(values) for values in every]
    told = [each for each in found if each is not None]
    if len(told) < len(every):
        return Signal.unknown("an answer is NaN or infinite", observed_at=scene.now, rows=len(frame))
    kinds = _KINDS[scene.spec.task][: len(told)]
    harm = [_harm(*each) for each in zip(told, before, kinds, strict=True)]
    worst = int(np.argmax(harm))
    signal = Signal.of(harm[worst], observed_at=scene.now, rows=len(frame), window_end=end)
    then = before[worst]
    was = f", {number(then.value)} when it was judged" if isinstance(then, Deviation) else ""
    # One loss a row that rises where the deviation begins.
    place = rise(every[worst] * math.copysign(1, told[worst].value))
    return replace(
        signal,
        detail=f"{kinds[worst].words} {number(told[worst].value)}{was}",
        changed_at=None if place is None else frame["at"].iloc[place].to_pydatetime(),
    )


def _harm(now: Deviation, then: Deviation | UsualErrors | None, kind: _Kind) -> float:
    """Standard errors from 0, and from what it was before if that was not 0, whichever is less; none to the side that does no harm."""
    if isinstance(then, UsualErrors):  # at most 0 then, as far as the hold-out could tell
        then = Deviation(value=0.0, stderr=LARGER * then.stderr)
    errors = [_errors(now, each) for each in (_NONE, then) if each is not None]
    return min(max(error * kind.bad, 0.0) if kind.bad else abs(error) for error in errors)


def _errors(now: Deviation, then: Deviation) -> float:
    stderr = math.hypot(now.stderr, then.stderr)
    off = now.value - then.value
    if stderr <= 0:
        return math.copysign(math.inf, off) if off else 0.0
    return off / stderr


def _off_before(kept: Sequence[Mapping[str, Any]] | None, kinds: int) -> list[Deviation | None]:
    """What each kind was when the version was judged, if that was not 0 beyond doubt."""
    told = [Deviation(**each) for each in kept or ()]
    if len(told) != kinds:
        return [None] * kinds
    return [each if each.rows >= OFF_BEFORE_ROWS and abs(_errors(each, _NONE)) > OFF_BEFORE else None for each in told]
