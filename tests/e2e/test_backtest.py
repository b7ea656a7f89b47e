"""`ratchet init` and `ratchet backtest`, as they are typed, on a stream whose change is known."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from policies.metrics import Task
from policies.starter import NUMBERS

pytestmark = pytest.mark.slow

ROWS, CHANGE = 3_000, 1_500
RATCHET = (sys.executable, "-m", "controller.cli.main")
QUICK = {
    f"component: [{', '.join(NUMBERS.components[Task.BINARY])}]": "component: [sklearn.logistic_regression]",
    f"window: [all, {', '.join(f'{rows}s' for rows in NUMBERS.windows)}, ": "window: [all, 500s, ",
    f"trials: {NUMBERS.trials}, warm_trials: {NUMBERS.warm_trials}, parallel: {NUMBERS.parallel}": (
        "trials: 3, warm_trials: 3, parallel: 1"
    ),
    f"holdout: {NUMBERS.holdout}s": "holdout: 150s",
}
"""A policy that trains in seconds."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`rows.csv`, whose label follows `a` and later its opposite, and the policy that init writes for it, made quick."""
    folder = tmp_path_factory.mktemp("backtest")
    draws = random.Random(7)
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["t", "a", "b", "batch", "y"])
        for i in range(ROWS):
            a, b = draws.random(), draws.random()
            score = (a if i < CHANGE else 1 - a) + 0.3 * b
            writer.writerow([i, round(a, 4), round(b, 4), i // 50, int(score > 0.65) ^ (draws.random() < 0.03)])
    made = ratchet(folder, "init", "--from", "rows.csv", "--label", "y", "--time", "t", "--metric", "accuracy")
    text = made.stdout
    assert "- batch " in text
    for written, quick in QUICK.items():
        assert written in text
        text = text.replace(written, quick)
    (folder / "policy.yaml").write_text(text)
    return folder


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RATCHET_")}
    return kept | {"RATCHET_HOME": str(folder / "home"), "PYTHONWARNINGS": "default"}


def ratchet(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*RATCHET, *args], cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def backtest(folder: Path, *args: str) -> dict[str, Any]:
    done = ratchet(folder, "backtest", "policy.yaml", "--data", "rows.csv", "-o", "json", *args)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    return {**result, "seconds": None, "ratchet": {**result["ratchet"], "train_seconds": None}}


@contextmanager
def started(folder: Path, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [*RATCHET, "backtest", "policy.yaml", "--data", "rows.csv", *args]
    process = subprocess.Popen(
        command, cwd=folder, env=environment(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)


def wait_for_records(root: Path, count: int) -> None:
    """Until so many jobs of the one replay below `root` have ended."""
    for _ in range(2_000):
        if len(list(root.glob("*/record/*.json"))) >= count:
            return
        time.sleep(0.05)
    raise AssertionError(f"{root} got no {count} records")


def test_a_change_is_answered_and_a_killed_replay_goes_on_to_the_same_end(folder: Path) -> None:
    """The change is followed by a promotion and a better score than that of the first version; `kill -9` in the middle changes nothing."""
    whole = backtest(folder, "--report", "report.html")
    ours, rivals = whole["ratchet"], whole["baselines"]
    assert ours["promotions"] >= 1
    assert any(
        event["kind"] == "version.promoted" and CHANGE < event["row"] < CHANGE + 900 for event in whole["events"]
    )
    assert ours["score"] > rivals["static"]["score"] + 0.1
    assert (whole["rows"], ours["windows"][-1]["to_row"]) == (ROWS, ROWS)
    assert "<svg" in (folder / "report.html").read_text()
    root = folder / "home" / "backtests"
    (work,) = root.iterdir()
    assert sorted(path.name for path in work.iterdir()) == ["lock", "result.json"]

    with started(folder) as process:
        wait_for_records(root, 7)
        process.kill()
    before = {path: path.stat().st_mtime_ns for path in root.glob("*/record/*.json")}
    resumed = backtest(folder, "--keep")
    assert timeless(resumed) == timeless(whole)
    after = {path: path.stat().st_mtime_ns for path in root.glob("*/record/*.json")}
    assert before.items() <= after.items(), "what had ended was not run again"
    assert len(after) > len(before)


def test_two_replays_do_not_write_one_folder(folder: Path) -> None:
    """The second is refused while the first runs; with another seed it is another replay, with a folder of its own."""
    root = folder / "other"
    with started(folder, "--work", str(root), "--seed", "5"):
        wait_for_records(root, 1)
        command = [*RATCHET, "backtest", "policy.yaml", "--data", "rows.csv", "--work", str(root), "--seed", "5"]
        second = subprocess.run(
            command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=100, check=False
        )
    assert second.returncode == 1
    assert "the same replay is running already" in second.stderr


def test_a_grid_compares_settings(folder: Path) -> None:
    """Each setting is replayed and told beside the others; one that never retrains serves its first version to the end."""
    args = [
        "--grid",
        "triggers.any=[{manual: {}}],[performance: {metric: accuracy, drop: 0.1, window: 200s}]",
        "--report",
        "grid.html",
    ]
    done = ratchet(folder, "backtest", "policy.yaml", "--data", "rows.csv", "-o", "json", *args)
    never, often = json.loads(done.stdout)
    assert (never["ratchet"]["retrains"], never["ratchet"]["score"]) == (0, never["baselines"]["static"]["score"])
    assert often["ratchet"]["retrains"] > 0
    assert often["baselines"]["static"]["score"] == never["baselines"]["static"]["score"], (
        "the first version is the same"
    )
    assert "<circle" in (folder / "grid.html").read_text()
