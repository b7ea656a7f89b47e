"""Replicas as real processes: killed, crowded, starved of disk, drained. What they acknowledged is always on record."""

from __future__ import annotations

import json
import os
import resource
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

import pytest
from serving_rig import PROJECT, Replica, fitted, json_rows, logged, replica, rows, wait_until, write_model
from sklearn.ensemble import ExtraTreesClassifier

pytestmark = pytest.mark.slow


class Load:
    """Clients that predict and report labels as fast as they can, noting what was acknowledged."""

    def __init__(self, target: Replica, clients: int = 4) -> None:
        self._target = target
        self._prefix = secrets.token_hex(4)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.predicted: set[str] = set()
        self.labelled: set[str] = set()
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._send, args=(c,)) for c in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send(self, client: int) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            ids = [f"{self._prefix}-{client}-{number}-{i}" for i in range(3)]
            try:
                body = {"instances": json_rows(3, seed=number % 5), "ids": ids}
                status, answer = self._target.post("/v1/models/shop:predict", body)
                labels = {"labels": [{"id": row_id, "label": 1} for row_id in ids]}
                labelled, _ = self._target.post("/v1/models/shop/feedback", labels) if status == 200 else (0, None)
            except (OSError, urllib.error.URLError, HTTPException) as error:
                with self._lock:
                    self.failures.append(repr(error))
                if self._target.process.poll() is not None:
                    return
                continue
            with self._lock:
                if status == 200:
                    self.predicted.update(answer["ids"])
                else:
                    self.failures.append(f"{status} {answer}")
                if labelled == 200:
                    self.labelled.update(ids)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small binary model."""
    return write_model(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def standing(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    """A replica of two workers that several tests use, and leave serving."""
    with replica(model_dir, tmp_path_factory.mktemp("standing"), "--workers", "2", "--rotate-rows", "40") as made:
        yield made.wait_ready()


def on_record(target: Replica, load: Load) -> None:
    """Everything acknowledged is in the log, once a role."""
    found = [row["id"] for row in logged(target.log_dir)]
    assert load.predicted <= set(found)
    assert len(found) == len(set(found))
    assert load.labelled <= {row["id"] for row in logged(target.log_dir, "labels")}
    assert len(load.predicted) > 30


def test_a_killed_worker_is_replaced_and_loses_nothing_acknowledged(standing: Replica) -> None:
    """kill -9 of a worker under load: another takes its place on the same port, and every acknowledged id is in the log."""
    before = standing.workers()
    with Load(standing) as load:
        wait_until(lambda: len(load.predicted) > 60)
        os.kill(before[0], signal.SIGKILL)
        wait_until(lambda: len(standing.workers()) == 2 and before[0] not in standing.workers())
        count = len(load.predicted)
        wait_until(lambda: len(load.predicted) > count + 60)
    assert standing.process.poll() is None
    on_record(standing, load)


def test_a_killed_replica_loses_nothing_acknowledged(model_dir: Path, tmp_path: Path) -> None:
    """kill -9 of all its processes under load: every acknowledged id is in the log, and a successor makes segments of it."""
    with replica(model_dir, tmp_path, "--workers", "2") as first:
        first.wait_ready()
        with Load(first) as load:
            wait_until(lambda: len(load.predicted) > 60)
            for pid in [first.process.pid, *first.workers()]:
                os.kill(pid, signal.SIGKILL)
            first.process.wait()
    on_record(first, load)
    assert list((first.log_dir / "predictions").glob("*.jsonl"))
    with replica(model_dir, tmp_path, name="second") as second:
        second.wait_ready()
        wait_until(lambda: not list((first.log_dir / "predictions").glob("*.jsonl")))
    on_record(first, load)


def test_workers_end_when_their_parent_is_killed(model_dir: Path, tmp_path: Path) -> None:
    """Nobody is left on the port after the parent died: the workers drain and end by themselves."""
    with replica(model_dir, tmp_path, "--workers", "2") as served:
        workers = served.wait_ready().workers()
        served.predict(json_rows(1), ids=["a"])
        served.process.kill()
        served.process.wait()
        wait_until(lambda: not any(_runs(pid) for pid in workers))
    assert [row["id"] for row in logged(served.log_dir)] == ["a"]
    assert not list((served.log_dir / "predictions").glob("*.jsonl"))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_sigterm_answers_what_was_taken_and_closes_the_log(model_dir: Path, tmp_path: Path) -> None:
    """A drained replica ends with status 0, every request that it took was answered, and its journals are segments."""
    with replica(model_dir, tmp_path, "--workers", "2") as served:
        served.wait_ready()
        with Load(served) as load:
            wait_until(lambda: len(load.predicted) > 60)
            served.process.terminate()
            assert served.process.wait(20) == 0
    assert not [failure for failure in load.failures if failure[0].isdigit()], "only connections not taken may fail"
    on_record(served, load)
    assert not list((served.log_dir / "predictions").glob("*.jsonl"))


def test_a_full_disk_stops_labels_but_not_predictions(standing: Replica) -> None:
    """Without room for the log predictions are answered, marked and counted; labels are refused; both recover."""
    standing.predict(json_rows(1), ids=["disk-before"])
    failed = {kind: total(standing, "ratchet_log_failures_total", f'kind="{kind}"') for kind in ("prediction", "label")}
    limit_files(standing, 0)
    for i in range(8):
        assert standing.predict(json_rows(1), ids=[f"disk-unlogged-{i}"])["ids"] == [f"disk-unlogged-{i}"]
        status, body = standing.post("/v1/models/shop/feedback", {"labels": [{"id": "disk-before", "label": 1}]})
        assert (status, "send them again" in body["error"]) == (507, True)
    for kind, before in failed.items():
        assert total(standing, "ratchet_log_failures_total", f'kind="{kind}"') == before + 8
    limit_files(standing, resource.RLIM_INFINITY)
    standing.predict(json_rows(1), ids=["disk-after"])
    assert standing.post("/v1/models/shop/feedback", {"labels": [{"id": "disk-before", "label": 1}]})[0] == 200
    found = [row["id"] for row in logged(standing.log_dir) if row["id"].startswith("disk")]
    assert sorted(found) == ["disk-after", "disk-before"]


def limit_files(target: Replica, size_bytes: int) -> None:
    """Files of all workers end at so many bytes, as on a full disk."""
    for pid in target.workers():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


def total(target: Replica, name: str, label: str = "") -> float:
    """The sum of a counter's series, of those with the label if one is given."""
    lines = [line for line in target.get("/metrics")[1].splitlines() if line.startswith(name + "{") and label in line]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_workers_count_together(standing: Replica) -> None:
    """Whichever worker is asked for metrics answers for all, a label finds its prediction in another, and a death lowers nothing."""
    names = ("ratchet_predictions_total", "ratchet_feedback_total", "ratchet_feedback_unmatched_total")
    before = [total(standing, name) for name in names]
    for i in range(20):
        standing.predict(json_rows(1), ids=[f"counted-{i}"])
    for i in range(20):
        standing.post("/v1/models/shop/feedback", {"labels": [{"id": f"counted-{i}", "label": 0}]})
    assert [total(standing, name) - was for name, was in zip(names, before, strict=True)] == [20, 20, 0]
    killed = standing.workers()
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(standing.workers()) == 2 and not set(killed) & set(standing.workers()))
    wait_until(lambda: _answers(standing))
    assert total(standing, names[0]) == before[0] + 20


def _answers(target: Replica) -> bool:
    try:
        return target.get("/v2/health/ready")[0] == 200
    except (OSError, urllib.error.URLError, HTTPException):
        return False


def test_two_replicas_share_a_log_in_simulated_time(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two replicas write one folder, neither takes over what the other still writes, and rows have the clock file's time."""
    document = {"sim_origin": 1_357_000_000, "real_origin": time.time(), "speed": 3600}
    (tmp_path / "clock.json").write_text(json.dumps(document))
    monkeypatch.setenv("RATCHET_CLOCK", str(tmp_path / "clock.json"))
    with replica(model_dir, tmp_path, name="a") as first, replica(model_dir, tmp_path, name="b") as second:
        first.wait_ready()
        first.predict(json_rows(1), ids=["a1"])
        second.wait_ready()
        second.predict(json_rows(1), ids=["b1"])
        first.predict(json_rows(1), ids=["a2"])
        found = logged(tmp_path / "log")
        assert sorted(row["id"] for row in found) == ["a1", "a2", "b1"]
        assert all(1_357_000_000 < row["at"] < 1_357_000_000 + 3600 * 120 for row in found)
        assert all(path.name.startswith("201") for path in (tmp_path / "log" / "predictions").glob("*.jsonl"))
    assert sorted(row["id"] for row in logged(tmp_path / "log")) == ["a1", "a2", "b1"]


HANGING = """
import time
def load(model_dir):
    class Loaded:
        def predict(self, frame):
            if (frame["age"] == 99).any():
                time.sleep(600)
            return frame["age"] * 0 + 0.5
    return Loaded()
"""


def test_a_worker_whose_model_hangs_is_replaced(tmp_path: Path) -> None:
    """A call that never ends is 504 for its caller, 503 for those who come then, and then a new worker serves."""
    folder = write_model(tmp_path / "m", predictor={"kind": "entrypoint", "module": "hanging_owner", "code": "code"})
    (folder / "code").mkdir()
    (folder / "code" / "hanging_owner.py").write_text(HANGING)
    with replica(folder, tmp_path, "--timeout-s", "0.5", "--hang-s", "3") as served:
        (worker,) = served.wait_ready().workers()
        assert served.post("/v1/models/shop:predict", {"instances": [{"age": 99}]})[0] == 504
        wait_until(lambda: served.post("/v1/models/shop:predict", {"instances": [{"age": 1}]})[0] == 503)
        wait_until(lambda: served.workers() not in ([], [worker]))
        wait_until(lambda: _answers(served))
        assert served.predict([{"age": 30}])["predictions"] == [0.5]


# ---------------------------------------------------------------- what cannot start
def refused(model_dir: Path, tmp_path: Path, *options: str) -> tuple[int, str]:
    """Exit status and log of a replica that must not come up."""
    with replica(model_dir, tmp_path, *options) as made:
        status = made.process.wait(60)
        assert not made.announce.exists()
        return status, made.stderr.read_text()


def test_a_bad_model_folder_is_status_2_and_a_sentence(tmp_path: Path) -> None:
    """A folder that is not there, or code that fails after the fork, ends the replica with status 2, naming the file."""
    status, log = refused(tmp_path / "nowhere", tmp_path)
    assert (status, "nowhere/model.json: cannot be read" in log, "Traceback" in log) == (2, True, False)
    folder = write_model(tmp_path / "m", predictor={"kind": "entrypoint", "module": "broken_owner", "code": "code"})
    (folder / "code").mkdir()
    (folder / "code" / "broken_owner.py").write_text("def load(model_dir): raise OSError('no weights')")
    (tmp_path / "second").mkdir()
    status, log = refused(folder, tmp_path / "second", "--workers", "2")
    assert (status, "broken_owner.load failed: OSError: no weights" in log) == (2, True)


def test_a_port_in_use_is_status_3_and_a_sentence(model_dir: Path, tmp_path: Path) -> None:
    """A port that somebody has is named."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, log = refused(model_dir, tmp_path, "--port", str(port))
    assert (status, f"127.0.0.1:{port}: Address already in use" in log) == (3, True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--version", "0"], "argument --version: must be a whole number of at least 1 but got '0'"),
        (["--port", "99999"], "argument --port: must be a port from 0 to 65535 but got '99999'"),
        (["--name", "a/b"], "argument --name: must be letters"),
        (["--timeout-s", "-1"], "argument --timeout-s: must be a number of seconds above 0 but got '-1'"),
    ],
)
def test_a_wrong_command_line_is_status_2(tmp_path: Path, options: list[str], said: str) -> None:
    """Options are checked by name, rule and value before anything is loaded."""
    command = [
        sys.executable,
        "-m",
        "serving.runtime",
        "--model-dir",
        "m",
        "--log-dir",
        "l",
        "--name",
        "n",
        "--version",
        "1",
    ]
    done = subprocess.run([*command, *options], cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert said in done.stderr


# ---------------------------------------------------------------- memory
def memory_mb(pid: int, kind: str) -> float:
    """Memory of a process in MB: `Rss` is all that it has, `Pss` counts shared pages by their share."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(kind + ":")) / 1024


def test_four_workers_take_hardly_more_memory_than_one_process(tmp_path: Path) -> None:
    """Four workers that all predicted with a model of some 100 MB take, with their parent, below 1.6 times what one process has."""
    frame = rows(50_000)
    pipeline = fitted()
    forest = ExtraTreesClassifier(16, max_features=1, random_state=0)
    forest.fit(pipeline[0].transform(frame), rows(50_000, seed=1).price > 0)
    pipeline.steps[-1] = ("estimator", forest)
    model = write_model(tmp_path / "model", pipeline, classes=[False, True])
    with replica(model, tmp_path, "--workers", "4") as served:
        served.wait_ready()
        for seed in range(40):
            served.predict(json_rows(50, seed))
        one = memory_mb(served.process.pid, "Rss")
        together = sum(memory_mb(pid, "Pss") for pid in [served.process.pid, *served.workers()])
    assert one > 200, "the model is too small to show anything"
    assert together < 1.6 * one
