"""The worked examples in docstrings are run: what they show is what the code does."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = (
    "policies",
    "config",
    "pipelines",
    "tuners",
    "evaluators",
    "deployers",
    "serving",
    "controller",
    "demo",
    "bench",
)


def _modules_with_examples() -> list[str]:
    files = [f for folder in FOLDERS for f in sorted((ROOT / folder).rglob("*.py")) if ">>> " in f.read_text()]
    return [str(f.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__") for f in files]


@pytest.mark.parametrize("name", _modules_with_examples())
def test_examples_in_docstrings_hold(name: str) -> None:
    """Each example gives what it says."""
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted, "the examples were not found"
    assert not result.failed
