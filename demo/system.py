"""Ratchet as its users see it: the `ratchet` command, and the daemon's HTTP API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

START_TIMEOUT_S = 60.0


class DemoError(Exception):
    """The demonstration cannot go on; the message says why."""


class Ratchet:
    """One installation in a state folder of its own."""

    def __init__(self, home: Path, clock: Path, environment: Mapping[str, str]) -> None:
        self._home = home
        self._env = {
            **os.environ,
            "RATCHET_HOME": str(home), "RATCHET_CLOCK": str(clock), "RATCHET_PORT": "0", "RATCHET_ROUTER_PORT": "0",
            "RATCHET_TICK_S": "0.25", "RATCHET_OBSERVE_INTERVAL_S": "1", "RATCHET_SIGNAL_MAX_AGE_S": str(6 * 86_400),
            "RATCHET_LOG_FORMAT": "json", **environment,
        }  # fmt: skip
        self._daemon: subprocess.Popen[bytes] | None = None
        self._http: httpx.Client | None = None
        home.mkdir(parents=True, exist_ok=True)
        self.log = home / "daemon.log"

    # ------------------------------------------------------------ the daemon
    def start(self) -> None:
        """Start the daemon and wait until it answers. Raises DemoError with the end of its log."""
        announce = self._home / "run" / "daemon.json"
        announce.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self._daemon = subprocess.Popen(self._command("daemon"), env=self._env, stdout=log, stderr=log)
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self._daemon.poll() is None:
            if announce.exists():
                url = json.loads(announce.read_text())["url"]
                token = (self._home / "run" / "token").read_text().strip()
                self._http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=10)
                return
            time.sleep(0.05)
        tail = self.log.read_text(errors="replace")[-2000:]
        raise DemoError(f"the daemon did not start; the end of {self.log}:\n{tail}")

    def kill(self) -> None:
        """kill -9."""
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.wait()
        self._http = None

    def shutdown(self) -> None:
        """Stop the daemon and everything that it started."""
        self.run("shutdown", "--yes", check=False)
        if self._daemon is not None and self._daemon.poll() is None:
            self._daemon.terminate()
            self._daemon.wait(timeout=20)

    # ------------------------------------------------------------ speaking to it
    def run(self, *arguments: str, check: bool = True) -> str:
        """A `ratchet` command; its output. Raises DemoError with what it said."""
        done = subprocess.run(self._command(*arguments), env=self._env, capture_output=True, text=True, check=False)
        if check and done.returncode != 0:
            raise DemoError(f"ratchet {' '.join(arguments)} ended with {done.returncode}: {done.stderr or done.stdout}")
        return done.stdout

    def get(self, path: str, **parameters: Any) -> Any | None:
        """JSON from the API, or None while the daemon is away."""
        if self._http is None:
            return None
        try:
            answer = self._http.get(f"/api/v1/{path}", params=parameters)
        except httpx.HTTPError:
            return None
        return answer.json() if answer.status_code == 200 else None

    def offline_scores(self, model_dir: Path, rows: Path, out: Path) -> None:
        """Score rows with one version's model folder, outside of all traffic."""
        command = [sys.executable, "-m", "serving.predict", "--model-dir", str(model_dir), "--input", str(rows),
                   "--output", str(out)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise DemoError(f"the first version could not score the year: {done.stderr[-500:]}")

    def model_dir(self, digest: str) -> Path:
        return self._home / "unpacked" / digest.removeprefix("sha256:") / "model"

    @staticmethod
    def _command(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "controller.cli.main", *arguments]
