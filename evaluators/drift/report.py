"""Evidently's HTML report of the window that opened a cycle, for people. A job beside the cycle, whose failure costs nothing but the
report.

Entry `evaluators.drift.report:run`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from evaluators.answers import AnswersError, ModelFolder
from evaluators.drift.preset import DriftUnknownError, evidently_at_work, run_preset, verdicts
from evaluators.drift.reference import reference_rows
from pipelines.data.prediction_log import feature_columns, read_predictions
from pipelines.data.profile import REFERENCE_ROWS_MAX
from pipelines.jobs.port import JobContext, PermanentJobError

TEXT_ROWS_MAX = 5_000
"""Rows a side where a feature is text: Evidently's classifier takes seconds for these."""


def run(inputs: Mapping[str, Any], context: JobContext) -> dict[str, Any]:
    """Write `inputs["report"]` about the live rows of `since` to `until` (UTC) against the reference of `model_dir`.

    Raises PermanentJobError if there are no rows any more or Evidently fails; then there is no file.
    """
    path = Path(inputs["report"])
    since, until = (datetime.fromisoformat(inputs[key]) for key in ("since", "until"))
    context.report(text="Evidently writes its report")
    try:
        folder = ModelFolder.read(Path(inputs["model_dir"]))
        rows = read_predictions(Path(inputs["home"]) / "log" / inputs["model"], since=since, until=until, role="live")
        most = TEXT_ROWS_MAX if any(f["kind"] == "text" for f in folder.features) else REFERENCE_ROWS_MAX
        window = feature_columns(rows)
        snapshot = run_preset(sampled(reference_rows(folder.path), most), sampled(window, most), folder.features)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        with evidently_at_work():
            snapshot.save_html(str(aside))
        aside.replace(path)
    except (AnswersError, DriftUnknownError, OSError) as error:
        raise PermanentJobError(f"no drift report: {error}") from error
    drifted = sorted(name for name, found in verdicts(snapshot).items() if found.drifted)
    return {"report": str(path), "rows": len(window), "drifted": drifted}


def sampled(frame: Any, most: int) -> Any:
    """At most so many rows of a pandas frame, always the same ones."""
    return frame.sample(most, random_state=0) if len(frame) > most else frame
