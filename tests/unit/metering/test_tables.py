"""One answer joined to versions: what is missing, doubled, stale or no number is unknown, with a reason that says what to do."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest

from controller.metering.named import PART_LABEL, Metric, built_in
from controller.metering.port import MetricsError, Sample
from controller.metering.tables import failed, read, signal
from policies.signals import Basis, Signal

NOW = datetime(2026, 3, 1, tzinfo=UTC)
AT = 1_000_000.0
SHARE = Metric(name="error_rate", events="e", total="t")


def sample(part: str, value: float, model: str = "a", version: str = "3", **labels: str) -> Sample:
    return Sample({PART_LABEL: part, "model": model, "version": version, **labels}, value)


def said(metric: Metric, *samples: Sample, model: str = "a", version: int = 3, alone: bool = False) -> Signal:
    return signal(read(metric, samples, at=AT, observed_at=NOW), model, version, alone=alone)


def test_a_share_is_counted() -> None:
    """Value, count and how it is made up; good until its age is over."""
    found = said(SHARE, sample("events", 12.0), sample("total", 571.4), sample("total", 9.0, version="2"))
    assert found == Signal(
        value=12 / 571.4, rows=571, observed_at=NOW, good_until=NOW + timedelta(minutes=5), basis=Basis.SHARE,
        detail="12 of 571",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ([], "the query returns nothing"),
        ([Sample({PART_LABEL: "total", "instance": "x"}, 1)], "its series have instance, but not model, version with a number"),
        ([sample("total", 1, version="none")], "its series have model, version, but not model, version with a number"),
        ([sample("total", 9, model="aa")], "it has no series of model a, but of 1 others"),
        ([sample("total", 9, version="2"), sample("total", 9, version="1")], "it has no series of v3, but of v1, v2"),
        ([sample("total", 9)], "there is no series of events: if none means 0, write … or 0 * (total)"),
        ([sample("events", 9)], "there is no series of total"),
        ([sample("events", 0), sample("total", 0)], "nothing was counted"),
        ([sample("events", 0), sample("total", math.nan)], "total is nan: counts must be numbers"),
        ([sample("events", math.inf), sample("total", 9)], "events is inf"),
        ([sample("events", 10), sample("total", 9)], "10 of 9 is no share"),
        ([sample("events", -1), sample("total", 9)], "-1 of 9 is no share"),
        ([sample("events", 1), sample("total", 9), sample("total", 9, pod="x")], "several series where one is expected: write sum by"),
    ],
)  # fmt: skip
def test_what_is_no_share_is_unknown(samples: list[Sample], reason: str) -> None:
    """Each with its reason."""
    found = said(SHARE, *samples)
    assert found.value is None
    assert reason in found.reason


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ([sample("value", math.nan), sample("total", 5)], "it is nan"),
        ([sample("value", -math.inf), sample("total", 5)], "it is -inf"),
        ([sample("value", math.nan), sample("total", 0)], "nothing was counted"),
        ([sample("value", 1)], "how many it rests on is not there"),
        ([sample("value", 1), sample("total", math.inf)], "how many it rests on is inf"),
        ([sample("total", 5)], "there is no series of query"),
    ],
)
def test_what_is_no_value_is_unknown(samples: list[Sample], reason: str) -> None:
    """A latency of no requests is not zero."""
    found = said(Metric(name="latency", query="q", total="t"), *samples)
    assert found.value is None
    assert reason in found.reason


@pytest.mark.parametrize(
    ("newest", "reason"),
    [
        (None, "no sample of it in the last minutes: are its replicas up, and scraped?"),
        (AT - 360, "the newest sample is from 6m ago, more than 5m"),
        (AT + 120, "the newest sample is 2m in the future"),
        (AT - 299, ""),
    ],
)
def test_a_stale_sample_is_unknown(newest: float | None, reason: str) -> None:
    """A rate over ten minutes lives on for ten minutes after its replica; the time of the newest sample does not."""
    metric = Metric(name="m", query="q", newest="n")
    samples = [sample("value", 1), *([] if newest is None else [sample("newest", newest)])]
    found = said(metric, *samples)
    assert found.reason == "" if not reason else reason in found.reason
    assert (found.value is None) is bool(reason)


def test_own_queries_need_a_version_only_where_it_matters() -> None:
    """One series without labels is the champion's; a challenger's must say so."""
    own = Metric(name="q", query="q", own=True)
    bare = Sample({PART_LABEL: "value"}, 7.0)
    assert said(own, bare, alone=True).value == 7
    assert said(own, bare, alone=True).basis is Basis.BARE
    assert "its series have no label version" in said(own, bare).reason
    assert "several series" in said(own, bare, Sample({PART_LABEL: "value", "pod": "x"}, 8.0), alone=True).reason
    versions = [Sample({PART_LABEL: "value", "version": v}, float(v)) for v in ("2", "3")]
    assert said(own, *versions, alone=True).value == 3


def test_what_failed_says_so() -> None:
    """The reason of the source is the reason of every model."""
    assert signal(failed(SHARE, "Prometheus is away", at=AT, observed_at=NOW), "a", 3).reason == "Prometheus is away"


def test_an_answer_of_too_many_series_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is held."""
    monkeypatch.setattr("controller.metering.tables.SAMPLES_MAX", 2)
    with pytest.raises(MetricsError, match="more than 2 series: aggregate"):
        said(SHARE, *[sample("total", 1, version=str(n)) for n in range(3)])


def test_built_in_metrics_are_by_model_and_version() -> None:
    """Each sums after the increase of each series, so that a replica that starts again fakes no drop."""
    for metric in built_in().values():
        for part in metric.parts.values():
            assert "by (model, version" in part
            assert "increase(sum" not in part
            assert "rate(sum" not in part
