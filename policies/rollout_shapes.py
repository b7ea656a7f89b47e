"""The shape of a rollout: how traffic moves to a challenger that passed its gates, and how long it is watched."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema, model_validator

from policies.durations import PATTERN, Duration, PositiveDuration, parse_duration
from policies.fields import Flag, Number, Shape, Whole
from policies.metric_shapes import MetricRule


class Step(Shape):
    """One step of a rollout: mirrored traffic (`shadow`) or a weight in percent, held for a time."""

    shadow: Flag = False
    """Whether the challenger gets a copy of the traffic, and its answers are thrown away."""
    weight: Annotated[Number, Field(ge=0, le=100)] = 0
    """Percent of live traffic that the challenger answers."""
    hold: Duration = parse_duration("0s")
    """How long, at least, the step lasts."""

    @property
    def label(self) -> str:
        """The step as people read it."""
        return "shadow" if self.shadow else f"{self.weight:g} %"


STEP_RULE = "a step is shadow: TIME or N%: TIME, such as 5%: 10m"
_STEP_KEY = r"(?:shadow|[0-9]+(?:\.[0-9]+)?%)"
_STEP_JSON_SCHEMA: dict[str, Any] = {
    "description": "`shadow: 10m`, `5%: 10m`, or `100%` alone",
    "anyOf": [
        {"type": "string", "pattern": f"^{_STEP_KEY}$"},
        {
            "type": "object",
            "patternProperties": {f"^{_STEP_KEY}$": {"type": "string", "pattern": PATTERN}},
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": 1,
        },
        {
            "type": "object",
            "properties": {
                "shadow": {"type": "boolean"},
                "weight": {"type": "number", "minimum": 0, "maximum": 100},
                "hold": {"type": "string", "pattern": PATTERN},
            },
            "required": ["hold"],
            "additionalProperties": False,
        },
    ],
}


def _step(value: object) -> object:
    """`shadow: 10m`, `5%: 10m` and a bare `100%` as the owner writes them."""
    if isinstance(value, str):
        value = {value: "0s"}
    if isinstance(value, Step):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"{STEP_RULE}, but got {value!r}")
    if "hold" in value:
        return value
    if len(value) != 1:
        raise ValueError(f"{STEP_RULE}, but got {dict(value)!r}")
    ((key, hold),) = value.items()
    if not re.fullmatch(_STEP_KEY, str(key)):
        raise ValueError(f"{STEP_RULE}, but got {key!r}")
    return {"shadow": True, "hold": hold} if key == "shadow" else {"weight": float(str(key)[:-1]), "hold": hold}


RolloutStep = Annotated[Step, BeforeValidator(_step), WithJsonSchema(_STEP_JSON_SCHEMA)]


_PERCENT = r"^[0-9]{1,3}(\.[0-9]+)?%$"


def parse_percent(value: object) -> float:
    """`2%` → 2.0. Raises ValueError for anything without the sign, so that nobody takes 0.02 for 2%, or above 50%."""
    if not isinstance(value, str) or not re.fullmatch(_PERCENT, value) or float(value[:-1]) > 50:
        raise ValueError(f"a share of the traffic is N% from 0% to 50%, such as 2%, but got {value!r}")
    return float(value[:-1])


TrafficShare = Annotated[
    float,
    BeforeValidator(parse_percent),
    PlainSerializer(lambda share: f"{share:g}%", return_type=str),
    WithJsonSchema({"type": "string", "pattern": _PERCENT}),
]


class Rollout(Shape):
    """How traffic moves to a challenger, and when it is taken back."""

    steps: tuple[RolloutStep, ...] = Field(
        default=(
            Step(shadow=True, hold=parse_duration("10m")), Step(weight=5, hold=parse_duration("10m")),
            Step(weight=25, hold=parse_duration("30m")), Step(weight=100),
        ),
        min_length=1,
    )  # fmt: skip
    """One after the other: `shadow: TIME` first if at all, then rising weights, `100%` last."""
    bake: Duration = parse_duration("24h")
    """How long the new champion is watched, ready to be rolled back."""
    margin: Annotated[Number, Field(ge=0, le=1)] = 0.02
    """How much worse is worse: in Brier score, 0 to 1 (regression: in scaled absolute error)."""
    alpha: Annotated[Number, Field(gt=0, lt=0.5)] = 0.05
    """The share of good challengers that may be rolled back by chance, and of bad ones that may be promoted, at most."""
    max_error_share: Annotated[Number, Field(ge=0, le=1)] = 0.02
    """Share of requests that may fail, beyond that of as many fresh replicas of the champion, before the challenger is taken back."""
    max_slowdown: Annotated[Number, Field(ge=1)] = 3
    """How many times as long as those replicas it may take (95th percentile) and still be given more traffic."""
    deadline: PositiveDuration = parse_duration("7d")
    """A rollout in which the challenger was not shown to be no worse by then ends as inconclusive: the champion stays."""
    min_labelled_rows: Annotated[Whole, Field(ge=0)] = 50
    """Labelled answers of challenger and champion each before a step ends, the shadow step too; 0 asks for no labels at all."""
    metrics: Annotated[tuple[MetricRule, ...], Field(max_length=20)] = ()
    """Metrics of the challenger that must hold: a bad one takes it back, an unknown one gives it no more traffic."""
    holdback: TrafficShare = 2.0
    """Traffic that stays with the champion at `100%`, and through the bake, to compare with; `0%` is none."""

    @model_validator(mode="after")
    def _steps_rise(self) -> Self:
        weights = [s.weight for s in self.steps if not s.shadow]
        if any(s.shadow for s in self.steps[1:]):
            raise ValueError("shadow can only be the first step")
        if not weights or weights[-1] != 100:
            raise ValueError("the last step must be 100%")
        if weights != sorted(set(weights)) or weights[0] <= 0:
            written = ", ".join(f"{w:g}%" for w in weights)
            raise ValueError(f"weights must rise from step to step, but got {written}")
        return self

    @model_validator(mode="after")
    def _something_to_compare(self) -> Self:
        if len(self.steps) == 1 and self.holdback == 0 and self.min_labelled_rows > 0:
            raise ValueError(
                "steps: [100%] with holdback: 0% leaves no answers to compare the challenger's with; "
                "add a step, or ask for no labels by min_labelled_rows: 0"
            )
        return self

    @property
    def kept_back(self) -> float:
        """Percent that the champion keeps at the last step: the holdback, but no more than the step before left it.

        >>> Rollout(steps=(Step(weight=99), Step(weight=100))).kept_back, Rollout(holdback="10%").kept_back
        (1.0, 10.0)
        """
        return min(self.holdback, 100.0 - self.steps[-2].weight) if len(self.steps) > 1 else float(self.holdback)
