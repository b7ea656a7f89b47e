"""A real daemon on a home of its own, steered by the real command line, with nothing left running at the end."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

REPOSITORY = Path(__file__).parents[2]
T = TypeVar("T")


def write_rows(path: Path, rows: int = 600) -> None:
    """Two numbers and a category that say something about the label."""
    rng = random.Random(7)
    lines = ["x,z,kind,y"]
    for _ in range(rows):
        x, z, kind = rng.gauss(0, 1), rng.gauss(0, 1), rng.choice("abc")
        label = int(x + 0.5 * z + (kind == "a") + rng.gauss(0, 0.7) > 0.3)
        lines.append(f"{x:.4f},{z:.4f},{kind},{label}")
    path.write_text("\n".join(lines) + "\n")


def write_policy(path: Path, name: str = "small", more: str = "") -> None:
    path.write_text(
        f"""\
apiVersion: ratchet.dev/v1
kind: ModelPolicy
metadata: {{name: {name}}}
spec:
  task: binary
  data: {{source: {{kind: csv, path: rows.csv}}, label: y, min_rows: 100}}
  train: {{component: sklearn.logistic_regression}}
  tune: {{trials: 2, timeout: 1m}}
  objective: {{metric: roc_auc}}
  gates: [{{metric: roc_auc, at_least: 0.6}}]
  cooldown: 0s
  rollout: {{steps: [50%: 1s, 100%], bake: 1s, min_labelled_rows: 0}}
{more}"""
    )


@dataclass
class Rig:
    home: Path
    process: subprocess.Popen[bytes] | None = None
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("RATCHET_")},
            "RATCHET_HOME": str(self.home), "RATCHET_PORT": "0", "RATCHET_ROUTER_PORT": "0", "RATCHET_TICK_S": "1",
            "RATCHET_OBSERVE_INTERVAL_S": "3600",
        }  # fmt: skip

    # ------------------------------------------------------------ the daemon
    def start(self) -> None:
        """Start the daemon and wait until it is ready."""
        self.home.mkdir(exist_ok=True)
        with (self.home / "daemon.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "controller.cli.main", "daemon"], cwd=REPOSITORY, env=self.env, stdout=log, stderr=log
            )  # fmt: skip
        self.until(self._is_up, "the daemon to be ready")

    def _is_up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        with suppress(OSError, ValueError, httpx.HTTPError):
            announced = json.loads((self.home / "run" / "daemon.json").read_bytes())
            return (
                announced["pid"] == self.process.pid
                and httpx.get(f"{announced['url']}/healthz", trust_env=False).is_success
            )
        return False

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def log(self) -> str:
        return (self.home / "daemon.log").read_text()[-5000:]

    # ------------------------------------------------------------ the command line
    def ratchet(self, *args: str, code: int = 0) -> str:
        """What `ratchet ARGS` prints; fails unless it ends with `code`."""
        done = subprocess.run(
            [sys.executable, "-m", "controller.cli.main", *args], cwd=REPOSITORY, env=self.env, capture_output=True, text=True,
            timeout=60, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert done.returncode == code, (args, done.returncode, done.stdout, done.stderr)
        return done.stdout if code == 0 else done.stderr

    def model(self, name: str = "small") -> dict[str, Any]:
        found: dict[str, Any] = self.api(f"/models/{name}")
        return found

    def api(self, path: str, **params: Any) -> Any:
        url = json.loads((self.home / "run" / "daemon.json").read_bytes())["url"]
        token = (self.home / "run" / "token").read_text()
        answer = httpx.get(
            f"{url}/api/v1{path}", params=params, headers={"authorization": f"Bearer {token}"}, trust_env=False
        )
        answer.raise_for_status()
        return answer.json()

    def until(self, condition: Callable[[], T], what: str, patience_s: float = 90.0) -> T:
        """Wait for a condition; its value."""
        deadline = time.monotonic() + patience_s
        while not (value := condition()):
            assert time.monotonic() < deadline, f"waited {patience_s:g} s for {what}\n{self.log()}"
            time.sleep(0.05)
        return value

    def phase(self, name: str = "small") -> str | None:
        found: str | None = self.model(name)["phase"]
        return found

    def serves(self, number: int) -> bool:
        model = self.model()
        return model["champion"] == number and model["cycle"] is None

    def predict(self, **row: Any) -> dict[str, Any]:
        answer = httpx.post(
            f"{self.model()['address']}/v1/models/small:predict", json={"instances": [row]}, trust_env=False, timeout=10
        )
        answer.raise_for_status()
        return {**answer.json(), "header": answer.headers["x-ratchet-version"]}

    # ------------------------------------------------------------ the end
    def stop(self) -> None:
        """Stop everything; fails if any process of this home is left."""
        self.ratchet("shutdown", "--yes")
        if self.process is not None:
            assert self.process.wait(30) == 0, self.log()
        self.until(lambda: not self.left_over(), "all processes to end", 15)

    def left_over(self) -> list[str]:
        """Command lines of processes that name this home."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(self.home) in command and int(path.parent.name) != os.getpid():
                    found.append(command)
        return found
