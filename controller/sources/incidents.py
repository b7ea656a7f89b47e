"""What is wrong with a repository, as incidents of no single model: opened and closed by holding what is so against what is on record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from controller.state import FaultOrigin, KnownFault
from controller.store.port import Record, Store

LOOKED_AT = 1000
"""Open incidents; there are a handful."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trouble:
    """Something that is wrong now. Kind and subject make it the same as before."""

    kind: str
    subject: str
    sentence: str


def settle(
    store: Store, epoch: int, where: str, kinds: Sequence[str], trouble: Sequence[Trouble], now: datetime, *, unsure: bool = False
) -> None:  # fmt: skip
    """Make the open incidents of these kinds at `where` those of `trouble`; with `unsure`, close none. Raises FencedError, StoreError."""
    known = {
        (one.kind, one.subject): one for one in store.incidents(open_only=True, limit=LOOKED_AT)
        if one.source == where and one.kind in kinds
    }  # fmt: skip
    present = {(one.kind, one.subject): one for one in trouble}
    found = [
        _fault(where, one.kind, one.subject, one.sentence, now) for key, one in present.items() if key not in known
    ]
    gone = [
        _fault(where, one.kind, one.subject, one.sentence, now)
        for key, one in known.items()
        if key not in present and not unsure
    ]
    if found or gone:
        store.record(epoch, Record(found=found, gone=gone))


def _fault(where: str, kind: str, subject: str, sentence: str, now: datetime) -> KnownFault:
    return KnownFault(
        kind=kind, source=where, subject=subject, sentence=sentence, since=now, origin=FaultOrigin.LIVE, found_at=now, absent_at=now
    )  # fmt: skip
