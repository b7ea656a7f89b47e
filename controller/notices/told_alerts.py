"""Alerts that Alertmanager tells us of (its webhook, version 4): kept in the store, so that a restart neither forgets nor doubles one.

What is kept is bounded, and only labels are: what they say is somebody else's text. An episode of an alert is known by its labels and by
when it started; hearing of the same one again only says that it still lasts. Times are of our own clock.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from controller.state import ToldAlert
from controller.store.port import NoticeStore
from policies.schema import ModelPolicy
from policies.signals import AlertSignal
from policies.trigger_rules import alerts_wanted

ALERTS_MAX = 5_000
"""That are kept; further ones are refused until some are over."""
PER_CALL_MAX = 2_000
LABELS_MAX = 64
NAME_MAX = 200
VALUE_MAX = 1_000
OVER_KEPT = timedelta(days=1)
"""One that is over, or of which nothing was heard, is remembered for so long."""
MATCHES_MAX = 20
"""Alerts that one rule of one model looks at."""
_LOOK_S = 1.0


class BadPayload(ValueError):
    """It is not what Alertmanager's webhook sends; the message says why."""


class TooManyAlerts(Exception):
    """There is no room for what is new; Alertmanager tries again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """One alert of a payload."""

    labels: Mapping[str, str]
    firing: bool
    starts_at: str

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.labels)


def fingerprint(labels: Mapping[str, str]) -> str:
    """Of the labels, whoever sent them in whatever order."""
    return hashlib.sha256(json.dumps(sorted(labels.items())).encode()).hexdigest()[:32]


def parse(payload: Any) -> list[Told]:
    """The alerts of a payload; those without a name or with labels beyond all measure are left out. Raises BadPayload."""
    if not isinstance(payload, Mapping) or payload.get("version") != "4" or not isinstance(payload.get("alerts"), list):
        raise BadPayload(
            'is no payload of Alertmanager\'s webhook, version 4: a mapping with version: "4" and a list alerts'
        )
    alerts = payload["alerts"]
    if len(alerts) > PER_CALL_MAX:
        raise BadPayload(f"holds {len(alerts)} alerts, of {PER_CALL_MAX} at the most; group them, or set max_alerts")
    return [told for one in alerts if (told := _told(one)) is not None]


def _told(one: Any) -> Told | None:
    if not isinstance(one, Mapping) or one.get("status") not in ("firing", "resolved"):
        return None
    labels, starts_at = one.get("labels"), one.get("startsAt")
    if (
        not isinstance(labels, Mapping)
        or not isinstance(starts_at, str)
        or len(starts_at) > 64
        or len(labels) > LABELS_MAX
    ):
        return None
    if any(
        not isinstance(k, str) or not isinstance(v, str) or len(k) > NAME_MAX or len(v) > VALUE_MAX
        for k, v in labels.items()
    ):
        return None
    if not labels.get("alertname"):
        return None
    return Told(labels=dict(labels), firing=one["status"] == "firing", starts_at=starts_at)


def heard(known: Mapping[str, ToldAlert], told: Sequence[Told], now: datetime) -> tuple[list[ToldAlert], list[str]]:
    """What is to be kept, and which fingerprints may be forgotten, after these were told. Raises TooManyAlerts."""
    after: dict[str, ToldAlert] = {}
    for one in told:
        before = after.get(one.fingerprint) or known.get(one.fingerprint)
        if before is None and not one.firing:
            continue  # the end of what was never heard of
        same = before is not None and before.starts_at == one.starts_at
        if before is not None and same and not before.firing and one.firing:
            continue  # word that was under way when it ended
        heard_at = before.heard_at if before is not None and (same or not one.firing) else now
        after[one.fingerprint] = ToldAlert(
            fingerprint=one.fingerprint, labels=one.labels, firing=one.firing, starts_at=one.starts_at, heard_at=heard_at,
            said_at=now,
        )  # fmt: skip
    old = [f for f, alert in known.items() if f not in after and _is_old(alert, now)]
    if len(known.keys() | after.keys()) - len(old) > ALERTS_MAX:
        raise TooManyAlerts(f"{ALERTS_MAX} alerts are kept already; those that are over are forgotten after a day")
    return list(after.values()), old


def _is_old(alert: ToldAlert, now: datetime) -> bool:
    return now - alert.said_at > OVER_KEPT * (1 if not alert.firing else 7)


class AlertBook:
    """What is known of alerts, read from the store at most once a second. Thread-safe."""

    def __init__(
        self, *, store: NoticeStore, now: Callable[[], datetime], listens: bool, max_age: timedelta,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """`listens`: whether anybody may tell us of alerts; if not, all are unknown."""
        self._store = store
        self._now = now
        self._listens = listens
        self._max_age = max_age
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._known: Sequence[ToldAlert] = ()
        self._read_at: float | None = None

    def hear(self, payload: Any) -> list[str]:
        """Keep what was told; the models that the alerts name by a label. Raises BadPayload, TooManyAlerts, StoreError."""
        told = parse(payload)
        with self._lock:
            known = {alert.fingerprint: alert for alert in self._store.alerts()}
            after, old = heard(known, told, self._now())
            self._store.put_alerts(after, drop=old)
            self._read_at = None
        return sorted({one.labels["model"] for one in told if one.labels.get("model")})

    def signals(self, policy: ModelPolicy) -> Mapping[str, AlertSignal]:
        """By the key of each rule: what is known of the alerts that it waits for. Raises StoreError."""
        wanted = alerts_wanted(policy.spec.triggers, policy.name)
        if not wanted:
            return {}
        if not self._listens:
            reason = "the daemon hears of no alerts: RATCHET_ALERT_HOOK_TOKEN_FILE is not set"
            return dict.fromkeys(wanted, AlertSignal(reason=reason))
        known = self._alerts()
        return {key: self._signal([a for a in known if _matches(a, match)]) for key, match in wanted.items()}

    def _alerts(self) -> Sequence[ToldAlert]:
        with self._lock:
            at = self._monotonic()
            if self._read_at is None or at - self._read_at >= _LOOK_S:
                self._known, self._read_at = self._store.alerts(), at
            return self._known

    def _signal(self, found: Sequence[ToldAlert]) -> AlertSignal:
        """The oldest episode that fires; else that it was heard of but is over or stale; else that it was never heard of."""
        now = self._now()
        fires = sorted((a for a in found if a.firing), key=lambda alert: alert.heard_at)[:MATCHES_MAX]
        fresh = [alert for alert in fires if now - alert.said_at <= self._max_age]
        newest = max(fires, key=lambda alert: alert.said_at, default=None)
        if fresh:
            return AlertSignal(firing=tuple(alert.heard_at for alert in fresh))
        if newest is not None:
            return AlertSignal(reason="stale", said_at=newest.said_at)
        return AlertSignal(said_at=max((alert.said_at for alert in found), default=None))


def _matches(alert: ToldAlert, match: Mapping[str, str]) -> bool:
    return all(alert.labels.get(name) == value for name, value in match.items())
