"""The train job: model folders that are the same for the same inputs, from the cache the second time, with their lineage."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import git
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from served_columns import as_columns

import serving.model
from pipelines import prepare
from pipelines.jobs.port import JobContext, PermanentJobError
from pipelines.training import windowed
from pipelines.treehash import tree_id
from policies.schema import ModelPolicy
from tuners import train
from tuners.tune import since_change_s

NOW = datetime(2026, 2, 1, tzinfo=UTC)


def policy(**train_section: Any) -> dict[str, Any]:
    section = {"component": "sklearn.hist_gradient_boosting", "parameters": {"max_iter": 10}, **train_section}
    spec = {
        "task": "binary",
        "data": {
            "source": {"kind": "parquet", "path": "rows.parquet"},
            "label": "bought",
            "time": "at",
            "label_delay": "1h",
            "min_rows": 20,
        },
        "train": {name: value for name, value in section.items() if value is not None},
        "objective": {"metric": "roc_auc", "threshold": 0.3},
    }
    return {"apiVersion": "ratchet.dev/v1", "kind": "ModelPolicy", "metadata": {"name": "buyers"}, "spec": spec}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"at": pd.date_range("2026-01-01", periods=700, freq="h", tz="UTC")})
    frame["age"] = rng.integers(18, 90, 700)
    frame["city"] = rng.choice(["Oslo", "Rome", None], 700)
    frame["bought"] = np.where(frame["age"] + rng.normal(0, 10, 700) > 50, "yes", "no")
    frame.to_parquet(tmp_path / "rows.parquet")
    return tmp_path


def prepared(folder: Path, document: dict[str, Any]) -> dict[str, Any]:
    inputs = {
        "policy": document, "policy_dir": str(folder), "home": str(folder / "home"), "now": NOW.isoformat(), "model": "buyers",
    }  # fmt: skip
    return prepare.run(inputs, context(folder))


def context(folder: Path) -> JobContext:
    return JobContext(job_id="t", workdir=folder, report_path=folder / "progress.json")


def run(
    folder: Path, document: dict[str, Any], tuned: dict[str, Any] | None = None, code: dict[str, str] | None = None
) -> dict[str, Any]:
    inputs = {
        "policy": document, "policy_dir": str(folder), "home": str(folder / "home"), "model": "buyers",
        "prepared": prepared(folder, document), "tuned": tuned, "code": code,
    }  # fmt: skip
    output = train.run(inputs, context(folder))
    json.dumps(output, allow_nan=False)
    return output


def test_model_folder_is_what_serving_reads(folder: Path) -> None:
    """model.json has the policy's names and the whole set of parameters; serving loads the folder; the reference is there."""
    out = run(folder, policy())
    manifest = json.loads(Path(out["model_dir"], "model.json").read_text())
    assert manifest["classes"] == ["no", "yes"]
    assert (manifest["label"], manifest["threshold"], manifest["task"]) == ("bought", 0.3, "binary")
    assert manifest["parameters"] == out["parameters"]
    assert out["parameters"]["max_iter"] == 10
    assert out["parameters"]["learning_rate"] == 0.1
    assert manifest["features"] == [{"kind": "numeric", "name": "age"}, {"kind": "categorical", "name": "city"}]
    model = serving.model.load_model(Path(out["model_dir"]))
    rows = pd.DataFrame({"age": [80.0, 20.0], "city": pd.Series(["Oslo", None], dtype=object)})
    old, young = model.predict(as_columns(rows))
    assert old > 0.5 > young
    assert len(pd.read_parquet(Path(out["model_dir"], "reference.parquet"))) == out["rows"] == 560
    assert (out["trained_from"], out["trained_to"]) == ("2026-01-01T00:00:00+00:00", "2026-01-24T07:00:00+00:00")
    assert out["code"] == {"digest": None, "commit": None}
    assert out["sentence"].startswith("sklearn.hist_gradient_boosting trained on 560 rows in ")


def test_second_run_comes_from_the_cache(folder: Path) -> None:
    """Same rows and parameters: the same folder, not fitted again; another parameter: another one."""
    first, second = run(folder, policy()), run(folder, policy())
    assert (first["cached"], second["cached"]) == (False, True)
    assert first["model_dir"] == second["model_dir"]
    assert first["train_s"] == second["train_s"]
    assert "from the cache" in second["sentence"]
    other = run(folder, policy(parameters={"max_iter": 11}))
    assert not other["cached"]
    assert other["model_digest"] != first["model_digest"]


def test_damaged_model_is_trained_again_to_the_same_digest(folder: Path) -> None:
    """A model file that was cut in the cache is noticed; training gives the same bytes again."""
    first = run(folder, policy())
    path = Path(first["model_dir"], "estimator.skops")
    path.write_bytes(path.read_bytes()[:-10])
    again = run(folder, policy())
    assert not again["cached"]
    assert again["model_digest"] == first["model_digest"]


def test_tuned_parameters_component_and_window_are_used(folder: Path) -> None:
    """What the search found goes over the policy's parameters; a window of null is all rows; without a search, the longest window."""
    several = policy(
        component=["sklearn.hist_gradient_boosting", "sklearn.logistic_regression"], parameters={}, window=["2d", "10d"]
    )
    tuned = {"component": "sklearn.logistic_regression", "parameters": {"C": 0.5}, "window_s": 2 * 86_400.0}
    out = run(folder, several, tuned)
    assert (out["component"], out["window_s"], out["rows"]) == ("sklearn.logistic_regression", 172_800.0, 48)
    assert out["parameters"] == {"C": 0.5, "class_weight": None, "max_iter": 300}
    assert run(folder, several)["rows"] == 240
    with pytest.raises(
        PermanentJobError, match=r"chose 'sklearn.ridge' but the policy lists sklearn.hist_gradient_boosting, "
    ):
        run(folder, several, tuned | {"component": "sklearn.ridge"})


# ---------------------------------------------------------------- once more, with the rows that judged it
def test_a_refit_is_the_same_recipe_on_the_hold_out_too(folder: Path) -> None:
    """What was judged and what is to serve lie side by side; the refit has all rows, up to the newest, and loads like any other."""
    out = run(folder, policy(refit=True))
    refit = out["refit"]
    assert (out["rows"], refit["rows"]) == (560, 700)
    assert out["trained_to"] == "2026-01-24T07:00:00+00:00"
    assert refit["trained_to"] == "2026-01-30T03:00:00+00:00"
    assert refit["model_digest"] != out["model_digest"]
    first, second = (json.loads(Path(of["model_dir"], "model.json").read_text()) for of in (out, refit))
    assert first == second
    assert len(pd.read_parquet(Path(refit["model_dir"], "reference.parquet"))) == 700
    serving.model.load_model(Path(refit["model_dir"]))
    assert out["sentence"].startswith(
        "sklearn.hist_gradient_boosting trained on 560 rows, and again on 700 with those that judge it in "
    )
    again = run(folder, policy(refit=True))
    assert (again["cached"], again["refit"]) == (True, refit)


def test_without_asking_nothing_is_refitted(folder: Path) -> None:
    """The default. Asking for it later trains again, and judges the same model."""
    plain, both = run(folder, policy()), run(folder, policy(refit=True))
    assert plain["refit"] is None
    assert not Path(plain["model_dir"]).parent.joinpath("refit").exists()
    assert plain["model_digest"] == both["model_digest"]


def test_a_window_of_the_refit_counts_back_from_its_own_newest_row(folder: Path) -> None:
    """Two days are two days; since the change, it begins at the change still."""
    out = run(folder, policy(refit=True, window="2d"))
    assert (out["rows"], out["refit"]["rows"]) == (48, 48)
    assert out["refit"]["trained_from"] == "2026-01-28T04:00:00+00:00"
    document = policy(refit=True, window=["since_change", "20d"])
    changed = "2026-01-10T00:00:00+00:00"
    prepared_rows = prepared(folder, document)
    inputs = {
        "policy": document, "policy_dir": str(folder), "home": str(folder / "home"), "model": "buyers",
        "prepared": prepared_rows, "changed_at": changed,
    }  # fmt: skip
    span_s = since_change_s(inputs, ModelPolicy.model_validate(document).spec)
    since = train.run({**inputs, "tuned": {"window_s": span_s}}, context(folder))
    assert (since["trained_from"], since["refit"]["trained_from"]) == (changed, changed)
    assert since["refit"]["rows"] - since["rows"] == prepared_rows["rows_holdout"]
    other = train.run({**inputs, "tuned": {"window_s": 86_400.0}}, context(folder))
    assert (other["rows"], other["refit"]["rows"]) == (24, 24)


@given(
    st.lists(st.integers(0, 10_000), min_size=2, max_size=60, unique=True),
    st.floats(0.05, 0.95),
    st.one_of(st.none(), st.floats(0.5, 20_000)),
    st.booleans(),
)
def test_a_refit_never_has_fewer_rows_than_what_was_judged(
    seconds: list[int], share: float, window_s: float | None, timed: bool
) -> None:
    """However thinly rows have come of late; and it always has the newest."""
    rows = pd.DataFrame({"at": pd.to_datetime(sorted(seconds), unit="s", utc=True), "row": range(len(seconds))})
    column = "at" if timed else None
    judged = windowed(rows.iloc[: max(1, round(share * len(rows)))], column, window_s)
    refit = train.refit_rows(rows, column, window_s, at_least=len(judged))
    assert len(refit) >= len(judged)
    assert refit["row"].tolist() == list(range(len(rows) - len(refit), len(rows)))


def test_a_refit_that_cannot_be_made_stops_nothing(folder: Path) -> None:
    """The newest day holds one class only: what was judged serves then, and the sentence says why."""
    rows = pd.read_parquet(folder / "rows.parquet")
    rows.loc[676:, "bought"] = "yes"
    rows.to_parquet(folder / "rows.parquet")
    document = policy(refit=True, window="1d")
    document["spec"]["data"]["holdout"] = "1d"
    out = run(folder, document)
    assert (out["rows"], out["refit"]) == (24, None)
    assert out["sentence"].endswith(
        "; it cannot be refitted: train.window: its 24 rows hold no row of the class 'no'; take a longer one"
    )


def test_rows_of_the_log_have_the_logs_times(folder: Path) -> None:
    """A policy on the prediction log need not name data.time: windows are in time all the same, and what was trained on is dated."""
    document = policy(window="2d", refit=True)
    rows = prepared(folder, document)
    document["spec"]["data"] = {"source": {"kind": "prediction-log"}, "label": "bought", "time": None}
    inputs = {
        "policy": document, "policy_dir": str(folder), "home": str(folder / "home"), "model": "buyers",
        "prepared": rows, "tuned": None,
    }  # fmt: skip
    out = train.run(inputs, context(folder))
    assert (out["rows"], out["trained_to"]) == (48, rows["trained_to"])


def test_without_a_time_a_window_is_of_rows(folder: Path) -> None:
    """One row counts as one second."""
    document = policy(window="100s", refit=True)
    del document["spec"]["data"]["time"], document["spec"]["data"]["label_delay"]
    document["spec"]["data"]["exclude"] = ["at"]
    out = run(folder, document)
    assert (out["rows"], out["refit"]["rows"], out["trained_to"]) == (100, 100, None)


def test_a_model_knows_the_classes_that_it_has_seen(folder: Path) -> None:
    """Of many classes the window holds some, the refit others; each model names its own, in one order."""
    rows = pd.read_parquet(folder / "rows.parquet")
    place = np.arange(len(rows))
    rows["bought"] = np.select([place < 300, (place >= 660) & (place % 2 == 0), place % 2 == 0], ["c", "d", "b"], "a")
    rows.to_parquet(folder / "rows.parquet")
    document = policy(refit=True, window="10d")
    document["spec"] |= {"task": "multiclass", "objective": {"metric": "accuracy"}}
    out = run(folder, document)
    judged, refit = (
        json.loads(Path(of["model_dir"], "model.json").read_text())["classes"] for of in (out, out["refit"])
    )
    assert judged == ["a", "b"]
    assert refit == ["a", "b", "d"]


@pytest.mark.slow
def test_two_fresh_processes_give_the_same_digest(folder: Path, tmp_path_factory: Any) -> None:
    """Neither addresses nor hash seeds nor dates get into the model: another process, another home, the same digest."""
    script = (
        "import json, sys; from pathlib import Path; from pipelines.jobs.port import JobContext; from tuners import train;"
        "i = json.load(open(sys.argv[1])); c = JobContext(job_id='t', workdir=Path('/tmp'), report_path=Path(i['home'], 'r.json'));"
        "print(train.run(i, c)['model_digest'])"
    )
    for component, parameters in (("hist_gradient_boosting", {"max_iter": 5}), ("random_forest", {"n_estimators": 5})):
        document = policy(component=f"sklearn.{component}", parameters={})
        digests = set()
        for seed in ("1", "2"):
            home = tmp_path_factory.mktemp("home")
            inputs = {
                "policy": document, "policy_dir": str(folder), "home": str(home), "model": "buyers",
                "prepared": prepared(folder, document), "tuned": {"parameters": parameters},
            }  # fmt: skip
            (home / "inputs.json").write_text(json.dumps(inputs))
            done = subprocess.run(
                [sys.executable, "-c", script, str(home / "inputs.json")],
                capture_output=True, text=True, check=True, timeout=120, cwd=Path(train.__file__).parents[1],
                env={"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": seed, "HOME": str(home)},
            )  # fmt: skip
            digests.add(done.stdout.strip())
        assert len(digests) == 1, component


OWNERS = """
from sklearn.linear_model import LogisticRegression

def fit(frame, target, *, parameters, seed, **others):
    return LogisticRegression(**parameters).fit(frame[["age"]].rename(columns=str), target)
"""


def test_owners_code_and_its_commit_are_in_the_lineage(folder: Path) -> None:
    """Digest and commit of the code folder; uncommitted changes are marked; new code is a new training."""
    code = folder / "repo" / "training"
    code.mkdir(parents=True)
    (code / "buyers_training.py").write_text(
        textwrap.dedent(OWNERS).replace('[["age"]].rename(columns=str)', "[['age']]")
    )
    document = policy(component=None, parameters={}, entrypoint="buyers_training:fit", code="repo/training")
    document["spec"]["data"]["include"] = ["age"]
    first = run(folder, document)
    assert first["component"] == "entrypoint:buyers_training:fit"
    assert first["code"]["digest"].startswith("sha256:")
    assert first["code"]["commit"] is None
    with git.Repo.init(folder / "repo") as repository:
        assert train.git_commit(code) is None
        repository.index.add(["training/buyers_training.py"])
        author = git.Actor("A", "a@example.org")
        commit = repository.index.commit("First", author=author, committer=author).hexsha
    committed = run(folder, document)
    assert (committed["code"]["commit"], committed["cached"]) == (commit, True)
    with (code / "buyers_training.py").open("a") as file:
        file.write("# changed\n")
    changed = run(folder, document)
    assert (changed["code"]["commit"], changed["cached"]) == (f"{commit}-dirty", False)
    assert changed["code"]["digest"] != committed["code"]["digest"]


def test_code_of_a_pinned_commit_must_be_that_commits(folder: Path) -> None:
    """The pinned commit is in the lineage, and nothing is left beside the code; code that differs by a mode or a file is not run."""
    code = folder / "training"
    code.mkdir()
    (code / "pinned_training.py").write_text(OWNERS.replace('[["age"]].rename(columns=str)', "[['age']]"))
    document = policy(component=None, parameters={}, entrypoint="pinned_training:fit", code="training")
    document["spec"]["data"]["include"] = ["age"]
    pinned = {"commit": "c" * 40, "tree": tree_id(code, like="0" * 40)}
    assert run(folder, document, code=pinned)["code"]["commit"] == "c" * 40
    assert [path.name for path in code.iterdir()] == ["pinned_training.py"]
    for change in ((code / "new.py").touch, lambda: (code / "pinned_training.py").chmod(0o755)):
        change()
        with pytest.raises(PermanentJobError, match=r"is not what commit c+ has there"):
            run(folder, document, code=pinned)
        (code / "new.py").unlink(missing_ok=True)
    shutil.rmtree(code)
    with pytest.raises(PermanentJobError, match="restart the daemon to have it made again"):
        run(folder, document, code=pinned)


def test_missing_code_folder_and_vanished_rows(folder: Path) -> None:
    """Each is an error that names the path."""
    document = policy(component=None, parameters={}, entrypoint="a:b", code="nowhere")
    with pytest.raises(PermanentJobError, match=r"train\.code: there is no folder .*nowhere"):
        run(folder, document)
    rows = prepared(folder, policy())
    Path(rows["train"]).unlink()
    inputs = {
        "policy": policy(), "policy_dir": str(folder), "home": str(folder / "home"), "model": "buyers",
        "prepared": rows, "tuned": None,
    }  # fmt: skip
    with pytest.raises(PermanentJobError, match="are gone from the cache; start a new cycle"):
        train.run(inputs, context(folder))
    Path(rows["train"]).write_bytes(b"PAR1 cut")
    with pytest.raises(PermanentJobError, match="are damaged"):
        train.run(inputs, context(folder))
