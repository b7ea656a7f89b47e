"""Talking to the daemon: where it is, and what its refusals mean for the exit code."""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

DEFAULT_HOME = ".ratchet"
TIMEOUT_S = 30.0


class Exit(IntEnum):
    """Exit codes, documented in docs/cli.md."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    UNREACHABLE = 3
    STALE = 4
    INVALID_POLICY = 5
    INTERRUPTED = 130


class CliError(Exception):
    """Ends the command: `message` goes to standard error, `code` to the shell."""

    def __init__(self, message: str, code: Exit = Exit.REFUSED) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class Place:
    """Where the daemon is, as said on the command line. One a process."""

    server: str | None = None
    token: str | None = None
    home: Path | None = None

    def home_folder(self) -> Path:
        return (self.home or Path(os.environ.get("RATCHET_HOME") or DEFAULT_HOME)).expanduser().absolute()

    def url(self) -> str:
        """Of the API. Raises CliError if no daemon has announced itself."""
        given = self.server or os.environ.get("RATCHET_SERVER")
        if given:
            if urlsplit(given).scheme not in ("http", "https"):
                raise CliError(f"--server must start with http:// or https://, but got {given!r}", Exit.USAGE)
            return given.rstrip("/")
        path = self.home_folder() / "run" / "daemon.json"
        try:
            return str(json.loads(path.read_bytes())["url"])
        except FileNotFoundError:
            raise CliError(
                f"no daemon runs on {self.home_folder()}: start one with 'ratchet daemon', or say where it is "
                "with --home (RATCHET_HOME) or --server (RATCHET_SERVER)", Exit.UNREACHABLE,
            ) from None  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CliError(f"{path} cannot be read: {error}", Exit.UNREACHABLE) from error

    def secret(self) -> str:
        """The token; empty if there is none, which the daemon then refuses.

        That of the state folder is for this machine's daemon: another machine gets it only if the folder was named too."""
        given = self.token or os.environ.get("RATCHET_TOKEN")
        if given:
            return given
        server = self.server or os.environ.get("RATCHET_SERVER")
        if server and not is_here(server) and self.home is None and not os.environ.get("RATCHET_HOME"):
            return ""
        try:
            return (self.home_folder() / "run" / "token").read_text().strip()
        except OSError:
            return ""


PLACE = Place()


def is_here(url: str) -> bool:
    """
    >>> is_here("http://127.0.0.1:8640"), is_here("http://127.0.0.1.example:8640"), is_here("http://127.0.0.1@example")
    (True, False, False)
    """
    return (urlsplit(url).hostname or "") in ("localhost", "127.0.0.1", "::1")


def actor() -> str:
    """Who gives the orders, for the record: `user@host`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def call(
    method: str, path: str, *, params: Mapping[str, Any] | None = None, body: Mapping[str, Any] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Any:  # fmt: skip
    """The JSON answer of `/api/v1` + `path`. Raises CliError with the code that the refusal calls for."""
    import httpx

    url = PLACE.url()
    try:
        with httpx.Client(timeout=timeout_s, trust_env=not is_here(url)) as client:
            answer = client.request(
                method, f"{url}/api/v1{path}", params={k: v for k, v in (params or {}).items() if v is not None},
                json=body, headers={"authorization": f"Bearer {PLACE.secret()}"},
            )  # fmt: skip
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CliError(
            f"the daemon does not answer at {url}: {error}; is it running? 'ratchet daemon' starts it", Exit.UNREACHABLE
        ) from error
    if answer.is_success:
        return _json(answer, url)
    raise _refusal(answer, url)


def _json(answer: Any, url: str) -> Any:
    try:
        return answer.json()
    except ValueError as error:
        raise CliError(
            f"{url} does not answer like a ratchet daemon: {answer.text[:100]!r}", Exit.UNREACHABLE
        ) from error


def _refusal(answer: Any, url: str) -> CliError:
    told = _json(answer, url)
    told = told if isinstance(told, dict) else {}
    error, code = str(told.get("error", answer.reason_phrase)), told.get("code")
    if code == "stale_preview":
        return CliError(error, Exit.STALE)
    if code == "invalid_policy":
        return CliError("\n".join(told.get("problems", [error])), Exit.INVALID_POLICY)
    if code == "unauthorized":
        return CliError(f"the daemon at {url} does not accept the token: give it with --token or RATCHET_TOKEN")
    return CliError(error)
