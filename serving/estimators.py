"""Estimators from skops files that a stranger may have written: which types may be in them, and what must be true of their content.

Trusted types are not trusted content: scikit-learn walks trees in C without bounds checks, so a crafted node index reads or writes
anywhere in memory. The trees are therefore checked here once, when they are loaded.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from serving.manifest import ModelFolderError, brief

TRUSTED_TYPES = (
    "functools.partial",
    "numpy.dtype",
    "numpy.ravel",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
    "sklearn.utils._bunch.Bunch",
    "sklearn.utils.validation.check_array",
)
"""What a skops file may hold beside what skops trusts by itself. Fixed here; a file cannot add to it."""
SKOPS_BYTES_MAX = 16 * 1024**3
"""Bytes that a skops file may unpack to, so that a small file cannot fill the memory."""
CATEGORIES_MAX = 256
"""Histogram trees hold the categories of a split in a set of this many bits."""
_LEAF = -1
_TASKS = ("Classifier", "Regressor")


class UnsafeEstimatorError(ValueError):
    """The estimator's content would make scikit-learn read outside its arrays. The message says which part and rule."""


def load_skops(path: Path) -> Any:
    """Load a skops file, refusing any type outside the fixed list. Raises ModelFolderError."""
    import skops.io

    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > SKOPS_BYTES_MAX:
            raise ModelFolderError(f"{path}: unpacks to {size} bytes, more than the {SKOPS_BYTES_MAX} allowed")
        refused = sorted(set(skops.io.get_untrusted_types(file=path)) - set(TRUSTED_TYPES))
        if refused:
            raise ModelFolderError(f"{path}: holds types that are not trusted: {', '.join(refused)}")
        estimator = skops.io.load(path, trusted=list(TRUSTED_TYPES))
        prepare_estimator(estimator)
        return estimator
    except ModelFolderError:
        raise
    except UnsafeEstimatorError as error:
        raise ModelFolderError(f"{path}: {error}") from error
    except OSError as error:
        raise ModelFolderError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise ModelFolderError(f"{path}: is not a whole skops file: {brief(error)}") from error


def prepare_estimator(estimator: Any) -> None:
    """Check every tree in `estimator`, and keep every part of it to the one thread of its worker. Raises UnsafeEstimatorError."""
    for part in parts(estimator):
        check, fitted = _CHECKS.get(type(part).__name__, (None, ""))
        if check and type(part).__module__.startswith("sklearn.") and hasattr(part, fitted):
            check(part)
        if isinstance(getattr(part, "n_jobs", None), int):
            part.n_jobs = 1


def parts(root: Any) -> Iterator[Any]:
    """`root` and every object that it holds, in attributes, lists, tuples, dicts and object arrays; each once."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        part = waiting.pop()
        if id(part) in seen or isinstance(part, str | bytes | int | float | type):
            continue
        seen.add(id(part))
        yield part
        if isinstance(part, dict):
            waiting += part.values()
        elif isinstance(part, list | tuple | set):
            waiting += part
        elif isinstance(part, np.ndarray):
            waiting += part.ravel().tolist() if part.dtype == object else []
        else:
            waiting += vars(part).values() if hasattr(part, "__dict__") else []


def _check_forest(forest: Any) -> None:
    """Forests and boosting hand one matrix to all their trees, so all must expect its width."""
    for member in np.asarray(forest.estimators_, dtype=object).ravel():
        _require(member.n_features_in_ == forest.n_features_in_, member, "n_features_in_ differs from its forest's")


def _check_tree_owner(owner: Any) -> None:
    """A decision tree: `tree_` must fit the width that the owner checks its input against."""
    _require(owner.tree_.n_features == owner.n_features_in_, owner, "tree_.n_features is not n_features_in_")


def _check_tree(tree: Any) -> None:
    """`sklearn.tree._tree.Tree`."""
    count = tree.node_count
    _require(0 < count <= tree.capacity, tree, f"node_count is {count} of {tree.capacity} nodes")
    inner = tree.children_left != _LEAF
    _check_children(tree, inner, tree.children_left, tree.children_right, count)
    _check_range(tree, "feature", tree.feature[inner], tree.n_features)


def _check_histogram_boosting(model: Any) -> None:
    """Histogram gradient boosting: nodes, the features that they split on, and the categories of those."""
    from sklearn.ensemble._hist_gradient_boosting.common import PREDICTOR_RECORD_DTYPE

    _require(not getattr(model, "_in_fit", False), model, "_in_fit is set")
    _require(_width_after_preprocessing(model) == model.n_features_in_, model, "its preprocessing changes the width")
    categorical = np.asarray(model._bin_mapper.is_categorical_).astype(bool)
    _require(categorical.shape == (model.n_features_in_,), model, "is_categorical_ is not one value a feature")
    for index in np.flatnonzero(categorical):
        known = np.asarray(model._bin_mapper.bin_thresholds_[index], dtype=np.float64)
        _require(
            bool(((known >= 0) & (known < CATEGORIES_MAX)).all()), model, f"feature {index} has a category out of range"
        )
    for predictor in (tree for iteration in model._predictors for tree in iteration):
        nodes = predictor.nodes
        _require(
            nodes.dtype == PREDICTOR_RECORD_DTYPE and nodes.ndim == 1 and len(nodes) > 0, predictor, "nodes are no tree"
        )
        bitsets = predictor.raw_left_cat_bitsets
        _require(
            bitsets.dtype == np.uint32 and bitsets.shape[1:] == (8,), predictor, "raw_left_cat_bitsets are no bit sets"
        )
        inner = nodes["is_leaf"] == 0
        _check_children(predictor, inner, nodes["left"], nodes["right"], len(nodes))
        _check_range(predictor, "feature_idx", nodes["feature_idx"][inner], model.n_features_in_)
        by_category = inner & (nodes["is_categorical"] != 0)
        _check_range(predictor, "bitset_idx", nodes["bitset_idx"][by_category], len(bitsets))
        split_on = nodes["feature_idx"][by_category]
        _require(bool(categorical[split_on].all()), predictor, "a node splits a number by category")


def _width_after_preprocessing(model: Any) -> int:
    """Columns that histogram boosting's own encoder of categories makes of `n_features_in_` ones."""
    if model._preprocessor is None:
        return int(model.n_features_in_)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that the row has no names
        row = np.zeros((1, model.n_features_in_), dtype=object)
        return int(model._preprocessor.transform(row).shape[1])


def _check_children(tree: Any, inner: NDArray[Any], left: NDArray[Any], right: NDArray[Any], count: int) -> None:
    """Children come after their parent and exist; so every walk from the root ends at a leaf."""
    own = np.arange(count)[inner]
    for side, children in (("left", left[inner].astype(np.int64)), ("right", right[inner].astype(np.int64))):
        _require(bool(((children > own) & (children < count)).all()), tree, f"a {side} child is out of place")


def _check_range(tree: Any, field: str, values: NDArray[Any], end: int) -> None:
    _require(bool(((values >= 0) & (values < end)).all()), tree, f"{field} is outside 0 … {end - 1}")


def _require(holds: bool, part: Any, problem: str) -> None:
    if not holds:
        raise UnsafeEstimatorError(f"{type(part).__name__}: {problem}")


_Check: TypeAlias = Callable[[Any], None]
_CHECKS: dict[str, tuple[_Check, str]] = {
    "Tree": (_check_tree, "node_count"),
    **{f"{kind}Tree{task}": (_check_tree_owner, "tree_") for kind in ("Decision", "Extra") for task in _TASKS},
    **{
        f"{kind}{task}": (_check_forest, "estimators_")
        for kind in ("RandomForest", "ExtraTrees", "GradientBoosting")
        for task in _TASKS
    },
    **{f"HistGradientBoosting{task}": (_check_histogram_boosting, "_predictors") for task in _TASKS},
}
"""Class name, in sklearn, → the check of its fitted instances, and the attribute that only those have."""
