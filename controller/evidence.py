"""What is kept of a cycle for people, beside its record: Evidently's report of the drift that opened it. Pure.

The report is made by a job at the side of the cycle. Nothing waits for it and nothing follows from it; it is asked for as long as the
cycle is open, and by its name it starts once. `controller.housekeeping` bounds how many are kept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from controller.state import DriftWindow, ModelState
from controller.work import model_dir
from pipelines.jobs.port import JobSpec, Limits
from policies.schema import DriftTrigger, TriggerNode, trigger_leaves
from policies.triggers import LeafResult, TriggerFacts, TriggerState, needs

FOLDER = "evidence"
"""In the state folder: `evidence/MODEL/cN/drift.html`."""
KEPT_REPORTS = 20
"""Of so many of a model's newest cycles with one: each has a few MB."""
REPORT_ENTRY = "evaluators.drift.report:run"
REPORT_TIMEOUT_S = 900.0
REPORT_MEMORY_MB = 4096
_REPORT_JOB = re.compile(r"(.+)-c([0-9]+)-drift-report")


def drift_window(
    node: TriggerNode, leaves: Sequence[LeafResult], facts: TriggerFacts, champion: int
) -> DriftWindow | None:
    """The window of the first drift trigger that fired; None if none did, or the measurement names no window."""
    for leaf, looked in zip(trigger_leaves(node), leaves, strict=True):
        if isinstance(leaf, DriftTrigger) and looked.state is TriggerState.FIRED:
            signal = facts.signals.get(needs(leaf)[0].key)
            if signal is not None and signal.window_end is not None:
                return DriftWindow(
                    version=champion, since=signal.window_end - leaf.drift.window, until=signal.window_end
                )
    return None


def report_path(home: Path, model: str, cycle: int) -> Path:
    """Where the report of a cycle is, once it is made."""
    return home / FOLDER / model / f"c{cycle}" / "drift.html"


def report_job(state: ModelState, home: Path) -> JobSpec | None:
    """The job that makes the report of the open cycle; None if drift did not open it, or the version it drifted from is gone."""
    cycle = state.cycle
    if cycle is None or cycle.drift is None:
        return None
    version = state.versions.get(cycle.drift.version)
    if version is None or version.removed_at is not None:
        return None
    return JobSpec(
        job_id=f"{state.name}-c{cycle.number}-drift-report",
        entry=REPORT_ENTRY,
        inputs={
            "home": str(home),
            "model": state.name,
            "model_dir": str(model_dir(home, version)),
            "since": cycle.drift.since.isoformat(),
            "until": cycle.drift.until.isoformat(),
            "report": str(report_path(home, state.name, cycle.number)),
        },
        limits=Limits(timeout_s=REPORT_TIMEOUT_S, memory_mb=REPORT_MEMORY_MB),
    )


def cycle_of_report_job(job_id: str) -> tuple[str, int] | None:
    """Model and number of the cycle whose report a job makes; None if it makes none.

    >>> cycle_of_report_job("flight-late-c3-drift-report")
    ('flight-late', 3)
    """
    match = _REPORT_JOB.fullmatch(job_id)
    return (match[1], int(match[2])) if match else None
