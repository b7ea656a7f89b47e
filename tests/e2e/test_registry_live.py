"""The whole of Ratchet with a registry: what serves is what was pushed, and a registry that is away holds up no champion."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from fast_rig import MODEL, rows_of, running, small_spec, write_csv
from servers import free_port, need
from servers.registry import registry

pytestmark = pytest.mark.slow


def test_the_champion_is_what_the_registry_has(tmp_path: Path) -> None:
    """A first version is trained, packaged, pushed and served, its model pulled by the replica; another reader finds the same digest, and
    `explain` says where it is and why."""
    (tmp_path / "x").mkdir()
    write_csv(tmp_path / "x" / "data.csv", rows_of(1))
    with (
        registry(tmp_path / "registry") as server,
        running(tmp_path / "x", IMAGE_BUILDER="registry", REGISTRY=f"{server.host}/models") as rig,
    ):
        rig.first_champion(small_spec(model={"placement": "pull"}))
        name = f"docker://{server.host}/models/{MODEL}:v1"
        command = [need("skopeo"), "inspect", "--tls-verify=false", "--format", "{{.Digest}}", name]
        found = subprocess.run(command, capture_output=True, check=True, text=True, timeout=60).stdout.strip()
        told = "".join(rig.ratchet("explain", MODEL).stdout.split())
        assert f"image{found[:19]}" in told
        assert "modelplacementpull,chosenbythepolicy" in told
        assert f"pushedas{server.host}/models/{MODEL}@{found}" in told


def test_a_registry_that_is_away_is_waited_for(tmp_path: Path) -> None:
    """The packaging job says which registry it did not reach and is tried again; once the registry is there the version is pushed and
    serves."""
    (tmp_path / "x").mkdir()
    write_csv(tmp_path / "x" / "data.csv", rows_of(1))
    port = free_port()
    with running(tmp_path / "x", IMAGE_BUILDER="registry", REGISTRY=f"127.0.0.1:{port}/models") as rig:
        rig.apply(small_spec())
        rig.wait_for(lambda _: "is not reachable" in str(rig.events()), "packaging has met the registry that is away")
        assert rig.model()["cycle"] is not None
        with registry(tmp_path / "registry", port=port):
            assert rig.wait_closed(1)["outcome"] == "promoted"
