"""Seconds from a firing to the first live request that the challenger answers, less the time in search and training.

All that the loop adds: preparing data, judging, packaging, starting a replica, moving traffic, and the ticks in between.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from bench.daemon import RunningDaemon, daemon
from bench.harness import Bench, Sides

MODEL = "bench"
ROWS = 10_000
TIMEOUT_S = 180.0
POLICY = """
apiVersion: ratchet.dev/v1
kind: ModelPolicy
metadata: {{name: {model}}}
spec:
  task: binary
  data: {{source: {{kind: csv, path: {path}}}, label: y}}
  train: {{component: sklearn.hist_gradient_boosting}}
  tune: {{trials: 3}}
  objective: {{metric: roc_auc}}
  gates:
    - {{metric: roc_auc, at_least: 0.5}}
    - {{metric: roc_auc, no_worse_than_champion: 0.5}}
    - {{latency_ms_p95_max: 1000}}
  budget: {{cycles: 100, per: 1d}}
  rollout: {{steps: [50%: 1h, 100%], bake: 1h, min_labelled_rows: 1}}
"""


@contextmanager
def _setup(folder: Path) -> Iterator[Sides]:
    data = folder / "rows.csv"
    _write_rows(data, seed=0)
    policy = folder / "policy.yaml"
    policy.write_text(POLICY.format(model=MODEL, path=data))
    with daemon(folder / "home", tick_s="0.25") as running:
        running.ratchet("apply", str(policy))
        running.wait_for(f"models/{MODEL}", lambda m: m["champion"] is not None and m["cycle"] is None, TIMEOUT_S)
        seeds = iter(range(1, 1000))

        def once() -> float:
            _write_rows(data, seed=next(seeds))  # other rows, so that no step comes from the cache
            return _one_cycle(running)

        yield Sides(ours=once)


def _one_cycle(running: RunningDaemon) -> float:
    """Fire, wait for the challenger's first answer, abort. Seconds."""
    model = running.get(f"models/{MODEL}")
    seq = max(e["seq"] for e in running.get("events", model=MODEL, limit=1000)["events"])
    started = time.monotonic()
    running.ratchet("trigger", MODEL, "--reason", "bench", "--yes")
    with httpx.Client(base_url=model["address"], timeout=30) as clients:
        _until_challenger_answers(clients, model["champion"], started)
    seconds = time.monotonic() - started
    events = running.get("events", model=MODEL, after=seq, limit=1000)["events"]
    computed = sum(e["data"]["seconds"] for e in events if e["kind"] in ("study.finished", "model.trained"))
    running.ratchet("abort", MODEL, "--reason", "bench", "--yes")
    running.wait_for(f"models/{MODEL}", lambda m: m["cycle"] is None, TIMEOUT_S)
    return seconds - float(computed)


def _until_challenger_answers(clients: httpx.Client, champion: int, started: float) -> None:
    instance: dict[str, Any] = {"instances": [{f"x{i}": 0.1 for i in range(8)}]}
    while time.monotonic() - started < TIMEOUT_S:
        answer = clients.post(f"/v1/models/{MODEL}:predict", json=instance)
        answer.raise_for_status()
        if answer.json()["version"] != champion:
            return
        time.sleep(0.02)
    raise TimeoutError(f"no challenger answered within {TIMEOUT_S:g} s")


def _write_rows(path: Path, seed: int) -> None:
    rng = random.Random(seed)
    lines = [",".join([*(f"x{i}" for i in range(8)), "y"])]
    for _ in range(ROWS):
        x = [rng.gauss(0, 1) for _ in range(8)]
        lines.append(",".join([*(f"{v:.5f}" for v in x), str(int(x[0] + 0.5 * x[1] + rng.gauss(0, 1) > 0))]))
    path.write_text("\n".join(lines) + "\n")


BENCH = Bench(
    name="loop_overhead",
    unit="s",
    better="lower",
    peer="",
    runs=3,
    setup=_setup,
)
