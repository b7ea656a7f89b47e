"""One HTTP exchange with a replica: pooled connections, raw bytes through, three ways to fail."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

CONNECT_TIMEOUT_S = 2.0
POOL_KEEPALIVE_S = 3.0
"""Far below the time after which replicas close idle connections, so that a pooled one is hardly ever found dead."""
_HOP_BY_HOP = frozenset(
    [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ]
)  # RFC 9110, section 7.6.1
_REWRITTEN = frozenset({"host", "content-length", "expect"})


class Unanswered(Exception):
    """The replica gave no whole answer."""

    def __init__(self, kind: Literal["refused", "lost", "timeout"]) -> None:
        super().__init__(kind)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Call:
    """A request to repeat as often as it takes: its body is held whole."""

    method: str
    path: str
    """Raw, with its query."""
    headers: CIMultiDict[str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: CIMultiDict[str]
    body: bytes


def end_to_end(headers: CIMultiDictProxy[str], dropped: Iterable[str] = ()) -> CIMultiDict[str]:
    """The headers that belong to the message and not to the connection it came over."""
    drop = _HOP_BY_HOP | _REWRITTEN | {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    drop = drop.union(dropped)
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in drop)


class Upstream:
    """Clients for live and mirrored traffic, apart, so that neither waits for the other's connections."""

    def __init__(self) -> None:
        self._live = _session(force_close=False)
        self._fresh = _session(force_close=True)
        self._mirror = _session(force_close=False)

    async def close(self) -> None:
        for session in (self._live, self._fresh, self._mirror):
            await session.close()

    async def exchange(self, url: str, call: Call, *, timeout_s: float, fresh: bool = False) -> Answer:
        """The replica's answer, whatever its status. Raises Unanswered.

        `fresh` opens a new connection, for a repeat to a replica whose pooled one was lost."""
        session = self._fresh if fresh else self._live
        try:
            async with asyncio.timeout(timeout_s):
                async with _request(session, url, call) as response:
                    body = await response.read()
                    return Answer(response.status, end_to_end(response.headers), body)
        except TimeoutError as error:
            raise Unanswered("timeout") from error
        except aiohttp.ClientConnectorError as error:
            raise Unanswered("refused") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unanswered("lost") from error

    async def mirror(self, url: str, call: Call, *, timeout_s: float) -> int:
        """The status of a shadow's answer, whose body is thrown away. Raises Unanswered."""
        try:
            async with asyncio.timeout(timeout_s):
                async with _request(self._mirror, url, call) as response:
                    async for _ in response.content.iter_any():
                        pass
                    return response.status
        except TimeoutError as error:
            raise Unanswered("timeout") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unanswered("lost") from error


def _session(*, force_close: bool) -> aiohttp.ClientSession:
    connector = (
        aiohttp.TCPConnector(limit=0, force_close=True)
        if force_close
        else aiohttp.TCPConnector(limit=0, keepalive_timeout=POOL_KEEPALIVE_S)
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        trust_env=False,
    )


def _request(session: aiohttp.ClientSession, url: str, call: Call) -> aiohttp.client._RequestContextManager:
    return session.request(
        call.method,
        URL(url + call.path, encoded=True),
        headers=call.headers,
        data=call.body or None,
        allow_redirects=False,
    )
