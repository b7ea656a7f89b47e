"""The demonstration, played whole, as `make demo` plays it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from servers import need
from servers.postgres import FOLDERS

SERVERS = {
    "initdb": "postgresql", "prometheus": "prometheus", "prometheus-alertmanager": "prometheus-alertmanager",
    "docker-registry": "docker-registry",
}  # fmt: skip
LIMIT_S = 300
"""What `make demo` promises to take at most, on two cores that do nothing else."""


def play(folder: Path, *options: str) -> dict[str, Any]:
    """The summary of a run that kept all promises."""
    report = folder / "report"
    command = [sys.executable, "-m", "demo", "--home", str(folder / "home"), "--report", str(report), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3 * LIMIT_S)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    summary: dict[str, Any] = json.loads((report / "summary.json").read_text())
    return summary


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_demo_shows_all_that_it_promises(tmp_path: Path) -> None:
    """A year of flights: promotions, a gain, poison refused, a killed daemon, no failed request; and a report of it."""
    summary = play(tmp_path)
    assert summary["requests"]["sent"] > 5_000
    assert summary["requests"]["failed"] == 0
    assert summary["cycles"]["promoted"] >= 2
    assert summary["score_served"] >= summary["score_first_version"] + 0.03
    assert summary["daemon_killed"]
    assert summary["cycle_survived"]
    assert summary["poisoned_refused"]
    page = (tmp_path / "report" / "index.html").read_text()
    assert "<svg" in page
    assert all(f">v{v['number']}<" in page for v in summary["versions"] if v["status"] in ("champion", "retired"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_same_year_on_the_servers_of_a_company(tmp_path: Path) -> None:
    """`make demo-stack`, with the files of examples/stack; in the end each server holds its share of what happened."""
    for command, package in SERVERS.items():
        need(command, package, FOLDERS)
    summary = play(tmp_path, "--stack")
    assert set(summary["parts"]) == {"postgresql", "prometheus", "alertmanager", "registry"}
    assert all(version[0].isdigit() for version in summary["parts"].values())
    assert all(summary["parts_hold"].values())
    assert summary["requests"]["failed"] == 0
    assert summary["cycles"]["promoted"] >= 2
    assert summary["poisoned_refused"]
    assert not (tmp_path / "home" / "state" / "state.db").exists()
