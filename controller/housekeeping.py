"""Makes room on the disk: what no cycle, no rollback and no reader needs any more.

Deleting is safe to interrupt and to repeat. A version is first written down as removed, so that no override can ask for it, and its files
go afterwards; everything else is kept or deleted by what the store says at that moment. The record itself (events, cycles, versions) is
never deleted, and the prediction log only if the settings say so: it is what models are trained on. Runs beside the reconciler, rarely.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from controller.draft import Decision, Draft
from controller.evidence import FOLDER, KEPT_REPORTS, cycle_of_report_job
from controller.observing import MEASUREMENT
from controller.phases import cycle_of_job
from controller.state import Cycle, ModelState, Phase, Version, VersionStatus
from controller.store.port import Commit, ConflictError, Store
from deployers.documents import MODEL_IMAGE
from deployers.images import OciLayout
from deployers.oci import ImageError, ImageNotFound, RegistryAway
from deployers.placement import sweep_models
from pipelines.cache import MANIFEST, StepCache
from pipelines.jobs.port import JobRunner
from policies.schema import ModelPolicy

log = structlog.get_logger()

KEEP_CYCLES = 5
"""Job records (with their logs) and working folders (with the study's journal) of so many of a model's newest cycles stay for people."""
SETTLED_S = 3600.0
"""What changed within this time is left alone, whatever it is: somebody may be about to use it."""
ORPHAN_S = 86_400.0
"""An unpacked image that belongs to no version may be one that is just being packaged, until it is so old."""
_SERVING_LOG = re.compile(r"(.+)-v([0-9]+)-[0-9]+\.log(\.1)?")
_SEGMENT_TIME = re.compile(r"[0-9]{8}T[0-9]{12}")
"""With which the name of a segment of the prediction log starts: when its first row was written, UTC."""
_CYCLE_FOLDER = re.compile(r"c([0-9]+)")


# ---------------------------------------------------------------- what may go (pure)
def expendable(state: ModelState, keep: int) -> list[int]:
    """Versions whose images may go: neither serving nor next in line, and not among the newest `keep` that were champions, nor among the
    newest `keep` that were not."""
    needed = {state.champion, state.previous, *(state.plan.digests if state.plan else ())}
    needed |= {state.cycle.challenger} if state.cycle else set()
    found: list[int] = []
    for retired in (True, False):
        group = [
            n for n, v in sorted(state.versions.items(), reverse=True)
            if (v.status is VersionStatus.RETIRED) is retired and v.removed_at is None and n not in needed
        ]  # fmt: skip
        found.extend(group[keep:])
    return sorted(found)


def give_up(state: ModelState, policy: ModelPolicy, keep: int, now: datetime) -> Decision | None:
    """The decision to remove the expendable versions' images; None if there are none."""
    numbers = expendable(state, keep)
    if not numbers:
        return None
    draft = Draft(state, policy, now)
    for number in numbers:
        draft.set_version(replace(draft.state.versions[number], removed_at=now))
    names = ", ".join(f"v{n}" for n in numbers)
    draft.event("version.removed", f"gives up {names} to make room: {keep} older versions are kept", versions=numbers)
    return draft.finish(f"gives up {names}")


def is_past(state: ModelState | None, cycle: int) -> bool:
    """Whether a cycle's working files are of no more use; a deleted model's are not."""
    if state is None:
        return True
    is_open = state.cycle is not None and state.cycle.number == cycle
    return not is_open and cycle < state.next_cycle - KEEP_CYCLES


# ---------------------------------------------------------------- what is done about it
@dataclass(frozen=True, kw_only=True, slots=True)
class Housekeeper:
    """One `sweep` does all there is to do."""

    store: Store
    jobs: JobRunner
    home: Path
    epoch: Callable[[], int]
    now: Callable[[], datetime]
    policy: Callable[[ModelState], ModelPolicy]
    keep_versions: int
    cache_max_bytes: int
    keep_log: timedelta | None = None
    """So much of every prediction log; None: all of it."""
    withdraw: Callable[[str, str, str | None], None] | None = None
    """Deletes from the registry a model's image and, if given, its model image, by digest. Raises ImageError. None: all stay there."""
    wall: Callable[[], float] = time.time
    """Epoch seconds by the clock that stamps files."""

    def sweep(self) -> None:
        """Raises StoreError, LostLeadership, `deployers.images.ImageError`, OSError; the next sweep goes on."""
        for state in self.store.load_all():
            self._give_up(state)
        states = {state.name: state for state in self.store.load_all()}
        self._images(states)
        self._records(states)
        self._working_folders(states)
        self._probes(states)
        self._serving_logs(states)
        self._prediction_logs()
        self._reports(states)
        self._profiles(states)
        self._cache(states)

    def _give_up(self, state: ModelState) -> None:
        decision = give_up(state, self.policy(state), self.keep_versions, self.now())
        if decision is None:
            return
        with suppress(ConflictError):  # somebody was faster: the next sweep looks again
            self.store.commit(self.epoch(), Commit(model=decision.after, events=decision.events))
            log.info("housekeeping.versions_removed", model=state.name, sentence=decision.sentence)

    def _images(self, states: Mapping[str, ModelState]) -> None:
        """Unpacked first in the layout, then in the folder: while the folder is there, the next sweep knows what is left to do."""
        versions = [v for state in states.values() for v in state.versions.values()]
        kept = {v.digest for v in versions if v.removed_at is None}
        removed = {v.digest for v in versions} - kept
        packaging = any(s.cycle is not None and s.cycle.phase is Phase.PACKAGING for s in states.values())
        layout, gone = OciLayout(self.home / "images"), 0
        for folder in _folders(self.home / "unpacked"):
            digest = f"sha256:{folder.name}"
            orphaned = digest not in kept and not packaging and self._age_s(folder) > ORPHAN_S
            if re.fullmatch(r"[0-9a-f]{64}", folder.name) and (digest in removed or orphaned):
                if digest in removed and not self._withdrawn(digest, versions, layout):
                    continue  # while the folder is there, the next sweep tries again
                if (self.home / "images" / "index.json").is_file():
                    layout.remove(digest)
                shutil.rmtree(folder)
                gone += 1
        if gone:
            log.info("housekeeping.images_deleted", images=gone, bytes=layout.gc(), models=sweep_models(self.home))

    def _withdrawn(self, digest: str, versions: Sequence[Version], layout: OciLayout) -> bool:
        """Whether the registry has the image no more, or there is nothing to be done about it."""
        if self.withdraw is None:
            return True
        name = next(v.model for v in versions if v.digest == digest)
        try:
            known = {
                v.digest: _model_image(layout, v.digest) for v in versions if v.digest == digest or v.removed_at is None
            }
            model_image = known.pop(digest)
            self.withdraw(name, digest, None if model_image in known.values() else model_image)
        except RegistryAway as error:
            log.warning("housekeeping.registry_away", model=name, digest=digest, error=str(error))
            return False
        except ImageError as error:
            log.warning("housekeeping.not_withdrawn", model=name, digest=digest, error=str(error))
        return True

    def _records(self, states: Mapping[str, ModelState]) -> None:
        for folder in _folders(self.home / "jobs"):
            known = cycle_of_job(folder.name) or cycle_of_report_job(folder.name)
            useless = is_past(states.get(known[0]), known[1]) if known else MEASUREMENT.fullmatch(folder.name)
            if useless and self._age_s(folder) > SETTLED_S:
                self.jobs.poll(folder.name)  # one that vanished unseen has ended now
                self.jobs.forget(folder.name)

    def _working_folders(self, states: Mapping[str, ModelState]) -> None:
        for of_model in _folders(self.home / "work"):
            for folder in _folders(of_model):
                match = _CYCLE_FOLDER.fullmatch(folder.name)
                if match and is_past(states.get(of_model.name), int(match[1])) and self._age_s(folder) > SETTLED_S:
                    shutil.rmtree(folder)
            if of_model.name not in states:
                with suppress(OSError):  # not empty
                    of_model.rmdir()

    def _reports(self, states: Mapping[str, ModelState]) -> None:
        """Those of the newest cycles stay; of a deleted model none."""
        for of_model in _folders(self.home / FOLDER):
            numbered = {int(m[1]): path for path in _folders(of_model) if (m := _CYCLE_FOLDER.fullmatch(path.name))}
            kept = sorted(numbered)[-KEPT_REPORTS:] if of_model.name in states else []
            for number, folder in numbered.items():
                if number not in kept and self._age_s(folder) > SETTLED_S:
                    shutil.rmtree(folder)
            if of_model.name not in states:
                with suppress(OSError):  # not empty
                    of_model.rmdir()

    def _serving_logs(self, states: Mapping[str, ModelState]) -> None:
        """What replicas of versions said that are gone for good."""
        folder = self.home / "serving"
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if match := _SERVING_LOG.fullmatch(path.name):
                state = states.get(match[1])
                version = state.versions.get(int(match[2])) if state else None
                if (version is None or version.removed_at is not None) and self._age_s(path) > SETTLED_S:
                    path.unlink(missing_ok=True)

    def _profiles(self, states: Mapping[str, ModelState]) -> None:
        """What is known of the data of models that are deleted (`pipelines.data.quality`)."""
        for path in [*(self.home / "quality").glob("*.json"), *(self.home / "cache" / "quality").glob("*.json")]:
            if path.stem not in states and self._age_s(path) > SETTLED_S:
                path.unlink(missing_ok=True)

    def _prediction_logs(self) -> None:
        """Segments that begin before what is kept; one holds a few minutes, so its last rows are hardly younger.

        Of deleted models too, whose logs nothing else ends. Whoever reads at that moment misses those rows and no others."""
        if self.keep_log is None:
            return
        oldest = f"{self.now().astimezone(UTC) - self.keep_log:%Y%m%dT%H%M%S%f}"
        gone = 0
        for path in (self.home / "log").glob("*/*/*.parquet"):
            begun = path.name.partition("-")[0]
            if _SEGMENT_TIME.fullmatch(begun) and begun < oldest:
                path.unlink(missing_ok=True)
                gone += 1
        if gone:
            log.info("housekeeping.log_shortened", segments=gone)

    def _probes(self, states: Mapping[str, ModelState]) -> None:
        """The rows by which refused models are recognised (`evaluators.probe`), of models that were deleted."""
        for folder in _folders(self.home / "probes"):
            if folder.name not in states and self._age_s(folder) > SETTLED_S:
                shutil.rmtree(folder)

    def _cache(self, states: Mapping[str, ModelState]) -> None:
        """What an open cycle rests on counts as used, however long it waits for a person."""
        cache = StepCache(self.home / "cache")
        for state in states.values():
            for entry in _entries_used(state.cycle, cache.root):
                with suppress(OSError):
                    os.utime(entry / MANIFEST)
        freed = cache.prune(self.cache_max_bytes)
        if freed:
            log.info("housekeeping.cache_pruned", bytes=freed)

    def _age_s(self, path: Path) -> float:
        try:
            return self.wall() - path.stat().st_mtime
        except OSError:
            return 0.0


def _entries_used(cycle: Cycle | None, root: Path) -> Iterator[Path]:
    """Folders of the step cache that the outputs of a cycle's jobs point into."""
    for text in _texts(cycle.outputs.values() if cycle else ()):
        with suppress(ValueError):
            inside = Path(text).relative_to(root).parts
            if len(inside) >= 2:
                yield root / inside[0] / inside[1]


def _texts(values: Iterable[object]) -> Iterator[str]:
    """All strings in a JSON value."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            yield from _texts(value.values())
        elif isinstance(value, Sequence):
            yield from _texts(value)


def _model_image(layout: OciLayout, digest: str) -> str | None:
    """Digest of the image that holds a version's model apart; None if there is none, or nothing is known of the version any more."""
    try:
        return layout.annotations(digest).get(MODEL_IMAGE)
    except ImageNotFound:
        return None


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(child for child in path.iterdir() if child.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
