"""What a company runs around Ratchet, for `make demo-stack`: PostgreSQL, Prometheus, Alertmanager, a registry, by `examples/stack`.

The files of that folder are used as they stand, but for their ports, which are free ones here. Everything listens on loopback, keeps
its data in the demonstration's own folder, and ends with it, also when it is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from demo.system import DemoError

EXAMPLE = Path(__file__).parent.parent / "examples" / "stack"
RULES = Path(__file__).parent.parent / "deploy" / "prometheus" / "rules"
PORTS = {"postgresql": 5432, "registry": 5000, "prometheus": 9090, "alertmanager": 9093, "ratchet": 8640}
"""As the files in `examples/stack` have them."""
PACKAGES = {
    "postgres": "postgresql", "initdb": "postgresql", "prometheus": "prometheus", "docker-registry": "docker-registry",
    "prometheus-alertmanager": "prometheus-alertmanager",
}  # fmt: skip
DATABASE = "ratchet"
READY_TIMEOUT_S = 60.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class Stack:
    """The servers, from `with` to its end. Raises DemoError where one is not installed or does not start."""

    def __init__(self, folder: Path, state: Path) -> None:
        self.folder = folder
        self._state = state
        self.ports = {name: _free_port() for name in PORTS}
        self.versions: dict[str, str] = {}
        self._children: list[subprocess.Popen[bytes]] = []
        self._ends = contextlib.ExitStack()

    # ------------------------------------------------------------ start and end
    def __enter__(self) -> Self:
        shutil.copytree(EXAMPLE, self.folder, dirs_exist_ok=True)
        shutil.copytree(RULES, self.folder / "rules", dirs_exist_ok=True)
        self._own_ports()
        (self.folder / "state").symlink_to(self._state)
        for name in ("database-password", "hook-token"):
            _write_secret(self.folder / name)
        try:
            self._start_postgresql()
            self._start("registry", ["docker-registry", "serve", "registry.yml"], "/v2/")
            self._start("alertmanager", ["prometheus-alertmanager", "--config.file=alertmanager.yml", "--storage.path=data/alertmanager",
                f"--web.listen-address=127.0.0.1:{self.ports['alertmanager']}", "--cluster.listen-address="], "/-/ready")  # fmt: skip
            self._start("prometheus", ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data/prometheus",
                f"--web.listen-address=127.0.0.1:{self.ports['prometheus']}"], "/-/ready")  # fmt: skip
        except BaseException:
            self._end()
            raise
        self.versions = self._versions()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        for child in reversed(self._children):
            child.send_signal(signal.SIGINT)
        for child in reversed(self._children):
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        self._ends.close()

    @property
    def policy(self) -> Path:
        return self.folder / "flight-late.yaml"

    @property
    def environment(self) -> Mapping[str, str]:
        """What tells the daemon to use all of it."""
        return {"RATCHET_SETTINGS": str(self.folder / "ratchet.yaml"), "RATCHET_PORT": str(self.ports["ratchet"])}

    def _own_ports(self) -> None:
        """Every `host:port` of the example's files gets the port that is free here."""
        ours = {str(usual): str(self.ports[name]) for name, usual in PORTS.items()}
        pattern = re.compile(rf"(127\.0\.0\.1:)({'|'.join(ours)})\b")
        for path in self.folder.glob("*.y*ml"):
            path.write_text(pattern.sub(lambda found: found[1] + ours[found[2]], path.read_text()))

    # ------------------------------------------------------------ servers
    def _start(self, name: str, command: Sequence[str], ready: str) -> None:
        url = f"http://127.0.0.1:{self.ports[name]}{ready}"
        self._run(name, [_installed(command[0]), *command[1:]], lambda: httpx.get(url, timeout=1).is_success)

    def _start_postgresql(self) -> None:
        # Its user may not look into the folders of this one's, so it gets one elsewhere.
        home = Path(
            self._ends.enter_context(tempfile.TemporaryDirectory(prefix="ratchet-stack-", ignore_cleanup_errors=True))
        )
        data, password, user = home / "data", home / "password", _server_user()
        shutil.copy(self.folder / "database-password", password)
        for path in (home, password):
            if user is not None:
                shutil.chown(path, user)
        made = subprocess.run(
            [_installed("initdb"), "-D", str(data), "-U", DATABASE, "--auth=scram-sha-256", f"--pwfile={password}", "-E", "UTF8",
             "--no-sync", "--locale=C.UTF-8"],
            capture_output=True, user=user, cwd="/", check=False,
        )  # fmt: skip
        if made.returncode != 0:
            raise DemoError(f"initdb failed: {made.stderr.decode(errors='replace')[-1000:]}")
        options = ["-clisten_addresses=127.0.0.1", f"-cport={self.ports['postgresql']}", "-cunix_socket_directories="]
        self._run("postgresql", [_installed("postgres"), "-D", str(data), *options], self._database_answers, user)
        self._sql("postgres", f"CREATE DATABASE {DATABASE}")

    def _run(self, name: str, command: Sequence[str], ready: Callable[[], bool], user: str | None = None) -> None:
        log = self.folder / f"{name}.log"
        with log.open("ab") as out:
            child = subprocess.Popen(
                command, cwd="/" if user else self.folder, user=user, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True, preexec_fn=partial(_die_with_parent, signal.SIGTERM),  # noqa: PLW1509 - nothing else ends a server with a demonstration that is killed
            )  # fmt: skip
        self._children.append(child)
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline and child.poll() is None:
            with contextlib.suppress(httpx.HTTPError, DemoError):
                if ready():
                    return
            time.sleep(0.1)
        raise DemoError(f"{name} did not start; the end of {log}:\n{log.read_text(errors='replace')[-1500:]}")

    # ------------------------------------------------------------ asking them
    def holdings(self, model: str, digests: Sequence[str]) -> dict[str, str]:
        """What each server holds of the year in the end, in words; empty if that is nothing, or not all that it should be.

        Raises DemoError, httpx.HTTPError if one does not answer."""
        here = [digest for digest in digests if self._has_image(model, digest)]
        events = self._sql(DATABASE, "SELECT count(*) FROM events")[0][0]
        asked = self._ask(
            "prometheus",
            "/api/v1/query",
            query=f'sum(max_over_time(ratchet_predictions_total{{model="{model}"}}[15m]))',
        )
        answers = sum(float(series["value"][1]) for series in asked["data"]["result"])
        told = sum(
            float(line.rpartition(" ")[2])
            for line in self._get("alertmanager", "/metrics").text.splitlines()
            if line.startswith("alertmanager_alerts_received_total{")
        )
        return {
            "postgresql": f"{events:,} events" if events else "",
            "registry": f"{len(here)} images" if here and len(here) == len(digests) else "",
            "prometheus": f"{answers:,.0f} answers" if answers else "",
            "alertmanager": f"{told:,.0f} alerts told" if told else "",
        }

    def _has_image(self, model: str, digest: str) -> bool:
        url = f"http://127.0.0.1:{self.ports['registry']}/v2/ratchet/{model}/manifests/{digest}"
        return httpx.head(url, headers={"Accept": "application/vnd.oci.image.manifest.v1+json"}, timeout=10).is_success

    def _versions(self) -> dict[str, str]:
        registry = subprocess.run(
            [_installed("docker-registry"), "--version"], capture_output=True, text=True, check=True
        )
        return {
            "postgresql": str(self._sql("postgres", "SHOW server_version")[0][0]).split()[0],
            "prometheus": str(self._ask("prometheus", "/api/v1/status/buildinfo")["data"]["version"]),
            "alertmanager": str(self._ask("alertmanager", "/api/v2/status")["versionInfo"]["version"]),
            "registry": next(iter(re.findall(r"v?(\d+\.\d+[\w.+~-]*)", registry.stdout)), registry.stdout.strip()),
        }

    def _ask(self, name: str, path: str, **parameters: str) -> Any:
        return self._get(name, path, **parameters).json()

    def _get(self, name: str, path: str, **parameters: str) -> httpx.Response:
        answer = httpx.get(f"http://127.0.0.1:{self.ports[name]}{path}", params=parameters, timeout=10)
        return answer.raise_for_status()

    def _database_answers(self) -> bool:
        self._sql("postgres", "SELECT 1")
        return True

    def _sql(self, database: str, statement: str) -> list[Any]:
        import psycopg

        try:
            with psycopg.connect(
                host="127.0.0.1", port=self.ports["postgresql"], user=DATABASE, dbname=database, autocommit=True,
                password=(self.folder / "database-password").read_text().strip(), connect_timeout=5,
            ) as db:  # fmt: skip
                done = db.execute(statement.encode())
                return done.fetchall() if done.description else []
        except psycopg.OperationalError as error:
            raise DemoError(f"PostgreSQL does not answer: {error}") from error


def _installed(command: str) -> str:
    """Debian keeps PostgreSQL's own commands off the path. Raises DemoError that says what to install."""
    folders = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
    found = shutil.which(command) or shutil.which(command, path=":".join(folders))
    if found is None:
        raise DemoError(f"{command} is not installed; as root on Debian: apt-get install {PACKAGES[command]}")
    return found


def _server_user() -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise DemoError("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")


def _write_secret(path: Path) -> None:
    path.touch(mode=0o600)
    path.write_text(secrets.token_urlsafe(24) + "\n")


def _die_with_parent(number: signal.Signals) -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(number))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
