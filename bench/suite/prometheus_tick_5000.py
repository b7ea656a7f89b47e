"""Seconds of processor time that a quiet tick of the controller takes for 5,000 models with three metrics each, on a real Prometheus.

A tick is what the daemon does every few seconds: ask Prometheus, read what has changed in the store, and look at every model, whose policy
has a trigger on each of three metrics. Store (SQLite), board, decisions and records are the daemon's own, in a process of their own whose
memory is measured. In memory is only what serves: 5,000 models are not run here. The peer is the same tick with a query a metric and model,
as long as it is allowed to go on.
"""

from __future__ import annotations

import multiprocessing
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from bench.harness import Bench, Sides
from bench.processes import free_port

MODELS, FEWER = 5_000, 500
AIM_S, AIM_MB, AIM_QUERIES = 2.0, 400, 10
PEER_QUERIES = 300
"""As many of the peer's 15,000 are asked, and their time is multiplied."""
SAMPLES_S = range(-12 * 60, 30 * 60, 120)
"""When there are samples, from now: also while the bench runs."""
POLICY = """{{"apiVersion": "ratchet.dev/v1", "kind": "ModelPolicy", "metadata": {{"name": "{name}"}}, "spec": {{
"task": "binary", "data": {{"source": {{"kind": "prediction-log"}}, "label": "y"}},
"train": {{"component": "sklearn.logistic_regression"}}, "objective": {{"metric": "accuracy"}},
"triggers": {{"any": [{{"metric": {{"name": "error_rate", "above": 0.05, "for": "10m"}}}},
{{"metric": {{"name": "precision", "below": 0.5}}}}, {{"metric": {{"name": "latency_p95", "above": 1}}}}]}}}}}}"""


def name_of(i: int) -> str:
    return f"model-{i:05d}"


def history(models: int, now: float) -> Iterator[str]:
    """OpenMetrics of the counters that the three metrics rest on."""
    times = [now + seconds for seconds in SAMPLES_S]
    families: dict[str, list[tuple[str, float]]] = {
        "ratchet_router_requests": [('code="200"', 99.0), ('code="500"', 1.0)],
        "ratchet_confusion": [('outcome="true_positive"', 30.0), ('outcome="false_positive"', 10.0)],
    }
    for family, series in families.items():
        yield f"# TYPE {family} counter\n"
        for i in range(models):
            for label, rate in series:
                for k, at in enumerate(times):
                    yield f'{family}_total{{model="{name_of(i)}",version="1",{label}}} {rate * k:g} {at:.0f}\n'
    yield "# TYPE ratchet_router_request_seconds histogram\n"
    for i in range(models):
        for le, rate in (("0.05", 90.0), ("0.1", 100.0), ("+Inf", 100.0)):
            for k, at in enumerate(times):
                yield f'ratchet_router_request_seconds_bucket{{model="{name_of(i)}",version="1",le="{le}"}} {rate * k:g} {at:.0f}\n'
        for k, at in enumerate(times):
            yield f'ratchet_router_request_seconds_count{{model="{name_of(i)}",version="1"}} {100.0 * k:g} {at:.0f}\n'
    yield "# EOF\n"


@contextmanager
def prometheus(models: int, folder: Path) -> Iterator[str]:
    """A Prometheus that begins with the history of so many models; its URL."""
    folder.mkdir()
    server, promtool = shutil.which("prometheus"), shutil.which("promtool")
    if server is None or promtool is None:
        raise FileNotFoundError("prometheus and promtool are not installed: apt-get install prometheus")
    text, data, config, port = folder / "history.om", folder / "data", folder / "prometheus.yml", free_port()
    with text.open("w") as file:
        file.writelines(history(models, time.time() // 60 * 60))
    command = [promtool, "tsdb", "create-blocks-from", "openmetrics", str(text), str(data)]
    subprocess.run(command, check=True, capture_output=True)
    config.write_text("{}")
    url = f"http://127.0.0.1:{port}"
    arguments = [
        server,
        f"--config.file={config}",
        f"--storage.tsdb.path={data}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    child = subprocess.Popen([*arguments, "--log.level=error"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(f"{url}/-/ready")
        yield url
    finally:
        child.terminate()
        child.wait(30)


def _wait(url: str) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(url, timeout=1) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        time.sleep(0.1)
    raise TimeoutError(url)


# ---------------------------------------------------------------- the daemon's part, in a process of its own
def controller(models: int, folder: Path, url: str, line: Connection) -> None:
    """Set up, then take one tick each time that `line` says so: processor seconds, resident megabytes, queries, and how many were known."""
    from controller.metering.board import Board, Watching
    from controller.metering.named import built_in
    from controller.metering.prometheus import Access, PrometheusSource
    from controller.observing import JobObserver
    from controller.reconcile import Reconciler
    from controller.store.sql import open_store
    from deployers.target import FakeTarget
    from pipelines.jobs.local import LocalJobRunner

    def now() -> datetime:
        return datetime.now(UTC)

    class Leads:
        def epoch(self) -> int:
            return epoch

    store = open_store(f"sqlite:///{folder / f'{models}.db'}")
    epoch = store.acquire("bench", now(), 1e6) or 0
    for i in range(models):
        _create(store, epoch, name_of(i), i, now())
    jobs = LocalJobRunner(folder / f"home-{models}")
    board = Board(source=PrometheusSource(Access(url=url, timeout_s=60)), metrics=built_in(), now=now)
    observer = JobObserver(jobs=jobs, home=folder, parallel=0)  # measuring jobs are processes of their own
    reconciler = Reconciler(
        store=store, jobs=jobs, target=FakeTarget(), leadership=Leads(), home=folder, observer=Watching(observer, board), reports=True,
    )  # fmt: skip
    process = psutil.Process()
    while line.recv():
        began = time.process_time()
        queries = board.refresh()
        said = [reconciler.reconcile(state.name, now, state) for state in store.load_all()]
        spent = time.process_time() - began
        known = sum("precision" in sentence and "unknown" not in sentence for sentence in said)
        line.send((spent, process.memory_info().rss / 1e6, queries, known))
    board.close()
    store.close()


def _create(store: Any, epoch: int, name: str, i: int, at: datetime) -> None:
    from dataclasses import replace

    from controller.plan import desired_plan
    from controller.state import ModelState, Version, VersionStatus
    from policies.schema import ModelPolicy

    policy = ModelPolicy.model_validate_json(POLICY.format(name=name))
    first = Version(
        model=name, number=1, digest=f"sha256:{i:064x}", status=VersionStatus.CHAMPION, created_at=at, cycle=1, scores={"accuracy": 0.8},
        lineage={"verdict": "pass", "rows": 1000},
    )  # fmt: skip
    made = ModelState(
        name=name, policy=policy.model_dump_json(by_alias=True), policy_digest="p", created_at=at, champion=1, next_version=2,
        versions={1: first},
    )  # fmt: skip
    store.create(epoch, replace(made, plan=desired_plan(made, policy)), [])


@contextmanager
def ticking(models: int, folder: Path, url: str) -> Iterator[Any]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=controller, args=(models, folder, url, theirs))
    process.start()

    def tick() -> tuple[float, float, int, int]:
        ours.send(True)
        found: tuple[float, float, int, int] = ours.recv()
        return found

    try:
        for _ in range(3):  # the first knows nothing, the second asks
            tick()
        yield tick
    finally:
        ours.send(False)
        process.join(30)


# ---------------------------------------------------------------- the peer
def one_a_model(url: str) -> float:
    """Processor seconds of asking for each model's metrics by themselves, with the same client library."""
    from prometheus_api_client import PrometheusConnect

    client = PrometheusConnect(url=url, timeout=60)
    began = time.process_time()
    for i in range(PEER_QUERIES // 3):
        model = f'model="{name_of(i)}"'
        requests, labels = f"ratchet_router_requests_total{{{model}", f"ratchet_confusion_total{{{model}"
        for query in (
            f'sum(increase({requests},code=~"5.."}}[10m])) / sum(increase({requests}}}[10m]))',
            f'sum(increase({labels},outcome="true_positive"}}[10m])) / sum(increase({labels}}}[10m]))',
            f"histogram_quantile(0.95, sum by (le) (rate(ratchet_router_request_seconds_bucket{{{model}}}[10m])))",
        ):
            assert client.custom_query(query), query
    return (time.process_time() - began) * 3 * MODELS / PEER_QUERIES


@contextmanager
def _setup(folder: Path) -> Iterator[Sides]:
    with (
        prometheus(MODELS, folder / "prometheus") as url,
        prometheus(FEWER, folder / "prometheus-fewer") as url_of_fewer,
        ticking(FEWER, folder, url_of_fewer) as small,
        ticking(MODELS, folder, url) as large,
    ):
        seen: list[tuple[float, float, int, int]] = []
        fewer: list[float] = []

        def ours() -> float:
            fewer.append(small()[0])
            seen.append(large())
            assert seen[-1][3] == MODELS, f"only {seen[-1][3]} of {MODELS} models know their metrics"
            return seen[-1][0]

        def note(value: float) -> str:
            few = sorted(fewer)[len(fewer) // 2]
            rss, queries = max(s[1] for s in seen), max(s[2] for s in seen)
            kept = value <= AIM_S and rss <= AIM_MB and queries <= AIM_QUERIES
            return (
                f"{queries} queries a tick (aim {AIM_QUERIES}), {rss:.0f} MB (aim {AIM_MB}), aim {AIM_S:g} s: "
                f"{'kept' if kept else 'broken'}; "
                f"{1e6 * value / MODELS:.0f} us a model, at {FEWER} models {1e6 * few / FEWER:.0f}; the peer asks {3 * MODELS} queries"
            )

        yield Sides(ours=ours, peer=lambda: one_a_model(url), note=note)


BENCH = Bench(
    name="prometheus_tick_5000", unit="s", better="lower",
    peer="a query for each metric of each model, without looking at any", runs=5, setup=_setup,
)  # fmt: skip
