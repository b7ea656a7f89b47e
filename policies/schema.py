"""The shape of a policy file (`apiVersion: ratchet.dev/v1`), one model a file.

Only shapes and the rules inside one file live here; reading YAML and reporting errors is `policies.reading`.
What the schema knows but the software cannot do yet is listed in `policies.support`, never ignored.
The shapes of triggers, gates and rollouts have modules of their own and are offered here too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    model_validator,
)

from policies.deploy_shapes import Deploy, ModelSpec
from policies.durations import Duration, PositiveDuration, parse_duration, spell_duration
from policies.fields import (
    NAME_PATTERN,
    Confidence,
    Flag,
    MetricName,
    Name,
    Number,
    Parameters,
    PositiveInt,
    Scalar,
    Shape,
    Share,
    Text,
    Whole,
    metric_names,
    one_or_many,
)
from policies.gate_shapes import (
    AtLeastGate,
    AtMostGate,
    BaselineGate,
    BetterGate,
    Gate,
    LatencyGate,
    NoWorseGate,
    SizeGate,
    SliceRule,
    SlicesGate,
)
from policies.metrics import Task
from policies.notice_shapes import LogNotice, Notice, SlackNotice, WebhookNotice
from policies.problems import spell_path
from policies.rollout_shapes import Rollout, RolloutStep, Step
from policies.trigger_shapes import (
    Alert,
    AlertTrigger,
    AllOf,
    AnyOf,
    AtLeast,
    Calibration,
    CalibrationTrigger,
    Drift,
    DriftTrigger,
    EstimatedPerformance,
    EstimatedPerformanceTrigger,
    Manual,
    ManualTrigger,
    Performance,
    PerformanceTrigger,
    Schedule,
    ScheduleTrigger,
    Staleness,
    StalenessTrigger,
    TriggerNode,
    Volume,
    VolumeTrigger,
    leaves_with_paths,
    trigger_leaves,
)

__all__ = [
    "NAME_PATTERN",
    "Alert",
    "AlertTrigger",
    "AllOf",
    "AnyOf",
    "AtLeast",
    "AtLeastGate",
    "AtMostGate",
    "BaselineGate",
    "BetterGate",
    "Budget",
    "Calibration",
    "CalibrationTrigger",
    "Confidence",
    "CsvSource",
    "DataSpec",
    "Deploy",
    "Drift",
    "DriftTrigger",
    "EstimatedPerformance",
    "EstimatedPerformanceTrigger",
    "FloatRange",
    "Gate",
    "IntRange",
    "LatencyGate",
    "LogNotice",
    "Manual",
    "ManualTrigger",
    "Metadata",
    "ModelPolicy",
    "ModelSpec",
    "Name",
    "NoWorseGate",
    "Notice",
    "Objective",
    "Parameters",
    "ParquetSource",
    "Performance",
    "PerformanceTrigger",
    "PositiveInt",
    "PredictionLogSource",
    "Rollout",
    "RolloutStep",
    "Schedule",
    "ScheduleTrigger",
    "Shape",
    "Share",
    "SizeGate",
    "SlackNotice",
    "SliceRule",
    "SlicesGate",
    "Source",
    "Spec",
    "SqlSource",
    "Staleness",
    "StalenessTrigger",
    "Step",
    "TrainSpec",
    "TriggerNode",
    "TuneSpec",
    "Volume",
    "VolumeTrigger",
    "WebhookNotice",
    "trigger_leaves",
]  # fmt: skip


# ---------------------------------------------------------------- data
class CsvSource(Shape):
    """Comma-separated values (optionally gzip) with a header line."""

    kind: Literal["csv"]
    """`csv`."""
    path: Text
    """The file; a relative path starts at the policy file's folder."""


class ParquetSource(Shape):
    """One Parquet file, or a folder of them."""

    kind: Literal["parquet"]
    """`parquet`."""
    path: Text
    """The file or folder; a relative path starts at the policy file's folder."""


_PASSWORD = re.compile(r"://[^/@:]*:(?![0-9]+(?:[/?]|$)).*@|[?&](?:password|pwd)=", re.IGNORECASE)
"""In a URL: `//user:password@` (but not `//host:5432/`), or a parameter of that name."""


class SqlSource(Shape):
    """A query on a database named by a SQLAlchemy URL. Exactly one of url and url_env."""

    kind: Literal["sql"]
    """`sql`."""
    url: str | None = None
    """For example `sqlite:///data/sales.db`; must not hold a password."""
    url_env: str | None = None
    """The environment variable that holds the URL, password and all."""
    query: Text
    """The SELECT whose rows are the data."""

    @model_validator(mode="after")
    def _one_url(self) -> Self:
        if (self.url is None) == (self.url_env is None):
            raise ValueError("give either url or url_env")
        if self.url is not None and _PASSWORD.search(self.url):
            raise ValueError(
                "url must not hold a password: put it into an environment variable and name that in url_env"
            )
        return self


class PredictionLogSource(Shape):
    """What the model itself was asked and what was later reported as the label."""

    kind: Literal["prediction-log"]
    """`prediction-log`."""


Source = Annotated[CsvSource | ParquetSource | SqlSource | PredictionLogSource, Field(discriminator="kind")]


class DataSpec(Shape):
    """Where rows come from and which columns mean what."""

    source: Source
    """Where the rows are read."""
    label: Text
    """Column: what is to be predicted."""
    time: Text | None = None
    """Column: when the prediction is asked for."""
    label_time: Text | None = None
    """Column: when the label becomes known. A row counts once nearly all labels of its age are in."""
    label_delay: Duration | None = None
    """How long after `time` labels are in; a younger row does not count, whether its label is in or not."""
    id: Text | None = None
    """Column that identifies a row; duplicates are an error."""
    exclude: tuple[Text, ...] = ()
    """Columns that are no features."""
    include: tuple[Text, ...] | None = None
    """The features; by default all columns but label, time, label_time, id and those excluded."""
    holdout: Annotated[
        Annotated[Annotated[Number, Field(gt=0, lt=1)], Tag("<share>")] | Annotated[PositiveDuration, Tag("<span>")],
        Discriminator(lambda v: "<share>" if isinstance(v, int | float) else "<span>"),
    ] = 0.2
    """The newest share of the rows, or time span, that is kept from training, for judging."""
    min_rows: PositiveInt = 200
    """A cycle with fewer rows to train on fails."""
    quality: Literal["hold", "warn", "off"] = "hold"
    """What becomes of rows in which something is wrong with the data: `hold` keeps them from training and judging, `warn` only says so.
    `off` does not look."""
    quality_ignore: tuple[Text, ...] = ()
    """Columns in which nothing wrong is looked for."""

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        special = [c for c in (self.label, self.time, self.label_time, self.id) if c is not None]
        if len(set(special)) < len(special):
            raise ValueError("label, time, label_time and id must be different columns")
        if self.time is None and (self.label_time or self.label_delay):
            raise ValueError("label_time and label_delay need time")
        if self.include is not None and self.label in self.include:
            raise ValueError(f"include must not hold the label, but got {self.label!r}")
        both = sorted(set(self.include or ()) & set(self.exclude))
        if both:
            raise ValueError(f"a column is included or excluded, not both, but got {', '.join(both)}")
        return self


# ---------------------------------------------------------------- train, tune
def _named_or_long(value: object) -> object:
    if isinstance(value, str) and not any(character.isdigit() for character in value):
        raise ValueError(f"a window is all, since_change, or a duration such as 30d, but got {value!r}")
    return value


TrainWindow = Annotated[
    Annotated[Literal["all", "since_change"], Tag("<named>")]
    | Annotated[PositiveDuration, BeforeValidator(_named_or_long), Tag("<span>")],
    Discriminator(lambda v: "<named>" if v in ("all", "since_change") else "<span>"),
]


class TrainSpec(Shape):
    """What is fitted: a component family (or several to choose from), or the owner's own code."""

    component: (
        Annotated[
            Annotated[Text, Tag("<one>")] | Annotated[tuple[Text, ...], Field(min_length=1), Tag("<many>")],
            Discriminator(one_or_many),
        ]
        | None
    ) = None
    """A component family such as `sklearn.hist_gradient_boosting`; of several, the search chooses."""
    entrypoint: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] | None = None
    """The owner's function, `module:function`, instead of a component."""
    code: Text | None = None
    """Folder that holds the entrypoint's module."""
    window: (
        Annotated[
            Annotated[TrainWindow, Tag("<one>")]
            | Annotated[tuple[TrainWindow, ...], Field(min_length=1), Tag("<many>")],
            Discriminator(one_or_many),
        ]
        | None
    ) = None
    """Trains on rows newer than this; `all`, the default, on all; `since_change` on those after the change that fired. Of several, the
    search chooses. Without `data.time` one row counts as one second."""
    refit: Flag = False
    """Whether the recipe that passed is fitted once more, on the rows that judged it too, so that what serves knows the newest rows."""
    parameters: Parameters = Field(default_factory=dict)
    """Fixed parameters of the component or entrypoint; not searched."""
    timeout: PositiveDuration = parse_duration("1h")
    """Wall-clock time after which preparing, training or judging is stopped."""
    memory_mb: PositiveInt = 4096
    """Megabytes that such a job may use."""
    seed: Whole = 0
    """Of everything random."""

    @model_validator(mode="after")
    def _component_or_entrypoint(self) -> Self:
        if (self.component is None) == (self.entrypoint is None):
            raise ValueError("give either component or entrypoint")
        if (self.entrypoint is None) != (self.code is None):
            raise ValueError("entrypoint and code (its folder) go together")
        return self

    @property
    def components(self) -> tuple[str, ...]:
        if self.component is None:
            return ()
        return (self.component,) if isinstance(self.component, str) else self.component

    @property
    def windows(self) -> tuple[timedelta | Literal["all", "since_change"], ...]:
        if self.window is None:
            return ()
        return self.window if isinstance(self.window, tuple) else (self.window,)

    @property
    def longest_window(self) -> timedelta | None:
        """None if it has no bound: all rows, or all since a change."""
        spans = [window for window in self.windows if isinstance(window, timedelta)]
        return max(spans) if spans and len(spans) == len(self.windows) else None


class FloatRange(Shape):
    """Numbers between two bounds."""

    low: Number
    """Smallest value."""
    high: Number
    """Largest value."""
    log: Flag = False
    """Whether to search on a logarithmic scale."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        _check_bounds(self)
        return self


class IntRange(Shape):
    """Whole numbers between two bounds."""

    low: Whole
    """Smallest value."""
    high: Whole
    """Largest value."""
    log: Flag = False
    """Whether to search on a logarithmic scale."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        _check_bounds(self)
        return self


def _check_bounds(bounds: FloatRange | IntRange) -> None:
    if bounds.low >= bounds.high:
        raise ValueError(f"low must be less than high, but got {bounds.low:g} and {bounds.high:g}")
    if bounds.log and bounds.low <= 0:
        raise ValueError(f"log: true needs low above 0, but got {bounds.low:g}")


def _space_tag(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "<choices>"
    bounds = [value.get("low"), value.get("high")] if isinstance(value, Mapping) else [value]
    return "<whole>" if isinstance(value, IntRange) or all(type(b) is int for b in bounds) else "<number>"


SearchSpace = Annotated[
    Annotated[IntRange, Tag("<whole>")]
    | Annotated[FloatRange, Tag("<number>")]
    | Annotated[tuple[Scalar, ...], Field(min_length=1), Tag("<choices>")],
    Discriminator(_space_tag),
]


class TuneSpec(Shape):
    """The search. `trials: 0` keeps the component's defaults (and the champion's parameters, when there are any)."""

    trials: Annotated[Whole, Field(ge=0, le=100_000)] = 20
    """How many sets of parameters to try, at most."""
    warm_trials: Annotated[Whole, Field(ge=0, le=100_000)] | None = None
    """The same where there is a champion to start from; by default as many as `trials`."""
    timeout: PositiveDuration = parse_duration("10m")
    """Wall-clock time of the whole search."""
    parallel: Annotated[Whole, Field(ge=1, le=64)] = 1
    """Trials at the same time, each in a process of its own."""
    compute: PositiveDuration | None = None
    """CPU time of all trials together; by default not limited."""
    memory_mb: PositiveInt = 4096
    """Megabytes that the search may use."""
    space: Mapping[str, SearchSpace] = Field(default_factory=dict)
    """Replaces the component's own space, parameter by parameter: `{low, high, log}` or a list of choices."""


class Objective(Shape):
    """What good means."""

    metric: MetricName
    """What the search improves and the dashboard shows."""
    threshold: Annotated[Number, Field(gt=0, lt=1)] = 0.5
    """Probability from which a binary prediction counts as positive."""


# ---------------------------------------------------------------- budget
class Budget(Shape):
    """How much retraining may happen by itself."""

    cycles: PositiveInt = 3
    """Cycles that triggers may open in a period."""
    per: PositiveDuration = parse_duration("7d")
    """The period."""
    compute: PositiveDuration | None = None
    """Computing time of the cycles in a period; by default not limited."""


# ---------------------------------------------------------------- the whole
class Metadata(Shape):
    """Who the model is."""

    name: Name
    """The model's name, unique: a DNS label (RFC 1123), since it becomes part of addresses."""
    labels: Mapping[str, str] = Field(default_factory=dict)
    """For selecting models, such as `team: ops`."""
    annotations: Mapping[str, str] = Field(default_factory=dict)
    """For people and tools; not interpreted."""


class Spec(Shape):
    """What the owner of a model asks for."""

    task: Task
    """`binary`, `multiclass` or `regression`."""
    data: DataSpec
    """Where rows come from and which columns mean what."""
    train: TrainSpec
    """What is fitted."""
    tune: TuneSpec = TuneSpec()
    """The search for parameters."""
    objective: Objective
    """What good means."""
    triggers: TriggerNode = ManualTrigger()
    """When a cycle opens by itself; by default never."""
    cooldown: Duration = parse_duration("12h")
    """Time after a cycle in which triggers open no other."""
    backoff: Annotated[Number, Field(ge=1, le=10)] = 1
    """What the cooldown is multiplied by for each cycle in a row that brought no new champion, three times at most; 1 is no backoff."""
    budget: Budget = Budget()
    """How much retraining may happen by itself."""
    gates: tuple[Gate, ...] = ()
    """What a challenger must pass before it may serve; all of them."""
    approval: Literal["automatic", "required"] = "automatic"
    """`required`: a person must approve a challenger that passed its gates."""
    approval_timeout: PositiveDuration = parse_duration("7d")
    """A cycle not approved by then ends as inconclusive."""
    model: ModelSpec = ModelSpec()
    """Where a version's model lies: inside of its image, or beside."""
    rollout: Rollout = Rollout()
    """How traffic moves to a challenger, and when it is taken back."""
    deploy: Deploy = Deploy()
    """Where versions serve."""
    notify: tuple[Notice, ...] = ()
    """Who is told."""

    @model_validator(mode="after")
    def _metrics_fit_task(self) -> Self:
        fitting = metric_names(self.task)
        wrong = [f"{path}: {name!r}" for path, name in _metrics_named(self) if name not in fitting]
        if wrong:
            raise ValueError(f"must be metrics for {self.task}: {', '.join(fitting)}, but got {', '.join(wrong)}")
        return self

    @model_validator(mode="after")
    def _time_is_known(self) -> Self:
        if self.data.time is not None or isinstance(self.data.source, PredictionLogSource):
            return self
        needing: list[str] = []
        seasonal = any(isinstance(gate, BaselineGate) and gate.baseline == "seasonal_naive" for gate in self.gates)
        needing += ["the baseline seasonal_naive of gates"] if seasonal else []
        if needing:
            raise ValueError(f"data.time must name a column, since {' and '.join(needing)} needs it")
        return self

    @model_validator(mode="after")
    def _labels_come_within_a_rollout(self, info: ValidationInfo) -> Self:
        """Asked of what owners write, not of what is followed already."""
        delay, rollout = self.data.label_delay, self.rollout
        written = info.context is not None
        if written and delay is not None and delay >= rollout.deadline and rollout.min_labelled_rows > 0:
            raise ValueError(
                f"rollout.deadline must be longer than data.label_delay ({spell_duration(delay)}), or no rollout ever sees "
                f"a label, but got {spell_duration(rollout.deadline)}; or ask for no labels by rollout.min_labelled_rows: 0"
            )
        return self


def _metrics_named(spec: Spec) -> list[tuple[str, str]]:
    """Every metric that the policy names, with its place."""
    found = [("objective.metric", spec.objective.metric)]
    for i, gate in enumerate(spec.gates):
        match gate:
            case SlicesGate():
                found.append((f"gates[{i}].slices.metric", gate.slices.metric))
            case AtLeastGate() | AtMostGate() | NoWorseGate() | BetterGate() | BaselineGate():
                found.append((f"gates[{i}].metric", gate.metric))
    for path, leaf in leaves_with_paths(spec.triggers):
        place = spell_path(path)
        match leaf:
            case PerformanceTrigger():
                found.append((f"triggers.{place}.metric", leaf.performance.metric))
            case EstimatedPerformanceTrigger() if leaf.estimated_performance.metric is not None:
                found.append((f"triggers.{place}.metric", leaf.estimated_performance.metric))
            case DriftTrigger() if (
                leaf.drift.only_if
                and leaf.drift.only_if.estimated_performance
                and leaf.drift.only_if.estimated_performance.metric
            ):
                where = f"triggers.{place}.only_if.estimated_performance.metric"
                found.append((where, leaf.drift.only_if.estimated_performance.metric))
    return found


class ModelPolicy(Shape):
    """One model's policy."""

    apiVersion: Literal["ratchet.dev/v1"]  # noqa: N815 - Kubernetes' spelling
    """`ratchet.dev/v1`: the version of this format."""
    kind: Literal["ModelPolicy"]
    """`ModelPolicy`: what the file is."""
    metadata: Metadata
    """Who the model is."""
    spec: Spec
    """What its owner asks for."""

    @property
    def name(self) -> str:
        return self.metadata.name


for _model in (Spec, ModelPolicy):
    _model.model_rebuild()
