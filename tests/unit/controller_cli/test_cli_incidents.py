"""What people see of incidents: a list, and in `explain` why a model does not retrain."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
from controller_world import START, TOKEN, World, served

from controller.cli import main
from controller.state import FaultOrigin, KnownFault
from controller.store.port import Commit

FAULT = KnownFault(
    kind="unit_changed", source="/data/x.csv", subject="wind", sentence="the unit of 'wind' seems to have changed",
    since=START, origin=FaultOrigin.LIVE, found_at=START,
)  # fmt: skip


def ratchet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: str) -> str:
    monkeypatch.setattr(sys, "argv", ["ratchet", *args])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert not ended.value.code
    said = capsys.readouterr()
    return " ".join((said.out or said.err).split())


def test_an_incident_is_listed_and_explained(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it lasts it is in the list and in its model's explanation; afterwards only `--all` shows it."""
    world = World().serving()
    with served(world) as url:
        monkeypatch.setenv("RATCHET_SERVER", url)
        monkeypatch.setenv("RATCHET_TOKEN", TOKEN)
        monkeypatch.setenv("COLUMNS", "200")
        assert ratchet(capsys, monkeypatch, "get", "incidents") == "no open incidents"
        state = world.store.load("late")
        assert state is not None
        epoch = world.leading_epoch
        state = world.store.commit(epoch, Commit(model=replace(state, faults=(FAULT,)), found=[FAULT]))
        table = ratchet(capsys, monkeypatch, "get", "incidents")
        assert "1 unit changed 1 2026-03-02 03:00" in table
        assert "the unit of 'wind' seems to have changed" in table
        (listed,) = json.loads(ratchet(capsys, monkeypatch, "get", "incidents", "-o", "json"))["incidents"]
        assert (listed["subject"], listed["names"], listed["closed_at"]) == ("wind", ["late"], None)
        told = ratchet(capsys, monkeypatch, "explain", "late")
        assert "since 2026-03-02 03:00: the unit of 'wind' seems to have changed (/data/x.csv)" in told
        assert "no trigger that rests on live rows fires" in told
        gone = replace(FAULT, absent_at=START)
        world.store.commit(epoch, Commit(model=replace(state, faults=()), gone=[gone]))
        assert ratchet(capsys, monkeypatch, "get", "incidents") == "no open incidents"
        assert "unit changed" in ratchet(capsys, monkeypatch, "get", "incidents", "--all")
