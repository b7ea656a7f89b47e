"""A fitted ColumnTransformer without what it costs a call.

scikit-learn's ColumnTransformer slices a data frame, checks names and wraps outputs at every call: some 2 ms, whatever the number of rows,
which for small models is most of the answer's time. Here the same fitted parts are called on plain arrays, in the same order, and their
outputs are joined in the same way. `faster` compares the two on real rows before the quick one is used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from serving.frame import Columns, Schema

Answer: TypeAlias = Callable[[Columns], Any]
"""From columns to a matrix, or to what an estimator's method gives."""
CLOSE = 1e-9
"""Largest relative difference that the order of additions may make."""


def faster(quick: Answer | None, original: Answer, sample: Columns) -> Answer:
    """`quick`, if it gives what `original` gives on the sample; else `original`."""
    if quick is None:
        return original
    try:
        ours, theirs = _dense(quick(sample)), _dense(original(sample))
        same = ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=CLOSE, atol=CLOSE, equal_nan=True)
    except Exception:  # noqa: BLE001 - whatever is wrong, the original is right, and says so itself when it is asked
        return original
    return quick if same else original


def unroll_pipeline(estimator: Any, schema: Schema, method: str) -> Answer | None:
    """The function from columns to what `estimator.<method>(frame)` gives; None if it is not of a known form.

    Known is a Pipeline whose first step can be unrolled; the others are called as they are.
    """
    from sklearn.pipeline import Pipeline

    if type(estimator) is not Pipeline or len(estimator.steps) < 2:
        return None
    first, *between, last = [step for _, step in estimator.steps]
    prepare = unroll(first, schema)
    if prepare is None or not all(hasattr(step, "transform") for step in between):
        return None
    ask = getattr(last, method)

    def answer(columns: Columns) -> Any:
        matrix = prepare(columns)
        for step in between:
            matrix = step.transform(matrix)
        return ask(matrix)

    return answer


def unroll(transformer: Any, schema: Schema) -> Answer | None:
    """The function from columns to the matrix that `transformer.transform(frame)` gives; None if it is not of a known form.

    Known is a ColumnTransformer whose parts name their columns, each part's of one type, and whose output is an array or sparse.
    """
    from sklearn.compose import ColumnTransformer

    if type(transformer) is not ColumnTransformer or getattr(transformer, "_sklearn_output_config", None):
        return None
    parts = []
    for _, part, names in transformer.transformers_:
        if isinstance(part, str) and part == "drop":
            continue
        if isinstance(part, str) or not _takes_one_type(names, schema):
            return None
        parts.append((_without_names(part), names))
    if not parts:
        return None
    sparse = bool(transformer.sparse_output_)
    return lambda columns: _join([part.transform(_take(columns, names)) for part, names in parts], sparse)


def _takes_one_type(names: object, schema: Schema) -> bool:
    """Whether `names` is a feature's name or a list of such, all numbers or all strings."""
    listed = [names] if isinstance(names, str) else names
    if not isinstance(listed, list) or not listed or not all(isinstance(name, str) for name in listed):
        return False
    positions = [schema.position(name) for name in listed]
    return None not in positions and len({schema.numeric[p] for p in positions if p is not None}) == 1


def _without_names(part: Any) -> Any:
    """A shallow copy that was, as far as it knows, fitted on an array; its learned values stay shared with the original."""
    from sklearn.pipeline import Pipeline

    twin = copy.copy(part)
    vars(twin).pop("feature_names_in_", None)
    if type(twin) is Pipeline:
        twin.steps = [(name, _without_names(step)) for name, step in part.steps]
    return twin


def _take(columns: Columns, names: str | Sequence[str]) -> NDArray[Any]:
    """One column of shape (n,) for a name, as many as names of shape (n, k) for a list."""
    return columns[names] if isinstance(names, str) else np.column_stack([columns[name] for name in names])


def _join(outputs: Sequence[Any], sparse: bool) -> Any:
    """Outputs side by side, as ColumnTransformer joins them."""
    if sparse:
        import scipy.sparse

        return scipy.sparse.hstack(outputs).tocsr()
    return np.hstack([output.toarray() if hasattr(output, "toarray") else output for output in outputs])


def _dense(matrix: Any) -> NDArray[np.float64]:
    return np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix, dtype=np.float64)
