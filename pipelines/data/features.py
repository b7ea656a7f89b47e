"""What a feature is: a column name and a kind. The kinds decide the pre-processing; serving reads the same list from `model.json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


class FeatureKind(StrEnum):
    NUMERIC = "numeric"
    CATEGORICAL = "categorical"
    TEXT = "text"
    BOOLEAN = "boolean"


@dataclass(frozen=True, slots=True)
class Feature:
    name: str
    kind: FeatureKind

    def as_json(self) -> dict[str, str]:
        return {"name": self.name, "kind": self.kind.value}


def features_from_json(items: Iterable[Mapping[str, Any]]) -> tuple[Feature, ...]:
    """`[{"name": "carrier", "kind": "categorical"}, …]` as values. Raises KeyError, ValueError if it is something else."""
    return tuple(Feature(str(item["name"]), FeatureKind(item["kind"])) for item in items)


def model_frame(frame: pd.DataFrame, features: Sequence[Feature]) -> pd.DataFrame:
    """The features of `frame` as models take them, in the order of `features`: numeric and boolean float64 (missing: NaN;
    infinities count as missing), categorical and text object columns of str (missing: None).

    Raises KeyError if a column is missing and ValueError, naming the column, if a numeric column holds something else.
    """
    import pandas as pd

    columns = {feature.name: _model_column(frame[feature.name], feature.kind) for feature in features}
    return pd.DataFrame(columns, index=frame.index)


def _model_column(column: pd.Series, kind: FeatureKind) -> pd.Series:
    import numpy as np
    import pandas as pd

    if kind in (FeatureKind.NUMERIC, FeatureKind.BOOLEAN):
        try:
            numbers = pd.to_numeric(column).to_numpy(dtype="float64", na_value=np.nan)
        except (TypeError, ValueError) as error:
            raise ValueError(f"column {column.name!r} must hold numbers ({kind.value}) but {error}") from error
        return pd.Series(np.where(np.isinf(numbers), np.nan, numbers), index=column.index)
    missing = column.isna().to_numpy()
    if column.dtype == object and not missing.any() and pd.api.types.infer_dtype(column, skipna=False) == "string":
        return column
    strings = column.astype(str).to_numpy(dtype=object, copy=True)
    strings[missing] = None
    return pd.Series(strings, index=column.index, dtype=object)
