"""The target on one machine's Docker Engine: versions as containers, behind the same router as the local target's processes."""

from __future__ import annotations

import os
from pathlib import Path

from deployers.docker.containers import ContainerSettings, valid_user
from deployers.docker.engine import Engine
from deployers.docker.host import USED, DockerHost
from deployers.routed.supervised import Limits
from deployers.routed.target import RoutedTarget
from pipelines.jobs.files import read_json

__all__ = ["DockerHost", "DockerTarget", "docker_host", "used_docker_host"]

NOBODY = "65532:65532"
"""The user `nonroot` of distroless images; nobody's on Debian."""


def docker_host(
    home: Path, url: str, *, network: str = "bridge", user: str | None = None, look_every_s: float = 1.0
) -> DockerHost:
    """The host that a daemon with these settings runs containers on. The Engine is not asked for anything yet.

    Without a `user`, replicas run as the daemon's own, or as 65532:65532 where that is root. Raises ValueError."""
    own = f"{os.getuid()}:{os.getgid()}"
    chosen = user or (own if valid_user(own) else NOBODY)
    if not valid_user(chosen):
        raise ValueError(f"docker_user must be UID:GID in numbers, neither of them 0, but got {chosen!r}")
    clock = os.environ.get("RATCHET_CLOCK")
    return DockerHost(
        home=home.absolute(), engine=Engine(url), settings=ContainerSettings(user=chosen, network=network),
        look_every_s=look_every_s, clock=Path(clock).absolute() if clock else None,
    )  # fmt: skip


def used_docker_host(home: Path) -> DockerHost | None:
    """The host that containers of this home were last started on, whatever the settings say now; None if none ever were."""
    try:
        known = read_json(home.absolute() / USED)
        return None if known is None else docker_host(home, str(known["url"]), network=str(known["network"]))
    except (ValueError, KeyError, TypeError):
        return None


class DockerTarget(RoutedTarget):
    """Serves versions as containers, from images that the Engine is given."""

    def __init__(
        self, host: DockerHost, *, port: int, address: str = "127.0.0.1", limits: Limits | None = None
    ) -> None:
        super().__init__(host.home, {"docker": host}, port=port, host=address, limits=limits, default="docker")
