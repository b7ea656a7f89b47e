"""Our CBPE is held to NannyML's own, on real streams, and to what the labels turned out to be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import real_streams

from evaluators.estimate.estimator import Estimator, fit_estimator
from pipelines.scores import score
from policies.metrics import Task

ACS = ("acs_employment_MA", "employed", ("t", "year"), 20_000)
ELEC2 = ("elec2", "class", ("t", "date"), 11_000)
AGREES = 1e-3
BINARY = ("accuracy", "precision", "recall", "f1", "roc_auc", "average_precision")


def _nannyml(tmp_path: Path, frame: pd.DataFrame) -> dict[str, list[float]]:
    if not (Path(sys.prefix) / "peers" / "nannyml").is_dir():
        assert not os.environ.get("CI"), "scripts/setup.sh --test installs NannyML into .venv/peers"
        pytest.skip("NannyML is not installed (scripts/setup.sh --test)")
    rows, out = tmp_path / "rows.parquet", tmp_path / "out.json"
    frame.to_parquet(rows)
    peer = Path(__file__).with_name("nannyml_peer.py")
    quiet = {**os.environ, "NML_DISABLE_USAGE_LOGGING": "1"}
    subprocess.run([sys.executable, "-W", "ignore", str(peer), str(rows), str(out)], check=True, env=quiet)
    found: dict[str, list[float]] = json.loads(out.read_text())
    return found


def _parts(n: int, reference: int) -> list[str]:
    return ["reference"] * reference + ["analysis"] * (n - reference)


def _agree(theirs: dict[str, list[float]], ours: dict[str, list[float]]) -> None:
    for metric, values in theirs.items():
        assert ours[metric] == pytest.approx(values, abs=AGREES), metric
        assert np.std(values) > 0, f"{metric} should differ between chunks"


@pytest.mark.slow
@pytest.mark.parametrize(("data", "reference"), [(ACS, 6_000), (ELEC2, 6_000)], ids=["acs", "elec2"])
def test_binary_estimates_are_those_of_nannyml(data: tuple[Any, ...], reference: int, tmp_path: Path) -> None:
    """Every metric that both estimate, on chunks of 2,000 rows.

    Ties are broken, because NannyML's average precision depends on the order of rows with the same score; ours does not.
    """
    scores, truth = (values[: reference + 8_000] for values in real_streams.answered(*data))
    scores = scores + 1e-9 * np.random.default_rng(0).permutation(len(scores)) / len(scores)
    frame = pd.DataFrame(
        {"part": _parts(len(scores), reference), "y_true": truth.astype(int), "p": scores, "chunk": 2_000}
    )
    theirs = _nannyml(tmp_path, frame.assign(y_pred=(scores >= 0.5).astype(int)))
    estimator = fit_estimator(Task.BINARY, truth[:reference], scores[:reference])
    chunks = np.split(scores[reference:], range(2_000, 8_000, 2_000))
    _agree(theirs, {metric: [estimator.expected(metric, chunk) for chunk in chunks] for metric in BINARY})


@pytest.mark.slow
def test_multiclass_estimates_are_those_of_nannyml(tmp_path: Path) -> None:
    """Ten digits, whose domain changes within the chunks that are estimated."""
    from sklearn.linear_model import LogisticRegression

    with np.load(next(real_streams.folder("digits_domain_shift").glob("*.npz"))) as data:
        x, y = data["x"].reshape(len(data["x"]), -1) / data["x"].max(), data["y"]
    model = LogisticRegression(max_iter=80, tol=1e-2).fit(x[:700], y[:700])
    scores, truth = model.predict_proba(x[700:4_600]), y[700:4_600].astype(np.float64)
    frame = pd.DataFrame(
        {"part": _parts(3_900, 900), "y_true": truth.astype(int), "y_pred": scores.argmax(axis=1), "chunk": 500}
    )
    theirs = _nannyml(tmp_path, frame.assign(**{f"p{k}": scores[:, k] for k in range(10)}))
    estimator = fit_estimator(Task.MULTICLASS, truth[:900], scores[:900])
    chunks = np.split(scores[900:], range(500, 3_000, 500))
    ours = {ours: [estimator.expected(ours, chunk) for chunk in chunks] for ours in ("accuracy", "f1_macro")}
    _agree({"accuracy": theirs["accuracy"], "f1_macro": theirs["f1"]}, ours)


def _realised(estimator: Estimator, metric: str, chunk: slice, scores: Any, truth: Any) -> tuple[float, float]:
    real = score(metric, truth[chunk].astype(int), scores[chunk], classes=[0, 1])
    return estimator.expected(metric, scores[chunk]), real


def test_estimates_come_true_where_nothing_changes() -> None:
    """On acs_employment_MA, chunk by chunk, the estimate is within what 10,000 labels can tell (4 standard errors and 1 point)."""
    scores, truth = real_streams.answered(*ACS)
    estimator = fit_estimator(Task.BINARY, truth[:20_000], scores[:20_000])
    starts = range(20_000, len(scores) - 10_000, 10_000)
    for metric in ("accuracy", "roc_auc", "f1", "log_loss", "brier", "balanced_accuracy"):
        pairs = np.array([_realised(estimator, metric, slice(s, s + 10_000), scores, truth) for s in starts])
        off = np.abs(pairs[:, 0] - pairs[:, 1])
        assert off.max() < 0.02, (metric, off.max())
        assert off.mean() < 0.01, (metric, off.mean())
