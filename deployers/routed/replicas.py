"""Replicas: what serves one version's image each, found again by the folders of their slots; and the hosts that they run on."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from deployers.routed.http import is_ok
from deployers.routed.processes import Slot
from deployers.routed.supervised import Life, Limits, Runner, Supervised
from pipelines.jobs.files import read_json, write_json_atomic

HOST = "127.0.0.1"
"""Where replicas listen, for the router alone."""
MAIN, BASELINE = "main", "baseline"
_SLOT_NAME = re.compile(r"v([1-9][0-9]*)-([0-9]+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaSpec:
    """What a replica serves, where and how. Two replicas of equal specs are interchangeable."""

    model: str
    version: int
    digest: str
    workers: int
    arm: str = MAIN
    """MAIN, or BASELINE: started beside those of the same version, to compare a canary with."""
    host: str = "local"
    """The name of the host that it runs on."""
    memory_mb: int | None = None
    cpus: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Obstacle:
    """Why nothing can be started from an image now."""

    reason: str
    passing: bool = False
    """Whether something is being done about it: then a version waits, else it is failed."""


class Host(Protocol):
    """Where replicas run: as processes of this machine, as containers of its engine."""

    @property
    def trouble(self) -> str:
        """Why the host can do nothing now, and what to do about it; empty where it can, or where it was not asked."""

    def fetch(self, digest: str) -> Obstacle | None:
        """A stride towards having the image; None once it can be started from."""

    def obstacle(self, digest: str) -> Obstacle | None:
        """Why the image cannot be started from, as known without asking anybody."""

    def runner(self, folder: Path, spec: ReplicaSpec, epoch: int) -> Runner:
        """What runs, or should, in the slot with this folder. `epoch`: of the controller that would start it."""

    def name(self, folder: Path, spec: ReplicaSpec) -> str:
        """By which a person finds what runs in the slot, such as a container's; empty where it has none."""

    def found(self, model: str) -> Mapping[str, ReplicaSpec]:
        """Slot → what runs of the model according to the host itself, should the slots' folders be lost."""

    def models(self) -> Iterable[str]:
        """Of which anything runs, according to the host itself."""

    def epoch(self, model: str) -> int:
        """The newest controller that started anything of the model here, according to the host itself; 0 if it does not know."""

    def sweep(self, model: str, known: Mapping[str, ReplicaSpec]) -> None:
        """End what runs of the model in none of the known slots."""


@dataclass(frozen=True, slots=True)
class Replica:
    spec: ReplicaSpec
    index: int
    process: Supervised
    name: str = ""

    def is_ready(self, life: Life, now: float) -> bool:
        """Whether it may be given requests."""
        return self.process.is_ready(life, now)

    def is_ending(self) -> bool:
        """Whether it was told to end, after which it cannot be used any more."""
        return self.process.life().terminated_at is not None

    def url(self, life: Life) -> str:
        return f"http://{HOST}:{life.port}"


class ReplicaFolder:
    """All replicas of one model: `<home>/run/replicas/<model>/v<N>-<k>/`."""

    def __init__(self, home: Path, model: str, hosts: Mapping[str, Host], limits: Limits, epoch: int) -> None:
        self._epoch = epoch
        self._model = model
        self._hosts = hosts
        self._limits = limits
        self._folder = home / "run" / "replicas" / model

    def known(self) -> list[Replica]:
        """All that were started and not cleared away, in the order of version and index."""
        found = [self._replica(spec, int(match[2])) for _, match, spec in self._slots() if spec is not None]
        return sorted(found, key=lambda r: (r.spec.version, r.index))

    def sweep(self) -> None:
        """Make slots for what runs without one, and end what nobody can say of which image it serves. Needs the model's lock."""
        known = {path.name: spec for path, _, spec in self._slots() if spec is not None}
        for host in self._hosts.values():
            for name, spec in host.found(self._model).items():
                if name not in known and _SLOT_NAME.fullmatch(name):
                    write_json_atomic(self._folder / name / "spec.json", asdict(spec))
                    known[name] = spec
        for path, _, described in self._slots():
            if described is None:
                Slot(path).kill()
                shutil.rmtree(path, ignore_errors=True)
        for kind, host in self._hosts.items():
            host.sweep(self._model, {name: spec for name, spec in known.items() if spec.host == kind})

    def _slots(self) -> Iterator[tuple[Path, re.Match[str], ReplicaSpec | None]]:
        for path in self._folder.glob("v*-*"):
            if match := _SLOT_NAME.fullmatch(path.name):
                spec: ReplicaSpec | None = None
                try:
                    content = read_json(path / "spec.json")
                    spec = None if content is None else ReplicaSpec(**content)
                except (ValueError, TypeError):
                    pass  # nobody can say what runs there
                yield path, match, spec if spec is not None and spec.host in self._hosts else None

    def add(self, spec: ReplicaSpec, taken: Iterable[int]) -> Replica:
        """A new slot with the lowest index that is not taken. Raises OSError."""
        used = set(taken)
        index = next(k for k in range(len(used) + 1) if k not in used)
        replica = self._replica(spec, index)
        write_json_atomic(replica.process.runner.folder / "spec.json", asdict(spec))
        return replica

    def clear(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _replica(self, spec: ReplicaSpec, index: int) -> Replica:
        folder, host = self._folder / f"v{spec.version}-{index}", self._hosts[spec.host]

        def probe(port: int) -> bool:
            return is_ok(HOST, port, "/v2/health/ready", timeout_s=self._limits.probe_timeout_s)

        process = Supervised(host.runner(folder, spec, self._epoch), probe, self._limits)
        return Replica(spec, index, process, host.name(folder, spec))
