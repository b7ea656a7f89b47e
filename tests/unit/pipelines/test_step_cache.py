"""The step cache: whole entries or none, with any number of processes, and bounded."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipelines.cache import MANIFEST, StepCache, digest_json
from pipelines.jobs.port import PermanentJobError, RetryableJobError
from pipelines.steps import code_digest, run_step

Build = Callable[[Path], Mapping[str, Any]]


def writing(text: str, calls: list[str] | None = None) -> Build:
    def build(folder: Path) -> dict[str, Any]:
        (folder / "sub").mkdir()
        (folder / "sub" / "out.txt").write_text(text)
        if calls is not None:
            calls.append(text)
        return {"text": text[:10]}

    return build


def test_second_call_does_not_build_again(tmp_path: Path) -> None:
    """The first call builds, the second finds files and result."""
    cache, calls = StepCache(tmp_path), []
    first = cache.get_or_build("read", "k1", writing("a", calls), why="test")
    second = cache.get_or_build("read", "k1", writing("b", calls))
    assert (first.cached, second.cached, calls) == (False, True, ["a"])
    assert first.path == second.path == tmp_path / "read" / "k1"
    assert second.result == {"text": "a"}
    assert (second.path / "sub" / "out.txt").read_text() == "a"
    assert json.loads((second.path / MANIFEST).read_text())["lineage"] == {"why": "test"}


@pytest.mark.parametrize("damage", ["changed", "missing", "extra", "manifest cut", "manifest gone", "old format"])
def test_damaged_entry_is_built_again(tmp_path: Path, damage: str) -> None:
    """Whatever happened to an entry's files, it is noticed, thrown away and replaced."""
    cache = StepCache(tmp_path)
    path = cache.get_or_build("read", "k1", writing("good")).path
    manifest = path / MANIFEST
    match damage:
        case "changed":
            (path / "sub" / "out.txt").write_text("evil")
        case "missing":
            (path / "sub" / "out.txt").unlink()
        case "extra":
            (path / "more.txt").write_text("x")
        case "manifest cut":
            manifest.write_bytes(manifest.read_bytes()[:-9])
        case "manifest gone":
            manifest.unlink()
        case "old format":
            manifest.write_text(manifest.read_text().replace('"format":1', '"format":0'))
    assert cache.find("read", "k1") is None
    again = cache.get_or_build("read", "k1", writing("good"))
    assert not again.cached
    assert cache.find("read", "k1") is not None
    assert (path / "sub" / "out.txt").read_text() == "good"
    assert [child.name for child in (tmp_path / "read").iterdir()] == ["k1"]


def test_compiled_files_of_an_owners_module_do_no_damage(tmp_path: Path) -> None:
    """Loading a model's code from the cache leaves __pycache__ behind, which is not part of the entry."""
    cache = StepCache(tmp_path)
    path = cache.get_or_build("train", "k1", writing("good")).path
    (path / "sub" / "__pycache__").mkdir()
    (path / "sub" / "__pycache__" / "m.pyc").write_bytes(b"x")
    assert cache.find("train", "k1") is not None


def test_failed_build_leaves_nothing_behind(tmp_path: Path) -> None:
    """An error of the step passes through as it is, and the next call builds."""

    def broken(folder: Path) -> dict[str, Any]:
        (folder / "half.txt").write_text("half")
        raise PermanentJobError("no")

    cache = StepCache(tmp_path)
    with pytest.raises(PermanentJobError, match="no"):
        cache.get_or_build("read", "k1", broken)
    assert list((tmp_path / "read").iterdir()) == []
    assert not cache.get_or_build("read", "k1", writing("a")).cached


def test_full_disk_is_retryable_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """No space left while building: retry later; nothing half-written stays."""

    def full(folder: Path) -> dict[str, Any]:
        (folder / "half.txt").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RetryableJobError, match="the disk is full"):
        StepCache(tmp_path).get_or_build("read", "k1", full)
    assert list((tmp_path / "read").iterdir()) == []


def test_cache_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file in the way of the folder is an error that names it."""
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(RetryableJobError, match=str(tmp_path / "cache")):
        StepCache(tmp_path / "cache").get_or_build("read", "k1", writing("a"))


def _worker(root: str, barrier: Any, results: Any) -> None:
    def build(folder: Path) -> dict[str, Any]:
        barrier.wait(timeout=30)  # both are building now
        return writing("same")(folder)

    entry = StepCache(Path(root)).get_or_build("read", "k1", build)
    results.put((entry.path / "sub" / "out.txt").read_text())


def test_two_processes_that_build_at_once_both_get_a_whole_entry(tmp_path: Path) -> None:
    """Both build, one is kept, both read the same."""
    fork = multiprocessing.get_context("fork")
    barrier, results = fork.Barrier(2), fork.Queue()
    workers = [fork.Process(target=_worker, args=(str(tmp_path), barrier, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=30) for _ in workers] == ["same", "same"]
    for worker in workers:
        worker.join(timeout=30)
        assert worker.exitcode == 0
    assert [child.name for child in (tmp_path / "read").iterdir()] == ["k1"]


def test_entry_that_another_process_finished_first_is_kept(tmp_path: Path) -> None:
    """The loser of the race gets the winner's entry."""
    cache = StepCache(tmp_path)

    def slow(folder: Path) -> dict[str, Any]:
        cache.get_or_build("read", "k1", writing("winner"))
        return writing("loser")(folder)

    assert cache.get_or_build("read", "k1", slow).result == {"text": "winner"}


def test_prune_deletes_the_least_recently_used(tmp_path: Path) -> None:
    """Oldest use first, until the rest fits; what is in use stays whatever its size; leftovers of killed processes go."""
    cache = StepCache(tmp_path)
    for age, key in enumerate(["newest", "middle", "oldest"]):
        path = cache.get_or_build("read", key, writing("x" * 10_000)).path
        os.utime(path / MANIFEST, (time.time() - 3600 * (age + 1),) * 2)
    leftover = tmp_path / "read" / ".new-dead"
    leftover.mkdir()
    os.utime(leftover, (time.time() - 7200,) * 2)
    (tmp_path / "read" / ".new-alive").mkdir()
    assert cache.prune(25_000, in_use_s=86_400) == 0
    freed = cache.prune(25_000, in_use_s=60)
    assert freed > 10_000
    assert sorted(child.name for child in (tmp_path / "read").iterdir()) == [".new-alive", "middle", "newest"]
    assert cache.find("read", "middle") is not None  # used now, so newest goes first
    cache.prune(15_000, in_use_s=60)
    assert cache.find("read", "newest") is None
    assert cache.find("read", "middle") is not None


def test_prune_of_no_cache_at_all(tmp_path: Path) -> None:
    """Nothing there, nothing to do; the hourly one does not repeat itself."""
    assert StepCache(tmp_path / "none").prune(0) == 0
    cache = StepCache(tmp_path)
    path = cache.get_or_build("read", "k1", writing("x")).path
    cache.prune_hourly(0)
    os.utime(path / MANIFEST, (0, 0))
    cache.prune_hourly(0)
    assert cache.find("read", "k1") is not None


def module_of(folder: Path, source: str) -> ModuleType:
    path = folder / "step_code.py"
    path.write_text(source)
    module = ModuleType("step_code")
    module.__file__ = str(path)
    return module


def test_key_follows_inputs_code_libraries_and_parameters(tmp_path: Path) -> None:
    """Change any of them and the step is computed again; change none and it is not."""
    cache = StepCache(tmp_path / "cache")
    calls: list[str] = []

    def run(
        inputs: list[str], source: str, parameters: dict[str, Any], libraries: tuple[str, ...] = ("numpy",)
    ) -> bool:
        module = module_of(tmp_path, source)
        entry = run_step(
            cache,
            "step",
            writing("x", calls),
            inputs=inputs,
            modules=[module],
            distributions=libraries,
            parameters=parameters,
        )
        return entry.cached

    base = (["sha256:1"], "x = 1", {"p": 1, "q": 2})
    assert [run(*base), run(["sha256:1"], "x = 1", {"q": 2, "p": 1})] == [False, True]
    assert not run(["sha256:2"], "x = 1", {"p": 1, "q": 2})
    assert not run(["sha256:1"], "x = 2", {"p": 1, "q": 2})
    assert not run(["sha256:1"], "x = 1", {"p": 1, "q": 3})
    assert not run(*base, libraries=("numpy", "pandas"))
    assert run(*base)
    assert len(calls) == 5


def test_digests_do_not_depend_on_order() -> None:
    """Modules in any order, JSON keys in any order."""
    first, second = module_a(), module_b()
    assert code_digest([first, second], ["numpy", "no-such-thing"]) == code_digest(
        [second, first], ["no-such-thing", "numpy"]
    )
    assert digest_json({"a": 1, "b": [1, 2]}) == digest_json({"b": [1, 2], "a": 1})


def module_a() -> ModuleType:
    import pipelines.cache

    return pipelines.cache


def module_b() -> ModuleType:
    import pipelines.steps

    return pipelines.steps
