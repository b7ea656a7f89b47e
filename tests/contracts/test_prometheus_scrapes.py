"""A real Prometheus finds a real router and real replicas by the daemon's own list, and a replica that is killed fakes no drop."""

from __future__ import annotations

import json
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from os import kill
from pathlib import Path
from typing import Any

import pytest
from controller_world import TOKEN, World, served
from servers.prometheus import PrometheusServer, prometheus
from target_rigs import LocalRig, free_port, plan, settle, wait_until
from test_target_with_runtime import real_image

from controller.metering.named import built_in
from controller.metering.port import Question
from controller.metering.prometheus import Access, PrometheusSource
from controller.metering.tables import read
from controller.metering.tables import signal as said
from policies.signals import Signal


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[LocalRig]:
    found = LocalRig(tmp_path / "home", free_port())
    try:
        yield found
    finally:
        found.target.stop_all()


@pytest.fixture
def server(rig: LocalRig, tmp_path: Path) -> Iterator[PrometheusServer]:
    """Prometheus, with the configuration that docs/prometheus.md gives, but quicker."""
    world = World(target=rig.target)  # type: ignore[arg-type]
    (tmp_path / "token").write_text(TOKEN)
    with served(world) as url:
        scrape = {
            "job_name": "ratchet",
            "http_sd_configs": [{
                "url": f"{url}/api/v1/targets", "refresh_interval": "1s",
                "authorization": {"type": "Bearer", "credentials_file": str(tmp_path / "token")},
            }],
        }  # fmt: skip
        with prometheus(tmp_path / "prometheus", scrape=[scrape]) as running:
            yield running


def _asked(server: PrometheusServer, name: str, version: int = 1) -> Signal:
    source = PrometheusSource(Access(url=server.url))
    metric = built_in()[name]
    at = time.time()
    table = read(metric, source.ask(Question(promql=metric.promql, at=at)), at=at, observed_at=datetime.now(UTC))
    source.close()
    return said(table, "flights", version)


def _answered(server: PrometheusServer, promql: str) -> float:
    return sum(float(series["value"][1]) for series in server.query(promql))


@pytest.mark.slow
def test_replicas_are_found_and_a_restart_fakes_no_drop(
    rig: LocalRig, server: PrometheusServer, tmp_path: Path
) -> None:
    """Labels model and version stand on every sample. Killed, a replica begins again at zero in the same series: what was counted stays."""
    image = real_image(rig.home, tmp_path, 1, 0.75)
    wanted = plan(1, {1: 100}, {1: image}, replicas=2)
    settle(rig, wanted)
    try:
        _until(lambda: _health(server) == {"daemon": "up", "router": "up", "flights/v1-0": "up", "flights/v1-1": "up"})
    except AssertionError:
        print(_health(server), server.log.read_text(), rig.target.pages())
        raise
    _ask(rig, 60)
    counted = 'sum by (model, version) (ratchet_predictions_total{model="flights", version="1", role="live"})'
    _until(lambda: _answered(server, counted) >= 60)
    _ask(rig, 60)  # and now in series that have been scraped
    _until(lambda: _answered(server, counted) >= 120)
    _until(lambda: (_asked(server, "precision").rows or 0) > 0)
    # What was counted since the first scrape. An increase extrapolates that to the ends of its window, so it is never less.
    seen = "ratchet_predictions_total[10m]"
    before = _answered(server, f"sum(max_over_time({seen}) - min_over_time({seen}))")
    kill(rig.replica("v1-0"), signal.SIGKILL)
    settle(rig, wanted, lambda s: s.replicas[1].state == "starting", what="seen dead")
    settle(rig, wanted, lambda s: s.replicas[1].state == "ready", what="back")
    _until(lambda: _answered(server, "sum(resets(ratchet_predictions_total[10m]))") >= 1 or _restarted(server))
    _ask(rig, 60)
    after: list[float] = []

    def grown() -> bool:
        after.append(_answered(server, "sum(increase(ratchet_predictions_total[10m]))"))
        return after[-1] > before

    _until(grown)
    assert min(after) >= before >= 60, "an increase fell when a counter began again"
    assert _asked(server, "precision").value == 1.0, "every answer is positive, and every label too"
    # What a counter held before it was first scraped is in no increase: of the three rounds the first may be missing.
    _until(lambda: (_asked(server, "error_rate").rows or 0) >= 100)
    assert _asked(server, "error_rate").value == 0.0
    assert _health(server)["flights/v1-0"] == "up"


def _restarted(server: PrometheusServer) -> bool:
    """Whether the second process of the slot was scraped under the first one's name."""
    found = server.query('count(count by (instance) (ratchet_predictions_total{instance="flights/v1-0"}))')
    return bool(found) and _health(server).get("flights/v1-0") == "up"


def _health(server: PrometheusServer) -> dict[str, str]:
    with urllib.request.urlopen(f"{server.url}/api/v1/targets?state=active", timeout=10) as answer:
        targets: list[dict[str, Any]] = json.load(answer)["data"]["activeTargets"]
    return {target["labels"]["instance"]: target["health"] for target in targets}


def _ask(rig: LocalRig, requests: int) -> None:
    """So many predictions, each with a label. A replica remembers its own answers only, and requests go round, so they are varied."""
    for number in range(requests):
        status, _, body = rig.predict()
        assert status == 200
        if number % 2:
            rig.predict()
        labels = json.dumps({"labels": [{"id": body["ids"][0], "label": 1}]}).encode()
        path = f"http://127.0.0.1:{rig.port}/v1/models/flights/feedback"
        request = urllib.request.Request(path, labels, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=10).close()


def _until(true: Callable[[], bool]) -> None:
    wait_until(true, "what Prometheus shows")
