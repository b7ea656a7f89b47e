"""What a commit holds, as `git ls-tree` lists it, and which of its names may be used. Pure.

Names and links come from whoever may push. Nothing here touches a file: paths are joined and judged as text, by the commit's own tree, so
neither `..` nor a link can lead out of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

BLOB, EXECUTABLE, LINK, TREE, MODULE = "100644", "100755", "120000", "040000", "160000"
FILE_MODES = (BLOB, EXECUTABLE, "100664")
NAME_BYTES_MAX = 255
PATH_BYTES_MAX = 2048
_DOT_GIT = re.compile(r"\.git[ .]*|git~\d+", re.IGNORECASE)
_IGNORED_BY_HFS = re.compile("[\u200c-\u200f\u202a-\u202e\u206a-\u206f\ufeff]")


class TreeRefused(ValueError):
    """The tree holds what may not be; the message names it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One line of a tree. `path` from the top, by `/`; bytes that are no UTF-8 stand in it as surrogates."""

    path: str
    mode: str
    id: str
    size: int

    @property
    def shown(self) -> str:
        """The path as it may be printed."""
        text = self.path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def parse(listing: Iterable[bytes]) -> Iterator[Entry]:
    """Entries of `git ls-tree -r -t -l -z`, whose records are given without their NULs. Raises TreeRefused."""
    for record in listing:
        head, tab, name = record.partition(b"\t")
        parts = head.split()
        if not tab or len(parts) != 4:
            raise TreeRefused("the tree cannot be read")
        mode, _kind, oid, size = (part.decode("ascii", "replace") for part in parts)
        yield Entry(
            path=name.decode("utf-8", "surrogateescape"), mode=mode, id=oid, size=int(size) if size.isdigit() else 0
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Tree:
    """All entries of a commit, folders too."""

    commit: str
    root: str
    """Id of the tree itself."""
    entries: Mapping[str, Entry] = field(repr=False)

    def below(self, folder: str) -> Iterator[Entry]:
        """Everything in the folder (empty: all of it), at any depth."""
        prefix = f"{folder}/" if folder else ""
        return (entry for path, entry in self.entries.items() if path.startswith(prefix))


def collect(commit: str, root: str, entries: Iterable[Entry], *, files_max: int) -> Tree:
    """Raises TreeRefused if there are too many, or two of one name."""
    found: dict[str, Entry] = {}
    for entry in entries:
        if entry.path in found:
            raise TreeRefused(f"{entry.shown} stands twice in its folder")
        found[entry.path] = entry
        if len(found) > files_max:
            raise TreeRefused(f"it holds more than {files_max:,} files and folders (git_max_files)")
    return Tree(commit=commit, root=root, entries=found)


def check_name(path: str) -> str:
    """What is wrong with a path as a place for a file, or an empty string.

    >>> check_name("a/b.py"), check_name("a/../b")
    ('', "'..' may not be a name")
    """
    if len(path.encode("utf-8", "surrogateescape")) > PATH_BYTES_MAX:
        return f"a path has at most {PATH_BYTES_MAX} bytes"
    for name in path.split("/"):
        if name in ("", ".", ".."):
            return f"{name!r} may not be a name"
        if "\\" in name or "\0" in name:
            return "a name may not hold a backslash"
        if len(name.encode("utf-8", "surrogateescape")) > NAME_BYTES_MAX:
            return f"a name has at most {NAME_BYTES_MAX} bytes"
        if _DOT_GIT.fullmatch(_IGNORED_BY_HFS.sub("", name)):
            return f"{name!r} may not be a name"
    return ""


def joined(file: str, path: str) -> str | None:
    """`path` as seen from the folder of `file`, from the top of the tree; None if it leads out of it.

    >>> joined("policies/flights.yaml", "../code"), joined("policies/flights.yaml", "../../x"), joined("f.yaml", ".")
    ('code', None, '')
    """
    parts: list[str] = list(PurePosixPath(file).parent.parts)
    for part in path.split("/"):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def link_target(path: str, target: str) -> str | None:
    """Where a link that stands at `path` leads, from the top; None if it leads out, or starts at the machine's root.

    >>> link_target("a/link", "../b"), link_target("a/link", "../../b"), link_target("a/link", "/etc/passwd")
    ('b', None, None)
    """
    return None if target.startswith("/") or not target else joined(path, target)
