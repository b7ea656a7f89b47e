"""The outbox of the store in memory, with the semantics of `controller.store.sql_notices`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from threading import RLock

from controller.state import Delivery, NoticeRecord, ToldAlert
from controller.store.port import NoticeStore


class MemoryNotices(NoticeStore):
    """The part of the store in memory that has to do with telling people."""

    _lock: RLock

    def __init__(self) -> None:
        self._notices: dict[str, NoticeRecord] = {}
        """In the order in which they came."""
        self._routed: set[str] = set()
        self._deliveries: dict[tuple[str, str], Delivery] = {}
        """(channel, key of the notice) → what is not done."""
        self._done: dict[tuple[str, str], datetime] = {}
        self._kept: dict[str, tuple[str, datetime]] = {}
        self._alerts: dict[str, ToldAlert] = {}

    def _enqueue(self, notices: Iterable[NoticeRecord]) -> None:
        for notice in notices:
            self._notices.setdefault(notice.key, notice)

    def _forget_told(self, model: str) -> None:
        self._notices = {k: n for k, n in self._notices.items() if n.model != model or n.delivered_at is None}

    def pending_notices(self, limit: int = 100) -> Sequence[NoticeRecord]:
        with self._lock:
            pending = [notice for notice in self._notices.values() if notice.delivered_at is None]
            return sorted(pending, key=lambda notice: notice.at)[:limit]

    def unrouted_notices(self, limit: int = 1000) -> Sequence[NoticeRecord]:
        with self._lock:
            return [n for n in self.pending_notices(len(self._notices)) if n.key not in self._routed][:limit]

    def route_notices(self, routes: Mapping[str, Sequence[str]], at: datetime) -> None:
        with self._lock:
            for key, channels in routes.items():
                if key in self._routed or key not in self._notices:
                    continue
                self._routed.add(key)
                notice = self._notices[key]
                for channel in channels:
                    self._deliveries[channel, key] = Delivery(notice=notice, channel=channel, due_at=notice.at)
                if not channels:
                    self._notices[key] = replace(notice, delivered_at=at)

    def waiting(self) -> Mapping[str, int]:
        with self._lock:
            return Counter(channel for channel, _ in self._deliveries)

    def due_deliveries(self, channel: str, now: datetime, limit: int = 1000) -> Sequence[Delivery]:
        with self._lock:
            mine = [delivery for (name, _), delivery in self._deliveries.items() if name == channel]
            due = [delivery for delivery in mine if delivery.due_at <= now or not delivery.attempts]
            return sorted(due, key=lambda delivery: delivery.notice.at)[:limit]

    def begin_deliveries(self, channel: str, keys: Sequence[str], batch: str) -> None:
        with self._lock:
            for delivery in self._undone(channel, keys):
                begun = replace(delivery, attempts=delivery.attempts + 1, batch=batch)
                self._deliveries[channel, delivery.notice.key] = begun

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
        with self._lock:
            for delivery in self._undone(channel, keys):
                key = delivery.notice.key
                if not done:
                    self._deliveries[channel, key] = replace(delivery, due_at=due_at or delivery.due_at, error=error)
                    continue
                del self._deliveries[channel, key]
                self._done[channel, key] = at
                if not any(other == key for _, other in self._deliveries):
                    self._notices[key] = replace(self._notices[key], delivered_at=at)

    def _undone(self, channel: str, keys: Sequence[str]) -> list[Delivery]:
        return [self._deliveries[channel, key] for key in keys if (channel, key) in self._deliveries]

    def kept(self, key: str) -> str | None:
        with self._lock:
            return self._kept[key][0] if key in self._kept else None

    def keep(self, key: str, value: str, at: datetime) -> None:
        with self._lock:
            self._kept[key] = value, at

    def keep_once(self, key: str, value: str, at: datetime) -> bool:
        with self._lock:
            if key in self._kept:
                return False
            self._kept[key] = value, at
            return True

    def alerts(self) -> Sequence[ToldAlert]:
        with self._lock:
            return [alert for _, alert in sorted(self._alerts.items())]

    def put_alerts(self, alerts: Sequence[ToldAlert], drop: Sequence[str] = ()) -> None:
        with self._lock:
            for fingerprint in drop:
                self._alerts.pop(fingerprint, None)
            self._alerts.update({alert.fingerprint: alert for alert in alerts})

    def forget(self, before: datetime) -> None:
        with self._lock:
            self._done = {key: at for key, at in self._done.items() if at >= before}
            self._kept = {key: (value, at) for key, (value, at) in self._kept.items() if at >= before}
