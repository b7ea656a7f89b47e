"""Broken training snapshots, played through the real loop: what comes of them never serves in place of a better version.

This is a fixed sample of `make bench ONLY=fault_catalogue`, whose figures are in docs/benchmarks.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.faults.catalogue import play, worse_promoted
from bench.faults.corruptions import FAULTS, SOUND
from bench.faults.streams import FOLDER, SEGMENT_ROWS, SOURCES, is_there
from bench.faults.trial import Asked

STREAMS = tuple(SOURCES)
CONTROL_SEEDS = 2


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(900)
def test_no_worse_challenger_serves(tmp_path: Path) -> None:
    """24 trials: every fault twice, once held by data quality and once only warned of, and controls, of which most pass."""
    if not is_there():
        pytest.skip(f"{FOLDER} is not there (RATCHET_TEST_DATA)")
    asked = [
        Asked(stream=STREAMS[(i + shift) % len(STREAMS)], fault=fault, seed=1, quality=quality)
        for shift, quality in enumerate(("hold", "warn"))
        for i, fault in enumerate(FAULTS)
    ]
    asked += [
        Asked(stream=stream, fault=SOUND, seed=seed, quality="hold")
        for seed in range(CONTROL_SEEDS)
        for stream in STREAMS
    ]
    found = play(asked, tmp_path / "record.jsonl", lambda text: None)
    assert worse_promoted(found) == []
    broken = [one for one in found if one.asked.fault != SOUND]
    assert sum(one.worse for one in broken) >= 3, "the sample must hold faults that do harm"
    assert [one.asked.name for one in found if one.held_after > SEGMENT_ROWS / 10] == [], (
        "a mended source is believed again"
    )
    controls = [one for one in found if one.asked.fault == SOUND]
    assert not any(one.rows_held for one in controls)
    assert sum(one.ended == "promoted" for one in controls) >= len(controls) / 2
