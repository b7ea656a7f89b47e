"""Clocks: real or accelerated, never backwards."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import controller.clock as clocks
from controller.clock import ScaledClock, SystemClock

START = 1_700_000_000.0


def write(path: Path, **changes: object) -> Path:
    """Replace the clock file, as a demonstration does."""
    rate = {"sim_origin": START, "real_origin": time.time(), "speed": 1000, **changes}
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(rate))
    os.replace(temporary, path)
    return path


def test_system_clock_is_held_when_the_system_steps_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands still until real time has caught up."""
    clock = SystemClock()
    before = clock.now()

    class Earlier(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return before - timedelta(hours=1)

    monkeypatch.setattr(clocks, "datetime", Earlier)
    assert clock.now() == before


def test_scaled_clock_runs_at_its_speed(tmp_path: Path) -> None:
    """A real second is a thousand simulated ones."""
    clock = ScaledClock(write(tmp_path / "clock.json"))
    first, real = clock.now(), time.time()
    time.sleep(0.02)
    passed, took = (clock.now() - first).total_seconds(), time.time() - real
    assert passed == pytest.approx(took * 1000, rel=0.2)
    assert first.tzinfo is UTC


def test_scaled_clock_follows_another_rate_and_never_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with an earlier origin stops it; one with a later origin takes it along."""
    monkeypatch.setattr(clocks, "RECHECK_S", 0.0)
    path = write(tmp_path / "clock.json")
    clock = ScaledClock(path)
    first = clock.now()
    write(path, sim_origin=START - 86_400)
    assert clock.now() >= first
    write(path, sim_origin=START + 86_400)
    assert clock.now() > first + timedelta(hours=23)


def test_half_a_clock_file_keeps_the_last_good_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trouble with the file later on is no reason to stop, and is got over."""
    monkeypatch.setattr(clocks, "RECHECK_S", 0.0)
    path = write(tmp_path / "clock.json")
    clock = ScaledClock(path)
    first = clock.now()
    path.write_text('{"sim_orig')
    assert clock.now() >= first
    path.unlink()
    assert clock.now() >= first
    write(path, sim_origin=START + 86_400)
    assert clock.now() > first + timedelta(hours=23)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Expecting value"),
        ("[]", "list indices"),
        ('{"sim_origin": 1, "real_origin": 2}', "'speed' is missing"),
        ('{"sim_origin": 1, "real_origin": 2, "speed": "fast"}', "could not convert"),
        ('{"sim_origin": 1, "real_origin": 2, "speed": -1}', "speed must not be negative"),
        ('{"sim_origin": NaN, "real_origin": 2, "speed": 1}', "finite"),
        ('{"sim_origin": 1e300, "real_origin": 2, "speed": 1}', "clock file"),
    ],
)
def test_a_bad_clock_file_is_refused_at_the_start(tmp_path: Path, text: str, words: str) -> None:
    """With the file's name and what is wrong."""
    path = tmp_path / "clock.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        ScaledClock(path)
    assert str(path) in str(caught.value)


def test_a_missing_clock_file_is_refused_at_the_start(tmp_path: Path) -> None:
    """A demonstration that forgot its clock must not run in real time unnoticed."""
    with pytest.raises(ValueError, match="No such file"):
        ScaledClock(tmp_path / "clock.json")
