"""Empties the store's outbox: every channel on its own, each notice until it is told, none holding up another for ever.

A notice is first routed, which writes down for each channel that it must be told; then each channel is told what is due. Before an
attempt is made it is written down that it was, with which notices in one message: after a crash the very same message is tried again,
and the notifier is told that people may have it (invariant 5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog

from controller.notices.grouping import is_digest, plan
from controller.notices.port import Channel, Message, Notifier, NotifierError
from controller.notices.secrets import redacted
from controller.state import Delivery, NoticeRecord
from controller.store.port import NoticeStore
from controller.telemetry.metrics import NOTICE_ATTEMPTS

log = structlog.get_logger()

DROP_AFTER = timedelta(days=7)
"""A notice that could not be delivered for so long is dropped, loudly: the outbox stays bounded, and old news helps nobody."""
RETRY_FIRST = timedelta(seconds=5)
RETRY_LAST = timedelta(minutes=15)
BURST = 10
"""Messages to one channel at once."""
PER_MINUTE = 20.0
"""Messages to one channel in the long run; Slack takes about one a second, people fewer."""


@dataclass(slots=True)
class _Pace:
    """What is known of a channel in this process only; the store has the rest."""

    room: float = BURST
    at: datetime | None = None
    failures: int = 0
    not_before: datetime | None = None
    error: str = ""
    told_at: datetime | None = None


def backoff(attempts: int) -> timedelta:
    """Until the next attempt, after so many in vain.

    >>> [int(backoff(n).total_seconds()) for n in (1, 2, 3, 20)]
    [5, 10, 20, 900]
    """
    return min(RETRY_FIRST * float(2 ** min(attempts - 1, 20)), RETRY_LAST)


class Outbox:
    """Safe to use from several threads as long as no two deliver to the same channel at once."""

    def __init__(
        self, *, store: NoticeStore, route: Callable[[NoticeRecord], Sequence[str]], channel: Callable[[str], Channel],
        newest: Callable[[NoticeRecord], NoticeRecord] = lambda notice: notice,
    ) -> None:  # fmt: skip
        """`route`: which channels are told. `channel` opens one, and raises NotifierError if it is not set up. `newest`: the notice with
        what has become true of its subject since."""
        self._store = store
        self._route = route
        self._channel = channel
        self._newest = newest
        self._paces: dict[str, _Pace] = {}

    def route_new(self, now: datetime) -> None:
        """Write down who is to be told of what is new. Raises StoreError."""
        if new := self._store.unrouted_notices():
            self._store.route_notices({notice.key: self._route(notice) for notice in new}, now)

    def waiting(self) -> dict[str, int]:
        """Channel → how much it has yet to be told. Raises StoreError."""
        return dict(self._store.waiting())

    def is_due(self, name: str, now: datetime) -> bool:
        """Whether an attempt at this channel makes sense now."""
        rest = self._pace(name).not_before
        return rest is None or now >= rest or rest - now > RETRY_LAST + timedelta(hours=1)  # a clock that was set back

    def error(self, name: str) -> str:
        """Why the channel's newest attempt failed; empty if it did not."""
        return self._pace(name).error

    def deliver_all(self, now: datetime) -> int:
        """Route, then one round of every channel in turn; the number of notices told. Raises StoreError."""
        self.route_new(now)
        return sum(self.deliver(name, now) for name in self._store.waiting() if self.is_due(name, now))

    def deliver(self, name: str, now: datetime) -> int:
        """One round of one channel: what was begun before, then what is new; the number of notices told. Raises StoreError."""
        due = self._store.due_deliveries(name, now)
        if not due:
            return 0
        try:
            channel = self._channel(name)
        except NotifierError as error:  # it is not set up: true of all that waits for it, said once a rest
            shut = NotifierError(str(error), channel_is_down=True)
            self._failed(name, [Message(key=due[0].notice.key, notices=tuple(d.notice for d in due))], due, now, shut)
            return 0
        told = 0
        for message in self._messages(name, channel, due, now):
            if channel.groups and not self._take(name):
                break
            outcome = self._attempt(name, channel, message, due, now)
            told += len(message.notices) if outcome else 0
            if not self.is_due(name, now):
                break
        return told

    def _messages(self, name: str, channel: Channel, due: Sequence[Delivery], now: datetime) -> list[Message]:
        begun: dict[str, list[NoticeRecord]] = {}
        for delivery in due:
            if delivery.batch:
                begun.setdefault(delivery.batch, []).append(delivery.notice)
        again = [
            Message(key=key, notices=tuple(notices), again=True, digest=is_digest(notices))
            for key, notices in begun.items()
        ]
        fresh = [delivery for delivery in due if not delivery.batch]
        room = self._room(name, now) - len(again)
        return again + plan(fresh, now, room=room, settle=channel.settle, groups=channel.groups)

    def _attempt(
        self, name: str, channel: Channel, message: Message, due: Sequence[Delivery], now: datetime
    ) -> bool:  # fmt: skip
        keys = [notice.key for notice in message.notices]
        self._store.begin_deliveries(name, keys, message.key)
        current = replace(message, notices=(*message.notices[:-1], self._newest(message.newest)))
        try:
            channel.notifier.deliver(current)
        except NotifierError as error:
            self._failed(name, [message], due, now, error)
            return False
        except Exception as error:
            log.exception("notice.failed", channel=redacted(name), key=message.key)
            self._failed(name, [message], due, now, NotifierError(f"an error in the notifier: {type(error).__name__}"))
            return False
        self._store.end_deliveries(name, keys, at=now, done=True)
        NOTICE_ATTEMPTS.labels("delivered").inc()
        pace = self._pace(name)
        pace.failures, pace.not_before, pace.error, pace.told_at = 0, None, "", now
        return True

    def _failed(
        self, name: str, messages: Sequence[Message], due: Sequence[Delivery], now: datetime, error: NotifierError
    ) -> None:
        """Each is due again later, and dropped in the end; a channel that is down rests as a whole."""
        attempts = {delivery.notice.key: delivery.attempts + 1 for delivery in due}
        asked = timedelta(seconds=min(error.retry_after_s, DROP_AFTER.total_seconds()))
        pace = self._pace(name)
        pace.error = str(error)
        if error.channel_is_down:
            pace.failures += 1
            pace.not_before = now + max(backoff(pace.failures), asked)
        NOTICE_ATTEMPTS.labels("failed").inc()
        for message in messages:
            keys = [notice.key for notice in message.notices]
            tried = max(attempts.get(key, 1) for key in keys)
            log.warning("notice.failed", channel=redacted(name), key=message.key, attempts=tried, error=str(error))
            old = [notice.key for notice in message.notices if now - notice.at > DROP_AFTER]
            if old:
                log.error("notice.dropped", channel=redacted(name), keys=old[:10], notices=len(old), error=str(error))
                NOTICE_ATTEMPTS.labels("dropped").inc(len(old))
                self._store.end_deliveries(name, old, at=now, done=True, error=str(error))
            if young := [key for key in keys if key not in old]:
                wait = max(backoff(tried), asked)
                self._store.end_deliveries(name, young, at=now, done=False, due_at=now + wait, error=str(error))

    # ------------------------------------------------------------ pace
    def _pace(self, name: str) -> _Pace:
        return self._paces.setdefault(name, _Pace())

    def _room(self, name: str, now: datetime) -> int:
        """How many messages the channel may be sent now: a bucket of `BURST` that fills by `PER_MINUTE`."""
        pace = self._pace(name)
        if pace.at is not None and now > pace.at:
            pace.room = min(BURST, pace.room + (now - pace.at).total_seconds() / 60 * PER_MINUTE)
        pace.at = now
        return int(pace.room)

    def _take(self, name: str) -> bool:
        pace = self._pace(name)
        if pace.room < 1:
            return False
        pace.room -= 1
        return True


def outbox_of_one(store: NoticeStore, notifier: Notifier) -> Outbox:
    """An outbox whose only channel is this notifier, told at once and one by one."""
    channel = Channel(notifier=notifier, settle=timedelta(0), groups=False)
    return Outbox(store=store, route=lambda _notice: ["log"], channel=lambda _name: channel)
