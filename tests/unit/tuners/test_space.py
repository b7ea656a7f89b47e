"""What a study may vary, without a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.components.base import ParameterRange, ParameterValue
from pipelines.jobs.port import PermanentJobError
from policies.schema import FloatRange, IntRange, ModelPolicy, Spec
from tuners.space import Candidate, SearchSpace, build_space, nearest


@dataclass
class Component:
    name: str
    ranges: Mapping[str, ParameterRange] = field(default_factory=dict)
    given: dict[str, ParameterValue] = field(default_factory=dict)

    def space(self) -> Mapping[str, ParameterRange]:
        return self.ranges

    def defaults(self) -> dict[str, ParameterValue]:
        return dict(self.given)


TREES = Component(
    "trees",
    {"rate": FloatRange(low=0.01, high=1, log=True), "leaves": IntRange(low=2, high=64), "loss": ("a", "b")},
    {"rate": 0.1, "leaves": 31, "loss": "a", "depth": None},
)
LINES = Component("lines", {"c": FloatRange(low=0.1, high=10)}, {"c": 1.0})


def spec_of(train: Mapping[str, Any] | None = None, tune: Mapping[str, Any] | None = None) -> Spec:
    data = {"source": {"kind": "csv", "path": "x"}, "label": "y", "time": "at"}
    spec = {"task": "binary", "data": data, "objective": {"metric": "roc_auc"}}
    return ModelPolicy.model_validate(
        {
            "apiVersion": "ratchet.dev/v1",
            "kind": "ModelPolicy",
            "metadata": {"name": "m"},
            "spec": {**spec, "train": {"component": "trees", **(train or {})}, "tune": dict(tune or {})},
        }
    ).spec


def test_own_space_is_searched_and_the_rest_is_given() -> None:
    """A family's ranges are searched, with every other parameter at its default."""
    space = build_space(spec_of(), [TREES])
    candidate = space.suggest(optuna.trial.FixedTrial({"trees/rate": 0.2, "trees/leaves": 5, "trees/loss": "b"}))
    assert candidate == Candidate(
        component="trees", parameters={"rate": 0.2, "leaves": 5, "loss": "b", "depth": None}, window_s=None
    )


def test_what_the_owner_fixes_is_not_searched() -> None:
    """train.parameters leave the space; unless tune.space asks for them again."""
    spec = spec_of({"parameters": {"leaves": 9, "rate": 0.5}}, {"space": {"rate": {"low": 0.4, "high": 0.6}}})
    family = build_space(spec, [TREES]).families[0]
    assert set(family.ranges) == {"rate", "loss"}
    assert family.ranges["rate"] == FloatRange(low=0.4, high=0.6)
    assert family.given["leaves"] == 9


def test_tune_space_replaces_and_adds() -> None:
    """tune.space replaces a range, and adds one for a parameter that the family does not search by itself."""
    spec = spec_of(tune={"space": {"leaves": [4, 8], "depth": {"low": 1, "high": 3}}})
    ranges = build_space(spec, [TREES]).families[0].ranges
    assert ranges["leaves"] == (4, 8)
    assert ranges["depth"] == IntRange(low=1, high=3)
    assert set(ranges) == {"rate", "leaves", "loss", "depth"}


def test_families_and_windows_are_chosen_too() -> None:
    """With several of them, family and window are part of the search, and a family's parameters carry its name."""
    space = build_space(spec_of({"component": ["trees", "lines"], "window": ["7d", "30d"]}), [TREES, LINES])
    trial = optuna.trial.FixedTrial({"component": "lines", "window_s": 604800.0, "lines/c": 2.0})
    assert space.suggest(trial) == Candidate(component="lines", parameters={"c": 2.0}, window_s=604800.0)
    assert space.is_a_choice()


@pytest.mark.parametrize(
    ("window", "since_change_s", "windows"),
    [
        (None, 5.0, ()),
        ("all", 5.0, (None,)),
        ("since_change", 5.0, (5.0,)),
        ("since_change", None, ()),
        (["7d", "all", "since_change"], 5.0, (604800.0, None, 5.0)),
        (["since_change", "7d"], None, (604800.0,)),
        (["7d", "since_change"], 604800.0, (604800.0,)),
    ],
)
def test_windows_by_name(window: Any, since_change_s: float | None, windows: tuple[float | None, ...]) -> None:
    """`all` is no bound; `since_change` is as long as the change is ago, and none while no change is known; equal ones are one."""
    assert build_space(spec_of({"window": window} if window else {}), [TREES], since_change_s).windows == windows


def test_a_champion_of_all_rows_or_of_a_change_keeps_the_nearest_window() -> None:
    """All rows are longer than any window; another change's window is brought to what there is today."""
    space = build_space(spec_of({"window": ["7d", "all", "since_change"]}), [TREES], 3600.0)
    champion = {"number": 1, "component": "trees", "parameters": {"rate": 0.5}}
    for served, kept in ((None, None), (7200.0, 3600.0), (500_000.0, 604800.0), (1e12, 604800.0)):
        like = space.like_champion({**champion, "window_s": served})
        assert like is not None
        assert like.window_s == kept
        assert space.suggest(optuna.trial.FixedTrial(space.encode(like))) == like
    bounded = build_space(spec_of({"window": ["7d", "30d"]}), [TREES]).like_champion({**champion, "window_s": None})
    assert bounded is not None
    assert bounded.window_s == 2592000.0


def test_starts_with_the_champions_recipe_on_each_window() -> None:
    """What to forget is asked first, of the champion's parameters; then each family as given, on the first window. No point twice. Where
    the world has changed, the rows since then come first of all."""
    space = build_space(
        spec_of({"component": ["trees", "lines"], "window": ["7d", "all", "since_change"]}), [TREES, LINES], 60.0
    )
    champion = {"number": 3, "component": "lines", "parameters": {"c": 3.0}, "window_s": None}
    assert [(s.component, s.parameters.get("c"), s.window_s) for s in space.starts(champion)] == [
        ("lines", 3.0, None),
        ("lines", 3.0, 604800.0),
        ("lines", 3.0, 60.0),
        ("trees", None, 604800.0),
        ("lines", 1.0, 604800.0),
    ]
    unchanged = build_space(spec_of({"component": "lines", "window": ["7d", "all", "since_change"]}), [LINES])
    assert [s.window_s for s in unchanged.starts(champion)] == [None, 604800.0, 604800.0]
    assert [(s.component, s.window_s) for s in space.starts(None)] == [
        ("trees", 604800.0), ("trees", None), ("trees", 60.0), ("lines", 604800.0),
    ]  # fmt: skip


def test_names_go_to_the_families_that_have_them() -> None:
    """With several families a parameter reaches only those that know it."""
    spec = spec_of({"component": ["trees", "lines"], "parameters": {"c": 5.0}})
    trees, lines = build_space(spec, [TREES, LINES]).families
    assert "c" not in trees.given
    assert lines.given["c"] == 5.0
    assert lines.ranges == {}


def test_owners_code_takes_any_name() -> None:
    """A component without defaults (the owner's own code) takes parameters and ranges of any name."""
    spec = spec_of({"parameters": {"alpha": 1}}, {"space": {"beta": [1, 2]}})
    family = build_space(spec, [Component("entrypoint:m:f")]).families[0]
    assert (family.given, family.ranges) == ({"alpha": 1}, {"beta": (1, 2)})


@pytest.mark.parametrize(
    ("train", "tune", "message"),
    [
        (
            {"parameters": {"leafs": 3}},
            {},
            r"train.parameters.leafs: trees has no parameter 'leafs'; did you mean 'leaves'\?",
        ),
        (
            {},
            {"space": {"zzz": [1]}},
            "tune.space.zzz: trees has no parameter 'zzz'; there are depth, leaves, loss, rate",
        ),
    ],
)
def test_mistakes_are_named(train: dict[str, Any], tune: dict[str, Any], message: str) -> None:
    """A name that no family has is an error that says where, and what there is."""
    with pytest.raises(PermanentJobError, match=message):
        build_space(spec_of(train, tune), [TREES])


@given(
    st.sampled_from(["trees", "lines"]),
    st.sampled_from([604800.0, 2592000.0]),
    st.floats(0.01, 1),
    st.integers(2, 64),
    st.sampled_from("ab"),
    st.floats(0.1, 10),
)
def test_encoding_is_the_inverse_of_suggesting(
    name: str, window: float, rate: float, leaves: int, loss: str, c: float
) -> None:
    """Any candidate of the space, put in line as a trial, comes back as itself."""
    space = build_space(spec_of({"component": ["trees", "lines"], "window": ["7d", "30d"]}), [TREES, LINES])
    own: dict[str, ParameterValue] = {"rate": rate, "leaves": leaves, "loss": loss} if name == "trees" else {"c": c}
    family = space.family(name)
    assert family is not None
    candidate = Candidate(component=name, parameters={**family.given, **own}, window_s=window)
    assert space.suggest(optuna.trial.FixedTrial(space.encode(candidate))) == candidate


def test_starts_with_the_champion_then_the_defaults() -> None:
    """A search begins with the champion's point, then each family as given, no point twice."""
    space = build_space(spec_of({"component": ["trees", "lines"]}), [TREES, LINES])
    champion = {"number": 3, "component": "lines", "parameters": {"c": 3.0}, "window_s": None}
    assert [(s.component, s.parameters.get("c")) for s in space.starts(champion)] == [
        ("lines", 3.0),
        ("trees", None),
        ("lines", 1.0),
    ]
    as_default = {**champion, "parameters": {"c": 1.0}}
    assert [s.component for s in space.starts(as_default)] == ["lines", "trees"]


def test_champion_outside_the_space_is_brought_into_it() -> None:
    """Values beyond today's ranges, parameters that no longer exist and windows no longer listed become the nearest there is."""
    space = build_space(spec_of({"window": ["7d", "30d"], "parameters": {"loss": "b"}}), [TREES])
    champion = {
        "number": 1,
        "component": "trees",
        "parameters": {"rate": 5.0, "leaves": None, "loss": "a", "gone": 1},
        "window_s": 3e6,
    }
    like = space.like_champion(champion)
    assert like is not None
    assert like.parameters == {"rate": 1.0, "leaves": 2, "loss": "b", "depth": None}
    assert like.window_s == 2592000.0
    assert space.suggest(optuna.trial.FixedTrial(space.encode(like))) == like


def test_champion_of_a_family_no_longer_listed() -> None:
    """Its parameters mean nothing to another family, so the search starts from the defaults."""
    space = build_space(spec_of(), [TREES])
    champion = {"number": 1, "component": "lines", "parameters": {"c": 3.0}, "window_s": None}
    assert space.like_champion(champion) is None
    assert space.like_champion(None) is None
    assert [s.component for s in space.starts(champion)] == ["trees"]


def test_booleans_are_no_numbers_in_choices() -> None:
    """True and 1 are different choices."""
    assert nearest((1, True), True) is True
    assert nearest((True, 1), 1) == 1
    assert nearest((True, 1), 1) is not True


def test_nothing_to_choose() -> None:
    """A family without ranges, alone, is no search."""
    assert not build_space(spec_of(), [Component("fixed", {}, {"a": 1})]).is_a_choice()
    assert isinstance(build_space(spec_of(), [TREES]), SearchSpace)
