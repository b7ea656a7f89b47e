"""The recorded streams in which faults are tried, and the policy under which.

Each trial has a segment of its own: rows that train the first version, rows that are replayed, and rows after them on which is told which
version was really better.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from bench.faults.corruptions import Meaning
from policies.starter import NUMBERS

FOLDER = Path(os.environ.get("RATCHET_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
FIRST_ROWS = 3_000
"""Train the first version."""
QUIET_ROWS = 800
"""Until the cycle opens that sees the broken snapshot."""
JUDGED_ROWS = 1_500
"""After the snapshot: which version was really better on them?"""
REPLAYED_ROWS = 3_200
"""At most, until that cycle is over."""
SEGMENT_ROWS = FIRST_ROWS + REPLAYED_ROWS
TIME = "at"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A stream, as a policy would name its columns. Row i comes `seconds` after row i - 1."""

    label: str
    leave_out: tuple[str, ...]
    regression: bool
    metric: str
    margin: float
    """How much worse in the metric is worse."""


SOURCES: Mapping[str, Source] = {
    "elec2": Source(label="class", leave_out=("t", "date"), regression=False, metric="accuracy", margin=0.01),
    "sea50k_synthetic": Source(label="y", leave_out=("t", "concept"), regression=False, metric="accuracy", margin=0.01),
    "bike_sharing_hourly": Source(
        label="cnt", leave_out=("t", "casual", "registered"), regression=True, metric="r2", margin=0.02
    ),
}


def is_there() -> bool:
    return all((FOLDER / name).is_dir() for name in SOURCES)


@cache
def _whole(name: str) -> pd.DataFrame:
    return pd.read_csv(FOLDER / name / f"{name}.csv.gz").drop(columns=list(SOURCES[name].leave_out))


def segment(name: str, seed: int) -> pd.DataFrame:
    """`SEGMENT_ROWS` consecutive rows of the stream from a seeded place, one a second in the column `at`."""
    frame = _whole(name)
    start = int(np.random.default_rng([seed, *name.encode()]).integers(len(frame) - SEGMENT_ROWS + 1))
    rows = frame.iloc[start : start + SEGMENT_ROWS].reset_index(drop=True)
    return rows.assign(**{TIME: pd.to_datetime(np.arange(len(rows)), unit="s", utc=True)})


def meaning(name: str) -> Meaning:
    source = SOURCES[name]
    features = tuple(column for column in _whole(name) if column != source.label)
    return Meaning(label=source.label, features=features, regression=source.regression)


def policy_text(name: str, path: Path, *, quality: str, seed: int) -> str:
    """A cycle opens when the champion's rows are `QUIET_ROWS` old; judgement and rollout are those of `ratchet init`."""
    source = SOURCES[name]
    margin = NUMBERS.rollout_margin_regression if source.regression else NUMBERS.rollout_margin
    rollout = f"bake: {NUMBERS.bake}s, min_labelled_rows: {NUMBERS.min_labelled_rows}, deadline: {NUMBERS.deadline}s, margin: {margin}"
    linear = "sklearn.ridge" if source.regression else "sklearn.logistic_regression"
    return f"""apiVersion: ratchet.dev/v1
kind: ModelPolicy
metadata: {{name: {name.replace("_", "-")}}}
spec:
  task: {"regression" if source.regression else "binary"}
  data: {{source: {{kind: parquet, path: {path}}}, label: {source.label}, time: {TIME}, label_delay: 0s, holdout: 500s, quality: {quality}}}
  train: {{component: [sklearn.hist_gradient_boosting, {linear}], window: [2000s, all], refit: true, seed: {seed}}}
  tune: {{trials: 3, warm_trials: 2, timeout: 10m}}
  objective: {{metric: {source.metric}}}
  triggers: {{any: [staleness: {QUIET_ROWS}s]}}
  cooldown: 250s
  budget: {{cycles: 1000, per: 365d}}
  gates: [{{metric: {source.metric}, no_worse_than_champion: {NUMBERS.gate_margin}, confidence: {NUMBERS.gate_confidence}}}]
  rollout: {{steps: [shadow: 0s, 100%: 0s], {rollout}, holdback: 0%}}
"""
