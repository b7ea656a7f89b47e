"""The train job: fit the chosen component on the chosen window and write the model folder, unless the cache has it already."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
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
from pipelines.jobs.port import JobContext, PermanentJobError
from pipelines.prepare import parse_policy
from pipelines.steps import run_step
from policies.metrics import Task
from policies.schema import ModelPolicy

if TYPE_CHECKING:
    import pandas as pd

MODEL_FOLDER = "model"
_LIBRARIES = ("scikit-learn", "numpy", "scipy", "pandas", "pyarrow", "skops", "tensorflow-cpu", "tensorflow", "keras")


def run(inputs: Mapping[str, Any], context: JobContext) -> dict[str, Any]:
    """Job `tuners.train:run`.

    In: `policy` (JSON), `policy_dir`, `home`, `model`, `prepared` (output of the prepare job), `tuned` (output of the tune job, or null).
    Out: `model_dir` and `model_digest` of its content; `component`, `parameters` (all of them), `window_s`; `rows`, `trained_from`,
    `trained_to` (ISO 8601, null without a time column), `train_s`; `cached`; `code` with `digest` and `commit`; `sentence`.

    Raises PermanentJobError if the component, its parameters or the owner's code do not work on these rows.
    """
    policy = parse_policy(inputs["policy"])
    prepared = training.Prepared.from_json(inputs["prepared"])
    tuned: Mapping[str, Any] = inputs.get("tuned") or {}
    component = chosen_component(policy, Path(inputs["policy_dir"]), tuned.get("component"))
    parameters = {**component.defaults(), **tuned.get("parameters", policy.spec.train.parameters)}
    window_s = tuned["window_s"] if "window_s" in tuned else default_window_s(policy)
    code = code_lineage(component)

    def build(folder: Path) -> dict[str, Any]:
        context.report(text=f"training {component.name}")
        return _train(
            folder / MODEL_FOLDER,
            policy,
            inputs["model"],
            prepared,
            component,
            parameters=parameters,
            window_s=window_s,
        )

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
            "window_s": window_s,
            "seed": policy.spec.train.seed,
            "task": policy.spec.task,
            "label": policy.spec.data.label,
            "time": policy.spec.data.time,
            "threshold": policy.spec.objective.threshold,
            "features": [feature.as_json() for feature in prepared.features],
            "classes": prepared.classes,
        },
    )
    result = entry.result
    how = "from the cache" if entry.cached else f"in {result['train_s']:.1f} s"
    return {
        **result,
        "model_dir": str(entry.path / MODEL_FOLDER),
        "component": component.name,
        "parameters": parameters,
        "window_s": window_s,
        "cached": entry.cached,
        "code": code,
        "sentence": f"{component.name} trained on {result['rows']:,} rows {how}",
    }


_SHARED = (training, modelfolder, skops_files, preprocessing, features, labels)


def _train(
    folder: Path,
    policy: ModelPolicy,
    model: str,
    prepared: training.Prepared,
    component: Component,
    *,
    parameters: Mapping[str, ParameterValue],
    window_s: float | None,
) -> dict[str, Any]:
    spec = policy.spec
    rows = training.windowed(prepared.train_frame(), spec.data.time, window_s)
    started = time.monotonic()
    fitted = training.fit_component(
        policy, rows, component, parameters, None, spec.train.seed, features=prepared.features, classes=prepared.classes
    )
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
        classes=prepared.classes,
        component=component.name,
        parameters=parameters,
        features=prepared.features,
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
    windows = policy.spec.train.windows
    return max(windows).total_seconds() if windows else None


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
