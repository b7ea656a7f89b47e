"""Documentation that cannot lag behind: every verb, option, exit code and setting is described."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from config.settings import Settings
from controller import daemon
from controller.cli.client import Exit
from controller.cli.main import app
from policies.schema import Spec
from serving.router import proxy

DOCS = Path(__file__).parents[3] / "docs"
CLI = (DOCS / "cli.md").read_text()


def commands(group: Any, prefix: str = "ratchet") -> list[tuple[str, Any]]:
    """Every command with its full name."""
    found = []
    for name, command in group.commands.items():
        full = f"{prefix} {name}"
        found += commands(command, full) if hasattr(command, "commands") else [(full, command)]
    return found


COMMANDS = commands(typer.main.get_command(app))


@pytest.mark.parametrize("name", [name for name, _ in COMMANDS])
def test_every_verb_is_documented(name: str) -> None:
    """docs/cli.md has a line for each verb."""
    assert re.search(rf"`{re.escape(name)}[ `]", CLI), f"{name} is missing in docs/cli.md"


@pytest.mark.parametrize(("name", "command"), COMMANDS)
def test_every_verb_and_option_has_help(name: str, command: Any) -> None:
    """`--help` says something about each verb and each of its options."""
    assert command.help, name
    for parameter in command.params:
        if parameter.name != "help":
            assert parameter.help, f"{name} {parameter.name}"


def test_every_exit_code_is_documented() -> None:
    """docs/cli.md lists all exit codes, those of the daemon too."""
    for code in Exit:
        assert f"| {code.value} |" in CLI
    for code in (daemon.EXIT_CANNOT_START, daemon.EXIT_LOST_LEADERSHIP):
        assert re.search(rf"`ratchet daemon` has its own:.*\b{code} ", CLI, re.DOTALL)


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_documented(name: str) -> None:
    """docs/settings.md has each setting under its environment variable, with its default."""
    line = next((x for x in (DOCS / "settings.md").read_text().splitlines() if f"`RATCHET_{name.upper()}`" in x), "")
    assert line, f"RATCHET_{name.upper()} is missing in docs/settings.md"
    default = Settings.model_fields[name].default
    assert default is None or f"`{default}`" in line, f"the default of RATCHET_{name.upper()} is {default}"


@pytest.mark.parametrize("name", ["KEY_HEADER", "REQUEST_ID_HEADER", "VERSION_HEADER"])
def test_every_public_header_is_documented(name: str) -> None:
    """docs/serving.md names the headers of the router that are for clients."""
    assert f"`{getattr(proxy, name)}`" in (DOCS / "serving.md").read_text()


def test_no_link_between_the_pages_is_broken() -> None:
    """Each relative link of README, docs and the other pages leads to a file."""
    root = DOCS.parent
    for page in [*root.glob("*.md"), *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("name", sorted(field.alias or key for key, field in Spec.model_fields.items()))
def test_every_part_of_a_policy_is_documented(name: str) -> None:
    """docs/policy.md describes each key under `spec`."""
    assert re.search(rf"\b{re.escape(name)}\b", (DOCS / "policy.md").read_text()), name
