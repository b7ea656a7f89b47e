"""What each kind of trigger asks of the facts: one small pure function a kind.

How their answers combine, and what is remembered between looks, is explained in `policies.triggers`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from statistics import NormalDist
from typing import Any

from policies.cron import parse_cron
from policies.durations import about
from policies.metric_rules import CLOCK_SKEW, judge
from policies.metric_shapes import Metric
from policies.metrics import METRICS
from policies.signals import AlertSignal, Signal, SignalKind, SignalQuery
from policies.trigger_shapes import (
    Alert,
    AlertTrigger,
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
    Schedule,
    ScheduleTrigger,
    Staleness,
    StalenessTrigger,
    TriggerNode,
    Volume,
    VolumeTrigger,
    trigger_leaves,
)

_DOUBLINGS_MAX = 10


class TriggerState(StrEnum):
    FIRED = "fired"
    QUIET = "quiet"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True, slots=True)
class TriggerFacts:
    """All that a look at the triggers of one model rests on. Datetimes are UTC-aware."""

    now: datetime
    since: datetime
    """When the last cycle closed, or the model was created: schedules, staleness and counts start here."""
    signals: Mapping[str, Signal] = field(default_factory=dict)
    """By `SignalQuery.key`."""
    baselines: Mapping[str, float] = field(default_factory=dict)
    """Metric → score of the champion when it was promoted."""
    baseline_rows: int | None = None
    """Rows on which the champion was scored then; None if that is not known."""
    objective: str = ""
    """The metric that is meant where a trigger names none."""
    fruitless: int = 0
    """Cycles in a row that brought no new champion."""
    trained_rows: int | None = None
    """Rows that the champion was trained on; None if that is not known."""
    trained_to: datetime | None = None
    """Time of the champion's newest training row, where rows have times."""
    alerts: Mapping[str, AlertSignal] = field(default_factory=dict)
    """By `alert_key`."""
    model: str = ""
    """Name of the model, which alerts carry as a label."""
    opened_at: datetime | None = None
    """When the last cycle opened: alerts that were heard of before then have had their cycle."""
    memory: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What the last look left, by trigger id."""
    max_age: timedelta = timedelta(days=1)
    """Older signals are stale, which is unknown."""

    def __post_init__(self) -> None:
        assert all(
            moment is None or moment.tzinfo for moment in (self.now, self.since, self.trained_to, self.opened_at)
        ), self


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What one leaf says."""

    state: TriggerState
    sentence: str
    memory: Mapping[str, Any] = field(default_factory=dict)
    """JSON for the next look; empty where nothing needs to be remembered."""
    next_at: datetime | None = None
    """Earliest moment at which time alone may fire it."""
    changed_at: datetime | None = None
    """Since when the score is likely to be worse than before."""


def query_of(leaf: TriggerNode) -> SignalQuery | None:
    """What must be measured for a leaf; None for those that look at the clock only, or do nothing."""
    match leaf:
        case PerformanceTrigger(performance=rule):
            return SignalQuery(
                kind=SignalKind.PERFORMANCE, metric=rule.metric, window=rule.window, min_rows=rule.min_rows
            )
        case DriftTrigger(drift=drift):
            threshold = None if drift.threshold == "evidently" else drift.threshold
            return SignalQuery(kind=SignalKind.DRIFT, window=drift.window, min_rows=drift.min_rows, threshold=threshold)
        case CalibrationTrigger(calibration=rule):
            return SignalQuery(kind=SignalKind.CALIBRATION, window=rule.window, min_rows=rule.min_rows)
        case EstimatedPerformanceTrigger(estimated_performance=estimate):
            return SignalQuery(
                kind=SignalKind.ESTIMATED_PERFORMANCE,
                metric=estimate.metric,
                window=estimate.window,
                min_rows=estimate.min_rows,
            )
        case VolumeTrigger():
            return SignalQuery(kind=SignalKind.VOLUME)
        case _:
            return None


def queries_of(leaf: TriggerNode) -> list[SignalQuery]:
    """The leaf's own query and that of its filter, where it has them."""
    leaves = [leaf, *filters_of(leaf)]
    return [query for query in map(query_of, leaves) if query is not None]


def filters_of(leaf: TriggerNode) -> list[TriggerNode]:
    """What must hold besides, as a leaf of its own."""
    if not isinstance(leaf, DriftTrigger) or leaf.drift.only_if is None:
        return []
    asked = leaf.drift.only_if
    found: list[TriggerNode] = []
    if asked.estimated_performance is not None:
        found.append(EstimatedPerformanceTrigger(estimated_performance=asked.estimated_performance))
    if asked.calibration is not None:
        found.append(CalibrationTrigger(calibration=asked.calibration))
    return found


def look_at(leaf: TriggerNode, facts: TriggerFacts, memory: Mapping[str, Any]) -> Look:
    """One look at one leaf; `memory` is what its last look left."""
    match leaf:
        case ScheduleTrigger():
            return _schedule(leaf.schedule, facts)
        case StalenessTrigger():
            return _staleness(leaf.staleness, facts)
        case ManualTrigger():
            return _quiet("fires only by hand")
        case AlertTrigger():
            return _alert(leaf.alert, facts)
        case MetricTrigger():
            return _metric(leaf.metric, facts, memory)
        case DriftTrigger(drift=rule) if rule.only_if is not None:
            bare = DriftTrigger(drift=rule.model_copy(update={"only_if": None}))
            return _filtered(look_at(bare, facts, memory), [look_at(other, facts, {}) for other in filters_of(leaf)])
    query = query_of(leaf)
    assert query is not None, leaf
    subject = _subject(query, facts)
    signal = facts.signals.get(query.key)
    value, reason = _usable(signal, facts)
    if signal is None or value is None:
        return _unknown(f"{subject} is unknown: {reason}", memory=memory)
    match leaf:
        case PerformanceTrigger():
            look = _performance(leaf.performance, query.key, value, signal, facts, memory)
            return replace(look, changed_at=_since(leaf.performance.window, look, signal))
        case CalibrationTrigger():
            look = _calibration(leaf.calibration, value, signal)
            return replace(look, changed_at=_since(leaf.calibration.window, look, signal))
        case DriftTrigger():
            return _drift(leaf.drift, query.key, value, signal, facts, memory)
        case EstimatedPerformanceTrigger():
            return _estimated(leaf.estimated_performance, value, signal, facts)
        case VolumeTrigger():
            return _volume(leaf.volume, value, facts)
        case _:
            raise AssertionError(f"{type(leaf).__name__} is not a leaf")


def _subject(query: SignalQuery, facts: TriggerFacts) -> str:
    match query.kind:
        case SignalKind.DRIFT:
            return "drift"
        case SignalKind.CALIBRATION:
            return "whether answers keep what they promise"
        case SignalKind.VOLUME:
            return "the number of new labelled rows"
        case SignalKind.ESTIMATED_PERFORMANCE:
            return f"estimated {query.metric or facts.objective}"
        case _:
            return query.metric or query.kind.value


def _filtered(look: Look, others: list[Look]) -> Look:
    """Both, in Kleene's logic; what the first remembers is kept whatever the others say."""
    speaking = [look, *others]
    for state in (TriggerState.QUIET, TriggerState.UNKNOWN):
        decisive = [one for one in speaking if one.state is state]
        if decisive:
            held = [one.sentence for one in speaking if one.state is TriggerState.FIRED]
            words = ", but ".join(["; ".join(held)] * bool(held) + ["; ".join(one.sentence for one in decisive)])
            return replace(look, state=state, sentence=words)
    return replace(look, sentence="; ".join(one.sentence for one in speaking))


def _usable(signal: Signal | None, facts: TriggerFacts) -> tuple[float | None, str]:
    """The value of a signal, or why there is none that may be used."""
    if signal is None:
        return None, "not measured yet"
    if signal.value is None:
        return None, signal.reason or "no value"
    if not math.isfinite(signal.value):
        return None, f"measured {signal.value}"
    age = facts.now - signal.observed_at
    if age > facts.max_age:
        return None, f"measured {about(age)} ago, more than {about(facts.max_age)}"
    if age < -CLOCK_SKEW:
        return None, f"measured {about(-age)} in the future, so a clock is wrong"
    return signal.value, ""


# ---------------------------------------------------------------- performance
def _performance(
    rule: Performance, key: str, value: float, signal: Signal, facts: TriggerFacts, memory: Mapping[str, Any]
) -> Look:
    said = ("below", "above", "drop", "confidence")
    limit = " ".join(f"{k} {getattr(rule, k):g}" for k in said if getattr(rule, k) is not None)
    baseline = facts.baselines.get(rule.metric, math.nan)
    if rule.drop is not None and not math.isfinite(baseline):
        return _unknown(f"{rule.metric} is {_number(value)}, but its score at promotion is unknown", memory=memory)
    then = _then(rule, value, baseline, signal, facts)
    bad, words = _compare(rule, value, then)
    counted = f"({signal.rows} rows)"
    if not bad:
        return _quiet(f"{words} {counted}")
    if rule.confidence is not None:
        if signal.stderr is None or not math.isfinite(signal.stderr):
            return _unknown(f"{words}, but how much of that is chance is unknown {counted}", memory=memory)
        errors = _errors_beyond(rule, value, then, signal.stderr, signal.rows)
        needed = NormalDist().inv_cdf(rule.confidence)
        words = f"{words}, {errors:.1f} standard errors ({needed:.1f} needed)"
        if errors < needed:
            return _quiet(f"{words} {counted}")
    return _lasting(rule.for_, f"{key} {limit}", words, facts, memory, counted=f" {counted}")


def _lasting(
    span: timedelta, rule: str, words: str, facts: TriggerFacts, memory: Mapping[str, Any], *, counted: str = ""
) -> Look:
    """What is bad now fires once it has been so for the span without a break; `rule` is what the memory belongs to."""
    if not span:
        return _fired(f"{words}{counted}")
    kept = _recall(memory, rule, facts)
    start = _moment(kept.get("since"))
    if start is None or start > facts.now:
        start = facts.now
    held = facts.now - start
    remember = _remember(rule, facts, since=start.isoformat())
    if held >= span:
        return _fired(f"{words} since {about(held)}{counted}", memory=remember)
    text = f"{words} since {about(held)}, fires after {about(span)}{counted}"
    return _quiet(text, memory=remember, next_at=_plus(start, span))


def _metric(rule: Metric, facts: TriggerFacts, memory: Mapping[str, Any]) -> Look:
    verdict = judge(rule, facts.signals.get(rule.key), facts.now, facts.max_age)
    if verdict.state == "unknown":
        return _unknown(verdict.sentence, memory=memory)
    if verdict.state == "fine":
        return _quiet(verdict.sentence)
    limit = f"above {rule.above:g}" if rule.above is not None else f"below {rule.below:g}"
    return _lasting(rule.for_, f"{rule.key} {limit} confidence {rule.confidence:g}", verdict.sentence, facts, memory)


def _since(window: timedelta, look: Look, signal: Signal) -> datetime | None:
    """Where the window shows the change, else its start if it fired: what is bad throughout changed before."""
    if signal.changed_at is not None or look.state is not TriggerState.FIRED or signal.window_end is None:
        return signal.changed_at
    return _plus(signal.window_end, -window)


# ---------------------------------------------------------------- calibration
def _calibration(rule: Calibration, value: float, signal: Signal) -> Look:
    """Two-sided: answers may promise too much or too little."""
    needed = rule.standard_errors
    words = f"{signal.detail or 'labels deviate from the answers'}, {value:.1f} standard errors"
    if value >= needed:
        return _fired(f"{words}, {needed:.1f} or more ({signal.rows} rows)")
    return _quiet(f"{words}, fewer than {needed:.1f} ({signal.rows} rows)")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Then:
    """What a score is compared with."""

    score: float
    rows: int | None
    words: str


def _then(rule: Performance, value: float, baseline: float, signal: Signal, facts: TriggerFacts) -> _Then:
    """The score at promotion; or, beside a confidence, the version's own score on its earlier rows, if that tells more: a hold-out may be
    small, or lie where the world had half changed."""
    promoted = _Then(score=baseline, rows=facts.baseline_rows, words="at promotion")
    if rule.drop is None or rule.confidence is None or signal.earlier is None or not math.isfinite(signal.earlier):
        return promoted
    earlier = _Then(score=signal.earlier, rows=signal.earlier_rows, words=f"on {signal.earlier_rows} rows before")
    loss = 1 if METRICS[rule.metric].higher_is_better else -1
    return max(
        (promoted, earlier),
        key=lambda then: loss * (then.score - value) / math.sqrt(1 + signal.rows / (then.rows or signal.rows or 1)),
    )


def _errors_beyond(rule: Performance, value: float, then: _Then, stderr: float, rows: int) -> float:
    """By how many standard errors a score that is bad lies beyond the rule's limit: the statistic of a one-sided z test.

    Beside a drop, the score before has an error of its own: with n rows now and m then, stderr * sqrt(1 + n / m) is that of the
    difference; where m is not known, it is taken to be n.
    """
    limit = rule.below if rule.below is not None else rule.above
    if limit is None:
        sign = 1 if METRICS[rule.metric].higher_is_better else -1
        limit = then.score - sign * (rule.drop or 0.0)
        stderr *= math.sqrt(1 + rows / (then.rows or rows)) if rows else 1.0
    distance = abs(value - limit)
    return distance / stderr if stderr > 0 else math.inf


def _compare(rule: Performance, value: float, then: _Then) -> tuple[bool, str]:
    """Whether the score is bad, and in words."""
    is_now = f"{rule.metric} {_number(value)} is"
    if rule.below is not None:
        bad = value < rule.below
        return bad, f"{is_now} {'' if bad else 'not '}below {rule.below:g}"
    if rule.above is not None:
        bad = value > rule.above
        return bad, f"{is_now} {'' if bad else 'not '}above {rule.above:g}"
    assert rule.drop is not None
    loss = then.score - value if METRICS[rule.metric].higher_is_better else value - then.score
    if loss <= 0:
        return False, f"{is_now} no worse than the {_number(then.score)} {then.words}"
    bad = loss >= rule.drop
    less = "" if bad else f", less than {rule.drop:g}"
    return bad, f"{is_now} {_number(loss)} worse than the {_number(then.score)} {then.words}{less}"


# ---------------------------------------------------------------- drift, volume
def _drift(rule: Drift, key: str, value: float, signal: Signal, facts: TriggerFacts, memory: Mapping[str, Any]) -> Look:
    """Windows count as one after the other only if they do not overlap: the same rows are not evidence twice."""
    counted = f"({signal.rows} rows){f': {signal.detail}' if signal.detail else ''}"
    if rule.until_rows is not None and (facts.trained_rows or 0) >= rule.until_rows:
        words = f"{_number(value)} of the features drifted, but the champion was trained on {facts.trained_rows} rows"
        return _quiet(f"{words}, {rule.until_rows} or more {counted}")
    if value < rule.share:
        return _quiet(f"{_number(value)} of the features drifted, less than {rule.share:g} {counted}")
    kept = _recall(memory, f"{key} share {rule.share:g}", facts)
    end = signal.window_end or signal.observed_at
    last, count = _moment(kept.get("window_end")), kept.get("count")
    if last is None or type(count) is not int or count < 1 or end < last:
        last, count = end, 1
    elif end - last >= rule.window:
        last, count = end, min(count + 1, rule.for_)
    words = f"{_number(value)} of the features drifted, {rule.share:g} or more"
    remember = _remember(f"{key} share {rule.share:g}", facts, window_end=last.isoformat(), count=count)
    if rule.for_ == 1:
        return _fired(f"{words} {counted}")
    if count >= rule.for_:
        return _fired(f"{words}, in {rule.for_} windows running {counted}", memory=remember)
    return _quiet(f"{words}, in {count} of the {rule.for_} windows needed {counted}", memory=remember)


def _estimated(rule: EstimatedPerformance, value: float, signal: Signal, facts: TriggerFacts) -> Look:
    """The estimator was fitted on the rows of the score at promotion, so the two differ only by what has changed since."""
    metric = rule.metric or facts.objective
    baseline = facts.baselines.get(metric, math.nan)
    is_now = f"estimated {metric} {_number(value)} is"
    if not math.isfinite(baseline):
        return _unknown(f"estimated {metric} is {_number(value)}, but its score at promotion is unknown")
    counted = f"({signal.rows} rows, without labels)"
    loss = baseline - value if METRICS[metric].higher_is_better else value - baseline
    if loss <= 0:
        return _quiet(f"{is_now} no worse than the {_number(baseline)} at promotion {counted}")
    words = f"{is_now} {_number(loss)} worse than the {_number(baseline)} at promotion"
    if loss >= rule.drop:
        return _fired(f"{words} {counted}")
    return _quiet(f"{words}, less than {rule.drop:g} {counted}")


def _volume(rule: Volume, value: float, facts: TriggerFacts) -> Look:
    words = f"{value:.0f} new labelled rows"
    needed, why = rule.labelled_rows, ""
    if needed is None:
        if not facts.trained_rows:
            return _unknown(f"{words} are in, but it is not known on how many the champion was trained")
        assert rule.growth is not None
        if rule.until_rows is not None and facts.trained_rows >= rule.until_rows:
            return _quiet(
                f"{words} are in; the champion was trained on {facts.trained_rows}, {rule.until_rows} or more"
            )
        in_vain = 2 ** min(facts.fruitless, _DOUBLINGS_MAX)  # what as many rows could not better, a few more will not
        needed = math.ceil((rule.growth * in_vain - 1) * facts.trained_rows)
        why = f" (the champion was trained on {facts.trained_rows})"
    if value >= needed:
        return _fired(f"{words} are in, {needed} or more{why}")
    return _quiet(f"{words} are in, fewer than {needed}{why}")


# ---------------------------------------------------------------- alerts
def match_of(rule: Alert, model: str) -> dict[str, str]:
    """The labels that an alert must have, its name among them."""
    return {"alertname": rule.name, **({"model": model} if rule.match is None else rule.match)}


def alert_key(rule: Alert, model: str) -> str:
    """What the alert that a rule waits for is called in facts and in words.

    >>> alert_key(Alert(name="Slow"), "late")
    'Slow{model="late"}'
    """
    labels = [
        f"{name}={json.dumps(value)}" for name, value in sorted(match_of(rule, model).items()) if name != "alertname"
    ]
    return f"{rule.name}{{{', '.join(labels)}}}"


def alerts_wanted(node: TriggerNode, model: str) -> dict[str, dict[str, str]]:
    """`alert_key` → labels, of all alerts that a trigger waits for."""
    rules = [leaf.alert for leaf in trigger_leaves(node) if isinstance(leaf, AlertTrigger)]
    return {alert_key(rule, model): match_of(rule, model) for rule in rules}


def _alert(rule: Alert, facts: TriggerFacts) -> Look:
    """Once an episode: Alertmanager repeats what fires, and a cycle that brought nothing does not end an alert. Alertmanager tells of
    what fires and of its end, so an alert of which nothing was heard does not fire."""
    name = f"the alert {alert_key(rule, facts.model)}"
    signal = facts.alerts.get(alert_key(rule, facts.model))
    if signal is None:
        return _unknown(f"{name} is unknown: nobody looked")
    if signal.reason == "stale":
        ago = f" for {about(facts.now - signal.said_at)}" if signal.said_at is not None else ""
        return _unknown(f"{name} fired, but Alertmanager has not repeated it{ago}")
    if signal.reason:
        return _unknown(f"{name} is unknown: {signal.reason}")
    fresh = [at for at in signal.firing if facts.opened_at is None or at > facts.opened_at]
    if not fresh:
        if signal.firing:
            return _quiet(f"{name} has fired for {about(facts.now - signal.firing[0])}, and had its cycle")
        over = f": it was over {about(facts.now - signal.said_at)} ago" if signal.said_at is not None else ""
        return _quiet(f"{name} does not fire, as far as Alertmanager has told{over}")
    since = fresh[0]
    held = max(facts.now - since, timedelta(0))
    if held >= rule.for_:
        return _fired(f"{name} fires{f' since {about(held)}' if held else ''}")
    return _quiet(f"{name} fires since {about(held)}, counts after {about(rule.for_)}", next_at=_plus(since, rule.for_))


# ---------------------------------------------------------------- time
def _schedule(rule: Schedule, facts: TriggerFacts) -> Look:
    due = _first_due(rule.cron, facts.since)
    if due is None:
        return _quiet(f"the schedule {rule.cron!r} never comes again")
    if due > facts.now:
        return _quiet(f"the schedule {rule.cron!r} is due at {due:%Y-%m-%d %H:%M} UTC", next_at=due)
    coming = parse_cron(rule.cron).next_after(facts.now)
    return _fired(f"the schedule {rule.cron!r} was due at {due:%Y-%m-%d %H:%M} UTC", next_at=coming)


@lru_cache(maxsize=8192)
def _first_due(cron: str, since: datetime) -> datetime | None:
    """Cached, since it is asked at every tick of every model, and changes only when a cycle closes."""
    return parse_cron(cron).next_after(since)


def _staleness(rule: Staleness, facts: TriggerFacts) -> Look:
    """Age counts from the newest training row or, if later, from the last cycle: one attempt each `age`, not one a tick
    for as long as newer rows are refused by the gates or kept for judging."""
    trained = facts.trained_to is not None and facts.trained_to > facts.since
    start = facts.trained_to if trained and facts.trained_to else facts.since
    subject = "the newest training row" if trained else "the last cycle or the model's creation"
    age = facts.now - start
    if age >= rule.age:
        return _fired(f"{subject} is {about(age)} ago, {about(rule.age)} or more")
    return _quiet(f"{subject} is {about(age)} ago, less than {about(rule.age)}", next_at=_plus(start, rule.age))


# ---------------------------------------------------------------- helpers
def _fired(sentence: str, *, memory: Mapping[str, Any] | None = None, next_at: datetime | None = None) -> Look:
    return Look(state=TriggerState.FIRED, sentence=sentence, memory=memory or {}, next_at=next_at)


def _quiet(sentence: str, *, memory: Mapping[str, Any] | None = None, next_at: datetime | None = None) -> Look:
    return Look(state=TriggerState.QUIET, sentence=sentence, memory=memory or {}, next_at=next_at)


def _unknown(sentence: str, *, memory: Mapping[str, Any] | None = None) -> Look:
    """Keeps what was remembered, as it is: an unknown look pauses a count."""
    return Look(state=TriggerState.UNKNOWN, sentence=sentence, memory=memory or {})


def _remember(rule: str, facts: TriggerFacts, **what: Any) -> dict[str, Any]:
    return {"rule": rule, "from": facts.since.isoformat(), **what}


def _recall(memory: Mapping[str, Any], rule: str, facts: TriggerFacts) -> Mapping[str, Any]:
    """What the last look left, unless it was left by another rule or before the last cycle closed."""
    ours = memory.get("rule") == rule and memory.get("from") == facts.since.isoformat()
    return memory if ours else {}


def _moment(text: object) -> datetime | None:
    """An ISO 8601 time with a zone; anything else is forgotten."""
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return moment if moment is not None and moment.tzinfo else None


def _plus(moment: datetime, span: timedelta) -> datetime | None:
    try:
        return moment + span
    except OverflowError:
        return None


def _number(value: float) -> str:
    """Three decimals where that says something.

    >>> _number(0.51234), _number(0.00012345), _number(12345.678)
    ('0.512', '0.000123', '12345.7')
    """
    if value and abs(value) < 0.01:
        return f"{value:.3g}"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.6g}"
