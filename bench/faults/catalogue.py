"""Many trials, several at a time, each outcome on record as soon as it is known; and what they come to.

A run that was stopped goes on where it was, as long as the code is the same: the record carries a digest of all that decides.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from backtest.stream import code_digest
from bench.faults.corruptions import FAULTS, SOUND
from bench.faults.streams import SOURCES
from bench.faults.trial import Asked, Ended, Found, Quality, from_json, try_fault

ENDS: tuple[Ended, ...] = ("held", "twin", "gate", "undecided", "rolled_back", "failed", "promoted")
QUALITIES: tuple[Quality, ...] = ("hold", "warn")
PROCESSES = 2


def plan(seeds: range, sound_seeds: range, *, warn_seeds: range = range(0)) -> list[Asked]:
    """Every fault in every stream with each of `seeds`, and controls with each of `sound_seeds`; `warn_seeds`: once more where data quality
    only warns."""
    asked = []
    for quality, chosen in zip(QUALITIES, (seeds, warn_seeds), strict=True):
        for seed in range(max(chosen.stop, sound_seeds.stop if quality == "hold" else 0)):
            faults = [SOUND] if quality == "hold" and seed in sound_seeds else []
            faults += FAULTS if seed in chosen else []
            asked += [Asked(stream=s, fault=f, seed=seed, quality=quality) for f in faults for s in SOURCES]
    return asked


def play(asked: Sequence[Asked], record: Path, say: Callable[[str], None]) -> list[Found]:
    """Play those that are not on record yet. The outcomes, in the order of `asked`."""
    code = digest()
    known = {found.asked.name: found for found in _recorded(record, code)}
    left = [one for one in asked if one.name not in known]
    say(f"{len(left)} trials to play, {len(asked) - len(left)} on record in {record}")
    record.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # trials run beside each other, a core each
    context = multiprocessing.get_context("forkserver")
    with record.open("a") as out, ProcessPoolExecutor(max_workers=PROCESSES, mp_context=context) as pool:
        futures = [pool.submit(play_one, one) for one in left]
        for i, future in enumerate(as_completed(futures)):
            found = future.result()
            known[found.asked.name] = found
            out.write(json.dumps({"code": code, **found.as_json()}) + "\n")
            out.flush()
            say(f"{i + 1}/{len(left)} {found.asked.name}: {found.ended}{' and worse' if found.worse else ''}")
    return [known[one.name] for one in asked]


def play_one(asked: Asked) -> Found:
    with tempfile.TemporaryDirectory(prefix="ratchet-fault-") as folder:
        return try_fault(asked, Path(folder))


def digest() -> str:
    """Of the code that plays and of the catalogue itself."""
    total = hashlib.sha256(code_digest().encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        total.update(path.read_bytes())
    return total.hexdigest()


def _recorded(record: Path, code: str) -> Iterable[Found]:
    if not record.is_file():
        return
    for line in record.read_text().splitlines():
        value = json.loads(line)
        if value["code"] == code:
            yield from_json(value)


# ---------------------------------------------------------------- what they come to
def worse_promoted(found: Iterable[Found]) -> list[Found]:
    """Challengers that a broken snapshot made worse than the champion, and that serve in its place."""
    return [one for one in found if one.asked.fault != SOUND and one.worse and one.ended == "promoted"]


def sound_ones(found: Iterable[Found]) -> list[Found]:
    """Controls whose challenger is as good as the champion, or was not even trained. The same model once more cannot be refused."""
    return [
        one for one in found if one.asked.fault == SOUND and (one.as_good or one.gain is None) and one.ended != "twin"
    ]


def sound_refused(found: Iterable[Found]) -> list[Found]:
    return [one for one in sound_ones(found) if one.ended != "promoted"]


def report(found: Sequence[Found]) -> dict[str, Any]:
    """The catalogue as JSON: how each fault ended, how often, and the two figures that must hold."""
    table = []
    for quality in QUALITIES:
        for fault in (SOUND, *FAULTS):
            rows = [one for one in found if one.asked.fault == fault and one.asked.quality == quality]
            if rows:
                table.append(_line(fault, quality, rows))
    faulty = [one for one in found if one.asked.fault != SOUND]
    return {
        "trials": len(found),
        "faulty": len(faulty),
        "worse_challengers": sum(one.worse for one in faulty),
        "worse_promoted": [one.as_json() for one in worse_promoted(found)],
        "sound": len(sound_ones(found)),
        "sound_refused": [one.as_json() for one in sound_refused(found)],
        "held_after": [one.as_json() for one in found if one.held_after],
        "seconds": round(sum(one.seconds for one in found), 1),
        "table": table,
    }


def _line(fault: str, quality: str, rows: Sequence[Found]) -> dict[str, Any]:
    worse = [one for one in rows if one.worse]
    return {
        "fault": fault, "quality": quality, "trials": len(rows),
        **{end: sum(one.ended == end for one in rows) for end in ENDS},
        "worse": len(worse),
        "worse_promoted": sum(one.ended == "promoted" for one in worse),
        "mean_seconds": round(sum(one.seconds for one in rows) / len(rows), 2),
    }  # fmt: skip


def markdown(value: dict[str, Any]) -> str:
    """The table of a report, for documents."""
    head = [
        "fault",
        "quality",
        "trials",
        *(end.replace("_", " ") for end in ENDS),
        "worse challengers",
        "of these serve",
    ]
    lines = [head, ["---"] * len(head)]
    lines += [
        [str(line[key]) for key in ("fault", "quality", "trials", *ENDS, "worse", "worse_promoted")]
        for line in value["table"]
    ]
    return "\n".join("| " + " | ".join(cells).replace("_", " ") + " |" for cells in lines)
