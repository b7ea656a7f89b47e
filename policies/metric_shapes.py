"""The shape of a rule on a metric of a monitoring system: a named one of the daemon's settings, or the policy's own PromQL."""

from __future__ import annotations

import hashlib
from typing import Annotated, Self

from pydantic import Field, model_validator

from policies.durations import Duration, PositiveDuration, parse_duration
from policies.fields import Confidence, Number, Shape, Whole

Promql = Annotated[str, Field(min_length=1, max_length=4000)]
METRIC_NAME = r"^[a-zA-Z_][a-zA-Z0-9_]{0,63}$"


class MetricRule(Shape):
    """When a metric is bad. Either `name`, or own PromQL: `query` (with `total`, if events are counted), `events` or `good` of `total`."""

    name: Annotated[str, Field(pattern=METRIC_NAME)] | None = None
    """A metric of the daemon's settings, such as `error_rate`."""
    query: Promql | None = None
    """PromQL of the value."""
    events: Promql | None = None
    """PromQL of the number of events; the value is their share of `total`."""
    good: Promql | None = None
    """The same, where more is better."""
    total: Promql | None = None
    """PromQL of the number of all that was counted."""
    below: Number | None = None
    """Bad is lower than this."""
    above: Number | None = None
    """Bad is higher than this."""
    min_count: Annotated[Whole, Field(ge=0)] = 100
    """With fewer counted it is unknown; 0 lets a bare value decide."""
    confidence: Confidence = 0.99
    """Of a share: bad is only what so sure a bound is beyond (Wilson's), not the point. High, since a rollout looks at every tick."""
    max_age: PositiveDuration = parse_duration("5m")
    """Of own PromQL: older answers are unknown; a named metric has its own."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.below is None) == (self.above is None):
            raise ValueError("give exactly one of below, above")
        if sum(part is not None for part in (self.name, self.query, self.events, self.good)) != 1:
            raise ValueError("give exactly one of name, query, events, good")
        if self.name is not None and self.total is not None:
            raise ValueError("total goes with query, events or good; a named metric has its own in the settings")
        if (self.events is not None or self.good is not None) and self.total is None:
            raise ValueError("events and good need total")
        return self

    @property
    def key(self) -> str:
        """Of its signal: the same metric has the same key, whatever the rule makes of it.

        >>> MetricRule(name="error_rate", above=0.02).key
        'metric:error_rate'
        """
        if self.name is not None:
            return f"metric:{self.name}"
        own = "\\0".join(text or "" for text in (self.query, self.events, self.good, self.total))
        return f"metric:own-{hashlib.sha256(own.encode()).hexdigest()[:16]}"

    @property
    def label(self) -> str:
        """As people read it: the name, or the beginning of the query."""
        text = self.name or self.query or self.events or self.good or ""
        line = " ".join(text.split())
        return line if len(line) <= 60 else f"{line[:59]}…"


class Metric(MetricRule):
    """A metric of the champion, as a trigger."""

    confidence: Confidence = 0.95
    """Of a share: bad is only what so sure a bound is beyond (Wilson's), not the point."""
    for_: Duration = Field(default=parse_duration("0s"), alias="for")
    """How long it must be bad without a break before it fires."""
