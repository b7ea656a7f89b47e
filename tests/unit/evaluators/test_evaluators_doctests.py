"""The worked examples beside the formulas are right."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = ["answers", "drift", "gates", "pairs", "resampling", "sequential", "wording"]


@pytest.mark.parametrize("module", MODULES)
def test_worked_examples(module: str) -> None:
    """Every example in the module's docstrings gives what it says."""
    result = doctest.testmod(importlib.import_module(f"evaluators.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
