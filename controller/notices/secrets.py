"""Secrets of notifiers and hooks: read from a file or an environment variable when they are needed, so that they can be replaced while
the daemon runs, and never shown."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

BYTES_MAX = 65_536


class SecretError(Exception):
    """It cannot be read; the message names the file or variable, never what is in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Secret:
    """Where a secret stands: in a file, or else in a variable."""

    name: str
    """The setting without its ending, such as `slack_token`."""
    file: Path | None = None
    variable: str = ""
    value: str = field(default="", repr=False)
    """Itself, where it was made by the daemon; for tests too."""

    @property
    def is_set(self) -> bool:
        """Whether there is a place to read it from."""
        return bool(self.file or self.variable or self.value)

    def read(self) -> str:
        """Raises SecretError."""
        if self.value:
            return self.value
        if self.file is not None:
            return self._from_file(self.file)
        if not self.variable:
            setting = f"RATCHET_{self.name.upper()}"
            raise SecretError(f"{setting}_FILE is not set (nor {setting}_ENV)")
        found = os.environ.get(self.variable, "").strip()
        if not found:
            raise SecretError(f"{self.name}: the environment variable {self.variable} is empty or not set")
        return found

    def _from_file(self, path: Path) -> str:
        try:
            with path.open("rb") as file:
                raw = file.read(BYTES_MAX + 1)
        except OSError as error:
            raise SecretError(f"{self.name}: {path} cannot be read: {error.strerror or type(error).__name__}") from None
        try:
            found = raw.decode().strip()
        except UnicodeDecodeError:
            raise SecretError(f"{self.name}: {path} is not text") from None
        if not found or len(raw) > BYTES_MAX or "\n" in found:
            raise SecretError(f"{self.name}: {path} must hold one line, the secret")
        return found


def redacted(channel: str) -> str:
    """A channel's name as it may be logged: of a URL only the host, since paths and parameters of webhooks are often secret.

    >>> redacted("webhook:https://hooks.example.com/services/T0/B0/secret?k=v"), redacted("slack:#ops")
    ('webhook:https://hooks.example.com/…', 'slack:#ops')
    """
    kind, _, rest = channel.partition(":")
    if "://" not in rest:
        return channel
    return f"{kind}:{host_of(rest)}"


def host_of(url: str) -> str:
    """A URL as it may be told."""
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname or '?'}{f':{parts.port}' if parts.port else ''}/…"
    except ValueError:
        return "…"


def is_address(url: str) -> bool:
    """
    >>> [is_address(url) for url in ("https://a/b", "ftp://a", "https://[", "http://")]
    [True, False, False, False]
    """
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
