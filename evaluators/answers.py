"""A model's answers to a table of rows, got the way production gets them: in a fresh process that loads the model folder.

The process runs the serving code that the version was packaged with, so that it doubles as the test that the version loads and predicts
at all. Nothing of the model, nor of the owner's code, is ever imported here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipelines.data.labels import label_key
from pipelines.data.profile import REFERENCE_FILES
from policies.metrics import Task

Floats: TypeAlias = NDArray[np.float64]

PROJECT = Path(__file__).resolve().parents[1]
"""Where the installed project's own `serving` package lies."""
_MODEL_AT_FAULT = 2
"""Exit status of `serving.predict` when the model folder, or its answer to these rows, is at fault."""


class AnswersError(Exception):
    """The model gave no usable answers; the message is one sentence."""


class ProcessFailedError(AnswersError):
    """The process ended badly or not in time: nothing is known of the model's answers."""


class WrongAnswersError(AnswersError):
    """The model itself is at fault: it cannot be loaded, fails on these rows, or gives what are no scores of this task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFolder:
    """What judging needs to know of a model folder."""

    path: Path
    classes: Sequence[Any] | None
    """Labels in the order of the score columns; None for a regression."""
    features: Sequence[Mapping[str, str]]

    @classmethod
    def read(cls, path: Path) -> ModelFolder:
        """Raises AnswersError naming the file if it is missing or not of the known format."""
        described = path / "model.json"
        try:
            content = json.loads(described.read_bytes())
            if content["format"] != 1:
                raise AnswersError(f"{described}: format must be 1 but is {content['format']!r}")
            return cls(path=path, classes=content["classes"], features=content["features"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AnswersError(f"{described} does not describe a model: {type(error).__name__}: {error}") from error

    @property
    def size_mb(self) -> float:
        """Bytes of its files, in 10^6 bytes, without the reference rows and their profile: these are not loaded to serve."""
        files = [f for f in self.path.rglob("*") if f.is_file()]
        return sum(f.stat().st_size for f in files if f.parent != self.path or f.name not in REFERENCE_FILES) / 1e6


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What the process wrote."""

    scores: Floats
    """(n,) or (n, k), finite."""
    latency_ms: Floats
    """Of single-row answers; may be empty."""


class Asker(Protocol):
    """How a model folder is brought to answer a file of rows: `ask`, or another way that keeps the same promises."""

    def __call__(
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
        """Finite scores of all `row_count` rows of the Parquet file `rows`, over the model's own classes; with `latency_rows`, also the
        times of that many single-row answers.

        Called from two threads at the same time, for champion and challenger, each with a `workdir` of its own. Raises
        ProcessFailedError if nothing is known of the model's answers, WrongAnswersError if the model is at fault.
        """


def ask(
    model: ModelFolder,
    rows: Path,
    *,
    task: Task,
    row_count: int,
    workdir: Path,
    timeout_s: float,
    latency_rows: int = 0,
) -> Answers:
    """Score every row of the Parquet file `rows` with `model`. Files are kept in `workdir` (made if need be).

    Raises ProcessFailedError, WrongAnswersError.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    output = workdir / "scores.npz"
    output.unlink(missing_ok=True)
    command = [sys.executable, "-m", "serving.predict", "--model-dir", str(model.path), "--input", str(rows)]
    command += ["--output", str(output)] + (["--latency-rows", str(latency_rows)] if latency_rows else [])
    _run(command, _environment(model.path), workdir, timeout_s)
    return _read(output, _shape(task, model, row_count))


def _environment(model_dir: Path) -> dict[str, str]:
    """The packaged serving code comes first, else the project's own; nothing is compiled into the image's folder."""
    packaged = model_dir.parent / "app"
    code = packaged if (packaged / "serving").is_dir() else PROJECT
    quiet = {"PYTHONDONTWRITEBYTECODE": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    return {**os.environ, **quiet, "PYTHONPATH": str(code)}


def _run(command: Sequence[str], environment: Mapping[str, str], workdir: Path, timeout_s: float) -> None:
    """Run to the end in the job's own process group, so that what stops the job stops this too."""
    stderr_path = workdir / "stderr.txt"
    with stderr_path.open("wb") as stderr, (workdir / "stdout.txt").open("wb") as stdout:
        process = subprocess.Popen(command, env=environment, cwd=workdir, stdout=stdout, stderr=stderr)
        try:
            code = process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise ProcessFailedError(f"no answers within {timeout_s:g} s{_last_line(stderr_path)}") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if code == _MODEL_AT_FAULT:
        raise WrongAnswersError(f"serving refused it{_last_line(stderr_path)}")
    if code:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise ProcessFailedError(f"the scoring process {how}{_last_line(stderr_path)}")


def _last_line(stderr: Path) -> str:
    lines = [line.strip() for line in stderr.read_text(errors="replace").splitlines() if line.strip()]
    return f": {lines[-1][:500]}" if lines else ""


def _shape(task: Task, model: ModelFolder, rows: int) -> tuple[int, ...]:
    return (rows, len(model.classes or ())) if task is Task.MULTICLASS else (rows,)


def _read(output: Path, shape: tuple[int, ...]) -> Answers:
    try:
        with np.load(output, allow_pickle=False) as arrays:
            scores = np.asarray(arrays["scores"], dtype=np.float64)
            timed = np.asarray(arrays["latency_ms"], dtype=np.float64) if "latency_ms" in arrays else np.zeros(0)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise WrongAnswersError(f"the scoring process wrote no readable scores: {error}") from error
    if scores.shape != shape:
        raise WrongAnswersError(f"scores must have shape {shape} but have {scores.shape}")
    if bad := int(np.count_nonzero(~np.isfinite(scores).reshape(len(scores), -1).all(axis=1))):
        raise WrongAnswersError(f"{bad:,} of {len(scores):,} rows were answered with NaN or infinity")
    return Answers(scores=scores, latency_ms=timed)


def align(scores: Floats, own: Sequence[Any] | None, common: Sequence[Any] | None) -> Floats:
    """Scores over the classes `own` as scores over `common`, so that two models with different classes can be compared.

    A class that the model does not know has probability 0; one that `common` does not know is dropped. Binary scores are turned round if
    the model calls the other class positive. Raises WrongAnswersError if binary classes differ altogether.

    >>> align(np.array([[0.2, 0.8]]), ["b", "a"], ["a", "b", "c"]).tolist()
    [[0.8, 0.2, 0.0]]
    >>> align(np.array([0.2]), [1, 0], [0, 1]).tolist()
    [0.8]
    """
    if own is None or common is None:
        return scores
    position = {label_key(value): i for i, value in enumerate(own)}
    order = [position.get(label_key(value)) for value in common]
    if scores.ndim == 1:
        if order == [0, 1]:
            return scores
        if order == [1, 0]:
            return 1.0 - scores
        raise WrongAnswersError(f"it tells {list(own)!r} apart, but the labels are {list(common)!r}")
    columns = [np.zeros(len(scores)) if i is None else scores[:, i] for i in order]
    return np.stack(columns, axis=1)
