"""How a repository may be reached: which addresses, with which credentials, and in which environment `git` runs.

Secrets stay in their files. `git` asks for a password through a credential helper (`controller.sources.git.credential`), which reads the
file when asked and answers only for the host of the setting; ssh is given the name of a key file. So no secret stands on a command line, in
a variable, in the URL or in a repository's configuration. Neither the system's nor a user's Git configuration is read.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

PROTOCOLS = ("https", "ssh", "http", "file")
SECRET_BYTES_MAX = 64 << 10
_SCP = re.compile(r"(?:(?P<user>[\w.-]+)@)?(?P<host>[\w.-]+):(?P<path>[^:].*)")
_BRANCH = re.compile(r"[A-Za-z0-9_][\w./+-]*")
_KEPT = ("PATH", "TMPDIR", "https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY",
         "SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO")  # fmt: skip
"""Variables that `git` inherits: where programs, proxies and certificates are."""
TOKEN_USER = "x-access-token"  # noqa: S105 - a name, which GitHub asks for with a token; other forges take any
CREDENTIALS_VARIABLE = "RATCHET_GIT_CREDENTIALS_FILE"
HOST_VARIABLE = "RATCHET_GIT_CREDENTIALS_FOR"


class AccessError(ValueError):
    """A setting about Git that cannot be used; the message names it and holds no secret."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """A branch of a repository, and how to get at it."""

    url: str
    branch: str
    credentials: Path | None = None
    """File with lines `token=…`, or `username=…` and `password=…`."""
    ssh_key: Path | None = None
    known_hosts: Path | None = None
    protocols: tuple[str, ...] = ("https", "ssh")
    prefix: str = "git"
    """With which the names of its settings begin, for messages."""

    @property
    def scheme(self) -> str:
        return "ssh" if _is_scp(self.url) else urlsplit(self.url).scheme

    @property
    def host(self) -> str:
        """With the port, as `git` asks for credentials."""
        return "" if _is_scp(self.url) else urlsplit(self.url).netloc.rpartition("@")[2]


def checked(access: Access) -> Access:
    """The same, if it can be used. Raises AccessError with the setting's name and what to do."""
    url, of = access.url, access.prefix
    setting = f"{of}_url"
    if not url.isprintable() or " " in url or url.startswith("-") or "::" in url.partition("//")[0]:
        raise AccessError(f"{setting} must be a plain URL, such as https://git.example.org/team/models.git")
    scheme = access.scheme
    if scheme not in PROTOCOLS:
        raise AccessError(
            f"{setting} must start with https:// or ssh:// (or http:// or file://, if git_protocols allows)"
        )
    if not _is_scp(url):
        parts = urlsplit(url)
        if parts.password is not None or (scheme in ("http", "https") and parts.username is not None):
            raise AccessError(
                f"{setting} must not hold a user name or password: put them into a file and name it in {of}_credentials_file"
            )
        if parts.query or parts.fragment or (scheme != "file" and not parts.hostname) or parts.path in ("", "/"):
            raise AccessError(f"{setting} must name a repository, such as https://git.example.org/team/models.git")
        if (parts.hostname or "").startswith("-"):
            raise AccessError(f"{setting}: a host's name does not start with '-'")
    if scheme not in access.protocols:
        allowed = ",".join(access.protocols)
        raise AccessError(f"{setting}: {scheme} is not among git_protocols ({allowed}); add it there if that is meant")
    branch = access.branch
    if (
        not _BRANCH.fullmatch(branch)
        or any(bad in branch for bad in ("..", "//", "/.", ".lock/"))
        or branch.endswith(("/", ".", ".lock"))
    ):
        raise AccessError(f"{of}_branch must be a branch's name, such as main, but got {branch[:80]!r}")
    if access.credentials is not None and scheme not in ("http", "https"):
        raise AccessError(
            f"{of}_credentials_file is for https; over ssh give {of}_ssh_key_file and {of}_known_hosts_file"
        )
    if scheme == "ssh" and (access.ssh_key is None or access.known_hosts is None):
        raise AccessError(
            f"over ssh {of}_ssh_key_file and {of}_known_hosts_file are needed: a host that nobody vouches for is not trusted"
        )
    return access


def _is_scp(url: str) -> bool:
    """Whether it is `user@host:path`, ssh's short form."""
    return "://" not in url and _SCP.fullmatch(url) is not None


def read_secrets(file: Path, setting: str = "git_credentials_file") -> dict[str, str]:
    """`username` and `password` of a credentials file. Raises AccessError, which says what is wrong and shows nothing of it."""
    try:
        if file.stat().st_size > SECRET_BYTES_MAX:
            raise AccessError(f"{setting} {file} is too large to be one")
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AccessError(
            f"{setting} {file} cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}"
        ) from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key, equals, value = line.partition("=")
        if not equals or key.strip() not in ("username", "password", "token"):
            raise AccessError(f"{setting} {file}:{number}: a line is token=…, username=… or password=…")
        found[key.strip()] = value.strip()
    if "token" in found:
        found.setdefault("username", TOKEN_USER)
        found["password"] = found.pop("token")
    if not found.get("username") or not found.get("password"):
        raise AccessError(f"{setting} {file} must hold token=…, or username=… and password=…")
    return found


def secrets_of(access: Access) -> tuple[str, ...]:
    """What must not be said, as far as it is known; empty if the file cannot be read."""
    if access.credentials is None:
        return ()
    try:
        return (read_secrets(access.credentials)["password"],)
    except AccessError:
        return ()


def options(access: Access) -> list[str]:
    """`-c` options of every call: nothing that a repository or its server says may start a program or lead elsewhere."""
    fixed = {
        "core.hooksPath": os.devnull,
        "core.fsmonitor": "false",
        "core.bigFileThreshold": "1m",  # larger ones are streamed and never held in memory whole
        "core.attributesFile": os.devnull,
        "core.askPass": "",
        "core.protectHFS": "true",
        "core.protectNTFS": "true",
        "credential.helper": "",
        "protocol.allow": "never",
        f"protocol.{access.scheme}.allow": "always",
        "http.followRedirects": "false",
        "http.lowSpeedLimit": "1",
        "http.lowSpeedTime": "30",
        "transfer.fsckObjects": "true",
        "fetch.fsckObjects": "true",
        "fetch.unpackLimit": "1",
        "fetch.recurseSubmodules": "false",
        "submodule.recurse": "false",
        "gc.auto": "0",
        "maintenance.auto": "false",
        "advice.detachedHead": "false",
        "push.gpgSign": "false",
        "commit.gpgSign": "false",
    }
    found = [part for key, value in fixed.items() for part in ("-c", f"{key}={value}")]
    if access.credentials is not None:
        helper = " ".join(
            shlex.quote(part) for part in (sys.executable, "-I", str(Path(__file__).with_name("credential.py")))
        )
        found += ["-c", f"credential.helper=!{helper}"]
    return found


def environment(access: Access) -> dict[str, str]:
    """All that `git` finds in its environment, as far as it is ours to say. Holds names of files, never a secret."""
    found = {name: os.environ[name] for name in _KEPT if name in os.environ}
    found |= {
        "HOME": "/nonexistent",
        "XDG_CONFIG_HOME": "/nonexistent",
        "LC_ALL": "C",
        "LANGUAGE": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "",
        "SSH_ASKPASS": "",
        "GIT_ALLOW_PROTOCOL": access.scheme,
        "GIT_PROTOCOL_FROM_USER": "0",
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_SSH_VARIANT": "ssh",
        "GIT_SSH_COMMAND": " ".join(shlex.quote(part) for part in _ssh(access)),
    }
    if access.credentials is not None:
        found |= {CREDENTIALS_VARIABLE: str(access.credentials), HOST_VARIABLE: f"{access.scheme}://{access.host}"}
    return found


def _ssh(access: Access) -> Sequence[str]:
    chosen: Mapping[str, str] = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "GlobalKnownHostsFile": os.devnull,
        "UserKnownHostsFile": str(access.known_hosts or os.devnull),
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "ForwardAgent": "no",
        "ClearAllForwardings": "yes",
        "PermitLocalCommand": "no",
        "UpdateHostKeys": "no",
        "ConnectTimeout": "15",
        "ServerAliveInterval": "10",
        "ServerAliveCountMax": "3",
        "LogLevel": "ERROR",
    }
    key = ["-i", str(access.ssh_key)] if access.ssh_key is not None else []
    return [
        "ssh",
        "-F",
        os.devnull,
        *key,
        *(part for name, value in chosen.items() for part in ("-o", f"{name}={value}")),
    ]
