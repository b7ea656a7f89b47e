"""The port to the state store.

One commit is one transaction: the model's row, its open or just closed cycle, its versions, the events and the notices, and the
incidents that its faults open, join, leave or close; or nothing.
Every commit carries the epoch under which its writer leads; the store refuses an older one (invariant 6).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from controller.state import Cycle, Delivery, Event, Incident, KnownFault, ModelState, NoticeRecord, ToldAlert


class StoreError(Exception):
    """The store could not do it now (locked, disk full, connection lost); the message says what to do. Nothing was written."""


class ConflictError(StoreError):
    """Somebody else committed to this model in between (`row_version` differs). Read again and decide again."""


class FencedError(StoreError):
    """A newer leader exists. Whoever gets this must stop acting at once."""


class UnknownOutcomeError(StoreError):
    """The connection was lost just when the commit was asked for and did not come back in time: it may have been written or not. Whoever
    reads again finds out, and nothing that he then decides happens twice."""


class CorruptStoreError(StoreError):
    """The database is damaged or of a newer release; the message names the file and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """What one transaction writes.

    `model.row_version` is the version that was read; the stored row gets that plus one.
    `closed` is the cycle that this commit closes, if it does (then `model.cycle` is None)."""

    model: ModelState
    closed: Cycle | None = None
    events: Sequence[Event] = ()
    notices: Sequence[NoticeRecord] = ()
    found: Sequence[KnownFault] = ()
    """Faults that the model did not have before: it joins their incidents, or opens them (`controller.incidents`)."""
    gone: Sequence[KnownFault] = ()
    """Faults that it no longer has; `absent_at` says since when."""


class NoticeStore(Protocol):
    """What notifiers and hooks need. None of it needs a lease: whatever is written here is right under any leader.

    But who took the lease through this store object, and lost it, gets FencedError from whatever writes to the outbox."""

    # outbox
    def pending_notices(self, limit: int = 100) -> Sequence[NoticeRecord]:
        """That some channel has not been told, oldest first."""

    def unrouted_notices(self, limit: int = 1000) -> Sequence[NoticeRecord]:
        """That no channel was given yet, oldest first."""

    def route_notices(self, routes: Mapping[str, Sequence[str]], at: datetime) -> None:
        """Key of a notice → the channels that are to be told, each on its own from now on. What is routed already stays as it is."""

    def waiting(self) -> Mapping[str, int]:
        """Channel → how many notices it has yet to be told."""

    def due_deliveries(self, channel: str, now: datetime, limit: int = 1000) -> Sequence[Delivery]:
        """Oldest notice first. What was never tried is due, whatever the clock says."""

    def begin_deliveries(self, channel: str, keys: Sequence[str], batch: str) -> None:
        """One attempt more at telling these notices by one message, written down before it is made."""

    def end_deliveries(
        self,
        channel: str,
        keys: Sequence[str],
        *,
        at: datetime,
        done: bool,
        due_at: datetime | None = None,
        error: str = "",
    ) -> None:
        """How the attempt went: done (told, or given up), else due again."""

    # what is remembered for others
    def kept(self, key: str) -> str | None: ...

    def keep(self, key: str, value: str, at: datetime) -> None: ...

    def keep_once(self, key: str, value: str, at: datetime) -> bool:
        """Keep it unless something is kept under the key; whether it was new. Of two that try at once, one is told so."""

    def alerts(self) -> Sequence[ToldAlert]:
        """That Alertmanager has told of, by fingerprint."""

    def put_alerts(self, alerts: Sequence[ToldAlert], drop: Sequence[str] = ()) -> None:
        """Write these, whatever was there, and forget those with the fingerprints `drop`."""

    def forget(self, before: datetime) -> None:
        """Deliveries that were done before, and what was kept before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What one transaction writes about what all models share; its events and notices are of `controller.incidents.NO_MODEL`."""

    events: Sequence[Event] = ()
    notices: Sequence[NoticeRecord] = ()
    found: Sequence[KnownFault] = ()
    gone: Sequence[KnownFault] = ()


class Store(NoticeStore, Protocol):
    # leadership
    def acquire(self, holder: str, now: datetime | None, ttl_s: float) -> int | None:
        """Take or renew the lease; the fencing epoch, or None if another holder's lease is still valid at `now`.
        `now`: None takes the store's own clock, which all machines that share the store share.
        The epoch grows whenever the holder changes; renewing keeps it, even late, as long as nobody else took the lease. So `holder` must
        be unique to a process (host, pid and a random part), never a fixed name."""

    def release(self, holder: str) -> None:
        """Give the lease up, if held. The epoch stays used, and nothing can be written under it any more."""

    def holder(self) -> str | None:
        """Who took the lease last and did not release it, be it valid or not; None if nobody."""

    # reading
    def names(self) -> Sequence[str]:
        """All models, sorted."""

    def load(self, name: str) -> ModelState | None: ...

    def load_all(self) -> Sequence[ModelState]:
        """All models, sorted by name, in a bounded number of queries."""

    def cycles(self, name: str | None = None, *, limit: int = 100) -> Sequence[Cycle]:
        """Open and closed, newest first: of one model by number, of all by `opened_at`. Those of deleted models are gone."""

    def open_cycles(self) -> int: ...

    def events(
        self, name: str | None = None, *, after: int = 0, limit: int = 100, newest: bool = False
    ) -> Sequence[Event]:
        """In order of `seq`, those with seq > after; with `newest` the last `limit` of them (still in order)."""

    def incidents(self, *, open_only: bool = False, limit: int = 100) -> Sequence[Incident]:
        """Newest first. They outlive the models that had them."""

    # writing
    def create(self, epoch: int, state: ModelState, events: Sequence[Event]) -> ModelState:
        """The state as stored (row_version grown). Raises ConflictError if the name exists, else as `commit`."""

    def commit(self, epoch: int, commit: Commit) -> ModelState:
        """Returns the state as now stored (row_version grown). A notice whose key was seen before is left out.

        Raises FencedError (checked first), ConflictError, StoreError, and `controller.invariants.InvariantBroken` for what no commit may
        do: change a version's digest or lose it, leave an open cycle neither open nor closed, use a cycle's number again."""

    def record(self, epoch: int, commit: Record) -> None:
        """Write what concerns no single model. Raises FencedError, StoreError."""

    def delete(self, epoch: int, name: str, events: Sequence[Event]) -> None:
        """The model's rows go and it leaves its incidents; its events and undelivered notices stay. Raises ConflictError if there is no
        such model."""

    def close(self) -> None: ...
