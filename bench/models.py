"""Model folders to serve, made on the spot in the format that training writes."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import skops.io
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline

NAME = "bench"


def small_model(folder: Path) -> Path:
    """A gradient-boosted classifier of ten numeric features, 100 trees of 31 leaves: what a request costs, not what a model weighs."""
    return _write(folder, HistGradientBoostingClassifier(random_state=0, early_stopping=False), rows=5_000, features=10)


def heavy_model(folder: Path, *, size_mb: int) -> Path:
    """A classifier that holds `size_mb` MB in one array, and reads all of it for a prediction."""
    features = 500
    rows = size_mb * 1_000_000 // (features * 8)
    return _write(folder, KNeighborsClassifier(algorithm="brute"), rows=rows, features=features)


def request_body(model_dir: Path, path: Path) -> Path:
    """Write a predict request of one row for a model folder to `path`."""
    features = json.loads((model_dir / "model.json").read_bytes())["features"]
    row = {feature["name"]: 0.1 * i for i, feature in enumerate(features)}
    path.write_text(json.dumps({"instances": [row]}))
    return path


def _write(folder: Path, estimator: Any, *, rows: int, features: int) -> Path:
    import pandas as pd

    folder.mkdir()
    random = np.random.default_rng(0)
    names = [f"f{i}" for i in range(features)]
    frame = pd.DataFrame(random.standard_normal((rows, features)), columns=names)
    label = (frame["f0"] + frame["f1"] * frame["f2"] + random.standard_normal(rows) > 0).astype(int)
    keep = ColumnTransformer([("numeric", SimpleImputer(), names)], verbose_feature_names_out=False)
    skops.io.dump(
        Pipeline([("features", keep), ("estimator", estimator)]).fit(frame, label), folder / "estimator.skops"
    )
    manifest = {
        "format": 1,
        "model": NAME,
        "task": "binary",
        "label": "label",
        "threshold": 0.5,
        "classes": [0, 1],
        "component": f"bench.{type(estimator).__name__}",
        "parameters": {},
        "features": [{"name": name, "kind": "numeric"} for name in names],
        "predictor": {"kind": "sklearn", "file": "estimator.skops"},
        "requirements": {"scikit-learn": version("scikit-learn")},
    }
    (folder / "model.json").write_text(json.dumps(manifest, sort_keys=True))
    return folder
