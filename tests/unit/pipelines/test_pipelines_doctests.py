"""The worked examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("module", ["data.labels", "data.maturity", "training"])
def test_examples(module: str) -> None:
    """Every example gives what it says."""
    result = doctest.testmod(importlib.import_module(f"pipelines.{module}"))
    assert result.failed == 0
    assert result.attempted > 0
