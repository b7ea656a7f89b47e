"""A PostgreSQL of the tests' own: on loopback, with a password, without fsync, in a temporary folder that goes with it."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import free_port, need, running, stop, wait_until

FOLDERS = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
"""Debian keeps the server's commands off the path."""
USER = "ratchet_test"
PASSWORD = "s3cret-of-the-tests"  # long and odd enough to be looked for in logs
_NAMES = itertools.count(1)


@dataclass
class Postgres:
    """A running server. `start` and `stop` may be called again and again."""

    folder: Path
    port: int
    durable: bool = False
    """Whether a commit is on disk before it is answered, as it should be where data matter."""
    process: subprocess.Popen[bytes] | None = None
    _shared: str = ""
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    @property
    def password_file(self) -> Path:
        return self.folder / "password"

    def url(self, database: str, *, port: int | None = None) -> str:
        """Without the password, which stands in `password_file`."""
        return f"postgresql://{USER}@127.0.0.1:{port or self.port}/{database}"

    def command(self, name: str) -> str:
        return need(name, package="postgresql", folders=FOLDERS)

    def env(self) -> dict[str, str]:
        """For psql, pg_dump and the like."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        here = {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": USER, "PGPASSWORD": PASSWORD}
        return {**kept, **here}

    def start(self) -> None:
        on_disk = "on" if self.durable else "off"
        options = {
            "listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "",
            "fsync": on_disk, "synchronous_commit": on_disk, "full_page_writes": on_disk, "max_connections": 60, "shared_buffers": "32MB",
        }  # fmt: skip
        given = [f"-c{name}={value}" for name, value in options.items()]
        self.process = self._stack.enter_context(
            running(
                [self.command("postgres"), "-D", str(self.folder / "data"), *given], self.log, cwd=self.folder,
                user=_other_user(), dies_by=signal.SIGQUIT,
            )
        )  # fmt: skip
        wait_until(self._answers, self.process, self.log)

    def stop(self, *, kill: bool = False) -> None:
        """In order, sending every client away; or by `kill -9`."""
        assert self.process is not None
        if kill:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
            while self._has_company():
                time.sleep(0.02)
        else:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(20)

    def _has_company(self) -> bool:
        assert self.process is not None
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def _answers(self) -> bool:
        with contextlib.suppress(Exception):
            self.sql("SELECT 1")
            return True
        return False

    def sql(self, statement: str, database: str = "postgres", *parameters: Any) -> list[Any]:
        """The rows of one statement, outside any transaction of its own."""
        import psycopg

        with psycopg.connect(
            host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, dbname=database, autocommit=True,
            connect_timeout=5,
        ) as db:  # fmt: skip
            done = db.execute(statement.encode(), parameters or None)
            return done.fetchall() if done.description else []

    def clean_database(self) -> str:
        """The name of a database that is empty again, and that nobody is connected to. Far quicker than a new one, of 300 files."""
        if not self._shared:
            self._shared = self.new_database()
            return self._shared
        self.sql(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", "postgres", self._shared
        )
        self.sql("DROP SCHEMA public CASCADE", self._shared)
        self.sql("CREATE SCHEMA public AUTHORIZATION pg_database_owner", self._shared)
        self.sql("GRANT USAGE ON SCHEMA public TO PUBLIC", self._shared)
        return self._shared

    def new_database(self, icu_locale: str = "") -> str:
        """The name of an empty database, sorted as the server does or by an ICU locale. It goes with the server's folder."""
        name = f"t{os.getpid()}_{next(_NAMES)}"
        sorted_by = f"LOCALE_PROVIDER icu ICU_LOCALE '{icu_locale}'" if icu_locale else ""
        self.sql(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' {sorted_by}")
        return name

    def close(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGQUIT)  # SIGTERM would wait for clients to leave
            stop(self.process)
        self._stack.close()


def _other_user() -> str | None:
    """The server refuses to run as root."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return None


@contextlib.contextmanager
def running_postgres(*, durable: bool = False) -> Iterator[Postgres]:
    """A new server with a superuser `USER`. Skips (or fails, under CI) where PostgreSQL is not installed."""
    initdb = need("initdb", package="postgresql", folders=FOLDERS)
    folder = Path(tempfile.mkdtemp(prefix="ratchet-postgres-"))
    try:
        (folder / "password").write_text(PASSWORD + "\n")
        user = _other_user()
        if user is not None:
            for path in (folder, folder / "password"):
                shutil.chown(path, user)
        subprocess.run(
            [initdb, "-D", str(folder / "data"), "-U", USER, "--auth=scram-sha-256", "--pwfile", str(folder / "password"),
             "--no-sync", "-E", "UTF8", "--locale=C.UTF-8"],
            user=user, cwd=folder, check=True, capture_output=True, timeout=120, env={"PATH": os.environ["PATH"]},
        )  # fmt: skip
        server = Postgres(folder=folder, port=free_port(), durable=durable)
        try:
            server.start()
            yield server
        finally:
            server.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
