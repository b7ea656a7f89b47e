"""Prometheus, by its HTTP API, through prometheus-api-client. All that comes back is hostile: bounded in time and size, and not followed.

The client library asks; what it is given as a session bounds the answer, since the library itself reads whatever comes. It retries
nothing: the next tick asks again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from controller.metering.port import MetricsError, Question, Sample

SECRET_BYTES_MAX = 64 * 1024
WORDS_MAX = 200
"""Characters of Prometheus' own words in a reason."""
SKEW_MAX_S = 60.0
_CHUNK = 256 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """Where Prometheus is and how it is asked. Secrets are files, read at each tick, so that they may be exchanged."""

    url: str
    token_file: Path | None = None
    user: str | None = None
    password_file: Path | None = None
    headers_file: Path | None = None
    ca_file: Path | None = None
    timeout_s: float = 10.0
    answer_bytes_max: int = 64 * 1024 * 1024


class _Series(msgspec.Struct, gc=False):
    metric: dict[str, str]
    value: tuple[float, str]


class _Data(msgspec.Struct):
    resultType: str  # noqa: N815 - Prometheus' name
    result: msgspec.Raw


class _Envelope(msgspec.Struct):
    status: str
    data: _Data | None = None
    error: str = ""
    errorType: str = ""  # noqa: N815 - Prometheus' name
    warnings: list[str] = []


_envelope = msgspec.json.Decoder(_Envelope)
_vector = msgspec.json.Decoder(list[_Series])
_scalar = msgspec.json.Decoder(tuple[float, str])


class PrometheusSource:
    """One connection pool to one Prometheus; may be asked by several threads at once."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._client: Any = None

    def ask(self, question: Question) -> Iterable[Sample]:
        """See MetricSource.ask."""
        from prometheus_api_client.exceptions import PrometheusApiClientException
        from requests.exceptions import RequestException
        from urllib3.exceptions import HTTPError

        client = self._connected()
        limit_s = self._access.timeout_s
        try:
            samples: Iterable[Sample] = client.custom_query(
                question.promql, params={"time": f"{question.at:.3f}", "timeout": f"{limit_s:g}s"}, timeout=limit_s
            )
        except (RequestException, HTTPError) as error:
            raise MetricsError(self._away(error)) from None  # its words may hold the URL's secrets
        except (PrometheusApiClientException, KeyError, TypeError, ValueError) as error:
            raise MetricsError(f"Prometheus gave no answer that can be read ({type(error).__name__})") from None
        return samples

    def close(self) -> None:
        """Let go of connections."""
        if self._client is not None:
            self._client.close()

    def _connected(self) -> Any:
        if self._client is None:
            from prometheus_api_client import PrometheusConnect
            from urllib3.util.retry import Retry

            session = _bounded_session(self._access)
            self._client = PrometheusConnect(url=self._access.url, session=session, retry=Retry(total=0))
        return self._client

    def _away(self, error: Exception) -> str:
        where = place(self._access.url)
        cause = getattr(error.args[0] if error.args else None, "reason", None)  # of a request that was not tried again
        name = type(cause or error).__name__
        if "Timeout" in name:
            return f"Prometheus at {where} did not answer within {self._access.timeout_s:g} s (prometheus_timeout_s)"
        if name == "SSLError":
            return f"the certificate of Prometheus at {where} is not trusted: give prometheus_ca_file"
        return f"Prometheus at {where} is not reached ({type(error).__name__}): is it up, and is prometheus_url right?"


def place(url: str) -> str:
    """
    >>> place("http://prom:9090/prefix?x=1")
    'http://prom:9090'
    """
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"


def _bounded_session(access: Access) -> Any:
    """A requests session that follows no redirect and reads a bounded answer in bounded time."""
    import requests

    class Session(requests.Session):
        def get_redirect_target(self, resp: Any) -> None:
            """None is followed; and of one that might be, requests would read all of the body, however long."""

        def request(self, method: Any, url: Any, **options: Any) -> Any:  # type: ignore[override]
            options.update(allow_redirects=False, stream=True, auth=_auth(access), headers=headers(access))
            deadline = time.monotonic() + access.timeout_s
            with super().request(method, url, **options) as response:
                return Answer(
                    status=response.status_code, headers=response.headers,
                    content=_bounded(response, deadline, access.answer_bytes_max), received=time.time(), url=access.url,
                )  # fmt: skip

    session = Session()
    session.trust_env = False  # no proxy and no .netrc that nobody named
    if access.ca_file is not None:
        session.verify = str(access.ca_file)
    return session


def _bounded(response: Any, deadline: float, bytes_max: int) -> bytes:
    """The body. Raises MetricsError beyond the bounds. Not decompressed: none was asked for, and a small one may grow without end."""
    content = bytearray()
    while chunk := response.raw.read1(_CHUNK, decode_content=False):
        content += chunk
        if len(content) > bytes_max:
            raise MetricsError(
                f"the answer has more than {bytes_max} bytes (prometheus_max_mb): aggregate by model and version"
            )
        if time.monotonic() > deadline:
            raise MetricsError("the answer did not end within the time that a query may take (prometheus_timeout_s)")
    return bytes(content)


def headers(access: Access) -> dict[str, str]:
    """What is sent along. Raises MetricsError without the secrets."""
    found = {"Accept": "application/json", "Accept-Encoding": "identity"}
    if access.headers_file is not None:
        for number, line in enumerate(secret(access.headers_file).splitlines(), start=1):
            name, colon, value = line.partition(":")
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            if not colon or not name.strip().replace("-", "").isalnum():
                raise MetricsError(f"{access.headers_file}:{number}: a header is NAME: VALUE")
            found[name.strip()] = value.strip()
    if access.token_file is not None:
        found["Authorization"] = f"Bearer {secret(access.token_file)}"
    return found


def _auth(access: Access) -> tuple[str, str] | None:
    if access.user is None or access.password_file is None:
        return None
    return access.user, secret(access.password_file)


def secret(path: Path) -> str:
    """Raises MetricsError if it cannot be read, is empty, or holds what no header may hold."""
    try:
        with path.open("rb") as file:
            content = file.read(SECRET_BYTES_MAX + 1)
        text = content.decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise MetricsError(f"{path} cannot be read: {reason}") from None
    if not text or len(content) > SECRET_BYTES_MAX:
        raise MetricsError(f"{path} must hold from 1 to {SECRET_BYTES_MAX} bytes")
    return text


class Answer:
    """What the client library takes for a response: it asks for `status_code`, then `json()`."""

    def __init__(self, *, status: int, headers: Mapping[str, str], content: bytes, received: float, url: str) -> None:
        """Raises MetricsError for all but a whole, current answer."""
        self.status_code = 200
        self.content = b""
        self._samples = _samples(status, headers, content, received, url)

    def json(self) -> dict[str, Any]:
        return {"data": {"result": self._samples}}


def _samples(status: int, headers: Mapping[str, str], content: bytes, received: float, url: str) -> list[Sample]:
    if 300 <= status < 400:
        where = place(headers.get("Location", "")) if "://" in headers.get("Location", "") else "elsewhere"
        raise MetricsError(
            f"Prometheus answers with a redirect to {where} ({status}), which is not followed: set prometheus_url right"
        )
    if status in (401, 403):
        raise MetricsError(
            f"Prometheus refuses the credentials ({status}): see prometheus_token_file and prometheus_password_file"
        )
    try:
        envelope = _envelope.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        envelope = None
    if status != 200:
        words = _brief(envelope.error) if envelope is not None else ""
        advice = _ADVICE.get(status, "the query or the server is at fault")
        raise MetricsError(f"Prometheus answers {status}{f' ({words})' if words else ''}: {advice}")
    if envelope is None or envelope.data is None or envelope.status != "success":
        raise MetricsError(f"what answers at {place(url)} does not speak like Prometheus: is prometheus_url right?")
    if envelope.warnings:
        raise MetricsError(f"Prometheus answers in part only: {_brief(envelope.warnings[0])}")
    _check_clock(headers, received)
    return _read(envelope.data)


_ADVICE = {
    400: "the PromQL is wrong",
    404: "prometheus_url leads elsewhere",
    422: "the PromQL cannot be evaluated",
    429: "it is asked too often",
    503: "it is overloaded, or the query takes too long",
}


def _brief(words: str) -> str:
    line = " ".join(words.split())
    return line if len(line) <= WORDS_MAX else f"{line[: WORDS_MAX - 1]}…"


def _check_clock(headers: Mapping[str, str], received: float) -> None:
    try:
        theirs = parsedate_to_datetime(headers["Date"]).timestamp()
    except (KeyError, ValueError, TypeError):
        return  # without a date there is nothing to compare
    if abs(theirs - received) > SKEW_MAX_S:
        raise MetricsError(
            f"the clocks of Prometheus and of this machine differ by {abs(theirs - received):.0f} s: set them right"
        )


def _read(data: _Data) -> list[Sample]:
    try:
        if data.resultType == "vector":
            return [Sample(series.metric, float(series.value[1])) for series in _vector.decode(data.result)]
        if data.resultType == "scalar":
            return [Sample({}, float(_scalar.decode(data.result)[1]))]
    except (msgspec.MsgspecError, ValueError, UnicodeDecodeError, RecursionError):
        raise MetricsError("Prometheus gave series that cannot be read") from None
    raise MetricsError(
        f"the PromQL gives a {_brief(data.resultType)}, but must give an instant vector: leave out the [range]"
    )
