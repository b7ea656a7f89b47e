"""Notices as a JSON POST, signed if a secret is given. Receivers know a repeated delivery by its key."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

from controller.notices.http import TIMEOUT_S, check, parts_of, post
from controller.notices.journal import plain
from controller.notices.port import Message, Notifier, NotifierError
from controller.notices.secrets import Secret, SecretError, host_of
from controller.state import NoticeRecord

SCHEMA = "ratchet.dev/notice/v1"
TEXT_MAX = 8_000
NOTICES_MAX = 1_000
"""Of one message that are spelt out; the count is of all."""


class WebhookNotifier(Notifier):
    """One address. `url` is read at each delivery: it may be a secret that is replaced."""

    def __init__(
        self, url: Secret, *, secret: Secret | None = None, link: str = "", timeout_s: float = TIMEOUT_S,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._url = url
        self._secret = secret
        self._link = link
        self._timeout_s = timeout_s
        self._clock = clock

    def deliver(self, message: Message) -> None:
        try:
            url, key = self._url.read(), self._secret.read() if self._secret is not None else ""
        except SecretError as error:
            raise NotifierError(str(error), channel_is_down=True) from None
        body = json.dumps(payload(message, self._link)).encode()
        headers = {"content-type": "application/json", "idempotency-key": _token(message.key)}
        if key:
            stamp = str(int(self._clock()))
            headers |= {"x-ratchet-timestamp": stamp, "x-ratchet-signature": signature(key, stamp, body)}
        check(post(url, body, headers, self._timeout_s), host_of(url), parts_of(url) | {key})


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """`v1=` and the HMAC-SHA256, in hex, of `TIMESTAMP.BODY`: old bodies cannot be sent again under a new time.

    >>> signature("s", "1700000000", b"{}")[:12]
    'v1=e9232c994'
    """
    return "v1=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def payload(message: Message, link: str = "") -> dict[str, Any]:
    """What is sent, as docs/notices.md describes it."""
    newest = message.newest
    return {
        "schema": SCHEMA, "key": message.key, "digest": message.digest,
        "count": len(message.notices) if message.digest else 1,
        "kind": newest.kind, "model": newest.model if not message.digest else None, "text": newest.text[:TEXT_MAX],
        "at": newest.at.isoformat(), "link": link or None,
        "notices": [_notice(notice) for notice in message.notices[:NOTICES_MAX]],
    }  # fmt: skip


def _notice(notice: NoticeRecord) -> dict[str, Any]:
    facts = {key: value for key, value in notice.data.items() if key != "to"}
    return {
        "key": notice.key, "kind": notice.kind, "model": notice.model, "text": notice.text[:TEXT_MAX],
        "at": notice.at.isoformat(), "facts": plain(facts),
    }  # fmt: skip


def _token(key: str) -> str:
    """A key as a header may hold it: names of models are plain, but whoever wrote the key may not know that."""
    return key if key.isascii() and key.isprintable() else hashlib.sha256(key.encode()).hexdigest()
