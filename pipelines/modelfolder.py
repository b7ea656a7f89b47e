"""The model folder: what training writes and serving reads.

`model.json`, the predictor's own files, `reference.parquet` (a sample of the training rows, against which drift is measured) and the
profile of these rows (`pipelines.data.profile`). The same model gives the same bytes, so that its digest says whether two models are one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.components.base import Fitted, ParameterValue
from pipelines.data.features import Feature
from pipelines.data.profile import REFERENCE_FILE, REFERENCE_ROWS_MAX, profile_rows, write_profile
from pipelines.jobs.files import write_json_atomic
from pipelines.steps import installed_version

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
MODEL_FILE = "model.json"


def write_model_folder(
    folder: Path,
    fitted: Fitted,
    rows: pd.DataFrame,
    *,
    model: str,
    task: str,
    label: str,
    threshold: float | None,
    classes: Sequence[Any] | None,
    component: str,
    parameters: Mapping[str, ParameterValue],
    features: Sequence[Feature],
    seed: int,
) -> str:
    """Write the folder (it exists and is empty) and return its content digest.

    `rows` are those that it was fitted on, with features and label. Raises PermanentJobError if the model cannot be saved.
    """
    saved = fitted.save(folder)
    manifest = {
        "format": FORMAT,
        "model": model,
        "task": task,
        "label": label,
        "threshold": threshold,
        "classes": None if classes is None else list(classes),
        "component": component,
        "parameters": dict(parameters),
        "features": [feature.as_json() for feature in features],
        "predictor": dict(saved.predictor),
        "requirements": _requirements(saved.distributions),
    }
    write_json_atomic(folder / MODEL_FILE, manifest)
    write_reference(folder, rows, features, label, seed)
    return content_digest(folder)


def write_reference(folder: Path, rows: pd.DataFrame, features: Sequence[Feature], label: str, seed: int) -> None:
    """A seeded sample of the rows, in their order, and its profile: enough for drift at a bounded size."""
    if len(rows) > REFERENCE_ROWS_MAX:
        rows = rows.sample(REFERENCE_ROWS_MAX, random_state=seed).sort_index()
    columns = [*(feature.name for feature in features), label]
    table = pa.Table.from_pandas(rows[columns], preserve_index=False).replace_schema_metadata(None)
    pq.write_table(table, folder / REFERENCE_FILE, compression="zstd")
    write_profile(folder, profile_rows(rows, [feature.as_json() for feature in features]))


def content_digest(folder: Path) -> str:
    """`sha256:…` of the names and contents of all files of a folder, whatever their dates and owners."""
    total = hashlib.sha256()
    found = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    files = {path.relative_to(folder).as_posix(): path for path in found}
    for name in sorted(files):
        with files[name].open("rb") as file:
            total.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _requirements(distributions: Sequence[str]) -> dict[str, str]:
    versions = {name: installed_version(name) for name in sorted(distributions)}
    return {name: version for name, version in versions.items() if version != "absent"}
