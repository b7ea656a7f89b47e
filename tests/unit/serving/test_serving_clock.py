"""Recorded times follow the clock file and never go back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from serving.clock import RESTAT_S, Clock


class Times:
    """Real and monotonic time, moved by the test."""

    def __init__(self) -> None:
        self.real = 1000.0
        self.monotonic = 0.0

    def pass_s(self, seconds: float) -> None:
        self.real += seconds
        self.monotonic += seconds


def write(path: Path, sim_origin: float, real_origin: float, speed: float) -> None:
    """Replace the clock file as its owner does, by rename."""
    other = path.with_suffix(".new")
    other.write_text(json.dumps({"sim_origin": sim_origin, "real_origin": real_origin, "speed": speed}))
    os.replace(other, path)


def test_without_a_file_it_is_real_time_that_never_goes_back() -> None:
    """When the system's clock is set back, recorded time stands still until it is reached again."""
    times = Times()
    clock = Clock(None, real=lambda: times.real, monotonic=lambda: times.monotonic)
    assert clock.now() == 1000.0
    times.real = 400.0
    assert clock.now() == 1000.0
    times.real = 1001.0
    assert clock.now() == 1001.0


def test_the_file_sets_origin_and_speed(tmp_path: Path) -> None:
    """now = sim_origin + (real - real_origin) * speed, and a replaced file counts after at most 50 ms."""
    times, path = Times(), tmp_path / "clock.json"
    write(path, 50_000, 1000, 100)
    clock = Clock(path, real=lambda: times.real, monotonic=lambda: times.monotonic)
    times.pass_s(2)
    assert clock.now() == 50_200
    write(path, 90_000, times.real, 1)
    times.pass_s(RESTAT_S / 2)
    assert clock.now() == pytest.approx(50_202.5)
    times.pass_s(RESTAT_S)
    assert clock.now() == pytest.approx(90_000, abs=1)


def test_a_file_that_turns_time_back_stops_it(tmp_path: Path) -> None:
    """A file with an earlier time does not make recorded time go back."""
    times, path = Times(), tmp_path / "clock.json"
    write(path, 50_000, 1000, 1)
    clock = Clock(path, real=lambda: times.real, monotonic=lambda: times.monotonic)
    assert clock.now() == 50_000
    write(path, 10_000, 1000, 1)
    times.pass_s(1)
    assert clock.now() == 50_000


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"sim_origin": 1}',
        '{"sim_origin": "x", "real_origin": 1, "speed": 1}',
        '{"sim_origin": NaN, "real_origin": 1, "speed": 1}',
        '{"sim_origin": 1e999, "real_origin": 1, "speed": 1}',
    ],
)
def test_a_broken_file_changes_nothing(tmp_path: Path, content: str) -> None:
    """A clock file that is gone or not valid leaves what was last read in force."""
    times, path = Times(), tmp_path / "clock.json"
    clock = Clock(path, real=lambda: times.real, monotonic=lambda: times.monotonic)
    assert clock.now() == 1000
    write(path, 50_000, 1000, 1)
    times.pass_s(1)
    assert clock.now() == 50_001
    path.write_text(content)
    times.pass_s(1)
    assert clock.now() == 50_002
    path.unlink()
    times.pass_s(1)
    assert clock.now() == 50_003


def test_the_environment_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RATCHET_CLOCK is read; without it time is real."""
    write(tmp_path / "clock.json", 50_000, 2e9, 0.0)
    monkeypatch.setenv("RATCHET_CLOCK", str(tmp_path / "clock.json"))
    assert Clock.from_environment().now() == 50_000
    monkeypatch.delenv("RATCHET_CLOCK")
    assert Clock.from_environment().now() > 1_700_000_000
