"""`ratchet backtest` in front of a process that only talks like the real one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from controller.cli import main

POLICY = """
apiVersion: ratchet.dev/v1
kind: ModelPolicy
metadata: {name: toy}
spec:
  task: binary
  data: {source: {kind: csv, path: rows.csv}, label: y}
  train: {component: sklearn.ridge}
  objective: {metric: accuracy}
"""
RESULT: dict[str, Any] = {
    "model": "toy", "rows": 400, "first_row": 100, "metric": {"name": "accuracy", "higher_is_better": True},
    "ratchet": {
        "score": 0.81, "retrains": 2, "promotions": 1, "rejected": 1, "rolled_back": 0, "failed": 0, "held": 1, "train_seconds": 4.0,
        "windows": [],
    },
    "baselines": {
        "static": {"score": 0.7}, "periodic": {"score": None, "retrains": 2, "window": "expanding"}, "last_label": {"score": 0.5},
    },
    "events": [{"row": 120, "kind": "cycle.opened", "sentence": "retraining, because of \x1b[31mred"}], "seconds": 9.0,
}  # fmt: skip


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `backtest` that writes its request to a file and answers with the lines of another."""
    fake = tmp_path / "fake" / "backtest"
    fake.mkdir(parents=True)
    (fake / "__init__.py").touch()
    (fake / "__main__.py").write_text(
        "import pathlib, sys\n"
        "here = pathlib.Path(__file__).parent\n"
        "(here / 'request').write_text(sys.stdin.readline())\n"
        "print((here / 'answer').read_text(), flush=True, end='')\n"
        "print('the last words', file=sys.stderr)\n"
        "sys.exit(7)\n"
    )
    monkeypatch.chdir(tmp_path / "fake")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "toy.yaml").write_text(POLICY)
    return fake


def answer(process: Path, *messages: dict[str, Any]) -> None:
    (process / "answer").write_text("".join(json.dumps(message) + "\n" for message in messages))


def request(process: Path) -> dict[str, Any]:
    return json.loads((process / "request").read_text())  # type: ignore[no-any-return]


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, process: Path, *args: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["ratchet", "backtest", str(process.parents[1] / "toy.yaml"), *args])
    with pytest.raises(SystemExit) as ended:
        main.main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_result_as_table_and_data(capsys: Any, monkeypatch: Any, process: Path) -> None:
    """People get a table; programs get the result, whole and alone on standard output."""
    progress = {"row": 250, "rows": 400, "first_row": 100, "promotions": 1, "sentence": "v1 serves"}
    answer(process, {"progress": progress}, {"result": RESULT}, {"best": 0})
    code, out, err = run(capsys, monkeypatch, process)
    assert code == 0
    for words in (
        "toy: 300 rows replayed",
        "0.8100",
        "2 retrains, 1 promotion, 1 rejected, 1 window held back",
        "cycle.opened",
    ):
        assert words in out
    assert "\x1b[31m" not in out
    assert "row 250 of 400  1 promotion  v1 serves" in err
    assert json.loads(run(capsys, monkeypatch, process, "-o", "json")[1]) == RESULT
    assert YAML(typ="safe").load(run(capsys, monkeypatch, process, "-o", "yaml")[1])["rows"] == 400


def test_request_says_all_that_was_asked(capsys: Any, monkeypatch: Any, process: Path, tmp_path: Path) -> None:
    """Paths are absolute, since the process is another one; the policy is as it was read."""
    data = tmp_path / "fake" / "rows.csv"
    data.write_text("x,y\n")
    answer(process, {"result": RESULT}, {"best": 0})
    args = ["--data", "rows.csv", "--seed", "7", "--initial", "1500", "--report", "out.html", "--fresh", "--keep"]
    assert run(capsys, monkeypatch, process, *args)[0] == 0
    asked = request(process)
    (setting,) = asked.pop("settings")
    assert setting["policy"]["spec"]["objective"]["metric"] == "accuracy"
    assert asked == {
        "policy_dir": str(tmp_path), "data": str(data), "log_dir": str(tmp_path / "home" / "log" / "toy"), "seed": 7,
        "initial": "1500", "root": str(tmp_path / "home" / "backtests"), "fresh": True, "keep": True,
        "report": str(tmp_path / "fake" / "out.html"), "cache": None,
    }  # fmt: skip


def test_grid_marks_the_best(capsys: Any, monkeypatch: Any, process: Path) -> None:
    """A row a setting; the best has a star; as data, a list with each setting in front of its result."""
    better = {**RESULT, "ratchet": {**RESULT["ratchet"], "score": 0.9}}
    answer(process, {"result": RESULT}, {"result": better}, {"best": 1})
    code, out, _ = run(capsys, monkeypatch, process, "--grid", "cooldown=6h,12h")
    assert code == 0
    assert next(line.split()[:2] for line in out.splitlines() if line.startswith("*")) == ["*", "12h"]
    assert [one["setting"] for one in request(process)["settings"]] == [{"cooldown": "6h"}, {"cooldown": "12h"}]
    assert request(process)["cache"].startswith(request(process)["root"])
    found = json.loads(run(capsys, monkeypatch, process, "--grid", "cooldown=6h,12h", "-o", "json")[1])
    assert [(one["setting"], one["ratchet"]["score"]) for one in found] == [
        ({"cooldown": "6h"}, 0.81),
        ({"cooldown": "12h"}, 0.9),
    ]


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        (["--data", "none.csv"], 2, "--data: no such file"), (["--report", "no/out.html"], 2, "--report: no such folder"),
        (["--grid", "cooldown"], 2, "--grid: must be KEY=VALUE"), (["--grid", "cooldown=x"], 5, "toy.yaml:5: spec.cooldown: "),
        (["--grid", "coldown=1h"], 5, "did you mean 'cooldown'?"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_runs(
    capsys: Any, monkeypatch: Any, process: Path, args: list[str], code: int, expected: str
) -> None:
    """With the exit code of its kind; no process is started."""
    found, _, err = run(capsys, monkeypatch, process, *args)
    assert (found, expected in err) == (code, True), err
    assert not (process / "request").exists()


def test_a_policy_with_problems_is_refused(capsys: Any, monkeypatch: Any, process: Path, tmp_path: Path) -> None:
    """All of them, with file and line."""
    (tmp_path / "toy.yaml").write_text(POLICY.replace("label: y", "lable: y").replace("accuracy", "acuracy"))
    code, _, err = run(capsys, monkeypatch, process)
    assert code == 5
    assert err.count("toy.yaml:") >= 2


@pytest.mark.parametrize(("kind", "code"), [("refused", 1), ("usage", 2)])
def test_reasons_of_the_process_are_passed_on(
    capsys: Any, monkeypatch: Any, process: Path, kind: str, code: int
) -> None:
    """Its sentence, and the exit code of its kind."""
    answer(process, {"error": "--initial: must leave rows", "kind": kind})
    found, out, err = run(capsys, monkeypatch, process)
    assert (found, out) == (code, "")
    assert err == "ratchet: --initial: must leave rows\n"


def test_a_process_that_dies_is_told_of(capsys: Any, monkeypatch: Any, process: Path) -> None:
    """How it ended, and what it said last."""
    answer(process)
    code, _, err = run(capsys, monkeypatch, process)
    assert code == 1
    assert "ended with code 7" in err
    assert "the last words" in err
