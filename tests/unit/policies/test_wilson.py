"""The bound that metrics act on."""

from __future__ import annotations

import random

import pytest
from statsmodels.stats.proportion import proportion_confint

from policies.metric_rules import wilson


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(("some", "total"), [(0, 10), (1, 10), (10, 10), (12, 571), (3, 100_000), (60, 1000)])
def test_it_is_that_of_statsmodels(some: int, total: int, confidence: float) -> None:
    """One-sided at a confidence is two-sided at twice the rest."""
    theirs = proportion_confint(some, total, alpha=2 * (1 - confidence), method="wilson")
    assert wilson(some / total, total, confidence) == pytest.approx(theirs, abs=1e-12)


def test_so_few_are_not_shown_to_be_many() -> None:
    """Where the truth is the limit itself, the bound lies beyond it in about as few looks as the confidence leaves."""
    rng, looks, share, count = random.Random(1), 300, 0.02, 500
    beyond = sum(
        wilson(sum(rng.random() < share for _ in range(count)) / count, count, 0.95)[0] > share for _ in range(looks)
    )
    assert beyond / looks < 0.09
