"""The shapes of triggers: leaves that look at signals or at the clock, and `any`, `all`, `at_least` over them.

What they mean is in `policies.triggers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from policies.cron import parse_cron
from policies.durations import Duration, PositiveDuration, parse_duration
from policies.fields import MetricName, Number, PositiveInt, Shape, Share, check_direction, one_key
from policies.metric_shapes import Metric
from policies.problems import Path

_PositiveNumber = Annotated[Number, Field(gt=0)]


ALERT_LABEL = r"^[a-zA-Z_][a-zA-Z0-9_]*$"
AlertLabel = Annotated[str, Field(pattern=ALERT_LABEL, max_length=200)]


class Performance(Shape):
    """Score of the champion on recent rows whose labels have matured. Exactly one of below, above and drop."""

    metric: MetricName
    """What is scored."""
    below: Number | None = None
    """Fires when the score is lower than this; for metrics where higher is better."""
    above: Number | None = None
    """Fires when the score is higher than this; for errors and losses."""
    drop: Annotated[Number, Field(ge=0)] | None = None
    """Fires when the score is worse, by at least this much, than the one with which the champion was promoted. 0 needs a confidence."""
    confidence: Annotated[Number, Field(gt=0.5, lt=1)] | None = None
    """Fires only if so bad a score would come by chance in fewer than 1 - confidence of looks; by default the bare score decides."""
    for_: Duration = Field(default=parse_duration("0s"), alias="for")
    """How long the condition must hold without a break before it fires."""
    window: PositiveDuration = parse_duration("1d")
    """Span of the newest matured rows that are scored."""
    min_rows: PositiveInt = 100
    """With fewer rows the score is unknown, and the trigger neither fires nor is quiet."""

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if sum(v is not None for v in (self.below, self.above, self.drop)) != 1:
            raise ValueError("give exactly one of below, above, drop")
        if self.drop == 0 and self.confidence is None:
            raise ValueError("drop must be greater than 0, but got 0; with a confidence it may be 0")
        if self.below is not None:
            check_direction(self.metric, "below", higher_is_better=True, use="above")
        if self.above is not None:
            check_direction(self.metric, "above", higher_is_better=False, use="below")
        return self


class Calibration(Shape):
    """Whether the champion's answers keep what they promise: probabilities come true as often as they say, predictions err to no side."""

    standard_errors: _PositiveNumber = 5.0
    """Fires from so many standard errors of deviation on; by chance alone 5 come about in one of millions of independent looks."""
    window: PositiveDuration = parse_duration("1d")
    """Span of the newest matured rows that are compared with their answers."""
    min_rows: PositiveInt = 100
    """With fewer rows it is unknown, and the trigger neither fires nor is quiet."""


class EstimatedPerformance(Shape):
    """Score estimated from calibrated confidences, before labels are in (CBPE)."""

    drop: _PositiveNumber
    """Fires when the estimate is worse, by at least this much, than the score at promotion."""
    metric: MetricName | None = None
    """What is estimated; by default the objective's metric."""
    window: PositiveDuration = parse_duration("1d")
    """Span of the newest predictions that are used."""
    min_rows: PositiveInt = 100
    """With fewer predictions the estimate is unknown, and the trigger neither fires nor is quiet."""


def _real_threshold(value: object) -> object:
    a_distance = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    if not a_distance and value not in ("evidently", "calibrated"):
        raise ValueError(f"must be evidently, calibrated or a distance greater than 0, but got {value!r}")
    return value


DriftThreshold = Annotated[
    Literal["evidently", "calibrated"] | _PositiveNumber,
    BeforeValidator(_real_threshold, json_schema_input_type=Literal["evidently", "calibrated"] | _PositiveNumber),
]


class DriftFilter(Shape):
    """Lets drift fire only if it matters. While this is unknown, so is the trigger."""

    estimated_performance: EstimatedPerformance | None = None
    """The estimated score is bad too, by the rule of the trigger of that name."""
    calibration: Calibration | None = None
    """Labels deviate from the answers too, by the rule of the trigger of that name; fewer errors will do beside drift."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.estimated_performance is None and self.calibration is None:
            raise ValueError("give estimated_performance, calibration or both")
        return self


class Drift(Shape):
    """Share of features whose distribution has moved away from the champion's training rows."""

    share: Share = 0.5
    """Fires when at least this share of the features has drifted."""
    window: PositiveDuration = parse_duration("1d")
    """Span of the rows that are compared with the training rows."""
    for_: PositiveInt = Field(default=1, alias="for")
    """In how many windows, one after the other and not overlapping, before it fires."""
    min_rows: PositiveInt = 100
    """With fewer rows in the window the share is unknown."""
    threshold: DriftThreshold = "evidently"
    """From where on a feature has drifted: `evidently` by Evidently's rules; a number is a distance, for every feature; `calibrated`
    learns a distance for each feature from the first quiet windows of the version."""
    until_rows: PositiveInt | None = None
    """Not any more once the champion was trained on this many: it has seen most of what there is, so that moving among it does no harm."""
    only_if: DriftFilter | None = None
    """What must hold besides; by default nothing."""


def _real_cron(expression: str) -> str:
    parse_cron(expression)
    return expression


class Schedule(Shape):
    """A cron expression, in UTC. `schedule: "0 4 * * 1"` is short for `schedule: {cron: "0 4 * * 1"}`."""

    cron: Annotated[str, AfterValidator(_real_cron)]
    """Minute, hour, day of month, month, day of week (0 and 7 are Sunday)."""


class Staleness(Shape):
    """Age of the champion's newest training row. `staleness: 30d` is short for `staleness: {age: 30d}`."""

    age: PositiveDuration
    """Fires when neither newer rows were trained on nor a cycle was closed for this long."""


class Volume(Shape):
    """Labelled rows that have matured since the champion was trained."""

    labelled_rows: PositiveInt | None = None
    """Fires when there are at least this many."""
    growth: Annotated[Number, Field(gt=1)] | None = None
    """Fires when they and the rows that the champion was trained on are this many times the latter; twice as many after each cycle in
    vain."""
    until_rows: PositiveInt | None = None
    """Of growth: not any more once the champion was trained on this many, of which twice as many would not teach it much."""

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if (self.labelled_rows is None) == (self.growth is None):
            raise ValueError("give either labelled_rows or growth")
        if self.until_rows is not None and self.growth is None:
            raise ValueError("until_rows goes with growth")
        return self


class Alert(Shape):
    """An alert of Alertmanager, which tells the daemon of it by a webhook."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    """Of the alert: its label `alertname`."""
    match: Annotated[Mapping[AlertLabel, Annotated[str, Field(max_length=1000)]], Field(max_length=20)] | None = None
    """Labels and their values; by default `model`, with the model's name. `{}` asks for no label."""
    for_: Duration = Field(default=parse_duration("0s"), alias="for")
    """How long it must fire before the trigger does, from when it was first heard of."""


class Manual(Shape):
    """Fires only on `ratchet trigger`. `manual:` needs no value."""


class AllOf(Shape):
    """Fires while all of its triggers fire."""

    all: tuple[TriggerNode, ...] = Field(min_length=1)
    """The triggers."""


class AnyOf(Shape):
    """Fires while at least one of its triggers fires."""

    any: tuple[TriggerNode, ...] = Field(min_length=1)
    """The triggers."""


class AtLeast(Shape):
    """Fires while at least so many of its triggers fire."""

    at_least: PositiveInt
    """How many."""
    of: tuple[TriggerNode, ...] = Field(min_length=1)
    """The triggers."""

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.at_least > len(self.of):
            raise ValueError(f"at_least: {self.at_least} of only {len(self.of)} triggers can never fire")
        return self


class PerformanceTrigger(Shape):
    """Fires when the champion's measured score is bad."""

    performance: Performance
    """Which score, and when it is bad."""


class DriftTrigger(Shape):
    """Fires when the data have changed."""

    drift: Drift
    """How many features, over which windows."""


class CalibrationTrigger(Shape):
    """Fires when labels no longer are what the champion's answers promise, which harder rows alone do not bring about."""

    calibration: Calibration
    """How sure that must be, over which window."""


class EstimatedPerformanceTrigger(Shape):
    """Fires when the champion's estimated score is bad."""

    estimated_performance: EstimatedPerformance
    """Which score, and when it is bad."""


def _short(key: str, rule: str, written_as: Any) -> BeforeValidator:
    """Reads a bare text as the mapping that it is short for; `written_as` is its type for the JSON Schema."""

    def expand(value: object) -> object:
        if isinstance(value, str):
            return {key: value}
        if not isinstance(value, Mapping | Shape):
            raise ValueError(f"{rule}, but got {value!r}")
        return value

    return BeforeValidator(expand, json_schema_input_type=written_as)


_SCHEDULE_RULE = 'a schedule is a cron expression in quotes, such as "0 4 * * 1"'


class ScheduleTrigger(Shape):
    """Fires at set times."""

    schedule: Annotated[Schedule, _short("cron", _SCHEDULE_RULE, str | Schedule)]
    """When: a cron expression, in UTC."""


class StalenessTrigger(Shape):
    """Fires when the champion has grown old."""

    staleness: Annotated[Staleness, _short("age", "staleness is a duration, such as 30d", Duration | Staleness)]
    """How old: a duration."""


class VolumeTrigger(Shape):
    """Fires when enough new labels are in."""

    volume: Volume
    """How many."""


class MetricTrigger(Shape):
    """Fires when a metric of the champion is bad, as the monitoring system tells."""

    metric: Metric
    """Which metric, and when it is bad."""


class AlertTrigger(Shape):
    """Fires when an alert does, once for each time that it starts."""

    alert: Annotated[Alert, _short("name", "an alert is its name, such as HighErrorRate", str | Alert)]
    """Which: `alert: HighErrorRate` is short for `alert: {name: HighErrorRate}`."""


class ManualTrigger(Shape):
    """Never fires by itself."""

    model_config = ConfigDict(json_schema_extra={"required": ["manual"]})

    manual: Annotated[
        Manual, BeforeValidator(lambda v: {} if v is None else v, json_schema_input_type=Manual | None)
    ] = Manual()
    """Nothing to say."""


TRIGGER_KEYS = (
    "any", "all", "at_least", "performance", "calibration", "drift", "estimated_performance", "schedule", "staleness", "volume",
    "metric", "alert", "manual",
)  # fmt: skip


def _trigger_tag(value: Any) -> str | None:
    """The key that says which trigger a node is. A node is one mapping with one such key."""
    return one_key(value, TRIGGER_KEYS)


TriggerNode = Annotated[
    Annotated[AnyOf, Tag("<any>")]
    | Annotated[AllOf, Tag("<all>")]
    | Annotated[AtLeast, Tag("<at_least>")]
    | Annotated[PerformanceTrigger, Tag("<performance>")]
    | Annotated[CalibrationTrigger, Tag("<calibration>")]
    | Annotated[DriftTrigger, Tag("<drift>")]
    | Annotated[EstimatedPerformanceTrigger, Tag("<estimated_performance>")]
    | Annotated[ScheduleTrigger, Tag("<schedule>")]
    | Annotated[StalenessTrigger, Tag("<staleness>")]
    | Annotated[VolumeTrigger, Tag("<volume>")]
    | Annotated[MetricTrigger, Tag("<metric>")]
    | Annotated[AlertTrigger, Tag("<alert>")]
    | Annotated[ManualTrigger, Tag("<manual>")],
    Discriminator(
        _trigger_tag,
        custom_error_type="trigger_unknown",
        custom_error_message="a trigger is a mapping with one of the keys " + ", ".join(TRIGGER_KEYS),
        custom_error_context={"choices": list(TRIGGER_KEYS)},
    ),
]

for _model in (AllOf, AnyOf, AtLeast):
    _model.model_rebuild()


def children(node: TriggerNode) -> tuple[tuple[Path, TriggerNode], ...]:
    """Of `any`, `all` and `at_least`: their triggers, each with its place, such as `("any", 0)`. Leaves have none."""
    match node:
        case AnyOf():
            return tuple((("any", i), child) for i, child in enumerate(node.any))
        case AllOf():
            return tuple((("all", i), child) for i, child in enumerate(node.all))
        case AtLeast():
            return tuple((("of", i), child) for i, child in enumerate(node.of))
        case _:
            return ()


def leaf_kind(leaf: TriggerNode) -> str:
    """The key that the leaf is written with, such as `performance`."""
    return next(iter(type(leaf).model_fields))


def leaves_with_paths(node: TriggerNode, place: Path = ()) -> list[tuple[Path, Any]]:
    """All leaves of a trigger tree, in the order in which they are written: `("any", 0, "performance")`."""
    below = children(node)
    if not below:
        return [((*place, leaf_kind(node)), node)]
    return [leaf for steps, child in below for leaf in leaves_with_paths(child, (*place, *steps))]


def trigger_leaves(node: TriggerNode) -> list[Any]:
    """All leaves of a trigger tree, in the order in which they are written."""
    return [leaf for _, leaf in leaves_with_paths(node)]
