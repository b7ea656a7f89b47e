"""Replicas: processes that serve one unpacked image each, found again by the folders of their slots."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from deployers.local.http import is_ok
from deployers.local.processes import Presence, Slot
from deployers.local.router import child_environment
from deployers.local.supervised import Life, Limits, Program, Supervised
from pipelines.jobs.files import read_json, write_json_atomic

HOST = "127.0.0.1"
MAIN, BASELINE = "main", "baseline"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_SLOT_NAME = re.compile(r"v([1-9][0-9]*)-([0-9]+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaSpec:
    """What a replica serves, and how. Two replicas of equal specs are interchangeable."""

    model: str
    version: int
    digest: str
    workers: int
    arm: str = MAIN
    """MAIN, or BASELINE: started beside those of the same version, to compare a canary with."""


@dataclass(frozen=True, slots=True)
class Replica:
    spec: ReplicaSpec
    index: int
    process: Supervised

    def is_ready(self, life: Life) -> bool:
        """Whether it may be given requests."""
        return life.ready_at is not None and self.process.slot.presence() is Presence.RUNNING

    def is_ending(self) -> bool:
        """Whether it was told to end, after which it cannot be used any more."""
        return self.process.life().terminated_at is not None

    def url(self, life: Life) -> str:
        return f"http://{HOST}:{life.port}"


class ReplicaFolder:
    """All replicas of one model: `<home>/run/replicas/<model>/v<N>-<k>/`."""

    def __init__(self, home: Path, model: str, limits: Limits) -> None:
        self._home = home
        self._model = model
        self._limits = limits
        self._folder = home / "run" / "replicas" / model

    def known(self) -> list[Replica]:
        """All that were started and not cleared away, in the order of version and index."""
        found = [self._replica(spec, int(match[2])) for _, match, spec in self._slots() if spec is not None]
        return sorted(found, key=lambda r: (r.spec.version, r.index))

    def sweep(self) -> None:
        """End what runs in slots whose description is lost: nobody knows which image it serves. Needs the model's lock."""
        for path, _, spec in self._slots():
            if spec is None:
                Slot(path).kill()
                shutil.rmtree(path, ignore_errors=True)

    def _slots(self) -> Iterator[tuple[Path, re.Match[str], ReplicaSpec | None]]:
        for path in self._folder.glob("v*-*"):
            if match := _SLOT_NAME.fullmatch(path.name):
                try:
                    content = read_json(path / "spec.json")
                    yield path, match, None if content is None else ReplicaSpec(**content)
                except (ValueError, TypeError):
                    yield path, match, None

    def add(self, spec: ReplicaSpec, taken: Iterable[int]) -> Replica:
        """A new slot with the lowest index that is not taken. Raises OSError."""
        used = set(taken)
        index = next(k for k in range(len(used) + 1) if k not in used)
        replica = self._replica(spec, index)
        write_json_atomic(replica.process.slot.folder / "spec.json", asdict(spec))
        return replica

    def clear(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _replica(self, spec: ReplicaSpec, index: int) -> Replica:
        name = f"v{spec.version}-{index}"
        slot = Slot(self._folder / name)
        log = self._home / "serving" / f"{spec.model}-{name}.log"

        def program(_life: Life) -> Program:
            return replica_program(self._home, spec, slot.announce, log)

        def probe(port: int) -> bool:
            return is_ok(HOST, port, "/v2/health/ready", timeout_s=self._limits.probe_timeout_s)

        return Replica(spec, index, Supervised(slot, program, probe, self._limits))


def image_root(home: Path, digest: str) -> Path:
    """Where an image is unpacked. Raises ValueError if it is no digest."""
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise ValueError(f"an image digest is sha256: and 64 hexadecimal digits, but got {digest!r}")
    return home / "unpacked" / match[1]


def image_problem(home: Path, digest: str) -> str:
    """Why the image cannot be run from here, or an empty string."""
    try:
        root = image_root(home, digest)
    except ValueError as error:
        return str(error)
    missing = [str(root / part) for part in ("model", "app") if not (root / part).is_dir()]
    return f"image {digest} is not unpacked: {' and '.join(missing)} missing" if missing else ""


def replica_program(home: Path, spec: ReplicaSpec, announce: Path, log: Path) -> Program:
    """How a replica is run: with the serving code that its image carries."""
    root = image_root(home, spec.digest)
    options: Mapping[str, str] = {
        "--model-dir": str(root / "model"),
        "--name": spec.model,
        "--version": str(spec.version),
        "--log-dir": str(home / "log" / spec.model),
        "--host": HOST,
        "--port": "0",
        "--workers": str(spec.workers),
        "--announce": str(announce),
    }
    return Program(
        command=[sys.executable, "-m", "serving.runtime", *(word for pair in options.items() for word in pair)],
        env=child_environment(root / "app"),
        cwd=root / "app",
        log=log,
    )
