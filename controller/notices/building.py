"""Puts together whatever tells people, from plain values that the wiring takes from the settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from controller.notices.dispatcher import Dispatcher
from controller.notices.journal import JournalNotifier
from controller.notices.outbox import Outbox
from controller.notices.port import Channel, NotifierError
from controller.notices.routing import LOG, Defaults, channels_of
from controller.store.port import NoticeStore


@dataclass(frozen=True, kw_only=True, slots=True)
class Notices:
    """All that has to do with telling people."""

    dispatcher: Dispatcher


def build_notices(*, store: NoticeStore, home: Path, now: Callable[[], datetime]) -> Notices:
    journal = Channel(notifier=JournalNotifier(home / "notices.jsonl"), settle=timedelta(0), groups=False)

    def open_channel(name: str) -> Channel:
        if name == LOG:
            return journal
        raise NotifierError(f"{name.partition(':')[0]} notices are not set up (docs/notices.md)")

    outbox = Outbox(
        store=store, route=lambda notice: channels_of(notice, Defaults(), lambda _name: ()), channel=open_channel
    )
    return Notices(dispatcher=Dispatcher(outbox, now))
