"""Room is made only of what nobody needs any more, and making it may be interrupted anywhere."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from controller_rig import Rig
from controller_states import NAME, NOW, POLICY, cycle, state, version, with_cycle

from controller import housekeeping, overrides
from controller.housekeeping import KEEP_CYCLES, ORPHAN_S, SETTLED_S, Housekeeper, expendable, give_up, is_past
from controller.overrides import Order, OverrideRefused, Verb
from controller.phases import job_id
from controller.state import ModelState, Phase, VersionStatus
from deployers.images import OciLayout
from pipelines.cache import MANIFEST
from pipelines.jobs.port import JobSpec, Limits

LONG_AGO = 1_000_000_000.0


def crowded(phase: Phase | None = None, **changes: Any) -> ModelState:
    """v2 serves and v1 is next in line; v10 to v19 were champions once, v20 to v29 were refused."""
    old = {n: version(n) for n in range(10, 20)}
    bad = {n: version(n, VersionStatus.QUARANTINED) for n in range(20, 30)}
    made = state(phase)
    return replace(made, versions={**made.versions, **old, **bad}, next_version=30, **changes)


# ---------------------------------------------------------------- what may go
def test_the_newest_of_each_kind_stay() -> None:
    """Former champions, to go back to; and others, to look into."""
    assert expendable(crowded(), keep=3) == [*range(10, 17), *range(20, 27)]
    assert expendable(crowded(), keep=50) == []


@pytest.mark.parametrize("phase", [None, *Phase])
def test_what_serves_or_is_next_in_line_never_goes(phase: Phase | None) -> None:
    """Champion, the one before, the challenger, and whatever the plan names, however old."""
    made = crowded(phase)
    assert not {1, 2, 3} & set(expendable(made, keep=0)) - {1 if phase is Phase.BAKING else 0}
    assert made.champion not in expendable(made, keep=0)


def test_giving_up_is_on_record_and_moves_no_traffic() -> None:
    """One event names them all; nothing else changes, and a second time there is nothing to do."""
    decision = give_up(crowded(), POLICY, 3, NOW)
    assert decision is not None
    assert [e.kind for e in decision.events] == ["version.removed"]
    assert decision.after.plan == crowded().plan
    assert {n for n, v in decision.after.versions.items() if v.removed_at} == {*range(10, 17), *range(20, 27)}
    assert give_up(decision.after, POLICY, 3, NOW) is None


def test_a_version_given_up_cannot_be_ordered_back() -> None:
    """Rollback, promote and pin say why; an unnamed rollback takes another."""
    decision = give_up(crowded(), POLICY, 3, NOW)
    assert decision is not None
    for verb in (Verb.ROLLBACK, Verb.PROMOTE, Verb.PIN):
        with pytest.raises(OverrideRefused, match=r"v10 was removed at 2026-03-01 12:00 to make room"):
            overrides.apply(decision.after, POLICY, Order(verb=verb, actor="ann", reason="why", version=10), NOW)


def test_working_files_of_the_newest_cycles_stay() -> None:
    """And those of the open one, however long it lasts; a deleted model's may go."""
    made = state(cycle=cycle(Phase.AWAITING_APPROVAL, number=1), next_cycle=20)
    kept = [n for n in range(1, 20) if not is_past(made, n)]
    assert kept == [1, *range(20 - KEEP_CYCLES, 20)]
    assert is_past(None, 3)


# ---------------------------------------------------------------- what is done about it
class Home:
    """A state folder with images, jobs and working folders in it, all of them old."""

    def __init__(self, home: Path, made: ModelState) -> None:
        self.home, self.rig = home, Rig()
        self.layout = OciLayout(home / "images")
        self.made = replace(made, versions={n: self._image(v) for n, v in made.versions.items()})
        self.rig.add(self.made)

    def _image(self, one: Any) -> Any:
        model = self.home / "model"
        shutil.rmtree(model, ignore_errors=True)
        model.mkdir(parents=True)
        (model / "model.json").write_text(str(one.number))
        ref = self.layout.build(name=NAME, number=one.number, model_dir=model, app_dir=model, annotations={})
        self.layout.unpack(ref.digest, self.home / "unpacked")
        return replace(one, digest=ref.digest)

    def keeper(self, keep: int = 1, wall: float = LONG_AGO + 10 * ORPHAN_S) -> Housekeeper:
        return Housekeeper(
            store=self.rig.store, jobs=self.rig.jobs, home=self.home, epoch=self.rig.leadership.epoch, now=lambda: NOW,
            policy=self.rig.reconciler.policy, keep_versions=keep, cache_max_bytes=1, wall=lambda: wall,
        )  # fmt: skip

    def folder(self, *parts: str) -> Path:
        path = self.home.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        os.utime(path, (LONG_AGO, LONG_AGO))
        return path

    def job(self, name: str, *, ended: bool = True) -> Path:
        spec = JobSpec(job_id=name, entry="pipelines.prepare:run", inputs={}, limits=Limits(timeout_s=1, memory_mb=1))
        self.rig.jobs.automatic = ended
        self.rig.jobs.ensure(spec)
        return self.folder("jobs", name)

    def unpacked(self) -> set[int]:
        numbers = {v.digest.removeprefix("sha256:"): n for n, v in self.made.versions.items()}
        return {numbers[p.name] for p in (self.home / "unpacked").iterdir() if p.name in numbers}


def few() -> ModelState:
    """v2 serves, v1 is next in line, v4 and v5 were champions once."""
    made = state()
    return replace(made, versions={**made.versions, 4: version(4), 5: version(5)}, next_version=6)


def test_a_sweep_deletes_the_images_of_versions_given_up(tmp_path: Path) -> None:
    """Unpacked, in the layout, and their bytes; the others are whole."""
    home = Home(tmp_path, few())
    home.keeper().sweep()
    assert home.unpacked() == {1, 2, 5}
    left = {entry.digest for entry in home.layout.list()}
    assert left == {v.digest for n, v in home.made.versions.items() if n != 4}
    for digest in left:
        home.layout.verify(digest)
    assert home.rig.state(NAME).versions[4].removed_at == NOW


def test_a_sweep_that_was_interrupted_is_finished_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record comes first; what it gave up is deleted whenever there is a sweep that lives long enough."""
    home = Home(tmp_path, few())

    def dies(_path: object) -> None:
        raise OSError("killed")

    monkeypatch.setattr(housekeeping.shutil, "rmtree", dies)
    with pytest.raises(OSError, match="killed"):
        home.keeper().sweep()
    assert home.unpacked() == {1, 2, 4, 5}
    monkeypatch.undo()
    home.keeper().sweep()
    assert home.unpacked() == {1, 2, 5}


def test_an_image_that_is_being_packaged_is_left_alone(tmp_path: Path) -> None:
    """Nobody knows it yet: not while any cycle packages, and not while it is young."""
    orphan = "f" * 64
    home = Home(tmp_path, replace(few(), cycle=cycle(Phase.PACKAGING)))
    path = home.folder("unpacked", orphan)
    home.keeper().sweep()
    assert path.exists()
    idle = Home(tmp_path / "idle", few())
    path = idle.folder("unpacked", orphan)
    idle.keeper(wall=LONG_AGO + ORPHAN_S).sweep()
    assert path.exists()
    idle.keeper().sweep()
    assert not path.exists()


def test_records_of_past_jobs_go(tmp_path: Path) -> None:
    """Old cycles' and finished measurements'; not those that run, nor those of the newest cycles, nor what is no job of ours."""
    made = replace(few(), next_cycle=20)
    home = Home(tmp_path, made)
    past, recent = job_id(NAME, 3, Phase.TUNING, 1), job_id(NAME, 19, Phase.TUNING, 1)
    gone, running = job_id("deleted", 1, Phase.TUNING, 1), job_id(NAME, 4, Phase.TUNING, 1)
    measurement = f"{NAME}-observe-0123456789ab"
    for name in (past, recent, gone, measurement):
        home.job(name)
    home.job(running, ended=False)
    home.folder("jobs", "somebody-elses")
    home.keeper().sweep()
    assert home.rig.jobs.statuses.keys() == {recent, running}


def test_what_is_young_is_left_alone(tmp_path: Path) -> None:
    """Somebody may be about to read it."""
    home = Home(tmp_path, few())
    measurement = f"{NAME}-observe-0123456789ab"
    home.job(measurement)
    home.keeper(wall=LONG_AGO + SETTLED_S).sweep()
    assert measurement in home.rig.jobs.statuses


def test_probes_of_deleted_models_go(tmp_path: Path) -> None:
    """What refused models are recognised by stays for as long as the model does."""
    home = Home(tmp_path, few())
    kept, gone = home.folder("probes", NAME), home.folder("probes", "deleted")
    home.keeper().sweep()
    assert kept.exists()
    assert not gone.exists()


def test_working_folders_of_past_cycles_go(tmp_path: Path) -> None:
    """With the study's journal; those of deleted models too."""
    home = Home(tmp_path, replace(few(), next_cycle=20))
    past, recent = home.folder("work", NAME, "c3", "tuning").parent, home.folder("work", NAME, "c19", "tuning").parent
    other, note = home.folder("work", "deleted", "c1"), home.folder("work", NAME, "notes")
    for path in (past, recent):
        os.utime(path, (LONG_AGO, LONG_AGO))
    home.keeper().sweep()
    assert [path.exists() for path in (past, recent, other, note)] == [False, True, False, True]
    assert not other.parent.exists()


def test_the_cache_of_an_open_cycle_counts_as_used(tmp_path: Path) -> None:
    """A cycle may wait for approval for days; what it rests on must still be there to be packaged."""
    made = replace(few(), next_cycle=20)
    home = Home(tmp_path, made)
    entries = {}
    for key in ("held", "free"):
        entries[key] = home.folder("cache", "train", key)
        (entries[key] / MANIFEST).write_text("{}")
        os.utime(entries[key] / MANIFEST, (LONG_AGO, LONG_AGO))
    waiting = with_cycle(
        state(Phase.AWAITING_APPROVAL), outputs={"training": {"model_dir": str(entries["held"] / "model")}}
    )
    home.rig.add(replace(waiting, name="waiting", cycle=replace(waiting.cycle, model="waiting"), versions={}, champion=None,
                         previous=None, plan=None))  # type: ignore[type-var]  # fmt: skip
    home.keeper().sweep()
    assert entries["held"].exists()
    assert not entries["free"].exists()


def test_logs_of_replicas_go_with_their_version(tmp_path: Path) -> None:
    """Those of versions that may serve again, of the router, and of strangers stay."""
    home = Home(tmp_path, few())
    names = [
        f"{NAME}-v1-0.log",
        f"{NAME}-v4-0.log",
        f"{NAME}-v4-1.log.1",
        f"{NAME}-v99-0.log",
        "deleted-v1-0.log",
        "router.log",
    ]
    for name in names:
        path = home.folder("serving") / name
        path.write_text("said")
        os.utime(path, (LONG_AGO, LONG_AGO))
    home.keeper().sweep()
    assert {path.name for path in (tmp_path / "serving").iterdir()} == {names[0], "router.log"}


def test_prediction_logs_are_kept_unless_the_settings_say_otherwise(tmp_path: Path) -> None:
    """Then segments that began before what is kept go; journals, which a replica may be writing, and other files stay."""
    home = Home(tmp_path, few())
    old, young = f"{NOW - timedelta(days=31):%Y%m%dT%H%M%S%f}-7-ab", f"{NOW - timedelta(days=29):%Y%m%dT%H%M%S%f}-7-ab"
    files = [
        home.folder("log", model, kind) / name
        for model in (NAME, "deleted")
        for kind in ("predictions", "labels")
        for name in (f"{old}.parquet", f"{old}.jsonl", f"{young}.parquet", "0-mine.parquet")
    ]
    for path in files:
        path.write_bytes(b"rows")
    home.keeper().sweep()
    assert all(path.exists() for path in files)
    replace(home.keeper(), keep_log=timedelta(days=30)).sweep()
    assert {path for path in files if not path.exists()} == {p for p in files if p.name == f"{old}.parquet"}


def test_an_empty_home_is_no_trouble(tmp_path: Path) -> None:
    """The first sweep may come before the first image."""
    home = Home(tmp_path, state(versions={}, champion=None, previous=None, plan=None))
    shutil.rmtree(tmp_path)
    home.keeper().sweep()
