"""The machine lets Ratchet down: ports that are taken, a disk that fills up, a clock that goes back. What serves goes on serving."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from fast_rig import (
    Rig,
    labels_on_record,
    on_record,
    rows_of,
    running,
    small_spec,
    wait_until,
    write_csv,
)
from live_client import Clients, post

pytestmark = pytest.mark.slow

DISK_MB = 48
MANY = [f"during-{i}" for i in range(2000)]
"""So many labels fit into no page that a full disk may have left over."""


@pytest.fixture
def taken_port() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def test_a_taken_port_of_the_api_ends_the_daemon_with_what_to_do(tmp_path: Path, taken_port: socket.socket) -> None:
    """Exit code 3, and a sentence with address, setting and remedy."""
    port = taken_port.getsockname()[1]
    rig = Rig(tmp_path / "home", tmp_path, PORT=str(port))
    rig.launch()
    assert rig.exit_code() == 3
    for part in (f"127.0.0.1:{port}", "RATCHET_PORT", "in use", "choose another port"):
        assert part in rig.said()
    assert "Traceback" not in rig.said()


def test_a_taken_port_of_the_router_is_told_and_waited_for(tmp_path: Path, taken_port: socket.socket) -> None:
    """The cycle waits and says which port is in use; as soon as it is free, the first version serves there."""
    port = taken_port.getsockname()[1]
    write_csv(tmp_path / "data.csv", rows_of(1))
    with running(tmp_path, ROUTER_PORT=str(port)) as rig:
        rig.apply(small_spec())
        waiting = rig.wait_for(lambda m: "in use" in m["sentence"], "the taken port is told")
        assert f"127.0.0.1:{port}" in waiting["sentence"]
        assert waiting["champion"] is None
        taken_port.close()
        serving = rig.wait_for(lambda m: m["champion"] == 1, "v1 serves")
        assert serving["address"] == f"http://127.0.0.1:{port}"
        with Clients(serving["address"], serving["name"]) as clients:
            clients.more(5)
        assert clients.failures == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of `DISK_MB` megabytes of its own; needs the right to mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "ratchet-e2e", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
        refusal = mounted.stderr.strip() if mounted.returncode else ""
    except OSError as error:
        refusal = str(error)
    if refusal:
        assert not (os.environ.get("CI") and os.geteuid() == 0), f"root can fill a disk in CI, but: {refusal}"
        pytest.skip(f"a disk that can be filled needs the right to mount a tmpfs: {refusal}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_fills_up_in_a_cycle_stops_no_answer_and_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    """The champion answers on, labels that cannot be kept are refused as such, and when there is room again a cycle ends well."""
    write_csv(tmp_path / "data.csv", rows_of(1))
    with running(tmp_path, small_disk / "home") as rig:
        champion = rig.first_champion(small_spec())
        with Clients(champion["address"], champion["name"]) as clients:
            clients.more(20)
            assert report(champion, ["before"]) == 200
            write_csv(tmp_path / "data.csv", rows_of(2))
            rig.trigger()
            rig.wait_for(lambda m: m["phase"] not in (None, "queued"), "the cycle has begun")
            ballast = fill(small_disk)
            clients.more(100)
            fill(small_disk)  # what was freed in the meantime
            refused = report(champion, MANY)
            wait_until(lambda: "full" in rig.said() or "No space" in rig.said(), "the daemon tells of the full disk")
            ballast.unlink()
            wait_until(lambda: healthy(rig), "the daemon answers and commits again")
            rig.wait_for(lambda m: m["cycle"] is None, "the cycle has ended, one way or the other")
            write_csv(tmp_path / "data.csv", rows_of(3))
            assert rig.run_cycle()["outcome"] == "promoted"
            clients.more(20)
        assert clients.failures == []
        assert refused in (503, 507)
        check_nothing_lost(rig, clients)
        kept = labels_on_record(rig.home)
        assert "before" in kept
        assert not kept.keys() & set(MANY), "what was refused is not on record, not even in part"
        assert report(champion, ["after"]) == 200


def fill(disk: Path) -> Path:
    """Take all the room that is left, to the last byte."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return ballast


def report(model: dict[str, str], ids: list[str]) -> int:
    """The status that reporting labels gets."""
    body = {"labels": [{"id": row_id, "label": 1} for row_id in ids]}
    return post(model["address"], f"/v1/models/{model['name']}/feedback", body)[0]


def healthy(rig: Rig) -> bool:
    """Whether the daemon can write its state: a freeze and its end do."""
    try:
        for verb in ("freeze", "unfreeze"):
            rig.order(verb)
    except (httpx.HTTPError, AssertionError):
        return False
    return True


def check_nothing_lost(rig: Rig, clients: Clients) -> None:
    """Versions and events without a gap; every answer that did not say otherwise is on record, once."""
    model = rig.model()
    assert [v["number"] for v in model["versions"]] == list(range(1, len(model["versions"]) + 1))
    seqs = [event["seq"] for event in rig.events()]
    assert seqs == list(range(1, len(seqs) + 1))
    recorded = on_record(rig.home)
    assert len(recorded) == len(set(recorded))
    assert {a.id for a in clients.answers if a.logged} <= set(recorded)


def test_a_clock_that_goes_back_loses_nothing_and_is_told(tmp_path: Path) -> None:
    """A daemon that starts with an earlier time than it recorded keeps its champion, says so of data from the future, and goes on."""
    clock = tmp_path / "clock.json"
    set_clock(clock, timedelta(0))
    write_csv(tmp_path / "data.csv", rows_of(1))
    with running(tmp_path, CLOCK=str(clock)) as rig:
        champion = rig.first_champion(small_spec())
        with Clients(champion["address"], champion["name"]) as clients:
            rig.stop()
            set_clock(clock, -timedelta(days=90))
            rig.start()
            failed = rig.run_cycle()
            assert failed["outcome"] == "failed"
            assert "all 1500 rows lie after the present time" in failed["sentence"]
            assert "has the clock gone back?" in failed["sentence"]
            assert rig.model()["champion"] == 1
            rig.stop()
            set_clock(clock, timedelta(0))
            rig.start()
            write_csv(tmp_path / "data.csv", rows_of(2))
            assert rig.run_cycle()["outcome"] == "promoted"
            clients.more(10)
        assert clients.failures == []
        check_nothing_lost(rig, clients)


def set_clock(path: Path, shift: timedelta) -> None:
    """Let the daemon's clock show the present time and `shift`."""
    now = time.time()
    origin = datetime.now(UTC) + shift
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"sim_origin": origin.timestamp(), "real_origin": now, "speed": 1.0}))
    part.replace(path)
