"""The owner's own training code: its contract, its errors, and what of it goes into the model folder."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flights import flights, policy_json
from served_columns import as_columns

import serving.model
from pipelines import modelfolder, training
from pipelines.components import entrypoint
from pipelines.components.base import Fitted
from pipelines.components.entrypoint import Entrypoint, copy_code
from pipelines.components.registry import candidates
from pipelines.data.features import Feature, FeatureKind, model_frame
from pipelines.jobs.port import PermanentJobError
from policies.metrics import Task
from policies.schema import ModelPolicy

FEATURES = (Feature("wind", FeatureKind.NUMERIC), Feature("storm", FeatureKind.BOOLEAN))

ESTIMATOR = """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def fit(frame, target, *, features, task, classes, parameters, seed, out_dir):
        assert [f["name"] for f in features] == list(frame.columns), features
        assert task == "binary" and classes == [0, 1] and set(target) == {0, 1}
        return make_pipeline(StandardScaler(), LogisticRegression(**parameters, random_state=seed)).fit(frame, target)
"""
OWN_FILES = """
    import json
    from pathlib import Path
    from helper import squash

    def fit(frame, target, *, features, task, classes, parameters, seed, out_dir):
        mean = float(frame["wind"].mean())
        Path(out_dir, "mean.json").write_text(json.dumps(mean))

    class Model:
        def __init__(self, mean):
            self.mean = mean

        def predict(self, frame):
            return squash(frame["wind"].to_numpy() - self.mean)

    def load(model_dir):
        return Model(json.loads(Path(model_dir, "mean.json").read_text()))
"""
HELPER = """
    import numpy as np

    def squash(x):
        return 1 / (1 + np.exp(-x))
"""


@pytest.fixture(autouse=True)
def _clean_imports() -> Iterator[None]:
    """Other tests, and serving's loader in this one, find the interpreter as it was."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in ("owners", "helper"):
        sys.modules.pop(name, None)
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith("/tmp/pytest"):
            del sys.modules[name]


def code(folder: Path, source: str, name: str = "owners.py", **others: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(textwrap.dedent(source))
    for other, text in others.items():
        (folder / f"{other}.py").write_text(textwrap.dedent(text))
    return folder


def fit(folder: Path, target: str = "owners:fit", **parameters: Any) -> Fitted:
    frame = flights(80)
    policy = ModelPolicy.model_validate(
        policy_json(train={"component": None, "entrypoint": target, "code": str(folder)})
    )
    (component,) = candidates(policy.spec.train, Task.BINARY, Path("/"))
    return training.fit_component(policy, frame, component, parameters, features=FEATURES, classes=[0, 1])


def save(model: Fitted, folder: Path, frame: pd.DataFrame) -> str:
    folder.mkdir()
    return modelfolder.write_model_folder(
        folder, model, frame, model="m", task="binary", label="late", threshold=0.5, classes=[0, 1],
        component="entrypoint:owners:fit", parameters={}, features=FEATURES, seed=1,
    )  # fmt: skip


def test_returned_estimator_is_saved_without_the_owners_code(tmp_path: Path) -> None:
    """A scikit-learn estimator needs none of the owner's code to be served."""
    model = fit(code(tmp_path / "code", ESTIMATOR), C=0.5)
    frame = flights(80)
    save(model, tmp_path / "model", frame)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "estimator.skops",
        "model.json",
        "profile.f64",
        "profile.json",
        "reference.parquet",
    ]
    served = serving.model.load_model(tmp_path / "model")
    assert np.allclose(served.predict(as_columns(model_frame(frame, FEATURES))), model.predict(frame))


def test_own_files_travel_with_the_code(tmp_path: Path) -> None:
    """What the function wrote and the code folder, without hidden and compiled files, are in the model folder; serving loads both."""
    folder = code(tmp_path / "code", OWN_FILES, helper=HELPER)
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("x")
    (folder / "data").mkdir()
    (folder / "data" / "words.txt").write_text("a b")
    model = fit(folder)
    frame = flights(80)
    expected = model.predict(frame)
    digest = save(model, tmp_path / "model", frame)
    names = {
        path.relative_to(tmp_path / "model").as_posix() for path in (tmp_path / "model").rglob("*") if path.is_file()
    }
    assert names == {
        "mean.json", "model.json", "profile.f64", "profile.json", "reference.parquet", "code/owners.py", "code/helper.py",
        "code/data/words.txt",
    }  # fmt: skip
    for name in ("owners", "helper"):
        sys.modules.pop(name)
    sys.path.remove(str(folder))
    served = serving.model.load_model(tmp_path / "model")
    assert np.allclose(served.predict(as_columns(model_frame(frame, FEATURES))), expected)
    assert modelfolder.content_digest(tmp_path / "model") == digest  # compiled files are none of it
    for name in ("owners", "helper"):
        sys.modules.pop(name)
    assert save(fit(folder), tmp_path / "again", frame) == digest


def test_digest_follows_the_folder(tmp_path: Path) -> None:
    """Every file counts; compiled and hidden ones do not; names and components are told apart."""
    folder = code(tmp_path / "code", ESTIMATOR)
    component = Entrypoint("owners:fit", folder)
    before = component.digest()
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_bytes(b"x")
    (folder / ".hidden").write_text("x")
    assert component.digest() == before
    (folder / "more.py").write_text("x = 1")
    assert component.digest() != before
    copy_code(folder, tmp_path / "copy")
    assert Entrypoint("owners:fit", tmp_path / "copy").digest() == component.digest()
    assert (component.name, component.space(), component.defaults()) == ("entrypoint:owners:fit", {}, {})


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def fit(*args, **kwargs):\n    return {}['x']\n", "owners:fit failed: KeyError: 'x'"),
        ("def fit(:\n", "owners:fit failed: SyntaxError"),
        ("import no_such_thing\n", "owners:fit failed: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("def fit(frame):\n    return 1\n", "owners:fit failed: TypeError"),
        ("def fit(*args, **kwargs):\n    raise SystemExit(3)\n", "owners:fit failed: SystemExit: 3"),
        ("x = 1\n", "has no function 'fit'"),
        ("def fit(*args, **kwargs):\n    return 12\n", "must return a fitted estimator with predict_proba"),
        ("def fit(*args, **kwargs):\n    return None\n", "its module must have load"),
        (
            "def fit(*a, out_dir, **k):\n    open(out_dir + '/model.json', 'w').close()\ndef load(d): pass\n",
            "must not write 'model.json'",
        ),
        (
            "def fit(*a, **k):\n    return None\ndef load(d):\n    raise OSError('no weights')\n",
            "owners:load failed: OSError: no weights",
        ),
    ],
)
def test_errors_of_the_owners_code(tmp_path: Path, source: str, expected: str) -> None:
    """Whatever it does wrong, the owner gets the error and the last lines of the traceback."""
    with pytest.raises(PermanentJobError) as caught:
        fit(code(tmp_path / "code", source))
    assert expected in str(caught.value)
    if "failed" in expected and "SyntaxError" not in expected and "TypeError" not in expected:
        assert "owners.py" in str(caught.value)


def test_missing_folder_and_module(tmp_path: Path) -> None:
    """No folder, no module: each named."""
    with pytest.raises(PermanentJobError, match=r"train\.code: there is no folder .*nowhere"):
        fit(tmp_path / "nowhere")
    with pytest.raises(PermanentJobError, match="ModuleNotFoundError: No module named 'others'"):
        fit(code(tmp_path / "code", ESTIMATOR), "others:fit")


def test_predictions_of_a_wrong_shape(tmp_path: Path) -> None:
    """The convention is checked at once, not in production."""
    source = OWN_FILES.replace("return squash(", "return squash(frame.to_numpy(dtype=float))  # (")
    with pytest.raises(PermanentJobError, match=r"must return an array of shape \(80,\) .* but returned \(80, 2\)"):
        fit(code(tmp_path / "code", source, helper=HELPER)).predict(flights(80))


def test_estimator_of_the_owners_own_class(tmp_path: Path) -> None:
    """An estimator that serving could not load is refused when saved, with the way out."""
    source = """
    from sklearn.dummy import DummyClassifier

    class Mine(DummyClassifier):
        pass

    def fit(frame, target, **others):
        return Mine().fit(frame, target)
    """
    model = fit(code(tmp_path / "code", source))
    with pytest.raises(
        PermanentJobError, match=r"types that serving does not load: owners.Mine; .* offer load\(model_dir\)"
    ):
        save(model, tmp_path / "model", flights(80))


def test_two_folders_with_modules_of_one_name(tmp_path: Path) -> None:
    """The module of the folder that was asked for is used; a name that Python itself has is refused."""
    first = code(tmp_path / "a", OWN_FILES, helper=HELPER)
    second = code(tmp_path / "b", ESTIMATOR)
    assert type(fit(first)).__name__ == "FittedEntrypoint"
    assert type(fit(second)).__name__ == "FittedSklearn"
    assert type(fit(first)).__name__ == "FittedEntrypoint"
    with pytest.raises(PermanentJobError, match=r"the module name 'json' is taken by .*; rename the module"):
        entrypoint.import_from(code(tmp_path / "c", "", "json.py"), "json")
