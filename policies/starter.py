"""The policy that `ratchet init` writes: complete, commented, and good enough to start with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from policies.durations import parse_duration, spell_duration
from policies.metrics import METRICS, Task

_METRIC = {Task.BINARY: "roc_auc", Task.MULTICLASS: "accuracy", Task.REGRESSION: "mae"}
_COMPONENT = "sklearn.hist_gradient_boosting"
_QUICK_LABELS = timedelta(days=2)
"""Later ones need a longer deadline than the default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Starter:
    """What is known about a model before it has a policy."""

    name: str
    task: Task
    source: Literal["csv", "parquet", "sql", "prediction-log"]
    label: str
    location: str = ""
    """Path of a file or folder; for sql the SQLAlchemy URL. Not used for the prediction log."""
    query: str = ""
    """For sql."""
    time: str | None = None
    label_time: str | None = None
    label_delay: str | None = None
    metric: str | None = None
    """By default one that suits the task."""
    component: str | None = None
    """By default gradient boosting, which takes numbers and categories; for text `sklearn.text_linear`."""
    exclude: tuple[str, ...] = ()


def starter_policy(start: Starter) -> str:
    """The YAML text, which reads back without a problem if the names in `start` are valid.

    Raises ValueError if `metric` is no metric for the task.
    """
    metric = METRICS.get(start.metric or _METRIC[start.task])
    if metric is None or start.task not in metric.tasks:
        raise ValueError(f"metric: must be a metric for {start.task.value}, but got {start.metric!r}")
    drop = "5" if start.task is Task.REGRESSION and metric.name != "r2" else "0.03"
    margin = "1" if drop == "5" else "0.005"
    unit = f"   # in the unit of {_quote(start.label)}: adjust it" if drop == "5" else ""
    return "\n".join(
        [
            "# What ratchet shall do for this model. `ratchet validate FILE` checks it and explains it in words.",
            "apiVersion: ratchet.dev/v1",
            "kind: ModelPolicy",
            f"metadata: {{name: {_quote(start.name)}}}",
            "spec:",
            f"  task: {start.task.value}",
            *_data_lines(start),
            "",
            "  train:",
            f"    component: {start.component or _COMPONENT}",
            *(["    # window: 90d          # train on the newest rows only"] if start.time else []),
            "  tune: {trials: 20, timeout: 10m}",
            f"  objective: {{metric: {metric.name}}}",
            "",
            "  # A cycle (search, train, judge, roll out) opens when any of these holds.",
            "  triggers:",
            "    any:",
            f"      - performance: {{metric: {metric.name}, drop: {drop}, for: 2h, window: 7d}}{unit}",
            "      - drift: {share: 0.5, window: 7d}",
            "      - staleness: 30d",
            "  cooldown: 12h",
            "  budget: {cycles: 3, per: 7d}",
            "",
            "  # What a challenger must pass before it may serve.",
            "  gates:",
            f"    - {{metric: {metric.name}, no_worse_than_champion: {margin}, confidence: 0.95}}{unit}",
            "    - {latency_ms_p95_max: 50}",
            "  approval: automatic      # or: required",
            "",
            "  # How traffic moves to it, and how long it is watched afterwards.",
            "  rollout:",
            "    steps: [shadow: 10m, 5%: 10m, 25%: 30m, 100%]",
            "    bake: 24h",
            *_deadline(start),
            "  deploy: {target: local}",
            "  notify: [{log: info}]",
            "",
        ]
    )


def _data_lines(start: Starter) -> list[str]:
    lines = ["  data:", f"    source: {_source(start)}", f"    label: {_quote(start.label)}"]
    if start.time:
        lines.append(_noted(f"    time: {_quote(start.time)}", "when the prediction is asked for"))
    else:
        lines.append(_noted("    # time: COLUMN", "when the prediction is asked for"))
    if start.label_time:
        lines.append(_noted(f"    label_time: {_quote(start.label_time)}", "when the label becomes known"))
    elif start.label_delay:
        lines.append(_noted(f"    label_delay: {start.label_delay}", "how long after that the label is known"))
    elif start.time:
        lines.append(_noted("    # label_delay: 6h", "how long after that the label is known"))
    if start.exclude:
        lines.append(f"    exclude: [{', '.join(_quote(column) for column in start.exclude)}]")
    else:
        lines.append(_noted("    # exclude: [COLUMN]", "columns that are no features"))
    return lines


def _deadline(start: Starter) -> list[str]:
    """Where labels take days, time for them to come and for enough of them to tell; the default else."""
    delay = parse_duration(start.label_delay) if start.label_delay else timedelta(0)
    if delay <= _QUICK_LABELS:
        return []
    return [_noted(f"    deadline: {spell_duration(3 * delay)}", "labels must have come by then")]


def _noted(line: str, note: str) -> str:
    """The line with its comment in the column where all have theirs."""
    return f"{line:<26} # {note}"


def _source(start: Starter) -> str:
    match start.source:
        case "csv" | "parquet":
            return f"{{kind: {start.source}, path: {_quote(start.location)}}}"
        case "sql":
            return f"{{kind: sql, url: {_quote(start.location)}, query: {_quote(start.query)}}}"
        case "prediction-log":
            return "{kind: prediction-log}"


def _quote(text: str) -> str:
    """As it is if it can only be read as text, else in double quotes."""
    plain = text.replace("_", "a").replace("-", "a").replace(".", "a").replace("/", "a")
    safe = plain.isascii() and plain.isalnum() and text[:1].isalpha()
    reserved = text.lower() in ("true", "false", "null", "yes", "no", "on", "off", "y", "n")
    if safe and not reserved:
        return text
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text) + '"'
