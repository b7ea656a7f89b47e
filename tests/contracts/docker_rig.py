"""The target `docker` of the contract suite, on a real Engine, with images whose Python is this machine's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from servers.machine_image import base_image
from target_rigs import LIMITS, STUB, RealRig

from deployers.docker import DockerTarget, docker_host
from deployers.docker.containers import HOME, LABEL
from deployers.docker.engine import Engine
from deployers.docker.host import DockerHost
from deployers.images import OciLayout
from deployers.oci import Descriptor
from deployers.routed.target import RoutedTarget


@dataclass
class DockerRig(RealRig):
    """Images are made in one layout for all tests, `images`, so that what is the same is made and given to the Engine once."""

    home: Path
    port: int
    url: str
    images: Path
    network: str = "host"
    target: RoutedTarget = field(init=False)
    host: DockerHost = field(init=False)

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        self.images.mkdir(parents=True, exist_ok=True)
        if not (self.home / "images").exists():
            (self.home / "images").symlink_to(self.images)
        self.restart()

    def restart(self) -> None:
        self.host = docker_host(self.home, self.url, network=self.network, look_every_s=0.1)
        self.target = DockerTarget(self.host, port=self.port, limits=LIMITS)

    def again(self) -> DockerRig:
        return DockerRig(self.home, self.port, self.url, self.images, self.network)

    def arguments(self) -> list[str]:
        return [*super().arguments(), self.url, str(self.images)]

    @property
    def base(self) -> str:
        return with_base(self.images, base_image(serving=True))

    @property
    def engine(self) -> Engine:
        return self.host.engine

    def image(self, name: str, **behaviour: Any) -> str:
        return stub_image(self.images, name, behaviour)

    def heal(self, name: str) -> None:
        folder = self.home / "log" / "flights" / "behaviour"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text("{}")

    def containers(self, *, running: bool = True) -> dict[str, Mapping[str, Any]]:
        """Slot → container as the Engine lists it."""
        listed = self.engine.containers(f"{HOME}={self.home}")
        return {c["Labels"][f"{LABEL}slot"]: c for c in listed if not running or c["State"] == "running"}

    def replica(self, slot: str) -> int:
        found = self.containers().get(slot)
        return int(self.engine.state(found["Id"])["Pid"]) if found else 0

    def replicas(self) -> int:
        return len(self.containers())

    def clean(self) -> None:
        """End everything, whatever the test did to it."""
        self.target.stop_all()
        for container in self.engine.containers(f"{HOME}={self.home}"):
            self.engine.remove(container["Id"])


def with_base(images: Path, base: Path) -> str:
    """Digest, in the layout, of the base image of another, which is linked instead of copied: it has hundreds of megabytes."""
    layout = OciLayout(images)
    (entry,) = json.loads((base / "index.json").read_bytes())["manifests"]
    for blob in (base / "blobs" / "sha256").iterdir():
        target = layout.blobs.folder / blob.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            try:
                target.hardlink_to(blob)
            except OSError:
                shutil.copyfile(blob, target)
    layout.add(Descriptor.from_json(entry, "base"))
    return str(entry["digest"])


def stub_image(images: Path, name: str, behaviour: Mapping[str, Any]) -> str:
    """Digest of an image in the layout that serves with `replica_stub`."""
    folder = images.parent / f"stub {name} {len(json.dumps(behaviour))}"
    model, app = folder / "model", folder / "serving"
    for part in (model, app):
        part.mkdir(parents=True, exist_ok=True)
    (model / "behaviour.json").write_text(json.dumps({"name": name, **behaviour}))
    (app / "__init__.py").touch()
    (app / "runtime.py").write_text(STUB.read_text())
    layout = OciLayout(images)

    return layout.build(
        model,
        app,
        name="flights",
        number=1,
        annotations={"stub": name},
        base=with_base(images, base_image(serving=False)),
    ).digest
