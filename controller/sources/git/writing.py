"""Commits to a branch without a checkout: objects are written into the bare copy, and the branch is moved by a push that never forces.

A push that somebody was faster than fails, and is for the caller to begin anew on what stands there then.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from controller.sources.git.command import GitFailed
from controller.sources.git.mirror import DEPTH, Mirror

_LOST_RACE = re.compile(
    r"non-fast-forward|fetch first|failed to update ref|cannot lock ref|stale info|reference already exists",
    re.IGNORECASE,
)
TRAILER = "Ratchet-Decision"


class Overtaken(Exception):
    """Somebody pushed in between."""


class Writer:
    """Writes to the branch of a mirror. `author`: `Name <address>`; `signing_key`: an ssh key that signs, or None."""

    def __init__(self, mirror: Mirror, author: str, signing_key: Path | None) -> None:
        self.mirror = mirror
        name, _, address = author.partition("<")
        self._author, self._address = name.strip() or "Ratchet", address.strip(" >") or "ratchet@localhost"
        self._signing_key = signing_key

    def commit(self, parent: str, files: Mapping[str, bytes], message: str, at: datetime) -> str:
        """A commit on `parent` in which these files hold this; not pushed. Raises GitFailed."""
        git, tree = self.mirror.git, self.mirror.tree(parent)
        with tempfile.TemporaryDirectory(prefix="ratchet-index-") as folder:
            variables = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
            git.run("read-tree", parent, variables=variables)
            lines = b""
            for path, content in files.items():
                oid = git.run("hash-object", "-w", "--stdin", stdin=content).decode().strip()
                mode = tree.entries[path].mode if path in tree.entries else "100644"
                lines += f"{mode} {oid}\t{path}".encode() + b"\0"
            git.run("update-index", "-z", "--index-info", stdin=lines, variables=variables)
            root = git.run("write-tree", variables=variables).decode().strip()
        moment = f"{int(at.timestamp())} +0000"
        person = {
            f"GIT_{role}_{what}": value
            for role in ("AUTHOR", "COMMITTER")
            for what, value in (("NAME", self._author), ("EMAIL", self._address), ("DATE", moment))
        }
        options = ["-S"] if self._signing_key is not None else []
        made = git.run(
            *self._signing(),
            "commit-tree",
            root,
            "-p",
            parent,
            *options,
            "-F",
            "-",
            stdin=message.encode(),
            variables=person,
        )
        return made.decode().strip()

    def _signing(self) -> list[str]:
        if self._signing_key is None:
            return []
        return ["-c", "gpg.format=ssh", "-c", f"user.signingKey={self._signing_key}"]

    def push(self, commit: str) -> None:
        """Move the branch to the commit. Raises Overtaken, GitFailed."""
        access = self.mirror.access
        try:
            self.mirror.git.run(
                "push", "--quiet", "--no-verify", "--no-signed", "--recurse-submodules=no", "--", access.url,
                f"{commit}:refs/heads/{access.branch}", timeout_s=self.mirror.limits.fetch_s,
            )  # fmt: skip
        except GitFailed as error:
            if _LOST_RACE.search(error.words):
                raise Overtaken(str(error)) from error
            raise

    def decisions(self, commit: str) -> set[str]:
        """What the trailers of the last commits say that we wrote. Raises GitFailed."""
        out = self.mirror.git.run(
            "log", f"-{DEPTH}", "--no-show-signature", f"--format=%(trailers:key={TRAILER},valueonly)", "--end-of-options", commit,
            output_max=1 << 20,
        )  # fmt: skip
        return {line.strip() for line in out.decode("utf-8", "replace").splitlines() if line.strip()}
