"""The router's private side: tables in, counts out, and what survives a restart."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest
from router_rig import Rig, started, until, with_router

from serving.router import fleet
from serving.router.server import CannotStartError

TABLE = {"epoch": 2, "generation": 5, "backends": {"1": ["http://127.0.0.1:9"]}, "weights": {"1": 100}, "shadow": None}


def test_table_is_given_back_with_counts(tmp_path: Path) -> None:
    """What was put is what is got, for one model and for all."""

    async def scenario(rig: Rig) -> None:
        assert (await rig.admin("GET", "/models/m"))[0] == 404
        assert (await rig.admin("PUT", "/models/m", TABLE))[0] == 200
        status, table = await rig.admin("GET", "/models/m")
        assert (status, {name: table[name] for name in TABLE}) == (200, TABLE)
        assert table["stats"]["1"]["requests"] == 0
        assert (await rig.admin("GET", "/models"))[1] == {"m": table}

    with_router(tmp_path, scenario)


def test_older_tables_are_refused(tmp_path: Path) -> None:
    """An older epoch or generation is 409 and changes nothing; the same again, or the same generation with other replicas, is taken."""

    async def scenario(rig: Rig) -> None:
        await rig.admin("PUT", "/models/m", TABLE)
        for older in ({"generation": 4}, {"epoch": 1, "generation": 9}):
            assert (await rig.admin("PUT", "/models/m", {**TABLE, **older, "weights": {}}))[0] == 409
        assert (await rig.admin("GET", "/models/m"))[1]["weights"] == {"1": 100}
        moved = {**TABLE, "backends": {"1": ["http://127.0.0.1:10"]}}
        assert (await rig.admin("PUT", "/models/m", moved))[0] == 200
        assert (await rig.admin("PUT", "/models/m", {**TABLE, "epoch": 3, "generation": 1}))[0] == 200

    with_router(tmp_path, scenario)


def test_bad_bodies_are_refused_with_every_error(tmp_path: Path) -> None:
    """What is not JSON or breaks rules is 400, names the fields, and changes nothing."""

    async def scenario(rig: Rig) -> None:
        assert (await rig.admin("PUT", "/models/m", b"{"))[0] == 400
        assert (await rig.admin("PUT", "/models/m", b"\xff"))[0] == 400
        status, answer = await rig.admin("PUT", "/models/m", {**TABLE, "weights": {"1": 50}, "epoch": -1})
        assert (status, len(answer["errors"])) == (400, 2)
        assert (await rig.admin("PUT", "/models/Not-A-Label", TABLE))[0] == 400
        assert (await rig.admin("GET", "/models"))[1] == {}

    with_router(tmp_path, scenario)


def test_removal_is_fenced(tmp_path: Path) -> None:
    """A model is removed by its leader or a newer one only."""

    async def scenario(rig: Rig) -> None:
        await rig.admin("PUT", "/models/m", TABLE)
        assert (await rig.admin("DELETE", "/models/m"))[0] == 400
        assert (await rig.admin("DELETE", "/models/m?epoch=1"))[0] == 409
        assert (await rig.admin("DELETE", "/models/m?epoch=2"))[0] == 200
        assert (await rig.admin("DELETE", "/models/m?epoch=2"))[0] == 404
        assert (await rig.ask())[0] == 404

    with_router(tmp_path, scenario)


def test_version_that_left_drains(tmp_path: Path) -> None:
    """Requests in flight at a version that left the table finish, and are shown until they have."""

    async def scenario(rig: Rig) -> None:
        one, two = await rig.replica(gate=asyncio.Event()), await rig.replica()
        await rig.route({"1": [one]}, {"1": 100})
        asked = asyncio.create_task(rig.ask())
        await until(lambda: len(one.seen) == 1, "a request in flight")
        await rig.route({"2": [two]}, {"2": 100}, generation=2)
        table = (await rig.admin("GET", "/models/m"))[1]
        assert (table["stats"]["1"]["in_flight"], table["in_flight"]) == (1, {one.url: 1})
        assert (await rig.ask())[1]["x-ratchet-version"] == "2"
        assert one.gate is not None
        one.gate.set()
        status, headers, _ = await asked
        assert (status, headers["x-ratchet-version"]) == (200, "1")
        table = (await rig.admin("GET", "/models/m"))[1]
        assert (table["stats"]["1"]["in_flight"], table["in_flight"]) == (0, {})

    with_router(tmp_path, scenario)


def test_counts_of_a_departed_version_are_forgotten_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that left stays in the counts for a while; then its counts and its metrics go."""

    async def scenario(rig: Rig) -> None:
        one, two = await rig.replica(), await rig.replica()
        await rig.route({"1": [one]}, {"1": 100})
        await rig.ask()
        await rig.route({"2": [two]}, {"2": 100}, generation=2)
        assert (await rig.stats())["1"]["requests"] == 1
        monkeypatch.setattr(fleet, "DEPARTED_KEPT_S", 0.0)
        await rig.route({"2": [two]}, {"2": 100}, generation=3)
        assert set(await rig.stats()) == {"2"}
        async with rig.session.get(rig.url + "/metrics") as answer:
            assert 'version="1"' not in await answer.text()

    with_router(tmp_path, scenario)


def test_table_survives_a_restart(tmp_path: Path) -> None:
    """A router that starts on the files of another one routes as that did."""

    async def scenario() -> None:
        async with started(tmp_path) as rig:
            await rig.admin("PUT", "/models/m", TABLE)
        async with started(tmp_path) as rig:
            table = (await rig.admin("GET", "/models/m"))[1]
            assert {name: table[name] for name in TABLE} == TABLE

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"format": 9, "models": {}}', b'{"format": 1, "models": {"m": {}}}']
)
def test_damaged_table_is_set_aside(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A state file that cannot be understood is kept under another name, logged, and the router starts empty."""
    (tmp_path / "state.json").write_bytes(content)

    async def scenario(rig: Rig) -> None:
        assert (await rig.admin("GET", "/models"))[1] == {}

    with_router(tmp_path, scenario)
    (aside,) = tmp_path.glob("state.json.corrupt-*")
    assert aside.read_bytes() == content
    assert str(tmp_path / "state.json") in caplog.text


def test_full_disk_does_not_stop_a_change_of_traffic(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A table that cannot be written down is in force all the same, and the answer says that it was not written."""

    async def scenario(rig: Rig) -> None:
        (tmp_path / "state.json").mkdir()
        status, answer = await rig.admin("PUT", "/models/m", TABLE)
        assert (status, answer["persisted"]) == (200, False)
        assert (await rig.admin("GET", "/models/m"))[1]["weights"] == {"1": 100}

    with_router(tmp_path, scenario)
    assert "not written" in caplog.text


def test_admin_socket_is_the_owners_alone(tmp_path: Path) -> None:
    """The socket has mode 0600, works under a path longer than a socket's may be, and a second router cannot take it."""
    folder = tmp_path / ("deep" * 20) / ("deeper" * 10)
    folder.mkdir(parents=True)

    async def scenario() -> None:
        async with started(folder):
            assert stat.S_IMODE((folder / "admin.sock").stat().st_mode) == 0o600
            with pytest.raises(CannotStartError, match="another router"):
                async with started(folder):
                    pass
        assert not (folder / "admin.sock").exists()

    asyncio.run(scenario())
