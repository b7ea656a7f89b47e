"""Pre-processing by column name, for data frames as `pipelines.data.features.model_frame` gives them.

Everything here is scikit-learn's own and can be written and loaded by skops without pickle: no functions of ours, no lambdas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.data.features import Feature, FeatureKind

TREE_CATEGORIES_MAX = 254
"""Histogram trees take at most 255 categories; rarer ones share one."""
LINEAR_CATEGORIES_MAX = 100
TREE_TEXT_TERMS = 64
"""Trees take dense columns, so text gives them its most frequent terms only."""


def for_trees(features: Sequence[Feature]) -> tuple[Any, list[int]]:
    """A dense ColumnTransformer and the output positions of categorical columns, for trees that know missing values and categories.

    Numbers pass through; a category becomes its index, unknown and missing ones NaN; text becomes TF-IDF of its frequent terms.
    """
    import numpy as np
    from sklearn.compose import ColumnTransformer
    from sklearn.preprocessing import OrdinalEncoder

    numeric = _names(features, FeatureKind.NUMERIC, FeatureKind.BOOLEAN)
    categorical = _names(features, FeatureKind.CATEGORICAL)
    encoder = OrdinalEncoder(
        handle_unknown="use_encoded_value",
        unknown_value=np.nan,
        encoded_missing_value=np.nan,
        max_categories=TREE_CATEGORIES_MAX,
    )
    parts = [("numeric", "passthrough", numeric), ("categorical", encoder, categorical)]
    parts += _text_parts(features, {"max_features": TREE_TEXT_TERMS})
    transformer = ColumnTransformer(
        [part for part in parts if part[2]], sparse_threshold=0.0, verbose_feature_names_out=False
    )
    return transformer, list(range(len(numeric), len(numeric) + len(categorical)))


def for_distances(
    features: Sequence[Feature], *, scale: bool = True, dense: bool = False, text: dict[str, Any] | None = None
) -> Any:
    """A ColumnTransformer for models that add and multiply columns: filled in, scaled, one column a category, TF-IDF for text.

    `text` is passed to TfidfVectorizer. Unknown categories join the rare ones, or are all zero where there are none.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    filled: Any = SimpleImputer(strategy="median", keep_empty_features=True)
    if scale:
        filled = Pipeline([("fill", filled), ("scale", StandardScaler())])
    one_hot = OneHotEncoder(
        handle_unknown="infrequent_if_exist", max_categories=LINEAR_CATEGORIES_MAX, sparse_output=not dense
    )
    parts = [
        ("numeric", filled, _names(features, FeatureKind.NUMERIC)),
        (
            "boolean",
            SimpleImputer(strategy="most_frequent", keep_empty_features=True),
            _names(features, FeatureKind.BOOLEAN),
        ),
        ("categorical", one_hot, _names(features, FeatureKind.CATEGORICAL)),
        *_text_parts(features, text or {}),
    ]
    return ColumnTransformer(
        [part for part in parts if part[2]], sparse_threshold=0.0 if dense else 0.3, verbose_feature_names_out=False
    )


def _text_parts(features: Sequence[Feature], options: dict[str, Any]) -> list[tuple[str, Any, list[str]]]:
    """One TF-IDF a text feature. A missing text is an empty one."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import FunctionTransformer

    return [
        (
            f"text:{name}",
            Pipeline(
                [
                    ("fill", SimpleImputer(missing_values=None, strategy="constant", fill_value="")),
                    ("flatten", FunctionTransformer(np.ravel)),
                    ("tfidf", TfidfVectorizer(**{"sublinear_tf": True} | options)),
                ]
            ),
            [name],
        )
        for name in _names(features, FeatureKind.TEXT)
    ]


def _names(features: Sequence[Feature], *kinds: FeatureKind) -> list[str]:
    return [feature.name for feature in features if feature.kind in kinds]
