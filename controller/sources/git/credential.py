"""Git's credential helper: a program of its own that `git` starts when a server asks who we are. Imports nothing of ours.

Answers with what stands in the file that `RATCHET_GIT_CREDENTIALS_FILE` names, only for the protocol and host of the setting: a server
that sends `git` elsewhere must not learn it. Prints nothing but the answer, which goes to `git` through a pipe.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def answer(asked: str, file: Path, only_for: str) -> str:
    """The reply in Git's credential protocol; empty if another server asks.

    >>> answer("protocol=https\\nhost=evil.example\\n", Path("/nowhere"), "https://git.example.org")
    ''
    """
    wanted = dict(line.split("=", 1) for line in asked.splitlines() if "=" in line)
    if f"{wanted.get('protocol', '')}://{wanted.get('host', '')}" != only_for:
        return ""
    found: dict[str, str] = {}
    for line in file.read_text("utf-8").splitlines():
        key, equals, value = line.partition("=")
        if equals and not key.lstrip().startswith("#"):
            found[key.strip()] = value.strip()
    password = found.get("token") or found.get("password", "")
    username = found.get("username") or "x-access-token"
    return f"username={username}\npassword={password}\n"


def main() -> int:
    if sys.argv[1:] != ["get"]:
        return 0  # store and erase: the file is its owner's to change
    try:
        asked = sys.stdin.read(64 << 10)
        file = Path(os.environ["RATCHET_GIT_CREDENTIALS_FILE"])
        sys.stdout.write(answer(asked, file, os.environ["RATCHET_GIT_CREDENTIALS_FOR"]))
    except (OSError, KeyError, ValueError):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
