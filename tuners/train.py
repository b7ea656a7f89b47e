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
from pipelines.cache import Entry, StepCache
from pipelines.components import preprocessing
from pipelines.components.base import Component, ParameterValue
from pipelines.components.entrypoint import Entrypoint, check_pinned
from pipelines.components.registry import candidates
from pipelines.data import features, labels
from pipelines.data.features import Feature
from pipelines.data.labels import classes_with
from pipelines.data.sources import with_log_columns
from pipelines.jobs.port import JobContext, PermanentJobError
from pipelines.prepare import changed_at, parse_policy
from pipelines.steps import run_step
from policies.metrics import Task
from policies.schema import ModelPolicy, Spec
from tuners.space import window_since

if TYPE_CHECKING:
    import pandas as pd

MODEL_FOLDER = "model"
REFIT_FOLDER = "refit"
"""The same recipe on the rows of the hold-out too: what serves if the first one passes."""
_LIBRARIES = ("scikit-learn", "numpy", "scipy", "pandas", "pyarrow", "skops", "tensorflow-cpu", "tensorflow", "keras")


def run(inputs: Mapping[str, Any], context: JobContext) -> dict[str, Any]:
    """Job `tuners.train:run`.

    In: `policy` (JSON), `policy_dir`, `home`, `model`, `prepared` (output of the prepare job), `tuned` (output of the tune job, or null),
    `changed_at` (ISO 8601, or null); `code` (`commit` and `tree` that the owner's code is of, where it is followed from Git).
    Out: `model_dir` and `model_digest` of its content; `component`, `parameters` (all of them), `window_s`; `rows`, `trained_from`,
    `trained_to` (ISO 8601, null without a time column), `train_s`; the same of `refit`, or null; `cached`; `code` with `digest` and
    `commit`; `sentence`.

    A refit that cannot be made stops nothing: what passes its gates then serves as it was judged, and the sentence says so.

    Raises PermanentJobError if the component, its parameters or the owner's code do not work on these rows.
    """
    policy = parse_policy(inputs["policy"])
    spec = policy.spec.model_copy(update={"data": with_log_columns(policy.spec.data)})
    policy = policy.model_copy(update={"spec": spec})
    prepared = training.Prepared.from_json(inputs["prepared"])
    tuned: Mapping[str, Any] = inputs.get("tuned") or {}
    component = chosen_component(policy, Path(inputs["policy_dir"]), tuned.get("component"))
    parameters = {**component.defaults(), **tuned.get("parameters", spec.train.parameters)}
    window_s = tuned["window_s"] if "window_s" in tuned else default_window_s(policy)
    pinned: Mapping[str, str] | None = inputs.get("code")
    check_pinned(component, pinned)
    code = code_lineage(component, pinned)

    windows = {MODEL_FOLDER: window_s}
    if spec.train.refit:
        windows[REFIT_FOLDER] = refit_window_s(window_s, inputs["prepared"], inputs, spec)

    def fit(folder: Path, rows: pd.DataFrame) -> dict[str, Any]:
        return _train(
            folder,
            policy,
            inputs["model"],
            rows,
            component,
            parameters=parameters,
            features=prepared.features,
            classes=classes_with(prepared.classes, rows[spec.data.label], spec.task),
        )

    def build(folder: Path) -> dict[str, Any]:
        context.report(text=f"training {component.name}")
        rows = training.windowed(prepared.train_frame(), spec.data.time, window_s)
        made = {MODEL_FOLDER: fit(folder / MODEL_FOLDER, rows)}
        if REFIT_FOLDER in windows:
            context.report(text=f"refitting {component.name}")
            again = refit_rows(prepared.whole_frame(), spec.data.time, windows[REFIT_FOLDER], at_least=len(rows))
            try:
                made[REFIT_FOLDER] = fit(folder / REFIT_FOLDER, again)
            except PermanentJobError as error:
                made[REFIT_FOLDER] = {"problem": str(error)}
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
            "seed": spec.train.seed,
            "task": spec.task,
            "label": spec.data.label,
            "time": spec.data.time,
            "threshold": spec.objective.threshold,
            "features": [feature.as_json() for feature in prepared.features],
            "classes": prepared.classes,
        },
    )
    return {
        **_output(entry, component.name),
        "parameters": parameters,
        "window_s": window_s,
        "code": code,
    }


def _output(entry: Entry, component: str) -> dict[str, Any]:
    """What was fitted, and whether again."""
    result, refit = entry.result[MODEL_FOLDER], entry.result.get(REFIT_FOLDER, {})
    how = "from the cache" if entry.cached else f"in {result['train_s']:.1f} s"
    again = f", and again on {refit['rows']:,} with those that judge it" if "rows" in refit else ""
    sentence = f"{component} trained on {result['rows']:,} rows{again} {how}"
    if "problem" in refit:
        sentence += f"; it cannot be refitted: {refit['problem']}"
    return {
        **result,
        "model_dir": str(entry.path / MODEL_FOLDER),
        "refit": {**refit, "model_dir": str(entry.path / REFIT_FOLDER)} if "rows" in refit else None,
        "component": component,
        "cached": entry.cached,
        "sentence": sentence,
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
    if abs(window_s - window_since(moment, datetime.fromisoformat(prepared["trained_to"]))) > 1e-7:
        return window_s
    return window_since(moment, datetime.fromisoformat(newest))


def refit_rows(whole: pd.DataFrame, time_column: str | None, window_s: float | None, *, at_least: int) -> pd.DataFrame:
    """Those of the window of the refit; where rows have come more thinly of late, as many of the newest as the judged model was fitted on.

    >>> import pandas as pd
    >>> rows = pd.DataFrame({"at": pd.to_datetime([0, 1, 2, 50, 100], unit="s", utc=True)})
    >>> [len(refit_rows(rows, "at", 60, at_least=n)) for n in (1, 3)]
    [2, 3]
    """
    rows = training.windowed(whole, time_column, window_s)
    return rows if len(rows) >= at_least else whole.iloc[-at_least:]


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


def code_lineage(component: Component, pinned: Mapping[str, str] | None = None) -> dict[str, str | None]:
    """Digest and Git commit of the owner's code; both None for a component that is not the owner's. `pinned`: its commit."""
    if not isinstance(component, Entrypoint):
        return {"digest": None, "commit": None}
    if not component.code.is_dir():
        raise PermanentJobError(f"train.code: there is no folder {component.code}")
    return {"digest": component.digest(), "commit": pinned["commit"] if pinned else git_commit(component.code)}


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
