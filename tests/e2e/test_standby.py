"""Two real daemons on one PostgreSQL and one state folder: one leads, the other stands by, and never do both act."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from daemon_rig import REPOSITORY, Rig, write_policy, write_rows
from servers.postgres import PASSWORD, Postgres, running_postgres

TAKEOVER_S = 15.0


class Pair(Rig):
    """A rig with more than one daemon; the command line asks whoever leads."""

    def __init__(self, home: Path, database: str, password_file: Path) -> None:
        super().__init__(home)
        self.env |= {"RATCHET_DATABASE": database, "RATCHET_DATABASE_PASSWORD_FILE": str(password_file)}
        self.all: list[subprocess.Popen[bytes]] = []
        home.mkdir()

    def add(self) -> subprocess.Popen[bytes]:
        """One daemon more, with a log of its own; returns when its API answers."""
        log = self.home.parent / f"daemon-{len(self.all)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "controller.cli.main", "daemon"], cwd=REPOSITORY, env=self.env, stdout=out, stderr=out
            )  # fmt: skip
        self.all.append(process)
        self.until(lambda: "daemon.st" in log.read_text() or process.poll() is not None, f"{log}", 30)
        assert process.poll() is None, log.read_text()
        return process

    def said(self, number: int) -> str:
        return (self.home.parent / f"daemon-{number}.log").read_text()

    def url(self, number: int) -> str:
        """Where a daemon listens, by its own words."""
        (line,) = [one for one in self.said(number).splitlines() if "daemon.st" in one and "url=" in one][:1]
        return line.split("url=")[1].split()[0]

    def ask(self, number: int, path: str) -> httpx.Response:
        token = (self.home / "run" / "token").read_text()
        return httpx.get(
            self.url(number) + path, headers={"authorization": f"Bearer {token}"}, trust_env=False, timeout=20
        )

    def leads(self, number: int) -> bool:
        return self.ask(number, "/readyz").status_code == 200

    def wait_for_leader(self, number: int) -> float:
        """Seconds until it led."""
        began = time.monotonic()
        self.until(lambda: self.leads(number), f"daemon {number} to lead", 40)
        return time.monotonic() - began

    def log(self) -> str:
        return "\n".join(f"--- {i}\n{self.said(i)[-3000:]}" for i in range(len(self.all)))


@pytest.fixture
def pair(tmp_path: Path, postgres: Postgres) -> Iterator[Pair]:
    made = Pair(tmp_path / "home", postgres.url(postgres.clean_database()), postgres.password_file)
    try:
        yield made
    finally:
        made.ratchet("shutdown", "--yes")
        for process in made.all:
            process.kill()
            process.wait(10)
    made.until(lambda: not made.left_over(), "all processes to end", 15)


@pytest.mark.slow
def test_the_standby_goes_on_where_a_killed_or_suspended_leader_stopped(pair: Pair, tmp_path: Path) -> None:
    """Within 15 s; the cycle under way goes on, nothing is done twice, and who wakes up too late writes nothing and leaves."""
    first, _second = pair.add(), pair.add()
    assert pair.leads(0)
    standby = httpx.get(pair.url(1) + "/healthz", trust_env=False)
    assert (standby.status_code, standby.json()) == (200, {"ok": True, "role": "standby"})
    assert pair.ask(1, "/readyz").status_code == 503
    write_rows(tmp_path / "rows.csv")
    write_policy(tmp_path / "policy.yaml")
    refused = pair.ratchet("--server", pair.url(1), "apply", str(tmp_path / "policy.yaml"), code=1)
    assert "this daemon stands by" in refused
    assert f":{first.pid}:" in refused
    pair.ratchet("apply", str(tmp_path / "policy.yaml"))
    assert [m["name"] for m in pair.ask(1, "/api/v1/models").json()["models"]] == ["small"]
    pair.until(lambda: pair.phase() in ("preparing", "tuning", "training"), "the cycle to work")

    first.send_signal(signal.SIGKILL)
    first.wait(10)
    assert pair.wait_for_leader(1) < TAKEOVER_S
    assert json.loads((pair.home / "run" / "daemon.json").read_text())["url"] == pair.url(1)
    pair.until(lambda: pair.serves(1), "the cycle to end well")
    assert pair.predict(x=1.0, z=0.5, kind="a")["header"] == "1"

    second = pair.all[1]
    pair.add()
    second.send_signal(signal.SIGSTOP)
    assert pair.wait_for_leader(2) < TAKEOVER_S
    pair.ratchet("pause", "small", "--reason", "by the third", "--yes")
    before = pair.ask(2, "/api/v1/events?limit=1000").json()["events"]
    second.send_signal(signal.SIGCONT)
    assert second.wait(30) == 4, pair.said(1)
    assert "leadership.lost" in pair.said(1)
    assert json.loads((pair.home / "run" / "daemon.json").read_text())["url"] == pair.url(2)
    assert pair.ask(2, "/api/v1/events?limit=1000").json()["events"] == before
    kinds = [event["kind"] for event in before]
    assert {kind: kinds.count(kind) for kind in ("policy.applied", "cycle.opened", "override.pause")} == {
        "policy.applied": 1, "cycle.opened": 1, "override.pause": 1,
    }  # fmt: skip
    assert pair.predict(x=1.0, z=0.5, kind="a")["header"] == "1"
    everything = pair.log() + "".join(p.read_text(errors="replace") for p in pair.home.rglob("*.json"))
    assert PASSWORD not in everything


@pytest.mark.slow
def test_a_daemon_outlives_a_database_that_goes_away(tmp_path: Path) -> None:
    """For longer than its lease: it says so, changes nothing, what serves goes on serving, and it leads on when the server is back."""
    with running_postgres() as server:
        alone = Pair(tmp_path / "home", server.url(server.new_database()), server.password_file)
        alone.env["RATCHET_LEASE_TTL_S"] = "4"
        try:
            process = alone.add()
            write_rows(tmp_path / "rows.csv")
            write_policy(tmp_path / "policy.yaml")
            alone.ratchet("apply", str(tmp_path / "policy.yaml"))
            alone.until(lambda: alone.serves(1), "the first version to serve")
            address = alone.model()["address"]
            server.stop()
            alone.until(lambda: _health(alone).get("store") == "away", "the daemon to say so", 30)
            alone.until(lambda: not alone.leads(0), "the lease to lapse", 30)
            answer = httpx.post(
                f"{address}/v1/models/small:predict", json={"instances": [{"x": 1.0, "z": 0.5, "kind": "a"}]}, trust_env=False,
                timeout=10,
            )  # fmt: skip
            assert answer.status_code == 200
            refused = alone.ratchet("pause", "small", "--reason", "try", "--yes", code=1)
            assert "the server is away" in refused
            assert PASSWORD not in refused
            assert process.poll() is None
            server.start()
            alone.until(lambda: alone.leads(0), "the daemon to lead on", 30)
            alone.ratchet("pause", "small", "--reason", "again", "--yes")
            alone.until(lambda: _health(alone)["store"] == "answers", "the tick to work again", 30)
            assert process.poll() is None
            assert "daemon.stands_by" not in alone.said(0)
        finally:
            alone.ratchet("shutdown", "--yes")
            for one in alone.all:
                one.kill()
                one.wait(10)


def _health(rig: Pair) -> dict[str, object]:
    found: dict[str, object] = httpx.get(rig.url(0) + "/healthz", trust_env=False, timeout=20).json()
    return found
