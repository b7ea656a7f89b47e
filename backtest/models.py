"""The versions of a replay, loaded by the code that serves them, in this process instead of one of their own."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.answers import Answers, ModelFolder, WrongAnswersError, align
from policies.metrics import Task
from serving.frame import Columns, InputError
from serving.manifest import ModelFolderError
from serving.model import Model, PredictionError, load_model
from serving.offline import score_file
from serving.rows_file import read_columns

KEPT = 6
"""Models in memory: champion, challenger, the one before, the first one, and what the judge asks."""


@dataclass
class Models:
    """Loads each model folder once and scores rows of the stream with it."""

    rows: Path
    """Parquet file of the stream."""
    classes: list[Any] | None
    """Of the whole stream."""
    _loaded: OrderedDict[Path, Model] = field(default_factory=OrderedDict)
    _columns: dict[tuple[str, ...], Columns] = field(default_factory=dict)

    def scores(self, folder: Path, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores of rows of the stream over the model's own classes. Raises ModelFolderError, PredictionError, InputError."""
        model = self.load(folder)
        features = tuple(f"{feature.name}:{feature.kind}" for feature in model.schema.features)
        if features not in self._columns:
            self._columns[features] = read_columns(model.schema, self.rows)
        columns = self._columns[features]
        return model.predict({name: values[rows] for name, values in columns.items()})

    def over_all_classes(self, folder: Path, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """The scores over the classes of the stream."""
        return align(scores, self.load(folder).manifest.classes, self.classes)

    def load(self, folder: Path) -> Model:
        """Raises ModelFolderError."""
        folder = folder.resolve()
        if folder not in self._loaded:
            self._loaded[folder] = load_model(folder)
        self._loaded.move_to_end(folder)
        while len(self._loaded) > KEPT:
            self._loaded.popitem(last=False)
        return self._loaded[folder]

    def ask(
        self,
        model: ModelFolder,
        rows: Path,
        *,
        task: Task,
        row_count: int,
        workdir: Path,
        timeout_s: float,
        latency_rows: int = 0,
    ) -> Answers:
        """As `evaluators.answers.ask`, without a process and so without time limit and latencies."""
        try:
            scores, _ = score_file(self.load(model.path), rows)
        except (ModelFolderError, PredictionError, InputError) as error:
            raise WrongAnswersError(str(error)) from error
        if not np.isfinite(scores).all():
            raise WrongAnswersError(f"some of {row_count:,} rows were answered with NaN or infinity")
        return Answers(scores=scores, latency_ms=np.zeros(0))
