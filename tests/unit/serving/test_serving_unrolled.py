"""The quick form of a pipeline is used where it gives the same, and only there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_rig import NUMBERS, fitted, preprocessing, rows, write_model
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler

from serving.frame import Columns, Schema, to_frame
from serving.manifest import Feature
from serving.model import UNHEARD_OF, load_model, sample_columns
from serving.unrolled import faster, unroll, unroll_pipeline

KINDS = {"age": "numeric", "price": "numeric", "member": "boolean", "city": "categorical", "note": "text"}
SCHEMA = Schema([Feature(name=name, kind=kind) for name, kind in KINDS.items()])  # type: ignore[arg-type]


def columns(count: int = 60, *, strange: bool = True) -> Columns:
    """Rows with a text, and with missing values and strange categories unless told otherwise."""
    frame = rows(count).assign(note=np.where(rows(count).price > 0, "good and cheap", "bad"))
    made = {name: frame[name].to_numpy(copy=True) for name in KINDS}
    made["note"] = made["note"].astype(object)
    if strange:
        made["age"][3] = made["member"][4] = np.nan
        made["city"][5], made["city"][6] = None, UNHEARD_OF
    return made


def texts() -> Pipeline:
    """Text in the way that Ratchet's own components do it."""
    fill = SimpleImputer(missing_values=None, strategy="constant", fill_value="")
    return Pipeline([("fill", fill), ("flatten", FunctionTransformer(np.ravel)), ("tfidf", TfidfVectorizer())])


ORDINAL = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan, encoded_missing_value=np.nan)
NUMERIC = ["age", "price", "member"]
KNOWN: dict[str, ColumnTransformer] = {
    "dense": preprocessing(),
    "passthrough": ColumnTransformer([("n", "passthrough", NUMERIC), ("c", ORDINAL, ["city"])]),
    "text": ColumnTransformer([("n", SimpleImputer(), NUMERIC), ("t", texts(), ["note"])], sparse_threshold=0.0),
    "sparse": ColumnTransformer([("c", OneHotEncoder(handle_unknown="ignore"), ["city"]), ("t", texts(), ["note"])]),
    "single column": ColumnTransformer(
        [("t", TfidfVectorizer(), "note"), ("gone", "drop", ["age"])], sparse_threshold=1.0
    ),
    "remainder": ColumnTransformer([("c", ORDINAL, ["city"]), ("gone", "drop", ["note"])], remainder="passthrough"),
    "indicator": ColumnTransformer([("n", SimpleImputer(add_indicator=True), NUMERIC)]),
}


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_known_forms_give_the_same_matrix(name: str) -> None:
    """Dense, sparse and text parts give what ColumnTransformer gives, of the same type, and warn of nothing."""
    original = KNOWN[name].fit(to_frame(columns(200)))
    quick = unroll(original, SCHEMA)
    assert quick is not None
    for count in (60, 10, 7):
        ours, theirs = quick(columns(count)), original.transform(to_frame(columns(count)))
        assert type(ours) is type(theirs)
        np.testing.assert_array_equal(*(m.toarray() if hasattr(m, "toarray") else m for m in (ours, theirs)))


@pytest.mark.parametrize(
    "transformer",
    [
        StandardScaler(),
        ColumnTransformer([("n", SimpleImputer(), [0, 1])]),
        ColumnTransformer([("n", "passthrough", ["age", "city"])]),
        ColumnTransformer([("n", SimpleImputer(), NUMERIC)]).set_output(transform="pandas"),
        ColumnTransformer([("gone", "drop", NUMERIC)]),
    ],
)
def test_other_forms_are_left_alone(transformer: Any) -> None:
    """What is not known to give the same keeps its own way."""
    frame = to_frame(columns(50, strange=False))
    assert unroll(transformer.fit(frame[NUMERIC] if isinstance(transformer, StandardScaler) else frame), SCHEMA) is None


def test_the_original_is_not_changed() -> None:
    """Unrolling takes copies: the original still knows its features' names."""
    original = preprocessing().fit(to_frame(columns()))
    assert unroll(original, SCHEMA) is not None
    assert all(hasattr(part, "feature_names_in_") for _, part, _ in original.transformers_[:-1])
    original.transform(to_frame(columns()))


def test_whole_pipelines_are_unrolled(tmp_path: Path) -> None:
    """With and without steps between, a pipeline answers as before, and a loaded model uses the quick form."""
    frame = to_frame(columns(300))
    for between in ([], [("pca", PCA(2))]):
        steps = [("prepare", preprocessing()), *between, ("estimator", LogisticRegression())]
        pipeline = Pipeline(steps).fit(frame, frame.price > 0)
        quick = unroll_pipeline(pipeline, SCHEMA, "predict_proba")
        assert quick is not None
        np.testing.assert_allclose(quick(columns()), pipeline.predict_proba(to_frame(columns())), rtol=1e-12)
    assert unroll_pipeline(LogisticRegression(), SCHEMA, "predict_proba") is None
    model = load_model(write_model(tmp_path, fitted(estimator=HistGradientBoostingClassifier(max_iter=2))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ColumnTransformer, "transform", lambda *_: pytest.fail("the slow way was taken"))
        model.predict(model.schema.columns(model.schema.missing_rows(1)))


def test_the_quick_form_must_agree_on_the_sample() -> None:
    """Another shape, another value, NaN in other places or an exception: the original is used."""
    sample = columns()
    right = np.column_stack([sample[name] for name in NUMBERS])

    def original(_: Columns) -> Any:
        return right

    def raises(_: Columns) -> Any:
        raise ValueError("no")

    def same(_: Columns) -> Any:
        return right * (1 + 1e-13)

    assert faster(same, original, sample) is same
    assert faster(None, original, sample) is original
    assert faster(raises, original, sample) is original
    for wrong in (right[:-1], right + 0.001, np.where(right > 0, np.nan, right)):
        assert faster(lambda _, wrong=wrong: wrong, original, sample) is original  # type: ignore[misc]


def test_the_sample_has_real_missing_and_strange_rows(tmp_path: Path) -> None:
    """Training rows are taken where the folder has them; one row is missing throughout, one has what nobody saw."""
    schema = Schema(SCHEMA.features[:4])
    assert [values.shape for values in sample_columns(tmp_path, schema).values()] == [(2,)] * 4
    rows(300).to_parquet(tmp_path / "reference.parquet")
    sample = sample_columns(tmp_path, schema)
    assert sample["city"][-2:].tolist() == [None, UNHEARD_OF]
    assert len(sample["age"]) == 202
    (tmp_path / "reference.parquet").write_bytes(b"PAR1 torn")
    assert len(sample_columns(tmp_path, schema)["age"]) == 2
