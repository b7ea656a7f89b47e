"""Components by name: those that come with Ratchet and those that installed plugins offer under `ratchet.components`."""

from __future__ import annotations

import difflib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from pipelines.components.base import ENTRY_POINT_GROUP, Component
from pipelines.components.entrypoint import Entrypoint
from pipelines.components.sklearn_families import FAMILIES
from pipelines.components.tensorflow_mlp import TensorflowMlp
from pipelines.jobs.port import PermanentJobError
from policies.metrics import Task
from policies.schema import TrainSpec

_BUILT_IN: dict[str, Component] = {component.name: component for component in (*FAMILIES, TensorflowMlp())}


def names(task: Task | None = None) -> list[str]:
    """All names, sorted; with `task` without those built-in ones that cannot do it."""
    own = [name for name, component in _BUILT_IN.items() if task is None or task in component.tasks]
    return sorted({*own, *(point.name for point in _plugins())})


def get(name: str) -> Component:
    """The component of that name. Raises PermanentJobError, with the nearest name, if there is none or its plugin is broken."""
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    for point in _plugins():
        if point.name == name:
            return _loaded(point)
    near = difflib.get_close_matches(name, names(), n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names())}"
    raise PermanentJobError(f"train.component: there is no component {name!r}; {hint}")


def candidates(train: TrainSpec, task: Task, policy_dir: Path) -> tuple[Component, ...]:
    """The components that a policy chooses from, in its order. Raises PermanentJobError for one that cannot do the task."""
    if train.entrypoint is not None:
        assert train.code is not None, "the schema asks for both"
        return (Entrypoint(train.entrypoint, policy_dir / train.code),)
    found = tuple(get(name) for name in train.components)
    for component in found:
        if task not in component.tasks:
            raise PermanentJobError(
                f"train.component: {component.name} cannot do task {task.value}; there are {', '.join(names(task))}"
            )
    return found


def _plugins() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=ENTRY_POINT_GROUP))


def _loaded(point: EntryPoint) -> Component:
    try:
        component = point.load()
    except Exception as error:
        raise PermanentJobError(
            f"train.component: the plugin {point.name!r} ({point.value}) does not load: {type(error).__name__}: {error}"
        ) from error
    if isinstance(component, type):
        component = component()
    if not isinstance(component, Component):
        raise PermanentJobError(f"train.component: the plugin {point.name!r} ({point.value}) is no component")
    return component
