"""The shape of a policy file (`apiVersion: ratchet.dev/v1`), one model a file.

Only shapes and the rules inside one file live here; reading YAML and reporting errors is `policies.reading`.
What the schema knows but the software cannot do yet is listed in `policies.support`, never ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from policies.durations import Duration, parse_duration
from policies.metrics import METRICS, Task

NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
Name = Annotated[str, Field(pattern=NAME_PATTERN, description="a DNS label (RFC 1123)")]
Share = Annotated[float, Field(gt=0, le=1)]
Confidence = Annotated[float, Field(gt=0.5, lt=1)]
PositiveInt = Annotated[int, Field(ge=1)]


class Shape(BaseModel):
    """Base of every shape: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# ---------------------------------------------------------------- data
class CsvSource(Shape):
    """Comma-separated values (optionally gzip) with a header line."""

    kind: Literal["csv"]
    path: str = Field(min_length=1)


class ParquetSource(Shape):
    """One Parquet file, or a folder of them."""

    kind: Literal["parquet"]
    path: str = Field(min_length=1)


class SqlSource(Shape):
    """A query on a database named by SQLAlchemy URL; passwords come from the environment (`url_env`)."""

    kind: Literal["sql"]
    url: str | None = None
    url_env: str | None = Field(default=None, description="environment variable that holds the URL")
    query: str = Field(min_length=1)

    @model_validator(mode="after")
    def _one_url(self) -> Self:
        if (self.url is None) == (self.url_env is None):
            raise ValueError("give either url or url_env")
        return self


class PredictionLogSource(Shape):
    """What the model itself was asked and what was later reported as the label."""

    kind: Literal["prediction-log"]


Source = Annotated[CsvSource | ParquetSource | SqlSource | PredictionLogSource, Field(discriminator="kind")]


class DataSpec(Shape):
    """Where rows come from and which columns mean what."""

    source: Source
    label: str = Field(min_length=1)
    time: str | None = Field(default=None, description="column: when the prediction is asked for")
    label_time: str | None = Field(default=None, description="column: when the label becomes known")
    label_delay: Duration | None = Field(default=None, description="how long after `time` a label is known")
    id: str | None = Field(default=None, description="column that identifies a row; duplicates are an error")
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] | None = Field(default=None, description="features; default: all other columns")
    holdout: Share | Duration = Field(
        default=0.2, description="newest share, or time span, of the window, kept for judging"
    )
    min_rows: PositiveInt = 200

    @field_validator("holdout", mode="before")
    @classmethod
    def _share_or_duration(cls, value: object) -> object:
        return parse_duration(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        special = [c for c in (self.label, self.time, self.label_time, self.id) if c is not None]
        if len(set(special)) < len(special):
            raise ValueError("label, time, label_time and id must be different columns")
        if self.time is None and (self.label_time or self.label_delay):
            raise ValueError("label_time and label_delay need time")
        if self.include is not None and self.label in self.include:
            raise ValueError(f"include holds the label {self.label!r}")
        return self


# ---------------------------------------------------------------- train, tune
Parameters: TypeAlias = Mapping[str, str | int | float | bool | None]


class TrainSpec(Shape):
    """What is fitted: a component family (or several to choose from), or the owner's own code."""

    component: str | tuple[str, ...] | None = None
    entrypoint: str | None = Field(default=None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    code: str | None = Field(default=None, description="folder that holds the entrypoint's module")
    window: Duration | tuple[Duration, ...] | None = Field(
        default=None, description="rows newer than this; several: searched"
    )
    parameters: Parameters = Field(default_factory=dict)
    timeout: Duration = parse_duration("1h")
    memory_mb: PositiveInt = 4096
    seed: int = 0

    @model_validator(mode="after")
    def _component_or_entrypoint(self) -> Self:
        if (self.component is None) == (self.entrypoint is None):
            raise ValueError("give either component or entrypoint")
        if (self.entrypoint is None) != (self.code is None):
            raise ValueError("entrypoint and code (its folder) go together")
        if self.component == ():
            raise ValueError("component: [] names none")
        return self

    @property
    def components(self) -> tuple[str, ...]:
        if self.component is None:
            return ()
        return (self.component,) if isinstance(self.component, str) else self.component

    @property
    def windows(self) -> tuple[Any, ...]:
        if self.window is None:
            return ()
        return self.window if isinstance(self.window, tuple) else (self.window,)


class FloatRange(Shape):
    low: float
    high: float
    log: bool = False


class IntRange(Shape):
    low: int
    high: int
    log: bool = False


class TuneSpec(Shape):
    """The search. `trials: 0` keeps the component's defaults (and the champion's parameters, when there are any)."""

    trials: Annotated[int, Field(ge=0, le=100_000)] = 20
    timeout: Duration = parse_duration("10m")
    parallel: Annotated[int, Field(ge=1, le=64)] = 1
    compute: Duration | None = Field(default=None, description="CPU time of all trials together")
    memory_mb: PositiveInt = 4096
    space: Mapping[str, IntRange | FloatRange | tuple[str | int | float | bool, ...]] = Field(
        default_factory=dict, description="replaces the component's own space, parameter by parameter"
    )


class Objective(Shape):
    metric: str
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Probability from which a binary prediction counts as positive."""


# ---------------------------------------------------------------- triggers
class Performance(Shape):
    """Score of the champion on recent matured labels."""

    metric: str
    below: float | None = None
    above: float | None = Field(default=None, description="for errors, where more is worse")
    drop: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="worse than when promoted, by this much"
    )
    for_: Duration = Field(default=parse_duration("0s"), alias="for")
    window: Duration = parse_duration("1d")
    min_rows: PositiveInt = 100

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if sum(v is not None for v in (self.below, self.above, self.drop)) != 1:
            raise ValueError("give exactly one of below, above, drop")
        return self


class Drift(Shape):
    """Share of features whose distribution moved away from the training rows."""

    share: Share = 0.5
    window: Duration = parse_duration("1d")
    for_: PositiveInt = Field(default=1, alias="for", description="consecutive windows")
    min_rows: PositiveInt = 100


class EstimatedPerformance(Shape):
    """Score estimated from calibrated confidences, before labels are in (CBPE)."""

    drop: Annotated[float, Field(gt=0)]
    metric: str | None = None
    window: Duration = parse_duration("1d")


class Schedule(Shape):
    """A cron expression, UTC."""

    cron: str


class Staleness(Shape):
    """Age of the newest training row of the champion."""

    age: Duration


class Volume(Shape):
    labelled_rows: PositiveInt


class Manual(Shape):
    """Fires only on `ratchet trigger`."""


class AllOf(Shape):
    all: tuple[TriggerNode, ...] = Field(min_length=1)


class AnyOf(Shape):
    any: tuple[TriggerNode, ...] = Field(min_length=1)


class AtLeast(Shape):
    at_least: PositiveInt
    of: tuple[TriggerNode, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.at_least > len(self.of):
            raise ValueError(f"at_least: {self.at_least} of only {len(self.of)} triggers can never fire")
        return self


class PerformanceTrigger(Shape):
    performance: Performance


class DriftTrigger(Shape):
    drift: Drift


class EstimatedPerformanceTrigger(Shape):
    estimated_performance: EstimatedPerformance


class ScheduleTrigger(Shape):
    schedule: Annotated[Schedule, BeforeValidator(lambda v: {"cron": v} if isinstance(v, str) else v)]


class StalenessTrigger(Shape):
    staleness: Annotated[Staleness, BeforeValidator(lambda v: {"age": v} if isinstance(v, str) else v)]


class VolumeTrigger(Shape):
    volume: Volume


class ManualTrigger(Shape):
    manual: Annotated[Manual, BeforeValidator(lambda v: {} if v is None or v is True else v)] = Manual()


_TRIGGER_KEYS = (
    "any", "all", "at_least", "performance", "drift", "estimated_performance", "schedule", "staleness", "volume",
    "manual",
)  # fmt: skip


def _trigger_tag(value: Any) -> str | None:
    """The key that says which trigger a node is. A node is one mapping with one such key."""
    keys = set(value) if isinstance(value, Mapping) else set(type(value).model_fields)
    return next((k for k in _TRIGGER_KEYS if k in keys), None)


TriggerNode = Annotated[
    Annotated[AnyOf, Tag("any")]
    | Annotated[AllOf, Tag("all")]
    | Annotated[AtLeast, Tag("at_least")]
    | Annotated[PerformanceTrigger, Tag("performance")]
    | Annotated[DriftTrigger, Tag("drift")]
    | Annotated[EstimatedPerformanceTrigger, Tag("estimated_performance")]
    | Annotated[ScheduleTrigger, Tag("schedule")]
    | Annotated[StalenessTrigger, Tag("staleness")]
    | Annotated[VolumeTrigger, Tag("volume")]
    | Annotated[ManualTrigger, Tag("manual")],
    Discriminator(
        _trigger_tag,
        custom_error_type="trigger_unknown",
        custom_error_message="a trigger is a mapping with one of the keys " + ", ".join(_TRIGGER_KEYS),
    ),
]


# ---------------------------------------------------------------- gates
class AtLeastGate(Shape):
    metric: str
    at_least: float
    min_rows: PositiveInt = 100


class AtMostGate(Shape):
    metric: str
    at_most: float
    min_rows: PositiveInt = 100


class NoWorseGate(Shape):
    metric: str
    no_worse_than_champion: Annotated[float, Field(ge=0)] = Field(description="margin, in the metric's unit")
    confidence: Confidence = 0.95
    min_rows: PositiveInt = 100


class SliceRule(Shape):
    by: tuple[str, ...] = Field(min_length=1)
    metric: str
    no_worse_than_champion: Annotated[float, Field(ge=0)]
    confidence: Confidence = 0.95
    min_rows: PositiveInt = 100


class SlicesGate(Shape):
    slices: SliceRule


class LatencyGate(Shape):
    latency_ms_p95_max: Annotated[float, Field(gt=0)]


class SizeGate(Shape):
    size_mb_max: Annotated[float, Field(gt=0)]


_GATE_KEYS = ("at_least", "at_most", "no_worse_than_champion", "slices", "latency_ms_p95_max", "size_mb_max")


def _gate_tag(value: Any) -> str | None:
    keys = set(value) if isinstance(value, Mapping) else set(type(value).model_fields)
    return next((k for k in _GATE_KEYS if k in keys), None)


Gate = Annotated[
    Annotated[AtLeastGate, Tag("at_least")]
    | Annotated[AtMostGate, Tag("at_most")]
    | Annotated[NoWorseGate, Tag("no_worse_than_champion")]
    | Annotated[SlicesGate, Tag("slices")]
    | Annotated[LatencyGate, Tag("latency_ms_p95_max")]
    | Annotated[SizeGate, Tag("size_mb_max")],
    Discriminator(
        _gate_tag,
        custom_error_type="gate_unknown",
        custom_error_message="a gate is a mapping with one of the keys " + ", ".join(_GATE_KEYS),
    ),
]


# ---------------------------------------------------------------- rollout, deploy, notify
class Step(Shape):
    """One step of a rollout: mirrored traffic (`shadow`) or a weight in percent, held for a time."""

    shadow: bool = False
    weight: Annotated[float, Field(ge=0, le=100)] = 0
    hold: Duration = parse_duration("0s")

    @property
    def label(self) -> str:
        return "shadow" if self.shadow else f"{self.weight:g}%"


def _step(value: object) -> object:
    """`shadow: 10m`, `5%: 10m` and a bare `100%` as the owner writes them."""
    if isinstance(value, str):
        value = {value: "0s"}
    if not isinstance(value, Mapping) or "hold" in value:
        return value
    if len(value) != 1:
        raise ValueError(f"a step is one of shadow: TIME or N%: TIME, but got {dict(value)!r}")
    ((key, hold),) = value.items()
    if key == "shadow":
        return {"shadow": True, "hold": hold}
    if match := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)%", str(key)):
        return {"weight": float(match[1]), "hold": hold}
    raise ValueError(f"a step is one of shadow: TIME or N%: TIME, but got {key!r}")


RolloutStep = Annotated[Step, BeforeValidator(_step)]


class Rollout(Shape):
    steps: tuple[RolloutStep, ...] = Field(
        default=(
            Step(shadow=True, hold=parse_duration("10m")), Step(weight=5, hold=parse_duration("10m")),
            Step(weight=25, hold=parse_duration("30m")), Step(weight=100),
        ),
        min_length=1,
    )  # fmt: skip
    bake: Duration = parse_duration("24h")
    margin: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.02, description="how much worse, in error rate (regression: in scaled absolute error), is worse"
    )
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = Field(default=0.05, description="false rollbacks, at most")
    max_error_share: Annotated[float, Field(ge=0, le=1)] = 0.02
    deadline: Duration = Field(default=parse_duration("7d"), description="unfinished by then: champion stays")

    @model_validator(mode="after")
    def _steps_rise(self) -> Self:
        weights = [s.weight for s in self.steps if not s.shadow]
        if any(s.shadow for s in self.steps[1:]):
            raise ValueError("shadow can only be the first step")
        if not weights or weights[-1] != 100:
            raise ValueError("the last step must be 100%")
        if weights != sorted(set(weights)) or weights[0] <= 0:
            raise ValueError(f"weights must rise from step to step but got {weights}")
        return self


class Budget(Shape):
    cycles: PositiveInt = 3
    per: Duration = parse_duration("7d")
    compute: Duration | None = None


class Deploy(Shape):
    target: Literal["local", "docker", "kubernetes"] = "local"
    replicas: Annotated[int, Field(ge=1, le=256)] = 1
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    base_image: str | None = None


class SlackNotice(Shape):
    slack: str


class WebhookNotice(Shape):
    webhook: str


class LogNotice(Shape):
    log: Literal["info", "warning"] = "info"


Notice = SlackNotice | WebhookNotice | LogNotice


# ---------------------------------------------------------------- the whole
class Metadata(Shape):
    name: Name
    labels: Mapping[str, str] = Field(default_factory=dict)
    annotations: Mapping[str, str] = Field(default_factory=dict)


class Spec(Shape):
    task: Task
    data: DataSpec
    train: TrainSpec
    tune: TuneSpec = TuneSpec()
    objective: Objective
    triggers: TriggerNode = ManualTrigger()
    cooldown: Duration = parse_duration("12h")
    budget: Budget = Budget()
    gates: tuple[Gate, ...] = ()
    approval: Literal["automatic", "required"] = "automatic"
    approval_timeout: Duration = parse_duration("7d")
    rollout: Rollout = Rollout()
    deploy: Deploy = Deploy()
    notify: tuple[Notice, ...] = ()

    @model_validator(mode="after")
    def _metrics_fit_task(self) -> Self:
        for path, name in _metric_names(self):
            metric = METRICS.get(name)
            if metric is None or self.task not in metric.tasks:
                fitting = sorted(m.name for m in METRICS.values() if self.task in m.tasks)
                raise ValueError(f"{path}: {name!r} is no metric for {self.task}; there are {', '.join(fitting)}")
        return self


def _metric_names(spec: Spec) -> list[tuple[str, str]]:
    found = [("objective.metric", spec.objective.metric)]
    for i, gate in enumerate(spec.gates):
        rule = gate.slices if isinstance(gate, SlicesGate) else gate
        if not isinstance(rule, LatencyGate | SizeGate):
            found.append((f"gates[{i}]", rule.metric))
    for node in trigger_leaves(spec.triggers):
        if isinstance(node, PerformanceTrigger):
            found.append(("triggers.performance", node.performance.metric))
        if isinstance(node, EstimatedPerformanceTrigger) and node.estimated_performance.metric:
            found.append(("triggers.estimated_performance", node.estimated_performance.metric))
    return found


def trigger_leaves(node: TriggerNode) -> list[Any]:
    """All leaves of a trigger tree, in the order in which they are written."""
    match node:
        case AnyOf():
            children = node.any
        case AllOf():
            children = node.all
        case AtLeast():
            children = node.of
        case _:
            return [node]
    return [leaf for child in children for leaf in trigger_leaves(child)]


class ModelPolicy(Shape):
    """One model's policy."""

    apiVersion: Literal["ratchet.dev/v1"]  # noqa: N815 - Kubernetes' spelling
    kind: Literal["ModelPolicy"]
    metadata: Metadata
    spec: Spec

    @property
    def name(self) -> str:
        return self.metadata.name


for _model in (AllOf, AnyOf, AtLeast, Spec, ModelPolicy):
    _model.model_rebuild()
