"""The demonstration, played whole, as `make demo` plays it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

LIMIT_S = 300
"""What `make demo` promises to take at most, on two cores that do nothing else."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_demo_shows_all_that_it_promises(tmp_path: Path) -> None:
    """A year of flights: promotions, a gain, poison refused, a killed daemon, no failed request; and a report of it."""
    report = tmp_path / "report"
    command = [sys.executable, "-m", "demo", "--home", str(tmp_path / "home"), "--report", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3 * LIMIT_S)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    summary = json.loads((report / "summary.json").read_text())
    assert summary["requests"]["sent"] > 5_000
    assert summary["requests"]["failed"] == 0
    assert summary["cycles"]["promoted"] >= 2
    assert summary["score_served"] >= summary["score_first_version"] + 0.03
    assert summary["daemon_killed"]
    assert summary["cycle_survived"]
    assert summary["poisoned_refused"]
    page = (report / "index.html").read_text()
    assert "<svg" in page
    assert all(f">v{v['number']}<" in page for v in summary["versions"] if v["status"] in ("champion", "retired"))
