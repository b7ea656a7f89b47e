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
    With `label_time`:   mature = time <= now - d, where d = Q_0.99(label_time - time) over the rows whose label_time is known
                         (<= now); and the row's own label_time <= now.
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
    if time is None:
        mature, delay = np.ones(len(label), dtype=bool), None
    elif label_time is None:
        delay = label_delay
        mature = (time <= pd.Timestamp(now) - (delay or timedelta(0))).to_numpy(dtype=bool)
    else:
        known = (label_time <= pd.Timestamp(now)).to_numpy(dtype=bool)
        labelled = labelled & known
        delay = label_delay if label_delay is not None else _late_delay((label_time - time)[known])
        if delay is None:
            mature = np.zeros(len(label), dtype=bool)
        else:
            mature = (time <= pd.Timestamp(now) - delay).to_numpy(dtype=bool)
    counts = mature & labelled
    return Maturity(
        counts=counts,
        immature=int((~mature).sum()),
        unlabelled=int((mature & ~labelled).sum()),
        delay=delay,
    )


def _late_delay(delays: pd.Series) -> timedelta | None:
    """Q_0.99 of the delays, an observed one (rounded up), never negative; None if there are none."""
    delays = delays.dropna()
    if delays.empty:
        return None
    late = delays.quantile(LATE_QUANTILE, interpolation="higher")
    return max(timedelta(microseconds=math.ceil(late.value / 1000)), timedelta(0))
