"""The examples in the controller's docstrings are true."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = (
    "applying",
    "cli.output",
    "cli.starting",
    "clock",
    "cycle",
    "draft",
    "overrides",
    "phases",
    "plan",
    "telemetry.logs",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_hold(name: str) -> None:
    """Each example gives what it says, and there is one."""
    result = doctest.testmod(importlib.import_module(f"controller.{name}"))
    assert result.attempted
    assert not result.failed
