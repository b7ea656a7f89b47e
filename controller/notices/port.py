"""The port to people."""

from __future__ import annotations

from typing import Protocol

from controller.state import NoticeRecord


class NotifierError(Exception):
    """Not delivered now; the outbox keeps it and tries again."""


class Notifier(Protocol):
    def deliver(self, notice: NoticeRecord) -> None:
        """Deliver; a second delivery under the same key must not be seen twice by people. Raises NotifierError."""
