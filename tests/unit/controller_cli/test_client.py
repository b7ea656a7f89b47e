"""Whom the command line tells what."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.cli.client import Place


@pytest.mark.parametrize(
    ("server", "home_is_named", "expected"),
    [
        (None, False, "mine"),
        ("http://localhost:8640", False, "mine"),
        ("https://ratchet.example", False, ""),
        ("https://ratchet.example", True, "mine"),
        ("http://127.0.0.1.example", False, ""),
        ("http://127.0.0.1@example", False, ""),
    ],
)
def test_the_token_of_this_machine_is_not_told_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str | None, home_is_named: bool, expected: str
) -> None:
    """A server elsewhere gets a token that was given for it, or that of a folder that was named, never the one that happens to lie here."""
    for name in ("RATCHET_SERVER", "RATCHET_TOKEN", "RATCHET_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".ratchet" / "run").mkdir(parents=True)
    (tmp_path / ".ratchet" / "run" / "token").write_text("mine\n")
    named = tmp_path / ".ratchet" if home_is_named else None
    assert Place(server=server, home=named).secret() == expected
    assert Place(server=server, home=named, token="given").secret() == "given"
