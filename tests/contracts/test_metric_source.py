"""What every source of metrics keeps: the fake's answers are those that a real Prometheus gives."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers.prometheus import exporter, prometheus

from controller.metering.fake import FakeSource
from controller.metering.named import Metric
from controller.metering.port import MetricsError, MetricSource, Question, Sample
from controller.metering.prometheus import Access, PrometheusSource

TEXT = """\
up_share{model="a",version="1"} 0.5
up_share{model="a",version="2"} NaN
up_share{model="b",version="1"} +Inf
seen{model="a",version="1"} 7
"""
SERIES = {
    'up_share{job="x"}': [
        Sample({"__name__": "up_share", "job": "x", "model": "a", "version": "1"}, 0.5),
        Sample({"__name__": "up_share", "job": "x", "model": "a", "version": "2"}, math.nan),
        Sample({"__name__": "up_share", "job": "x", "model": "b", "version": "1"}, math.inf),
    ],
    'seen{job="x"}': [Sample({"__name__": "seen", "job": "x", "model": "a", "version": "1"}, 7.0)],
}


@pytest.fixture(params=["fake", "prometheus"], scope="module")
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MetricSource]:
    if request.param == "fake":
        yield FakeSource(series=SERIES)
        return
    folder: Path = tmp_path_factory.mktemp("prometheus")
    with exporter(TEXT) as shown:
        scrape = {"job_name": "x", "static_configs": [{"targets": [shown.target], "labels": {"instance": ""}}]}
        with prometheus(folder, scrape=[scrape]) as server:
            shown.show(TEXT)
            found = PrometheusSource(Access(url=server.url))
            yield found
            found.close()


def _ask(source: MetricSource, promql: str) -> dict[str, float]:
    return {
        ",".join(f"{k}={v}" for k, v in sorted(labels.items()) if k not in ("__name__", "job", "instance")): value
        for labels, value in source.ask(Question(promql=promql, at=time.time()))
    }


def test_series_come_with_their_labels(source: MetricSource) -> None:
    """Numbers, not-a-number and infinity arrive as they are: what they mean is for others to say."""
    found = _ask(source, 'up_share{job="x"}')
    assert found.pop("model=a,version=1") == 0.5
    assert math.isnan(found.pop("model=a,version=2"))
    assert found == {"model=b,version=1": math.inf}


def test_parts_come_in_one_answer(source: MetricSource) -> None:
    """The parts of a metric are one question, each series marked with its part."""
    metric = Metric(name="m", query='up_share{job="x"} # a comment', total='seen{job="x"}')
    if isinstance(source, FakeSource):
        metric = Metric(name="m", query='up_share{job="x"}', total='seen{job="x"}')
    found = _ask(source, metric.promql)
    assert found["model=a,ratchet_part=value,version=1"] == 0.5
    assert found["model=a,ratchet_part=total,version=1"] == 7
    assert len(found) == 4


def test_nothing_is_no_error(source: MetricSource) -> None:
    """A query without series has an empty answer: what is missing is said where it is joined to a model."""
    assert _ask(source, "not_there") == {}


def test_a_refusal_is_a_sentence(source: MetricSource) -> None:
    """It says what is wrong and what to do."""
    if isinstance(source, FakeSource):
        source.broken = "Prometheus answers 400 (parse error): the PromQL is wrong"
    try:
        with pytest.raises(MetricsError, match=r"Prometheus answers 400 \(.*parse error.*\): the PromQL is wrong"):
            list(source.ask(Question(promql="sum by (", at=time.time())))
    finally:
        if isinstance(source, FakeSource):
            source.broken = ""
