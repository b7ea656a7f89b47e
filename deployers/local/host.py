"""Processes of this machine as replicas: each runs an unpacked image's own serving code."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deployers.placement import MODELS, read_placement
from deployers.routed.processes import Slot
from deployers.routed.replicas import HOST, Obstacle, ReplicaSpec
from deployers.routed.router import child_environment
from deployers.routed.supervised import Life, ProcessRunner, Program

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class ProcessHost:
    """Serves images that are unpacked under `<home>/unpacked`. What runs is known by the locks in the slots alone."""

    home: Path
    trouble: str = ""

    def fetch(self, digest: str) -> Obstacle | None:
        """See Host. Images are unpacked by the packaging job."""
        return self.obstacle(digest)

    def obstacle(self, digest: str) -> Obstacle | None:
        problem = image_problem(self.home, digest)
        return Obstacle(reason=problem) if problem else None

    def runner(self, folder: Path, spec: ReplicaSpec, epoch: int) -> ProcessRunner:
        slot = Slot(folder)
        log = self.home / "serving" / f"{spec.model}-{folder.name}.log"

        def program(_life: Life) -> Program:
            return replica_program(self.home, spec, slot.announce, log)

        return ProcessRunner(slot, program)

    def name(self, folder: Path, spec: ReplicaSpec) -> str:
        """Nothing: processes are found by what is in the slot's folder."""
        return ""

    def found(self, model: str) -> Mapping[str, ReplicaSpec]:
        return {}

    def models(self) -> Iterable[str]:
        return ()

    def epoch(self, model: str) -> int:
        return 0

    def sweep(self, model: str, known: Mapping[str, ReplicaSpec]) -> None:
        """Nothing runs outside of slots."""


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
    try:
        pulled = (placement := read_placement(root)) is not None and placement.placement == "pull"
    except ValueError as error:
        return str(error)
    missing = [str(root / part) for part in (("app",) if pulled else ("model", "app")) if not (root / part).is_dir()]
    return f"image {digest} is not unpacked: {' and '.join(missing)} missing" if missing else ""


def replica_program(home: Path, spec: ReplicaSpec, announce: Path, log: Path) -> Program:
    """How a replica is run: with the serving code that its image carries."""
    root = image_root(home, spec.digest)
    options: Mapping[str, str] = {
        "--name": spec.model,
        "--version": str(spec.version),
        "--log-dir": str(home / "log" / spec.model),
        "--host": HOST,
        "--port": "0",
        "--workers": str(spec.workers),
        "--announce": str(announce),
    }
    words = [*model_options(home, root), *(word for pair in options.items() for word in pair)]
    return Program(
        command=[sys.executable, "-m", "serving.runtime", *words],
        env=child_environment(root / "app"),
        cwd=root / "app",
        log=log,
    )


def model_options(home: Path, root: Path) -> list[str]:
    """How a replica is told where its model is. Raises ValueError if that is not known."""
    placement = read_placement(root)
    if placement is None or placement.placement != "pull":
        return ["--model-dir", str(root / "model")]
    known = {"--model-credentials": placement.credentials, "--model-ca": placement.ca}
    return [
        "--model-layer", placement.layer, "--model-size", str(placement.size), "--model-cache", str(home / MODELS),
        *(word for source in placement.sources for word in ("--model-from", source)),
        *(word for option, value in known.items() if value for word in (option, value)),
    ]  # fmt: skip
