"""What a study may vary: component family, its parameters, the training window. Pure: no study, no data.

A parameter's name in the study is `family/parameter`, so that the parameters of two families never mix; `component` and `window_s` are the
choice of family and of training window, there only when there is a choice.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeAlias

from pipelines.components.base import ParameterRange, ParameterValue
from pipelines.jobs.port import PermanentJobError
from policies.schema import FloatRange, IntRange, Spec

Encoded: TypeAlias = dict[str, Any]
"""Study parameter name → value."""

_INSTANT = timedelta(microseconds=1)
COMPONENT = "component"
WINDOW = "window_s"


class Chooser(Protocol):
    """The three questions that a candidate asks of a trial (`optuna.Trial` answers them)."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


class Searchable(Protocol):
    """The part of `pipelines.components.base.Component` that a space is made from."""

    @property
    def name(self) -> str: ...

    def space(self) -> Mapping[str, ParameterRange]: ...

    def defaults(self) -> dict[str, ParameterValue]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One point of the space, complete: what `fit` and the training step need."""

    component: str
    parameters: Mapping[str, ParameterValue]
    window_s: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One component family: what is searched, and what is given."""

    name: str
    ranges: Mapping[str, ParameterRange]
    given: Mapping[str, ParameterValue]
    """Every parameter's value where the search does not choose: the owner's, else the component's default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSpace:
    families: tuple[Family, ...]
    windows: tuple[float | None, ...]
    """Seconds, None for all rows; empty: all rows."""
    since_change_s: float | None = None
    """The one of them that reaches back to the last change, if one is known and the owner asks for such a window."""

    def suggest(self, trial: Chooser) -> Candidate:
        """The candidate that a trial stands for."""
        name = self.families[0].name
        if len(self.families) > 1:
            name = trial.suggest_categorical(COMPONENT, [f.name for f in self.families])
        family = self.family(name)
        assert family is not None, name
        window = self.windows[0] if self.windows else None
        if len(self.windows) > 1:
            window = trial.suggest_categorical(WINDOW, list(self.windows))
        chosen = {k: _suggest(trial, f"{name}/{k}", r) for k, r in sorted(family.ranges.items())}
        return Candidate(component=name, parameters={**family.given, **chosen}, window_s=window)

    def encode(self, candidate: Candidate) -> Encoded:
        """The study's parameters that stand for the candidate, or for the nearest point that the space has.

        The candidate's component must be one of the families. Inverse of `suggest` for every candidate that the space holds.
        """
        family = self.family(candidate.component)
        assert family is not None, candidate.component
        encoded: Encoded = {COMPONENT: family.name} if len(self.families) > 1 else {}
        if len(self.windows) > 1:
            encoded[WINDOW] = _nearest_window(self.windows, candidate.window_s)
        for name, parameter_range in sorted(family.ranges.items()):
            value = candidate.parameters.get(name, family.given.get(name))
            encoded[f"{family.name}/{name}"] = nearest(parameter_range, value)
        return encoded

    def family(self, name: str) -> Family | None:
        return next((f for f in self.families if f.name == name), None)

    def default(self, family: Family) -> Candidate:
        """The family as the owner gave it, on the first window listed."""
        window = self.windows[0] if self.windows else None
        return Candidate(component=family.name, parameters=dict(family.given), window_s=window)

    def like_champion(self, champion: Mapping[str, Any] | None) -> Candidate | None:
        """The champion as a candidate (`{"component", "parameters", "window_s"}`), or None if the owner no longer lists its family.

        Where the owner now fixes a parameter or the space has not the champion's value, that goes first: the result is always
        a point of the space.
        """
        family = self.family(champion["component"]) if champion else None
        if champion is None or family is None:
            return None
        known = {
            name: nearest(family.ranges[name], value)
            for name, value in champion["parameters"].items()
            if name in family.ranges
        }
        window = _nearest_window(self.windows, champion.get("window_s")) if self.windows else None
        return Candidate(component=family.name, parameters={**family.given, **known}, window_s=window)

    def starts(self, champion: Mapping[str, Any] | None) -> tuple[Candidate, ...]:
        """Where a search begins: the champion, if it is still in the space, and its recipe on each other window; then each family as given.

        What to forget is the first question when the world has changed, and the champion's parameters the best guess at all others."""
        first = self.like_champion(champion)
        candidates = ([first] if first else []) + [self.default(f) for f in self.families]
        candidates[1:1] = [replace(candidates[0], window_s=window) for window in self.windows]
        distinct: dict[str, Candidate] = {}
        for candidate in candidates:
            distinct.setdefault(repr(self.encode(candidate)), candidate)
        return tuple(distinct.values())

    def is_a_choice(self) -> bool:
        """Whether there is anything to search at all."""
        return len(self.families) > 1 or len(self.windows) > 1 or any(f.ranges for f in self.families)

    def as_json(self) -> dict[str, Any]:
        """Equal for equal spaces."""
        families = {
            f.name: {"given": dict(f.given), "ranges": {k: _range_json(r) for k, r in f.ranges.items()}}
            for f in self.families
        }
        return {"families": families, "windows": list(self.windows)}


def build_space(spec: Spec, components: Sequence[Searchable], since_change_s: float | None = None) -> SearchSpace:
    """The space of a policy: the components' own, less what `train.parameters` fixes, replaced or widened by `tune.space`.

    A name in `train.parameters` or `tune.space` goes to every listed family that has such a parameter; a family that names no defaults at
    all (an owner's own code) takes any. `since_change_s`: seconds from the change to the newest training row, None if no change is known;
    a window since the change is then none. Raises PermanentJobError for a name that no family has.
    """
    for field, names in (("train.parameters", spec.train.parameters), ("tune.space", spec.tune.space)):
        for name in names:
            _require_known(f"{field}.{name}", name, components)
    return SearchSpace(
        families=tuple(_family(spec, component) for component in components),
        windows=tuple(dict.fromkeys(_windows(spec, since_change_s))),
        since_change_s=since_change_s if "since_change" in spec.train.windows else None,
    )


def window_since(moment: datetime, newest: datetime) -> float:
    """Seconds of the window that begins with the rows of `moment` and ends with those of `newest`. A window leaves out the row at its very
    start, so this one is longer by the least that times differ.

    >>> window_since(datetime(2026, 1, 1), datetime(2026, 1, 1, 0, 1))
    60.000001
    """
    return (newest - moment + _INSTANT).total_seconds()


def _windows(spec: Spec, since_change_s: float | None) -> Iterator[float | None]:
    for window in spec.train.windows:
        if isinstance(window, timedelta):
            yield window.total_seconds()
        elif window == "all":
            yield None
        elif since_change_s is not None:
            yield since_change_s


def _family(spec: Spec, component: Searchable) -> Family:
    fixed = {k: v for k, v in spec.train.parameters.items() if _has(component, k)}
    own = {k: r for k, r in component.space().items() if k not in fixed}
    asked = {k: r for k, r in spec.tune.space.items() if _has(component, k)}
    return Family(name=component.name, ranges={**own, **asked}, given={**component.defaults(), **fixed})


def _has(component: Searchable, name: str) -> bool:
    defaults = component.defaults()
    return not defaults or name in defaults or name in component.space()


def _require_known(field: str, name: str, components: Sequence[Searchable]) -> None:
    if any(_has(c, name) for c in components):
        return
    there_are = sorted({k for c in components for k in (*c.defaults(), *c.space())})
    close = difflib.get_close_matches(name, there_are, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(there_are)}"
    families = ", ".join(c.name for c in components)
    raise PermanentJobError(f"{field}: {families} has no parameter {name!r}; {hint}")


def _suggest(trial: Chooser, name: str, parameter_range: ParameterRange) -> ParameterValue:
    match parameter_range:
        case IntRange(low=low, high=high, log=log):
            return trial.suggest_int(name, low, high, log=log)
        case FloatRange(low=low, high=high, log=log):
            return trial.suggest_float(name, low, high, log=log)
        case choices:
            value: ParameterValue = trial.suggest_categorical(name, list(choices))
            return value


def nearest(parameter_range: ParameterRange, value: ParameterValue) -> ParameterValue:
    """The value, brought into the range: numbers to the nearer end, a choice that there is not to the first one.

    >>> nearest(IntRange(low=1, high=9), 12), nearest(FloatRange(low=0.1, high=1), None), nearest(("a", "b"), "b")
    (9, 0.1, 'b')
    """
    if isinstance(parameter_range, tuple):
        same = [c for c in parameter_range if c == value and isinstance(c, bool) == isinstance(value, bool)]
        return same[0] if same else parameter_range[0]
    number = value if isinstance(value, int | float) and math.isfinite(value) else parameter_range.low
    clipped = min(max(number, parameter_range.low), parameter_range.high)
    return round(clipped) if isinstance(parameter_range, IntRange) else float(clipped)


def _nearest_window(windows: Sequence[float | None], wanted: float | None) -> float | None:
    """None means all rows, which is longer than any other."""
    return min(
        windows, key=lambda w: abs((math.inf if w is None else w) - wanted) if wanted is not None else -(w or math.inf)
    )


def _range_json(parameter_range: ParameterRange) -> Any:
    return list(parameter_range) if isinstance(parameter_range, tuple) else parameter_range.model_dump()
