"""Notices in a Slack channel: one message a cycle, kept up to date, with what happened in its thread; one a fault; one for many alike.

Slack has no key under which a message is posted once. So each message carries ours as metadata, and before a delivery that may have
been made already is made again, the channel (or the thread) is searched for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from controller.notices.grouping import PROGRESS, gist, subject_of
from controller.notices.port import Message, Notifier
from controller.notices.slack_api import SlackApi, SlackRefused
from controller.notices.slack_blocks import (
    LOUD,
    digest_blocks,
    digest_fallback,
    fallback,
    incident_blocks,
    notice_blocks,
    reply_blocks,
)
from controller.state import NoticeRecord
from controller.store.port import NoticeStore

SEARCHED = 100
"""Newest messages that are searched for one that may have been posted."""
DIGEST_LASTS = timedelta(minutes=15)
"""More of the same within this time is counted in the same message."""
NAMES_KEPT = 20
EVENT = "ratchet_notice"
_CANNOT_SEARCH = frozenset({"missing_scope", "not_in_channel", "no_permission", "access_denied"})
_GONE = frozenset({"message_not_found", "thread_not_found", "cant_update_message", "edit_window_closed"})


class SlackNotifier(Notifier):
    """One channel, by name (`#ops`) or id."""

    def __init__(
        self, *, channel: str, slack: SlackApi, store: NoticeStore, now: Callable[[], datetime], link: str = "",
        buttons: bool = False,
    ) -> None:  # fmt: skip
        self._channel = channel
        self._slack = slack
        self._store = store
        self._now = now
        self._link = link
        self._buttons = buttons

    def deliver(self, message: Message) -> None:
        if message.digest:
            self._deliver_digest(message)
        elif "incident" in message.newest.data:
            self._deliver_incident(message)
        else:
            for notice in message.notices:
                self._deliver_notice(notice, again=message.again)

    # ------------------------------------------------------------ a cycle
    def _deliver_notice(self, notice: NoticeRecord, *, again: bool) -> None:
        subject = subject_of(notice) if "cycle" in notice.data else notice.key
        place = self._place(subject, again=again)
        if place is None and notice.kind in PROGRESS:
            return  # its cycle was told of together with others
        blocks = notice_blocks(notice, self._link, buttons=self._buttons)
        if place is None:
            self._post(subject, notice.key, fallback(notice), blocks, at=notice.at)
            return
        if place["key"] == notice.key:
            return
        if notice.kind not in PROGRESS and not (again and self._is_in_thread(place, notice.key)):
            self._slack.call(
                "chat_postMessage", channel=place["channel"], thread_ts=place["ts"], text=fallback(notice),
                blocks=reply_blocks(notice), reply_broadcast=notice.kind in LOUD, metadata=_metadata(subject, notice.key),
                mrkdwn=False, unfurl_links=False, unfurl_media=False,
            )  # fmt: skip
        if notice.at.isoformat() >= place["at"]:
            self._update(subject, place, fallback(notice), blocks, at=notice.at)

    # ------------------------------------------------------------ a fault
    def _deliver_incident(self, message: Message) -> None:
        notice, subject = message.newest, subject_of(message.newest)
        place = self._place(subject, again=message.again)
        blocks = incident_blocks(notice, self._link)
        if place is None:
            self._post(subject, notice.key, fallback(notice), blocks, at=notice.at)
        else:
            self._update(subject, place, fallback(notice), blocks, at=notice.at)

    def refresh_incident(self, notice: NoticeRecord) -> None:
        """Bring the count of an incident that was told here up to date. Raises NotifierError."""
        subject = subject_of(notice)
        place = self._place(subject, again=False)
        shown = str(notice.data.get("models"))
        if place is not None and place.get("shown") != shown:
            self._update(
                subject, {**place, "shown": shown}, fallback(notice), incident_blocks(notice, self._link),
                at=datetime.fromisoformat(place["at"]),
            )  # fmt: skip

    # ------------------------------------------------------------ many alike
    def _deliver_digest(self, message: Message) -> None:
        kind = message.newest.kind
        if kind in PROGRESS:
            return
        subject = f"digest/{kind}/{hashlib.sha256(gist(message.newest.text).encode()).hexdigest()[:16]}"
        place = self._place(subject, again=message.again)
        counted = _counted(place)
        if message.key not in counted["batches"]:
            if place is None or datetime.fromisoformat(place["at"]) + DIGEST_LASTS <= self._now():
                place, counted = None, _counted(None)
            counted = {
                "count": counted["count"] + len(message.notices),
                "names": [*counted["names"], *(notice.model for notice in message.notices)][:NAMES_KEPT],
                "batches": [*counted["batches"], message.key],
            }
        text = digest_fallback(kind, counted["count"], counted["names"])
        sample = f"{message.newest.model}: {message.newest.text}"
        blocks = digest_blocks(kind, counted["count"], counted["names"], sample, self._link)
        if place is None:
            self._post(subject, message.key, text, blocks, at=self._now(), counted=json.dumps(counted))
            return
        place = {**place, "counted": json.dumps(counted)}
        self._keep(subject, place)  # first, so that a crash counts nothing twice
        self._update(subject, place, text, blocks, at=datetime.fromisoformat(place["at"]))

    # ------------------------------------------------------------ where messages stand
    def _name(self, subject: str) -> str:
        return f"slack/{self._channel}/{subject}"

    def _place(self, subject: str, *, again: bool) -> dict[str, Any] | None:
        """Where the subject's message stands; after an attempt that may have posted it, as Slack says."""
        kept = self._store.kept(self._name(subject))
        if kept is not None:
            place: dict[str, Any] = json.loads(kept)
            return place
        return self._search(subject) if again else None

    def _keep(self, subject: str, place: Mapping[str, Any]) -> None:
        self._store.keep(self._name(subject), json.dumps(place), self._now())

    def _search(self, subject: str) -> dict[str, Any] | None:
        """A message of ours about this subject that nobody wrote down. An app that may not read the channel posts again."""
        channel = self._store.kept(self._name("id")) or self._channel
        try:
            found = self._slack.call(
                "conversations_history", channel=channel, limit=SEARCHED, include_all_metadata=True
            )
        except SlackRefused as error:
            if error.word in {*_CANNOT_SEARCH, "channel_not_found"}:
                return None
            raise
        for message in found.get("messages", ()):
            payload = _payload(message)
            if payload.get("subject") == subject:
                said = {name: payload.get(name, "") for name in ("at", "key", "counted")}
                place = {"channel": channel, "ts": message["ts"], **said}
                self._keep(subject, place)
                return place
        return None

    def _is_in_thread(self, place: Mapping[str, Any], key: str) -> bool:
        try:
            found = self._slack.call(
                "conversations_replies",
                channel=place["channel"],
                ts=place["ts"],
                limit=SEARCHED,
                include_all_metadata=True,
            )
        except SlackRefused as error:
            if error.word in _CANNOT_SEARCH:
                return False
            raise
        return any(_payload(message).get("key") == key for message in found.get("messages", ()))

    def _post(
        self, subject: str, key: str, text: str, blocks: list[dict[str, Any]], *, at: datetime, counted: str | None = None
    ) -> None:  # fmt: skip
        answer = self._slack.call(
            "chat_postMessage", channel=self._channel, text=text, blocks=blocks, mrkdwn=False, unfurl_links=False,
            unfurl_media=False, metadata=_metadata(subject, key, at=at.isoformat(), counted=counted),
        )  # fmt: skip
        place = {"channel": answer["channel"], "ts": answer["ts"], "at": at.isoformat(), "key": key, "counted": counted}
        self._store.keep(self._name("id"), str(answer["channel"]), self._now())
        self._keep(subject, place)

    def _update(
        self, subject: str, place: Mapping[str, Any], text: str, blocks: list[dict[str, Any]], *, at: datetime
    ) -> None:  # fmt: skip
        try:
            self._slack.call("chat_update", channel=place["channel"], ts=place["ts"], text=text, blocks=blocks)
        except SlackRefused as error:
            if error.word not in _GONE:
                raise
            self._post(subject, place["key"], text, blocks, at=at, counted=place.get("counted"))  # somebody deleted it
            return
        self._keep(subject, {**place, "at": at.isoformat()})


def _metadata(subject: str, key: str, **more: Any) -> dict[str, Any]:
    payload = {"subject": subject, "key": key, **{k: v for k, v in more.items() if v is not None}}
    return {"event_type": EVENT, "event_payload": payload}


def _payload(message: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata = message.get("metadata") or {}
    payload = metadata.get("event_payload") if metadata.get("event_type") == EVENT else None
    return payload if isinstance(payload, Mapping) else {}


def _counted(place: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a message of many alike counts so far: models, some names, and the batches that are in it."""
    kept = place.get("counted") if place is not None else None
    found: dict[str, Any] = json.loads(kept) if kept else {"count": 0, "names": [], "batches": []}
    return found
