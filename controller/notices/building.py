"""Puts together whatever tells people, from plain values that the wiring takes from the settings."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog

from controller.incidents import describe, subject_of
from controller.incidents import facts_of as facts_of_incident
from controller.notices.alertmanager import AlertFeed, Alertmanager
from controller.notices.alerts import Alert
from controller.notices.dispatcher import Dispatcher
from controller.notices.journal import JournalNotifier
from controller.notices.outbox import Outbox
from controller.notices.port import Channel, Message, NotifierError
from controller.notices.routing import LOG, Defaults, channels_of
from controller.notices.secrets import Secret, redacted
from controller.notices.slack import SlackNotifier
from controller.notices.slack_api import API, SlackApi
from controller.notices.webhook import WebhookNotifier
from controller.state import ModelState, NoticeRecord
from controller.store.port import Store, StoreError
from policies.schema import ModelPolicy

log = structlog.get_logger()

TEST_WAITS_S = 20.0
KEPT = timedelta(days=35)
"""Where messages stand is remembered for so long."""
INCIDENTS_LOOKED_AT = 1_000
REFRESHED_MAX = 20
"""Newest open incidents whose messages are kept up to date."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WebhookOptions:
    url: Secret
    secret: Secret | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class NoticeOptions:
    """What the settings say about telling people."""

    public_url: str = ""
    defaults: Defaults = field(default_factory=Defaults)
    slack_token: Secret = field(default_factory=lambda: Secret(name="slack_token"))
    slack_api: str = API
    buttons: bool = False
    """Whether Slack may send back what is pressed."""
    webhooks: Mapping[str, WebhookOptions] = field(default_factory=dict)
    alertmanagers: Sequence[str] = ()
    alertmanager_user: str = ""
    alertmanager_secret: Secret | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelStatus:
    """How a channel does."""

    channel: str
    waiting: int
    error: str
    """Of the newest attempt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelTest:
    """What came of a test message."""

    channel: str
    ok: bool
    said: str
    ms: float


class Notices:
    """All that has to do with telling people."""

    def __init__(
        self, *, store: Store, home: Path, now: Callable[[], datetime], policy: Callable[[ModelState], ModelPolicy],
        options: NoticeOptions,
    ) -> None:  # fmt: skip
        self._store = store
        self._now = now
        self._policy = policy
        self._options = options
        self._journal = Channel(notifier=JournalNotifier(home / "notices.jsonl"), settle=timedelta(0), groups=False)
        self.slack = SlackApi(token=options.slack_token, url=options.slack_api)
        self._alertmanagers = [
            Alertmanager(
                url, user=options.alertmanager_user, secret=options.alertmanager_secret, link=options.public_url
            )
            for url in options.alertmanagers
        ]
        self.outbox = Outbox(store=store, route=self._route, channel=self._channel, newest=self._newest)
        self.dispatcher = Dispatcher(self.outbox, now)
        self.feed = AlertFeed(self._alertmanagers, lambda state: policy(state).metadata.labels)

    # ------------------------------------------------------------ channels
    def _route(self, notice: NoticeRecord) -> list[str]:
        return channels_of(notice, self._options.defaults, self._told_of)

    def _told_of(self, name: str) -> list[dict[str, Any]]:
        state = self._store.load(name)
        if state is None:
            return []
        try:
            return [one.model_dump(mode="json") for one in self._policy(state).spec.notify]
        except ValueError:
            return []  # each look at the model says what is wrong with its policy

    def _channel(self, name: str) -> Channel:
        """Raises NotifierError."""
        kind, _, rest = name.partition(":")
        if name == LOG:
            return self._journal
        if kind == "slack":
            return Channel(notifier=self._slack_channel(rest))
        if kind == "webhook":
            return Channel(notifier=self._webhook(rest))
        raise NotifierError(f"there is no channel of the kind {kind!r}")

    def _slack_channel(self, name: str) -> SlackNotifier:
        options = self._options
        return SlackNotifier(
            channel=name, slack=self.slack, store=self._store, now=self._now, link=options.public_url,
            buttons=options.buttons,
        )  # fmt: skip

    def _webhook(self, name: str) -> WebhookNotifier:
        if "://" in name:
            return WebhookNotifier(Secret(name="webhook", value=name), link=self._options.public_url)
        known = self._options.webhooks.get(name)
        if known is None:
            raise NotifierError(f"no webhook {name!r} is set up: name it in the setting webhooks (docs/notices.md)")
        return WebhookNotifier(known.url, secret=known.secret, link=self._options.public_url)

    def _newest(self, notice: NoticeRecord) -> NoticeRecord:
        """Of an incident, with as many models as have it by now."""
        number = notice.data.get("incident")
        if number is None:
            return notice
        found = next((i for i in self._store.incidents(limit=INCIDENTS_LOOKED_AT) if i.id == number), None)
        if found is None:
            return notice
        return replace(notice, text=describe(found, self._now()), data=facts_of_incident(found))

    def tidy(self) -> None:
        """Forget what nobody will ask for any more. Raises StoreError."""
        self._store.forget(self._now() - KEPT)

    def refresh_incidents(self) -> None:
        """Let the messages about open incidents count the models that have joined since. In Slack, where a message can change."""
        for incident in self._store.incidents(open_only=True, limit=REFRESHED_MAX):
            notice = NoticeRecord(
                key=subject_of(incident), model=incident.names[0] if incident.names else "", kind="incident.grown",
                text=describe(incident, self._now()), at=self._now(), data=facts_of_incident(incident),
            )  # fmt: skip
            for name in self._route(notice):
                if not name.startswith("slack:") or not self.outbox.is_due(name, self._now()):
                    continue
                try:
                    self._slack_channel(name.removeprefix("slack:")).refresh_incident(notice)
                except NotifierError as error:
                    log.warning("incident.not_refreshed", channel=name, error=str(error))

    # ------------------------------------------------------------ asked by people
    def status(self) -> list[ChannelStatus]:
        """Every channel that is told anything, and the instances of Alertmanager. Raises StoreError."""
        waiting = self.outbox.waiting()
        names = dict.fromkeys([*self._channels(), *waiting])
        told = [
            ChannelStatus(channel=redacted(name), waiting=waiting.get(name, 0), error=self.outbox.error(name))
            for name in names
        ]
        return told + [
            ChannelStatus(channel=f"alertmanager:{where}", waiting=0, error=error)
            for where, error in self.feed.errors().items()
        ]

    def test(self) -> list[ChannelTest]:
        """Send a message to every channel, all at once, and say what came of each. Raises StoreError."""
        key = f"test/{secrets.token_hex(8)}"
        said = "This is a test: notices of Ratchet reach this channel."
        notice = NoticeRecord(key=key, model="ratchet", kind="notices.tested", text=said, at=self._now())
        message = Message(key=key, notices=(notice,))
        jobs: dict[str, Callable[[], None]] = {
            redacted(name): lambda name=name: self._channel(name).notifier.deliver(message)  # type: ignore[misc]
            for name in self._channels()
        }
        for one in self._alertmanagers:
            jobs[f"alertmanager:{one.where}"] = lambda one=one: one.send([_test_alert()], [], datetime.now(UTC))  # type: ignore[misc]
        return _all_at_once(jobs)

    def _channels(self) -> list[str]:
        """Those of the settings and those of all policies."""
        options = self._options
        notice = NoticeRecord(key="", model="", kind="", text="", at=self._now())
        named = [
            *channels_of(notice, options.defaults, self._told_of),
            *(f"webhook:{name}" for name in options.webhooks),
        ]
        for text in {state.policy for state in self._store.load_all() if '"notify":[{' in state.policy}:
            to = json.loads(text)["spec"]["notify"]
            named += channels_of(replace(notice, data={"to": to}), options.defaults, self._told_of)
        return list(dict.fromkeys(named))


def _test_alert() -> Alert:
    annotations = {"summary": "This is a test: alerts of Ratchet reach this Alertmanager. It ends by itself."}
    return Alert(
        labels={"alertname": "RatchetTest", "severity": "none"}, annotations=annotations, starts_at=datetime.now(UTC)
    )


def _all_at_once(jobs: Mapping[str, Callable[[], None]]) -> list[ChannelTest]:
    found: dict[str, ChannelTest] = {}

    def run(name: str, job: Callable[[], None]) -> None:
        began = time.monotonic()
        ok, said = False, ""
        try:
            job()
            ok, said = True, "delivered"
        except (NotifierError, StoreError) as error:
            said = str(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer to what was asked
            said = f"an error in the notifier: {type(error).__name__}"
        found[name] = ChannelTest(channel=name, ok=ok, said=said, ms=round(1000 * (time.monotonic() - began), 1))

    threads = [threading.Thread(target=run, args=item, daemon=True) for item in jobs.items()]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + TEST_WAITS_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = f"no answer within {TEST_WAITS_S:g} s"
    return [found.get(name) or ChannelTest(channel=name, ok=False, said=late, ms=1000 * TEST_WAITS_S) for name in jobs]
