"""What other systems call: Alertmanager with alerts, Slack with buttons that were pressed. Each has an authentication of its own."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from litestar import MediaType, Request, Response, post
from litestar.di import NamedDependency
from litestar.params import SkipValidation

from controller.notices.secrets import Secret, SecretError
from controller.notices.slack_clicks import SlackClicks
from controller.notices.told_alerts import AlertBook, BadPayload, TooManyAlerts
from controller.web.guard import OWN_KEYS

log = structlog.get_logger()

ALERTMANAGER = "/hooks/alertmanager"
SLACK = "/hooks/slack"
ALERTS_BYTES_MAX = 4 * 2**20
CLICK_BYTES_MAX = 256 * 2**10

AnyRequest = Request[Any, Any, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hooks:
    """What is called back. None where it is not set up."""

    alerts: AlertBook | None = None
    alert_token: Secret | None = None
    clicks: SlackClicks | None = None


NO_HOOKS = Hooks()
Called = NamedDependency[SkipValidation[Hooks]]


def _answer(status: int, error: str = "", code: str = "") -> Response[dict[str, Any]]:
    said = {"error": error, "code": code} if error else {"ok": True}
    headers = {"www-authenticate": 'Bearer realm="ratchet alerts"'} if status == 401 else {}
    return Response(said, status_code=status, media_type=MediaType.JSON, headers=headers)


def may_call(header: str, secret: str) -> bool:
    """Whether an Authorization header holds the secret: as a bearer token, or as the password of whatever user.

    >>> may_call("Bearer s3", "s3"), may_call("Basic dTpzMw==", "s3"), may_call("Basic dTp4", "s3"), may_call("", "s3")
    (True, True, False, False)
    """
    scheme, _, given = header.partition(" ")
    token = given.strip().encode("latin-1", "replace")
    if scheme.lower() == "basic":
        try:
            _, _, token = base64.b64decode(token, validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(token, secret.encode())


@post(ALERTMANAGER, status_code=200, include_in_schema=False, request_max_body_size=ALERTS_BYTES_MAX)
async def hear_alerts(request: AnyRequest, hooks: Called) -> Response[dict[str, Any]]:
    """Alertmanager's webhook, version 4."""
    if hooks.alerts is None or hooks.alert_token is None or not hooks.alert_token.is_set:
        return _answer(403, "alerts are not taken: set RATCHET_ALERT_HOOK_TOKEN_FILE", "not_set_up")
    try:
        token = hooks.alert_token.read()
    except SecretError as error:
        log.error("alerts.not_taken", error=str(error))
        return _answer(503, "alerts cannot be taken now; the daemon's log says why", "not_set_up")
    if not may_call(request.headers.get("authorization", ""), token):
        return _answer(
            401, "needs the token of RATCHET_ALERT_HOOK_TOKEN_FILE, as bearer token or basic password", "unauthorized"
        )
    try:
        payload = json.loads(await request.body())
        named = await asyncio.to_thread(hooks.alerts.hear, payload)
    except (ValueError, RecursionError) as error:
        return _answer(400, str(error) if isinstance(error, BadPayload) else "the body is no JSON", "bad_request")
    except TooManyAlerts as error:
        log.error("alerts.refused", error=str(error))
        return _answer(503, str(error), "too_many")
    log.info("alerts.heard", models=named[:20], count=len(payload["alerts"]))
    return _answer(200)


@post(SLACK, status_code=200, include_in_schema=False, request_max_body_size=CLICK_BYTES_MAX)
async def take_click(request: AnyRequest, hooks: Called) -> Response[dict[str, Any]]:
    """Slack's interactivity: a button was pressed."""
    if hooks.clicks is None:
        return _answer(
            403, "buttons are not taken: set RATCHET_SLACK_SIGNING_SECRET_FILE and RATCHET_SLACK_USERS", "not_set_up"
        )
    headers: Mapping[str, str] = request.headers
    stamp, signature = headers.get("x-slack-request-timestamp", ""), headers.get("x-slack-signature", "")
    said = await asyncio.to_thread(hooks.clicks.receive, await request.body(), stamp, signature)
    if said.status != 200:
        log.warning("slack.refused", status=said.status, error=said.error)
        return _answer(said.status, said.error, "refused")
    return _answer(200)


HOOKS = (hear_alerts, take_click)
assert {ALERTMANAGER, SLACK} == OWN_KEYS
