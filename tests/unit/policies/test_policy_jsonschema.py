"""The JSON Schema that editors use agrees with the reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from policy_texts import DESIGN, EXAMPLES, read, small
from test_policy_messages import MISTAKES

from policies.documents import parse_document
from policies.jsonschema import json_schema

VALIDATOR = Draft202012Validator(json_schema())
ACROSS_FIELDS = {
    "at_least too many", "no rule in performance", "wrong direction", "fields of cron", "date that never comes",
    "window of nothing", "metric of another task", "weights that do not rise", "last step", "shadow later",
    "step over 100", "password in a URL", "same column twice", "drop of nothing", "no rule in volume", "component and entrypoint",
    "range upside down", "not supported target", "limits of a process",
    "not a finite number", "nothing to compare", "labels after the deadline",
    "a season without time", "a lock file elsewhere", "no name of a label", "metric of a filter", "two rules in volume",
}  # fmt: skip
"""Mistakes that JSON Schema cannot express, or not readably; the reader finds them."""


def plain(text: str) -> Any:
    document, problems = parse_document(text.encode(), file="p.yaml")
    assert document is not None
    assert problems == []
    return document.value


def test_it_is_a_json_schema() -> None:
    """It is valid Draft 2020-12 and survives JSON."""
    Draft202012Validator.check_schema(json_schema())
    assert json.loads(json.dumps(json_schema())) == json_schema()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_validate(path: Path) -> None:
    """Every example validates, as it is written and as canonical JSON."""
    VALIDATOR.validate(plain(path.read_text()))
    (one,) = read(path.read_text()).policies
    VALIDATOR.validate(json.loads(one.policy.model_dump_json(by_alias=True)))


@pytest.mark.parametrize(
    "text",
    [
        DESIGN,
        small(),
        small(more='  triggers: {schedule: "0 4 * * 1"}\n'),
        small(more='  triggers: {schedule: {cron: "0 4 * * 1"}}\n'),
        small(more="  triggers: {staleness: {age: 30d}}\n"),
        small(more="  triggers: {alert: HighErrorRate}\n"),
        small(more="  triggers: {alert: {name: HighErrorRate, match: {team: ops}, for: 5m}}\n"),
        small(more="  triggers: {at_least: 1, of: [{manual: }, {manual: {}}]}\n"),
        small(("boosting}", "boosting, window: since_change, refit: true}")),
        small(("boosting}", "boosting, window: [all, 30d, since_change]}"), ("    time: at\n", "")),
        small(more="  tune: {trials: 9, warm_trials: 3}\n"),
        small(more="  triggers: {performance: {metric: recall, drop: 0, confidence: 0.99}}\n"),
        small(more="  triggers: {volume: {growth: 1.5}}\n"),
        small(more="  rollout: {steps: [100%]}\n"),
        small(more="  rollout: {steps: [{weight: 100, hold: 0s}]}\n"),
        small(more="  tune: {space: {a: {low: 1, high: 2}, b: {low: 0.5, high: 1}, c: [1, x]}}\n"),
    ],
)
def test_short_and_long_forms_validate(text: str) -> None:
    """What the reader takes, the schema takes: short forms, long forms, and the design's example."""
    assert read(text, check_support=False).problems == ()
    VALIDATOR.validate(plain(text))


@pytest.mark.parametrize("name", sorted(MISTAKES.keys() - ACROSS_FIELDS))
def test_mistakes_do_not_validate(name: str) -> None:
    """Mistakes in one field are found by editors too."""
    assert not VALIDATOR.is_valid(plain(MISTAKES[name][0]))


@pytest.mark.parametrize("name", sorted(ACROSS_FIELDS))
def test_what_the_schema_leaves_to_the_reader(name: str) -> None:
    """The list of what editors do not find is not longer than it must be."""
    assert VALIDATOR.is_valid(plain(MISTAKES[name][0]))


def test_every_field_is_described() -> None:
    """Editors show a description for every key (its own or its shape's), and defaults as people write them."""
    schema = json_schema()
    shapes = {"ModelPolicy": schema, **schema["$defs"]}
    fields = {
        f"{name}.{key}": field for name, shape in shapes.items() for key, field in shape.get("properties", {}).items()
    }
    assert [name for name, field in fields.items() if not (field.get("description") or "$ref" in field)] == []
    assert fields["Spec.cooldown"]["default"] == "12h"
