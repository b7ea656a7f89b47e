"""One POST to somebody else's server: bounded in time and size as a whole, no redirects, and errors that tell no secret."""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import unquote, urlsplit

from controller.notices.port import NotifierError
from controller.notices.secrets import host_of, is_address

TIMEOUT_S = 10.0
"""For all of it: a server that sends a byte now and then is slow too."""
ANSWER_BYTES_MAX = 65_536
RETRY_AFTER_MAX_S = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    status: int
    text: str
    retry_after_s: float


def post(
    url: str, body: bytes, headers: Mapping[str, str], timeout_s: float = TIMEOUT_S, bytes_max: int = ANSWER_BYTES_MAX
) -> Answer:
    """The answer, whatever its status. Raises NotifierError (the channel is down) if there is none in time."""
    import httpx

    where = host_of(url)
    if not is_address(url):
        raise NotifierError(f"{where} is no URL that can be asked", channel_is_down=True)
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they log whole URLs
    try:
        return asyncio.run(asyncio.wait_for(_post(url, body, headers, timeout_s, bytes_max), timeout_s))
    except TimeoutError:
        raise NotifierError(f"{where} did not answer within {timeout_s:g} s", channel_is_down=True) from None
    except (httpx.InvalidURL, UnicodeError, ValueError):
        raise NotifierError(f"{where} is no URL that can be asked", channel_is_down=True) from None
    except (httpx.HTTPError, OSError) as error:
        raise NotifierError(f"{where} cannot be reached: {_reason(error)}", channel_is_down=True) from None


async def _post(
    url: str, body: bytes, headers: Mapping[str, str], timeout_s: float, bytes_max: int
) -> Answer:  # fmt: skip
    import httpx

    async with (
        httpx.AsyncClient(timeout=timeout_s, follow_redirects=False) as client,
        client.stream("POST", url, content=body, headers={"user-agent": "ratchet", **headers}) as answer,
    ):
        text = b""
        async for chunk in answer.aiter_raw():
            text += chunk[: bytes_max - len(text)]
            if len(text) >= bytes_max:
                break
        return Answer(
            status=answer.status_code, text=text.decode(errors="replace"),
            retry_after_s=retry_after_s(answer.headers.get("retry-after", ""), datetime.now(UTC)),
        )  # fmt: skip


def _reason(error: Exception) -> str:
    """Without the URL, which some exceptions quote."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__
    return type(error).__name__


def check(answer: Answer, where: str, secrets: Iterable[str] = ()) -> None:
    """Raises NotifierError unless the answer is a success (2xx). `secrets`: what must not be told although it is said back to us."""
    if 200 <= answer.status < 300:
        return
    if 300 <= answer.status < 400:
        raise NotifierError(
            f"{where} redirects ({answer.status}), which is not followed; give the final address", channel_is_down=True
        )
    down = answer.status in (401, 403, 404, 408, 410, 429) or answer.status >= 500
    said = " ".join(_without(answer.text, secrets).split())[:200]
    raise NotifierError(
        f"{where} answered {answer.status}{f': {said}' if said and answer.status < 500 else ''}",
        retry_after_s=answer.retry_after_s, channel_is_down=down,
    )  # fmt: skip


def _without(text: str, secrets: Iterable[str]) -> str:
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def parts_of(url: str) -> set[str]:
    """Whatever may be secret in a URL: all of its path and parameters, as they stand there and as they are meant.

    >>> sorted(parts_of("https://host/hooks/T%2F0?key=abcd"))
    ['T%2F0', 'T/0', 'abcd', 'hooks']
    """
    parts = urlsplit(url)
    words = [word for word in re.split(r"[/?&=;#]", f"{parts.path}?{parts.query}#{parts.fragment}") if len(word) > 3]
    return {form for word in words for form in (word, unquote(word))}


def retry_after_s(header: str, now: datetime) -> float:
    """Seconds from a Retry-After header (RFC 9110, 10.2.3), bounded; 0 if there is none that makes sense.

    >>> retry_after_s("30", datetime(2026, 1, 1, tzinfo=UTC)), retry_after_s("soon", datetime(2026, 1, 1, tzinfo=UTC))
    (30.0, 0.0)
    >>> retry_after_s("Thu, 01 Jan 2026 00:01:00 GMT", datetime(2026, 1, 1, tzinfo=UTC))
    60.0
    """
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(header) - now).total_seconds()
        except (ValueError, TypeError):
            return 0.0
    return min(max(seconds, 0.0), RETRY_AFTER_MAX_S) if math.isfinite(seconds) else 0.0
