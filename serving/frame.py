"""From the values that a client sent to the columns that a model takes, refusing what does not fit by name.

Rows stay plain lists until a batch is complete; then each feature becomes one array. No per-request pandas objects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from serving.manifest import Feature, FeatureKind

if TYPE_CHECKING:
    import pandas as pd

Value: TypeAlias = float | str | None
"""A coerced value: a float (NaN: missing) for numeric and boolean features, else a string (None: missing)."""
Row: TypeAlias = list[Value]
"""One value a feature, in the order of the model's features."""
Columns: TypeAlias = dict[str, NDArray[Any]]
"""Feature → its values of shape (n,), float64 or object, in the order of the model's features."""

SHOWN_CHARACTERS_MAX = 80


class InputError(ValueError):
    """What the client sent does not fit the model. The message names the feature, the value and the row."""


def shown(value: object) -> str:
    """`value` for a message: its repr, cut to a bounded length."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of thousands of digits, a nest of thousands of lists
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= SHOWN_CHARACTERS_MAX else text[: SHOWN_CHARACTERS_MAX - 1] + "…"


def _numeric(value: object) -> float:
    if value is None:
        return math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(
            value
        )  # OverflowError, for an int above 1.8e308, is a ValueError's sibling: caught by the caller
        if math.isfinite(number):
            return number
    raise ValueError("a finite number or null")


def _boolean(value: object) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool | int | float) and value in (0, 1):
        return float(value)
    raise ValueError("true, false or null")


def _string(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise ValueError("a string or null")


_COERCE: dict[FeatureKind, Callable[[object], Value]] = {
    "numeric": _numeric,
    "boolean": _boolean,
    "categorical": _string,
    "text": _string,
}


class Schema:
    """The features of one model, ready to read rows and make columns of them."""

    def __init__(self, features: Sequence[Feature]) -> None:
        self.features = tuple(features)
        self.names = tuple(feature.name for feature in features)
        self.numeric = tuple(feature.kind in ("numeric", "boolean") for feature in features)
        self._plain = tuple(feature.kind == "numeric" for feature in features)
        self._position = {feature.name: i for i, feature in enumerate(features)}
        self._coerce = tuple(_COERCE[feature.kind] for feature in features)
        self._missing: Row = [math.nan if numeric else None for numeric in self.numeric]

    def position(self, name: str) -> int | None:
        """Index of a feature, or None if the model has no such feature."""
        return self._position.get(name)

    def row(self, values: Mapping[str, object], index: int) -> Row:
        """Coerce one JSON object; features that are not there are missing. Raises InputError; `index` is for its message."""
        row = self._missing.copy()
        for name, value in values.items():
            position = self._position.get(name)
            if position is None:
                raise InputError(f"row {index}: unknown feature {shown(name)}; the model has {', '.join(self.names)}")
            if type(value) is float and self._plain[position] and math.isfinite(value):  # what most values are
                row[position] = value
            else:
                row[position] = self.value(position, value, index)
        return row

    def value(self, position: int, value: object, index: int) -> Value:
        """Coerce one value of the feature at `position`. Raises InputError; `index` is the row's, for its message."""
        try:
            return self._coerce[position](value)
        except (ValueError, OverflowError) as error:
            feature = self.features[position]
            wanted = "a finite number or null" if isinstance(error, OverflowError) else str(error)
            raise InputError(
                f"row {index}: feature {feature.name!r} is {feature.kind} and takes {wanted} but got {shown(value)}"
            ) from None

    def missing_rows(self, count: int) -> list[Row]:
        """`count` rows in which every feature is missing."""
        return [self._missing.copy() for _ in range(count)]

    def columns(self, rows: Sequence[Row]) -> Columns:
        """Rows as one array a feature, in the order of the features."""
        if not rows:
            return {name: np.empty(0, float if numeric else object) for name, numeric in self._kinds()}
        columns: Columns = {}
        for (name, numeric), values in zip(self._kinds(), zip(*rows, strict=True), strict=True):
            column: NDArray[Any] = np.empty(len(rows), dtype=np.float64 if numeric else object)
            column[:] = values
            columns[name] = column
        return columns

    def _kinds(self) -> zip[tuple[str, bool]]:
        return zip(self.names, self.numeric, strict=True)


def row_count(columns: Columns) -> int:
    """How many rows the columns have."""
    return len(next(iter(columns.values())))


def to_frame(columns: Columns) -> pd.DataFrame:
    """Columns as the data frame that estimators were fitted on: float64, or object with str and None."""
    import pandas as pd

    return pd.DataFrame(
        {name: pd.Series(values, dtype=values.dtype, copy=False) for name, values in columns.items()}, copy=False
    )
