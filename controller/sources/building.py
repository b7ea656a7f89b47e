"""Puts the Git parts together from plain values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from controller.sources.follower import PolicyFollower
from controller.sources.git.access import Access, AccessError, checked, read_secrets
from controller.sources.git.command import program
from controller.sources.git.mirror import Limits, Mirror
from controller.sources.git.source import GitSource
from controller.sources.git.writeback import Place, WriteBack, checked_place
from controller.sources.git.writing import Writer
from controller.sources.port import SourceAway
from controller.store.port import Store

FOLDER = "git"


@dataclass(frozen=True, kw_only=True, slots=True)
class Repository:
    """A branch, as the settings name it."""

    url: str
    branch: str
    protocols: str
    credentials_file: Path | None
    ssh_key_file: Path | None
    known_hosts_file: Path | None
    timeout_s: float
    max_mb: int
    max_files: int
    prefix: str = "git"
    """With which its settings' names begin."""

    def mirror(self, folder: Path) -> Mirror:
        """Raises AccessError if it cannot be used as it is named, or if there is no `git`."""
        access = checked(
            Access(
                url=self.url, branch=self.branch, credentials=self.credentials_file, ssh_key=self.ssh_key_file,
                known_hosts=self.known_hosts_file, prefix=self.prefix,
                protocols=tuple(part.strip() for part in self.protocols.split(",") if part.strip()),
            )
        )  # fmt: skip
        if access.credentials is not None:
            read_secrets(access.credentials, f"{self.prefix}_credentials_file")
        try:
            program()
        except SourceAway as error:
            raise AccessError(f"{self.prefix}_url: {error}") from error
        limits = Limits(fetch_s=self.timeout_s, bytes_max=self.max_mb << 20, files_max=self.max_files)
        return Mirror(access, folder, limits)


def build_write_back(
    repository: Repository, place: Place, author: str, signing_key: Path | None, *, home: Path, store: Store,
    epoch: Callable[[], int], now: Callable[[], datetime],
) -> WriteBack:  # fmt: skip
    """What writes promoted digests. Raises AccessError."""
    folder = home / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    writer = Writer(repository.mirror(folder / "gitops.git"), author, signing_key)
    return WriteBack(
        writer=writer, place=checked_place(place), store=store, epoch=epoch, now=now, status_file=folder / "gitops.json"
    )  # fmt: skip


def build_follower(
    repository: Repository, path: str, *, home: Path, store: Store, epoch: Callable[[], int], now: Callable[[], datetime],
    wake: Callable[[str], None],
) -> PolicyFollower:  # fmt: skip
    """What follows the policies below `path`. Raises AccessError."""
    folder = home / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    source = GitSource(repository.mirror(folder / "policies.git"), folder, path)
    return PolicyFollower(
        source=source, store=store, epoch=epoch, now=now, wake=wake, status_file=folder / "policies.json"
    )
