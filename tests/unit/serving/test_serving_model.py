"""Model folders are loaded by the score convention, and hostile ones are refused by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_rig import PROJECT, fitted, json_rows, manifest, rows, write_model, write_multiclass, write_regression
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.preprocessing import FunctionTransformer

from serving import estimators
from serving.estimators import load_skops
from serving.manifest import ModelFolderError, parse_manifest
from serving.model import Model, PredictionError, load_model
from serving.runtime.replica import is_fork_safe


@pytest.fixture(autouse=True)
def _import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an owner's code adds to the import path is gone after each test."""
    monkeypatch.setattr(sys, "path", sys.path.copy())


def asked(model: Model, count: int = 20) -> Any:
    """Scores of rows as a client sends them."""
    return model.predict(model.schema.columns([model.schema.row(r, i) for i, r in enumerate(json_rows(count))]))


def test_a_binary_model_gives_the_probability_of_its_positive_class(tmp_path: Path) -> None:
    """Scores are P(classes[1]) of shape (n,), as the estimator itself gives them, and the threshold decides the label."""
    model = load_model(write_model(tmp_path, estimator := fitted()))
    scores = asked(model)
    np.testing.assert_allclose(scores, estimator.predict_proba(rows(20))[:, 1])
    assert model.labels(np.array([0.49, 0.5])).tolist() == [0, 1]  # type: ignore[union-attr]


def test_classes_are_in_the_order_of_model_json(tmp_path: Path) -> None:
    """Where model.json names the positive class first fitted, the other column is taken."""
    estimator = fitted(["no", "yes"])
    straight = load_model(write_model(tmp_path / "a", estimator, classes=["no", "yes"]))
    turned = load_model(write_model(tmp_path / "b", estimator, classes=["yes", "no"]))
    np.testing.assert_allclose(asked(straight), 1 - asked(turned))


def test_an_estimator_fitted_on_numbers_of_classes_is_taken(tmp_path: Path) -> None:
    """An estimator whose classes are 0 … k-1 serves a model.json with names, in their order."""
    model = load_model(write_model(tmp_path, fitted([0, 1]), classes=["no", "yes"]))
    assert asked(model).shape == (20,)


def test_a_multiclass_model_gives_a_column_a_class(tmp_path: Path) -> None:
    """Scores have shape (n, k) in the order of classes, and the largest decides the label."""
    model = load_model(write_multiclass(tmp_path))
    scores = asked(model)
    assert scores.shape == (20, 3)
    np.testing.assert_allclose(scores.sum(axis=1), 1)
    assert model.labels(scores).tolist() == scores.argmax(axis=1).tolist()  # type: ignore[union-attr]


def test_a_regression_model_gives_its_prediction(tmp_path: Path) -> None:
    """Scores have shape (n,) and there is no label."""
    model = load_model(write_regression(tmp_path))
    np.testing.assert_allclose(asked(model), rows(20).price * 2 + 1, atol=0.1)
    assert model.labels(asked(model)) is None


def test_missing_values_and_unknown_categories_are_scored(tmp_path: Path) -> None:
    """A row of missing values only, and a category that was never seen, get finite scores."""
    model = load_model(write_model(tmp_path))
    columns = model.schema.columns([*model.schema.missing_rows(1), model.schema.row({"city": "Atlantis"}, 0)])
    assert np.isfinite(model.predict(columns)).all()


def test_the_example_is_a_row_that_the_model_was_trained_on(tmp_path: Path) -> None:
    """An owner's model that cannot deal with missing values can be warmed up; without reference rows, missing values are all there is."""
    folder = write_model(tmp_path)
    assert np.isnan(load_model(folder).example["age"]).all()
    rows(5).to_parquet(folder / "reference.parquet")
    example = load_model(folder).example
    assert example["age"].tolist() == rows(5).age.tolist()[:1]


def test_what_the_model_raises_is_a_prediction_error(tmp_path: Path) -> None:
    """A model that fails, or gives scores of another shape, is blamed by a sentence."""
    model = load_model(write_model(tmp_path))
    columns = model.schema.columns(model.schema.missing_rows(3))
    with pytest.raises(PredictionError, match="the model failed: ValueError"):
        model.predict(columns | {"age": np.array(["x", "y", "z"], dtype=object)})
    broken = replace(model, scorer=lambda columns: np.zeros((3, 2)))
    with pytest.raises(PredictionError, match=r"shape \(3, 2\) for 3 rows, not \(3,\)"):
        broken.predict(columns)


# ---------------------------------------------------------------- hostile folders
def test_types_outside_the_list_are_refused_by_name(tmp_path: Path) -> None:
    """A file that would load a function of somebody's is refused, and the function is named; it is never called."""
    write_model(tmp_path, FunctionTransformer(json.loads).fit([[1]]))
    with pytest.raises(ModelFolderError, match=r"estimator\.skops: holds types that are not trusted: json\.loads"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "damage", ["truncated", "empty", "absent", "no zip", "no schema", "not json", "strange loader", "folder"]
)
def test_damaged_files_are_refused_by_name(tmp_path: Path, damage: str) -> None:
    """However the estimator's file is broken, the error names it."""
    path = write_model(tmp_path) / "estimator.skops"
    content = path.read_bytes()
    path.unlink()
    if damage in ("truncated", "empty", "no zip"):
        path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "no zip": b"x" * 1000}[damage])
    if damage == "folder":
        path.mkdir()
    if damage in ("no schema", "not json", "strange loader"):
        schema = {"no schema": None, "not json": "{", "strange loader": '{"__loader__": "EvilNode"}'}[damage]
        with zipfile.ZipFile(path, "w") as archive:
            if schema is not None:
                archive.writestr("schema.json", schema)
    with pytest.raises(ModelFolderError, match=r"estimator\.skops: "):
        load_model(tmp_path)


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file that claims to unpack to more than the bound is refused before it is unpacked."""
    write_model(tmp_path)
    monkeypatch.setattr(estimators, "SKOPS_BYTES_MAX", 100)
    with pytest.raises(ModelFolderError, match="more than the 100 allowed"):
        load_model(tmp_path)


def test_an_estimator_that_does_not_fit_model_json_is_refused(tmp_path: Path) -> None:
    """Classes that differ, or a method that is not there, are told when loading, not at the first request."""
    write_model(tmp_path, fitted(["a", "b"]), classes=["a", "c"])
    with pytest.raises(ModelFolderError, match=r"classes \['a', 'b'\] are not model\.json's classes \['a', 'c'\]"):
        load_model(tmp_path)
    write_model(tmp_path, fitted(None))
    with pytest.raises(ModelFolderError, match="a binary model needs predict_proba but Pipeline has none"):
        load_model(tmp_path)
    write_model(tmp_path, [1, 2])
    with pytest.raises(ModelFolderError, match="needs predict_proba but list has none"):
        load_model(tmp_path)


def _tamper_forest(estimator: Any) -> None:
    estimator.n_features_in_ = 1


def _tamper_owner(estimator: Any) -> None:
    for tree in (estimator, *estimator.estimators_):
        tree.n_features_in_ = 1


def _tamper_child(estimator: Any) -> None:
    nodes = estimator._predictors[0][0].nodes
    nodes["left"][nodes["is_leaf"] == 0] = 2**31


def _tamper_loop(estimator: Any) -> None:
    nodes = estimator._predictors[0][0].nodes
    nodes["right"][0] = 0


def _tamper_feature(estimator: Any) -> None:
    nodes = estimator._predictors[0][0].nodes
    nodes["feature_idx"][nodes["is_leaf"] == 0] = 10_000_000


def _tamper_category(estimator: Any) -> None:
    nodes = estimator._predictors[0][0].nodes
    nodes["is_categorical"][nodes["is_leaf"] == 0] = 1


def _tamper_in_fit(estimator: Any) -> None:
    estimator._in_fit = True


def _tamper_preprocessor(estimator: Any) -> None:
    narrow = ColumnTransformer([("some", "passthrough", [0])])
    estimator._preprocessor = narrow.fit(np.zeros((2, estimator.n_features_in_)))


def _tamper_known(estimator: Any) -> None:
    mapper = estimator._bin_mapper
    mapper.is_categorical_ = np.ones_like(mapper.is_categorical_)
    mapper.bin_thresholds_ = [np.array([4e9])] * len(mapper.bin_thresholds_)


@pytest.mark.parametrize(
    ("estimator", "tamper", "said"),
    [
        (RandomForestClassifier(2), _tamper_forest, "n_features_in_ differs from its forest's"),
        (RandomForestClassifier(2), _tamper_owner, "tree_.n_features is not n_features_in_"),
        (HistGradientBoostingClassifier(max_iter=2), _tamper_child, "a left child is out of place"),
        (HistGradientBoostingClassifier(max_iter=2), _tamper_loop, "a right child is out of place"),
        (HistGradientBoostingClassifier(max_iter=2), _tamper_feature, "feature_idx is outside 0 … 4"),
        (HistGradientBoostingClassifier(max_iter=2), _tamper_category, "bitset_idx is outside"),
        (HistGradientBoostingClassifier(max_iter=2), _tamper_in_fit, "_in_fit is set"),
        (HistGradientBoostingClassifier(max_iter=2), _tamper_preprocessor, "its preprocessing changes the width"),
        (HistGradientBoostingClassifier(max_iter=2), _tamper_known, "feature 0 has a category out of range"),
    ],
)
def test_crafted_trees_are_refused(tmp_path: Path, estimator: Any, tamper: Callable[[Any], None], said: str) -> None:
    """Trees whose indexes lead outside their arrays, which scikit-learn would follow in C, never get to predict."""
    pipeline = fitted(estimator=estimator)
    tamper(pipeline[-1])
    with pytest.raises(ModelFolderError, match=said):
        load_model(write_model(tmp_path, pipeline))


def test_a_crafted_node_of_a_forest_is_refused(tmp_path: Path) -> None:
    """The same for the nodes inside scikit-learn's own Tree, which only its file form lets one change."""
    pipeline = fitted(estimator=RandomForestClassifier(1))
    tree = pipeline[-1].estimators_[0].tree_
    state = tree.__getstate__()
    state["nodes"]["left_child"][0] = 2**40
    tree.__setstate__(state)
    with pytest.raises(ModelFolderError, match="Tree: a left child is out of place"):
        load_model(write_model(tmp_path, pipeline))


def test_honest_trees_are_taken_and_kept_to_one_thread(tmp_path: Path) -> None:
    """Forests and boosted trees load, predict as before, and start no threads."""
    for estimator in (RandomForestClassifier(3, n_jobs=2), HistGradientBoostingClassifier(max_iter=3)):
        pipeline = fitted(estimator=estimator)
        model = load_model(write_model(tmp_path, pipeline))
        np.testing.assert_allclose(asked(model), pipeline.predict_proba(rows(20))[:, 1])
    write_model(tmp_path, fitted(estimator=RandomForestClassifier(3, n_jobs=2)))
    assert load_skops(tmp_path / "estimator.skops")[-1].n_jobs == 1


# ---------------------------------------------------------------- the owner's code
CODE = """
import numpy as np
def load(model_dir):
    class Loaded:
        def predict(self, frame):
            return np.where(frame["age"] > 40, 0.9, 0.1)
    return Loaded()
"""


def write_entrypoint(folder: Path, module: str, source: str) -> Path:
    """A model folder whose predictor is the owner's code."""
    write_model(folder, predictor={"kind": "entrypoint", "module": module, "code": "code"})
    (folder / "code").mkdir()
    (folder / "code" / f"{module}.py").write_text(source)
    return folder


def test_the_owners_code_is_loaded_from_the_folder(tmp_path: Path) -> None:
    """An entrypoint's load() gives the object that predicts."""
    model = load_model(write_entrypoint(tmp_path, "owners_scoring_a", CODE))
    assert set(asked(model).tolist()) == {0.1, 0.9}


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("owners_scoring_b", "1 / 0", "ZeroDivisionError"),
        ("owners_scoring_c", "", "has no attribute 'load'"),
        ("owners_scoring_d", "def load(model_dir): return 5", "has no attribute 'predict'"),
        ("json", CODE, "predictor.module 'json' is .*, not in"),
    ],
)
def test_code_that_cannot_be_loaded_is_named(tmp_path: Path, module: str, source: str, said: str) -> None:
    """Code that fails, lacks its parts or hides behind another module's name is refused with its name."""
    with pytest.raises(ModelFolderError, match=said) as caught:
        load_model(write_entrypoint(tmp_path, module, source))
    assert module in str(caught.value)


# ---------------------------------------------------------------- TensorFlow
TENSORFLOW = """
import sys
from pathlib import Path
import numpy as np
import skops.io
import tensorflow as tf
from serving_rig import json_rows, preprocessing, rows, write_model
from serving.model import load_model

folder = Path(sys.argv[1])
prepare = preprocessing().fit(rows(300))
width = prepare.transform(rows(3)).shape[1]
module = tf.Module()
module.weights = tf.Variable(np.linspace(-1, 1, width, dtype=np.float32)[:, None])
signature = [tf.TensorSpec((None, width), tf.float32)]
module.serve = tf.function(lambda matrix: tf.nn.sigmoid(tf.matmul(matrix, module.weights)), input_signature=signature)
write_model(folder, predictor={"kind": "tensorflow", "saved_model": "saved_model", "preprocessor": "preprocessor.skops"})
skops.io.dump(prepare, folder / "preprocessor.skops")
tf.saved_model.save(module, str(folder / "saved_model"))
wanted = 1 / (1 + np.exp(-prepare.transform(rows(20)) @ module.weights.numpy()[:, 0]))
del module

model = load_model(folder)
asked = model.predict(model.schema.columns([model.schema.row(r, i) for i, r in enumerate(json_rows(20))]))
np.testing.assert_allclose(asked, wanted, rtol=1e-5)
(folder / "saved_model" / "saved_model.pb").write_bytes(b"torn")
try:
    load_model(folder)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_a_saved_model_is_served_behind_its_preprocessor(tmp_path: Path) -> None:
    """Scores are what the graph gives for the prepared rows; a torn graph is refused by name. In a process of its own."""
    environment = os.environ | {"PYTHONPATH": f"{PROJECT}:{Path(__file__).parent}", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", TENSORFLOW, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"ModelFolderError {tmp_path}/saved_model: is no SavedModel that can be served: ")


def test_only_what_survives_a_fork_is_loaded_before_it() -> None:
    """TensorFlow, an owner's code, and anything with threads of OpenMP are loaded by each worker for itself."""
    sklearn = parse_manifest(json.dumps(manifest()).encode(), Path("model.json"))
    predictor = {"kind": "tensorflow", "saved_model": "s", "preprocessor": "p"}
    tensorflow = parse_manifest(json.dumps(manifest(predictor=predictor)).encode(), Path("model.json"))
    one = {"OMP_NUM_THREADS": "1"}
    assert is_fork_safe(sklearn, one)
    assert not is_fork_safe(sklearn, {"OMP_NUM_THREADS": "4"})
    assert not is_fork_safe(tensorflow, one)
