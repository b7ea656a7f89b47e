"""What every Target promises, and what the local one promises beyond it: whatever dies comes back, and no request fails."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from os import kill

import pytest
from target_rigs import (
    LIMITS,
    FakeRig,
    Hammer,
    LocalRig,
    RealRig,
    Rig,
    digest_of,
    free_port,
    is_alive,
    plan,
    settle,
    wait_until,
)

from deployers.target import ReplicaState, StalePlanError, TargetError, TrafficPlan


@pytest.fixture(params=["fake", "local", "docker"])
def rig(request: pytest.FixtureRequest) -> Rig:
    if request.param == "fake":
        return FakeRig()
    found: RealRig = request.getfixturevalue(request.param)
    return found


# ---------------------------------------------------------------- every target
def test_unknown_model_is_none(rig: Rig) -> None:
    """Of a model that no plan named, a target says None."""
    assert rig.target.observe("flights") is None


def test_models_are_those_with_a_plan(rig: Rig) -> None:
    """A target names the models that it follows a plan for, until they are removed: so a new daemon finds what was deleted meanwhile."""
    assert rig.target.models() == []
    settle(rig, plan(1, {1: 100}, {1: rig.image("first")}))
    assert rig.target.models() == ["flights"]
    rig.target.remove("flights", 1)
    assert rig.target.models() == []


def test_way_of_a_version_from_start_to_retirement(rig: Rig) -> None:
    """Shadow, canary, promotion and retirement come into force one after the other, and what is retired is gone."""
    first, second = rig.image("first"), rig.image("second")
    status = settle(rig, plan(1, {1: 100}, {1: first}))
    assert (status.weights, status.shadow, status.replicas[1].state) == ({1: 100}, None, ReplicaState.READY)
    assert status.address
    both = {1: first, 2: second}
    status = settle(rig, plan(2, {1: 100}, both, shadow=2))
    assert (status.weights, status.shadow) == ({1: 100}, 2)
    status = settle(rig, plan(3, {1: 95, 2: 5}, both))
    assert (status.weights, status.shadow) == ({1: 95, 2: 5}, None)
    assert {v: r.state for v, r in status.replicas.items()} == dict.fromkeys((1, 2), ReplicaState.READY)
    settle(rig, plan(4, {2: 100}, both))
    status = settle(rig, plan(5, {2: 100}, {2: second}), lambda s: set(s.replicas) == {2}, what="retired")
    assert (status.generation, status.weights) == (5, {2: 100})


def test_a_page_of_counters_keeps_its_name(rig: Rig) -> None:
    """Every replica that serves has one, under a name that its successor in the same place takes over."""
    images = {1: rig.image("first"), 2: rig.image("second")}
    assert [page.model for page in rig.target.pages() if page.model] == []
    settle(rig, plan(1, {1: 90, 2: 10}, images))
    before = {page.instance: page for page in rig.target.pages() if page.model}
    assert {(p.model, p.version, p.arm) for p in before.values()} == {("flights", 1, "main"), ("flights", 2, "main")}
    assert set(before) == {"flights/v1-0", "flights/v2-0"}
    rig.restart()
    assert {page.instance for page in rig.target.pages() if page.model} == set(before)
    rig.target.remove("flights", 1)
    assert [page.model for page in rig.target.pages() if page.model] == []


def test_a_baseline_runs_beside_the_version_it_is_of(rig: Rig) -> None:
    """It starts and ends with the plan that names it; the version's own replicas, and what is in force, do not wait for it."""
    images = {1: rig.image("first"), 2: rig.image("second")}
    settle(rig, plan(1, {1: 100}, {1: images[1]}))
    assert settle(rig, plan(2, {1: 100}, images, shadow=2)).baseline is None
    canary = plan(3, {1: 90, 2: 10}, images, baseline=1, baseline_weight=10.0)
    status = settle(
        rig, canary, lambda s: s.baseline is not None and s.baseline.state is ReplicaState.READY, what="baseline"
    )
    assert (status.weights, set(status.replicas)) == ({1: 90, 2: 10}, {1, 2})
    assert status.replicas[1].state is ReplicaState.READY
    status = settle(rig, plan(4, {2: 100}, images))
    assert (status.weights, status.baseline) == ({2: 100}, None)


def test_rollback_takes_one_move(rig: Rig) -> None:
    """A version that still runs has the traffic back after a single apply."""
    images = {1: rig.image("first"), 2: rig.image("second")}
    settle(rig, plan(1, {1: 75, 2: 25}, images))
    rig.target.apply(plan(2, {1: 100}, {1: images[1]}))
    status = rig.target.observe("flights")
    assert status is not None
    assert (status.generation, status.weights) == (2, {1: 100})


@pytest.mark.parametrize("weights", [{1: 95, 2: 5}, {2: 100}])
def test_unready_challenger_leaves_the_champion_alone(rig: Rig, weights: dict[int, float]) -> None:
    """Traffic stays as it is while a version that should carry some is not ready, and moves when it is (invariant 8)."""
    first, second = rig.image("first"), rig.image("second", mode="unready")
    settle(rig, plan(1, {1: 100}, {1: first}))
    wanted = plan(2, weights, {v: {1: first, 2: second}[v] for v in weights})
    status = settle(rig, wanted, lambda s: 2 in s.replicas, what="starting")
    assert (status.generation, status.weights) == (1, {1: 100})
    assert status.replicas[2].state is ReplicaState.STARTING
    assert status.replicas[1].state is ReplicaState.READY
    rig.heal("second")
    assert settle(rig, wanted).weights == weights


def test_broken_challenger_fails_with_its_reason(rig: Rig) -> None:
    """A version that cannot start is failed, says why, and leaves the champion alone."""
    first, second = rig.image("first"), rig.image("second", mode="broken", message="estimator.skops: truncated")
    settle(rig, plan(1, {1: 100}, {1: first}))
    wanted = plan(2, {1: 100}, {1: first, 2: second}, shadow=2)
    status = settle(
        rig, wanted, lambda s: 2 in s.replicas and s.replicas[2].state is ReplicaState.FAILED, what="failed"
    )
    assert "estimator.skops: truncated" in status.replicas[2].reason
    assert (status.generation, status.weights, status.shadow) == (1, {1: 100}, None)
    rig.heal("second")
    assert settle(rig, wanted).shadow == 2


def test_older_plan_is_refused(rig: Rig) -> None:
    """A plan of an older generation or epoch raises and changes nothing, whatever it says (invariant 6)."""
    images = {1: rig.image("first"), 2: rig.image("second")}
    settle(rig, plan(4, {1: 100}, images, epoch=2))
    for older in (plan(3, {2: 100}, images, epoch=2), plan(9, {2: 100}, images, epoch=1)):
        with pytest.raises(StalePlanError, match="older"):
            rig.target.apply(older)
    status = rig.target.observe("flights")
    assert status is not None
    assert (status.generation, status.weights) == (4, {1: 100})


def test_plan_of_a_new_leader_goes_on(rig: Rig) -> None:
    """The same plan under a newer epoch is taken and changes no traffic."""
    images = {1: rig.image("first")}
    before = settle(rig, plan(4, {1: 100}, images))
    after = settle(rig, plan(4, {1: 100}, images, epoch=2))
    assert after == before


def test_removed_model_is_unknown_and_older_leaders_cannot_bring_it_back(rig: Rig) -> None:
    """Removal forgets the model, is refused to an older leader, may be repeated, and a new plan starts afresh."""
    images = {1: rig.image("first")}
    settle(rig, plan(3, {1: 100}, images, epoch=2))
    with pytest.raises(StalePlanError):
        rig.target.remove("flights", 1)
    assert rig.target.observe("flights") is not None
    rig.target.remove("flights", 2)
    rig.target.remove("flights", 2)
    assert rig.target.observe("flights") is None
    with pytest.raises(StalePlanError):
        rig.target.apply(plan(9, {1: 100}, images, epoch=1))
    assert settle(rig, plan(1, {1: 100}, images, epoch=2)).generation == 1


def test_restarted_daemon_finds_everything_as_it_was(rig: Rig) -> None:
    """A new target object observes the same before it has applied anything."""
    before = settle(rig, plan(1, {1: 100}, {1: rig.image("first")}))
    rig.restart()
    assert rig.target.observe("flights") == before


# ---------------------------------------------------------------- the real ones
def test_missing_image_fails_naming_the_digest(local: LocalRig) -> None:
    """A version whose image is not unpacked is failed, with the digest and the folder, and recovers when it appears."""
    wanted = plan(1, {1: 100}, {1: digest_of("first")})
    status = settle(local, wanted, lambda s: s.replicas[1].state is ReplicaState.FAILED, what="failed")
    assert digest_of("first") in status.replicas[1].reason
    assert str(local.home / "unpacked") in status.replicas[1].reason
    local.image("first")
    settle(local, wanted)


def test_no_request_fails_while_versions_change_and_replicas_die(real: RealRig) -> None:
    """From canary to promotion, retirement and rollback, with replicas killed in between, a client sees only answers."""
    images = {n: real.image(f"image {n}") for n in (1, 2, 3)}
    one_two = {1: images[1], 2: images[2]}
    settle(real, plan(1, {1: 100}, {1: images[1]}, replicas=2))
    with Hammer(real) as hammer:
        hammer.wait_for(20)
        settle(real, plan(2, {1: 100}, one_two, shadow=2, replicas=2))
        hammer.wait_for(20)
        settle(real, plan(3, {1: 50, 2: 50}, one_two, replicas=2))
        hammer.wait_for(20)
        kill(real.process("v1-0"), signal.SIGKILL)
        kill(real.process("v2-1"), signal.SIGKILL)
        hammer.wait_for(20)
        settle(real, plan(4, {2: 100}, one_two, replicas=2))
        real.restart()
        settle(real, plan(5, {2: 100}, {2: images[2]}, replicas=2), lambda s: set(s.replicas) == {2}, what="retired")
        hammer.wait_for(20)
        settle(real, plan(6, {2: 75, 3: 25}, {2: images[2], 3: images[3]}, replicas=2))
        hammer.wait_for(20)
        real.target.apply(plan(7, {2: 100}, {2: images[2]}, replicas=2))
        settle(real, plan(7, {2: 100}, {2: images[2]}, replicas=2), lambda s: set(s.replicas) == {2}, what="gone")
        hammer.wait_for(20)
    assert hammer.failures == []
    assert set(hammer.versions) == {"1", "2", "3"}
    assert hammer.versions[-1] == "2"


def test_killed_replica_comes_back(real: RealRig) -> None:
    """A replica that was killed is started again and gets requests again."""
    wanted = plan(1, {1: 100}, {1: real.image("first")})
    settle(real, wanted)
    pid = real.process("v1-0")
    kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "the kill")
    wait_until(lambda: _state(real, 1) is ReplicaState.STARTING, "the death seen")
    settle(real, wanted, lambda s: s.replicas[1].state is ReplicaState.READY, what="ready again")
    assert real.process("v1-0") != pid
    assert real.predict()[0] == 200


def _state(real: RealRig, version: int) -> ReplicaState:
    status = real.target.observe("flights")
    assert status is not None
    return status.replicas[version].state


def test_killed_router_comes_back_with_the_same_table(real: RealRig) -> None:
    """While the router is dead nothing is in force; then it listens on the same port with the same traffic."""
    images = {1: real.image("first"), 2: real.image("second")}
    wanted = plan(1, {1: 95, 2: 5}, images)
    before = settle(real, wanted)
    pid = real.process("router")
    kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "the kill")
    status = real.target.observe("flights")
    assert status is not None
    assert (status.generation, status.weights) == (0, {})
    after = settle(real, wanted)
    assert (after.weights, after.address) == (before.weights, before.address)
    assert real.process("router") != pid
    assert real.predict()[0] == 200


def test_damaged_files_are_set_aside_and_nothing_restarts(real: RealRig) -> None:
    """With its own record and the router's table damaged, the target finds the replicas and the traffic of the plan again."""
    wanted = plan(1, {1: 100}, {1: real.image("first")})
    settle(real, wanted)
    replica, router = real.process("v1-0"), real.process("router")
    (real.home / "run" / "target" / "flights.json").write_text('{"format": 1, "plan": {')
    (real.home / "run" / "router.json").write_text("not JSON")
    kill(router, signal.SIGKILL)
    real.restart()
    settle(real, wanted)
    assert real.process("v1-0") == replica
    assert len(list(real.home.rglob("*.corrupt-*"))) == 2
    assert real.predict()[0] == 200


def test_new_daemon_adopts_what_runs(real: RealRig) -> None:
    """After a restart of the daemon the same processes go on."""
    wanted = plan(1, {1: 100}, {1: real.image("first")}, replicas=2)
    settle(real, wanted)
    before = [real.process(slot) for slot in ("router", "v1-0", "v1-1")]
    real.restart()
    for _ in range(3):
        settle(real, plan(1, {1: 100}, wanted.digests, replicas=2, epoch=2))
    assert [real.process(slot) for slot in ("router", "v1-0", "v1-1")] == before
    assert all(map(is_alive, before))


def test_two_daemons_at_once_start_nothing_twice(real: RealRig) -> None:
    """Two target objects that apply the same plan at the same time end with one process a slot."""
    wanted = plan(1, {1: 100}, {1: real.image("first")}, replicas=2)
    threads = [threading.Thread(target=settle, args=(rig, wanted)) for rig in (real, real.again())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (real.replicas(), real.routers()) == (2, 1)


def test_requests_in_flight_finish_before_their_replica_ends(real: RealRig) -> None:
    """A slow answer of a version that is being retired still arrives, and only then the replica ends."""
    slow, quick = real.image("slow", delay_s=1.0), real.image("quick")
    settle(real, plan(1, {1: 100}, {1: slow}))
    pid = real.process("v1-0")
    settle(real, plan(2, {1: 100}, {1: slow, 2: quick}, shadow=2))
    answers: list[tuple[int, int]] = []

    def ask() -> None:
        status, _, body = real.predict()
        answers.append((status, body["version"]))

    client = threading.Thread(target=ask)
    client.start()
    wait_until(lambda: _in_flight(real) == 1, "the request in flight")
    settle(real, plan(3, {2: 100}, {2: quick}))
    assert is_alive(pid)
    settle(real, plan(3, {2: 100}, {2: quick}), lambda s: set(s.replicas) == {2}, what="retired")
    client.join()
    assert answers == [(200, 1)]
    assert not is_alive(pid)


def _in_flight(real: RealRig) -> int:
    table = real.target._router.get("flights")
    assert table is not None
    return sum(table["in_flight"].values())


def test_shadow_gets_copies_and_clients_never_see_it(real: RealRig) -> None:
    """A shadow that always fails is counted, and every client is answered by the champion."""
    images = {1: real.image("first"), 2: real.image("second", status=500)}
    wanted = plan(1, {1: 100}, images, shadow=2)
    settle(real, wanted)
    answers = [real.predict() for _ in range(10)]
    assert {(status, headers["x-ratchet-version"]) for status, headers, _ in answers} == {(200, "1")}
    status = settle(real, wanted, lambda s: s.replicas[2].shadow_errors == 10, what="mirrored")
    assert (status.replicas[2].shadow_requests, status.replicas[2].requests) == (10, 0)
    assert (status.replicas[1].requests, status.replicas[1].errors) == (10, 0)


def test_failing_challenger_is_counted_and_the_champion_answers(real: RealRig) -> None:
    """Requests that a challenger answers with 5xx reach the client from the champion, and are on its record."""
    images = {1: real.image("first"), 2: real.image("second", status=500)}
    settle(real, plan(1, {1: 50, 2: 50}, images))
    answers = [real.predict(x_ratchet_key=str(i)) for i in range(40)]
    assert {(status, headers["x-ratchet-version"]) for status, headers, _ in answers} == {(200, "1")}
    status = real.target.observe("flights")
    assert status is not None
    assert status.replicas[2].errors == status.replicas[2].requests > 5
    assert status.replicas[1].errors == 0


def test_fewer_replicas_and_more_workers_change_without_a_failed_request(real: RealRig) -> None:
    """Replicas that a plan no longer wants end only after those that it wants are ready."""
    digests = {1: real.image("first")}
    settle(real, plan(1, {1: 100}, digests, replicas=2))
    before = {real.process(slot) for slot in ("v1-0", "v1-1")}
    with Hammer(real) as hammer:
        hammer.wait_for(5)
        settle(real, plan(2, {1: 100}, digests, workers=2), lambda s: not any(map(is_alive, before)), what="replaced")
        hammer.wait_for(5)
    assert hammer.failures == []


def test_baseline_answers_are_counted_apart_and_its_end_fails_no_request(real: RealRig) -> None:
    """Fresh replicas of the champion answer for it, and where one dies the others do; with the canary they are gone."""
    images = {1: real.image("first"), 2: real.image("second")}
    settle(real, plan(1, {1: 100}, {1: images[1]}))
    with Hammer(real) as hammer:
        canary = plan(2, {1: 60, 2: 40}, images, baseline=1, baseline_weight=40.0)
        settle(real, canary, lambda s: s.baseline is not None and s.baseline.requests > 0, what="baseline asked")
        hammer.wait_for(60)
        status = real.target.observe("flights")
        assert status is not None
        assert status.baseline is not None
        assert status.baseline.latency_ms_p95 is not None
        assert status.replicas[1].requests > 0
        killed = real.process("v1-1")
        kill(killed, signal.SIGKILL)
        hammer.wait_for(20)
        settle(real, canary, lambda s: real.process("v1-1") not in (0, killed) and s.generation == 2, what="back")
        fresh = real.process("v1-1")
        after = settle(real, plan(3, {2: 100}, images), lambda _: not is_alive(fresh), what="baseline ended")
        assert after.weights == {2: 100}
        hammer.wait_for(5)
    assert hammer.failures == []
    assert set(hammer.versions) == {"1", "2"}


def test_stopping_everything_leaves_no_process(real: RealRig) -> None:
    """After stop_all nothing of ours runs, and the next apply starts everything again."""
    wanted = plan(1, {1: 100}, {1: real.image("first")})
    settle(real, wanted)
    pids = [real.process(slot) for slot in ("router", "v1-0")]
    real.target.stop_all()
    assert not any(map(is_alive, pids))
    settle(real, wanted, lambda s: s.generation == 1 and s.replicas[1].state is ReplicaState.READY, what="back")
    assert real.predict()[0] == 200


def test_replica_that_ignores_sigterm_is_killed(real: RealRig) -> None:
    """A stopped process that cannot react to SIGTERM does not hold up the end for longer than the grace."""
    images = {1: real.image("first"), 2: real.image("second")}
    settle(real, plan(1, {1: 100}, images))
    pid = real.process("v2-0")
    kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    settle(real, plan(2, {1: 100}, {1: images[1]}), lambda s: set(s.replicas) == {1}, what="gone")
    assert not is_alive(pid)
    assert time.monotonic() - started > LIMITS.grace_s


def test_port_in_use_is_named_and_replicas_wait_ready(real: RealRig) -> None:
    """While a stranger holds the router's port, apply raises and names it; when it is free, everything is in force."""
    wanted = plan(1, {1: 100}, {1: real.image("first")})
    with socket.create_server(("127.0.0.1", real.port)):
        wait_until(lambda: f"127.0.0.1:{real.port}" in _trouble(real, wanted), "the port named")
        status = real.target.observe("flights")
        assert status is not None
        assert (status.generation, status.weights) == (0, {})
    settle(real, wanted)


def _trouble(real: RealRig, wanted: TrafficPlan) -> str:
    try:
        real.target.apply(wanted)
    except TargetError as error:
        return str(error)
    return ""


def test_router_moves_when_the_port_is_set_anew(real: RealRig) -> None:
    """A daemon that is configured with another port ends the old router and serves on the new one."""
    wanted = plan(1, {1: 100}, {1: real.image("first")})
    settle(real, wanted)
    real.port = free_port()
    real.restart()
    settle(real, wanted, lambda s: s.generation == 1 and s.address.endswith(f":{_listening(real)}"), what="moved")
    assert real.predict()[0] == 200


def _listening(real: RealRig) -> object:
    announced = real.home / "run" / "router" / "announce.json"
    return json.loads(announced.read_text())["port"] if announced.exists() else None


DAEMON = """
import json, pathlib, sys, time
sys.path[:0] = json.loads(sys.argv[1])
from docker_rig import DockerRig
from target_rigs import LocalRig, plan, settle
first, second, home, port, *more = sys.argv[2:]
kind = DockerRig if more else LocalRig
rig = kind(pathlib.Path(home), int(port), *more[:1], *map(pathlib.Path, more[1:]))
before = rig.target.observe("flights")
generation = before.generation + 1 if before else 1
while True:
    both = {1: first, 2: second}
    for weights, digests in (({1: 100}, {1: first}), ({1: 50, 2: 50}, both), ({2: 100}, both), ({2: 100}, {2: second}), ({1: 100}, both)):
        settle(rig, plan(generation, weights, digests, epoch=int(time.time() * 1e6)))
        generation += 1
"""


@pytest.mark.slow
def test_daemon_killed_at_any_moment_loses_no_request_and_starts_nothing_twice(real: RealRig) -> None:
    """Daemons that roll out and back without pause are killed at random moments; the next goes on, and the client sees only answers."""
    first, second = real.image("first"), real.image("second")
    settle(real, plan(1, {1: 100}, {1: first}))
    seed = time.time_ns()
    moments = random.Random(seed)
    arguments = [json.dumps(sys.path), first, second, *real.arguments()]
    with Hammer(real) as hammer:
        for _ in range(10):
            with subprocess.Popen([sys.executable, "-c", DAEMON, *arguments]) as daemon:
                hammer.wait_for(10)
                time.sleep(moments.uniform(0.2, 0.8))
                daemon.kill()
        wanted = plan(10**6, {2: 100}, {2: second}, epoch=int(time.time() * 1e6))
        settle(real, wanted, lambda s: s.generation == 10**6 and set(s.replicas) == {2}, what="settled")
        hammer.wait_for(10)
    assert hammer.failures == [], f"seed {seed}"
    assert (real.replicas(), real.routers()) == (1, 1), f"seed {seed}"


def test_address_and_own_port_are_known(real: RealRig) -> None:
    """The address in the status is the router's, and replicas hear the clock file by its absolute path."""
    status = settle(real, plan(1, {1: 100}, {1: real.image("first")}))
    assert status.address == f"http://127.0.0.1:{real.port}"
    assert json.loads((real.home / "run" / "router" / "announce.json").read_text())["port"] == real.port
