"""One answer for all models, and what it says of one version. Pure.

Compact: a number a version and part, found by model and version. Whatever is missing, doubled, stale or no number is unknown, with a reason
that says what to do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeAlias

from controller.metering.named import PART_LABEL, Metric
from controller.metering.port import SAMPLES_MAX, MetricsError, Sample
from policies.durations import about
from policies.problems import did_you_mean
from policies.signals import Basis, Signal

VERSIONS_SHOWN = 5
_AHEAD_S = 60.0
_ROUNDING = 1e-9
_Key: TypeAlias = tuple[str, int | None]
"""Model (empty for a policy's own metric) and version (None where the series do not say)."""


@dataclass(kw_only=True, slots=True)
class Table:
    """The answer to one metric's question."""

    metric: Metric
    at: float
    """Moment of evaluation, in seconds since 1970."""
    observed_at: datetime
    """The same by the daemon's clock."""
    error: str = ""
    """Why there is no answer."""
    parts: dict[str, dict[_Key, float]] = field(default_factory=dict)
    doubled: set[_Key] = field(default_factory=set)
    """Of which a part has several series."""
    unlabelled: str = ""
    """Labels of a series that lacks those for model and version."""
    models: set[str] = field(default_factory=set)

    @property
    def samples(self) -> int:
        return sum(map(len, self.parts.values()))


def read(metric: Metric, samples: Iterable[Sample], *, at: float, observed_at: datetime) -> Table:
    """Sort the series by version. Raises MetricsError if there are more than `SAMPLES_MAX`."""
    table = Table(metric=metric, at=at, observed_at=observed_at)
    for count, (labels, value) in enumerate(samples):
        if count >= SAMPLES_MAX:
            raise MetricsError(f"it has more than {SAMPLES_MAX} series: aggregate, such as sum by (model, version) (…)")
        key = _key(metric, labels)
        if key is None:
            table.unlabelled = table.unlabelled or ", ".join(sorted(set(labels) - {PART_LABEL}))[:200] or "no labels"
            continue
        part = table.parts.setdefault(labels.get(PART_LABEL, "value"), {})
        if key in part:
            table.doubled.add(key)
        part[key] = value
        table.models.add(key[0])
    return table


def failed(metric: Metric, error: str, *, at: float, observed_at: datetime) -> Table:
    return Table(metric=metric, at=at, observed_at=observed_at, error=error)


def _key(metric: Metric, labels: object) -> _Key | None:
    assert hasattr(labels, "get")
    version = labels.get(metric.version_label)
    if metric.own:
        return ("", _number(version)) if version is not None else ("", None)
    model = labels.get(metric.model_label)
    number = _number(version)
    return (model, number) if model and number is not None else None


def _number(version: str | None) -> int | None:
    """`3` or `v3`; None for what is no version, such as the router's `none`.

    >>> _number("3"), _number("v3"), _number("none"), _number("٣")
    (3, 3, None, None)
    """
    text = (version or "").removeprefix("v")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else None


# ---------------------------------------------------------------- what it says of one version
def signal(table: Table, model: str, version: int, *, alone: bool = False) -> Signal:
    """The metric of a version. `alone`: series without a version may stand for it, as they do for a champion's."""
    key = _find(table, model, version, alone=alone)
    reason = table.error or (_missing(table, model, version) if key is None else "")
    if key is None or reason:
        return Signal.unknown(reason, observed_at=table.observed_at)
    if key in table.doubled:
        by = f"sum by ({table.metric.model_label}, {table.metric.version_label}) (…)"
        return Signal.unknown(f"several series where one is expected: write {by}", observed_at=table.observed_at)
    late = _late(table, key)
    if late:
        return Signal.unknown(late, observed_at=table.observed_at)
    return _share(table, key) if table.metric.query is None else _value(table, key)


def _find(table: Table, model: str, version: int, *, alone: bool) -> _Key | None:
    wanted: list[_Key] = [("", version), *([("", None)] if alone else [])] if table.metric.own else [(model, version)]
    return next((key for key in wanted if any(key in part for part in table.parts.values())), None)


def _missing(table: Table, model: str, version: int) -> str:
    """Why nothing is known of the version: an empty answer, other labels, another model, another version."""
    metric = table.metric
    labels = metric.version_label if metric.own else f"{metric.model_label}, {metric.version_label}"
    if not table.models:
        if table.unlabelled:
            return (
                f"its series have {table.unlabelled}, but not {labels} with a number: write sum by ({labels}) (…), "
                "or say under labels: what carries them"
            )
        return "the query returns nothing: is it what Prometheus scrapes, and are its names right?"
    if metric.own and any(("", None) in part for part in table.parts.values()):
        return (
            f"its series have no label {metric.version_label}, so nothing tells the challenger's: write by ({labels})"
        )
    if not metric.own and model not in table.models:
        hint = did_you_mean(model, table.models)
        return f"it has no series of model {model}, but of {len(table.models)} others{f'; {hint}' if hint else ''}"
    known = {key[1] for part in table.parts.values() for key in part if key[0] in ("", model) and key[1] is not None}
    shown = ", ".join(f"v{number}" for number in sorted(known)[-VERSIONS_SHOWN:])
    return f"it has no series of v{version}, but of {shown}; are its replicas scraped?"


def _late(table: Table, key: _Key) -> str:
    """Why the newest sample is too old to say anything, or an empty string."""
    metric = table.metric
    if metric.newest is None:
        return ""
    newest = table.parts.get("newest", {}).get(key, math.nan)
    if not math.isfinite(newest):
        return "Prometheus has no sample of it in the last minutes: are its replicas up, and scraped?"
    age_s = table.at - newest
    if age_s > metric.max_age.total_seconds():
        return f"the newest sample is from {about(timedelta(seconds=age_s))} ago, more than {about(metric.max_age)}"
    if age_s < -_AHEAD_S:
        return f"the newest sample is {about(timedelta(seconds=-age_s))} in the future, so a clock is wrong"
    return ""


def _part(table: Table, key: _Key, name: str) -> float | None:
    return table.parts.get(name, {}).get(key)


def _share(table: Table, key: _Key) -> Signal:
    name = "events" if table.metric.events is not None else "good"
    some, total = _part(table, key, name), _part(table, key, "total")
    if total is None:
        return _unknown(table, f"{name} are counted, but there is no series of total")
    if some is None:
        return _unknown(
            table, f"total is counted, but there is no series of {name}: if none means 0, write … or 0 * (total)"
        )
    if not (math.isfinite(some) and math.isfinite(total)):
        return _unknown(table, f"{name} is {some}, total is {total}: counts must be numbers")
    if total <= 0:
        return _unknown(table, "nothing was counted")
    if not -_ROUNDING <= some <= total * (1 + _ROUNDING):
        return _unknown(table, f"{some:g} of {total:g} is no share: {name} must be among what total counts")
    value = min(max(some / total, 0.0), 1.0)
    return Signal(
        value=value, rows=int(total), observed_at=table.observed_at, good_until=_good_until(table), basis=Basis.SHARE,
        detail=f"{round(some)} of {round(total)}",
    )  # fmt: skip


def _value(table: Table, key: _Key) -> Signal:
    value, total = _part(table, key, "value"), _part(table, key, "total")
    counted = table.metric.total is not None
    if counted and (total is None or not math.isfinite(total)):
        return _unknown(table, f"how many it rests on is {'not there' if total is None else total}")
    if counted and total is not None and total <= 0:
        return _unknown(table, "nothing was counted")
    if value is None:
        return _unknown(table, "total is counted, but there is no series of query")
    if not math.isfinite(value):
        return _unknown(table, f"it is {value}: what is divided by nothing is no number")
    return Signal(
        value=value, rows=int(total) if counted and total is not None else 0, observed_at=table.observed_at,
        good_until=_good_until(table), basis=Basis.COUNTED if counted else Basis.BARE, detail=table.metric.unit,
    )  # fmt: skip


def _good_until(table: Table) -> datetime:
    return table.observed_at + table.metric.max_age


def _unknown(table: Table, reason: str) -> Signal:
    return Signal.unknown(reason, observed_at=table.observed_at)
