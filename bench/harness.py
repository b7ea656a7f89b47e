"""What a measurement is, how ours and the peer's are taken in turn, and the report of them."""

from __future__ import annotations

import importlib
import pkgutil
import statistics
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.jobs.files import read_json, write_json_atomic


@dataclass(frozen=True, kw_only=True, slots=True)
class Sides:
    """The two things to measure, both set up. Each call takes one measurement, in the bench's unit."""

    ours: Callable[[], float]
    peer: Callable[[], float] | None = None
    """None where there is nothing to compare with."""
    note: Callable[[float], str] = lambda value: ""
    """What to add about our median, e.g. how it compares with an aim."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """One line of the report."""

    name: str
    unit: str
    better: Literal["higher", "lower"]
    peer: str
    """What ours is compared with, in words; empty if with nothing."""
    runs: int
    """Rounds; each measures ours, then the peer."""
    setup: Callable[[Path], AbstractContextManager[Sides]]
    """Given an empty folder, starts what is to be measured, and stops it at the end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """Medians of one bench."""

    bench: Bench
    values: tuple[float, ...]
    peer_values: tuple[float, ...]
    note: str = ""

    @property
    def value(self) -> float:
        return statistics.median(self.values)

    @property
    def peer_value(self) -> float | None:
        return statistics.median(self.peer_values) if self.peer_values else None

    @property
    def ratio(self) -> float | None:
        """How many times better ours is than the peer: above 1 is better, whichever direction is.

        >>> bench = Bench(name="n", unit="s", better="lower", peer="p", runs=1, setup=lambda folder: None)
        >>> Result(bench=bench, values=(2.0,), peer_values=(3.0,)).ratio
        1.5
        """
        if self.peer_value is None:
            return None
        over, under = (self.value, self.peer_value) if self.bench.better == "higher" else (self.peer_value, self.value)
        return over / under if under else None

    def as_json(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "unit": self.bench.unit,
            "peer": self.bench.peer,
            "peer_value": self.peer_value,
            "ratio": self.ratio,
            "runs": len(self.values),
            "note": self.note,
        }


def find_benches() -> Mapping[str, Bench]:
    """Every `BENCH` of the modules in `bench.suite`, by name. A module must be called like its bench."""
    import bench.suite

    found = {}
    for module in pkgutil.iter_modules(bench.suite.__path__):
        one: Bench = importlib.import_module(f"bench.suite.{module.name}").BENCH
        assert one.name == module.name, f"bench/suite/{module.name}.py holds the bench {one.name!r}"
        found[one.name] = one
    return found


def run_bench(bench: Bench, folder: Path, say: Callable[[str], None]) -> Result:
    """Measure ours and the peer in turn, so that whatever else the machine does meets both."""
    values, peer_values = [], []
    with bench.setup(folder) as sides:
        for i in range(bench.runs):
            values.append(sides.ours())
            if sides.peer is not None:
                peer_values.append(sides.peer())
            peer = f", peer {peer_values[-1]:.6g}" if peer_values else ""
            say(f"{bench.name} {i + 1}/{bench.runs}: {values[-1]:.6g}{peer} {bench.unit}")
        note = sides.note(statistics.median(values))
    return Result(bench=bench, values=tuple(values), peer_values=tuple(peer_values), note=note)


def write_report(path: Path, results: Mapping[str, Result]) -> None:
    """Put the results into the report; those of benches that were not run this time stay."""
    known = read_json(path) or {}
    write_json_atomic(path, known | {name: result.as_json() for name, result in results.items()})
