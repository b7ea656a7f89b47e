"""Empties the store's outbox: each notice until it is delivered, none holding up another model's for ever."""

from __future__ import annotations

from datetime import datetime

import structlog

from controller.notices.port import Notifier, NotifierError
from controller.store.port import Store
from controller.telemetry.metrics import NOTICE_ATTEMPTS

log = structlog.get_logger()


def deliver_pending(store: Store, notifier: Notifier, now: datetime) -> int:
    """One round over what is pending, oldest first; the number delivered. Failures stay pending. Raises StoreError."""
    delivered = 0
    for notice in store.pending_notices():
        try:
            notifier.deliver(notice)
        except NotifierError as error:
            NOTICE_ATTEMPTS.labels("failed").inc()
            log.warning("notice.failed", key=notice.key, attempts=notice.attempts + 1, error=str(error))
            store.mark_notice(notice.key, delivered_at=None)
            continue
        store.mark_notice(notice.key, delivered_at=now)
        NOTICE_ATTEMPTS.labels("delivered").inc()
        delivered += 1
    return delivered
