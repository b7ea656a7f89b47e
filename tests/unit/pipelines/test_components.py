"""Components: every family fits, scores by the convention, is deterministic, and is loaded by serving as it was saved."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flights import T0, flights, policy_json
from hypothesis import given
from hypothesis import strategies as st
from served_columns import as_columns

import serving.model
from pipelines import modelfolder, skops_files, training
from pipelines.components import registry
from pipelines.components.base import Component, Fitted
from pipelines.components.parameters import merged
from pipelines.data.features import Feature, FeatureKind, model_frame
from pipelines.data.profile import read_profile
from pipelines.jobs.port import PermanentJobError
from policies.metrics import METRICS, Task
from policies.schema import FloatRange, ModelPolicy
from tuners.folds import Fold, within_window

FEATURES = (
    Feature("carrier", FeatureKind.CATEGORICAL),
    Feature("wind", FeatureKind.NUMERIC),
    Feature("storm", FeatureKind.BOOLEAN),
    Feature("remark", FeatureKind.TEXT),
)
SMALL: dict[str, dict[str, Any]] = {
    "sklearn.hist_gradient_boosting": {"max_iter": 8},
    "sklearn.random_forest": {"n_estimators": 5},
    "sklearn.extra_trees": {"n_estimators": 20},
    "sklearn.poisson_boosting": {"max_iter": 30},
}
CASES = [
    (name, task)
    for name in registry.names()
    if name.startswith("sklearn.")
    for task in sorted(registry.get(name).tasks)
]


def rows(count: int = 300, *, holes: bool = True) -> pd.DataFrame:
    """Flights with a remark in words, a label for each task, and holes in every feature."""
    frame = flights(count)
    words = np.where(frame["late"] == 1, "delayed by heavy weather", "left the gate on time")
    frame["remark"] = [f"{text} at stand {i % 40}" for i, text in enumerate(words)]
    frame["minutes"] = frame["delay_min"] - frame["delay_min"].min()  # an amount, which one family asks for
    frame["verdict"] = np.select([frame["delay_min"] < -10, frame["delay_min"] > 10], ["early", "late"], "fair")
    if holes:
        frame = frame.astype({"storm": object})
        for place, name in enumerate(["carrier", "wind", "storm", "remark"]):
            frame.loc[place::17, name] = None
    return frame


LABELS: dict[Task, tuple[str, list[Any] | None]] = {
    Task.BINARY: ("late", [0, 1]),
    Task.MULTICLASS: ("verdict", ["early", "fair", "late"]),
    Task.REGRESSION: ("minutes", None),
}


def policy_of(task: Task) -> ModelPolicy:
    metric = next(name for name, metric in METRICS.items() if task in metric.tasks)
    return ModelPolicy.model_validate(
        policy_json(task=task, objective={"metric": metric}, data={"label": LABELS[task][0], "exclude": []})
    )


def fitted(
    component: Component, task: Task, frame: pd.DataFrame, features: Sequence[Feature] = FEATURES, **parameters: Any
) -> Fitted:
    return training.fit_component(
        policy_of(task),
        frame,
        component,
        {**SMALL.get(component.name, {}), **parameters},
        features=features,
        classes=LABELS[task][1],
    )


def save(model: Fitted, folder: Path, task: Task, component: str, frame: pd.DataFrame) -> str:
    folder.mkdir()
    return modelfolder.write_model_folder(
        folder,
        model,
        frame,
        model="flight-late",
        task=task.value,
        label=LABELS[task][0],
        threshold=0.5 if task is Task.BINARY else None,
        classes=LABELS[task][1],
        component=component,
        parameters={},
        features=FEATURES,
        seed=7,
    )


@pytest.mark.parametrize(("name", "task"), CASES)
def test_family_scores_and_is_served_as_it_was_fitted(name: str, task: Task, tmp_path: Path) -> None:
    """Scores have the convention's shape and beat a guess; unseen categories and missing values are no error; serving's loader
    gives the same scores from the saved folder."""
    frame = rows()
    model = fitted(registry.get(name), task, frame)
    new = rows(40).assign(carrier="ZZ", wind=np.nan)
    scores = model.predict(pd.concat([frame, new], ignore_index=True))
    label, classes = LABELS[task]
    assert scores.shape == ((340, 3) if task is Task.MULTICLASS else (340,))
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    if task is Task.BINARY:
        assert scores[:300][frame[label] == 1].mean() > scores[:300][frame[label] == 0].mean() + 0.1
    elif task is Task.MULTICLASS:
        assert np.allclose(scores.sum(axis=1), 1)
        assert (np.array(classes)[scores[:300].argmax(axis=1)] == frame[label]).mean() > 0.6
    else:
        assert np.corrcoef(scores[:300], frame[label])[0, 1] > 0.5
    save(model, tmp_path / "model", task, name, frame)
    served = serving.model.load_model(tmp_path / "model")
    assert np.allclose(served.predict(as_columns(model_frame(frame, FEATURES))), scores[:300])


@pytest.mark.parametrize("name", [n for n in registry.names() if n.startswith("sklearn.")])
def test_same_inputs_give_the_same_folder(name: str, tmp_path: Path) -> None:
    """Two fits on the same rows are the same bytes; another seed or other rows are not the same model."""
    component = registry.get(name)
    task = min(component.tasks)
    frame = rows(200)
    digests = {save(fitted(component, task, frame), tmp_path / str(i), task, name, frame) for i in range(2)}
    assert len(digests) == 1
    other = rows(190)
    assert save(fitted(component, task, other), tmp_path / "other", task, name, other) not in digests


@pytest.mark.parametrize("name", registry.names())
def test_defaults_lie_in_the_space(name: str) -> None:
    """A search can start from the defaults: each searched parameter has a default inside its range."""
    component = registry.get(name)
    defaults = component.defaults()
    assert component.name == name
    assert isinstance(component, Component)
    for parameter, values in component.space().items():
        default: Any = defaults[parameter]
        inside = default in values if isinstance(values, tuple) else values.low <= default <= values.high
        assert inside, (parameter, default, values)


def test_every_task_has_components() -> None:
    """names(task) lists what can do it; a component that cannot is refused by name."""
    for task in Task:
        assert len(registry.names(task)) >= 4
    train = policy_of(Task.REGRESSION).spec.train.model_copy(update={"component": "sklearn.logistic_regression"})
    with pytest.raises(
        PermanentJobError, match=r"sklearn.logistic_regression cannot do task regression; there are .*sklearn.ridge"
    ):
        registry.candidates(train, Task.REGRESSION, Path())


def test_unknown_component_and_parameter_have_suggestions() -> None:
    """A wrong name is answered with the nearest right one."""
    with pytest.raises(
        PermanentJobError, match=r"no component 'sklearn.randomforest'; did you mean 'sklearn.random_forest'"
    ):
        registry.get("sklearn.randomforest")
    with pytest.raises(PermanentJobError, match="no parameter 'max_iters'; did you mean 'max_iter'"):
        fitted(registry.get("sklearn.hist_gradient_boosting"), Task.BINARY, rows(60), max_iters=3)
    with pytest.raises(PermanentJobError, match="no parameter 'zz'; it takes a"):
        merged("x", {"a": 1}, {"zz": 1})


def test_wrong_parameter_value_is_the_owners_error() -> None:
    """What scikit-learn refuses is named with the component and its parameters."""
    with pytest.raises(
        PermanentJobError, match=r"sklearn.hist_gradient_boosting cannot be fitted with .*'max_iter': -1"
    ):
        fitted(registry.get("sklearn.hist_gradient_boosting"), Task.BINARY, rows(60), max_iter=-1)


def test_text_linear_needs_text() -> None:
    """Without a text feature the message lists what there is."""
    with pytest.raises(PermanentJobError, match=r"needs a text feature but there are carrier \(categorical\)"):
        fitted(registry.get("sklearn.text_linear"), Task.BINARY, rows(60), FEATURES[:3])


def test_a_model_knows_the_classes_that_occur() -> None:
    """Of many classes those in the rows, in the same order, however the labels are spelt; a regression has none."""
    some = pd.Series(["b", None, "c", "b"])
    assert training.present_classes(some, Task.MULTICLASS, ["a", "b", "c", "d"]) == ("b", "c")
    assert training.present_classes(pd.Series([2.0, 1.0]), Task.MULTICLASS, [1, 2, 3]) == (1, 2)
    assert training.present_classes(pd.Series([1.5, 2.5]), Task.REGRESSION, None) is None


@pytest.mark.parametrize(
    ("task", "labels", "classes", "absent"),
    [
        (Task.BINARY, [0, 0, 0], [0, 1], "1"),
        (Task.BINARY, [], [0, 1], "0"),
        (Task.MULTICLASS, ["b", "b"], ["a", "b", "c"], "'a'"),
        (Task.MULTICLASS, [None], ["a", "b", "c"], "'a'"),
    ],
)
def test_a_class_without_rows_in_the_window(task: Task, labels: list[Any], classes: list[Any], absent: str) -> None:
    """Two must occur, and both of a binary task, or there is nothing to tell apart."""
    message = f"its {len(labels)} rows hold no row of the class {absent}; take a longer one"
    with pytest.raises(PermanentJobError, match=message):
        training.present_classes(pd.Series(labels, dtype=object), task, classes)


def test_many_categories_are_no_problem() -> None:
    """More categories than a histogram tree can hold: the rare ones share one."""
    frame = rows(2400).assign(carrier=[f"C{i % 800}" for i in range(2400)])
    for name in ("sklearn.hist_gradient_boosting", "sklearn.logistic_regression"):
        assert np.isfinite(fitted(registry.get(name), Task.BINARY, frame).predict(frame)).all()


def test_plugins_are_found_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed component is used by its entry point's name; a broken one is named."""
    points = (
        EntryPoint("acme.ridge", "pipelines.components.tensorflow_mlp:TensorflowMlp", registry.ENTRY_POINT_GROUP),
        EntryPoint("acme.broken", "no_such_module:thing", registry.ENTRY_POINT_GROUP),
        EntryPoint("acme.other", "json:dumps", registry.ENTRY_POINT_GROUP),
    )
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == registry.ENTRY_POINT_GROUP else ())
    assert "acme.ridge" in registry.names()
    assert isinstance(registry.get("acme.ridge"), Component)
    with pytest.raises(PermanentJobError, match=r"plugin 'acme.broken' .* does not load: ModuleNotFoundError"):
        registry.get("acme.broken")
    with pytest.raises(PermanentJobError, match=r"'acme\.other' .* is no component"):
        registry.get("acme.other")


def test_serving_trusts_what_training_writes() -> None:
    """The two lists of trusted types are one."""
    assert skops_files.TRUSTED_TYPES == serving.model.TRUSTED_TYPES


def test_reference_is_a_bounded_seeded_sample(tmp_path: Path) -> None:
    """At most 20,000 rows, features and label only, in order, the same bytes for the same seed; and their profile."""
    frame = flights(20_500)
    features = [Feature("wind", FeatureKind.NUMERIC), Feature("carrier", FeatureKind.CATEGORICAL)]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        modelfolder.write_reference(tmp_path / name, frame, features, "late", 3)
    for file in ("reference.parquet", "profile.json", "profile.f64"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    reference = pd.read_parquet(tmp_path / "a" / "reference.parquet")
    assert reference.columns.tolist() == ["wind", "carrier", "late"]
    assert len(reference) == 20_000
    profile = read_profile(tmp_path / "a")
    assert profile is not None
    assert profile.rows == 20_000
    assert dict(profile.categories["carrier"]) == reference["carrier"].value_counts().to_dict()
    assert np.array_equal(profile.numbers.values[0], np.sort(reference["wind"]))


def test_windowed_keeps_the_newest_rows() -> None:
    """Rows newer than the window before the newest row."""
    frame = flights(100)
    assert training.windowed(frame, "scheduled_at", 3600.0)["flight"].tolist() == [96, 97, 98, 99]
    assert frame["scheduled_at"].min() == pd.Timestamp(T0)
    assert training.windowed(frame, None, None) is frame
    assert training.windowed(frame, None, 3.0)["flight"].tolist() == [97, 98, 99]
    assert training.windowed(frame, None, 1e9)["flight"].tolist() == list(range(100))


@given(st.integers(1, 50), st.floats(0.001, 100))
def test_windows_of_rows_are_those_that_the_search_fits(count: int, window_s: float) -> None:
    """Without a time the final model has the rows that a candidate of that window would have: one second each, and never none."""
    frame = pd.DataFrame({"row": range(count)})
    searched = within_window(Fold(np.arange(count), np.arange(0)), np.arange(float(count)), window_s)
    assert training.windowed(frame, None, window_s)["row"].tolist() == searched.tolist() != []


def test_ranges_of_a_space_are_the_policys_types() -> None:
    """The search reads spaces of components and policies alike."""
    assert isinstance(registry.get("sklearn.ridge").space()["alpha"], FloatRange)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # TensorFlow's own, at import and export
def test_tensorflow_mlp_fits_and_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All three tasks in one process: scores by the convention, the same for the same seed, served as fitted."""
    tf = pytest.importorskip("tensorflow")
    # Serving sets its threads in a fresh process; in this one TensorFlow runs already.
    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", lambda count: None)
    monkeypatch.setattr(tf.config.threading, "set_inter_op_parallelism_threads", lambda count: None)
    component = registry.get("tensorflow.mlp")
    frame = rows(300)
    small = {"epochs": 8, "units": 16, "batch_size": 32, "learning_rate": 0.01}
    for task in Task:
        model = fitted(component, task, frame, **small)
        scores = model.predict(frame)
        label, classes = LABELS[task]
        if task is Task.BINARY:
            assert scores[frame[label] == 1].mean() > scores[frame[label] == 0].mean() + 0.1
        elif task is Task.MULTICLASS:
            assert (np.array(classes)[scores.argmax(axis=1)] == frame[label]).mean() > 0.6
        else:
            assert np.corrcoef(scores, frame[label])[0, 1] > 0.5
        save(model, tmp_path / task, task, component.name, frame)
        served = serving.model.load_model(tmp_path / task)
        assert np.allclose(served.predict(as_columns(model_frame(frame, FEATURES))), scores, atol=1e-5)
    again = fitted(component, Task.BINARY, frame, **small)
    assert np.array_equal(again.predict(frame), fitted(component, Task.BINARY, frame, **small).predict(frame))
    with pytest.raises(PermanentJobError, match="no parameter 'unit'; did you mean 'units'"):
        fitted(component, Task.BINARY, frame, unit=3)
