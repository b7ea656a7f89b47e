"""Labels as values, as class indices and as JSON: one place, so that training, judging and watching mean the same class.

Labels reach us as CSV text, Parquet values and JSON scalars, and the same class may be spelled `1`, `1.0`, `true` or `"1"`.
`label_key` says when two spellings are one class.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from policies.metrics import Task

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray


def label_key(value: Any) -> str:
    """The spelling under which equal labels meet.

    >>> {label_key(v) for v in (1, 1.0, True, "1")}
    {'1'}
    >>> label_key(2.5), label_key("late")
    ('2.5', 'late')
    """
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return str(int(value))
    return str(value)


def plain_label(value: Any) -> Any:
    """The label as a JSON scalar: numpy's scalars become Python's, whole floats become integers.

    >>> plain_label(1.0), plain_label("late")
    (1, 'late')
    """
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    return value


def classes_of(labels: pd.Series, task: Task) -> list[Any] | None:
    """The classes that occur, sorted (numbers before text); None for regression. In binary tasks the last one is positive.

    >>> import pandas as pd
    >>> classes_of(pd.Series([1.0, 0.0, None, 1.0]), Task.BINARY)
    [0, 1]
    """
    if task is Task.REGRESSION:
        return None
    by_key = {label_key(plain): plain for plain in map(plain_label, labels.dropna().unique())}
    return sorted(by_key.values(), key=lambda v: (isinstance(v, str), v))


def classes_with(classes: Sequence[Any] | None, labels: pd.Series, task: Task) -> list[Any] | None:
    """`classes` and those of `labels` that are not among them, sorted as `classes_of` does; None for regression.

    >>> import pandas as pd
    >>> classes_with(["b"], pd.Series(["a", "b", None]), Task.MULTICLASS)
    ['a', 'b']
    """
    if classes is None:
        return None
    by_key = {label_key(value): value for value in [*classes, *(classes_of(labels, task) or [])]}
    return sorted(by_key.values(), key=lambda v: (isinstance(v, str), v))


def encode_labels(labels: pd.Series, classes: Sequence[Any] | None) -> NDArray[np.float64]:
    """Labels as float64 (n,): for classification the index in `classes`, for regression (`classes` None) the value.

    NaN where the label is missing or is none of `classes` (or no number).

    >>> import pandas as pd
    >>> encode_labels(pd.Series(["yes", None, "no"]), ["no", "yes"]).tolist()
    [1.0, nan, 0.0]
    """
    import numpy as np
    import pandas as pd

    if classes is None:
        numbers = pd.to_numeric(labels, errors="coerce")
        return np.asarray(numbers.to_numpy(dtype="float64", na_value=np.nan))
    index = {label_key(value): float(i) for i, value in enumerate(classes)}
    codes, uniques = pd.factorize(labels)
    of_unique = np.array([index.get(label_key(plain_label(u)), np.nan) for u in uniques] + [np.nan])
    return np.asarray(of_unique[codes])  # code -1 (missing) picks the NaN at the end


def decode_label(text: str | None) -> Any:
    """The label in a line of the label log (a JSON scalar); None if it is no JSON scalar."""
    try:
        value = json.loads(text) if text is not None else None
    except ValueError:
        return None
    return value if isinstance(value, bool | int | float | str) else None
