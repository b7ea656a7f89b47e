"""Buttons that people press in Slack: who may, which state of the model they meant, and each press once.

Slack signs what it sends (v0 signatures). A signature is good for five minutes and is kept in the store, so that nobody sends the same
request again, after a restart neither. Slack wants an answer within three seconds, so the order is carried out after it; what comes of it
is seen in the message, which changes, or is said to the one who pressed.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog

from controller.notices.port import NotifierError
from controller.notices.secrets import Secret, SecretError
from controller.notices.slack_api import SlackApi
from controller.notices.slack_blocks import ACTION
from controller.notices.slack_text import clean, escaped
from controller.overrides import Expected, Order, OverrideRefused, Verb
from controller.store.port import NoticeStore

log = structlog.get_logger()

WINDOW_S = 300
"""Older requests are refused, and those from so far in the future."""
AT_A_TIME = 8
REASON = "pressed in Slack"
VERBS = frozenset({Verb.APPROVE, Verb.REJECT, Verb.ABORT, Verb.ROLLBACK})
_ID = re.compile(r"[A-Z0-9]{1,30}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """The answer to Slack."""

    status: int
    error: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Click:
    """A press that makes sense."""

    user: str
    name: str
    channel: str
    model: str
    verb: Verb
    expected: Expected

    @property
    def actor(self) -> str:
        return f"{self.name} (Slack {self.user})"


class SlackClicks:
    """`order` carries an order out; it is called from a thread of its own."""

    def __init__(
        self, *, store: NoticeStore, signing: Secret, users: frozenset[str], order: Callable[[str, Order], object],
        slack: SlackApi, now: Callable[[], datetime], clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._store = store
        self._signing = signing
        self._users = users
        self._order = order
        self._slack = slack
        self._now = now
        self._clock = clock
        self._room = threading.Semaphore(AT_A_TIME)

    def receive(self, body: bytes, timestamp: str, signature: str) -> Said:
        """Raises StoreError."""
        if not self._is_signed(body, timestamp, signature):
            return Said(status=401, error="the signature is not Slack's, or too old")
        seen = f"slack/seen/{hashlib.sha256(signature.encode()).hexdigest()}"
        if not self._store.keep_once(seen, "", self._now()):
            return Said(status=409, error="this request was received before")
        payload = _payload(body)
        if payload is None:
            return Said(status=400, error="is no payload of an interaction")
        if all(action.get("action_id") == f"{ACTION}open" for action in payload["actions"]):
            return Said(status=200)
        click = click_of(payload)
        if click is None:
            return Said(status=400, error="is no button of ours")
        if not self._room.acquire(blocking=False):
            return Said(status=503, error="too many at once")
        threading.Thread(target=self._carry_out, args=[click], name="slack-click", daemon=True).start()
        return Said(status=200)

    def _is_signed(self, body: bytes, timestamp: str, signature: str) -> bool:
        from slack_sdk.signature import SignatureVerifier

        if not re.fullmatch(r"[0-9]{1,12}", timestamp) or abs(self._clock() - int(timestamp)) > WINDOW_S:
            return False
        try:
            verifier = SignatureVerifier(self._signing.read())
            expected = verifier.generate_signature(timestamp=timestamp, body=body)
        except (SecretError, UnicodeDecodeError) as error:
            log.warning(
                "slack.not_verified", error=type(error).__name__ if isinstance(error, ValueError) else str(error)
            )
            return False
        return expected is not None and _same(expected, signature)

    def _carry_out(self, click: Click) -> None:
        try:
            if click.user not in self._users:
                log.warning("slack.user_refused", user=click.user, model=click.model, verb=click.verb.value)
                self._say(click, f"you ({click.user}) are not among those who may: RATCHET_SLACK_USERS")
                return
            order = Order(verb=click.verb, actor=click.actor, reason=REASON, expected=click.expected)
            self._order(click.model, order)
        except (OverrideRefused, LookupError) as error:
            self._say(click, f"nothing was changed: {error}")
        except Exception as error:
            log.exception("slack.order_failed", model=click.model, verb=click.verb.value)
            self._say(click, f"it failed, and nothing was changed as far as is known: {type(error).__name__}")
        finally:
            self._room.release()

    def _say(self, click: Click, text: str) -> None:
        try:
            said = escaped(f"{click.verb.value} {click.model}: {text}", 1_500)
            self._slack.call("chat_postEphemeral", channel=click.channel, user=click.user, text=said)
        except NotifierError as error:
            log.warning("slack.not_said", error=str(error), text=text)


def _same(ours: str, theirs: str) -> bool:
    import hmac

    return hmac.compare_digest(ours.encode(), theirs.encode("utf-8", "replace"))


def _payload(body: bytes) -> dict[str, Any] | None:
    """What Slack sends as the form field `payload`, if it is a press of buttons."""
    try:
        form = urllib.parse.parse_qs(body.decode(), max_num_fields=10)
        payload = json.loads(form["payload"][0])
    except (ValueError, KeyError, RecursionError):
        return None
    fine = (
        isinstance(payload, dict)
        and payload.get("type") == "block_actions"
        and isinstance(payload.get("actions"), list)
    )
    return payload if fine and payload["actions"] and all(isinstance(a, dict) for a in payload["actions"]) else None


def click_of(payload: Mapping[str, Any]) -> Click | None:
    """The press, as far as it makes sense: the signature says that it came from Slack, not that it is ours."""
    action, user, channel = payload["actions"][0], payload.get("user"), payload.get("channel")
    try:
        value = json.loads(str(action["value"])[:4_000])
        verb = Verb(value["verb"])
        if verb not in VERBS or action["action_id"] != f"{ACTION}{verb.value}" or not isinstance(user, dict):
            return None
        where = channel["id"] if isinstance(channel, dict) else ""
        if not _ID.fullmatch(str(user["id"])) or not _ID.fullmatch(str(where)):
            return None
        expected = Expected(life=str(value["life"]), cycle=_number(value["cycle"]), champion=_number(value["champion"]))
        name = clean(str(user.get("username") or user.get("name") or "someone").replace(",", " "), 80)
        return Click(
            user=user["id"], name=name, channel=where, model=str(value["model"])[:200], verb=verb, expected=expected
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _number(value: object) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise ValueError("not a number")
