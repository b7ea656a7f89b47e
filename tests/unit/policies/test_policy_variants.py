"""Grids: several settings of one policy, refused by the policy's own rules before anything is replayed."""

from __future__ import annotations

from pathlib import Path

import pytest
from policy_texts import small

from policies.durations import parse_duration
from policies.variants import parse_axis, settings


def of(*axes: str, text: str | None = None) -> tuple[list[dict[str, str]], list[str]]:
    found, problems = settings(
        (text or small()).encode(), [parse_axis(axis) for axis in axes], file="p.yaml", directory=Path("/")
    )
    return [one.values for one in found], [str(problem) for problem in problems]


def test_settings_are_all_combinations() -> None:
    """In the order in which they were written, each a valid policy with these values and no others changed."""
    found, problems = settings(
        small().encode(),
        [parse_axis("cooldown=6h,12h"), parse_axis("spec.tune.trials=1,2")],
        file="p.yaml",
        directory=Path("/"),
    )
    assert problems == []
    assert [tuple(one.values.values()) for one in found] == [("6h", "1"), ("6h", "2"), ("12h", "1"), ("12h", "2")]
    assert [(one.policy.spec.cooldown, one.policy.spec.tune.trials) for one in found][2] == (parse_duration("12h"), 1)


def test_values_may_be_lists_and_places_in_lists() -> None:
    """Numbers are positions; brackets hold commas together."""
    text = small() + "  triggers: {any: [staleness: 30d, schedule: '0 4 * * 1']}\n"
    found, problems = settings(
        text.encode(), [parse_axis("triggers.any.0.staleness=10d"), parse_axis("rollout.steps=[100%],[5%: 1h, 100%]")], file="p.yaml",
        directory=Path("/"),
    )  # fmt: skip
    assert problems == []
    assert [len(one.policy.spec.rollout.steps) for one in found] == [1, 2]


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        ("cooldwn=1h", "spec.cooldwn: unknown key 'cooldwn'; did you mean 'cooldown'?"),
        ("cooldown=1h,soon", "a duration is a number with a unit"), ("tune.trials=-1", "spec.tune.trials: "),
        ("task=guess", "spec.task: "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_as_of_a_file(axis: str, expected: str) -> None:
    """With file and line, as `ratchet validate` says it."""
    _, problems = of(axis)
    assert len(problems) == 1
    assert problems[0].startswith("p.yaml:")
    assert expected in problems[0]


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        (["cooldown"], "KEY=VALUE"), (["=1h"], "KEY=VALUE"), (["a..b=1"], "KEY=VALUE"), (["cooldown=1h,,2h"], "a value is missing"),
        (["cooldown=1h,1h"], "each value once"), (["cooldown=[1h"], "cooldown: "), (["task.x=1"], "holds nothing"),
        (["cooldown=1h", "spec.cooldown=2h"], "once only"), (["gates.7.metric=mae"], "list of"),
        (["tune.trials=" + ",".join(map(str, range(1001)))], "at most 1000"),
    ],
)  # fmt: skip
def test_what_is_no_grid_is_refused(axes: list[str], expected: str) -> None:
    """Named by its key."""
    with pytest.raises(ValueError, match=expected):
        of(*axes, text=small() + "  gates: [{metric: roc_auc, at_least: 0.6}]\n")
