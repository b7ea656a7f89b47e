"""What is shipped for Prometheus and Grafana, tried on a real Prometheus with what our exporters really show."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from servers import need
from servers.prometheus import PrometheusServer, exporter, prometheus

from controller.metering.named import built_in
from controller.metering.port import Question
from controller.metering.prometheus import Access, PrometheusSource
from controller.metering.tables import read, signal
from controller.telemetry import metrics as ours
from serving.router.metrics import RouterMetrics
from serving.runtime.metrics import Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))
DASHBOARD = json.loads((DEPLOY / "grafana" / "ratchet.json").read_text())
_NAME = re.compile(r"(?<![\w:])ratchet_\w+")


def expressions() -> list[tuple[str, str]]:
    """Title and PromQL of every panel, for all models."""
    return [
        (panel["title"], target["expr"].replace("$model", ".*"))
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    ]


class Traffic:
    """The exporters of a daemon, a router and two replicas, and something for each of them to count."""

    def __init__(self) -> None:
        self.router = RouterMetrics()
        self.replicas = [Metrics("m", 1, ["no", "yes"]), Metrics("several", 2, ["a", "b", "c"])]

    def flow(self) -> None:
        for model, version in (("m", "1"), ("several", "2")):
            self.router.requests.labels(model, version, "200").inc(9)
            self.router.requests.labels(model, version, "503").inc()
            self.router.seconds.labels(model, version).observe(0.03)
            self.router.shadow.labels(model, version, "ok").inc()
        for replica in self.replicas:
            replica.predicted("live", 10)
            replica.unmatched(1)
            replica.batched(4)
            replica.unlogged("prediction", 1)
            replica.answered("infer", 200, 0.02)
        self.replicas[0].matched([("yes", "yes"), ("yes", "no"), ("no", "yes"), ("no", "no")])
        self.replicas[1].matched([("a", "a"), ("b", "a")])
        ours.RECONCILE_SECONDS.observe(0.01)
        ours.RECONCILE_ERRORS.labels("bug").inc()
        ours.SCHEDULER_EVENTS.labels("missed").inc()
        for result in ("delivered", "failed"):
            ours.NOTICE_ATTEMPTS.labels(result).inc()
        ours.EVENTS.labels("cycle.opened").inc()
        ours.METRIC_QUERIES.labels("ok").inc()
        ours.METRIC_QUERY_SECONDS.observe(0.1)
        ours.LABEL_COVERAGE.labels("m").set(0.9)
        ours.LABEL_LAG.labels("m").set(60)

    def text(self) -> str:
        pages = [generate_latest(ours.REGISTRY), generate_latest(self.router.registry)]
        pages += [replica.render() for replica in self.replicas]
        seen: set[str] = set()
        lines = []
        for line in b"".join(pages).decode().splitlines():
            if not line.startswith("#") or line not in seen:
                lines.append(line)
            seen.add(line)
        return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def traffic() -> Iterator[Traffic]:
    yield Traffic()
    for metric in (ours.LABEL_COVERAGE, ours.LABEL_LAG):
        metric.clear()


@pytest.fixture(scope="module")
def server(traffic: Traffic, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    """Scraping our exporters, with the shipped rules evaluated twice a second."""
    traffic.flow()
    folder = tmp_path_factory.mktemp("prometheus")
    with exporter(traffic.text()) as shown:
        scrape = {"job_name": "ratchet", "static_configs": [{"targets": [shown.target], "labels": {"instance": "all"}}]}
        with prometheus(folder, scrape=[scrape], rules=RULES) as running:
            for _ in range(4):
                traffic.flow()
                shown.show(traffic.text())
            yield running


def test_rules_are_valid_and_do_what_they_say() -> None:
    """promtool's own check, and the unit tests beside the rules."""
    promtool = need("promtool", "prometheus")
    tests = sorted((DEPLOY / "prometheus" / "tests").glob("*.yml"))
    for command in ([promtool, "check", "rules", *map(str, RULES)], [promtool, "test", "rules", *map(str, tests)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def test_only_metrics_that_there_are_are_named(traffic: Traffic) -> None:
    """Rules, dashboard and built-in metrics name what our exporters show, and what our rules record."""
    traffic.flow()
    shown: set[str] = set()
    for family in text_string_to_metric_families(traffic.text()):
        shown |= {sample.name for sample in family.samples}
    texts = [re.sub(r"#.*", "", path.read_text()) for path in RULES] + [promql for _, promql in expressions()]
    texts += [part for metric in built_in().values() for part in metric.parts.values()]
    texts = [text.replace("ratchet_part", "") for text in texts]
    assert {name for text in texts for name in _NAME.findall(text)} - shown == set()
    recorded = {name for path in RULES for name in re.findall(r"record: (\S+)", path.read_text())}
    used = {name for text in texts for name in re.findall(r"\b\w+:ratchet_\w+:\w+", text)}
    assert used - recorded == set()


def test_every_alert_says_what_to_do() -> None:
    """A summary, and a description for whoever is woken."""
    text = (DEPLOY / "prometheus" / "rules" / "ratchet-alerts.yml").read_text()
    alerts = text.count("- alert: ")
    assert alerts == 12
    assert text.count("summary: ") == text.count("description: ") == text.count("severity: ") == alerts
    told = (DEPLOY / "prometheus" / "tests" / "ratchet-rules_test.yml").read_text()
    assert [name for name in re.findall(r"- alert: (\w+)", text) if name not in told] == []


@pytest.mark.parametrize(("title", "promql"), expressions(), ids=lambda text: text[:40])
def test_every_panel_shows_something(server: PrometheusServer, title: str, promql: str) -> None:
    """Each query of the dashboard is valid, and has an answer where there is traffic."""
    deadline = time.monotonic() + 20
    while not (found := server.query(promql)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert found, title


def test_built_in_metrics_have_answers(server: PrometheusServer) -> None:
    """Each, in one query, for every version that has such counters."""
    source = PrometheusSource(Access(url=server.url))
    at, now = time.time(), datetime.now(UTC)
    values = {}
    for name, metric in built_in().items():
        table = read(metric, source.ask(Question(promql=metric.promql, at=at)), at=at, observed_at=now)
        values[name] = signal(table, "m", 1)
    source.close()
    assert {name: found.reason for name, found in values.items() if found.value is None} == {}
    assert values["error_rate"].value == pytest.approx(0.1, abs=0.001)
    assert [values[name].value for name in ("accuracy", "precision", "recall")] == pytest.approx([0.5] * 3, abs=0.001)


def test_prometheus_accepts_all_that_is_shown(server: PrometheusServer) -> None:
    """No sample of our exporters is refused, and every rule is evaluated without an error."""
    with urllib.request.urlopen(f"{server.url}/api/v1/targets", timeout=10) as answer:
        (target,) = json.load(answer)["data"]["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    with urllib.request.urlopen(f"{server.url}/api/v1/rules", timeout=10) as answer:
        rules = [rule for group in json.load(answer)["data"]["groups"] for rule in group["rules"]]
    assert [rule["name"] for rule in rules if rule.get("lastError")] == []
    assert len(rules) == 25
