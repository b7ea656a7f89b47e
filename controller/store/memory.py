"""A store in memory with the full semantics of the port: for tests, and for simulations that commit millions of times.

Records are frozen values, so the store hands out the very objects that it was given. The mappings inside them must not be mutated by
anyone; `MemoryStore(audit=True)` checks that nobody does, and that every record survives its JSON form, at the price of a round trip.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from threading import RLock

from controller.incidents import NO_MODEL, Change, join, key_of, leave, may_join
from controller.invariants import InvariantBroken
from controller.state import Cycle, Event, Incident, KnownFault, ModelState
from controller.store.codec import decode, encode
from controller.store.lease import Lease
from controller.store.memory_notices import MemoryNotices
from controller.store.port import Commit, ConflictError, Record, Store
from controller.store.rules import Stored, check_conflict, check_invariants, stored_as


class MemoryStore(MemoryNotices, Store):
    """Nothing outlives the process. Safe to share between threads and between simulated controllers."""

    def __init__(self, *, audit: bool = False) -> None:
        super().__init__()
        self._lock = RLock()
        self._lease = Lease()
        self._states: dict[str, ModelState] = {}
        self._closed: dict[str, dict[int, Cycle]] = {}
        self._events: list[Event] = []
        self._events_of: dict[str, list[Event]] = {}
        self._incidents: dict[int, Incident] = {}
        self._members: dict[int, dict[str, bool]] = {}
        """Incident → model that ever was in it → whether it still is."""
        self._audit = _Audit() if audit else None

    # leadership
    def acquire(self, holder: str, now: datetime | None, ttl_s: float) -> int | None:
        with self._lock:
            lease = self._lease.taken_by(holder, now or datetime.now(UTC), ttl_s)
            if lease is None:
                return None
            self._lease = lease
            return lease.epoch

    def release(self, holder: str) -> None:
        with self._lock:
            self._lease = self._lease.released_by(holder)

    def holder(self) -> str | None:
        return self._lease.holder

    # reading
    def names(self) -> Sequence[str]:
        with self._lock:
            return sorted(self._states)

    def load(self, name: str) -> ModelState | None:
        with self._lock:
            state = self._states.get(name)
            return self._audit.copy(state) if self._audit and state else state

    def load_all(self) -> Sequence[ModelState]:
        with self._lock:
            return [state for name in self.names() if (state := self.load(name))]

    def cycles(self, name: str | None = None, *, limit: int = 100) -> Sequence[Cycle]:
        with self._lock:
            names = self.names() if name is None else [name]
            found = [cycle for n in names for cycle in reversed(self._cycles_of(n))]
            if name is None:
                found.sort(key=lambda cycle: cycle.opened_at, reverse=True)
            return found[:limit]

    def _cycles_of(self, name: str) -> list[Cycle]:
        """By number; at most the last is open."""
        state = self._states.get(name)
        return [*self._closed.get(name, {}).values(), *([state.cycle] if state and state.cycle else [])]

    def open_cycles(self) -> int:
        with self._lock:
            return sum(state.cycle is not None for state in self._states.values())

    def events(
        self, name: str | None = None, *, after: int = 0, limit: int = 100, newest: bool = False
    ) -> Sequence[Event]:
        with self._lock:
            events = self._events if name is None else self._events_of.get(name, [])
            start = bisect_right(events, after, key=lambda event: event.seq)
            if newest:
                return events[max(start, len(events) - limit) :]
            return events[start : start + limit]

    def incidents(self, *, open_only: bool = False, limit: int = 100) -> Sequence[Incident]:
        with self._lock:
            found = [one for _, one in sorted(self._incidents.items(), reverse=True)]
            return [one for one in found if one.closed_at is None or not open_only][:limit]

    # writing
    def create(self, epoch: int, state: ModelState, events: Sequence[Event]) -> ModelState:
        with self._lock:
            self._lease.check(epoch)
            check_conflict(state.name, self._stored(state.name), None)
            return self._write(Commit(model=state, events=events))

    def commit(self, epoch: int, commit: Commit) -> ModelState:
        with self._lock:
            self._lease.check(epoch)
            check_conflict(commit.model.name, self._stored(commit.model.name), commit.model.row_version)
            return self._write(commit)

    def record(self, epoch: int, commit: Record) -> None:
        with self._lock:
            self._lease.check(epoch)
            if self._audit:
                self._audit.check(*commit.events, *commit.notices, *commit.found, *commit.gone)
            self._append(commit.events)
            self._enqueue(commit.notices)
            for fault in commit.found:
                self._join(fault, NO_MODEL)
            for fault in commit.gone:
                self._leave(fault, NO_MODEL)

    def delete(self, epoch: int, name: str, events: Sequence[Event]) -> None:
        with self._lock:
            self._lease.check(epoch)
            if name not in self._states:
                raise ConflictError(f"{name}: there is no such model; was it deleted?")
            if self._audit:
                self._audit.check(*events)
            at = events[0].at if events else None
            gone = [replace(fault, absent_at=at or fault.found_at) for fault in self._states[name].faults]
            del self._states[name]
            self._closed.pop(name, None)
            self._forget_told(name)
            self._append(events)
            for fault in gone:
                self._leave(fault, name)

    def _stored(self, name: str) -> Stored:
        state = self._states.get(name)
        if state is None:
            return Stored()
        return Stored(
            row_version=state.row_version,
            open_cycle=state.cycle.number if state.cycle else None,
            last_cycle=max((cycle.number for cycle in self._cycles_of(name)), default=0),
            digests={number: version.digest for number, version in state.versions.items()},
        )

    def _write(self, commit: Commit) -> ModelState:
        name, closed = commit.model.name, commit.closed
        check_invariants(self._stored(name), commit.model, closed)
        after = stored_as(commit.model)
        if self._audit:
            self._audit.check(*commit.events, *commit.notices, *([closed] if closed else []))
            self._audit.remember(after)
        self._states[name] = after
        if closed is not None:
            self._closed.setdefault(name, {})[closed.number] = closed
        self._append(commit.events)
        self._enqueue(commit.notices)
        for fault in commit.found:
            self._join(fault, name)
        for fault in commit.gone:
            self._leave(fault, name)
        return after

    # incidents
    def _newest(self, fault: KnownFault) -> Incident | None:
        return next((one for one in self.incidents(limit=len(self._incidents)) if key_of(one) == key_of(fault)), None)

    def _join(self, fault: KnownFault, model: str) -> None:
        known = self._newest(fault)
        incident = known if known is not None and may_join(known, fault) else None
        members = self._members.get(incident.id, {}) if incident else {}
        if members.get(model):
            return
        self._keep(join(incident, fault, model, is_new=model not in members), model, fault.found_at, member=True)

    def _leave(self, fault: KnownFault, model: str) -> None:
        incident = self._newest(fault)
        if incident is not None and self._members[incident.id].get(model):
            at = fault.absent_at or fault.found_at
            self._keep(leave(incident, at), model, at, member=False)

    def _keep(self, change: Change, model: str, at: datetime, *, member: bool) -> None:
        incident = replace(change.incident, id=change.incident.id or len(self._incidents) + 1)
        told = replace(change, incident=incident)
        if self._audit:
            self._audit.check(incident)
        self._incidents[incident.id] = incident
        self._members.setdefault(incident.id, {})[model] = member
        self._append(told.events(model, at))
        self._enqueue(told.notices(model, at))

    def _append(self, events: Iterable[Event]) -> None:
        for event in events:
            stored = replace(event, seq=len(self._events) + 1)
            self._events.append(stored)
            self._events_of.setdefault(event.model, []).append(stored)

    def close(self) -> None:
        """Nothing to give back; what is in memory stays readable, as a file would."""


class _Audit:
    """Keeps the JSON of every state as it was written, to notice when somebody changes one in place."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def check(self, *records: object) -> None:
        """Raises InvariantBroken if a record does not survive its JSON form."""
        for record in records:
            if decode(type(record), encode(record), where="audit") != record:
                raise InvariantBroken(f"does not survive its JSON form: {record!r}")

    def remember(self, state: ModelState) -> None:
        self.check(state)
        self._texts[state.name] = encode(state)

    def copy(self, state: ModelState) -> ModelState:
        """A copy that shares nothing. Raises InvariantBroken if the stored one was changed in place."""
        if encode(state) != self._texts[state.name]:
            raise InvariantBroken(f"{state.name}: a stored state was changed in place")
        return decode(ModelState, self._texts[state.name], where="audit")
