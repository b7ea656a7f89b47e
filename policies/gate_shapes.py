"""The shapes of gates: what a challenger must pass before it may be packaged. They are judged in `evaluators`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from policies.fields import Confidence, MetricName, Number, PositiveInt, Shape, Text, check_direction, one_key

_Margin = Annotated[Number, Field(ge=0)]
_PositiveNumber = Annotated[Number, Field(gt=0)]


class AtLeastGate(Shape):
    """The challenger's score on the hold-out, for metrics where higher is better."""

    metric: MetricName
    """What is scored."""
    at_least: Number
    """The lowest score that passes."""
    min_rows: PositiveInt = 100
    """With fewer hold-out rows the verdict is inconclusive."""

    @model_validator(mode="after")
    def _higher_is_better(self) -> Self:
        check_direction(self.metric, "at_least", higher_is_better=True, use="at_most")
        return self


class AtMostGate(Shape):
    """The challenger's error or loss on the hold-out."""

    metric: MetricName
    """What is scored."""
    at_most: Number
    """The highest score that passes."""
    min_rows: PositiveInt = 100
    """With fewer hold-out rows the verdict is inconclusive."""

    @model_validator(mode="after")
    def _lower_is_better(self) -> Self:
        check_direction(self.metric, "at_most", higher_is_better=False, use="at_least")
        return self


class NoWorseGate(Shape):
    """Challenger against champion on the same hold-out rows."""

    metric: MetricName
    """What is scored."""
    no_worse_than_champion: _Margin
    """Margin in the metric's unit: how much worse still passes."""
    confidence: Confidence = 0.95
    """How sure the paired test must be."""
    min_rows: PositiveInt = 100
    """With fewer hold-out rows the verdict is inconclusive."""


class BetterGate(Shape):
    """Challenger against champion on the same hold-out rows, where as good is not enough."""

    metric: MetricName
    """What is scored."""
    better_than_champion: _Margin
    """Margin in the metric's unit: it must be better by more than this."""
    confidence: Confidence = 0.95
    """How sure the paired test must be."""
    min_rows: PositiveInt = 100
    """With fewer hold-out rows the verdict is inconclusive."""


class BaselineGate(Shape):
    """Challenger against a predictor that needs no model, on the same hold-out rows."""

    baseline: Literal["last_label", "majority", "seasonal_naive", "best"]
    """`last_label`: the newest label known; `majority`: the commonest class, or the average; `seasonal_naive`: the label of a day or a week
    before; `best`: all that the rows allow."""
    metric: MetricName
    """What is scored."""
    margin: _Margin = 0.0
    """In the metric's unit: it must be better by more than this."""
    confidence: Confidence = 0.95
    """How sure the paired test must be."""
    min_rows: PositiveInt = 100
    """With fewer hold-out rows the verdict is inconclusive."""


class SliceRule(Shape):
    """No slice of the rows may suffer, whatever the average does."""

    by: tuple[Text, ...] = Field(min_length=1)
    """Columns; each of their values is a slice."""
    metric: MetricName
    """What is scored."""
    no_worse_than_champion: _Margin
    """Margin in the metric's unit, for each slice."""
    confidence: Confidence = 0.95
    """How sure the test of all slices together must be."""
    min_rows: PositiveInt = 100
    """Smaller slices are left out."""


class SlicesGate(Shape):
    """Challenger against champion, slice by slice."""

    slices: SliceRule
    """Which slices, and what they must hold."""


class LatencyGate(Shape):
    """How fast the challenger answers, alone in a fresh process."""

    latency_ms_p95_max: _PositiveNumber
    """95th percentile of single-row calls, milliseconds, at most."""


class SizeGate(Shape):
    """How large the challenger's files are."""

    size_mb_max: _PositiveNumber
    """Megabytes of the model folder, at most."""


GATE_KEYS = (
    "at_least", "at_most", "no_worse_than_champion", "better_than_champion", "baseline", "slices", "latency_ms_p95_max", "size_mb_max",
)  # fmt: skip


def _gate_tag(value: Any) -> str | None:
    return one_key(value, GATE_KEYS)


Gate = Annotated[
    Annotated[AtLeastGate, Tag("<at_least>")]
    | Annotated[AtMostGate, Tag("<at_most>")]
    | Annotated[NoWorseGate, Tag("<no_worse_than_champion>")]
    | Annotated[BetterGate, Tag("<better_than_champion>")]
    | Annotated[BaselineGate, Tag("<baseline>")]
    | Annotated[SlicesGate, Tag("<slices>")]
    | Annotated[LatencyGate, Tag("<latency_ms_p95_max>")]
    | Annotated[SizeGate, Tag("<size_mb_max>")],
    Discriminator(
        _gate_tag,
        custom_error_type="gate_unknown",
        custom_error_message="a gate is a mapping with one of the keys " + ", ".join(GATE_KEYS),
        custom_error_context={"choices": list(GATE_KEYS)},
    ),
]
