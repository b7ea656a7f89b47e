"""The newest answers: asked once a tick by a few threads of their own, read by the loop without waiting.

The number of queries a tick does not depend on the number of models: one for each named metric that a policy rests on, and a bounded number
of policies' own, which take turns. Nothing is persisted: after a restart everything is unknown until it was asked again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import structlog

from controller.decide import Observation, metric_of
from controller.metering import tables
from controller.metering.named import Metric, own_metric, rules_of
from controller.metering.port import MetricsError, MetricSource, Question
from controller.metering.tables import Table
from controller.reconcile import Observer
from controller.state import ModelState
from controller.telemetry.metrics import METRIC_QUERIES, METRIC_QUERY_SECONDS, METRIC_SAMPLES
from policies.durations import about
from policies.metric_rules import judge
from policies.metric_shapes import MetricRule
from policies.problems import did_you_mean
from policies.schema import ModelPolicy
from policies.signals import Signal

log = structlog.get_logger()

FORGOTTEN_AFTER_S = 900.0
"""What no policy asked for in so long is asked no more."""
OWN_MAX = 20_000
"""Policies' own metrics that are known at a time."""


@dataclass(slots=True)
class _Own:
    metric: Metric
    wanted: float
    """When a policy last asked for it, by the monotonic clock."""
    asked: float = 0.0
    """When Prometheus was last asked."""
    table: Table | None = None


@dataclass(kw_only=True)
class Board:
    """May be read by any thread; `refresh` is called by one at a time."""

    source: MetricSource | None
    """None where no monitoring system is configured: every metric is unknown then."""
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    now: Callable[[], datetime]
    """The daemon's clock."""
    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    parallel: int = 4
    own_per_tick: int = 5
    _wanted: dict[str, float] = field(default_factory=dict)
    _own: dict[str, _Own] = field(default_factory=dict)
    _tables: dict[str, Table] = field(default_factory=dict)
    _errors: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _rules: dict[int, tuple[ModelPolicy, tuple[MetricRule, ...], tuple[MetricRule, ...]]] = field(default_factory=dict)
    _pool: ThreadPoolExecutor | None = None
    _closed: threading.Event = field(default_factory=threading.Event)

    # ------------------------------------------------------------ asking
    def refresh(self) -> int:
        """Ask for what policies want, once each; the number of questions."""
        if self.source is None or self._closed.is_set():
            return 0
        due, started = self._due(), self.monotonic()
        at, observed_at = self.wall(), self.now()
        if not due:
            return 0
        self._pool = self._pool or ThreadPoolExecutor(self.parallel, thread_name_prefix="metrics")
        try:
            found = list(self._pool.map(lambda metric: self._ask(metric, at, observed_at), [m for _, m in due]))
        except (CancelledError, RuntimeError):
            if self._closed.is_set():  # between two of them
                return 0
            raise
        with self._lock:
            for (key, metric), table in zip(due, found, strict=True):
                if metric.own and key in self._own:
                    self._own[key].table, self._own[key].asked = table, started
                elif not metric.own:
                    self._tables[key] = table
        METRIC_SAMPLES.set(sum(table.samples for table in self._tables.values()))
        self._tell(found)
        return len(due)

    def close(self) -> None:
        """Ask nothing more; what is under way ends by its own time-out."""
        self._closed.set()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        if self.source is not None:
            self.source.close()

    def _due(self) -> list[tuple[str, Metric]]:
        """Named metrics that are wanted, and of policies' own those that have waited longest."""
        oldest = self.monotonic() - FORGOTTEN_AFTER_S
        with self._lock:
            for name in [n for n, wanted in self._wanted.items() if wanted < oldest]:
                del self._wanted[name]
                self._tables.pop(name, None)
            for key in [k for k, own in self._own.items() if own.wanted < oldest]:
                del self._own[key]
            named = [(name, self.metrics[name]) for name in sorted(self._wanted) if name in self.metrics]
            waiting = sorted(self._own.items(), key=lambda entry: entry[1].asked)[: self.own_per_tick]
        return named + [(key, own.metric) for key, own in waiting]

    def _ask(self, metric: Metric, at: float, observed_at: datetime) -> Table:
        assert self.source is not None
        began = time.perf_counter()
        try:
            samples = self.source.ask(Question(promql=metric.promql, at=at))
            table = tables.read(metric, samples, at=at, observed_at=observed_at)
            METRIC_QUERIES.labels("ok").inc()
        except MetricsError as error:
            table = tables.failed(metric, str(error), at=at, observed_at=observed_at)
            METRIC_QUERIES.labels("failed").inc()
        except Exception as error:
            log.exception("metrics.broken", metric=metric.name)
            table = tables.failed(
                metric, f"an error in the controller: {type(error).__name__}", at=at, observed_at=observed_at
            )
            METRIC_QUERIES.labels("failed").inc()
        METRIC_QUERY_SECONDS.observe(time.perf_counter() - began)
        return table

    def _tell(self, found: Iterable[Table]) -> None:
        """Log what fails once, and once when it works again."""
        for table in found:
            before = self._errors.pop(table.metric.name, "")
            if table.error:
                self._errors[table.metric.name] = table.error
            if table.error != before:
                event = "metrics.failed" if table.error else "metrics.recovered"
                log.warning(event, metric=table.metric.name, reason=table.error or "answers again")

    # ------------------------------------------------------------ reading
    def signals(self, state: ModelState, policy: ModelPolicy) -> dict[str, Signal]:
        """What the policy asks about its champion and its challenger, by `metric_of`; also notes that it is wanted."""
        of_champion, of_challenger = self._rules_of(policy)
        found = {}
        challenger = state.cycle.challenger if state.cycle is not None else None
        if state.champion is not None:
            for rule in of_champion:
                found[metric_of(rule.key, state.champion)] = self._signal(rule, state.name, state.champion, alone=True)
        if challenger is not None:
            for rule in of_challenger:
                found[metric_of(rule.key, challenger)] = self._signal(rule, state.name, challenger, alone=False)
        else:
            for rule in of_challenger:
                self._want(rule)  # so that a rollout does not begin in the dark
        return found

    def _rules_of(self, policy: ModelPolicy) -> tuple[tuple[MetricRule, ...], tuple[MetricRule, ...]]:
        known = self._rules.get(id(policy))
        if known is None or known[0] is not policy:
            if len(self._rules) > OWN_MAX:
                self._rules.clear()
            of_champion, of_challenger = rules_of(policy)
            known = self._rules[id(policy)] = (policy, tuple(of_champion), tuple(of_challenger))
        return known[1], known[2]

    def _signal(self, rule: MetricRule, model: str, version: int, *, alone: bool) -> Signal:
        self._want(rule)
        if self.source is None:
            return Signal.unknown("no Prometheus is configured: set prometheus_url", observed_at=self.now())
        if rule.name is not None and rule.name not in self.metrics:
            hint = did_you_mean(rule.name, self.metrics) or f"there are {', '.join(sorted(self.metrics))}"
            return Signal.unknown(f"the daemon's settings name no such metric; {hint}", observed_at=self.now())
        if rule.name is not None and (wrong := _wrong_end(rule, self.metrics[rule.name])):
            return Signal.unknown(wrong, observed_at=self.now())
        own = self._own.get(rule.key) if rule.name is None else None
        table = self._tables.get(rule.name) if rule.name is not None else own.table if own is not None else None
        if table is None:
            return Signal.unknown("not asked for yet", observed_at=self.now())
        late = self.now() - table.observed_at
        if own is not None and late > own.metric.max_age and not table.error:
            return Signal.unknown(self._turn(late), observed_at=table.observed_at)
        return tables.signal(table, model, version, alone=alone)

    def _turn(self, late: timedelta) -> str:
        return (
            f"the newest answer is from {about(late)} ago: {len(self._own)} queries of policies take turns, {self.own_per_tick} a tick "
            "(prometheus_own_queries); a metric that is named in the settings is asked at each"
        )

    def _want(self, rule: MetricRule) -> None:
        now = self.monotonic()
        if rule.name is not None:
            self._wanted[rule.name] = now
        elif (own := self._own.get(rule.key)) is not None:
            own.wanted = now
        elif len(self._own) < OWN_MAX:
            with self._lock:
                self._own[rule.key] = _Own(metric=own_metric(rule), wanted=now)

    def told(self, state: ModelState, policy: ModelPolicy, max_age: timedelta) -> list[str]:
        """For people: what each metric of the policy says now, with value, bound, count, or why it is unknown."""
        of_champion, of_challenger = self._rules_of(policy)
        challenger = state.cycle.challenger if state.cycle is not None else None
        looks: list[tuple[int, MetricRule, bool]] = []
        if state.champion is not None:
            looks += [(state.champion, rule, True) for rule in of_champion]
        if challenger is not None:
            looks += [(challenger, rule, False) for rule in of_challenger]
        return [
            f"v{version}: {judge(rule, self._signal(rule, state.name, version, alone=alone), self.now(), max_age).sentence}"
            for version, rule, alone in looks
        ]


def _wrong_end(rule: MetricRule, metric: Metric) -> str:
    """Whether the rule takes good news for bad: such a mistake must not retrain."""
    if metric.higher_is_better is None or metric.higher_is_better is (rule.below is not None):
        return ""
    better, use = ("higher", "below") if metric.higher_is_better else ("lower", "above")
    return f"it is better when {better}, so the rule would take good for bad: use {use}"


@dataclass(frozen=True, slots=True)
class Watching:
    """An observer that adds what the board knows to what another one measures."""

    measured: Observer
    board: Board

    def observe(self, state: ModelState, policy: ModelPolicy, now: datetime) -> Observation | None:
        """See Observer.observe."""
        found = self.measured.observe(state, policy, now)
        metrics: dict[str, Any] = self.board.signals(state, policy)
        if not metrics:
            return found
        return replace(found or Observation(champion=None), metrics=metrics)
