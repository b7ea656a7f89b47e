"""The work folders of replays: what stays, what goes, and who may write."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import streams

from backtest import running
from backtest.replay import NothingToReplayError


def asked(tmp_path: Path, **options: Any) -> running.Asked:
    return running.Asked(**{
        "policy": streams.policy(tmp_path), "policy_dir": tmp_path, "data": None, "log_dir": tmp_path / "log", "seed": None,
        "initial": None,
        "root": tmp_path / "root", "fresh": False, "keep": False,
    } | options)  # fmt: skip


@pytest.fixture
def replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders in which something was replayed, without replaying; each gets a model and a record."""
    folders: list[Path] = []

    def replay(_stream: Any, folder: Path, *_: Any) -> dict[str, Any]:
        folders.append(folder)
        assert not (folder / "quality").exists(), "what a stopped replay knew at its end is not known at the beginning"
        for name in ("record", "work", "cache", "quality"):
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "file").touch()
        return {"run": len(folders)}

    monkeypatch.setattr(running, "_replayed", replay)
    streams.stream(tmp_path)
    return folders


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_only_the_result_stays(tmp_path: Path, replayed: list[Path]) -> None:
    """Unless all is to be kept; asked again it is replayed again, unless the result will do."""
    assert running.run(asked(tmp_path), print) == {"run": 1}
    assert names(replayed[0]) == ["lock", "result.json"]
    assert running.run(asked(tmp_path), print) == {"run": 2}
    assert running.run(asked(tmp_path, take=True), print) == {"run": 2}
    assert running.run(asked(tmp_path, take=True, fresh=True), print) == {"run": 3}
    running.run(asked(tmp_path, keep=True), print)
    assert {"record", "work", "cache"} <= set(names(replayed[0]))
    assert len({str(folder) for folder in replayed}) == 1


def test_other_questions_have_other_folders(tmp_path: Path, replayed: list[Path]) -> None:
    """By seed, by where it starts, by the policy."""
    for options in ({}, {"seed": 1}, {"initial": "100"}, {"policy": streams.policy(tmp_path, metric="roc_auc")}):
        running.run(asked(tmp_path, **options), print)
    running.run(asked(tmp_path, seed=0), print)
    assert len({str(folder) for folder in replayed}) == 4, "seed 0 is the policy's own"


def test_settings_of_a_grid_share_a_cache(tmp_path: Path, replayed: list[Path]) -> None:
    """It outlives each of them."""
    cache = tmp_path / "root" / "cache-1"
    for seed in (1, 2):
        running.run(asked(tmp_path, seed=seed, cache=cache), print)
    assert (cache / "file").exists()
    assert [names(folder) for folder in replayed] == [["lock", "result.json"]] * 2


def test_old_folders_go_unless_they_are_in_use(
    tmp_path: Path, replayed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest are kept beside the present one; what another process holds is left alone, and what is none of ours too."""
    monkeypatch.setattr(running, "FOLDERS_KEPT", 2)
    root = tmp_path / "root"
    for i in range(5):
        (root / f"old{i}").mkdir(parents=True)
        (root / f"old{i}" / "lock").touch()
        os.utime(root / f"old{i}" / "lock", (1000 + i, 1000 + i))
    (root / "mine").mkdir()
    holder = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", holder, root / "old0" / "lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        running.run(asked(tmp_path), print)
        process.kill()
    assert {path.name for path in root.iterdir()} - {folder.name for folder in replayed} == {
        "old0",
        "old3",
        "old4",
        "mine",
    }


def test_first_rows_that_bring_no_version_are_an_answer(tmp_path: Path) -> None:
    """With the controller's reason, instead of a replay of nothing."""
    table = streams.rows(300)
    table["y"] = [1] * 80 + table["y"][80:]
    streams.stream(tmp_path, table)
    with pytest.raises(NothingToReplayError, match="the first 75 rows bring no version: "):
        running.run(asked(tmp_path), lambda _: None)
