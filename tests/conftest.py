"""What all tests share: helper modules beside the tests can be imported by name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from servers.docker import DockerServer
    from servers.postgres import Postgres

# Folders that are packages (`servers`) are imported as such: with them on the path, `servers/docker.py` would hide the library.
_TESTS = Path(__file__).parent
_FOLDERS = [
    p for p in sorted(_TESTS.rglob("*")) if p.is_dir() and p.name != "__pycache__" and not (p / "__init__.py").exists()
]
sys.path[:0] = [str(_TESTS), *map(str, _FOLDERS)]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server of this test run. Tests that stop it or starve it start their own."""
    from servers.postgres import running_postgres

    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[DockerServer]:
    """One Docker Engine for all tests that do not break it."""
    from servers.docker import docker_server

    with docker_server() as server:
        yield server


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests that start whole daemons go one after the other, on one of the workers of `make test`: each of them needs a processor.

    (`--dist loadgroup` would do, but pytest-xdist 3.8 marks groups in what is a read-only copy since pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class OneAtATime(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return "daemons" if nodeid.startswith("tests/e2e/") else nodeid

    return OneAtATime(config, log)
