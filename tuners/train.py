"""The train job: fit the chosen component on the chosen window and write the model folder, unless the cache has it already."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pipelines import modelfolder, skops_files, training
from pipelines.cache import StepCache
from pipelines.components import preprocessing
from pipelines.components.base import Component, ParameterValue
from pipelines.components.entrypoint import Entrypoint
from pipelines.components.registry import candidates
from pipelines.data import features, labels
from pipelines.data.features import Feature
from pipelines.data.labels import classes_with
from pipelines.jobs.port import JobContext, PermanentJobError
from pipelines.prepare import changed_at, parse_policy
from pipelines.steps import run_step
from policies.metrics import Task
from policies.schema import ModelPolicy, Spec

if TYPE_CHECKING:
    import pandas as pd

MODEL_FOLDER = "model"
REFIT_FOLDER = "refit"
"""The same recipe on the rows of the hold-out too: what serves if the first one passes."""
_LIBRARIES = ("scikit-learn", "numpy", "scipy", "pandas", "pyarrow", "skops", "tensorflow-cpu", "tensorflow", "keras")


def run(inputs: Mapping[str, Any], context: JobContext) -> dict[str, Any]:
    """Job `tuners.train:run`.

    In: `policy` (JSON), `policy_dir`, `home`, `model`, `prepared` (output of the prepare job), `tuned` (output of the tune job, or null),
    `changed_at` (ISO 8601, or null).
    Out: `model_dir` and `model_digest` of its content; `component`, `parameters` (all of them), `window_s`; `rows`, `trained_from`,
    `trained_to` (ISO 8601, null without a time column), `train_s`; the same of `refit`, or null; `cached`; `code` with `digest` and
    `commit`; `sentence`.

    Raises PermanentJobError if the component, its parameters or the owner's code do not work on these rows.
    """
    policy = parse_policy(inputs["policy"])
    prepared = training.Prepared.from_json(inputs["prepared"])
    tuned: Mapping[str, Any] = inputs.get("tuned") or {}
    component = chosen_component(policy, Path(inputs["policy_dir"]), tuned.get("component"))
    parameters = {**component.defaults(), **tuned.get("parameters", policy.spec.train.parameters)}
    window_s = tuned["window_s"] if "window_s" in tuned else default_window_s(policy)
    code = code_lineage(component)

    windows = {MODEL_FOLDER: window_s}
    if policy.spec.train.refit:
        windows[REFIT_FOLDER] = refit_window_s(window_s, inputs["prepared"], inputs, policy.spec)

    def build(folder: Path) -> dict[str, Any]:
        made = {}
        for name, span_s in windows.items():
            context.report(text=f"{'refitting' if name == REFIT_FOLDER else 'training'} {component.name}")
            frame = prepared.whole_frame() if name == REFIT_FOLDER else prepared.train_frame()
            made[name] = _train(
                folder / name,
                policy,
                inputs["model"],
                training.windowed(frame, policy.spec.data.time, span_s),
                component,
                parameters=parameters,
                features=prepared.features,
                classes=classes_with(prepared.classes, frame[policy.spec.data.label], policy.spec.task),
            )
        return made

    entry = run_step(
        StepCache(Path(inputs["home"]) / "cache"),
        "train",
        build,
        inputs=[prepared.fingerprint, code["digest"] or ""],
        modules=[_module(__name__), _module(type(component).__module__), *_SHARED],
        distributions=_LIBRARIES,
        parameters={
            "model": inputs["model"],
            "component": component.name,
            "parameters": parameters,
            "windows_s": windows,
            "seed": policy.spec.train.seed,
            "task": policy.spec.task,
            "label": policy.spec.data.label,
            "time": policy.spec.data.time,
            "threshold": policy.spec.objective.threshold,
            "features": [feature.as_json() for feature in prepared.features],
            "classes": prepared.classes,
        },
    )
    result, refit = entry.result[MODEL_FOLDER], entry.result.get(REFIT_FOLDER)
    how = "from the cache" if entry.cached else f"in {result['train_s']:.1f} s"
    again = f", and again on {refit['rows']:,} with those that judge it" if refit else ""
    return {
        **result,
        "model_dir": str(entry.path / MODEL_FOLDER),
        "refit": {**refit, "model_dir": str(entry.path / REFIT_FOLDER)} if refit else None,
        "component": component.name,
        "parameters": parameters,
        "window_s": window_s,
        "cached": entry.cached,
        "code": code,
        "sentence": f"{component.name} trained on {result['rows']:,} rows{again} {how}",
    }


_SHARED = (training, modelfolder, skops_files, preprocessing, features, labels)


def _train(
    folder: Path,
    policy: ModelPolicy,
    model: str,
    rows: pd.DataFrame,
    component: Component,
    *,
    parameters: Mapping[str, ParameterValue],
    features: Sequence[Feature],
    classes: Sequence[Any] | None,
) -> dict[str, Any]:
    """Fit on the rows and write the model's folder."""
    spec = policy.spec
    known = training.present_classes(rows[spec.data.label], spec.task, classes)
    started = time.monotonic()
    fitted = training.fit_component(policy, rows, component, parameters, features=features, classes=known)
    train_s = time.monotonic() - started
    folder.mkdir()
    digest = modelfolder.write_model_folder(
        folder,
        fitted,
        rows,
        model=model,
        task=spec.task.value,
        label=spec.data.label,
        threshold=spec.objective.threshold if spec.task is Task.BINARY else None,
        classes=known,
        component=component.name,
        parameters=parameters,
        features=features,
        seed=spec.train.seed,
    )
    oldest, newest = _period(rows, spec.data.time)
    return {
        "model_digest": digest,
        "rows": len(rows),
        "trained_from": oldest,
        "trained_to": newest,
        "train_s": round(train_s, 3),
    }


def refit_window_s(
    window_s: float | None, prepared: Mapping[str, Any], inputs: Mapping[str, Any], spec: Spec
) -> float | None:
    """The window of the refit, back from its own newest row: as long, but a window since a change still begins at that change."""
    moment, newest = changed_at(inputs, spec), prepared.get("holdout_to")
    if window_s is None or moment is None or newest is None or prepared.get("trained_to") is None:
        return window_s
    since_change = (datetime.fromisoformat(prepared["trained_to"]) - moment).total_seconds()
    if abs(window_s - since_change) > 1e-6:
        return window_s
    return (datetime.fromisoformat(newest) - moment).total_seconds()


def chosen_component(policy: ModelPolicy, policy_dir: Path, name: str | None) -> Component:
    """The policy's component of that name, or its first. Raises PermanentJobError if the policy lists no such one."""
    found = candidates(policy.spec.train, policy.spec.task, policy_dir)
    if name is None:
        return found[0]
    for component in found:
        if component.name == name:
            return component
    listed = ", ".join(component.name for component in found)
    raise PermanentJobError(
        f"train.component: the search chose {name!r} but the policy lists {listed}; start a new cycle"
    )


def default_window_s(policy: ModelPolicy) -> float | None:
    """Where no search chose: the longest window that the policy lists, or none."""
    longest = policy.spec.train.longest_window
    return longest.total_seconds() if longest is not None else None


def code_lineage(component: Component) -> dict[str, str | None]:
    """Digest and Git commit of the owner's code; both None for a component that is not the owner's."""
    if not isinstance(component, Entrypoint):
        return {"digest": None, "commit": None}
    if not component.code.is_dir():
        raise PermanentJobError(f"train.code: there is no folder {component.code}")
    return {"digest": component.digest(), "commit": git_commit(component.code)}


def git_commit(folder: Path) -> str | None:
    """Commit of the work tree that holds the folder, with `-dirty` if the folder has changes since; None if there is none."""
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import git

    try:
        with git.Repo(folder, search_parent_directories=True) as repository:
            if not repository.git.ls_files("--", str(folder)):
                return None
            commit: str = repository.head.commit.hexsha
            changed = repository.is_dirty(untracked_files=True, path=str(folder))
    except (git.GitError, ValueError, OSError):  # no work tree, no commit yet, or no git installed
        return None
    return f"{commit}-dirty" if changed else commit


def _period(rows: pd.DataFrame, time_column: str | None) -> tuple[str | None, str | None]:
    if time_column is None:
        return None, None
    times = rows[time_column]
    return times.min().isoformat(), times.max().isoformat()


def _module(name: str) -> ModuleType:
    return sys.modules[name]
