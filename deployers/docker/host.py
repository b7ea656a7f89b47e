"""Containers of this machine's Docker Engine as replicas.

What runs is asked of the Engine, one list for all models and not more often than every second; containers are known by their labels. What
must survive the daemon besides is in the slots' folders, as for processes. While the Engine does not answer, nobody knows what runs:
nothing is started or stopped, and only what does not answer either is taken out of traffic.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from deployers.docker.containers import (
    HOME,
    HOST_NETWORK,
    LABEL,
    ContainerSettings,
    Found,
    container_config,
    container_name,
    fingerprint,
    labels_of,
    obituary,
    read_container,
)
from deployers.docker.engine import Engine, EngineAway, EngineRefused
from deployers.docker.images import Shelf
from deployers.routed.processes import Presence, last_line
from deployers.routed.replicas import Obstacle, ReplicaSpec
from deployers.routed.supervised import Life
from pipelines.jobs.files import read_json, write_bytes_atomic, write_json_atomic

log = structlog.get_logger("docker_target")

USED = Path("run", "engine.json")
"""File of the home that says which Engine was used last."""
AWAY_S = 5.0
"""An Engine that did not answer is asked again after so long."""
_ANNOUNCEMENT_BYTES_MAX = 4096


class Census:
    """Which containers of this home there are. Thread-safe; remembers the answer for a moment, so that it does not cost a call a model."""

    def __init__(self, engine: Engine, home: Path, look_every_s: float) -> None:
        self._engine = engine
        self._every_s = look_every_s
        self._label = f"{HOME}={home}"
        self._lock = threading.Lock()
        self._at = float("-inf")
        self._found: Mapping[str, Sequence[Found]] | None = {}
        self.trouble = ""
        """Why the Engine could not be asked the last time, if it could not."""

    def look(self) -> Mapping[str, Sequence[Found]] | None:
        """Model → its containers; None while the Engine does not answer."""
        with self._lock:
            if time.monotonic() - self._at >= (AWAY_S if self.trouble else self._every_s):
                self._ask()
            return self._found

    def _ask(self) -> None:
        try:
            listed = [read_container(entry) for entry in self._engine.containers(self._label)]
        except (EngineAway, EngineRefused) as error:
            self._found, self.trouble = None, str(error)
        else:
            grouped: dict[str, list[Found]] = {}
            for found in listed:
                grouped.setdefault(found.model, []).append(found)
            self._found, self.trouble = grouped, ""
        self._at = time.monotonic()

    def of(self, model: str) -> Sequence[Found]:
        """Those of one model; none while the Engine does not answer."""
        return (self.look() or {}).get(model, ())

    def outdated(self) -> None:
        """Something was changed: ask again at the next look."""
        with self._lock:
            if not self.trouble:
                self._at = float("-inf")


@dataclass(kw_only=True, slots=True)
class DockerHost:
    """See Host."""

    home: Path
    engine: Engine
    settings: ContainerSettings
    look_every_s: float = 1.0
    """The list of containers may be so old."""
    clock: Path | None = None
    """The clock file that replicas follow; they are given a copy."""
    census: Census = field(init=False)
    shelf: Shelf = field(init=False)

    def __post_init__(self) -> None:
        self.census = Census(self.engine, self.home, self.look_every_s)
        self.shelf = Shelf(self.engine, self.home)

    @property
    def trouble(self) -> str:
        return self.census.trouble

    def fetch(self, digest: str) -> Obstacle | None:
        if self.census.look() is None:
            return Obstacle(reason=self.trouble, passing=True)
        return self.shelf.fetch(digest)

    def obstacle(self, digest: str) -> Obstacle | None:
        if self.trouble:
            return Obstacle(reason=self.trouble, passing=True)
        return self.shelf.obstacle(digest)

    def runner(self, folder: Path, spec: ReplicaSpec, epoch: int) -> ContainerRunner:
        return ContainerRunner(self, folder, spec, epoch)

    def name(self, folder: Path, spec: ReplicaSpec) -> str:
        found = self.container(folder.name, spec.model)
        return found.name if found else container_name(self.home, folder.name, spec.model)

    def container(self, slot: str, model: str) -> Found | None:
        """What is in the slot: of several, which should not be, the one that runs."""
        inside = [found for found in self.census.of(model) if found.slot == slot]
        return max(inside, key=lambda found: (found.runs, found.id), default=None)

    def found(self, model: str) -> Mapping[str, ReplicaSpec]:
        running = sorted(self.census.of(model), key=lambda found: found.runs)
        return {found.slot: found.spec for found in running if found.spec is not None}

    def models(self) -> Iterable[str]:
        return [model for model in (self.census.look() or {}) if model]

    def epoch(self, model: str) -> int:
        return max((found.epoch for found in self.census.of(model)), default=0)

    def sweep(self, model: str, known: Mapping[str, ReplicaSpec]) -> None:
        """Strays: without labels that can be read, of another version than their slot, or a second one in it."""
        for found in self.census.of(model):
            usual = self.container(found.slot, model)
            if known.get(found.slot) != found.spec or found.spec is None or usual is None or usual.id != found.id:
                log.warning("container.stray_removed", container=found.name, model=model)
                with suppress(EngineRefused):
                    self.engine.remove(found.id)
                self.census.outdated()

    def remember(self) -> None:
        """Write down which Engine is used, for whoever has to stop it all without knowing the settings. Raises OSError."""
        used = {"url": self.engine.url, "network": self.settings.network}
        try:
            known = read_json(self.home / USED)
        except ValueError:
            known = None
        if known != used:
            write_json_atomic(self.home / USED, used)

    def log_dir(self, model: str) -> Path:
        return self.home / "log" / model


@dataclass(frozen=True, slots=True)
class ContainerRunner:
    """See Runner."""

    host: DockerHost
    folder: Path
    spec: ReplicaSpec
    epoch: int

    def _found(self) -> Found | None:
        return self.host.container(self.folder.name, self.spec.model)

    def presence(self) -> Presence:
        if self.host.census.look() is None:
            return Presence.UNKNOWN
        found = self._found()
        return Presence.RUNNING if found is not None and found.runs else Presence.GONE

    def port(self) -> int | None:
        if self.host.settings.network != HOST_NETWORK:
            found = self._found()
            return found.port if found is not None else None
        return announced_port(self.folder / "announce" / "announce.json")

    def tend(self, life: Life) -> None:
        self._copy_clock()

    def prepare(self, life: Life) -> Life:
        """Folders that the container writes to, as its user's. Raises OSError."""
        user, group = (int(part) for part in self.host.settings.user.split(":"))
        shutil.rmtree(self.folder / "announce", ignore_errors=True)
        logs = self.host.log_dir(self.spec.model)
        for folder in (self.folder / "announce", logs, logs / "predictions", logs / "labels"):
            give(folder, user, group)
        self._copy_clock()
        return life

    def _copy_clock(self) -> None:
        clock, copy = self.host.clock, self.folder / "clock"
        if clock is None:
            return
        with suppress(OSError):
            known = copy / clock.name
            if not known.exists() or known.stat().st_mtime_ns < clock.stat().st_mtime_ns:
                write_bytes_atomic(known, clock.read_bytes())

    def start(self, life: Life) -> str:
        """Start the container that is there, or a new one. Raises EngineAway."""
        engine, found = self.host.engine, self._found()
        clock = self.host.clock.name if self.host.clock is not None else ""
        config, host_config = container_config(
            self.spec,
            self.host.settings,
            folder=self.folder,
            log_dir=self.host.log_dir(self.spec.model),
            clock=clock,
            model=self.host.shelf.model(self.spec.digest),
        )
        made_as = fingerprint(config, host_config)
        try:
            if found is not None and (found.config != made_as or found.state == "dead"):
                engine.remove(found.id)
                found = None
            container = found.id if found is not None else self._create(config, host_config, made_as)
            try:
                engine.start(container)
            except EngineRefused:
                engine.remove(container)  # the next attempt makes a new one
                raise
        except EngineRefused as error:
            return f"the Docker Engine did not start its container: {error}"
        finally:
            self.host.census.outdated()
        return ""

    def _create(self, config: Mapping[str, object], host_config: Mapping[str, object], made_as: str) -> str:
        """Raises EngineAway, EngineRefused."""
        slot, spec = self.folder.name, self.spec
        self.host.remember()
        image = self.host.shelf.image(spec.digest)
        if image is None:
            raise EngineRefused(404, f"it has no image {spec.digest}")
        labels = labels_of(self.host.home, slot, spec, self.epoch) | {f"{LABEL}config": made_as}
        name = container_name(self.host.home, slot, spec.model)
        try:
            return self.host.engine.create(name, image, {**config, "labels": labels}, host_config)
        except EngineRefused as error:
            if error.status == 404 and "no such image" in str(error).lower():
                self.host.shelf.missing(spec.digest)
            raise

    def obituary(self, life: Life) -> str:
        found = self._found()
        if found is None:
            return "its container was removed"
        if found.state == "created":
            return "its container was never started"
        try:
            state = self.host.engine.state(found.id)
            said = last_line(self.host.engine.last_said(found.id).splitlines())
        except (EngineAway, EngineRefused) as error:
            return f"why is not known: {error}"
        return obituary(state, said, self.spec)

    def terminate(self) -> None:
        self._signal("SIGTERM")

    def kill(self) -> None:
        self._signal("SIGKILL")

    def _signal(self, name: str) -> None:
        found = self._found()
        if found is None:
            return
        try:
            if found.state == "paused":  # no signal reaches it
                self.host.engine.unpause(found.id)
            self.host.engine.signal(found.id, name)
        except EngineRefused as error:
            log.warning("container.not_signalled", container=found.name, signal=name, error=str(error))
        finally:
            self.host.census.outdated()

    def clear(self) -> None:
        found = self._found()
        try:
            if found is not None:
                self.host.engine.remove(found.id)
        except EngineRefused as error:
            log.warning("container.not_removed", container=found.name if found else "", error=str(error))
            return
        finally:
            self.host.census.outdated()
        shutil.rmtree(self.folder, ignore_errors=True)


def give(folder: Path, user: int, group: int) -> None:
    """Make the folder, and the journals in it that dead replicas left, the container's user's, where we may; else all is ours already.

    A replica before could write where this folder lies, so nothing here follows a link. Raises OSError."""
    if folder.is_symlink():
        folder.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(handle, user, group)
        for name in os.listdir(handle):
            if name.endswith(".jsonl"):
                with suppress(FileNotFoundError):  # it has become a segment
                    os.chown(name, user, group, dir_fd=handle, follow_symlinks=False)
    finally:
        os.close(handle)


def announced_port(path: Path) -> int | None:
    """The port that a replica wrote down. The container may write anything there, so nothing is trusted: no links, no long files."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            announced = json.loads(file.read(_ANNOUNCEMENT_BYTES_MAX))
    except (OSError, ValueError, RecursionError):
        return None
    port = announced.get("port") if isinstance(announced, dict) else None
    return port if isinstance(port, int) and 0 < port < 65_536 else None
