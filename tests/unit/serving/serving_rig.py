"""What the tests of serving share: model folders written with plain scikit-learn, replicas as real processes, a reader of the log."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import skops.io
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

PROJECT = Path(__file__).resolve().parents[3]
NUMBERS = ("age", "price")
FEATURES = [
    {"name": "age", "kind": "numeric"},
    {"name": "price", "kind": "numeric"},
    {"name": "member", "kind": "boolean"},
    {"name": "city", "kind": "categorical"},
]


def rows(count: int, seed: int = 0) -> pd.DataFrame:
    """Rows of FEATURES in the types that a model takes."""
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "age": random.normal(40, 10, count),
            "price": random.normal(0, 1, count),
            "member": random.integers(0, 2, count).astype(float),
            "city": pd.Series(random.choice(["Rome", "Oslo"], count), dtype=object),
        }
    )


def json_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The same rows as a client sends them."""
    return [
        {"age": r.age, "price": r.price, "member": bool(r.member), "city": r.city}
        for r in rows(count, seed).itertuples()
    ]


def preprocessing() -> ColumnTransformer:
    """One column a number, one a category; unknown categories are zeros."""
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    cities = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    return ColumnTransformer([("numbers", numbers, [*NUMBERS, "member"]), ("cities", cities, ["city"])])


def fitted(classes: Sequence[Any] | None = (0, 1), estimator: Any = None) -> Pipeline:
    """A pipeline fitted on `rows`: on as many classes as given, or on a number where that is None."""
    frame = rows(300)
    if classes is None:
        target = frame.price * 2 + 1
    else:
        cuts = np.quantile(frame.price, np.linspace(0, 1, len(classes) + 1)[1:-1])
        target = np.array(classes, dtype=object if isinstance(classes[0], str) else None)[
            np.digitize(frame.price, cuts)
        ]
    if estimator is None:
        estimator = Ridge() if classes is None else LogisticRegression()
    return Pipeline([("preprocessing", preprocessing()), ("estimator", estimator)]).fit(frame, target)


def manifest(**changes: Any) -> dict[str, Any]:
    """A valid `model.json` of a binary model, with changes."""
    base = {
        "format": 1,
        "model": "shop",
        "task": "binary",
        "label": "bought",
        "threshold": 0.5,
        "classes": [0, 1],
        "component": "sklearn.logistic_regression",
        "parameters": {"C": 1.0},
        "features": FEATURES,
        "predictor": {"kind": "sklearn", "file": "estimator.skops"},
        "requirements": {"scikit-learn": "1.9.1"},
    }
    return base | changes


def write_model(folder: Path, estimator: Any = None, **changes: Any) -> Path:
    """Write a model folder; a fitted binary classifier unless another estimator is given."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.json").write_text(json.dumps(manifest(**changes), sort_keys=True))
    skops.io.dump(fitted() if estimator is None else estimator, folder / "estimator.skops")
    return folder


def write_multiclass(folder: Path) -> Path:
    """A model of three named classes."""
    classes = ["low", "mid", "top"]
    return write_model(folder, fitted(classes), task="multiclass", classes=classes, threshold=None)


def write_regression(folder: Path) -> Path:
    """A model of a number."""
    return write_model(folder, fitted(None), task="regression", classes=None, threshold=None)


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Return once the condition holds; fail if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.01)


@dataclass
class Replica:
    """A replica process that serves, or died trying."""

    process: subprocess.Popen[bytes]
    log_dir: Path
    announce: Path
    stderr: Path

    @property
    def port(self) -> int:
        return int(json.loads(self.announce.read_bytes())["port"])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def workers(self) -> list[int]:
        """Process ids of its workers."""
        pid = self.process.pid
        try:
            return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except FileNotFoundError:
            return []

    def wait_ready(self) -> Replica:
        """Return once it has announced itself; fail, showing its log, if it ends instead."""
        wait_until(lambda: self.announce.exists() or self.process.poll() is not None, 60)
        assert self.announce.exists(), self.stderr.read_text()
        return self

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Status and JSON of a request."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json", **(headers or {})})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of a request."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def predict(self, instances: list[dict[str, Any]], **more: Any) -> Any:
        """The body of a successful prediction."""
        status, body = self.post("/v1/models/shop:predict", {"instances": instances, **more})
        assert status == 200, body
        return body


@contextlib.contextmanager
def replica(
    model_dir: Path,
    tmp_path: Path,
    *options: str,
    name: str = "replica",
    log_dir: Path | None = None,
) -> Iterator[Replica]:
    """A replica of version 7 of `shop`; it and its workers are gone at the end."""
    run = tmp_path / name
    run.mkdir()
    log = log_dir or tmp_path / "log"
    announce, stderr = run / "announce.json", run / "stderr.txt"
    command = [
        sys.executable,
        "-m",
        "serving.runtime",
        "--model-dir",
        str(model_dir),
        "--name",
        "shop",
        "--version",
        "7",
    ]
    command += ["--log-dir", str(log), "--announce", str(announce), *options]
    with stderr.open("wb") as file:
        process = subprocess.Popen(command, stderr=file, cwd=run, env=os.environ | {"PYTHONPATH": str(PROJECT)})
    made = Replica(process, log, announce, stderr)
    workers: list[int] = []
    try:
        yield made
    finally:
        workers = made.workers()
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def logged(log_dir: Path, kind: str = "predictions") -> list[dict[str, Any]]:
    """All rows on record: segments, and journals that have none. Torn last lines are left out, as readers must."""
    names = {path.name for path in (log_dir / kind).iterdir() if not path.name.startswith(".")}
    return [row for stem in sorted({Path(name).stem for name in names}) for row in _rows(log_dir / kind / stem)]


def _rows(stem: Path) -> list[dict[str, Any]]:
    segment, journal = stem.with_name(stem.name + ".parquet"), stem.with_name(stem.name + ".jsonl")
    if not segment.exists():
        try:
            *lines, last = journal.read_bytes().split(b"\n")
        except FileNotFoundError:  # it became a segment this instant
            return _rows(stem)
        assert not last.endswith(b"}"), "a whole line ends with a newline"
        return [json.loads(line) for line in lines if line]
    rows: list[dict[str, Any]] = pq.read_table(segment).to_pylist()
    return rows
