"""Models that are not scikit-learn's, from data to live answers: the owner's own code, and TensorFlow."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
from fast_rig import MODEL, Rig, kill_now, rows_of, running, small_spec, wait_until, write_csv
from live_client import post, random_rows, truth

pytestmark = pytest.mark.slow

FIT = '''
"""Fits by hand, writes its own file, and has its own way to load it, in a module of its own."""

from pathlib import Path

from own.weights import Linear, to_text


def fit(frame, target, *, features, task, classes, parameters, seed, out_dir):
    if parameters.get("broken"):
        raise ValueError("the weights do not converge")
    slope = float((frame["x1"] * (target * 2 - 1)).mean())
    Path(out_dir, "weights.txt").write_text(to_text(slope, parameters["scale"]))


def load(model_dir):
    return Linear(*map(float, Path(model_dir, "weights.txt").read_text().split()))
'''
WEIGHTS = """
import numpy as np


def to_text(slope, scale):
    return f"{slope!r} {scale!r}"


class Linear:
    def __init__(self, slope, scale):
        self.slope, self.scale = slope, scale

    def predict(self, frame):
        return 1 / (1 + np.exp(-self.scale * self.slope * frame["x1"].to_numpy()))
"""


def owners_train(folder: Path, **parameters: object) -> dict[str, object]:
    code = folder / "code"
    (code / "own").mkdir(parents=True, exist_ok=True)
    (code / "own" / "__init__.py").touch()
    (code / "own" / "training.py").write_text(FIT)
    (code / "own" / "weights.py").write_text(WEIGHTS)
    return {"entrypoint": "own.training:fit", "code": "code", "parameters": parameters}


def scores(rig: Rig, rows: list[dict[str, float | str]]) -> list[float]:
    """What the router answers."""
    status, _, body = post(rig.address, f"/v1/models/{MODEL}:predict", {"instances": rows})
    assert status == 200, body
    return [float(score) for score in body["predictions"]]


def test_an_owners_own_code_serves_from_its_image(tmp_path: Path) -> None:
    """It trains, writes and loads its own files; the image carries its code, so its folder may change or go."""
    write_csv(tmp_path / "data.csv", rows_of(1))
    rows = random_rows(1, 20)
    with running(tmp_path) as rig:
        model = rig.first_champion(small_spec(train=owners_train(tmp_path, scale=3.0)))
        assert model["versions"][0]["component"] == "entrypoint:own.training:fit"
        answered = scores(rig, rows)
        slopes = {
            round(math.log(p / (1 - p)) / (3.0 * float(row["x1"])), 6) for p, row in zip(answered, rows, strict=True)
        }
        assert len(slopes) == 1, "each answer is the owner's formula"
        shutil.rmtree(tmp_path / "code")
        victim = rig.replica_pids(1)[0]
        kill_now(victim)
        wait_until(lambda: rig.replica_pids(1) not in ([], [victim]), "another replica runs")
        wait_until(lambda: rig.model()["target"]["replicas"][0]["state"] == "ready", "it is ready")
        assert scores(rig, rows) == answered


def test_an_owners_failure_ends_the_cycle_in_the_owners_words(tmp_path: Path) -> None:
    """What the function raised is in the sentence, with its line; nothing is tried again, since it would only fail again."""
    write_csv(tmp_path / "data.csv", rows_of(1))
    with running(tmp_path) as rig:
        rig.apply(small_spec(train=owners_train(tmp_path, broken=True), budget={"cycles": 1, "per": "7d"}))
        rig.wait_for(lambda m: m["cycle"] is None and "budget" in m["sentence"], "the only cycle has ended")
        cycle = rig.cycles()[1]
        assert (cycle["outcome"], cycle["attempt"], cycle["challenger"]) == ("failed", 1, None)
        assert "train.entrypoint: own.training:fit failed: ValueError: the weights do not converge" in cycle["sentence"]
        assert "training.py" in cycle["sentence"]
        assert cycle["sentence"].endswith("; no version serves yet")


def test_a_keras_network_serves(tmp_path: Path) -> None:
    """`tensorflow.mlp` is trained, judged, packaged and served like any other, and has learnt."""
    write_csv(tmp_path / "data.csv", rows_of(1))
    parameters = {"units": 16, "layers": 1, "epochs": 8, "learning_rate": 0.01}
    rows = random_rows(2, 60)
    with running(tmp_path) as rig:
        model = rig.first_champion(small_spec(train={"component": "tensorflow.mlp", "parameters": parameters}))
        assert model["versions"][0]["component"] == "tensorflow.mlp"
        assert model["score"] > 0.8
        right = [(score > 0.5) == truth(row) for score, row in zip(scores(rig, rows), rows, strict=True)]
        assert sum(right) > 45
