"""The whole of Ratchet in a folder of its own: the real daemon with its router, replicas and jobs, in fast time, driven over its API.

Nothing here knows the inside but for two things that no API tells: where processes announce themselves, so that tests can kill
them, and how the prediction log is read back.
"""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import httpx
from live_client import random_row, truth

import controller
from pipelines.data.prediction_log import read_labels, read_predictions

MODEL = "weather-vane"
ROOT = Path(controller.__file__).parents[1]
PATIENCE_S = 120.0
_POLL_S = 0.05
_COMMAND = (sys.executable, "-m", "controller.cli.main")
_FAST = {"PORT": "0", "ROUTER_PORT": "0", "TICK_S": "0.2", "OBSERVE_INTERVAL_S": "1", "LOG_FORMAT": "json"}
HEADER = ("id", "at", "x1", "x2", "color", "label")


class Rig:
    """One state folder and whatever runs on it. `settings` are `RATCHET_…` variables without the prefix."""

    def __init__(self, home: Path, folder: Path, **settings: str) -> None:
        self.home = home
        self.folder = folder
        """Of the policy and its data."""
        outside = {name: value for name, value in os.environ.items() if not name.startswith("RATCHET_")}
        chosen = {"HOME": str(home), **_FAST, **settings}
        self.env = {**outside, **{f"RATCHET_{name}": value for name, value in chosen.items()}}
        self.log = folder / "daemon.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._http: httpx.Client | None = None
        folder.mkdir(parents=True, exist_ok=True)
        home.mkdir(parents=True, exist_ok=True)

    # ------------------------------------------------------------ the daemon's process
    def start(self) -> None:
        """Start the daemon and wait until it answers."""
        announce = self.home / "run" / "daemon.json"
        announce.unlink(missing_ok=True)
        self.launch()
        wait_until(lambda: announce.exists() or self.ended(), f"the daemon has started; {self.log}")
        assert self.process is not None
        assert not self.ended(), f"the daemon ended with {self.process.returncode}: {self.said()}"
        token = (self.home / "run" / "token").read_text().strip()
        url = json.loads(announce.read_bytes())["url"]
        self._http = httpx.Client(
            base_url=f"{url}/api/v1", headers={"authorization": f"Bearer {token}"}, timeout=30, trust_env=False
        )

    def launch(self) -> None:
        """Start the daemon's process, whatever comes of it."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*_COMMAND, "daemon"], env=self.env, cwd=ROOT, stdout=log, stderr=log)

    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def exit_code(self) -> int:
        """Wait for the daemon's end."""
        assert self.process is not None
        return self.process.wait(timeout=PATIENCE_S)

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self._disconnect()

    def stop(self) -> None:
        """SIGTERM, as a service manager does."""
        assert self.process is not None
        self.process.terminate()
        self.exit_code()
        self._disconnect()

    def _disconnect(self) -> None:
        if self._http is not None:
            self._http.close()
            self._http = None

    def said(self, last: int = 4000) -> str:
        """The end of the daemon's log."""
        return self.log.read_text(errors="replace")[-last:]

    def shutdown(self) -> None:
        """Stop everything that runs on the folder."""
        self.ratchet("shutdown", "--yes", check=False)
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self._disconnect()

    # ------------------------------------------------------------ asking and ordering
    def ratchet(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A `ratchet` command as typed."""
        done = subprocess.run(
            [*_COMMAND, *arguments], env=self.env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
        )
        assert not check or done.returncode == 0, f"ratchet {' '.join(arguments)}: {done.returncode} {done.stderr}"
        return done

    @property
    def http(self) -> httpx.Client:
        assert self._http is not None, "the daemon was not started"
        return self._http

    def get(self, path: str, **parameters: Any) -> Any:
        answer = self.http.get(path, params=parameters)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    def apply(self, spec: Mapping[str, Any]) -> None:
        """Have the daemon follow a policy whose data are in `folder`."""
        document = {"text": json.dumps(policy(spec)), "file": "policy.yaml", "directory": str(self.folder)}
        answer = self.http.post("/policies", json={"actor": "test@e2e", "documents": [document]})
        assert answer.status_code == 200, answer.text

    def order(self, verb: str, **more: Any) -> None:
        answer = self.http.post(
            f"/models/{MODEL}/orders", json={"verb": verb, "actor": "test@e2e", "reason": "e2e", **more}
        )
        assert answer.status_code == 200, f"{verb}: {answer.status_code} {answer.text}"

    def model(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"/models/{MODEL}")
        return found

    def cycles(self) -> dict[int, dict[str, Any]]:
        """By number."""
        return {cycle["number"]: cycle for cycle in self.get(f"/models/{MODEL}/cycles", limit=1000)["cycles"]}

    def events(self, kind: str | None = None, cycle: int | None = None) -> list[dict[str, Any]]:
        """The whole record, in order, or a part of it."""
        found: list[dict[str, Any]] = []
        while page := self.get("/events", after=found[-1]["seq"] if found else 0, limit=1000)["events"]:
            found += page
        return [e for e in found if kind in (None, e["kind"]) and cycle in (None, e["cycle"])]

    @property
    def address(self) -> str:
        """Of the router."""
        return str(self.model()["address"])

    # ------------------------------------------------------------ waiting
    def wait_for(
        self, holds: Callable[[dict[str, Any]], Any], what: str, timeout_s: float = PATIENCE_S
    ) -> dict[str, Any]:
        """The model once it is so."""
        state: dict[str, Any] = {}

        def found() -> bool:
            nonlocal state
            state = self.model()
            return bool(holds(state))

        wait_until(found, lambda: f"{what}; the model: {_brief(state)}; the log ends: {self.said(800)}", timeout_s)
        return state

    def wait_closed(self, number: int, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """The cycle once it has ended."""
        self.wait_for(
            lambda m: m["cycle"] is None or m["cycle"]["number"] > number, f"cycle {number} has ended", timeout_s
        )
        return self.cycles()[number]

    def run_cycle(self, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """Trigger a cycle and wait for its end."""
        return self.wait_closed(self.trigger(), timeout_s)

    def trigger(self) -> int:
        """The number of the cycle that was opened."""
        self.order("trigger")
        return int(self.events("cycle.opened")[-1]["cycle"])

    def first_champion(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Apply a policy to an empty home and wait until its first version serves."""
        self.apply(spec)
        self.wait_for(lambda m: m["cycle"] is not None, "the first cycle has begun")
        first = self.wait_closed(1)
        assert first["outcome"] == "promoted", first["sentence"]
        return self.model()

    def wait_step(self, label: str, number: int) -> dict[str, Any]:
        """The model once a step of the rollout of cycle `number` is in force, such as `shadow` or `50 %`."""
        return self.wait_for(
            lambda _: any(f" at {label} " in e["sentence"] for e in self.events("step.reached", number)),
            f"cycle {number} has reached the step {label}",
        )

    # ------------------------------------------------------------ processes
    def router_pid(self) -> int:
        """0 while there is none."""
        return _announced(self.home / "run" / "router")

    def replica_pids(self, version: int) -> list[int]:
        """Of those that are ready for requests."""
        folder = self.home / "run" / "replicas" / MODEL
        return [pid for slot in sorted(folder.glob(f"v{version}-*")) if (pid := _announced(slot))]

    def job_host_pid(self) -> int:
        found = [pid for pid, line in _processes() if "pipelines.jobs.host" in line and str(self.home) in line]
        assert found, "there is no job host"
        return min(found)  # nannies and workers are forked from it and have the same command line

    def worker_pid(self, job_id: str) -> int:
        """Of the process that runs the job's function."""
        path = self.home / "jobs" / job_id / "pids.json"
        wait_until(path.exists, f"job {job_id} runs")
        return int(json.loads(path.read_bytes())["worker"])


@contextmanager
def running(folder: Path, home: Path | None = None, **settings: str) -> Iterator[Rig]:
    """A rig whose daemon is started, and with it stopped whatever it started."""
    rig = Rig(home or folder / "home", folder, **settings)
    try:
        rig.start()
        yield rig
    finally:
        rig.shutdown()


# ---------------------------------------------------------------- policies and data
def policy(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "ratchet.dev/v1", "kind": "ModelPolicy", "metadata": {"name": MODEL}, "spec": dict(spec)}


def small_spec(**changes: Any) -> dict[str, Any]:
    """A policy whose whole cycle takes seconds. `changes` replace sections; `data` and `rollout` only what they name."""
    data = {
        "source": {"kind": "csv", "path": "data.csv"}, "label": "label", "time": "at", "exclude": ["id"],
        **changes.pop("data", {}),
    }  # fmt: skip
    rollout = {
        "steps": [{"shadow": "1s"}, {"50%": "1s"}, "100%"], "bake": "1s", "min_labelled_rows": 0,
        **changes.pop("rollout", {}),
    }  # fmt: skip
    return {
        "task": "binary",
        "data": data,
        "train": {"component": "sklearn.logistic_regression"},
        "tune": {"trials": 0},
        "objective": {"metric": "roc_auc"},
        "cooldown": "0s",
        "gates": [{"metric": "roc_auc", "at_least": 0.6}],
        "rollout": rollout,
        **changes,
    }


def rows_of(seed: int, count: int = 1500, *, inverted: bool = False, newest: datetime | None = None) -> list[list[Any]]:
    """Rows under `HEADER`, over the 30 days before `newest`; one label in ten is wrong, or nine where they are inverted."""
    random_ = random.Random(seed)
    end = newest or datetime.now(UTC) - timedelta(hours=1)
    rows: list[list[Any]] = []
    for i in range(count):
        row = random_row(random_)
        wrong = (random_.random() < 0.1) != inverted
        at = end - timedelta(days=30) * (1 - (i + 1) / count)
        rows.append([f"r{seed}-{i}", at.isoformat(), row["x1"], row["x2"], row["color"], truth(row) ^ wrong])
    return rows


def write_csv(path: Path, rows: Sequence[Sequence[Any]], header: Sequence[str] = HEADER) -> None:
    """Put the file in place in one move, as an owner's export should."""
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    part.replace(path)


# ---------------------------------------------------------------- reading back
def on_record(home: Path, role: Literal["live", "shadow"] = "live") -> list[str]:
    """The ids of all predictions in the log, oldest first; an id stands there as often as it was answered."""
    return list(read_predictions(home / "log" / MODEL, role=role, features=False)["id"])


def labels_on_record(home: Path) -> dict[str, Any]:
    """id → label."""
    frame = read_labels(home / "log" / MODEL)
    return dict(zip(frame["id"], frame["label"], strict=True))


# ---------------------------------------------------------------- conditions and processes
def wait_until(holds: Callable[[], Any], what: str | Callable[[], str], timeout_s: float = PATIENCE_S) -> None:
    """Poll; fails with what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"not after {timeout_s:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(_POLL_S)


def kill_now(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _announced(slot: Path) -> int:
    """0 if nobody has."""
    try:
        return int(json.loads((slot / "announce.json").read_bytes())["pid"])
    except FileNotFoundError:
        return 0


def _processes() -> Iterator[tuple[int, str]]:
    """Pid and command line of each process that can be looked at."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                yield int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue


def _brief(state: Mapping[str, Any]) -> str:
    return json.dumps({key: state.get(key) for key in ("champion", "phase", "sentence", "traffic", "target")})[:1500]
