"""What verdicts may spend on rows that were used: how much is left, and that luck does not add up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from evaluators.reuse import KEPT_BACK, Allowance, Use, allowance, use_of

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _times(first: int, last: int) -> np.ndarray:
    return np.arange(first, last + 1, dtype=np.int64) * 1_000_000


def _verdicts(*spans: tuple[int, int]) -> list[Allowance]:
    """One verdict after the other, on rows of one second each."""
    earlier: list[Use] = []
    found = []
    for first, last in spans:
        at = _times(first, last)
        found.append(allowance(earlier, time_us=at, rows=len(at)))
        earlier.append(use_of(found[-1], time_us=at, rows=len(at), table_rows=0))
    return found


def test_new_rows_are_judged_alike_however_many_verdicts_came_before() -> None:
    """Hold-outs that share no row owe each other nothing, and nothing is said of reuse."""
    spent = _verdicts(*((100 * k, 100 * k + 99) for k in range(10)))
    assert {s.share for s in spent} == {1 - KEPT_BACK}
    assert {s.because for s in spent} == {""}


def test_the_same_rows_have_less_to_spend_each_time() -> None:
    """Each verdict on the same rows takes its share of what the ones before left."""
    shares = [s.share for s in _verdicts(*[(0, 99)] * 5)]
    assert shares == pytest.approx([0.8 * 0.2**k for k in range(5)])


def test_overlap_pays_for_the_overlapping_share() -> None:
    """The sentence counts the verdicts that touched these rows and the share that any of them used."""
    spent = _verdicts((0, 99), (50, 149), (90, 189), (1000, 1099))
    assert (spent[2].reused, spent[2].cycles) == (pytest.approx(0.6), 2)
    assert spent[2].because == "2 earlier cycles used 60 % of these rows"
    assert spent[1].confidence(0.95) == pytest.approx(1 - 0.05 * 0.8 * (0.2 + 0.5))
    assert spent[3].because == ""


def test_rows_without_times_are_new_only_beyond_the_end_of_every_table_before() -> None:
    """A file that has grown by 30 rows has 30 new ones in its hold-out of 100; one that has not grown has none."""
    first = allowance([], time_us=None, rows=100, table_rows=500)
    used = use_of(first, time_us=None, rows=100, table_rows=500)
    grown = allowance([used], time_us=None, rows=100, table_rows=530)
    assert (grown.reused, grown.cycles) == (pytest.approx(0.7), 1)
    assert allowance([used], time_us=None, rows=100, table_rows=480).reused == 1
    assert allowance([used], time_us=None, rows=100, table_rows=600).cycles == 0


def test_rows_before_the_policy_named_a_time_count_as_used() -> None:
    """What cannot be told apart is taken as used: unknown is never good."""
    used = use_of(allowance([], time_us=None, rows=10), time_us=None, rows=10, table_rows=50)
    assert allowance([used], time_us=_times(0, 9), rows=10).reused == 1


def test_records_survive_json() -> None:
    """What the controller keeps is read back as it was."""
    at = _times(5, 9)
    used = use_of(allowance([], time_us=at, rows=5), time_us=at, rows=5, table_rows=7)
    assert Use.from_json(used.as_json()) == used
    assert used.newest == EPOCH + timedelta(seconds=9)


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 80)), min_size=1, max_size=25))
def test_no_run_of_verdicts_spends_more_than_its_rows_brought(spans: list[tuple[int, int]]) -> None:
    """Over any verdicts j..k the shares add up to at most 1 and the new shares of those after the first."""
    spent = _verdicts(*((first, first + length) for first, length in spans))
    for j in range(len(spent)):
        total = np.cumsum([s.share for s in spent[j:]])
        brought = 1 + np.cumsum([0.0] + [1 - s.reused for s in spent[j + 1 :]])
        assert (total <= brought + 1e-9).all()


def _any_pass(shares: list[float], *, seed: int, runs: int = 3_000, rows: int = 400, alpha: float = 0.05) -> float:
    """The share of runs in which one of a row of challengers, each a little worse than the champion, passes `accuracy no worse by 0` on
    the same rows: the k-th at the level alpha x shares[k], by McNemar's statistic, which is that of the gate (`evaluators.pairs`)."""
    rng = np.random.default_rng(seed)
    champion = rng.random((runs, rows)) < 0.8
    passed = np.zeros(runs, dtype=bool)
    for share in shares:
        challenger = rng.random((runs, rows), dtype=np.float32) < 0.799
        gained = np.count_nonzero(challenger & ~champion, axis=1)
        lost = np.count_nonzero(~challenger & champion, axis=1)
        passed |= (gained - lost) / np.sqrt(np.maximum(gained + lost, 1)) >= norm.isf(alpha * share)
    return float(passed.mean())


def test_asking_the_same_rows_twenty_times_lets_nothing_worse_through() -> None:
    """Over 3,000 runs of 20 cycles on one hold-out, a truly worse challenger ever passes in at most 5 % (and chance); without paying for
    the reuse one would in every third."""
    shares = [s.share for s in _verdicts(*[(0, 399)] * 20)]
    assert _any_pass(shares, seed=0) <= 0.05 + 3 * (0.05 * 0.95 / 3_000) ** 0.5
    assert _any_pass([1.0] * 20, seed=0) > 0.3
