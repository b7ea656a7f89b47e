"""A real daemon in a folder of its own, driven as its users do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

START_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningDaemon:
    """One that answers."""

    pid: int
    http: httpx.Client
    environment: dict[str, str]

    def ratchet(self, *arguments: str) -> None:
        """A `ratchet` command. Raises subprocess.CalledProcessError."""
        command = [sys.executable, "-m", "controller.cli.main", *arguments]
        subprocess.run(command, env=self.environment, check=True, stdout=subprocess.DEVNULL)

    def get(self, path: str, **parameters: Any) -> Any:
        answer = self.http.get(f"/api/v1/{path}", params=parameters)
        answer.raise_for_status()
        return answer.json()

    def wait_for(self, path: str, holds: Callable[[Any], bool], timeout_s: float) -> Any:
        """The answer once it is as wanted. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            answer = self.get(path)
            if holds(answer):
                return answer
            time.sleep(0.1)
        raise TimeoutError(f"{path} is not as wanted after {timeout_s:g} s: {answer}")


@contextmanager
def daemon(home: Path, **settings: str) -> Iterator[RunningDaemon]:
    """A daemon on free ports with `RATCHET_…` settings, and its end with all that it started. Raises TimeoutError."""
    environment = {
        **os.environ, "RATCHET_HOME": str(home), "RATCHET_PORT": "0", "RATCHET_ROUTER_PORT": "0",
        **{f"RATCHET_{name.upper()}": value for name, value in settings.items()},
    }  # fmt: skip
    home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "controller.cli.main"]
    announce = home / "run" / "daemon.json"
    with (home / "daemon.log").open("wb") as log:
        process = subprocess.Popen([*command, "daemon"], env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not announce.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"the daemon did not start: {(home / 'daemon.log').read_text()[-500:]}")
            time.sleep(0.05)
        token = (home / "run" / "token").read_text().strip()
        url = json.loads(announce.read_text())["url"]
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=10) as client:
            yield RunningDaemon(pid=process.pid, http=client, environment=environment)
    finally:
        subprocess.run([*command, "shutdown", "--yes"], env=environment, check=False, capture_output=True)
        process.kill()
        process.wait()
