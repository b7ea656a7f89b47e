"""Where the state database is, taken out of `RATCHET_DATABASE`, with passwords kept apart so that no message can show one.

An SQLite database is a file. A PostgreSQL one is a server (or several, of which the writable one is taken) with a user and a database; its
password may stand in the URL, in a file that is read anew for each connection, or wherever libpq looks for it (`PGPASSWORD`, `PGPASSFILE`,
`~/.pgpass`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError

from controller.store.port import StoreError

EXAMPLES = "give sqlite:////absolute/path/state.db or postgresql://user@host:5432/database"
PARAMETERS = frozenset(
    {"host", "port", "sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "sslnegotiation", "channel_binding",
     "gssencmode", "target_session_attrs", "load_balance_hosts", "application_name", "require_auth", "passfile"}
)  # fmt: skip
"""Of a PostgreSQL URL, as libpq names them. None of them is a secret, and none overrides what the store itself must set."""
PASSWORD_BYTES_MAX = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class PostgresAddress:
    """`url` is without password and may be shown."""

    url: URL
    password_file: Path | None = None
    _password: str | None = field(default=None, repr=False)

    @property
    def where(self) -> str:
        """For messages."""
        return self.url.set(drivername="postgresql", query={}).render_as_string() + "".join(
            f" ({name} {', '.join([value] if isinstance(value, str) else value)})"
            for name, value in self.url.query.items()
            if name in ("host", "port")
        )

    def password(self) -> str | None:
        """The password of now; None leaves it to libpq. Raises StoreError if its file cannot be read."""
        if self.password_file is None:
            return self._password
        return read_password(self.password_file)


def read_password(path: Path) -> str:
    """The first line of the file. Raises StoreError."""
    try:
        with path.open("rb") as file:
            content = file.read(PASSWORD_BYTES_MAX + 1)
        lines = content.decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise StoreError(
            f"RATCHET_DATABASE_PASSWORD_FILE: {path} cannot be read ({reason}); give a file that holds the password"
        ) from None
    if not lines or not lines[0] or len(content) > PASSWORD_BYTES_MAX:
        raise StoreError(
            f"RATCHET_DATABASE_PASSWORD_FILE: {path} must hold the password on its first line, and no more"
        )
    return lines[0]


def study_address(url: str | None, password_file: Path | None) -> dict[str, str | None]:
    """What jobs are told of the database of studies, in plain JSON; empty if there is none.

    Raises StoreError; also for a password in the URL, because what jobs are told is written down."""
    if url is None:
        return {}
    parsed = _parsed(url)
    shown = parsed.set(query={}).render_as_string(hide_password=True)
    if (
        parsed.drivername not in ("postgresql", "postgresql+psycopg")
        or not parsed.database
        or set(parsed.query) - PARAMETERS
    ):
        raise StoreError(f"RATCHET_STUDY_DATABASE: {shown!r} cannot be used; give postgresql://user@host:5432/database")
    if parsed.password is not None:
        raise StoreError(
            f"RATCHET_STUDY_DATABASE: {shown!r} holds a password; put it into RATCHET_STUDY_DATABASE_PASSWORD_FILE"
        )
    plain = parsed.set(drivername="postgresql+psycopg").render_as_string()
    return {"url": plain, "password_file": str(password_file.absolute()) if password_file else None}


def parse_address(url: str, password_file: Path | None = None) -> Path | PostgresAddress:
    """The file of an SQLite URL such as `sqlite:////var/lib/ratchet/state.db`, or the address of a PostgreSQL database.

    Raises StoreError for any other URL."""
    parsed = _parsed(url)
    if parsed.get_backend_name() == "postgresql":
        return _postgres(parsed, password_file)
    shown = parsed.render_as_string(hide_password=True)
    if parsed.get_backend_name() != "sqlite":
        shown = parsed.set(query={}).render_as_string(hide_password=True)  # some drivers take passwords as parameters
        raise StoreError(f"store url: {shown!r} is not supported; {EXAMPLES}")
    if not parsed.database or parsed.database == ":memory:" or parsed.database.startswith("file:") or parsed.query:
        raise StoreError(f"store url: {shown!r} names no plain file; {EXAMPLES}")
    if password_file is not None:
        raise StoreError("RATCHET_DATABASE_PASSWORD_FILE: an SQLite file has no password; leave it out")
    return Path(parsed.database)


def _parsed(url: str) -> URL:
    try:
        return sa.make_url(url)
    except (ArgumentError, ValueError):
        # not shown: what cannot be taken apart may hold a password anywhere
        raise StoreError(f"store url: RATCHET_DATABASE is not a database URL; {EXAMPLES}") from None


def _postgres(parsed: URL, password_file: Path | None) -> PostgresAddress:
    shown = parsed.set(query={}).render_as_string(hide_password=True)
    if parsed.drivername not in ("postgresql", "postgresql+psycopg"):
        raise StoreError(f"store url: {shown!r} names another driver; give postgresql://user@host:5432/database")
    if "password" in parsed.query or (parsed.password is not None and password_file is not None):
        raise StoreError(
            "store url: RATCHET_DATABASE must not hold a password where RATCHET_DATABASE_PASSWORD_FILE does, nor as a parameter; "
            "leave it out of the URL"
        )
    if unknown := sorted(set(parsed.query) - PARAMETERS):
        raise StoreError(
            f"store url: {shown!r} has the parameter {unknown[0]!r}, but takes only {', '.join(sorted(PARAMETERS))}"
        )
    if not parsed.database:
        raise StoreError(f"store url: {shown!r} names no database; give postgresql://user@host:5432/database")
    bare = URL.create(
        "postgresql+psycopg", username=parsed.username, host=parsed.host, port=parsed.port, database=parsed.database,
        query=parsed.query,
    )  # fmt: skip
    return PostgresAddress(url=bare, password_file=password_file, _password=parsed.password)
