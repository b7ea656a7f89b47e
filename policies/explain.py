"""A policy in words: when each trigger would fire, and what then happens. Pure; `ratchet validate` prints it."""

from __future__ import annotations

from datetime import datetime, timedelta

from policies.cron import parse_cron
from policies.durations import format_duration as span
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
)  # fmt: skip
from policies.metric_shapes import Metric, MetricRule
from policies.rollout_shapes import Rollout, Step
from policies.schema import (
    CsvSource,
    Deploy,
    LogNotice,
    ModelPolicy,
    Notice,
    ParquetSource,
    PredictionLogSource,
    SlackNotice,
    Source,
    Spec,
    SqlSource,
    WebhookNotice,
)  # fmt: skip
from policies.trigger_rules import alert_key
from policies.trigger_shapes import (
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
    ManualTrigger,
    MetricTrigger,
    Performance,
    PerformanceTrigger,
    ScheduleTrigger,
    StalenessTrigger,
    TriggerNode,
    Volume,
    VolumeTrigger,
    children,
)  # fmt: skip


def explain(policy: ModelPolicy, *, now: datetime | None = None) -> list[str]:
    """Lines for a person, indented by two spaces a level; with `now` (UTC), also when schedules are next due."""
    spec = policy.spec
    task = f"{spec.task.value} model" if spec.task != "regression" else "regression"
    return [
        f"{policy.name}: a {task} of {spec.data.label!r}, judged by {spec.objective.metric}.",
        *_data(spec),
        *_training(spec),
        *_triggers(spec.triggers, policy.name, now),
        _limits(spec),
        *_gates(spec.gates),
        *_approval(spec),
        *_rollout(spec),
        *_notices(spec.notify),
    ]


# ---------------------------------------------------------------- data and training
def _data(spec: Spec) -> list[str]:
    data = spec.data
    if data.label_time is not None:
        matured = f" A row counts once its label is known, at {data.label_time!r}."
    elif data.label_delay is not None:
        matured = f" A row counts once its label is known, {span(data.label_delay)} after {data.time!r}."
    else:
        matured = ""
    kept = span(data.holdout) if isinstance(data.holdout, timedelta) else f"{100 * data.holdout:g} %"
    return [
        f"Reads {_source(data.source)}.{matured}",
        f"Keeps the newest {kept} of the rows for judging; needs at least {data.min_rows} rows to train on.",
    ]


def _source(source: Source) -> str:
    match source:
        case CsvSource() | ParquetSource():
            return f"the {source.kind} data in {source.path}"
        case SqlSource():
            return f"an SQL query on {source.url or f'the database named by ${source.url_env}'}"
        case PredictionLogSource():
            return "the model's own prediction log"


def _window(window: timedelta | str, *, timed: bool) -> str:
    if isinstance(window, timedelta):
        return f"rows of the last {span(window)}" if timed else f"the newest {window.total_seconds():,.0f} rows"
    return "all rows" if window == "all" else "the rows since the change"


def _training(spec: Spec) -> list[str]:
    train, tune = spec.train, spec.tune
    what = " or ".join(train.components) or f"{train.entrypoint} from the folder {train.code}"
    timed = spec.data.time is not None or isinstance(spec.data.source, PredictionLogSource)
    rows = " or ".join(_window(window, timed=timed) for window in train.windows) or "all rows"
    warm = f" ({tune.warm_trials} where it starts from a champion)" if tune.warm_trials is not None else ""
    at_once = f", {tune.parallel} at a time" if tune.parallel > 1 else ""
    search = (
        f"after a search of at most {tune.trials} trials{warm} or {span(tune.timeout)}{at_once}"
        if tune.trials or tune.warm_trials
        else "without a search"
    )
    again = " What passes its gates is fitted once more with the rows that judged it." if train.refit else ""
    return [f"Trains {what} on {rows}, {search}.{again}"]


# ---------------------------------------------------------------- triggers
def _triggers(node: TriggerNode, model: str, now: datetime | None) -> list[str]:
    if isinstance(node, ManualTrigger):
        return ["No cycle opens by itself, only by `ratchet trigger`."]
    if not children(node):
        return [f"A cycle opens when {_leaf(node, model, now)}."]
    return [f"A cycle opens when {_heads(node)}:", *_below(node, "  ", model, now)]


def _heads(node: TriggerNode) -> str:
    match node:
        case AnyOf():
            return "any of these holds"
        case AllOf():
            return "all of these hold"
        case AtLeast():
            return f"at least {node.at_least} of these {len(node.of)} hold"
        case _:
            raise AssertionError(node)


def _below(node: TriggerNode, indent: str, model: str, now: datetime | None) -> list[str]:
    lines = []
    for _, child in children(node):
        if children(child):
            lines += [f"{indent}- {_heads(child)}:", *_below(child, indent + "  ", model, now)]
        else:
            lines.append(f"{indent}- {_leaf(child, model, now)}")
    return lines


def _leaf(leaf: TriggerNode, model: str, now: datetime | None) -> str:
    match leaf:
        case PerformanceTrigger():
            return _performance(leaf.performance)
        case CalibrationTrigger():
            return _calibration(leaf.calibration)
        case DriftTrigger():
            return _drift(leaf.drift)
        case EstimatedPerformanceTrigger():
            return _estimated(leaf.estimated_performance)
        case ScheduleTrigger():
            due = parse_cron(leaf.schedule.cron).next_after(now) if now else None
            coming = f" (next at {due:%Y-%m-%d %H:%M})" if due else ""
            return f"the schedule {leaf.schedule.cron!r} is due, UTC{coming}"
        case StalenessTrigger():
            return f"nothing newer was trained on, and no cycle closed, for {span(leaf.staleness.age)}"
        case VolumeTrigger():
            if leaf.volume.growth is not None:
                return (
                    f"with the labels that have matured since, there are {leaf.volume.growth:g} times the rows that it was "
                    f"trained on{_until(leaf.volume)}"
                )
            return f"{leaf.volume.labelled_rows} labelled rows have matured since the training"
        case MetricTrigger():
            return _metric(leaf.metric)
        case AlertTrigger():
            held = f" for {span(leaf.alert.for_)}" if leaf.alert.for_ else ""
            return f"Alertmanager tells that the alert {alert_key(leaf.alert, model)} fires{held}, once each time"
        case _:
            return "never by itself (manual)"


def _until(rule: Volume) -> str:
    return f", and those were fewer than {rule.until_rows}" if rule.until_rows is not None else ""


def _performance(rule: Performance) -> str:
    if rule.below is not None:
        bad = f"is below {rule.below:g}"
    elif rule.above is not None:
        bad = f"is above {rule.above:g}"
    else:
        by = f" by {rule.drop:g} or more" if rule.drop else ""
        bad = f"is worse{by} than when the champion was promoted"
    if rule.confidence is not None:
        bad += f", beyond chance ({100 * rule.confidence:g} % sure)"
    hold = f", without a break for {span(rule.for_)}" if rule.for_ else ""
    return f"{rule.metric} over the last {span(rule.window)} (at least {rule.min_rows} rows with labels) {bad}{hold}"


def _calibration(rule: Calibration) -> str:
    return (
        f"labels deviate from what the champion's answers promise over the last {span(rule.window)} "
        f"(at least {rule.min_rows} rows with labels), by {rule.standard_errors:g} standard errors or more"
    )


def _drift(rule: Drift) -> str:
    windows = f"in {rule.for_} windows running, each" if rule.for_ > 1 else "in a window"
    match rule.threshold:
        case "evidently":
            beyond = ""
        case "calibrated":
            beyond = ", beyond what the version's first quiet windows showed"
        case distance:
            beyond = f", by a distance of {distance:g} or more"
    others = []
    if rule.only_if is not None and rule.only_if.estimated_performance is not None:
        others.append(_estimated(rule.only_if.estimated_performance))
    if rule.only_if is not None and rule.only_if.calibration is not None:
        others.append(_calibration(rule.only_if.calibration))
    also = f", while {' and '.join(others)}" if others else ""
    until = f", if the champion was trained on fewer than {rule.until_rows} rows" if rule.until_rows is not None else ""
    return (
        f"{100 * rule.share:g} % of the features or more drift {windows} of {span(rule.window)} "
        f"(at least {rule.min_rows} rows){beyond}{until}{also}"
    )


def _estimated(rule: EstimatedPerformance) -> str:
    metric = rule.metric or "the objective's metric"
    return (
        f"{metric}, as estimated over the last {span(rule.window)}, is worse by {rule.drop:g} or more than at promotion"
    )


def _metric(rule: MetricRule) -> str:
    limit = f"above {rule.above:g}" if rule.above is not None else f"below {rule.below:g}"
    counted = f" (at least {rule.min_count} counted)" if rule.min_count else ""
    hold = f", without a break for {span(rule.for_)}" if isinstance(rule, Metric) and rule.for_ else ""
    source = "the metric" if rule.name else "the PromQL"
    return f"{source} {rule.label}{counted} is {limit}, {100 * rule.confidence:g} % sure of a share{hold}"


def _limits(spec: Spec) -> str:
    budget = spec.budget
    compute = f", {span(budget.compute)} of computing" if budget.compute else ""
    rest = f"then triggers rest for {span(spec.cooldown)} after each" if spec.cooldown else "one after the other"
    if spec.cooldown and spec.backoff > 1:
        rest += f", {spec.backoff:g} times as long after each in a row that brings nothing"
    return f"Of such cycles there are at most {budget.cycles} in {span(budget.per)}{compute}; {rest}."


# ---------------------------------------------------------------- gates, approval, rollout
def _gates(gates: tuple[Gate, ...]) -> list[str]:
    if not gates:
        return ["There are no gates: every challenger that can be trained and loaded passes."]
    return ["A challenger must pass every gate, or the champion stays:", *(f"  - {_gate(gate)}" for gate in gates)]


def _gate(gate: Gate) -> str:
    match gate:
        case AtLeastGate():
            return f"{gate.metric} at least {gate.at_least:g} on the rows kept for judging"
        case AtMostGate():
            return f"{gate.metric} at most {gate.at_most:g} on the rows kept for judging"
        case NoWorseGate():
            return f"{gate.metric} {_no_worse(gate)}"
        case BetterGate():
            return f"{gate.metric} better than the champion's {_beyond(gate.better_than_champion, gate.confidence)}"
        case BaselineGate():
            return f"{gate.metric} better than {_BASELINES[gate.baseline]} {_beyond(gate.margin, gate.confidence)}"
        case SlicesGate():
            return f"{gate.slices.metric} {_no_worse(gate.slices)}, for each {' and '.join(gate.slices.by)}"
        case LatencyGate():
            return f"95 % of single answers within {gate.latency_ms_p95_max:g} ms"
        case SizeGate():
            return f"files of at most {gate.size_mb_max:g} MB"


_BASELINES = {
    "last_label": "that of 'same as last label'",
    "majority": "that of always the commonest class, or the average",
    "seasonal_naive": "that of 'same as a day (or a week) before'",
    "best": "that of every predictor without a model",
}


def _beyond(margin: float, confidence: float) -> str:
    by = f"by more than {margin:g}, " if margin else ""
    return f"{by}at {100 * confidence:g} % confidence"


def _no_worse(rule: NoWorseGate | SliceRule) -> str:
    return f"no worse than the champion's by more than {rule.no_worse_than_champion:g}, at {100 * rule.confidence:g} % confidence"


def _approval(spec: Spec) -> list[str]:
    if spec.approval == "automatic":
        return []
    return [f"A person must then approve it within {span(spec.approval_timeout)}, or the champion stays."]


def _rollout(spec: Spec) -> list[str]:
    rollout = spec.rollout
    return [
        f"Traffic moves to it in steps: {', then '.join(_step(step) for step in rollout.steps)}.",
        f"It is taken back if it is shown to be worse by {rollout.margin:g} (by chance in at most "
        f"{100 * rollout.alpha:g} % of rollouts), if more than {100 * rollout.max_error_share:g} % of its answers fail, "
        f"or if it is not through after {span(rollout.deadline)}.",
        f"It gets no more traffic while it is more than {rollout.max_slowdown:g} times as slow as fresh replicas of the champion.",
        *_rollout_metrics(rollout),
        _promotion(rollout),
        _bake(rollout),
        f"Each version serves on the {_target(spec.deploy)}: {_processes(spec.deploy)}.",
        *_image(spec),
    ]


def _rollout_metrics(rollout: Rollout) -> list[str]:
    if not rollout.metrics:
        return []
    rules = [f"  - {_metric(rule)}" for rule in rollout.metrics]
    return ["It is taken back, too, if one of these is shown; while one is unknown, it gets no more traffic:", *rules]


def _promotion(rollout: Rollout) -> str:
    if rollout.min_labelled_rows == 0:
        return "It is promoted without a look at its labelled answers (min_labelled_rows: 0)."
    return f"It is promoted once it is shown to be no worse by {rollout.margin:g} on live, labelled answers."


def _bake(rollout: Rollout) -> str:
    watched = f"After promotion it is watched for {span(rollout.bake)}, ready to be rolled back"
    if not rollout.kept_back:
        return f"{watched}."
    return f"{watched}; {rollout.kept_back:g} % of the traffic stays with the champion before, to compare with."


def _target(deploy: Deploy) -> str:
    return "daemon's default target" if deploy.target is None else f"{deploy.target} target"


def _processes(deploy: Deploy) -> str:
    replicas = f"{deploy.replicas} replicas" if deploy.replicas > 1 else "1 replica"
    workers = f"{deploy.workers} workers" if deploy.workers > 1 else "1 worker"
    most = [f"{deploy.memory_mb} MB of memory"] if deploy.memory_mb is not None else []
    most += [f"{deploy.cpus:g} processor{'' if deploy.cpus == 1 else 's'}"] if deploy.cpus is not None else []
    return f"{replicas} of {workers}" + (f", each with at most {' and '.join(most)}" if most else "")


def _image(spec: Spec) -> list[str]:
    deploy, told = spec.deploy, []
    if deploy.base_image is not None:
        told.append(f"Its image stands on {deploy.base_image}.")
    if deploy.requirements is not None:
        told.append(f"The packages of {deploy.requirements} are a layer of its image.")
    match spec.model.placement:
        case "volume":
            told.append("The model is not in the image: it lies once on each machine, and all its replicas share it.")
        case "pull":
            told.append(
                "The model is not in the image: a replica fetches it when it starts, and keeps it for the next."
            )
        case "image":
            pass
    return told


def _step(step: Step) -> str:
    what = "a copy of the traffic" if step.shadow else f"{step.weight:g} %"
    return f"{what} for {span(step.hold)}" if step.hold else what


def _notices(notices: tuple[Notice, ...]) -> list[str]:
    told = []
    for notice in notices:
        match notice:
            case SlackNotice():
                told.append(f"Slack {notice.slack}")
            case WebhookNotice():
                told.append(f"the webhook {_without_parameters(notice.webhook)}")
            case LogNotice():
                told.append(f"the log ({notice.log})")
    return [f"Told of what happens: {', '.join(told)}."] if told else []


def _without_parameters(url: str) -> str:
    """Parameters of a webhook's URL are often secret.

    >>> _without_parameters("https://host/hook?token=1"), _without_parameters("ops")
    ('https://host/hook?…', 'ops')
    """
    place, mark, _ = url.partition("?")
    return f"{place}?…" if mark else place
