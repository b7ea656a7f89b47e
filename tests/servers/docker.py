"""Debian's Docker Engine (20.10) with a containerd of its own, in a folder of its own, without touching the machine's network."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from docker.errors import APIError

from deployers.docker.engine import Engine, EngineAway
from servers import need, stop, wait_until

_GUARD = Path(__file__).with_name("docker_guard.py")


@dataclass(kw_only=True)
class DockerServer:
    """An Engine that can be stopped, killed, held and started again; its containers are `--network host`."""

    folder: Path
    """Short, since a socket's path may have only 107 bytes."""
    driver: str = "overlay2"
    live_restore: bool = True
    """Whether containers outlive its stop and start."""
    child: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        return f"unix://{self.folder / 'd.sock'}"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def engine(self) -> Engine:
        return Engine(self.url)

    def start(self, patience_s: float = 60.0) -> None:
        """Start it and wait until it answers."""
        for left in ("d.pid", "exec/containerd/containerd.pid"):
            (self.folder / left).unlink(missing_ok=True)
        command = [
            need("dockerd", "docker.io"), "--iptables=false", "--bridge=none", "--ip-forward=false",
            "--data-root", str(self.folder / "data"), "--exec-root", str(self.folder / "exec"),
            *(["--live-restore"] if self.live_restore else []), "-H", self.url,
             "--pidfile", str(self.folder / "d.pid"), "--storage-driver", self.driver,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(self._answers, self.child, self.log, patience_s)

    def _answers(self) -> bool:
        try:
            self.engine.containers("none")
        except EngineAway:
            return False
        return True

    def stop(self) -> None:
        """SIGTERM, as a service manager does."""
        assert self.child is not None
        self.child.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.child.wait(30)
        stop(self.child)

    def kill(self) -> None:
        """kill -9: containers live on."""
        assert self.child is not None
        self.child.kill()
        self.child.wait()

    @contextmanager
    def bridge(self) -> Iterator[str]:
        """The name of a network of its own, where this machine's kernel can make one; else the test is skipped."""
        name = f"rt{os.getpid()}"
        (self.folder / "bridge").write_text(name)  # for the guard
        with self.engine._errors() as client:
            try:
                client.create_network(name, driver="bridge", options={"com.docker.network.bridge.name": name})
            except APIError as error:
                pytest.skip(f"this machine makes no bridges: {error.explanation}")
            try:
                yield name
            finally:
                client.remove_network(name)

    def hold(self) -> None:
        """SIGSTOP: it accepts connections and answers nothing."""
        assert self.child is not None
        self.child.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.child is not None
        self.child.send_signal(signal.SIGCONT)


@contextmanager
def docker_server(*, disk_mb: int | None = None) -> Iterator[DockerServer]:
    """A running Engine, gone at the end with all that it ran and mounted, even if the test run is killed.

    `disk_mb`: give it a file system of this size, to be filled."""
    need("dockerd", "docker.io")
    if os.geteuid() != 0:
        if os.environ.get("CI") == "true":
            pytest.fail("dockerd needs root")
        pytest.skip("dockerd needs root")
    folder = Path(tempfile.mkdtemp(prefix="ratchet-docker-"))
    guard = subprocess.Popen([sys.executable, str(_GUARD), str(folder)], stdin=subprocess.PIPE, start_new_session=True)
    try:
        if disk_mb is not None:
            (folder / "data").mkdir()
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={disk_mb}m", "tmpfs", str(folder / "data")], check=True
            )
        server = DockerServer(folder=folder, driver=_driver(folder))
        server.start()
        yield server
        if server.child is not None and server.child.poll() is None:
            server.go_on()
            server.stop()
    finally:
        assert guard.stdin is not None
        guard.stdin.close()
        guard.wait(60)


def _driver(folder: Path) -> str:
    """overlay2 where this file system can carry it, else vfs."""
    for name in ("low", "up", "work", "merged"):
        (folder / "probe" / name).mkdir(parents=True)
    at = folder / "probe"
    options = f"lowerdir={at}/low,upperdir={at}/up,workdir={at}/work"
    mounted = subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, str(at / "merged")], check=False, capture_output=True
    )
    if mounted.returncode == 0:
        subprocess.run(["umount", str(at / "merged")], check=False)
    shutil.rmtree(at, ignore_errors=True)
    return "overlay2" if mounted.returncode == 0 else "vfs"
