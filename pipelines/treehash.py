"""Git's name for a folder's content, computed from the files: whether a worktree still is what its commit says, to the last byte.

A folder is a tree object (Git internals, "Git Objects"): its entries sorted as Git sorts them, each `mode name NUL id`, behind a header
`tree LENGTH NUL`, hashed. A file is a blob. Empty folders have no name in Git, so they are left out.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path


def tree_id(folder: Path, *, like: str) -> str:
    """The id of the folder's tree. `like`: an id of the same repository, whose length says which hash it uses. Raises OSError."""
    return _tree(os.fspath(folder), "sha256" if len(like) == 64 else "sha1").hex()


def _tree(folder: str, algorithm: str) -> bytes:
    lines: list[tuple[bytes, bytes]] = []
    for entry in os.scandir(os.fsencode(folder)):
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            if any(os.scandir(entry.path)):
                lines.append(
                    (entry.name + b"/", b"40000 " + entry.name + b"\0" + _tree(os.fsdecode(entry.path), algorithm))
                )
        elif stat.S_ISLNK(mode):
            lines.append(
                (entry.name, b"120000 " + entry.name + b"\0" + _hash(b"blob", os.readlink(entry.path), algorithm))
            )
        else:
            kind = b"100755 " if mode & stat.S_IXUSR else b"100644 "
            lines.append(
                (
                    entry.name,
                    kind + entry.name + b"\0" + _hash(b"blob", Path(os.fsdecode(entry.path)).read_bytes(), algorithm),
                )
            )
    return _hash(b"tree", b"".join(line for _, line in sorted(lines)), algorithm)


def _hash(kind: bytes, content: bytes, algorithm: str) -> bytes:
    return hashlib.new(algorithm, kind + b" %d\0" % len(content) + content, usedforsecurity=False).digest()
