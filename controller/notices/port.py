"""The port to people."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from controller.state import NoticeRecord


class NotifierError(Exception):
    """Not delivered now; the outbox keeps it and tries again. Its text never holds a secret: it goes into logs and answers."""

    def __init__(self, said: str, *, retry_after_s: float = 0.0, channel_is_down: bool = False) -> None:
        """`retry_after_s`: what the other side asks for; `channel_is_down`: nothing else would get through either."""
        super().__init__(said)
        self.retry_after_s = retry_after_s
        self.channel_is_down = channel_is_down


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One message for one channel: a notice, or many alike told together."""

    key: str
    """Stable: the same notices never have two."""
    notices: tuple[NoticeRecord, ...]
    """Oldest first; at least one."""
    again: bool = False
    """Whether an attempt was begun before: people may have it already."""
    digest: bool = False
    """Whether it tells of several happenings, and not of the newest state of one."""

    @property
    def newest(self) -> NoticeRecord:
        return self.notices[-1]


class Notifier(Protocol):
    def deliver(self, message: Message) -> None:
        """Deliver, in bounded time; a second delivery under the same key must not be seen twice by people. Raises NotifierError."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Channel:
    """A notifier, and how it wants to be spoken to."""

    notifier: Notifier
    settle: timedelta = timedelta(seconds=5)
    """So long a notice waits for others like it."""
    groups: bool = True
    """Whether many notices alike become one message, and how many messages a minute there may be is bounded."""
