"""Rigs that several files use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from docker_rig import DockerRig
from servers import free_port
from servers.docker import DockerServer
from target_rigs import LocalRig, RealRig


@pytest.fixture(scope="session")
def shared_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image layout for all tests."""
    return tmp_path_factory.mktemp("layout") / "images"


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalRig]:
    rig = LocalRig(tmp_path / "home", free_port())
    try:
        yield rig
    finally:
        rig.target.stop_all()


@pytest.fixture
def docker(tmp_path: Path, docker_engine: DockerServer, shared_images: Path) -> Iterator[DockerRig]:
    rig = DockerRig(tmp_path / "home", free_port(), docker_engine.url, shared_images)
    try:
        yield rig
    finally:
        rig.clean()


@pytest.fixture(params=["local", "docker"])
def real(request: pytest.FixtureRequest) -> RealRig:
    """Each target whose replicas really run."""
    found: RealRig = request.getfixturevalue(request.param)
    return found
