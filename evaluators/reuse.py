"""What a verdict may spend on rows that earlier verdicts were taken on. Pure.

Ask the same hold-out rows often enough, and a challenger passes by luck. So the error rate alpha = 1 - confidence of a gate is what a
hold-out has to spend, not what each verdict has. With f the share of the rows that no earlier verdict used, and w what is left (as a
share of alpha), each verdict first adds what its new rows bring, and then takes all but a fifth:

    w <- min(1, w + f)      alpha_k = (1 - KEPT_BACK) w alpha      w <- KEPT_BACK w

Each verdict passes a challenger that is truly worse with probability at most alpha_k, and what is spent was brought before, so that by
the union bound, with no assumption on how verdicts depend on each other, in any run of verdicts j..k

    P(one of them passes what is truly worse) <= alpha_j + ... + alpha_k <= alpha (1 + f_(j+1) + ... + f_k)

that is alpha for any number of verdicts on the same rows, and alpha more for each hold-out's worth of new ones. Verdicts that always find
a share f <= 1 - KEPT_BACK of new rows are each taken at alpha f. On rows all new the fifth is what asking them again will cost.

Source: spending an error rate over a sequence of tests is alpha-investing without the pay-out: D. Foster, R. Stine, J. Royal Statistical
Society B 70 (2008) 429-444. Why adaptive reuse needs it: C. Dwork et al., The reusable holdout, Science 349 (2015) 636-638; their
Thresholdout and the Ladder (A. Blum, M. Hardt, ICML 2015) bound the error of scores, and need noise or far more rows; what is decided
here is one paired comparison at a time, for which the union bound is enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.wording import count

KEPT_BACK = 0.2
"""Share of what is left that a verdict leaves to later ones on the same rows."""
_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """The rows that one verdict was taken on, and what it left."""

    oldest: datetime | None
    """Time of the oldest row; None if rows have no time."""
    newest: datetime | None
    rows: int
    table_rows: int
    """Of the whole table then: without times, rows beyond that many are new."""
    left: float
    """Share of alpha left for these rows, in (0, 1)."""

    def as_json(self) -> dict[str, Any]:
        return {
            "oldest": self.oldest.isoformat() if self.oldest else None,
            "newest": self.newest.isoformat() if self.newest else None,
            "rows": self.rows,
            "table_rows": self.table_rows,
            "left": self.left,
        }

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> Use:
        """Raises KeyError, ValueError for another shape."""
        times = [datetime.fromisoformat(item[key]) if item[key] else None for key in ("oldest", "newest")]
        return cls(
            oldest=times[0], newest=times[1], rows=item["rows"], table_rows=item["table_rows"], left=item["left"]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Allowance:
    """What a verdict on some rows may spend."""

    share: float = 1.0
    """Of the error rate asked for."""
    left: float = 0.0
    """For later verdicts, once this one is taken."""
    reused: float = 0.0
    """Share of the rows that earlier verdicts used."""
    cycles: int = 0
    """How many earlier verdicts those were."""

    def confidence(self, asked: float) -> float:
        """The confidence at which a comparison is decided, where the policy asks for `asked`.

        >>> round(Allowance(share=0.48).confidence(0.95), 4)
        0.976
        """
        return 1 - self.share * (1 - asked)

    @property
    def because(self) -> str:
        """Why that is more than what was asked, in words; empty if the rows are new.

        >>> Allowance(share=0.48, reused=0.6, cycles=2).because
        '2 earlier cycles used 60 % of these rows'
        """
        if not self.cycles:
            return ""
        of_rows = "all" if self.reused >= 1 else f"{max(1, min(99, round(100 * self.reused)))} %"
        return f"{count(self.cycles, 'earlier cycle')} used {of_rows} of these rows"


def allowance(
    earlier: Sequence[Use], *, time_us: NDArray[np.int64] | None, rows: int, table_rows: int = 0
) -> Allowance:
    """What a verdict on `rows` rows may spend after the `earlier` ones, oldest first. `time_us` (rows,): us since 1970, None without.

    A row counts as used if its time lies within the rows of an earlier verdict, whether or not it was among them (its label may have been
    missing then). Without times it counts as used unless it lies beyond the end of every earlier table.

    >>> day = lambda d: datetime(2026, 3, d, tzinfo=UTC)
    >>> march = lambda first, last: np.array([(day(d) - _EPOCH) // _MICROSECOND for d in range(first, last + 1)])
    >>> first = allowance([], time_us=march(1, 10), rows=10)
    >>> first.share, first.left
    (0.8, 0.2)
    >>> used = Use(oldest=day(1), newest=day(10), rows=10, table_rows=0, left=first.left)
    >>> second = allowance([used], time_us=march(5, 14), rows=10)          # six of ten rows again, four new
    >>> round(second.share, 3), second.because                             # .8 * (.2 + .4)
    (0.48, '1 earlier cycle used 60 % of these rows')
    """
    used, cycles = _used(earlier, time_us, rows, table_rows)
    before = earlier[-1].left if earlier else 0.0
    wealth = min(1.0, before + 1.0 - used)
    return Allowance(share=(1 - KEPT_BACK) * wealth, left=KEPT_BACK * wealth, reused=used, cycles=cycles)


def _used(earlier: Sequence[Use], time_us: NDArray[np.int64] | None, rows: int, table_rows: int) -> tuple[float, int]:
    """The share of the rows that were used, and how many verdicts used some."""
    if not earlier or not rows:
        return 0.0, 0
    if time_us is None:
        new = min(rows, max(0, table_rows - max(use.table_rows for use in earlier)))
        touching = sum(use.table_rows > table_rows - rows for use in earlier)
        return 1 - new / rows, touching if new < rows else 0
    by_verdict = [_inside(time_us, use) for use in earlier]
    return float(np.mean(np.any(by_verdict, axis=0))), sum(bool(inside.any()) for inside in by_verdict)


def _inside(time_us: NDArray[np.int64], use: Use) -> NDArray[np.bool_]:
    if use.oldest is None or use.newest is None:
        return np.ones(len(time_us), dtype=bool)
    within: NDArray[np.bool_] = (time_us >= _us(use.oldest)) & (time_us <= _us(use.newest))
    return within


def _us(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def use_of(spent: Allowance, *, time_us: NDArray[np.int64] | None, rows: int, table_rows: int) -> Use:
    """The record of a verdict that was taken, for the next one's account. `rows` >= 1."""
    ends = (None, None) if time_us is None else (int(time_us.min()), int(time_us.max()))
    oldest, newest = (None if end is None else _EPOCH + end * _MICROSECOND for end in ends)
    return Use(oldest=oldest, newest=newest, rows=rows, table_rows=table_rows, left=spent.left)
