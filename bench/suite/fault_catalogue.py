"""Challengers that a broken training snapshot made worse, and that serve in the champion's place: there must be none.

216 seeded trials (nine faults, three recorded streams, eight seeds) and 60 controls, then 81 trials in which the rules of data quality only
warn, so that gates and rollout stand alone. A run that was stopped goes on; the outcomes and the table are in bench-report/.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.faults.catalogue import markdown, plan, play, report
from bench.faults.streams import FOLDER, SOURCES, is_there
from bench.harness import Bench, Sides
from pipelines.jobs.files import write_json_atomic

RECORD = Path("bench-report/fault_catalogue.jsonl")
REPORT = Path("bench-report/fault_catalogue.json")


def _say(text: str) -> None:
    print(text, flush=True)


@contextmanager
def _setup(_: Path) -> Iterator[Sides]:
    if not is_there():
        raise FileNotFoundError(f"{FOLDER} must hold {', '.join(SOURCES)}; name another folder in RATCHET_TEST_DATA")
    known: dict[str, Any] = {}

    def ours() -> float:
        found = play(plan(range(8), range(20), warn_seeds=range(3)), RECORD, _say)
        known.update(report(found))
        write_json_atomic(REPORT, known)
        _say(markdown(known))
        return float(len(known["worse_promoted"]))

    def note(_: float) -> str:
        return (
            f"of {known['faulty']} faulty snapshots, {known['worse_challengers']} of which made a worse challenger; "
            f"{len(known['sound_refused'])} of {known['sound']} sound challengers refused; {known['seconds']:.0f} s of trials"
        )

    yield Sides(ours=ours, note=note)


BENCH = Bench(
    name="fault_catalogue",
    unit="worse challengers in service",
    better="lower",
    peer="",
    runs=1,
    setup=_setup,
)
