"""Empties the store's outbox: each notice until it is delivered, none holding up another model's for ever."""

from __future__ import annotations

from datetime import datetime, timedelta

import structlog

from controller.notices.port import Notifier, NotifierError
from controller.state import NoticeRecord
from controller.store.port import Store
from controller.telemetry.metrics import NOTICE_ATTEMPTS

log = structlog.get_logger()

DROP_AFTER = timedelta(days=7)
"""A notice that could not be delivered for so long is dropped, loudly: the outbox stays bounded, and old news helps nobody."""


def deliver_pending(store: Store, notifier: Notifier, now: datetime) -> int:
    """One round over what is pending, oldest first; the number delivered. Failures stay pending. Raises StoreError.

    A crash between delivering and marking means that the notice is delivered again; the notifier knows its key."""
    delivered = 0
    for notice in store.pending_notices():
        if _deliver(notifier, notice):
            store.mark_notice(notice.key, delivered_at=now)
            delivered += 1
        elif now - notice.at > DROP_AFTER:
            log.error("notice.dropped", key=notice.key, attempts=notice.attempts + 1, text=notice.text)
            NOTICE_ATTEMPTS.labels("dropped").inc()
            store.mark_notice(notice.key, delivered_at=now)
        else:
            store.mark_notice(notice.key, delivered_at=None)
    return delivered


def _deliver(notifier: Notifier, notice: NoticeRecord) -> bool:
    """Whether it worked. Whatever goes wrong in one delivery holds up no other."""
    try:
        notifier.deliver(notice)
    except NotifierError as error:
        log.warning("notice.failed", key=notice.key, attempts=notice.attempts + 1, error=str(error))
    except Exception:
        log.exception("notice.failed", key=notice.key, attempts=notice.attempts + 1)
    else:
        NOTICE_ATTEMPTS.labels("delivered").inc()
        return True
    NOTICE_ATTEMPTS.labels("failed").inc()
    return False
