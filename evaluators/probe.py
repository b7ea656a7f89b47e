"""Does a challenger answer like a model that was refused before? Asked on the same few rows in every cycle.

Hold-out rows change from cycle to cycle, and folders of refused models are cleaned away. So a seeded sample of the first hold-out is kept
for each model, with what every challenger answered to it. Another set of features or classes gets a sample of its own: such models are not
alike, whatever they answer.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluators.answers import AnswersError, Asker, Floats, ModelFolder
from evaluators.holdout import HoldOut
from pipelines.jobs.files import write_bytes_atomic
from policies.metrics import Task

PROBE_ROWS = 256
ANSWERS_KEPT = 20
"""Of so many newest challengers; those of refused ones stay as long as they are remembered."""
_SPREAD_QUANTILES = (0.005, 0.995)
_ANSWERS = re.compile(r"c([0-9]+)\.npy")


@dataclass(frozen=True, kw_only=True, slots=True)
class Likeness:
    """The refused challenger whose answers are nearest."""

    cycle: int
    difference: float
    """Largest difference of any answer: of a probability, or of a value in units of the labels' spread."""
    rows: int


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The kept rows of one model and one set of features, in `folder`."""

    folder: Path

    @classmethod
    def of(cls, home: Path, model: str, folder: ModelFolder) -> Probe:
        """Where the rows are, or will be, for models like `folder`."""
        described = json.dumps([folder.features, folder.classes], sort_keys=True, default=str)
        return cls(folder=home / "probes" / model / hashlib.sha256(described.encode()).hexdigest()[:16])

    @property
    def rows(self) -> Path:
        return self.folder / "rows.parquet"

    def answered(self, cycle: int) -> Floats | None:
        """What the challenger of a cycle answered; None if that is not known."""
        try:
            answers: Floats = np.load(self.folder / f"c{cycle}.npy", allow_pickle=False)
            return answers
        except (OSError, ValueError):
            return None

    def keep_rows(self, hold_out: Path, seed: int) -> None:
        """A sample of the hold-out's rows, in their order, unless there are rows already. Raises OSError, ValueError."""
        import pyarrow.parquet as pq

        if self.rows.exists():
            return
        table = pq.read_table(hold_out)
        chosen = np.random.default_rng(seed).permutation(len(table))[:PROBE_ROWS]
        sink = io.BytesIO()
        pq.write_table(table.take(np.sort(chosen)), sink)
        write_bytes_atomic(self.rows, sink.getvalue())

    def keep_answers(self, cycle: int, answers: Floats, refused: Collection[int]) -> None:
        """Also forget those of challengers that nobody asks about any more. Raises OSError."""
        sink = io.BytesIO()
        np.save(sink, answers, allow_pickle=False)
        write_bytes_atomic(self.folder / f"c{cycle}.npy", sink.getvalue())
        for number in sorted(self._cycles())[:-ANSWERS_KEPT]:
            if number not in refused:
                (self.folder / f"c{number}.npy").unlink(missing_ok=True)

    def _cycles(self) -> Iterator[int]:
        for path in self.folder.iterdir():
            if match := _ANSWERS.fullmatch(path.name):
                yield int(match[1])

    def nearest(self, answers: Floats, refused: Collection[int], scale: float) -> Likeness | None:
        """Of the refused challengers that answered the same rows, the one whose answers differ least."""
        found = []
        for cycle in sorted(refused):
            theirs = self.answered(cycle)
            if theirs is not None and theirs.shape == answers.shape:
                difference = float(np.max(np.abs(theirs - answers), initial=0.0)) / scale
                found.append(Likeness(cycle=cycle, difference=difference, rows=len(answers)))
        return min(found, key=lambda one: (one.difference, one.cycle), default=None)


def liken(
    challenger: ModelFolder, hold_out: HoldOut, ask: Asker, *,
    home: Path, model: str, cycle: int, refused: Collection[int], seed: int, task: Task, workdir: Path, timeout_s: float,
) -> tuple[Likeness | None, str]:  # fmt: skip
    """The refused challenger that this one is most like, if any; and why it could not be asked, if it could not.

    Nothing depends on it but the recognition of what was refused, so that no failure here fails a verdict."""
    import pyarrow.parquet as pq

    probe = Probe.of(home, model, challenger)
    try:
        probe.keep_rows(hold_out.path, seed)
        rows = pq.ParquetFile(probe.rows).metadata.num_rows
        answers = ask(
            challenger, probe.rows, task=task, row_count=rows, workdir=workdir / "probe", timeout_s=timeout_s
        ).scores
        probe.keep_answers(cycle, answers, refused)
    except (OSError, ValueError, AnswersError) as error:
        return None, f"not likened to refused models: {error}"
    scale = _spread(hold_out.labels) if task is Task.REGRESSION else 1.0
    return probe.nearest(answers, refused, scale), ""


def _spread(labels: Floats) -> float:
    """Of nearly all of them; 1 where they do not vary."""
    low, high = np.quantile(labels, _SPREAD_QUANTILES)
    return float(high - low) or 1.0
