"""Which rows may be trained on and judged with at a given moment (invariant 12). Pure.

The reason. Labels do not arrive at random: a flight that lands early is known early, a fraud is known only when somebody
complains. The rows whose labels are in *today* are therefore no fair sample of today's rows: they hold too many of whatever
arrives fast. A row may count only once the label of every row of its age could have been in, so that the fast and the slow
ones of the same age count alike. This is right-censoring by reporting delay; see Lawless (1994), "Adjustments for reporting
delays and the prediction of occurred but not reported events", Canadian Journal of Statistics 22(1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

LATE_QUANTILE = 0.99
"""Share of labels that must be able to arrive before rows of an age count. The slowest hundredth may never arrive at all."""
GROUP_ROWS = 100
"""Rows with one label, or with labels of one tenth of the range, from which on they have a delay of their own; and rows that must be old
enough to show a delay before it is corrected for those that are not."""
_TENTHS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Maturity:
    """What counts of n rows."""

    counts: NDArray[np.bool_]
    """(n,) rows that are mature and have a label."""
    immature: int
    """Rows whose label may still be on its way (also those of them whose label is in already)."""
    unlabelled: int
    """Rows that are old enough but have no label."""
    delay: timedelta | None
    """The age from which rows are mature; None if age does not matter, or no label time is known."""


def maturity(
    label: pd.Series,
    *,
    now: datetime,
    time: pd.Series | None = None,
    label_time: pd.Series | None = None,
    label_delay: timedelta | None = None,
) -> Maturity:
    """Rows that count at `now`. `time` and `label_time` are UTC timestamps, all series have n rows.

    With `label_delay`:  mature = time + label_delay <= now.
    With `label_time`:   mature = time + d <= now, where d is the delay that 99 % of labels keep (see `late_delay`); and the row's own
                         label_time <= now. Where the feed has stalled since, or waits for its next batch, mature = time + d <= the newest
                         label_time that is known: what has not come since has not come for quick and slow rows alike.
    With neither:        mature = time <= now (always, without a time).
    A mature row counts if it has a label. `label_delay` and `label_time` together: d = label_delay.

    Worked example: labels arrive after 1 h if the flight was on time and after 5 h if it was late. At 10:00 the flight of
    08:00 that was on time is known already, its late sister is not. Counting the one without the other would make flights look
    punctual; so neither counts, and both of 05:00 do.

    >>> import pandas as pd
    >>> from datetime import UTC
    >>> at = lambda hour: pd.Timestamp(2026, 3, 1, hour, tz="UTC")
    >>> rows = pd.DataFrame({"time": [at(5), at(5), at(8), at(8)], "known": [at(6), at(10), at(9), at(13)], "late": [0, 1, 0, 1]})
    >>> found = maturity(rows["late"], now=datetime(2026, 3, 1, 10, tzinfo=UTC), time=rows["time"], label_time=rows["known"])
    >>> found.counts.tolist(), found.immature, found.delay == timedelta(hours=5)
    ([True, True, False, False], 2, True)
    """
    import numpy as np
    import pandas as pd

    labelled = label.notna().to_numpy(dtype=bool)
    known = labelled
    if label_time is not None:
        known = (label_time <= pd.Timestamp(now)).to_numpy(dtype=bool)
        labelled = labelled & known
    delay = label_delay
    if time is None:
        mature, delay = np.ones(len(label), dtype=bool), None
    elif label_time is None:
        mature = (time <= pd.Timestamp(now) - (delay or timedelta(0))).to_numpy(dtype=bool)
    else:
        if delay is None:
            delay = late_delay(label[known], time[known], label_time[known], now)
        mature = np.zeros(len(label), dtype=bool)
        if delay is not None:
            mature = (time <= pd.Timestamp(now) - delay).to_numpy(dtype=bool)
            fed = mature & (time <= label_time[known].max() - delay).to_numpy(dtype=bool)
            mature = fed if _fewer(labelled, mature & ~fed, fed) else mature
    counts = mature & labelled
    return Maturity(
        counts=counts,
        immature=int((~mature).sum()),
        unlabelled=int((mature & ~labelled).sum()),
        delay=delay,
    )


def _fewer(labelled: NDArray[np.bool_], since: NDArray[np.bool_], before: NDArray[np.bool_]) -> bool:
    """Whether fewer rows `since` are labelled than `before`, by a hundredth and by three standard errors: then labels are owed to them.
    A table that simply ends owes none."""
    n = int(since.sum())
    if not n or not labelled[since].any():
        return n > 0
    usual = float(labelled[before].mean()) if before.any() else 1.0
    return float(labelled[since].mean()) < usual - 0.01 - 3.0 * math.sqrt(usual * (1.0 - usual) / n)


def late_delay(label: pd.Series, time: pd.Series, label_time: pd.Series, now: datetime) -> timedelta | None:
    """The delay that 99 % of labels keep, of every label alike: the longest Q_0.99 of all rows and of each group of `GROUP_ROWS` or more
    rows with the same label (or the same tenth of a numeric one). Never negative; None if there are no rows.

    Of each group, because a slow minority hides behind the others: with one fraud in 200, 99 % of labels are in before the first fraud.
    All series are of the rows whose label is known at `now`.
    """
    import numpy as np

    micros = (label_time - time).dt.as_unit("us").astype("int64").to_numpy()
    ages = (now - time).dt.as_unit("us").astype("int64").to_numpy()
    valid = (label_time.notna() & time.notna()).to_numpy(dtype=bool)
    if not valid.any():
        return None
    groups = np.where(valid, _groups(label), -1)
    sizes = np.bincount(groups[valid])
    chosen = [valid, *(groups == group for group in np.flatnonzero(sizes >= GROUP_ROWS))]
    return timedelta(microseconds=max(0, *(_late(micros[rows], ages[rows]) for rows in chosen)))


def _groups(label: pd.Series) -> NDArray[np.int64]:
    """(n,) numbers from 0: one a label, or one a tenth of the rows where numbers differ more than classes do."""
    import numpy as np
    import pandas as pd

    codes, classes = pd.factorize(label)
    if len(classes) <= 10 * _TENTHS or not pd.api.types.is_numeric_dtype(label):
        return np.asarray(codes + 1)
    return np.asarray(pd.qcut(label, _TENTHS, labels=False, duplicates="drop").fillna(-1).to_numpy(dtype="int64") + 1)


def _late(delays: NDArray[np.int64], ages: NDArray[np.int64]) -> int:
    """Q_0.99 of delays that are seen only where they are not longer than the row is old; an observed one, us.

    Rows of yesterday can only show delays of a day, and while traffic grows most rows are young: the known delays are too short. The
    product-limit estimator for right-truncated times gives young rows their due: F(x) = prod over delays d > x of (1 - m_d / R_d),
    with m_d rows of delay d, and R_d those of a delay of at most d that are at least d old. Source: Lynden-Bell (1971), Monthly Notices of
    the Royal Astronomical Society 155; Lawless (1994), section 3. Where R_d is under `GROUP_ROWS` one straggler would decide: such
    delays are taken as they are seen.
    """
    import numpy as np

    ordered = np.sort(delays)
    seen = int(ordered[math.ceil(LATE_QUANTILE * (len(ordered) - 1))])
    values, counts = np.unique(delays, return_counts=True)
    at_risk = np.searchsorted(ordered, values, side="right") - np.searchsorted(np.sort(ages), values, side="left")
    keeps = np.where(at_risk >= GROUP_ROWS, 1.0 - counts / np.maximum(at_risk, 1), 1.0)
    share = np.append(np.cumprod(keeps[::-1])[::-1][1:], 1.0)
    return max(seen, int(values[np.argmax(share >= LATE_QUANTILE)]))
