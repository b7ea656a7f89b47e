"""The router process as the targets of this machine see it: kept running, told tables, asked for counts."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import deployers
from deployers.routed.http import call_unix, is_ok
from deployers.routed.processes import Slot, locked
from deployers.routed.supervised import Life, Limits, ProcessRunner, Program, Supervised
from deployers.target import ReplicaState, StalePlanError, TargetError

ADMIN_TIMEOUT_S = 2.0
_LOCK_TIMEOUT_S = 5.0
_PROJECT = Path(deployers.__file__).parents[1]


def child_environment(pythonpath: Path) -> dict[str, str]:
    """The environment of a process that we start. The daemon's own settings, its token among them, are none of its business."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RATCHET_")}
    if clock := os.environ.get("RATCHET_CLOCK"):
        env["RATCHET_CLOCK"] = os.path.abspath(clock)
    return {**env, "PYTHONPATH": str(pythonpath), "PYTHONUNBUFFERED": "1"}


class RouterProcess:
    """At most one a home, whoever starts it."""

    def __init__(self, home: Path, host: str, port: int, limits: Limits) -> None:
        run = home / "run"
        self._host = host
        self._port = port
        self._limits = limits
        self._socket = run / "router.sock"
        self._state = run / "router.json"
        self._lock = run / "router.lock"
        self._log = home / "serving" / "router.log"
        self._slot = Slot(run / "router")
        self._supervised = Supervised(ProcessRunner(self._slot, self._program), self._probe, limits)

    @property
    def address(self) -> str:
        """Where clients send requests; an empty string until the router has been ready once."""
        port = self._port or self._supervised.life().port
        return f"http://{self._host}:{port}" if port else ""

    @property
    def process(self) -> str:
        """Which process was started last; another one may have another table."""
        return str(self._slot.identity())

    def ensure(self) -> str | None:
        """Keep it running; which process it is, as a string, or None while it starts. Raises TargetError if it does not start."""
        now = time.monotonic()
        try:
            with locked(self._lock, _LOCK_TIMEOUT_S):
                if self._must_end(self._supervised.life()):
                    self._supervised.stop(now, idle=True)
                    return None
                self._supervised.keep(now)
        except OSError as error:  # TimeoutError is one
            raise TargetError(f"cannot look after the router: {error}") from error
        state, reason = self._supervised.state(now)
        if state is ReplicaState.READY:
            return self.process
        if state is ReplicaState.FAILED:
            raise TargetError(f"the router on {self._host}:{self._port} does not run: {reason} (log: {self._log})")
        return None

    def _must_end(self, life: Life) -> bool:
        """Whether it was told to end (and its ender died), or listens where it no longer should."""
        return life.terminated_at is not None or bool(self._port and life.port not in (None, self._port))

    def put(self, model: str, table: Mapping[str, Any]) -> None:
        """Raises StalePlanError, TargetError."""
        self._call("PUT", f"/models/{model}", table)

    def get(self, model: str) -> Mapping[str, Any] | None:
        """The model's table with `stats` and `in_flight`; None if the router does not know it. Raises TargetError."""
        answer = self._call("GET", f"/models/{model}")
        return answer if isinstance(answer, dict) else None

    def delete(self, model: str, epoch: int) -> None:
        """Done also if the router does not know the model. Raises StalePlanError, TargetError."""
        self._call("DELETE", f"/models/{model}?epoch={epoch}")

    def stop(self, *, idle: bool) -> bool:
        """One stride towards its end; True when it is gone."""
        with locked(self._lock, _LOCK_TIMEOUT_S):
            return self._supervised.stop(time.monotonic(), idle=idle)

    def _call(self, method: str, target: str, body: Any = None) -> Any:
        try:
            status, answer = call_unix(self._socket, method, target, body, timeout_s=ADMIN_TIMEOUT_S)
        except OSError as error:
            raise TargetError(
                f"the router does not answer on {self._socket}: {error}; the next tick tries again"
            ) from error
        if status in (200, 404):
            return answer if status == 200 else None
        message = f"the router refused {method} {target}: {status} {answer}"
        raise StalePlanError(message) if status == 409 else TargetError(message)

    def _probe(self, port: int) -> bool:
        return is_ok(self._host, port, "/healthz", timeout_s=self._limits.probe_timeout_s)

    def _program(self, life: Life) -> Program:
        port = self._port or life.port or 0  # a port once given is kept: clients know it
        return Program(
            command=[
                sys.executable, "-m", "serving.router",
                "--host", self._host, "--port", str(port),
                "--admin-socket", str(self._socket), "--state", str(self._state),
                "--announce", str(self._slot.announce),
            ],
            env=child_environment(_PROJECT),
            cwd=self._state.parent,
            log=self._log,
        )  # fmt: skip
