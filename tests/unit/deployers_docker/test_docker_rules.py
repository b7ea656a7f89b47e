"""The rules of the docker target that need no Engine: what containers are made as, known by and believed, and what the Engine is sent."""

from __future__ import annotations

import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from deployers.docker import docker_host, used_docker_host
from deployers.docker.containers import (
    LABEL,
    ContainerSettings,
    container_config,
    container_name,
    fingerprint,
    labels_of,
    obituary,
    read_container,
)
from deployers.docker.engine import Engine, EngineAway
from deployers.docker.host import Census, announced_port, give
from deployers.docker.images import archive, tag_of
from deployers.images import OciLayout
from deployers.routed.replicas import ReplicaSpec

SPEC = ReplicaSpec(model="flights", version=3, digest="sha256:" + "a" * 64, workers=2, host="docker")
SETTINGS = ContainerSettings(user="1000:1000")


def made(spec: ReplicaSpec = SPEC, settings: ContainerSettings = SETTINGS, **more: object) -> tuple[dict, dict]:  # type: ignore[type-arg]
    return container_config(spec, settings, folder=Path("/slot"), log_dir=Path("/home/log"), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, arm="baseline", memory_mb=512, cpus=1.5)])
def test_a_container_is_read_back_from_its_labels(spec: ReplicaSpec) -> None:
    """All that a replica is stands in them, whatever the container is called."""
    listed = {
        "Id": "c0ffee",
        "Names": ["/renamed"],
        "State": "running",
        "Labels": labels_of(Path("/h"), "v3-1", spec, 7),
    }
    found = read_container(listed)
    assert (found.spec, found.slot, found.epoch, found.name, found.runs) == (spec, "v3-1", 7, "renamed", True)


@pytest.mark.parametrize("labels", [None, {}, {"dev.ratchet.version": "three", "dev.ratchet.epoch": "-1"}])
def test_labels_that_say_nothing_are_no_replica(labels: dict[str, str] | None) -> None:
    """What somebody else wrote there is never taken for one of ours."""
    found = read_container({"Id": "c0ffee", "Names": None, "State": "exited", "Labels": labels, "Ports": None})
    assert (found.spec, found.epoch, found.port, found.runs) == (None, 0, None, False)


@pytest.mark.parametrize("model", ["../../etc", "a/b", ".", "A", ""])
def test_labels_of_a_strangers_container_lead_nowhere(model: str) -> None:
    """Containers inherit the labels of their images, which anybody may have made; folders are called by model."""
    strange = labels_of(Path("/h"), "v3-1", replace(SPEC, model=model), 7) | {"dev.ratchet.epoch": "9" * 5000}
    found = read_container({"Id": "c0ffee", "Names": ["/x"], "State": "running", "Labels": strange})
    assert (found.model, found.spec, found.epoch) == ("", None, 0)


def test_labels_that_the_base_image_brought_along_do_not_count() -> None:
    """Such as those of a replica with limits that somebody has made an image of: else one without would pass for a stray."""
    of_image = labels_of(Path("/h"), "v1-0", replace(SPEC, memory_mb=64, cpus=0.5), 1)
    listed = {
        "Id": "c0ffee",
        "Names": ["/x"],
        "State": "running",
        "Labels": of_image | labels_of(Path("/h"), "v3-1", SPEC, 7),
    }
    assert read_container(listed).spec == SPEC


def test_a_network_of_its_own_publishes_one_port_and_the_machines_none() -> None:
    """In either case nothing listens beyond loopback."""
    config, host = made()
    assert host["port_bindings"] == {8080: ("127.0.0.1", None)}
    assert "0.0.0.0" in config["command"]
    config, host = made(settings=replace(SETTINGS, network="host"))
    assert "port_bindings" not in host
    assert config["command"][config["command"].index("--host") + 1] == "127.0.0.1"


def test_limits_are_the_policys() -> None:
    """None is none; memory is without swap."""
    _, host = made()
    assert not {"mem_limit", "nano_cpus"} & set(host)
    _, host = made(replace(SPEC, memory_mb=512, cpus=0.25))
    assert (host["mem_limit"], host["memswap_limit"], host["nano_cpus"]) == (512_000_000, 512_000_000, 250_000_000)


def test_a_model_outside_and_a_clock_are_mounted_for_reading_only() -> None:
    """Only the log and the announcement may be written."""
    config, host = made(clock="clock.json", model=Path("/models/m"))
    writable = {m["Target"] for m in host["mounts"] if not m["ReadOnly"]}
    assert writable == {"/log", "/announce"}
    assert {"/model", "/clock"} <= {m["Target"] for m in host["mounts"]}
    assert config["environment"]["RATCHET_CLOCK"] == "/clock/clock.json"


def test_another_configuration_is_told_from_the_one_a_container_has() -> None:
    """So that one which is started again is made anew when the settings have changed."""
    assert fingerprint(*made()) == fingerprint(*made())
    assert fingerprint(*made()) != fingerprint(*made(settings=ContainerSettings(user="1001:1001")))


def test_homes_that_share_an_engine_do_not_share_names() -> None:
    """A name is unique on an Engine."""
    assert container_name(Path("/a"), "v1-0", "m") != container_name(Path("/b"), "v1-0", "m")


def test_an_obituary_tells_what_the_engine_could_not_do() -> None:
    """Its own words are handed on."""
    state = {"ExitCode": 127, "Error": 'exec: "python": executable file not found in $PATH'}
    assert '"python": executable file not found' in obituary(state, "", SPEC)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"port": "80"}', '{"port": 0}', '{"port": 70000}', "[" * 4000])
def test_an_announcement_of_nonsense_is_none(tmp_path: Path, content: str) -> None:
    """The container writes there whatever it likes."""
    (tmp_path / "announce.json").write_text(content)
    assert announced_port(tmp_path / "announce.json") is None


def test_an_announcement_is_read_through_no_link_and_waits_for_nobody(tmp_path: Path) -> None:
    """Neither a link to elsewhere, nor a pipe that nobody writes to, nor a file without end."""
    (tmp_path / "elsewhere").write_text('{"port": 8080}')
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "long").write_text('{"port": 8080, "more": "' + "x" * 10_000 + '"}')
    assert [announced_port(tmp_path / name) for name in ("elsewhere", "link", "pipe", "long")] == [
        8080,
        None,
        None,
        None,
    ]


@pytest.mark.parametrize("url", ["tcp://10.0.0.1:2375", "ssh://host", "/var/run/docker.sock", ""])
def test_an_engine_elsewhere_is_refused(tmp_path: Path, url: str) -> None:
    """Containers write into the state folder, so that only this machine's Engine will do."""
    with pytest.raises(ValueError, match="docker_host must be unix://"):
        docker_host(tmp_path, url)


@pytest.mark.parametrize("user", ["0:0", "root", "0:1000", "1000:0", "1000", "-1:5"])
def test_root_is_refused(tmp_path: Path, user: str) -> None:
    """Nothing that a model brings along runs as root."""
    with pytest.raises(ValueError, match="docker_user must be UID:GID"):
        docker_host(tmp_path, "unix:///x.sock", user=user)


def test_who_has_to_stop_it_all_finds_the_engine(tmp_path: Path) -> None:
    """Without the settings; and nothing where none was used, or the file is damaged."""
    assert used_docker_host(tmp_path) is None
    docker_host(tmp_path, "unix:///x.sock", network="host").remember()
    found = used_docker_host(tmp_path)
    assert found is not None
    assert (found.engine.url, found.settings.network) == ("unix:///x.sock", "host")
    (tmp_path / "run" / "engine.json").write_text('{"url": 3}')
    assert used_docker_host(tmp_path) is None


class CountingEngine(Engine):
    """Counts how often it is asked for its containers."""

    def __init__(self, *, away: bool = False) -> None:
        super().__init__("unix:///x.sock")
        self.asked = 0
        self.away = away

    def containers(self, label: str) -> list[dict[str, object]]:
        self.asked += 1
        if self.away:
            raise EngineAway("the Docker Engine at unix:///x.sock does not answer")
        labels = labels_of(Path("/h"), "v3-0", SPEC, 1)
        return [{"Id": str(i), "State": "running", "Labels": {**labels, f"{LABEL}model": f"m{i}"}} for i in range(500)]


@pytest.mark.parametrize("away", [False, True])
def test_one_list_serves_all_models(away: bool) -> None:
    """However many there are, and also while nobody answers."""
    engine = CountingEngine(away=away)
    census = Census(engine, Path("/h"), 60.0)
    found = [census.of(f"m{i}") for i in range(500)]
    assert [len(each) for each in found] == [0 if away else 1] * 500
    assert engine.asked == 1
    assert bool(census.trouble) is away


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_is_given_to_a_container_is_given_through_no_link(tmp_path: Path) -> None:
    """One that put a link where its log was gets no file elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "notices.jsonl").touch()
    folder = tmp_path / "log" / "predictions"
    folder.parent.mkdir()
    folder.symlink_to(elsewhere)
    give(folder, 65532, 65532)
    (folder / "left.jsonl").touch()
    (folder / "trap.jsonl").symlink_to(elsewhere / "notices.jsonl")
    give(folder, 65532, 65532)
    assert not folder.is_symlink()
    assert (folder.stat().st_uid, (folder / "left.jsonl").stat().st_uid) == (65532, 65532)
    assert ((elsewhere / "notices.jsonl").stat().st_uid, elsewhere.stat().st_uid) == (0, 0)


def test_the_engine_is_sent_the_blobs_as_they_are(tmp_path: Path) -> None:
    """One archive that is a docker-archive and an OCI layout; layers that are left out are still named."""
    model, app = tmp_path / "model", tmp_path / "serving"
    for folder in (model, app):
        folder.mkdir()
        (folder / "file").write_text("content")
    layout = OciLayout(tmp_path / "images")
    parts = layout.parts(layout.build(model, app, name="flights", number=3, annotations={}).digest)
    with tarfile.open(fileobj=io.BytesIO(b"".join(archive(layout, parts, tag_of(parts), without=1)))) as tar:
        sent = {member.name: tar.extractfile(member) for member in tar}
        (listed,) = json.load(sent["manifest.json"])  # type: ignore[arg-type]
        assert listed["RepoTags"] == ["ratchet/flights:v3"]
        assert len(listed["Layers"]) == len(parts.layers)
        assert [name in sent for name in listed["Layers"]] == [False, *[True] * (len(parts.layers) - 1)]
        config = sent[listed["Config"]]
        assert config is not None
        assert config.read() == layout.blobs.path(parts.config.digest).read_bytes()
        assert json.load(sent["index.json"])["manifests"][0]["digest"] == parts.manifest.digest  # type: ignore[arg-type]
