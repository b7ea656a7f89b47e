"""The whole loop for real: daemon, jobs, images, replicas, router, command line; killed in the middle, and gone at the end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from daemon_rig import REPOSITORY, Rig, write_policy, write_rows

pytestmark = pytest.mark.slow

HEAVY = ("sklearn", "tensorflow", "keras", "pandas", "evidently", "pyarrow", "scipy", "numpy")
RSS_MB_MAX = 150


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("e2e")
    write_rows(folder / "rows.csv")
    write_policy(folder / "small.yaml")
    rig = Rig(home=folder / "home")
    rig.start()
    try:
        rig.ratchet("apply", str(folder / "small.yaml"))
        rig.until(lambda: rig.serves(1), "v1 to serve")
        yield rig
    finally:
        rig.stop()


def test_first_version_answers_through_the_router(rig: Rig) -> None:
    """A policy is all it takes: v1 was trained, judged, packaged and serves."""
    answer = rig.predict(x=2.0, z=1.0, kind="a")
    assert answer["header"] == "1"
    assert answer["version"] == 1
    assert len(answer["predictions"]) == 1
    assert rig.model()["versions"][0]["status"] == "champion"


def test_daemon_stays_small(rig: Rig) -> None:
    """After a whole cycle the daemon has loaded no data or machine-learning library and uses little memory."""
    assert rig.process is not None
    maps = Path(f"/proc/{rig.process.pid}/maps").read_text()
    for library in HEAVY:
        assert f"site-packages/{library}/" not in maps, library
    status = Path(f"/proc/{rig.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    assert int(found[1]) / 1024 < RSS_MB_MAX


def test_holds_hold(rig: Rig) -> None:
    """Paused, frozen and pinned show up, refuse what they stop, and end; a preview of an older state is refused."""
    row_version = json.loads(rig.ratchet("pause", "small", "-r", "x", "--dry-run", "-o", "json"))["row_version"]
    rig.ratchet("pause", "small", "--reason", "look into it", "--yes")
    assert rig.model()["held"]["paused"]["reason"] == "look into it"
    assert "resume it first" in rig.ratchet("trigger", "small", "-r", "x", "-y", code=1)
    rig.ratchet("freeze", "small", "-r", "x", "-y", "--row-version", str(row_version), code=4)
    rig.ratchet("resume", "small", "-r", "seen", "-y")
    for on, off in (("freeze", "unfreeze"), ("pin", "unpin")):
        rig.ratchet(on, "small", "-r", "x", "-y")
        rig.ratchet(off, "small", "-r", "y", "-y")
    assert not any(rig.model()["held"].values())


def test_killed_daemon_goes_on_with_the_same_cycle(rig: Rig) -> None:
    """kill -9 in the middle of a cycle: serving goes on without the daemon, then the same cycle ends, and each job ran once."""
    _more_rows(rig)
    rig.ratchet("trigger", "small", "-r", "new rows", "-y")
    rig.until(lambda: rig.phase() in ("tuning", "training", "judging"), "the cycle to be at work")
    model = rig.model()
    number, address = model["cycle"]["number"], model["address"]
    rig.kill()
    row = {"instances": [{"x": 1.0, "z": 0.0, "kind": "b"}]}
    assert httpx.post(f"{address}/v1/models/small:predict", json=row, trust_env=False).is_success
    rig.start()
    rig.until(lambda: rig.serves(2), "v2 to serve")
    last = rig.api("/models/small/cycles")["cycles"][0]
    assert (last["number"], last["outcome"]) == (number, "promoted")
    assert rig.model()["address"] == address
    kinds = [e["kind"] for e in rig.api("/events", model="small", limit=1000)["events"] if e["cycle"] == number]
    assert all(
        kinds.count(kind) == 1
        for kind in ("cycle.opened", "data.prepared", "study.finished", "model.trained", "version.created")
    )


def _more_rows(rig: Rig) -> None:
    path = rig.home.parent / "rows.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, *lines[1:200]]) + "\n")


def test_rollback_goes_back_and_sticks(rig: Rig) -> None:
    """One command, and v1 answers again; v2 is quarantined; the decision can be replayed."""
    assert "v2 serves" in rig.ratchet("explain", "small")
    rig.ratchet("rollback", "small", "-r", "v2 smells", "-y")
    rig.until(lambda: rig.predict(x=0.0, z=0.0, kind="a")["header"] == "1", "v1 to answer again")
    assert [v["status"] for v in rig.model()["versions"]] == ["champion", "quarantined"]
    trained = next(e for e in rig.api("/events", limit=1000)["events"] if e["kind"] == "gates.passed")
    assert "the same decision" in rig.ratchet("explain", "small", "--replay", str(trained["seq"]))


def test_second_daemon_is_refused(rig: Rig) -> None:
    """A second daemon on the same home ends with its code and says who runs."""
    assert "another daemon" in rig.ratchet("daemon", code=3)


def test_changed_policy_supersedes(rig: Rig) -> None:
    """Applying another policy in the middle of a cycle ends that cycle; serving is not touched."""
    _more_rows(rig)
    rig.ratchet("trigger", "small", "-r", "again", "-y")
    number = rig.model()["cycle"]["number"]
    rig.ratchet("pause", "small", "-r", "so that it stays there", "-y")
    policy = rig.home.parent / "small.yaml"
    policy.write_text(policy.read_text().replace("at_least: 0.6", "at_least: 0.55"))
    rig.ratchet("apply", str(policy), "--yes")
    last = rig.api("/models/small/cycles")["cycles"][0]
    assert (last["number"], last["outcome"]) == (number, "superseded")
    assert rig.predict(x=0.0, z=0.0, kind="a")["header"] == "1"


def test_deleted_model_stops_serving(rig: Rig) -> None:
    """After deletion no replica is left, and the router knows the model no more."""
    address = rig.model()["address"]
    rig.ratchet("delete", "small", "-r", "over", "--yes")
    rig.until(lambda: not any("serving.runtime" in c for c in rig.left_over()), "the replicas to end")
    answer = httpx.post(f"{address}/v1/models/small:predict", json={"instances": [{"x": 1}]}, trust_env=False)
    assert answer.status_code == 404
    rig.ratchet("explain", "small", code=1)


def test_daemon_imports_no_heavy_library() -> None:
    """Importing all of the daemon loads nothing that only jobs and replicas need."""
    probe = (
        "import sys, controller.daemon\n"
        f"print(sorted(set({HEAVY!r}) & {{name.partition('.')[0] for name in sys.modules}}))"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "value", "expected", "code"),
    [
        ("RATCHET_PORT", "99999", "RATCHET_PORT", 2), ("RATCHET_TICK_S", "soon", "RATCHET_TICK_S", 2),
        ("RATCHET_CLOCK", "/nowhere/clock.json", "/nowhere/clock.json", 3), ("RATCHET_DATABASE", "nonsense://", "nonsense", 3),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_named(tmp_path: Path, name: str, value: str, expected: str, code: int) -> None:
    """A wrong setting ends the daemon at once, with its name or its value and no stack trace."""
    rig = Rig(home=tmp_path / "home")
    rig.env[name] = value
    said = rig.ratchet("daemon", code=code)
    assert expected in said
    assert "Traceback" not in said


def test_port_in_use_is_named(tmp_path: Path) -> None:
    """Another program on the port: the message names port and setting."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        rig = Rig(home=tmp_path / "home")
        rig.env["RATCHET_PORT"] = str(taken.getsockname()[1])
        assert "RATCHET_PORT" in rig.ratchet("daemon", code=3)
