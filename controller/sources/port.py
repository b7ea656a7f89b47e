"""The port to where policies are followed from: a Git branch today; whatever has revisions of named documents fits.

A source is distrusted: what it hands over is bounded, and what is wrong with it is a `Problem` of that revision, never an exception that
stops the loop. It says what stands there, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from policies.problems import Problem


class SourceAway(Exception):
    """The source could not be asked now, or may not be read; nothing is known of its newest revision. The message holds no secret."""


class SourceGone(Exception):
    """The source answers, and says that what is followed is not there any more (the branch was deleted)."""


class RevisionRefused(Exception):
    """The newest revision is known by name, but it may not be taken: too large, or damaged. `revision` is its id."""

    def __init__(self, revision: str, message: str) -> None:
        super().__init__(message)
        self.revision = revision


class PathRefused(ValueError):
    """A relative path of a policy names nothing that it may use; the message is a rule, such as `must stay inside the repository`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyFile:
    """One document of a revision."""

    file: str
    """Its name in the source, such as `policies/flights.yaml`."""
    id: str
    """Of its content: the same id is the same text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Revision:
    """One whole state of the source."""

    id: str
    """Such as a commit's name."""
    said: str
    """How people call it: which, and by whom. Never what it holds."""
    author: str
    at: datetime
    files: tuple[PolicyFile, ...]
    problems: tuple[Problem, ...] = ()
    """What in it cannot be read at all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pinned:
    """What a relative path of a policy names in a revision, so that it can be told whether it changed and found again."""

    path: str
    """As it is called in the source, such as `models/flights/code`."""
    id: str
    folder: bool


class PolicySource(Protocol):
    """Used from one thread. `name` is how its models know their owner."""

    name: str
    where: str
    """For people: no secret in it."""
    place: Path
    """An absolute folder from which nothing can be reached: where policies that name no relative path start."""

    def newest(self, known: str | None) -> Revision | None:
        """The newest revision; None if that is `known`. Raises SourceAway, SourceGone, RevisionRefused."""

    def note(self, newer: str, older: str) -> str:
        """What is remarkable about coming from one revision to another, such as a rewritten history; empty for nothing."""

    def at(self, revision: str) -> Revision | None:
        """A revision that was seen before; None if it is not kept any more. Raises SourceAway."""

    def read(self, files: Sequence[PolicyFile]) -> Sequence[bytes]:
        """Their contents, in order, of any revision seen. Raises SourceAway."""

    def pin(self, revision: str, file: str, path: str) -> Pinned:
        """What `path`, relative to the folder of `file`, names. Raises PathRefused, SourceAway."""

    def folder(self, revision: str, file: str) -> Path:
        """Where relative paths of `file` will start once the revision is checked out. Does nothing."""

    def check_out(self, revision: str) -> None:
        """Make the revision's files stand below the folders that `folder` gives. Raises SourceAway; PathRefused for what may not be."""

    def sweep(self, needed: set[str]) -> int:
        """Delete what was checked out of other revisions than these, and not just now; how many."""

    def close(self) -> None:
        """Stop what is under way, from any thread."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceStatus:
    """What is known about a source: for people, and for the next look. Losing it loses no state."""

    name: str
    where: str
    applied: str | None = None
    """Revision that is in force as a whole."""
    applied_said: str = ""
    applied_at: datetime | None = None
    applying: str | None = None
    """Revision that was found good and is being put into force."""
    newest: str | None = None
    newest_said: str = ""
    refused: tuple[str, ...] = ()
    """Why the newest revision is not in force; the first ones of many."""
    note: str = ""
    error: str = ""
    """Why the source could not be asked."""
    failing_since: datetime | None = None
    looked_at: datetime | None = None
    models: int = 0
    """That are followed from it, or written to it."""
    written: Mapping[str, str] = field(default_factory=dict)
    """Model → the decision that was written for it last."""
