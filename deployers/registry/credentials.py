"""What a registry is told about who asks, from a file that the settings name. Never shown: not in a `repr`, a message or a log."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deployers.oci import RegistryDenied

_BYTES_MAX = 1 << 20
HIDDEN = "***"


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """Of one registry. With neither, it is asked without."""

    basic: str = field(default="", repr=False)
    """Base64 of `user:password`."""
    token: str = field(default="", repr=False)
    """A bearer token, sent as it is."""

    def secrets(self) -> Iterator[str]:
        """All that must not be shown, the longest forms first."""
        if self.token:
            yield self.token
        if self.basic:
            yield self.basic
            yield base64.b64decode(self.basic).decode(errors="replace").partition(":")[2]


def scrub(text: str, secrets: Iterator[str]) -> str:
    """The text without the secrets: a server may say back to us what we told it.

    >>> scrub("no such password: hunter2", iter(["hunter2"]))
    'no such password: ***'
    """
    for secret in secrets:
        if secret:
            text = text.replace(secret, HIDDEN)
    return text


def read_credentials(path: Path | None, host: str) -> Credentials:
    """The file's credentials for a host: docker's `config.json`, or one line, `user:password` or a token. Without a file: none.

    Read anew by each job, so that a renewed file holds at once. Raises RegistryDenied if it cannot be used; never with its content."""
    if path is None:
        return Credentials()
    try:
        if path.stat().st_size > _BYTES_MAX:
            raise RegistryDenied(
                f"registry_credentials: {path} is larger than {_BYTES_MAX} bytes; name a credentials file"
            )
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise RegistryDenied(f"registry_credentials: {path} cannot be read: {reason}") from None
    if text.startswith("{"):
        return _from_docker_config(text, host, path)
    lines = text.splitlines()
    if len(lines) != 1 or not text or any(c.isspace() for c in text):
        raise RegistryDenied(
            f"registry_credentials: {path} must be docker's config.json, or one line: user:password or a token"
        )
    return Credentials(basic=_encoded(text)) if ":" in text else Credentials(token=text)


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _from_docker_config(text: str, host: str, path: Path) -> Credentials:
    where = f"registry_credentials: {path}"
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise RegistryDenied(f"{where} begins like docker's config.json but is not JSON") from None
    auths = document.get("auths") if isinstance(document, dict) else None
    found = _entry(auths if isinstance(auths, dict) else {}, host)
    if found is None:
        helper = isinstance(document, dict) and (document.get("credsStore") or document.get("credHelpers"))
        hint = "; credential helpers are not run: write the credentials into a file of their own" if helper else ""
        raise RegistryDenied(f"{where} has nothing for {host} under auths; run docker login {host}{hint}")
    if isinstance(found.get("registrytoken"), str) and found["registrytoken"]:
        return Credentials(token=found["registrytoken"])
    if isinstance(found.get("username"), str) and isinstance(found.get("password"), str):
        return Credentials(basic=_encoded(f"{found['username']}:{found['password']}"))
    try:
        plain = base64.b64decode(found.get("auth") or "", validate=True).decode()
    except (binascii.Error, UnicodeError, TypeError, ValueError):
        plain = ""
    if ":" not in plain:
        raise RegistryDenied(f"{where}: the entry for {host} holds no user and password; run docker login {host}")
    return Credentials(basic=_encoded(plain.rstrip("\0")))


def _entry(auths: Mapping[str, Any], host: str) -> Mapping[str, Any] | None:
    names = {host, f"https://{host}", f"http://{host}"}
    if host == "registry-1.docker.io":
        names |= {"docker.io", "index.docker.io", "https://index.docker.io"}
    for key, value in auths.items():
        bare = key.rstrip("/").removesuffix("/v1").removesuffix("/v2")
        if bare in names and isinstance(value, dict):
            return value
    return None
