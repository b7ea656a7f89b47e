"""What the target `docker` does when containers, images or the Engine itself fail it: the champion serves on, and people read why."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from os import kill
from pathlib import Path

import pytest
from docker_rig import DockerRig, stub_image
from servers import free_port
from servers.docker import DockerServer, docker_server
from target_rigs import LIMITS, Hammer, is_alive, plan, processes_of, settle, wait_until

from deployers import package
from deployers.docker import DockerTarget
from deployers.docker.containers import LABEL
from deployers.docker.images import load
from deployers.images import ImageRefused, OciLayout
from deployers.local import ProcessHost
from deployers.routed.record import load_record
from deployers.routed.target import RoutedTarget
from deployers.target import ReplicaState, ReplicaStatus, StalePlanError, TargetError, TrafficPlan
from pipelines.jobs.port import RetryableJobError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def own_engine() -> Iterator[DockerServer]:
    """An Engine that may be stopped."""
    with docker_server() as server:
        yield server


@pytest.fixture
def fragile(tmp_path: Path, own_engine: DockerServer, shared_images: Path) -> Iterator[DockerRig]:
    rig = DockerRig(tmp_path / "home", free_port(), own_engine.url, shared_images)
    try:
        yield rig
    finally:
        own_engine.go_on()
        if own_engine.child is None or own_engine.child.poll() is not None:
            own_engine.start()
        rig.restart()
        rig.clean()


def status_of(rig: DockerRig, version: int) -> ReplicaStatus:
    status = rig.target.observe("flights")
    assert status is not None
    return status.replicas[version]


def trouble(rig: DockerRig, wanted: TrafficPlan) -> str:
    try:
        rig.target.apply(wanted)
    except TargetError as error:
        return str(error)
    return ""


def keep_on(
    rig: DockerRig, wanted: TrafficPlan, until: Callable[[], bool], what: str, patience_s: float = 30.0
) -> None:
    """Tick until it is so, whatever the target says."""
    deadline = time.monotonic() + patience_s
    trouble(rig, wanted)
    while not until():
        trouble(rig, wanted)
        assert time.monotonic() < deadline, f"not {what} in {patience_s:g} s: {rig.target.observe('flights')}"
        time.sleep(0.02)


# ---------------------------------------------------------------- containers
def test_a_container_may_do_no_more_than_serving_needs(docker: DockerRig) -> None:
    """No root, no capabilities, nothing writable but /tmp and the log, limits as the policy says, no restarts by the Engine, few logs."""
    settle(docker, plan(1, {1: 100}, {1: docker.image("first")}, memory_mb=200, cpus=0.5, epoch=7))
    (container,) = docker.containers().values()
    with docker.engine._errors() as client:
        found = client.inspect_container(container["Id"])
    made, host = found["Config"], found["HostConfig"]
    assert made["User"] == "65532:65532"
    assert host["ReadonlyRootfs"]
    assert (host["CapDrop"], host["CapAdd"], host["Privileged"]) == (["ALL"], None, False)
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"]) == (200_000_000, 200_000_000, 500_000_000)
    assert 0 < host["PidsLimit"] < 1000
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["LogConfig"]["Config"] == {"max-size": "4m", "max-file": "2"}
    status = Path(f"/proc/{docker.process('v1-0')}/status").read_text()
    assert "Uid:\t65532\t65532" in status
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    labels = {k.removeprefix(LABEL): v for k, v in made["Labels"].items() if k.startswith(LABEL)}
    assert labels["home"] == str(docker.home)
    assert (labels["model"], labels["version"], labels["epoch"]) == ("flights", "1", "7")
    assert labels["digest"] == docker.image("first")
    assert found["Image"] == docker.host.shelf.image(labels["digest"])
    assert status_of(docker, 1).containers == (found["Name"].lstrip("/"),)


def test_on_a_bridge_only_a_port_of_loopback_is_published(
    tmp_path: Path, docker_engine: DockerServer, shared_images: Path
) -> None:
    """Without the machine's network a container is reached by the port that the Engine chose, also after it was killed."""
    with docker_engine.bridge() as network:
        rig = DockerRig(tmp_path / "home", free_port(), docker_engine.url, shared_images, network)
        try:
            wanted = plan(1, {1: 100}, {1: rig.image("first")})
            settle(rig, wanted)
            assert rig.predict()[0] == 200
            (container,) = rig.containers().values()
            assert {port.get("IP") for port in container["Ports"]} == {"127.0.0.1"}
            pid = rig.process("v1-0")
            kill(pid, signal.SIGKILL)
            keep_on(rig, wanted, lambda: rig.process("v1-0") not in (0, pid), "started again")
            settle(rig, wanted, lambda s: s.replicas[1].state is ReplicaState.READY, what="ready again")
            assert rig.predict()[0] == 200
        finally:
            rig.clean()


def test_a_container_that_uses_too_much_memory_is_failed_and_says_so(docker: DockerRig) -> None:
    """The reason names the limit and where it stands in the policy; the champion is left alone."""
    images = {1: docker.image("first"), 2: docker.image("hungry", mode="hungry")}
    settle(docker, plan(1, {1: 100}, {1: images[1]}))
    wanted = plan(2, {1: 100}, images, shadow=2, memory_mb=40)
    settle(docker, wanted, lambda s: s.replicas[2].state is ReplicaState.FAILED, what="failed")
    assert "more than its 40 MB of memory (deploy.memory_mb)" in status_of(docker, 2).reason
    assert docker.predict()[1]["x-ratchet-version"] == "1"


def test_containers_are_known_by_their_labels(docker: DockerRig) -> None:
    """Renamed, and with what the target remembers of them lost, they are found again, and an older controller is still refused."""
    wanted = plan(1, {1: 100}, {1: docker.image("first")}, replicas=2, epoch=5)
    settle(docker, wanted)
    pids = [docker.process(slot) for slot in ("v1-0", "v1-1")]
    with docker.engine._errors() as client:
        client.rename(docker.containers()["v1-0"]["Id"], f"somebody-{docker.port}")
    for path in (docker.home / "run" / "replicas").glob("*/*/*.json"):
        path.unlink()
    (docker.home / "run" / "target" / "flights.json").unlink()
    docker.restart()
    assert docker.target.models() == ["flights"]
    with pytest.raises(StalePlanError, match="epoch 5"):
        docker.target.apply(plan(1, {1: 100}, wanted.digests, replicas=2, epoch=4))
    assert load_record(docker.home / "run" / "target" / "flights.json").plan is None
    status = settle(docker, wanted)
    assert [docker.process(slot) for slot in ("v1-0", "v1-1")] == pids
    assert f"somebody-{docker.port}" in status.replicas[1].containers


def test_strays_are_removed_and_strangers_left_alone(docker: DockerRig) -> None:
    """A second container in a slot, or one that nobody can say what it serves of, goes; another home's with the same model stays."""
    image = docker.image("first")
    settle(docker, plan(1, {1: 100}, {1: image}))
    (container,) = docker.containers().values()
    labels = container["Labels"]
    stray, unreadable = labels | {f"{LABEL}version": "9"}, labels | {f"{LABEL}slot": "v8-0", f"{LABEL}version": "eight"}
    stranger = labels | {f"{LABEL}home": "/elsewhere"}
    made = [
        docker.engine.create(f"test-{docker.port}-{i}", container["ImageID"], {"labels": each}, {})
        for i, each in enumerate((stray, unreadable, stranger))
    ]
    docker.host.census.outdated()
    wanted = plan(1, {1: 100}, {1: image})
    keep_on(docker, wanted, lambda: set(docker.containers(running=False)) == {"v1-0"}, "swept")
    left = {c["Id"] for c in docker.engine.containers(f"{LABEL}model=flights")}
    assert left & set(made) == {made[2]}
    assert container["Id"] in left
    docker.engine.remove(made[2])


def test_a_paused_container_is_replaced(docker: DockerRig) -> None:
    """Whoever pauses one holds nothing up for longer than a hang may last."""
    wanted = plan(1, {1: 100}, {1: docker.image("first")})
    docker.target = DockerTarget(docker.host, port=docker.port, limits=replace(LIMITS, hung_after_s=2.0))
    settle(docker, wanted)
    pid = docker.process("v1-0")
    with docker.engine._errors() as client:
        client.pause(docker.containers(running=False)["v1-0"]["Id"])
    keep_on(docker, wanted, lambda: not is_alive(pid), "killed")
    settle(docker, wanted, lambda s: s.replicas[1].state is ReplicaState.READY, what="back")
    assert docker.predict()[0] == 200


def test_what_is_removed_by_hand_is_made_again(docker: DockerRig) -> None:
    """The container and its image: the image is put back from the layout."""
    wanted = plan(1, {1: 100}, {1: docker.image("goes away")})
    settle(docker, wanted)
    image = docker.containers()["v1-0"]["ImageID"]
    docker.engine.remove(docker.containers()["v1-0"]["Id"])
    docker.engine.remove_image(image)
    assert docker.engine.image_id(image) is None
    keep_on(docker, wanted, lambda: "v1-0" in docker.containers(), "back")
    settle(docker, wanted, lambda s: s.replicas[1].state is ReplicaState.READY, what="ready")
    assert docker.predict()[0] == 200
    assert docker.engine.image_id(image) == image


def test_a_missing_image_fails_naming_the_digest(docker: DockerRig) -> None:
    """A version whose image is nowhere is failed with its digest."""
    digest = "sha256:" + "5" * 64
    wanted = plan(1, {1: 100}, {1: digest})
    deadline = time.monotonic() + 30
    status = settle(docker, wanted, lambda s: s.replicas[1].state is ReplicaState.FAILED, what="failed")
    assert digest in status.replicas[1].reason
    assert time.monotonic() < deadline


# ---------------------------------------------------------------- the Engine
def test_an_engine_that_was_killed_takes_no_request_with_it(fragile: DockerRig, own_engine: DockerServer) -> None:
    """While it is away containers and router go on, and the target says what is wrong; what dies meanwhile waits for it."""
    images = {1: fragile.image("first"), 2: fragile.image("second")}
    settle(fragile, plan(1, {1: 100}, {1: images[1]}, replicas=2))
    with Hammer(fragile) as hammer:
        hammer.wait_for(5)
        own_engine.kill()
        wanted = plan(2, {1: 100}, images, replicas=2, shadow=2)
        keep_on(fragile, wanted, lambda: "does not answer" in trouble(fragile, wanted), "told")
        assert own_engine.url in trouble(fragile, wanted)
        assert status_of(fragile, 1).state is ReplicaState.READY
        assert "does not answer" in status_of(fragile, 2).reason
        fragile.restart()  # a daemon that never met the Engine
        for _ in range(20):
            trouble(fragile, wanted)
        hammer.wait_for(20)
        own_engine.start()
        settle(fragile, wanted)
    assert hammer.failures == []
    assert set(hammer.versions) == {"1"}


def test_after_a_restart_of_the_engine_the_champion_serves_again(fragile: DockerRig, own_engine: DockerServer) -> None:
    """Without live-restore the Engine ends its containers; they are started again without any order, the router having lived on."""
    own_engine.stop()
    own_engine.live_restore = False
    try:
        own_engine.start()
        wanted = plan(1, {1: 100}, {1: fragile.image("first")})
        settle(fragile, wanted)
        router = fragile.process("router")
        own_engine.stop()
        keep_on(fragile, wanted, lambda: "does not answer" in trouble(fragile, wanted), "told")
        own_engine.start()
        keep_on(fragile, wanted, lambda: fragile.predict()[0] == 200, "served again")
        assert fragile.process("router") == router
        settle(fragile, wanted)
    finally:
        own_engine.live_restore = True


def test_an_engine_that_hangs_holds_up_no_tick_for_long(fragile: DockerRig, own_engine: DockerServer) -> None:
    """It is given up after a time-out, and then not asked by every model again; what serves goes on."""
    wanted = plan(1, {1: 100}, {1: fragile.image("first")})
    settle(fragile, wanted)
    fragile.restart()
    fragile.engine._timeout_s = 0.5
    own_engine.hold()
    try:
        keep_on(fragile, wanted, lambda: "does not answer" in trouble(fragile, wanted), "told")
        asked = fragile.host.census._at
        for _ in range(50):
            trouble(fragile, wanted)
        assert fragile.host.census._at == asked, "asked again at once"
        assert fragile.predict()[0] == 200
        keep_on(fragile, wanted, lambda: status_of(fragile, 1).state is ReplicaState.READY, "known by its answers")
    finally:
        own_engine.go_on()
    keep_on(fragile, wanted, lambda: not trouble(fragile, wanted), "well again")
    settle(fragile, wanted)


def test_a_router_that_dies_while_the_engine_is_away_comes_back(fragile: DockerRig, own_engine: DockerServer) -> None:
    """Looking after the router does not wait for the Engine."""
    wanted = plan(1, {1: 100}, {1: fragile.image("first")})
    settle(fragile, wanted)
    own_engine.kill()
    router = fragile.process("router")
    kill(router, signal.SIGKILL)
    wait_until(lambda: not is_alive(router), "the kill")

    def serves() -> bool:
        try:
            return fragile.predict()[0] == 200
        except OSError:
            return False

    keep_on(fragile, wanted, serves, "served again")
    assert fragile.process("router") != router


def test_a_full_disk_keeps_the_challenger_out_and_the_champion_in(tmp_path: Path, shared_images: Path) -> None:
    """The image does not get in, which the challenger's status says, with what to do; when there is room it does."""
    with docker_server(disk_mb=230) as server:
        rig = DockerRig(tmp_path / "home", free_port(), server.url, shared_images)
        try:
            first, second = rig.image("first"), rig.image("big", ballast="x" * 40_000_000)
            settle(rig, plan(1, {1: 100}, {1: first}))
            filler = server.folder / "data" / "filler"
            filler.write_bytes(b"\0" * 80_000_000)
            wanted = plan(2, {1: 100}, {1: first, 2: second}, shadow=2)
            full = "no space left on device; the Engine's disk is full"
            with Hammer(rig) as hammer:
                keep_on(rig, wanted, lambda: full in status_of(rig, 2).reason, "full")
                hammer.wait_for(5)
                filler.unlink()
                settle(rig, wanted)
                hammer.wait_for(5)
            assert hammer.failures == []
            assert set(hammer.versions) == {"1"}
        finally:
            rig.clean()


# ---------------------------------------------------------------- two hosts
def test_a_model_moves_between_processes_and_containers_without_a_failed_request(docker: DockerRig) -> None:
    """Its replicas there are ready before those here are drained, in either direction."""
    digest = docker.image("first")
    OciLayout(docker.images).unpack(digest, docker.home / "unpacked")
    hosts = {"local": ProcessHost(docker.home), "docker": docker.host}
    docker.target = RoutedTarget(docker.home, hosts, port=docker.port, limits=LIMITS)
    settle(docker, plan(1, {1: 100}, {1: digest}, replicas=2))
    assert docker.containers() == {}
    with Hammer(docker) as hammer:
        hammer.wait_for(5)
        moved = plan(2, {1: 100}, {1: digest}, replicas=2, target="docker", memory_mb=200)
        settle(docker, moved, lambda s: len(s.replicas[1].containers) == 2 and not local_replicas(docker), what="moved")
        hammer.wait_for(5)
        back = plan(3, {1: 100}, {1: digest}, replicas=2, target="local")
        settle(docker, back, lambda s: not docker.containers(running=False), what="moved back")
        hammer.wait_for(5)
    assert hammer.failures == []
    assert len(local_replicas(docker)) == 2


def local_replicas(rig: DockerRig) -> list[Path]:
    return processes_of(rig.home, b"\0serving.runtime\0")


def test_a_model_leaves_an_engine_that_is_away(fragile: DockerRig, own_engine: DockerServer) -> None:
    """With its policy changed to processes, it is served by these although nobody can end its containers yet."""
    digest = fragile.image("first")
    OciLayout(fragile.images).unpack(digest, fragile.home / "unpacked")
    hosts = {"local": ProcessHost(fragile.home), "docker": fragile.host}
    fragile.target = RoutedTarget(fragile.home, hosts, port=fragile.port, limits=LIMITS)
    settle(fragile, plan(1, {1: 100}, {1: digest}, target="docker"))
    container = fragile.process("v1-0")
    own_engine.kill()
    kill(container, signal.SIGKILL)
    away = plan(2, {1: 100}, {1: digest}, target="local")
    status = settle(fragile, away)
    assert status.weights == {1: 100}
    assert fragile.predict()[0] == 200
    own_engine.start()
    settle(fragile, away, lambda s: not fragile.containers(running=False), what="ended")


# ---------------------------------------------------------------- images
def test_the_builder_docker_leaves_the_very_image_in_the_engine(docker: DockerRig, tmp_path: Path) -> None:
    """Under the ID that the manifest fixes; without a base, or an Engine, the job says what is missing."""
    digest = stub_image(tmp_path / "images", "built", {})
    layout = OciLayout(tmp_path / "images")
    image = layout.verify(digest)
    package._into_engine(layout, image, package.Delivery(builder="docker", docker_host=docker.url), lambda _: None)
    assert docker.engine.image_id("ratchet/flights:v1") == layout.parts(digest).config.digest
    nowhere = package.Delivery(builder="docker", docker_host=f"unix://{tmp_path}/nothing.sock")
    with pytest.raises(RetryableJobError, match="does not answer"):
        package._into_engine(layout, image, nowhere, lambda _: None)
    model, app = tmp_path / "model", tmp_path / "serving"
    for folder in (model, app):
        folder.mkdir()
        (folder / "file").touch()
    bare = layout.build(model, app, name="bare", number=1, annotations={})
    with pytest.raises(ImageRefused, match=r"no base image.*deploy\.base_image"):
        load(docker.engine, layout, bare.digest)


def test_images_of_versions_that_are_given_up_leave_the_engine(docker: DockerRig, tmp_path: Path) -> None:
    """What has left the layout is taken out of the Engine before the next image gets in."""
    docker.home.joinpath("images").unlink()
    docker.images = tmp_path / "own" / "images"
    docker.images.mkdir(parents=True)
    docker.home.joinpath("images").symlink_to(docker.images)
    docker.restart()
    first, second = docker.image("leaves"), docker.image("comes")
    settle(docker, plan(1, {1: 100}, {1: first}))
    gone = docker.host.shelf.image(first)
    assert gone is not None
    docker.target.remove("flights", 1)
    OciLayout(docker.images).remove(first)
    settle(docker, plan(1, {1: 100}, {1: second}))
    assert docker.engine.image_id(gone) is None
    assert set(json.loads((docker.home / "run" / "engine-images.json").read_text())) == {second}
