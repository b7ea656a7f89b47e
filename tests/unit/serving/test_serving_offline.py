"""`python -m serving.predict` scores files as serving scores requests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from serving_rig import PROJECT, fitted, json_rows, rows, write_model, write_multiclass

from serving import offline, predict
from serving.frame import to_frame
from serving.model import load_model
from serving.offline import score_file, time_rows
from serving.rows_file import read_columns


def run(model_dir: Path, source: Path, output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The command line, as a process of its own."""
    command = [sys.executable, "-m", "serving.predict", "--model-dir", str(model_dir), "--input", str(source)]
    return subprocess.run(
        [*command, "--output", str(output), *options],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_file_is_scored_with_latencies(tmp_path: Path) -> None:
    """The output holds the estimator's scores, and as many single-row latencies as asked for."""
    model = write_model(tmp_path / "model")
    rows(50).assign(bought=1, when=pd.Timestamp("2024-01-01")).to_parquet(tmp_path / "rows.parquet")
    done = run(model, tmp_path / "rows.parquet", tmp_path / "out.npz", "--latency-rows", "7")
    assert (done.returncode, done.stderr) == (0, "")
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        np.testing.assert_allclose(found["scores"], fitted().predict_proba(rows(50))[:, 1])
        assert found["latency_ms"].shape == (7,)
        assert (found["latency_ms"] > 0).all()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("rows", "rows.parquet: is not a whole Parquet file"),
        ("model", "model.json: "),
        ("column", "column 'age' (large_string) is not numeric"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(
    tmp_path: Path, damage: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged file, model folder or column ends with status 2, names itself on stderr, and writes nothing."""
    model, source = write_model(tmp_path / "model"), tmp_path / "rows.parquet"
    table = rows(5)
    if damage == "column":
        table["age"] = "old"
    table.to_parquet(source)
    if damage == "rows":
        source.write_bytes(source.read_bytes()[:-20])
    if damage == "model":
        (model / "model.json").write_text("{")
    options = ["--model-dir", str(model), "--input", str(source), "--output", str(tmp_path / "out.npz")]
    monkeypatch.setattr(sys, "argv", ["serving.predict", *options])
    assert predict.main() == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out.npz").exists()


def test_rows_have_the_types_of_serving(tmp_path: Path) -> None:
    """Whatever types a Parquet file has, the frame is the one that the same rows as JSON give."""
    model = load_model(write_model(tmp_path))
    table = pa.table(
        {
            "age": pa.array([40, None, 42], pa.int32()),
            "member": pa.array([True, False, None]),
            "city": pa.array(["Rome", None, "Oslo"]).dictionary_encode(),
            "unused": [1, 2, 3],
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    columns = read_columns(model.schema, tmp_path / "rows.parquet")
    sent: list[dict[str, object]] = [
        {"age": 40, "member": True, "city": "Rome"},
        {"member": False},
        {"age": 42, "city": "Oslo"},
    ]
    online = model.schema.columns([model.schema.row(r, i) for i, r in enumerate(sent)])
    pd.testing.assert_frame_equal(to_frame(columns), to_frame(online))
    assert np.isfinite(model.predict(columns)).all()
    for name, values in read_columns(model.schema, tmp_path / "rows.parquet", rows_max=2).items():
        pd.testing.assert_series_equal(pd.Series(values), pd.Series(columns[name][:2]))


def test_large_files_are_scored_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores do not depend on the size of the pieces."""
    monkeypatch.setattr(offline, "CHUNK_ROWS", 7)
    model = load_model(write_multiclass(tmp_path))
    rows(20).to_parquet(tmp_path / "rows.parquet")
    scores, columns = score_file(model, tmp_path / "rows.parquet")
    assert (scores.shape, len(columns)) == ((20, 3), 4)
    np.testing.assert_allclose(scores, model.predict(columns))


def test_no_rows_give_no_scores(tmp_path: Path) -> None:
    """An empty file is scored to an empty array of the right width, and no latency."""
    model = load_model(write_multiclass(tmp_path))
    rows(1).head(0).to_parquet(tmp_path / "rows.parquet")
    scores, columns = score_file(model, tmp_path / "rows.parquet")
    assert scores.shape == (0, 3)
    assert time_rows(model, columns, 5).shape == (0,)


def test_offline_and_online_scores_are_the_same(tmp_path: Path) -> None:
    """The judge sees the numbers that clients will get."""
    model = load_model(write_model(tmp_path))
    rows(30).to_parquet(tmp_path / "rows.parquet")
    online = model.predict(model.schema.columns([model.schema.row(r, i) for i, r in enumerate(json_rows(30))]))
    np.testing.assert_array_equal(score_file(model, tmp_path / "rows.parquet")[0], online)


def test_infinite_numbers_are_missing(tmp_path: Path) -> None:
    """An infinite number in a file counts as missing, as it does in training."""
    model = load_model(write_model(tmp_path))
    rows(3).assign(age=[1.0, np.inf, -np.inf]).to_parquet(tmp_path / "rows.parquet")
    columns = read_columns(model.schema, tmp_path / "rows.parquet")
    assert np.isnan(columns["age"]).tolist() == [False, True, True]
