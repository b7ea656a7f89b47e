"""The owner's own training code: `entrypoint: package.module:function` in a folder.

Contract of the function: `function(frame, target, *, features, task, classes, parameters, seed, out_dir)`. `frame` and `target` are as for
`Component.fit`; `features` is a list of `{"name", "kind"}`, `task` a string, `out_dir` an empty folder (str). It returns

- a fitted scikit-learn estimator that takes a data frame of the features; skops saves it and serving needs none of the owner's code; or
- None, after writing its own files into `out_dir`. Then its module also has `load(model_dir: str)`, which returns an object with
  `predict(frame)`: binary P(positive) (n,), multiclass (n, k) in the order of `classes`, regression (n,). The folder goes
  along into the image.

It runs in the job's process, never in the daemon. The same arguments must give the same model.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import sys
import tempfile
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pipelines.components.base import Component, Fitted, ParameterRange, ParameterValue, SavedPredictor
from pipelines.components.sklearn_families import FittedSklearn
from pipelines.data.features import Feature, model_frame
from pipelines.data.profile import REFERENCE_FILES
from pipelines.jobs.port import JobError, PermanentJobError
from pipelines.treehash import tree_id
from policies.metrics import Task

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

PREFIX = "entrypoint:"
CODE_FOLDER = "code"
_RESERVED = ("model.json", *sorted(REFERENCE_FILES), CODE_FOLDER)
_SKIPPED = ("__pycache__", "*.pyc", ".*")
_TRACEBACK_LINES = 6


@dataclass(frozen=True, slots=True)
class Entrypoint:
    """A component made of the owner's function. It takes any parameters and has no search space of its own."""

    target: str
    """`package.module:function`."""
    code: Path
    """Folder that the module is found in."""

    @property
    def name(self) -> str:
        return PREFIX + self.target

    @property
    def tasks(self) -> frozenset[Task]:
        return frozenset(Task)

    def space(self) -> Mapping[str, ParameterRange]:
        return {}

    def defaults(self) -> dict[str, ParameterValue]:
        return {}

    def digest(self) -> str:
        """`sha256:…` of the names and contents of the folder's files."""
        total = hashlib.sha256()
        for path in code_files(self.code):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            total.update(f"{path.relative_to(self.code).as_posix()}\0{content}\n".encode())
        return f"sha256:{total.hexdigest()}"

    def fit(
        self,
        frame: pd.DataFrame,
        target: pd.Series,
        *,
        features: Sequence[Feature],
        task: Task,
        classes: Sequence[Any] | None,
        parameters: Mapping[str, ParameterValue],
        seed: int,
    ) -> Fitted:
        function = self._function()
        out_dir = _Scratch()
        with _owners_errors(self.target):
            made = function(
                frame,
                target,
                features=[feature.as_json() for feature in features],
                task=task.value,
                classes=None if classes is None else list(classes),
                parameters=dict(parameters),
                seed=seed,
                out_dir=str(out_dir.path),
            )
        if made is not None:
            self._check_estimator(made, task)
            return FittedSklearn(estimator=made, features=tuple(features), task=task)
        return self._fitted(out_dir, tuple(features), task, len(classes or ()))

    def _function(self) -> Callable[..., Any]:
        module_name, _, name = self.target.partition(":")
        function: Callable[..., Any] | None = getattr(self._module(), name, None)
        if not callable(function):
            raise PermanentJobError(f"train.entrypoint: module {module_name} in {self.code} has no function {name!r}")
        return function

    def _module(self) -> ModuleType:
        if not self.code.is_dir():
            raise PermanentJobError(f"train.code: there is no folder {self.code}")
        with _owners_errors(self.target):
            return import_from(self.code, self.target.partition(":")[0])

    def _check_estimator(self, made: Any, task: Task) -> None:
        wanted = "predict" if task is Task.REGRESSION else "predict_proba"
        if not callable(getattr(made, wanted, None)):
            raise PermanentJobError(
                f"train.entrypoint: {self.target} must return a fitted estimator with {wanted} (task {task.value}), or None,"
                f" but returned a {type(made).__name__}"
            )

    def _fitted(self, out_dir: _Scratch, features: tuple[Feature, ...], task: Task, classes: int) -> FittedEntrypoint:
        names = {path.name for path in out_dir.path.iterdir()}
        if taken := sorted(names & set(_RESERVED)):
            raise PermanentJobError(
                f"train.entrypoint: {self.target} must not write {taken[0]!r}, a name that Ratchet uses"
            )
        load = getattr(self._module(), "load", None)
        if not callable(load):
            raise PermanentJobError(
                f"train.entrypoint: {self.target} returned None, so its module must have load(model_dir) but has not"
            )
        with _owners_errors(f"{self.target.partition(':')[0]}:load"):
            model = load(str(out_dir.path))
        return FittedEntrypoint(
            component=self, model=model, out_dir=out_dir, features=features, task=task, classes=classes
        )


def check_pinned(component: Component, pinned: Mapping[str, str] | None) -> None:
    """Code that is followed from Git must be what its commit has, to the last byte: `pinned` holds the `commit` and the `tree`'s id.

    Raises PermanentJobError."""
    if not pinned or not isinstance(component, Entrypoint):
        return
    try:
        found = tree_id(component.code, like=pinned["tree"])
    except OSError as error:
        raise PermanentJobError(
            f"train.code: the worktree of commit {pinned['commit']} cannot be read ({error}); restart the daemon to have it made again"
        ) from error
    if found != pinned["tree"]:
        raise PermanentJobError(
            f"train.code: {component.code} is not what commit {pinned['commit']} has there (tree {found}, not {pinned['tree']}): somebody "
            f"changed it; delete that worktree and restart the daemon to have it made again"
        )


class _Scratch:
    """A temporary folder that is deleted together with the last model that refers to it."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="ratchet-entrypoint-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedEntrypoint:
    """A model in the owner's own files."""

    component: Entrypoint
    model: Any
    out_dir: _Scratch = field(repr=False)
    features: tuple[Feature, ...]
    task: Task
    classes: int

    def predict(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        import numpy as np

        with _owners_errors(f"{self.component.target.partition(':')[0]}: predict of the loaded model"):
            scores = np.asarray(self.model.predict(model_frame(frame, self.features)), dtype=np.float64)
        wanted = (len(frame), self.classes) if self.task is Task.MULTICLASS else (len(frame),)
        if scores.shape != wanted:
            raise PermanentJobError(
                f"train.entrypoint: predict must return an array of shape {wanted} (task {self.task.value})"
                f" but returned {scores.shape}"
            )
        return scores

    def save(self, model_dir: Path) -> SavedPredictor:
        shutil.copytree(self.out_dir.path, model_dir, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_SKIPPED))
        copy_code(self.component.code, model_dir / CODE_FOLDER)
        module = self.component.target.partition(":")[0]
        return SavedPredictor(predictor={"kind": "entrypoint", "module": module, "code": CODE_FOLDER})


def copy_code(source: Path, target: Path) -> None:
    for path in code_files(source):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def code_files(folder: Path) -> list[Path]:
    """The files of a code folder in the order of their names, without hidden and compiled ones."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__" and not name.startswith("."))
        found += [Path(parent, name) for name in names if not name.startswith(".") and not name.endswith(".pyc")]
    return sorted(found)


_folders: set[str] = set()
"""Code folders on sys.path."""


def import_from(folder: Path, module_name: str) -> ModuleType:
    """Import a module of the owner's folder, anew if one of that name came from another owner's folder before.

    The folder stays on sys.path, since the owner's functions may import more of it when called. Raises PermanentJobError if an installed
    module has that name already: one of the two would get the other's imports.
    """
    sys.dont_write_bytecode = True  # the folder may be a worktree, which must stay as its commit has it
    root = str(folder.resolve())
    for known in _folders & set(sys.path):
        sys.path.remove(known)
    _folders.add(root)
    sys.path.insert(0, root)
    top = module_name.partition(".")[0]
    if top in sys.modules and not (origin := _origin(sys.modules[top])).startswith(root + os.sep):
        if not any(origin.startswith(other + os.sep) for other in _folders):
            raise PermanentJobError(
                f"train.entrypoint: the module name {top!r} is taken by {origin or 'Python itself'}; rename the module in {folder}"
            )
        for name in [name for name in sys.modules if name == top or name.startswith(top + ".")]:
            del sys.modules[name]
    importlib.invalidate_caches()
    return importlib.import_module(module_name)


def _origin(module: ModuleType) -> str:
    return str(getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), ""))


@contextmanager
def _owners_errors(what: str) -> Iterator[None]:
    """Whatever the owner's code raises, as an error for its owner: what, and the last lines of the traceback."""
    try:
        yield
    except JobError:
        raise
    except (Exception, SystemExit) as error:
        lines = "".join(traceback.format_exception(error)).rstrip().splitlines()
        last = "\n".join(lines[-_TRACEBACK_LINES:])
        raise PermanentJobError(f"train.entrypoint: {what} failed: {type(error).__name__}: {error}\n{last}") from error
