"""One trial: a model serves, a cycle sees a broken snapshot, and the real loop decides what becomes of the challenger."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from backtest.replay import Replay
from backtest.stream import Stream, kept_in, read_stream
from bench.faults.corruptions import CORRUPTIONS, NEWEST_ANYWAY, newest_only
from bench.faults.streams import FIRST_ROWS, JUDGED_ROWS, SOURCES, meaning, policy_text, segment
from controller.cycle import final_model
from controller.state import Cycle, Outcome
from controller.work import model_dir
from pipelines import prepare
from pipelines.jobs.port import JobContext
from pipelines.scores import score
from policies.reading import parse_policy
from policies.schema import ModelPolicy

NEWEST_SHARE = 1 / 3
"""Of the faults that can be everywhere, how many are in the newest rows only."""
LATER_ROWS = 500
"""Between two snapshots that are taken after all."""
GROUP_ROWS = 50
"""Rows in a row that are left out together, because neighbours err alike."""
BEYOND_CHANCE = 2.326
"""Standard errors: one-sided 1 %. At 5 % a catalogue of some hundred trials would find several by chance."""

Quality = Literal["hold", "warn"]
Ended = Literal["held", "twin", "gate", "undecided", "rolled_back", "failed", "promoted"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """Which trial."""

    stream: str
    fault: str
    seed: int
    quality: Quality
    """`warn`: whatever the rules of data quality find is let through, so that gates and rollout stand alone."""

    @property
    def name(self) -> str:
        return f"{self.stream}/{self.fault}/{self.seed}/{self.quality}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What became of it."""

    asked: Asked
    newest_only: bool
    ended: Ended
    sentence: str
    rows_held: int
    kinds: tuple[str, ...]
    """Of the faults that were named."""
    gain: float | None
    """Score of the challenger less that of the champion on the rows after the snapshot, more being better; None if nothing was trained."""
    stderr: float | None
    seconds: float
    held_after: int
    """Rows of a later, sound snapshot that are held, see `_held_after`."""

    @property
    def worse(self) -> bool:
        """The challenger is worse by more than the margin and by more than chance."""
        margin = SOURCES[self.asked.stream].margin
        return (
            self.gain is not None and self.stderr is not None and self.gain < -margin
            and self.gain < -BEYOND_CHANCE * self.stderr
        )  # fmt: skip

    @property
    def as_good(self) -> bool:
        return self.gain is not None and self.gain >= 0

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "worse": self.worse, "as_good": self.as_good}


def from_json(value: Mapping[str, Any]) -> Found:
    """What `Found.as_json` wrote."""
    known = {name: value[name] for name in Found.__dataclass_fields__}
    return Found(**{**known, "asked": Asked(**value["asked"]), "kinds": tuple(value["kinds"])})


class _Over(Exception):
    """The cycle has ended; the rest of the stream does not matter."""


@dataclass
class _Snapshots:
    """Stands before the prepare job: the source holds the rows up to now, sound for the first version and broken from then on."""

    asked: Asked
    whole: pd.DataFrame
    path: Path
    newest_only: bool
    broken_after: datetime

    def prepare(self, inputs: Mapping[str, Any], context: JobContext) -> dict[str, Any]:
        rows = self.whole[self.whole["at"] <= pd.Timestamp(inputs["now"])]
        if datetime.fromisoformat(inputs["now"]) > self.broken_after:
            rows = self._broken(rows)
        prepare.write_parquet(rows, self.path)
        return prepare.run(inputs, context)

    def _broken(self, rows: pd.DataFrame) -> pd.DataFrame:
        corrupt, means, rng = CORRUPTIONS[self.asked.fault], meaning(self.asked.stream), generator(self.asked, "fault")
        return newest_only(corrupt, rows, means, rng) if self.newest_only else corrupt(rows, means, rng)


def generator(asked: Asked, purpose: str) -> np.random.Generator:
    """Independent of the others' and the same whenever it is asked for."""
    return np.random.default_rng([asked.seed, *f"{asked.stream} {asked.fault} {purpose}".encode()])


def try_fault(asked: Asked, folder: Path) -> Found:
    """Play one trial in an empty folder. Raises what the loop raises."""
    began = time.monotonic()
    stream = _stream(asked, folder)
    part = asked.fault not in NEWEST_ANYWAY and bool(generator(asked, "part").random() < NEWEST_SHARE)
    replay = Replay(stream=stream, home=folder, seed=asked.seed, tell=lambda row, text: _stop_when_over(replay))
    snapshots = _Snapshots(
        asked=asked, whole=stream.frame, path=replay.models.rows, newest_only=part,
        broken_after=stream.moment(FIRST_ROWS - 1),
    )  # fmt: skip
    replay.models.rows = folder / "whole.parquet"
    shutil.copyfile(snapshots.path, replay.models.rows)
    replay.jobs.replaced = {**replay.jobs.replaced, "pipelines.prepare:run": snapshots.prepare}
    with contextlib.suppress(_Over):
        replay.run(FIRST_ROWS)
    cycle = _second(replay)
    assert cycle is not None, f"{asked.name}: no second cycle was opened in {len(stream)} rows"
    gain, stderr = _gain(replay, cycle)
    prepared = cycle.outputs.get("preparing", {})
    return Found(
        asked=asked, newest_only=part, ended=_ended(cycle), sentence=cycle.sentence,
        rows_held=int(prepared.get("rows_held") or 0),
        kinds=tuple(sorted({fault["kind"] for fault in prepared.get("faults") or ()})),
        gain=gain, stderr=stderr, seconds=round(time.monotonic() - began, 2), held_after=_held_after(replay, snapshots),
    )  # fmt: skip


def _stream(asked: Asked, folder: Path) -> Stream:
    rows = folder / "segment.parquet"
    prepare.write_parquet(segment(asked.stream, asked.seed), rows)
    text = policy_text(asked.stream, rows, quality=asked.quality, seed=asked.seed)
    return kept_in(read_stream(_policy(text, folder), folder, None, folder / "log"), folder)


def _policy(text: str, folder: Path) -> ModelPolicy:
    reading = parse_policy(text, file="policy.yaml", directory=folder)
    assert not reading.problems, "; ".join(map(str, reading.problems))
    return reading.policies[0].policy


def _second(replay: Replay) -> Cycle | None:
    """The cycle that saw the broken snapshot: open, or closed."""
    state = replay.store.load(replay.name)
    cycles = [
        *replay.store.cycles(replay.name, limit=100),
        *([state.cycle] if state is not None and state.cycle else []),
    ]
    ordered = sorted({cycle.number: cycle for cycle in cycles}.values(), key=lambda cycle: cycle.number)
    return ordered[1] if len(ordered) > 1 else None


def _stop_when_over(replay: Replay) -> None:
    cycle = _second(replay)
    if cycle is not None and cycle.outcome is not None:
        raise _Over


def _ended(cycle: Cycle) -> Ended:
    """Which part of Ratchet had the last word. A challenger whose bake goes on at the end of the rows counts as promoted."""
    trained, versioned = "training" in cycle.outputs, cycle.challenger is not None
    if cycle.outcome is Outcome.PROMOTED or (cycle.outcome is None and cycle.promoted_at is not None):
        return "promoted"
    if cycle.outcome is Outcome.ROLLED_BACK:
        return "rolled_back"
    if cycle.outcome is Outcome.FAILED:
        return "failed"
    if not trained:
        return "held"
    if versioned:
        return "undecided"
    return "gate" if "judging" in cycle.outputs else "twin"


# ---------------------------------------------------------------- which one was better
def _gain(replay: Replay, cycle: Cycle) -> tuple[float | None, float | None]:
    """What the challenger, promoted or not, would have gained on the `JUDGED_ROWS` after the snapshot, and the standard error of that.

    The error by the jackknife over groups of neighbours: sqrt((g - 1) / g * sum((d_i - mean)^2)), d_i the gain without group i.
    """
    if "training" not in cycle.outputs:
        return None, None
    state = replay.store.load(replay.name)
    assert state is not None
    first = int(np.searchsorted(replay.stream.asked, round(cycle.opened_at.timestamp() * 1e6), side="right"))
    rows = np.arange(first, first + JUDGED_ROWS)
    folders = (
        Path(final_model(cycle.outputs)["model_dir"]),
        model_dir(replay.home, state.versions[min(state.versions)]),
    )
    challenger, champion = (replay.models.over_all_classes(f, replay.models.scores(f, rows)) for f in folders)
    group = (rows - first) // GROUP_ROWS
    kept = [group != i for i in range(int(group.max()) + 1)]
    gains = np.array([_difference(replay.stream, rows[k], challenger[k], champion[k]) for k in kept])
    spread = float(np.sqrt((len(gains) - 1) / len(gains) * np.sum((gains - gains.mean()) ** 2)))
    return _difference(replay.stream, rows, challenger, champion), spread


def _difference(
    stream: Stream, rows: NDArray[np.int64], challenger: NDArray[np.float64], champion: NDArray[np.float64]
) -> float:
    codes = None if stream.classes is None else list(range(len(stream.classes)))
    metric, truth = stream.metric, stream.truth[rows]
    new, old = (score(metric.name, truth, answers, classes=codes) for answers in (challenger, champion))
    return new - old if metric.higher_is_better else old - new


# ---------------------------------------------------------------- and afterwards
def _held_after(replay: Replay, snapshots: _Snapshots) -> int:
    """Of the second sound snapshot after the fault: a broken one must not have spoilt what is known of the data.

    Of the first one rows may be held, because nobody knows yet which version of them is the broken one.
    """
    held = 0
    for i, row in enumerate((len(replay.stream) - LATER_ROWS, len(replay.stream))):
        now = replay.stream.moment(row - 1)
        workdir = replay.home / f"after-{i}"
        workdir.mkdir()
        context = JobContext(job_id=workdir.name, workdir=workdir, report_path=workdir / "progress.json")
        inputs = {
            "policy": replay.policy.model_dump(mode="json", by_alias=True), "policy_dir": str(replay.home),
            "home": str(replay.home), "now": now.isoformat(), "model": replay.name,
        }  # fmt: skip
        held = int(replace(snapshots, broken_after=now).prepare(inputs, context)["rows_held"])
    return held
