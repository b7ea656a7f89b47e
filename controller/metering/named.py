"""Metrics as the board knows them: where their parts come from, as one PromQL each. Pure.

The parts of a metric (events, total, …) are asked for in one query, each marked by a label, so that they are of the same moment and the
number of queries does not grow with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from policies.metric_shapes import MetricRule
from policies.schema import ModelPolicy, trigger_leaves
from policies.trigger_shapes import MetricTrigger

PART_LABEL = "ratchet_part"
WINDOW = "10m"
"""Of the built-in metrics."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """What to ask, and how to read the answer."""

    name: str
    """As messages call it."""
    query: str | None = None
    events: str | None = None
    good: str | None = None
    total: str | None = None
    newest: str | None = None
    """Of the time of the newest sample, in seconds since 1970."""
    model_label: str = "model"
    version_label: str = "version"
    max_age: timedelta = timedelta(minutes=5)
    unit: str = ""
    higher_is_better: bool | None = None
    """None where nobody said: then a rule may look at either end."""
    own: bool = False
    """Whether it is a policy's own, for that one model."""

    @property
    def parts(self) -> Mapping[str, str]:
        """Name of the part → PromQL."""
        found = {
            "value": self.query,
            "events": self.events,
            "good": self.good,
            "total": self.total,
            "newest": self.newest,
        }
        return {name: text for name, text in found.items() if text is not None}

    @property
    def promql(self) -> str:
        """All parts in one query. A line break before each bracket ends what may be a comment.

        >>> print(Metric(name="up", query="sum by (model, version) (up)").promql)
        label_replace((sum by (model, version) (up)
        ), "ratchet_part", "value", "", "")
        """
        return " or ".join(
            f'label_replace(({text}\n), "{PART_LABEL}", "{name}", "", "")' for name, text in self.parts.items()
        )


def own_metric(rule: MetricRule) -> Metric:
    """The metric that a policy brings along."""
    return Metric(
        name=rule.label, query=rule.query, events=rule.events, good=rule.good, total=rule.total, max_age=rule.max_age,
        own=True,
    )  # fmt: skip


def rules_of(policy: ModelPolicy) -> tuple[list[MetricRule], list[MetricRule]]:
    """What a policy asks about its champion, and about its challenger."""
    leaves = trigger_leaves(policy.spec.triggers)
    return [leaf.metric for leaf in leaves if isinstance(leaf, MetricTrigger)], list(policy.spec.rollout.metrics)


# ---------------------------------------------------------------- what comes with Ratchet
def _share(name: str, series: str, events: str, *, total: str = "", good: bool = False) -> Metric:
    """`events` and `total` are further matchers. No event at all is zero where something was counted."""
    by = "sum by (model, version)"
    counted = f"{by} (increase({series}{{{total}}}[{WINDOW}]))"
    some = f"{by} (increase({series}{{{', '.join(filter(None, [total, events]))}}}[{WINDOW}])) or 0 * {counted}"
    return Metric(
        name=name, events=None if good else some, good=some if good else None, total=counted, higher_is_better=good,
        newest=f"max by (model, version) (timestamp({series}))",
    )  # fmt: skip


def _latency(name: str, quantile: float) -> Metric:
    buckets = f"sum by (model, version, le) (rate({_SECONDS}_bucket[{WINDOW}]))"
    return Metric(
        name=name, unit="s", higher_is_better=False, query=f"histogram_quantile({quantile:g}, {buckets})",
        total=f"sum by (model, version) (increase({_SECONDS}_count[{WINDOW}]))",
        newest=f"max by (model, version) (timestamp({_SECONDS}_count))",
    )  # fmt: skip


_CONFUSION = "ratchet_confusion_total"
_REQUESTS = "ratchet_router_requests_total"
_SECONDS = "ratchet_router_request_seconds"
_BUILT_IN = (
    _share("error_rate", _REQUESTS, 'code=~"5.."'),
    _latency("latency_p50", 0.5),
    _latency("latency_p95", 0.95),
    _share("accuracy", _CONFUSION, 'outcome=~"true_.*|correct"', good=True),
    _share(
        "precision", _CONFUSION, 'outcome="true_positive"', total='outcome=~"true_positive|false_positive"', good=True
    ),
    _share("recall", _CONFUSION, 'outcome="true_positive"', total='outcome=~"true_positive|false_negative"', good=True),
)


def built_in() -> dict[str, Metric]:
    """Those on Ratchet's own counters, over the last `WINDOW`."""
    return {metric.name: metric for metric in _BUILT_IN}
