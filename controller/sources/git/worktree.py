"""Worktrees: the files of a pinned commit, made from its objects, read-only, all at once or not at all.

`git checkout` is not used: it would run filters, follow attributes and leave what it finds. Files are written before any link is made, so
nothing can be written through a link; each link must end inside. Where a name cannot be had (a file system that does not tell `A` from
`a`), the worktree is refused rather than made of something else.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import structlog

from controller.sources.git.mirror import CommitInfo, Mirror
from controller.sources.git.trees import FILE_MODES, LINK, MODULE, TREE, Entry, TreeRefused, check_name, link_target

log = structlog.get_logger()

SETTLED_S = 3600.0
"""A worktree that was made within this time is left alone: what needs it may just be being written down."""
LINK_BYTES_MAX = 4096


def make(mirror: Mirror, commit: CommitInfo, target: Path) -> None:
    """The files of the commit in `target`, if they are not there already. Raises TreeRefused, GitFailed, OSError."""
    if target.is_dir():
        os.utime(target)
        return
    tree = mirror.tree(commit.id)
    entries = sorted(tree.entries.values(), key=lambda entry: entry.path)
    _check(entries, mirror.limits.bytes_max)
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = target.parent / f".making-{commit.id}-{os.getpid()}"
    remove(scratch)
    try:
        _write(mirror, entries, scratch, commit.at.timestamp())
        scratch.rename(target)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise TreeRefused(
            f"commit {commit.id[:10]}: {error.filename}: two names are one here (they differ in case only?)"
        ) from error
    finally:
        remove(scratch)
    log.info("worktree.made", commit=commit.id, files=len(entries))


def _check(entries: Iterable[Entry], bytes_max: int) -> None:
    total = 0
    for entry in entries:
        if wrong := check_name(entry.path):
            raise TreeRefused(f"{entry.shown}: {wrong}")
        if entry.mode not in (*FILE_MODES, LINK, TREE, MODULE):
            raise TreeRefused(f"{entry.shown}: is neither a file, a folder nor a link (mode {entry.mode})")
        total += entry.size
    if total > bytes_max:
        raise TreeRefused(f"its files are {total >> 20} MB together, more than the {bytes_max >> 20} MB of git_max_mb")


def _write(mirror: Mirror, entries: list[Entry], root: Path, mtime: float) -> None:
    root.mkdir(mode=0o700)
    folders = [entry for entry in entries if entry.mode == TREE]
    files = [entry for entry in entries if entry.mode in FILE_MODES]
    links = [entry for entry in entries if entry.mode == LINK]
    for entry in folders:
        _place(root, entry).mkdir(mode=0o700)  # a submodule's folder is left out: its files are another repository's
    for entry, pieces in zip(files, mirror.stream(files), strict=True):
        path = _place(root, entry)
        mode = 0o555 if entry.mode == "100755" else 0o444
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        with open(handle, "wb") as file:
            file.writelines(pieces)
        os.utime(path, (mtime, mtime))
    _link(mirror, links, root)
    for entry in reversed(folders):
        _place(root, entry).chmod(0o555)
    root.chmod(0o555)


def _link(mirror: Mirror, links: list[Entry], root: Path) -> None:
    if any(entry.size > LINK_BYTES_MAX for entry in links):
        raise TreeRefused("it holds a link whose target is too long")
    for entry, content in zip(links, mirror.read(links), strict=True):
        target = content.decode("utf-8", "surrogateescape")
        if "\0" in target or link_target(entry.path, target) is None:
            raise TreeRefused(f"{entry.shown}: the link leads out of the repository")
        os.symlink(target, _place(root, entry))
    real = os.path.realpath(root)
    for entry in links:  # links to links: only the file system says where they end
        try:
            end = os.path.realpath(_place(root, entry), strict=True)
        except OSError as error:
            raise TreeRefused(f"{entry.shown}: the link leads nowhere ({error.strerror})") from error
        if end != real and not end.startswith(real + os.sep):
            raise TreeRefused(f"{entry.shown}: the link leads out of the repository")


def _place(root: Path, entry: Entry) -> Path:
    return root / entry.path


def remove(folder: Path) -> None:
    """Delete a worktree: its folders are read-only, which would stop whoever is not root."""
    if not folder.is_dir() or folder.is_symlink():
        return
    for parent, _folders, _names in os.walk(folder):
        with suppress(OSError):
            os.chmod(parent, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path, needed: set[str], *, now: float | None = None) -> int:
    """Delete the worktrees below `folder` of commits that nothing needs any more; how many."""
    wall = time.time() if now is None else now
    gone = 0
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        with suppress(OSError):
            if path.name not in needed and wall - path.stat().st_mtime > SETTLED_S:
                remove(path)
                gone += 1
    return gone
