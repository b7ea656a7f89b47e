"""The policy that `ratchet init` writes: complete, commented, and good enough to start with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

from policies.durations import LONGEST, about, spell_duration
from policies.metrics import METRICS, Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbers:
    """What every first policy starts with, whatever the data; spans are in rows. They come of replays of recorded streams
    (docs/decisions/0016) and are not tuned to any one of them."""

    holdout: int = 500
    windows: tuple[int, ...] = (2000, 8000)
    trials: int = 12
    warm_trials: int = 5
    parallel: int = 2
    calibration: tuple[int, ...] = (250, 500, 1000)
    calibration_errors: float = 5.2
    drift_share: float = 0.5
    drift_window: int = 500
    drift_errors: float = 1.6
    growth: float = 2
    until_rows: int = 50_000
    cooldown: int = 200
    backoff: float = 1.5
    gate_margin: float = 0.03
    """In the metric; for an error in the label's unit, this share of twice the label's mean deviation."""
    gate_confidence: float = 0.6
    gate_min_rows: int = 50
    """Soon after a change there are not many rows of the new world to judge on."""
    bake: int = 100
    deadline: int = 750
    min_labelled_rows: int = 50
    rollout_margin: float = 0.03
    """In Brier's score."""
    rollout_margin_regression: float = 0.05
    """In standard deviations of the label."""
    components: Mapping[Task, tuple[str, ...]] = field(
        default_factory=lambda: {
            Task.BINARY: ("sklearn.blend", "sklearn.tree_blend", "sklearn.logistic_regression"),
            Task.MULTICLASS: ("sklearn.extra_trees", "sklearn.logistic_regression"),
            Task.REGRESSION: ("sklearn.tree_blend", "sklearn.hist_gradient_boosting"),
        }
    )
    amount_components: tuple[str, ...] = ("sklearn.poisson_boosting", "sklearn.tree_blend")
    text_component: str = "sklearn.text_linear"
    metrics: Mapping[Task, str] = field(
        default_factory=lambda: {Task.BINARY: "roc_auc", Task.MULTICLASS: "accuracy", Task.REGRESSION: "mae"}
    )
    lags: int = 3
    """A rollout may take this many times as long as labels take."""


NUMBERS = Numbers()
_IN_LABEL_UNIT = ("mae", "rmse")
_NOTE_COLUMN = 44
_UNITS = ((86_400, "d"), (3600, "h"), (60, "m"))


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
    label_delay: timedelta | None = None
    metric: str | None = None
    """By default one that suits the task."""
    text: bool = False
    """Whether a feature is free text."""
    exclude: Mapping[str, str] = field(default_factory=dict)
    """Column that is no feature → why, for a comment; empty if nobody asks."""
    doubtful: Mapping[str, str] = field(default_factory=dict)
    """Column that may give the label away → what speaks for it."""
    row_s: float = 1.0
    """Seconds from one row to the next, typically; without a time a row counts as one second."""
    arrivals: bool = True
    """Whether the time counts rows rather than being a clock: spans are then in seconds, however long."""
    label_lag: timedelta = timedelta(0)
    """How long most labels take to come."""
    spread: float | None = None
    """Mean absolute deviation of a label that is a quantity."""
    amounts: bool = False
    """Whether such a label is never negative and has a long tail, as counts and prices have."""


def starter_policy(start: Starter, numbers: Numbers = NUMBERS) -> str:
    """The YAML text, which reads back without a problem if the names in `start` are valid.

    Raises ValueError if `metric` is no metric for the task.
    """
    metric = METRICS.get(start.metric or numbers.metrics[start.task])
    if metric is None or start.task not in metric.tasks:
        raise ValueError(f"metric: must be a metric for {start.task.value}, but got {start.metric!r}")
    return "\n".join(
        [
            "# What ratchet shall do for this model. `ratchet validate FILE` checks it and says it in words;",
            "# `ratchet backtest FILE --data DATA` plays it on what was recorded.",
            *_about_spans(start),
            "apiVersion: ratchet.dev/v1",
            "kind: ModelPolicy",
            f"metadata: {{name: {_quote(start.name)}}}",
            "spec:",
            f"  task: {start.task.value}",
            *_data_lines(start, numbers),
            "",
            "  # What is fitted: the search chooses the family and how far back it learns.",
            *_training_lines(start, numbers),
            f"  objective: {{metric: {metric.name}}}",
            "",
            "  # A cycle (search, train, judge, roll out) opens when any of these holds.",
            *_trigger_lines(start, numbers),
            "",
            "  # What a challenger must pass before it may serve.",
            *_gate_lines(start, metric.name, numbers),
            "",
            "  # It answers in shadow until it is shown to be no worse, serves, and is watched.",
            *_rollout_lines(start, numbers),
            "  deploy: {target: local}",
            "  notify: [{log: info}]",
            "",
        ]
    )


def _training_lines(start: Starter, numbers: Numbers) -> list[str]:
    components = (numbers.text_component,) if start.text else numbers.components[start.task]
    if start.amounts and not start.text:
        components = numbers.amount_components
    spans = ", ".join(_span(start, rows) for rows in numbers.windows)
    trials = f"trials: {numbers.trials}, warm_trials: {numbers.warm_trials}, parallel: {numbers.parallel}, timeout: 10m"
    return [
        "  train:",
        f"    component: [{', '.join(components)}]",
        _noted(f"    window: [all, {spans}, since_change]", " and ".join(f"{rows:,}" for rows in numbers.windows) + " rows"),
        _noted("    refit: true", "what passed learns the rows that judged it, too"),
        f"  tune: {{{trials}}}",
    ]  # fmt: skip


def _trigger_lines(start: Starter, numbers: Numbers) -> list[str]:
    rule = f"standard_errors: {numbers.calibration_errors:g}, window: "
    calibration = [f"      - calibration: {{{rule}{_span(start, rows)}}}" for rows in numbers.calibration]
    width = max(map(len, calibration))
    window = _span(start, numbers.drift_window)
    also = f"calibration: {{standard_errors: {numbers.drift_errors:g}, window: {window}}}"
    until = f"until_rows: {numbers.until_rows}"
    drift = f"      - drift: {{share: {numbers.drift_share:g}, window: {window}, {until}, only_if: {{{also}}}}}"
    return [
        "  triggers:",
        "    any:",
        *(_noted(line.ljust(width), _rows(rows)) for line, rows in zip(calibration, numbers.calibration, strict=True)),
        f"      - volume: {{growth: {numbers.growth:g}, until_rows: {numbers.until_rows}}} # times the rows that it learnt from",
        drift,
        _noted(f"  cooldown: {_span(start, numbers.cooldown)}", _rows(numbers.cooldown)),
        _noted(f"  backoff: {numbers.backoff:g}", "the cooldown grows so while cycles bring nothing"),
        _noted("  budget: {cycles: 100000, per: 365d}", "the cooldown is the bound; lower it to spare machines"),
    ]


def _gate_lines(start: Starter, metric: str, numbers: Numbers) -> list[str]:
    margin, unit = _margin(start, metric, numbers)
    gate = f"metric: {metric}, no_worse_than_champion: {margin}, confidence: {numbers.gate_confidence:g}"
    gate += f", min_rows: {numbers.gate_min_rows}"
    return [
        "  gates:",
        _noted(f"    - {{{gate}}}", unit),
        "    # - {latency_ms_p95_max: 50}",
        _noted("  approval: automatic", "or: required"),
    ]


def _rollout_lines(start: Starter, numbers: Numbers) -> list[str]:
    regression = start.task is Task.REGRESSION
    lag_s = max(start.label_lag, start.label_delay or timedelta(0)).total_seconds()
    bake = _spelled(start, numbers.bake * start.row_s + lag_s)
    deadline = _spelled(start, max(numbers.deadline * start.row_s, numbers.lags * lag_s))
    watched = _rows(numbers.bake) + (", and until their labels are in" if lag_s else "")
    return [
        "  rollout:",
        "    steps: [shadow: 0s, 100%: 0s]",
        _noted(f"    bake: {bake}", watched),
        _noted(f"    deadline: {deadline}", "not shown by then: the champion stays"),
        f"    min_labelled_rows: {numbers.min_labelled_rows}",
        _noted(
            f"    margin: {numbers.rollout_margin_regression:g}"
            if regression
            else f"    margin: {numbers.rollout_margin:g}",
            "of the label's standard deviation" if regression else "of Brier's score",
        ),
        _noted("    holdback: 2%", "of the traffic stays with the old champion while the new one is watched"),
    ]


def _about_spans(start: Starter) -> list[str]:
    if start.time is None and start.source in ("csv", "parquet"):
        return ["# Rows have no time: their order is time, and each counts as one second."]
    if start.arrivals:
        return [_comment(f"# {start.time} counts arrivals: one is read as one second.")] if start.time else []
    return [f"# Rows come about every {_pace_words(start.row_s)}; spans are numbers of rows at that pace."]


def _pace_words(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else about(timedelta(seconds=seconds))


def _data_lines(start: Starter, numbers: Numbers) -> list[str]:
    lines = ["  data:", f"    source: {_source(start)}", f"    label: {_quote(start.label)}"]
    if start.time:
        lines.append(_noted(f"    time: {_quote(start.time)}", "when the prediction is asked for"))
    else:
        lines.append(_noted("    # time: COLUMN", "when the prediction is asked for"))
    if start.label_time:
        lines.append(_noted(f"    label_time: {_quote(start.label_time)}", "when the label becomes known"))
    elif start.label_delay:
        lines.append(
            _noted(f"    label_delay: {spell_duration(start.label_delay)}", "how long after that the label is known")
        )
    elif start.time:
        lines.append(_noted("    # label_delay: 6h", "how long after that the label is known"))
    if start.exclude:
        lines.append(_noted("    exclude:", "columns that are no features"))
        lines += [
            _noted(f"      - {_quote(column)}", why) if why else f"      - {_quote(column)}"
            for column, why in start.exclude.items()
        ]
    else:
        lines.append(_noted("    # exclude: [COLUMN]", "columns that are no features"))
    lines += [
        _comment(f"    # exclude {_quote(column)} too, if it is known only when the label is: it {why}")
        for column, why in start.doubtful.items()
    ]
    lines.append(
        _noted(f"    holdout: {_span(start, numbers.holdout)}", f"{_rows(numbers.holdout)}, the newest, to judge on")
    )
    return lines  # fmt: skip


def _margin(start: Starter, metric: str, numbers: Numbers) -> tuple[str, str]:
    """How much worse still passes, and the comment on it."""
    if metric not in _IN_LABEL_UNIT or not numbers.gate_margin:
        return f"{numbers.gate_margin:g}", ""
    unit = f"in the unit of {_quote(start.label)}"
    if start.spread is None:
        return "1", f"{unit}: adjust it"
    return _plain(2 * numbers.gate_margin * start.spread), f"{unit}, where {start.spread:.3g} is the mean deviation"


def _plain(value: float) -> str:
    """To two digits, without an exponent.

    >>> _plain(12345.6), _plain(0.00123)
    ('12000', '0.0012')
    """
    digits = 1 - math.floor(math.log10(value))
    return f"{round(value, digits):.{max(digits, 0)}f}"


def _span(start: Starter, rows: int) -> str:
    return _spelled(start, rows * start.row_s)


def _spelled(start: Starter, seconds: float) -> str:
    """In seconds where the time counts rows; else in the largest unit of which it is ten or more, to the nearest whole.

    >>> _spelled(Starter(name="m", task=Task.BINARY, source="csv", label="y", arrivals=False), 2000 * 3600.0)
    '83d'
    """
    seconds = min(seconds, LONGEST.total_seconds())
    if not start.arrivals:
        for unit_s, name in _UNITS:
            if seconds >= 10 * unit_s:
                return f"{round(seconds / unit_s)}{name}"
    return f"{round(seconds)}s" if seconds >= 10 or seconds == round(seconds) else f"{max(round(seconds, 2), 0.01):g}s"


def _rows(count: int) -> str:
    return f"about {count:,} rows"


def _noted(line: str, note: str) -> str:
    """The line with its comment, in the column where all that are short enough have theirs."""
    return _comment(f"{line:<{_NOTE_COLUMN}} # {note}") if note else line


def _comment(line: str) -> str:
    """One line, whatever names it quotes hold."""
    return "".join(c if c.isprintable() else " " for c in line)


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
