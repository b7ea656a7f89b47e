"""Slack's Web API by slack-sdk: bounded in time, and with errors that say what to do and tell no secret."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from controller.notices.http import post, retry_after_s
from controller.notices.port import NotifierError
from controller.notices.secrets import Secret, SecretError

if TYPE_CHECKING:
    from slack_sdk import WebClient

API = "https://slack.com/api/"
TIMEOUT_S = 5
"""Of a whole call."""
ANSWER_BYTES_MAX = 16 << 20
_DOWN = frozenset(
    {"invalid_auth", "not_authed", "account_inactive", "token_revoked", "token_expired", "channel_not_found", "not_in_channel",
     "is_archived", "missing_scope", "ratelimited", "service_unavailable", "internal_error", "fatal_error", "no_permission"}
)  # fmt: skip
"""Slack's words for what no other message would get through either."""
_HINTS: Mapping[str, str] = {
    "not_in_channel": "invite the app: /invite @ratchet", "channel_not_found": "is the name right, and the app in it if it is private?",
    "missing_scope": "give the app the scopes of docs/notices.md and install it again", "invalid_auth": "is the token right?",
}  # fmt: skip


class SlackRefused(NotifierError):
    """Slack said no; `word` is its own word for why, empty for none."""

    def __init__(self, said: str, word: str, **more: Any) -> None:
        super().__init__(said, **more)
        self.word = word


@dataclass(frozen=True, kw_only=True, slots=True)
class SlackApi:
    """One app in one workspace."""

    token: Secret
    url: str = API
    timeout_s: int = TIMEOUT_S

    def call(self, method: str, **arguments: Any) -> Mapping[str, Any]:
        """One call. Raises NotifierError."""
        from slack_sdk.errors import SlackApiError, SlackClientError

        client = self._client()
        try:
            data = getattr(client, method)(**arguments).data
        except SlackApiError as error:
            raise _refusal(method, error) from None
        except NotifierError as error:
            raise NotifierError(f"Slack cannot be reached ({method}): {error}", channel_is_down=True) from None
        except (SlackClientError, OSError, ValueError) as error:
            inner = getattr(error, "reason", None)
            said = getattr(error, "strerror", None) or getattr(inner, "strerror", None) or type(inner or error).__name__
            raise NotifierError(f"Slack cannot be reached ({method}): {said}", channel_is_down=True) from None
        except Exception as error:  # noqa: BLE001 - http.client raises what it likes at a nonsense answer
            said = f"Slack's answer to {method} makes no sense ({type(error).__name__})"
            raise NotifierError(said, channel_is_down=True) from None
        if not isinstance(data, dict):
            raise NotifierError(f"Slack's answer to {method} makes no sense", channel_is_down=True)
        return data

    def _client(self) -> WebClient:
        from slack_sdk import WebClient

        try:
            token = self.token.read()
        except SecretError as error:
            raise NotifierError(str(error), channel_is_down=True) from None
        quiet = logging.getLogger(__name__)
        quiet.setLevel(logging.CRITICAL)  # we say ourselves what failed, and without what was sent

        class Bounded(WebClient):
            """The SDK's own way to ask follows redirects, with the token, and waits and reads as long as something comes."""

            def _perform_urllib_http_request_internal(self, url: str, req: Any) -> dict[str, Any]:
                headers = {**dict(req.header_items()), "accept-encoding": "identity"}
                answer = post(url, req.data or b"", headers, self.timeout, ANSWER_BYTES_MAX)
                told = {"retry-after": str(answer.retry_after_s)}
                return {"status": answer.status, "headers": told, "body": answer.text}

        return Bounded(token=token, base_url=self.url, timeout=self.timeout_s, retry_handlers=[], logger=quiet)


def _refusal(method: str, error: Any) -> SlackRefused:
    answer = error.response
    status = int(getattr(answer, "status_code", 0) or 0)
    data = answer.data if isinstance(getattr(answer, "data", None), dict) else {}
    given = str(data.get("error", ""))
    word = given if re.fullmatch(r"[a-z_]{1,60}", given) else ""  # slack-sdk puts there what is no JSON
    headers = {str(k).lower(): v for k, v in dict(getattr(answer, "headers", None) or {}).items()}
    asked = headers.get("retry-after", "")
    asked = asked[0] if isinstance(asked, list) and asked else asked
    wait = retry_after_s(str(asked), datetime.now().astimezone()) if status == 429 else 0.0
    hint = f"; {_HINTS[word]}" if word in _HINTS else ""
    said = f"Slack refuses {method}: {word or f'an answer without sense, status {status}'}{hint}"
    down = status == 429 or status >= 500 or word in _DOWN or not word
    return SlackRefused(said, word, retry_after_s=wait, channel_is_down=down)
