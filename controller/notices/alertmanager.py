"""Alertmanager, by its v2 API: whatever fires is sent when it changes and again every minute, to each instance of a cluster.

An alert that is sent no more ends by itself after `ENDS_AFTER`, as those of Prometheus do: a daemon that dies leaves nothing firing
for ever. One that is over is sent as such, for a while, so that an instance that was away hears it too.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import structlog

from controller.notices.alerts import Alert, firing
from controller.notices.http import TIMEOUT_S, check, post
from controller.notices.port import NotifierError
from controller.notices.secrets import Secret, SecretError, host_of
from controller.state import Incident, ModelState
from controller.telemetry.metrics import NOTICE_ATTEMPTS

log = structlog.get_logger()

PATH = "/api/v2/alerts"
RESEND = timedelta(minutes=1)
ENDS_AFTER = 4 * RESEND
RESOLVED_LASTS = timedelta(minutes=15)
BATCH = 256
"""Alerts in one request."""


class Alertmanager:
    """One instance. Sending the same alert twice changes nothing."""

    def __init__(
        self, url: str, *, user: str = "", secret: Secret | None = None, link: str = "", timeout_s: float = TIMEOUT_S
    ) -> None:
        """`secret`: a bearer token, or with `user` the password of basic authentication."""
        self._url = url.rstrip("/") + PATH
        self._user = user
        self._secret = secret
        self._link = link
        self._timeout_s = timeout_s

    @property
    def where(self) -> str:
        return host_of(self._url)

    def send(self, fire: Sequence[Alert], resolved: Sequence[tuple[Alert, datetime]], now: datetime) -> None:
        """`resolved`: each with the moment of its end. Raises NotifierError."""
        bodies = [alert.body(now + ENDS_AFTER, now, self._link) for alert in fire]
        bodies += [alert.body(over, min(over, now), self._link) for alert, over in resolved]
        authorization, secrets = self._authorization()
        headers = {"content-type": "application/json", **authorization}
        for start in range(0, len(bodies), BATCH):
            body = json.dumps(bodies[start : start + BATCH]).encode()
            check(post(self._url, body, headers, self._timeout_s), self.where, secrets)

    def _authorization(self) -> tuple[dict[str, str], list[str]]:
        """The header, and what of it must not be told."""
        if self._secret is None:
            return {}, []
        try:
            secret = self._secret.read()
        except SecretError as error:
            raise NotifierError(str(error), channel_is_down=True) from None
        if self._user:
            basic = base64.b64encode(f"{self._user}:{secret}".encode()).decode()
            return {"authorization": f"Basic {basic}"}, [secret, basic]
        return {"authorization": f"Bearer {secret}"}, [secret]


class AlertFeed:
    """Is shown the state of all models at each tick, and tells all instances from a thread of its own."""

    def __init__(
        self, instances: Sequence[Alertmanager], labels_of: Callable[[ModelState], Mapping[str, str]],
        real_now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:  # fmt: skip
        self._instances = instances
        self._labels_of = labels_of
        self._real_now = real_now
        self._lock = threading.Lock()
        self._firing: dict[tuple[tuple[str, str], ...], Alert] = {}
        self._resolved: dict[tuple[tuple[str, str], ...], tuple[Alert, datetime]] = {}
        self._sent_at: dict[str, datetime] = {}
        self._busy: set[str] = set()
        self._errors: dict[str, str] = {}

    def look(self, states: Sequence[ModelState], incidents: Sequence[Incident], now: datetime) -> None:
        """Take note of what fires, and send it if it has changed or is due again. Never waits."""
        if not self._instances:
            return
        alerts = {alert.key: alert for alert in firing(states, incidents, self._labels_of, now)}
        real = self._real_now()
        with self._lock:
            changed = alerts.keys() != self._firing.keys()
            over = {key: (alert, real) for key, alert in self._firing.items() if key not in alerts}
            kept = {key: one for key, one in self._resolved.items() if real - one[1] < RESOLVED_LASTS}
            self._resolved = {key: one for key, one in {**kept, **over}.items() if key not in alerts}
            self._firing = alerts
            if changed:
                self._sent_at.clear()
        for instance in self._instances:
            self._start(instance, real)

    def errors(self) -> Mapping[str, str]:
        """Instance → why it could not be told at the last attempt; empty if it could."""
        return {instance.where: self._errors.get(instance.where, "") for instance in self._instances}

    def _start(self, instance: Alertmanager, real: datetime) -> None:
        with self._lock:
            sent = self._sent_at.get(instance.where)
            rested = sent is None or not timedelta(0) <= real - sent < RESEND
            if not rested or instance.where in self._busy or not (self._firing or self._resolved):
                return
            self._busy.add(instance.where)
            self._sent_at[instance.where] = real
            alerts, resolved = list(self._firing.values()), list(self._resolved.values())
        args = [instance, alerts, resolved, real]
        threading.Thread(target=self._send, args=args, name="alertmanager", daemon=True).start()

    def _send(
        self, instance: Alertmanager, alerts: Sequence[Alert], resolved: Sequence[tuple[Alert, datetime]], real: datetime
    ) -> None:  # fmt: skip
        said = ""
        try:
            instance.send(alerts, resolved, real)
            NOTICE_ATTEMPTS.labels("delivered").inc()
        except NotifierError as error:
            said = str(error)
        except Exception as error:
            log.exception("alertmanager.failed", instance=instance.where)
            said = f"an error in the notifier: {type(error).__name__}"
        if said:
            NOTICE_ATTEMPTS.labels("failed").inc()
            if said != self._errors.get(instance.where):
                log.warning("alertmanager.failed", instance=instance.where, error=said)
        with self._lock:
            self._errors[instance.where] = said
            self._busy.discard(instance.where)
