"""Recognising a refused model by its answers: the same rows in every cycle, and the nearest of what was refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from model_folders import context, hold_out, model_folder, policy

from evaluators.answers import Answers, ModelFolder, ProcessFailedError
from evaluators.judge import judge
from evaluators.probe import ANSWERS_KEPT, PROBE_ROWS, Probe


def _asker(shift: float = 0.0, fail: bool = False) -> Any:
    """Answers with the column `good`, moved a little."""

    def ask(model: ModelFolder, rows: Path, *, row_count: int, **_rest: Any) -> Answers:
        if fail and rows.name == "rows.parquet":
            raise ProcessFailedError("no memory")
        scores = pd.read_parquet(rows)["good"].to_numpy(dtype=float)
        assert len(scores) == row_count
        return Answers(scores=np.clip(scores + shift, 0, 1), latency_ms=np.zeros(0))

    return ask


def _judge(
    tmp_path: Path, cycle: int | None, refused: list[int], *, seed: int = 0, features: Any = None, **ways: Any
) -> dict[str, Any]:
    folder = tmp_path / f"c{cycle}" / "model"
    if not folder.exists():
        model_folder(tmp_path / f"c{cycle}", columns=["good"])
    if features is not None:
        described = json.loads((folder / "model.json").read_text())
        (folder / "model.json").write_text(json.dumps({**described, "features": features}))
    rows = tmp_path / f"holdout-{seed}.parquet"
    inputs = {
        "policy": policy(), "home": str(tmp_path), "model": "flights", "model_dir": str(folder), "champion": None,
        "prepared": hold_out(rows), "cycle": cycle, "refused": refused, "seed": seed,
    }  # fmt: skip
    result = judge(inputs, context(tmp_path), ask=_asker(**ways))
    json.dumps(result, allow_nan=False)
    return result


def test_the_nearest_refused_model_is_named(tmp_path: Path) -> None:
    """Of those refused, not of all that ever answered; by the largest difference on the same rows."""
    assert _judge(tmp_path, 1, [])["likeness"] is None
    _judge(tmp_path, 2, [1], shift=0.2)
    _judge(tmp_path, 3, [1, 2], shift=0.001)
    found = _judge(tmp_path, 4, [1, 2], shift=0.004)["likeness"]
    assert (found["cycle"], found["rows"]) == (1, PROBE_ROWS)
    assert 0.003 < found["difference"] <= 0.0041
    assert _judge(tmp_path, 5, [2], shift=0.0)["likeness"]["difference"] > 0.1


def test_the_rows_stay_the_same_whatever_the_hold_out(tmp_path: Path) -> None:
    """The first hold-out's sample is asked in every cycle, and holds at most 256 rows."""
    _judge(tmp_path, 1, [], seed=1)
    (rows,) = (tmp_path / "probes" / "flights").glob("*/rows.parquet")
    before = rows.read_bytes()
    assert len(pd.read_parquet(rows)) == PROBE_ROWS
    assert _judge(tmp_path, 2, [1], seed=2)["likeness"] == {"cycle": 1, "difference": 0.0, "rows": PROBE_ROWS}
    assert rows.read_bytes() == before


def test_models_with_other_features_are_not_alike(tmp_path: Path) -> None:
    """They get rows of their own, and are compared with none that had others."""
    _judge(tmp_path, 1, [])
    assert _judge(tmp_path, 2, [1], features=[{"name": "good", "kind": "numeric"}])["likeness"] is None
    assert len(list((tmp_path / "probes" / "flights").iterdir())) == 2


def test_a_probe_that_fails_fails_no_verdict(tmp_path: Path) -> None:
    """Recognition is lost for once, and said; the verdict stands. Where no cycle is told, nothing is kept."""
    result = _judge(tmp_path, 1, [], fail=True)
    assert result["verdict"] == "pass"
    assert result["likeness_said"] == "not likened to refused models: no memory"
    assert _judge(tmp_path / "other", None, [])["likeness"] is None
    assert not (tmp_path / "other" / "probes").exists()


def test_answers_of_old_challengers_go_but_those_of_refused_ones(tmp_path: Path) -> None:
    """What nobody compares with any more takes no room."""
    probe = Probe(folder=tmp_path)
    for cycle in range(1, ANSWERS_KEPT + 4):
        probe.keep_answers(cycle, np.zeros(3), [2])
    kept = {int(path.stem[1:]) for path in tmp_path.glob("c*.npy")}
    assert kept == {2, *range(4, ANSWERS_KEPT + 4)}
    (tmp_path / "c2.npy").write_bytes(b"broken")
    assert probe.nearest(np.zeros(3), [1, 2], 1.0) is None
