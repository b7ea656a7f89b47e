"""Challenger against champion on live labelled rows, in the order in which the labels came in.

Rows that both answered under the same id (shadow traffic) are compared pair by pair; rows of the one or the other (weights) in blocks, see
`evaluators.sequential.block_differences`. Both kinds of outcomes form one sequence over the whole rollout and the bake, so that its level
alpha holds for them together, not for each step.

Every label counts against the challenger as soon as it is in. To speak for it, a row must have matured: what is labelled quickly is no fair
sample of what was asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evaluators.answers import AnswersError, Floats, ModelFolder, align
from evaluators.estimate.estimator import EstimateError
from evaluators.estimate.signal import expected_loss
from evaluators.scene import Scene, StrangeScoresError, known_labels, logged_scores
from evaluators.sequential import (
    block_differences,
    sentence,
    weigh,
)
from evaluators.wording import count, number
from pipelines.data.labels import label_key
from pipelines.losses import classification_losses, regression_losses
from policies.metrics import Task
from policies.signals import Comparison

if TYPE_CHECKING:
    import pandas as pd

SPREAD_QUANTILES = (0.005, 0.995)
"""Labels beyond these count as these in the standard deviation of the champion's training labels, which is the unit of errors."""
EXPECTED_ROWS = 200
"""Answers of each version, at least, before losses are expected of them."""
_INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Which versions to compare, since when, how strictly."""

    challenger: int
    champion: int
    since: datetime
    until: datetime | None
    """Predictions before this only; None: all."""
    margin: float
    alpha: float
    promoted_at: datetime | None = None
    """Since when the challenger is champion; None before."""
    model_dirs: Mapping[int, Path] = field(default_factory=dict)
    """Version → its model folder, with which losses can be expected before labels are in."""

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> Request:
        """Raises KeyError, ValueError for another shape."""
        until, promoted_at = item.get("until"), item.get("promoted_at")
        return cls(
            challenger=int(item["challenger"]),
            champion=int(item["champion"]),
            since=datetime.fromisoformat(item["since"]),
            until=None if until is None else datetime.fromisoformat(until),
            margin=float(item["margin"]),
            alpha=float(item["alpha"]),
            promoted_at=None if promoted_at is None else datetime.fromisoformat(promoted_at),
            model_dirs={int(number): Path(folder) for number, folder in (item.get("model_dirs") or {}).items()},
        )


def compare_live(request: Request, scene: Scene) -> Comparison:
    """The state of the comparison on all labels known at `scene.now`."""
    frame = scene.log.labelled(
        since=request.since,
        until=request.until,
        labels_until=scene.now + _INSTANT,
        role=None,
        versions=[request.challenger, request.champion],
        features=False,
        problems=scene.problems,
    )
    try:
        classes = _classes(request, scene)
        every = _union(classes.values())
        codes, usable = known_labels(frame["label"], every, scene.spec.task)
        frame = frame.assign(code=codes)[usable].drop_duplicates(["id", "version"], keep="last")
        unit = _label_spread(request, scene) if scene.spec.task is Task.REGRESSION and len(frame) else 1.0
        frame = frame.assign(loss=_losses(frame, scene, classes, every, unit))
    except (NoLossError, AnswersError, StrangeScoresError) as error:
        return _undecided(scene, str(error))
    answered = frame["version"] == request.challenger
    paired = frame["id"].isin(frame.loc[answered, "id"]) & frame["id"].isin(frame.loc[~answered, "id"])
    frame = frame.assign(paired=paired)[paired | (frame["role"] == "live")]
    compared = _comparison(request, scene, frame)
    return compared if request.promoted_at is not None else _with_expected_losses(compared, request, scene)


def _with_expected_losses(compared: Comparison, request: Request, scene: Scene) -> Comparison:
    """With what both versions' confidences let expect of their answers on the same traffic, if enough of both can be estimated."""
    frame = scene.log.predictions(
        since=request.since,
        until=request.until,
        versions=[request.challenger, request.champion],
        features=scene.spec.task is Task.REGRESSION,
        problems=scene.problems,
    ).drop_duplicates(["id", "version"], keep="last")
    mine, other = (frame[frame["version"] == number] for number in (request.challenger, request.champion))
    shared = mine[["id"]].merge(other[["id"]], on="id")
    if len(shared):
        mine, other = mine.merge(shared, on="id"), other.merge(shared, on="id")
    if min(len(mine), len(other)) < EXPECTED_ROWS:
        return compared
    try:
        unit = _label_spread(request, scene) if scene.spec.task is Task.REGRESSION else 1.0
        folders = [ModelFolder.read(request.model_dirs[number]) for number in (request.challenger, request.champion)]
        losses = [
            expected_loss(rows, folder, scene.spec.task) / unit
            for rows, folder in zip((mine, other), folders, strict=True)
        ]
    except (KeyError, AnswersError, EstimateError, NoLossError, StrangeScoresError):
        return compared
    return replace(compared, estimated_challenger=losses[0], estimated_champion=losses[1])


class NoLossError(Exception):
    """Losses cannot be computed; the message says why."""


def _classes(request: Request, scene: Scene) -> dict[int, Sequence[Any] | None]:
    """Version → the classes that its scores are over; as the champion's where its folder is not told. Raises AnswersError."""
    return {
        number: ModelFolder.read(request.model_dirs[number]).classes
        if number in request.model_dirs
        else scene.folder.classes
        for number in (request.challenger, request.champion)
    }


def _union(classes: Iterable[Sequence[Any] | None]) -> list[Any] | None:
    """Each class once, as the first version that has it spells it; None for a regression.

    >>> _union([["a", "b"], ["b", "c"]]), _union([[0, 1], [1.0, 0.0]]), _union([None, None])
    (['a', 'b', 'c'], [0, 1], None)
    """
    known = [own for own in classes if own is not None]
    by_key: dict[Any, Any] = {}
    for value in (value for own in known for value in own):
        by_key.setdefault(label_key(value), value)
    return list(by_key.values()) if known else None


def _losses(
    frame: pd.DataFrame,
    scene: Scene,
    classes: Mapping[int, Sequence[Any] | None],
    every: Sequence[Any] | None,
    unit: float,
) -> Floats:
    """In [0, 1], (n,); 1, the worst, for an answer that is not finite. `unit`: of a regression's errors.

    Versions may know different `classes`; `code` and losses are over `every` one of them, and a class that a version does not know has
    probability 0 from it. Raises StrangeScoresError, and AnswersError if two binary versions tell different classes apart.
    """
    losses = np.ones(len(frame))
    if not len(frame):
        return losses
    versions = frame["version"].to_numpy()
    for version in np.unique(versions).tolist():
        rows = np.flatnonzero(versions == version)
        scores = align(logged_scores(frame.iloc[rows], classes[version], scene.spec.task), classes[version], every)
        codes = frame["code"].to_numpy()[rows]
        finite = np.isfinite(scores).reshape(len(rows), -1).all(axis=1)
        if scene.spec.task is Task.REGRESSION:
            losses[rows[finite]] = regression_losses(codes[finite], scores[finite], unit)
        else:
            losses[rows[finite]] = classification_losses(codes[finite], scores[finite])
    return losses


def _label_spread(request: Request, scene: Scene) -> float:
    """Of the labels in the reference rows of the version that is compared with, which is the same before and after a promotion: in another
    unit, what was shown would not be shown any more. Raises NoLossError if there is none."""
    import pandas as pd

    path = request.model_dirs.get(request.champion, scene.folder.path) / "reference.parquet"
    label = scene.spec.data.label
    try:
        labels = pd.read_parquet(path, columns=[label])[label].to_numpy(dtype="float64")
    except (OSError, ValueError, KeyError) as error:
        raise NoLossError(f"the labels in the champion's reference rows {path} cannot be read: {error}") from error
    labels = labels[np.isfinite(labels)]
    low, high = np.quantile(labels, SPREAD_QUANTILES) if len(labels) else (0.0, 0.0)
    if high <= low:
        raise NoLossError(f"the labels in the champion's reference rows {path} do not vary, so errors have no unit")
    return float(np.clip(labels, low, high).std())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sequence:
    """Differences in the order in which they became known."""

    d: Floats
    known_at: NDArray[np.datetime64]


def _sequence(frame: pd.DataFrame, request: Request) -> _Sequence:
    """Pairs and blocks of rows with columns id, version, paired, loss and `known_at`, as one sequence of differences."""
    import pandas as pd

    frame = frame.sort_values(["known_at", "id"], kind="stable")
    kinds = [_pairs(frame[frame["paired"]], request), _blocks(frame[~frame["paired"]], request)]
    filled = [kind for kind in kinds if len(kind)]
    if not filled:
        return _Sequence(d=np.zeros(0), known_at=np.zeros(0, dtype="datetime64[us]"))
    merged = pd.concat(filled).sort_values(["known_at", "id"], kind="stable")
    known_at = merged["known_at"].dt.tz_localize(None).to_numpy(dtype="datetime64[us]")
    return _Sequence(d=np.asarray(merged["d"].to_numpy(dtype="float64")), known_at=known_at)


def _pairs(frame: pd.DataFrame, request: Request) -> pd.DataFrame:
    """Difference a row that both answered: columns known_at, id, d."""
    mine = frame[frame["version"] == request.challenger]
    other = frame.loc[frame["version"] == request.champion, ["id", "loss"]]
    both = mine.merge(other, on="id", suffixes=("", "_champion"))
    return both.assign(d=both["loss"] - both["loss_champion"])[["known_at", "id", "d"]]


def _blocks(frame: pd.DataFrame, request: Request) -> pd.DataFrame:
    """Difference a block of rows that one of them answered, at the row that completed it: columns known_at, id, d."""
    differences, ends = block_differences(
        frame["loss"].to_numpy(), (frame["version"] == request.challenger).to_numpy()
    )  # fmt: skip
    return frame.iloc[ends][["known_at", "id"]].assign(d=differences)


def _matured(frame: pd.DataFrame, scene: Scene) -> pd.DataFrame:
    """Rows whose quickest and slowest labels alike have had time to come, known from when that was so."""
    import pandas as pd

    if scene.label_delay is None:
        return frame[:0].assign(known_at=frame["label_at"][:0])
    ripe_at = frame["at"] + scene.label_delay
    kept = frame[ripe_at <= pd.Timestamp(scene.now)]
    return kept.assign(known_at=np.maximum(kept["label_at"], ripe_at[kept.index]))


def _comparison(request: Request, scene: Scene, frame: pd.DataFrame) -> Comparison:
    import pandas as pd

    early = _sequence(frame.assign(known_at=frame["label_at"]), request)
    matured = _matured(frame, scene)
    anew_at, realised = None, None
    if request.promoted_at is not None:
        promoted_at = pd.Timestamp(request.promoted_at)
        anew_at = int(np.searchsorted(early.known_at, promoted_at.tz_convert("UTC").tz_localize(None).to_datetime64()))
        since = _sequence(matured[matured["at"] >= promoted_at], request).d
        realised = weigh(since, margin=request.margin, alpha=request.alpha).estimate
    evidence = weigh(
        early.d, margin=request.margin, alpha=request.alpha, matured=_sequence(matured, request).d, anew_at=anew_at
    )
    answered = frame["version"] == request.challenger
    mine, other = frame.loc[answered, "loss"].to_numpy(), frame.loc[~answered, "loss"].to_numpy()
    return Comparison(
        state=evidence.state,
        challenger_rows=len(mine),
        champion_rows=len(other),
        challenger_score=float(mine.mean()) if len(mine) else None,
        champion_score=float(other.mean()) if len(other) else None,
        sentence=sentence(
            evidence,
            margin=request.margin,
            alpha=request.alpha,
            loss="scaled absolute error" if scene.spec.task is Task.REGRESSION else "Brier score",
            challenger=_told(request.challenger, mine),
            champion=_told(request.champion, other),
        ),
        observed_at=scene.now,
        difference=evidence.estimate,
        realised=realised,
    )


def _told(version: int, losses: Floats) -> str:
    return (
        f"v{version} {number(float(losses.mean()))} ({count(len(losses))})" if len(losses) else f"v{version} (0 rows)"
    )


def _undecided(scene: Scene, reason: str) -> Comparison:
    return Comparison(
        state="undecided",
        challenger_rows=0,
        champion_rows=0,
        challenger_score=None,
        champion_score=None,
        sentence=f"undecided: {reason}",
        observed_at=scene.now,
    )
