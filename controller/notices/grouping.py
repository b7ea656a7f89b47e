"""Which notices go out together: one message for one cause, however many models have it. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from datetime import datetime, timedelta

from controller.notices.port import Message
from controller.state import Delivery, NoticeRecord

ALIKE_FROM = 5
"""So many notices that say the same of different models are one message."""
SETTLED_AT_LAST = timedelta(seconds=30)
"""However many more keep coming, the first ones wait no longer."""
PROGRESS = frozenset({"step.reached"})
"""Kinds that only go on with what is known; channels that can change a message tell no new one."""
ORDERED = "override."
"""Beginning of the kinds that a person has just brought about, and waits to see."""
_NUMBERS = re.compile(r"[0-9][0-9.,:]*")


def gist(text: str) -> str:
    """What a sentence says apart from its numbers, which differ from model to model.

    >>> gist("drift is 0.51 on 1,200 rows") == gist("drift is 0.62 on 80 rows")
    True
    """
    return _NUMBERS.sub("#", text)


def subject_of(notice: NoticeRecord) -> str:
    """What the notice is about: one cycle of one model, or one incident."""
    return str(notice.data.get("subject") or f"{notice.model}/{notice.key}")


def plan(
    fresh: Sequence[Delivery], now: datetime, *, room: int, settle: timedelta, groups: bool = True
) -> list[Message]:
    """The messages to send now, oldest first, at most `room`; what is left out waits. `fresh`: not tried yet, oldest first."""
    if not groups:
        return [_message([one.notice]) for one in fresh]
    piles: dict[tuple[str, ...], list[NoticeRecord]] = {}
    for delivery in fresh:
        piles.setdefault(_pile(delivery.notice), []).append(delivery.notice)
    many = {key: pile for key, pile in piles.items() if len(pile) >= ALIKE_FROM or key[0] == "incident"}
    few = [notice for key, pile in piles.items() if key not in many for notice in pile]
    ripe = [pile for pile in many.values() if _is_settled(pile, now, settle)]
    singles = [notice for notice in few if notice.kind.startswith(ORDERED) or _is_old(notice, now, settle)]
    if len(singles) + len(ripe) > room:
        by_kind: dict[str, list[NoticeRecord]] = {}
        for notice in singles:
            by_kind.setdefault(notice.kind, []).append(notice)
        ripe += by_kind.values()
        singles = []
    messages = [_message(pile) for pile in ripe] + [_message([notice]) for notice in singles]
    return sorted(messages, key=lambda message: message.notices[0].at)[: max(room, 0)]


def _pile(notice: NoticeRecord) -> tuple[str, ...]:
    """Notices of one incident are one, as it grows; others are alike if they are of one kind and say the same."""
    if "incident" in notice.data:
        return ("incident", subject_of(notice))
    return (notice.kind, gist(notice.text))


def _is_settled(pile: Sequence[NoticeRecord], now: datetime, settle: timedelta) -> bool:
    return _is_old(pile[-1], now, settle) or _is_old(pile[0], now, SETTLED_AT_LAST)


def _is_old(notice: NoticeRecord, now: datetime, age: timedelta) -> bool:
    """One from the future is: a clock was set back."""
    return not timedelta(0) <= now - notice.at < age


def _message(notices: Sequence[NoticeRecord]) -> Message:
    return Message(key=batch_key([n.key for n in notices]), notices=tuple(notices), digest=is_digest(notices))


def is_digest(notices: Sequence[NoticeRecord]) -> bool:
    """Whether they tell of more than one thing."""
    return len({subject_of(notice) for notice in notices}) > 1


def batch_key(keys: Sequence[str]) -> str:
    """A single notice's own key, or one that stands for all of them."""
    if len(keys) == 1:
        return keys[0]
    return f"batch/{hashlib.sha256(chr(10).join(sorted(keys)).encode()).hexdigest()[:32]}"
