"""Which rows are new to the champion: what it was trained on says little about how good it is, and nothing about who is better."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROWS_MIN = 100
"""With fewer new rows, those that it was trained on count too."""


def unseen(times_us: NDArray[np.int64], seen_to_us: int) -> NDArray[np.bool_]:
    """Mask (n,) of rows after the champion's newest training row; of all rows if those are too few. Times in microseconds since 1970.

    >>> int(unseen(np.arange(300), 179).sum()), int(unseen(np.arange(300), 250).sum())
    (120, 300)
    """
    new = times_us > seen_to_us
    return new if np.count_nonzero(new) >= ROWS_MIN else np.ones(len(times_us), dtype=bool)
