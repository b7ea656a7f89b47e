"""What the SQL store needs of a database, whichever it is: one consistent look, and one change that happens once or not at all."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Protocol, TypeVar

from sqlalchemy.engine import Connection, Engine

T = TypeVar("T")


class Database(Protocol):
    """Safe to use from several threads."""

    @property
    def engine(self) -> Engine: ...

    @property
    def where(self) -> str:
        """Names it in messages; holds no secret."""

    def read(self, work: Callable[[Connection], T]) -> T:
        """What `work` makes of one state of the database. It may be called again, so it must do nothing but read.

        Raises StoreError, CorruptStoreError, and whatever `work` raises."""

    def write(self, work: Callable[[Connection], T]) -> T:
        """Everything that `work` writes, once, or nothing. It may be called again, after all that it wrote before was undone.

        Raises StoreError (UnknownOutcomeError among them), CorruptStoreError, InvariantBroken (a constraint of the database said no),
        and whatever `work` raises: then nothing was written."""

    def now(self, db: Connection) -> datetime:
        """The moment by the clock that all who share the database share."""

    def close(self) -> None: ...
