"""Inference of feature kinds: which columns are features, and how each is to be pre-processed."""

from __future__ import annotations

import pandas as pd

from pipelines.data.features import Feature, FeatureKind
from pipelines.jobs.port import PermanentJobError
from policies.schema import DataSpec

TEXT_DISTINCT_MIN = 30
TEXT_DISTINCT_SHARE = 0.1
TEXT_SPACED_SHARE = 0.5
IDENTIFIER_ROWS_MIN = 100
_SAMPLE_ROWS = 50_000
"""Strings are looked at in the newest rows only: enough to tell their kind, at a bounded cost."""


def infer_features(frame: pd.DataFrame, spec: DataSpec) -> tuple[tuple[Feature, ...], list[str]]:
    """The features of `frame`, in its order of columns, and notes on columns that were left out.

    Features are the columns of `data.include`, or all; never the label, time, label_time, id or one of `data.exclude`.
    Raises PermanentJobError if none is left, or if an included column can be no feature.
    """
    special = {spec.label, spec.time, spec.label_time, spec.id, *spec.exclude}
    wanted = [name for name in (spec.include or frame.columns) if name not in special]
    features, notes = [], []
    for name in wanted:
        kind = kind_of(frame[name])
        if isinstance(kind, FeatureKind):
            features.append(Feature(name, kind))
        elif spec.include is not None and kind is not _ALL_MISSING:
            if kind is not _IDENTIFIER:
                raise PermanentJobError(f"data.include: column {name!r} can be no feature: {kind}")
            features.append(Feature(name, FeatureKind.CATEGORICAL))
        else:
            notes.append(f"column {name!r} is no feature: {kind}")
    if not features:
        raise PermanentJobError(f"data: no column is left as a feature ({'; '.join(notes) or 'all are excluded'})")
    return tuple(features), notes


_ALL_MISSING = "all its values are missing"
_IDENTIFIER = "every row has another text, like an identifier"


def kind_of(column: pd.Series) -> FeatureKind | str:
    """The kind of feature that a column is, or the reason why it can be none.

    Text: over 30 distinct strings, also over a tenth of the rows, over half of which hold a space; other strings are categories.
    """
    if pd.api.types.is_bool_dtype(column):
        return FeatureKind.BOOLEAN
    if not column.notna().any():
        return _ALL_MISSING
    if pd.api.types.is_numeric_dtype(column):
        return FeatureKind.NUMERIC
    if pd.api.types.is_datetime64_any_dtype(column):
        return "it holds times; derive numbers from them (hour, age in days)"
    values = column.iloc[-_SAMPLE_ROWS:].dropna()
    values = column.dropna() if values.empty else values
    inferred = pd.api.types.infer_dtype(values, skipna=True)
    if inferred == "boolean":
        return FeatureKind.BOOLEAN
    if inferred in ("decimal", "integer", "floating", "mixed-integer-float"):
        return FeatureKind.NUMERIC
    if inferred != "string":
        return f"it holds {inferred} values; text, numbers and true/false can be used"
    return _kind_of_strings(values)


def _kind_of_strings(values: pd.Series) -> FeatureKind | str:
    distinct = values.drop_duplicates()
    if len(distinct) > max(TEXT_DISTINCT_MIN, TEXT_DISTINCT_SHARE * len(values)):
        if distinct.str.strip().str.contains(" ", regex=False).mean() > TEXT_SPACED_SHARE:
            return FeatureKind.TEXT
        if len(distinct) == len(values) >= IDENTIFIER_ROWS_MIN:
            return _IDENTIFIER
    return FeatureKind.CATEGORICAL
