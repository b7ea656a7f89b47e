"""Is something wrong with what the champion is asked? Live rows against the profile of the rows that training accepted.

Looked at in quarters of the longest window that the triggers ask for, so that a fault is seen before it fills a whole one, and reported for
as long as any quarter that a signal may still rest on has it. A quarter that has ended never changes, so its result is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from evaluators.scene import Scene
from pipelines.data import checks
from pipelines.data.prediction_log import feature_columns
from pipelines.data.quality.column_rules import ROWS_MIN, Found, column_faults
from pipelines.data.quality.kept import profile_path, read_profile
from pipelines.data.quality.profile import History, summarise
from pipelines.data.quality.summary import Shape
from pipelines.jobs.files import read_json, write_json_atomic
from policies.signals import Fault

_FORMAT = 1
_QUARTERS_MAX = 16
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FAULTS = TypeAdapter(list[Fault])


def feed_faults(scene: Scene) -> list[Fault]:
    """The faults of the quarters that signals rest on: each kind and subject once, with the time when it began.

    While there are too few rows to tell, what was found last still holds.
    """
    if scene.spec.data.quality == "off":
        return []
    kept = _kept(scene)
    step = scene.lag_window / 4
    newest = _EPOCH + (scene.now - _EPOCH) // step * step
    delay = scene.label_delay or timedelta(0)
    count = min(_QUARTERS_MAX, 4 + math.ceil(delay / step))
    quarters: dict[str, Any] = {}
    for i in range(count):
        start = newest - (i + 1) * step
        name = start.isoformat()
        before = kept["quarters"].get(name)
        known = before is not None and before["faults"] is not None  # rows of a thin one may still be on their way
        quarters[name] = before if known else _quarter(scene, start, start + step)
    judged = [quarter for quarter in quarters.values() if quarter["faults"] is not None]
    faults = _merged(judged) if judged else _FAULTS.validate_python(kept["last"])
    _keep(scene, {**kept, "quarters": quarters, "last": [fault_json(fault) for fault in faults]})
    return faults


def fault_json(fault: Fault) -> dict[str, Any]:
    return {**asdict(fault), "since": fault.since.isoformat()}


def _merged(judged: list[dict[str, Any]]) -> list[Fault]:
    """Newest sentences, oldest beginnings; `judged` is newest first."""
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for quarter in judged:
        for fault in quarter["faults"]:
            newer = merged.setdefault((fault["kind"], fault["subject"]), fault)
            merged[fault["kind"], fault["subject"]] = {**newer, "since": fault["since"]}
    return _FAULTS.validate_python(list(merged.values()))


# ---------------------------------------------------------------- one quarter
def _quarter(scene: Scene, start: datetime, end: datetime) -> dict[str, Any]:
    """`{"rows", "faults"}`; `faults` is None where there are too few rows, or nothing to compare them with."""
    rows = scene.log.predictions(since=start, until=end, role="live", features=True, problems=scene.problems)
    if len(rows) < ROWS_MIN:
        return {"rows": len(rows), "faults": None}
    found = _found(scene, rows)
    source = f"live rows of models trained on {checks.source_name(scene.spec.data)}"
    faults = None if found is None else [
        fault_json(Fault(kind=f.kind, source=source, subject=f.subject, sentence=f.sentence, since=start)) for f in found
    ]  # fmt: skip
    return {"rows": len(rows), "faults": faults}


def _found(scene: Scene, rows: Any) -> list[Found] | None:
    profile, trouble = read_profile(profile_path(scene.home, scene.model))
    if trouble:
        scene.problems.append(trouble)
    if profile is None:
        return None
    features = tuple(str(feature["name"]) for feature in scene.folder.features)
    history = History(blocks=profile.only(frozenset(features)).blocks)
    block = summarise(feature_columns(rows), Shape(features=features), start=0, end=0)
    ignore = set(scene.spec.data.quality_ignore)
    # Without a time, training rows come in any order: that a column stands still for an hour says nothing then.
    timeless = {"gone_constant"} if scene.spec.data.time is None else set()
    return [f for f in column_faults(history, block) if not f.about & ignore and f.kind not in timeless]


# ---------------------------------------------------------------- what was found before
def _path(scene: Scene) -> Path:
    return scene.home / "cache" / "quality" / f"{scene.model}.json"


def _reference(scene: Scene) -> str:
    """Changes with the profile and with the champion."""
    try:
        stat = profile_path(scene.home, scene.model).stat()
    except OSError:
        return f"{scene.champion}"
    return f"{scene.champion} {stat.st_mtime_ns} {stat.st_size}"


def _kept(scene: Scene) -> dict[str, Any]:
    """Quarters that were judged by the same profile; what was found last by any."""
    reference = {
        "format": _FORMAT,
        "reference": _reference(scene),
        "step_s": scene.lag_window.total_seconds() / 4,
        "ignore": sorted(scene.spec.data.quality_ignore),
    }
    try:
        kept = read_json(_path(scene))
        last = kept["last"] if isinstance(kept, Mapping) else []
        _FAULTS.validate_python(last)
    except (OSError, ValueError, KeyError, ValidationError) as error:
        scene.problems.append(f"{_path(scene)}: looked at again, because it cannot be read: {error}")
        kept, last = None, []
    same = isinstance(kept, Mapping) and all(kept.get(name) == value for name, value in reference.items())
    return {**reference, "last": last, "quarters": dict(kept["quarters"]) if same and kept is not None else {}}


def _keep(scene: Scene, kept: Mapping[str, Any]) -> None:
    try:
        if read_json(_path(scene)) != kept:
            write_json_atomic(_path(scene), kept)
    except (OSError, ValueError) as error:
        scene.problems.append(f"{_path(scene)}: not kept, will be looked at again: {error}")
