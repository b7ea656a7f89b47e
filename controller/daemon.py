"""The daemon's process: start in order, serve until told to stop, and leave everything that serves running."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import structlog
import uvicorn

from config.settings import Settings, unknown_variables, unreadable_files
from controller.leadership import AlreadyRunning
from controller.store.port import StoreError
from controller.telemetry import logs
from controller.web.app import build_app
from controller.wiring import Parts, build
from pipelines.jobs.files import link_new, read_json, write_bytes_atomic, write_json_atomic

log = structlog.get_logger()

EXIT_OK = 0
EXIT_CANNOT_START = 3
EXIT_LOST_LEADERSHIP = 4
STANDBY_PATIENCE_S = 20.0
"""Longer than the store takes to say that it is away."""


class Daemon:
    """One run of the daemon."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._server: uvicorn.Server | None = None
        self._ending = threading.Event()
        self._exit = EXIT_OK
        self._leads = False
        self._turn = threading.Thread(name="standby")

    def run(self) -> int:
        """Serve until SIGTERM, SIGINT or loss of leadership; the exit code."""
        settings = self._settings
        logs.configure(settings.log_level, settings.log_format)
        for name, meant in unknown_variables(os.environ).items():
            hint = f"did you mean {meant}?" if meant else "docs/settings.md lists all settings"
            log.warning("settings.unknown", variable=name, note=f"is no setting and has no effect; {hint}")
        for name, reason in unreadable_files(settings).items():
            note = "what needs it will fail until it is there; it is read when it is needed"
            log.warning("settings.file_unreadable", setting=name, reason=reason, note=note)
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

    def _serve(self, parts: Parts, listener: socket.socket, epoch: int | None, token: str) -> int:
        url = url_of(*listener.getsockname()[:2])
        app = build_app(parts.service, parts.loop, token, stands_by=lambda: not self._leads, hooks=parts.hooks)
        config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=5)
        self._server = uvicorn.Server(config)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        if epoch is None:
            log.info("daemon.stands_by", url=url, home=str(self._settings.home), pid=os.getpid())
            self._turn = threading.Thread(target=self._stand_by, args=(parts, url), name="standby", daemon=True)
            self._turn.start()
        elif not self._lead(parts, url, epoch):
            return self._exit
        self._server.run(sockets=[listener])
        return self._exit

    def _lead(self, parts: Parts, url: str, epoch: int) -> bool:
        """Begin to act; False if that cannot be."""
        home = self._settings.home
        try:
            write_json_atomic(announcement(home), {"url": url, **_self()}, mode=0o600)
        except OSError as error:
            log.error("daemon.cannot_start", reason=f"{announcement(home)} cannot be written: {error}")
            self._end(EXIT_CANNOT_START)
            return False
        self._leads = True
        parts.loop.start()
        log.info("daemon.started", url=url, home=str(home), epoch=epoch, pid=os.getpid())
        return True

    def _stand_by(self, parts: Parts, url: str) -> None:
        """Ask for the lease until it is there, then lead. Touches nothing of the state folder before."""
        said = ""
        while not self._ending.wait(parts.leadership.retry_s):
            try:
                epoch = parts.leadership.start()
            except StoreError as error:
                if (words := str(error)) != said:
                    log.warning("standby.store_away", error=words)
                said = words
                continue
            if said:
                log.info("standby.store_back")
            said = ""
            if epoch is not None:
                self._lead(parts, url, epoch)
                return

    def _stop(self, parts: Parts) -> None:
        self._ending.set()
        if self._turn.is_alive():
            self._turn.join(STANDBY_PATIENCE_S)
        if self._leads:
            # its port may be another program's soon, and the token is not for that
            withdraw_announcement(self._settings.home)
            parts.loop.stop()
            parts.board.close()
        try:
            parts.leadership.stop()
        except StoreError as error:
            log.warning("lease.not_released", error=str(error))
        log.info("daemon.stopped", note="serving processes and jobs go on")

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._end(self._exit)

    def _on_lost(self, _reason: str) -> None:
        self._end(EXIT_LOST_LEADERSHIP)

    def _end(self, code: int) -> None:
        self._exit = code
        self._ending.set()
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
    """The API token, made on first use, readable by the owner of the state folder only. Of two daemons that make it at once, both get the
    same. Raises OSError."""
    path = home_token_path(home)
    for _ in range(2):
        with suppress(FileNotFoundError):
            if token := path.read_text().strip():
                return token
            path.unlink()  # empty
        made = path.with_name(f".token.{os.getpid()}")
        write_bytes_atomic(made, secrets.token_urlsafe(32).encode(), mode=0o600)
        try:
            link_new(made, path)
        finally:
            made.unlink(missing_ok=True)
    return path.read_text().strip()


def announcement(home: Path) -> Path:
    """The file that says where the API of the daemon that leads listens."""
    return home / "run" / "daemon.json"


def _self() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname()}


def withdraw_announcement(home: Path) -> None:
    """Unless it is another daemon's by now."""
    with suppress(OSError, ValueError):
        found = read_json(announcement(home))
        if isinstance(found, dict) and found.items() >= _self().items():
            announcement(home).unlink(missing_ok=True)


def home_token_path(home: Path) -> Path:
    return home / "run" / "token"


def run(settings: Settings | None = None) -> int:
    """Read the settings and run. Raises pydantic.ValidationError for settings that make no sense."""
    return Daemon(settings or Settings()).run()
