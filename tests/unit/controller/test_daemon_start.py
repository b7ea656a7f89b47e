"""What a daemon makes when it starts, and what it says when it cannot."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings
from controller import daemon
from controller.wiring import home_folder


def test_the_state_folder_is_its_owners_alone(tmp_path: Path) -> None:
    """It holds what customers sent; not even a generous umask, or a folder made before by something else, opens it."""
    before = os.umask(0)
    try:
        home = home_folder(Settings(home=tmp_path / "new"))
        (tmp_path / "old" / "run").mkdir(parents=True)
        old = home_folder(Settings(home=tmp_path / "old"))
    finally:
        os.umask(before)
    assert [stat.S_IMODE(p.stat().st_mode) for p in (home, home / "run", old / "run")] == [0o700] * 3


@pytest.mark.parametrize("where", ["home", "home/run", "home/run/token", "home/state.db"])
def test_a_daemon_that_cannot_start_says_why(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something else stands where one of its files must be: a sentence and an exit code, never a stack trace."""
    said: list[Any] = []
    monkeypatch.setattr("controller.daemon.logs.configure", lambda *_: None)
    monkeypatch.setattr("controller.daemon.log.error", lambda event, **more: said.append((event, more["reason"])))
    path = tmp_path / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if where.endswith(("token", ".db")) else path.write_text("")
    assert daemon.run(Settings(home=tmp_path / "home", port=0, router_port=0)) == daemon.EXIT_CANNOT_START
    assert [event for event, _ in said] == ["daemon.cannot_start"]
    assert path.name in said[0][1]


def test_misspelt_settings_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is no setting is warned of with the one that may be meant; those of the command line and the tests are not."""
    said: list[Any] = []
    monkeypatch.setattr("controller.daemon.logs.configure", lambda *_: None)
    monkeypatch.setattr("controller.daemon.log.error", lambda *_, **__: None)
    monkeypatch.setattr("controller.daemon.log.warning", lambda event, **more: said.append((event, more)))
    for name in ("RATCHET_KEEP_VERSION", "RATCHET_ODD", "RATCHET_TOKEN", "RATCHET_TEST_DATA", "RATCHET_TICK_S"):
        monkeypatch.setenv(name, "5")
    (tmp_path / "home").write_text("")
    daemon.run(Settings(home=tmp_path / "home", port=0, router_port=0))
    assert [event for event, _ in said] == ["settings.unknown"] * 2
    assert [more["variable"] for _, more in said] == ["RATCHET_KEEP_VERSION", "RATCHET_ODD"]
    assert "did you mean RATCHET_KEEP_VERSIONS?" in said[0][1]["note"]
    assert "docs/settings.md" in said[1][1]["note"]
