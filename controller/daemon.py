"""The daemon's process: start in order, serve until told to stop, and leave everything that serves running."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import structlog
import uvicorn

from config.settings import Settings, unknown_variables
from controller.leadership import AlreadyRunning
from controller.store.port import StoreError
from controller.telemetry import logs
from controller.web.app import build_app
from controller.wiring import Parts, build
from pipelines.jobs.files import write_bytes_atomic, write_json_atomic

log = structlog.get_logger()

EXIT_OK = 0
EXIT_CANNOT_START = 3
EXIT_LOST_LEADERSHIP = 4


class Daemon:
    """One run of the daemon."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._server: uvicorn.Server | None = None
        self._lost = threading.Event()

    def run(self) -> int:
        """Serve until SIGTERM, SIGINT or loss of leadership; the exit code."""
        settings = self._settings
        logs.configure(settings.log_level, settings.log_format)
        for name, meant in unknown_variables(os.environ).items():
            hint = f"did you mean {meant}?" if meant else "docs/settings.md lists all settings"
            log.warning("settings.unknown", variable=name, note=f"is no setting and has no effect; {hint}")
        with ExitStack() as to_close:
            try:
                listener = to_close.enter_context(_listen(settings.host, settings.port))
                parts = build(settings, self._on_lost)
                to_close.callback(parts.store.close)
                token = ensure_token(settings.home)
                epoch = parts.leadership.start()
            except (AlreadyRunning, StoreError, OSError, ValueError) as error:
                log.error("daemon.cannot_start", reason=str(error))
                return EXIT_CANNOT_START
            try:
                return self._serve(parts, listener, epoch, token)
            finally:
                self._stop(parts)

    def _serve(self, parts: Parts, listener: socket.socket, epoch: int, token: str) -> int:
        home = self._settings.home
        url = url_of(*listener.getsockname()[:2])
        app = build_app(parts.service, parts.loop, token)
        config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=5)
        self._server = uvicorn.Server(config)
        try:
            write_json_atomic(announcement(home), {"url": url, "pid": os.getpid()}, mode=0o600)
        except OSError as error:
            log.error("daemon.cannot_start", reason=f"{announcement(home)} cannot be written: {error}")
            return EXIT_CANNOT_START
        parts.loop.start()
        log.info("daemon.started", url=url, home=str(home), epoch=epoch, pid=os.getpid())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._server.run(sockets=[listener])
        return EXIT_LOST_LEADERSHIP if self._lost.is_set() else EXIT_OK

    def _stop(self, parts: Parts) -> None:
        announcement(self._settings.home).unlink(
            missing_ok=True
        )  # its port may be another program's soon, and the token is not for that
        parts.loop.stop()
        try:
            parts.leadership.stop()
        except StoreError as error:
            log.warning("lease.not_released", error=str(error))
        log.info("daemon.stopped", note="serving processes and jobs go on")

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self._server is not None:
            self._server.should_exit = True

    def _on_lost(self, _reason: str) -> None:
        self._lost.set()
        if self._server is not None:
            self._server.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError with a message that says what to do when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        message = f"cannot listen on {host}:{port} (RATCHET_HOST, RATCHET_PORT): {error.strerror}; stop what uses it or choose another port"
        raise OSError(message) from error
    return listener


def url_of(address: str, port: int) -> str:
    """Where whoever is on this machine reaches what listens on this address. All addresses are no address that one could ask for.

    >>> url_of("127.0.0.1", 8640), url_of("0.0.0.0", 8640), url_of("::", 8640)
    ('http://127.0.0.1:8640', 'http://127.0.0.1:8640', 'http://[::1]:8640')
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104 - looked for, not listened on
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def ensure_token(home: Path) -> str:
    """The API token, made on first use, readable by the owner of the state folder only."""
    path = home_token_path(home)
    try:
        token = path.read_text().strip()
    except FileNotFoundError:
        token = ""
    if not token:
        token = secrets.token_urlsafe(32)
        write_bytes_atomic(path, token.encode(), mode=0o600)
    return token


def announcement(home: Path) -> Path:
    """The file that says where the API listens while the daemon runs."""
    return home / "run" / "daemon.json"


def home_token_path(home: Path) -> Path:
    return home / "run" / "token"


def run(settings: Settings | None = None) -> int:
    """Read the settings and run. Raises pydantic.ValidationError for settings that make no sense."""
    return Daemon(settings or Settings()).run()
