"""One registry over HTTP: oras's client with the edges that a daemon needs.

`oras.provider.Registry` knows the registry's addresses and upload sessions. What it does on the wire is replaced (`do_request`): it has no
time-outs, follows redirects anywhere with whatever it carries, reads the user's own docker configuration and runs the helpers named
there, retries for minutes by itself, and keeps whole blobs in memory. Here each request is bounded in time, credentials go to the
registry and to the token service that it names over TLS and to nobody else, and an answer becomes a result, `RegistryAway` (later) or
`RegistryDenied` (never).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import SplitResult, urljoin, urlsplit

import oras.auth.utils
import oras.provider
import requests
from requests.exceptions import ConnectionError as ConnectionLost
from requests.exceptions import RequestException
from urllib3.exceptions import HTTPError, ProtocolError

from deployers import oci
from deployers.oci import CHUNK, ImageCorrupt, ImageNotFound, RegistryAway, RegistryDenied
from deployers.registry.credentials import Credentials, read_credentials, scrub
from deployers.registry.names import is_loopback

CONNECT_S, READ_S = 10.0, 60.0
"""Seconds to connect, and between two packets of an answer."""
HOPS_MAX = 3
_ERROR_BYTES_MAX = 64 << 10
_SAID_MAX = 300
_TOKEN_BYTES_MAX = 256 << 10
_MOVED = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """How registries may be reached, from the settings. Plain values, so that a job can be told."""

    credentials: Path | None = None
    """See `credentials.read_credentials`. Used for the registry that versions are pushed to, and those named in a docker configuration."""
    ca: Path | None = None
    """Certificates (PEM) to trust instead of the system's."""
    plain_http: bool = False
    """Whether HTTP without TLS may be spoken with other machines; with this one it always may."""
    host: str = ""
    """The registry that versions are pushed to."""


class RegistryClient(oras.provider.Registry):  # type: ignore[misc]  # oras is untyped
    """Requests to one registry. Not thread-safe. Raises RegistryAway, RegistryDenied; never anything of requests."""

    def __init__(self, host: str, access: Access) -> None:
        loopback = is_loopback(host)
        verify = str(access.ca) if access.ca else True
        if access.ca is not None and not access.ca.is_file():
            raise RegistryDenied(f"registry_ca: {access.ca} does not exist")
        plain = access.plain_http or (loopback and access.ca is None)
        super().__init__(hostname=host, insecure=plain, tls_verify=verify)
        self.host = host
        self.origin = f"{self.prefix}://{host}"
        self._plain = plain
        self._credentials = _credentials(host, access)
        self._tokens: dict[str, str] = {}
        self.session.get_redirect_target = lambda answer: (
            None
        )  # else requests reads all of a redirect's body, however long
        self.session.auth = _as_it_is  # else requests would look into ~/.netrc

    # ------------------------------------------------------------ requests
    def do_request(
        self,
        url: str,
        method: str = "GET",
        data: Any = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        stream: bool = False,
    ) -> requests.Response:
        """One request to the registry itself, authenticated if it asks for that. Redirects are returned, not followed.

        Raises RegistryAway (no answer, 429, 5xx), RegistryDenied (401, 403, certificate)."""
        self._check_origin(url)
        sent = dict(headers or {})
        if known := self._authorization():
            sent["Authorization"] = known
        answer = self._send(method, url, data=data, json=json, headers=sent, stream=stream)
        if answer.status_code == 401 and (fresh := self._answer_challenge(answer)):
            answer.close()
            sent["Authorization"] = fresh
            answer = self._send(method, url, data=data, json=json, headers=sent, stream=stream)
        if answer.status_code in (401, 403):
            raise RegistryDenied(self._refusal(answer, method))
        if answer.status_code == 429 or answer.status_code >= 500:
            raise RegistryAway(f"{self._said(answer, method)}; it is tried again")
        return answer

    def _send(self, method: str, url: str, *, stream: bool, **rest: Any) -> requests.Response:
        """`stream`: whether the caller reads the body; else it is read here, as far as it may go."""
        with self._lost():
            answer: requests.Response = self.session.request(
                method,
                url,
                verify=self._tls_verify,
                timeout=(CONNECT_S, READ_S),
                allow_redirects=False,
                stream=True,
                **rest,
            )
        if not stream:
            answer._content = self.read(answer, oci.JSON_MAX)
        return answer

    @contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            yield
        except (RequestException, HTTPError) as error:  # the latter where an answer is read past requests
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise RegistryDenied(
                    f"the certificate of registry {self.host} is not trusted; name its authority's PEM file in RATCHET_REGISTRY_CA"
                ) from None
            lost = isinstance(error, (ConnectionLost, ProtocolError))
            kind = "is not reachable" if lost else "did not answer in time"
            text = scrub(f"registry {self.host} {kind} ({type(error).__name__}); is it running?", self._secrets())
            raise RegistryAway(text) from None
        except UnicodeError:
            raise RegistryDenied(
                f"registry {self.host}: the credentials hold characters that HTTP cannot carry"
            ) from None

    def _check_origin(self, url: str) -> None:
        """Raises RegistryDenied if a registry's answer leads elsewhere: credentials and models go to no other place."""
        parts = self._split(url)
        if f"{parts.scheme}://{parts.netloc}" != self.origin:
            shown = f"{parts.scheme}://{parts.hostname}"[:200]
            raise RegistryDenied(f"registry {self.host} points to {shown}, and nothing is sent there; ask its operator")

    def _split(self, url: str) -> SplitResult:
        try:
            return urlsplit(url)
        except ValueError:
            raise RegistryDenied(f"registry {self.host} points to what is no address; ask its operator") from None

    def _joined(self, base: str, url: str) -> str:
        self._split(url)
        return urljoin(base, url)

    # ------------------------------------------------------------ who we are
    def _authorization(self) -> str:
        if self._credentials.token:
            return f"Bearer {self._credentials.token}"
        return self._tokens.get("", "")

    def _answer_challenge(self, answer: requests.Response) -> str:
        """The header that a 401 asks for; empty if we have none to give."""
        challenge = answer.headers.get("Www-Authenticate", "")[:4096]
        kind = challenge.split(" ", 1)[0].lower()
        if kind == "basic" and self._credentials.basic:
            self._tokens[""] = f"Basic {self._credentials.basic}"
            return self._tokens[""]
        if kind != "bearer" or self._credentials.token:
            return ""
        asked = oras.auth.utils.parse_auth_header(challenge)
        token = self._fetch_token(str(asked.realm or ""), asked.service, asked.scope)
        self._tokens[""] = f"Bearer {token}" if token else ""
        return self._tokens[""]

    def _fetch_token(self, realm: str, service: str | None, scope: str | None) -> str:
        """Ask the token service that the registry named. Raises RegistryDenied if it is not reached by TLS, or says no."""
        parts = self._split(realm)
        near = parts.hostname is not None and is_loopback(parts.netloc) and is_loopback(self.host)
        if parts.scheme != "https" and not (
            parts.scheme == "http" and (near or f"http://{parts.netloc}" == self.origin)
        ):
            raise RegistryDenied(
                f"registry {self.host} names a token service without TLS; credentials are not sent there"
            )
        headers = {"Authorization": f"Basic {self._credentials.basic}"} if self._credentials.basic else {}
        asked = {k: v for k, v in {"service": service, "scope": scope}.items() if v}
        answer = self._send("GET", realm, params=asked, headers=headers, stream=True)
        if answer.status_code == 429 or answer.status_code >= 500:
            raise RegistryAway(
                f"the token service of registry {self.host} answered {answer.status_code}; it is tried again"
            )
        content = self.read(answer, _TOKEN_BYTES_MAX)
        try:
            found = json.loads(content) if answer.status_code == 200 else {}
            token = found.get("token") or found.get("access_token")
        except (ValueError, AttributeError, RecursionError):
            token = None
        if not isinstance(token, str) or not token:
            raise RegistryDenied(
                f"the token service of registry {self.host} gave no token; check RATCHET_REGISTRY_CREDENTIALS"
            )
        return token

    def _secrets(self) -> Iterator[str]:
        for value in self._tokens.values():
            yield value.partition(" ")[2]
        yield from self._credentials.secrets()

    # ------------------------------------------------------------ answers
    def read(self, answer: requests.Response, bytes_max: int) -> bytes:
        """The body of a streamed answer. Raises ImageCorrupt if it is longer, RegistryAway if the connection is lost."""
        content = bytearray()
        with answer, self._lost():
            for chunk in answer.iter_content(CHUNK):
                content += chunk
                if len(content) > bytes_max:
                    raise ImageCorrupt(f"registry {self.host} sent more than {bytes_max} bytes where no more may be")
        return bytes(content)

    def _said(self, answer: requests.Response, method: str) -> str:
        """What the registry said, in one line without our secrets."""
        try:
            errors = json.loads(
                answer.raw.read(_ERROR_BYTES_MAX, decode_content=True)
                if answer.raw and not _is_read(answer)
                else answer.content
            )
            told = "; ".join(
                f"{e.get('code', '')} {e.get('message', '')} {_detail(e)}".strip() for e in errors["errors"][:3]
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError, RequestException, HTTPError):
            told = answer.reason or ""
        told = re.sub(r"[\x00-\x1f\x7f]+", " ", scrub(told, self._secrets()))[:_SAID_MAX]
        return f"registry {self.host} answered {answer.status_code} to {method}: {told}".rstrip(": ")

    def _refusal(self, answer: requests.Response, method: str) -> str:
        said = self._said(answer, method)
        if answer.status_code == 401 and not (self._credentials.basic or self._credentials.token):
            return f"{said}; it wants to know who asks: name a file in RATCHET_REGISTRY_CREDENTIALS"
        return f"{said}; check the credentials' rights and the quota of its project"

    def expect(self, answer: requests.Response, method: str, *wanted: int) -> requests.Response:
        """The answer, if its status is wanted. Raises ImageNotFound (404), RegistryDenied (all others)."""
        if answer.status_code in wanted:
            return answer
        said = self._said(answer, method)
        if answer.status_code == 404:
            raise ImageNotFound(said)
        raise RegistryDenied(f"{said}; is this a registry, and may we write there?")

    def location(self, answer: requests.Response) -> str:
        """Where an upload goes on. Raises RegistryDenied if that is elsewhere, or missing."""
        found = answer.headers.get("Location", "")
        if not found:
            raise RegistryDenied(f"registry {self.host} opened an upload without saying where; is it a registry?")
        url = self._joined(self.origin, found)
        self._check_origin(url)
        return url

    def url(self, repository: str, kind: str, name: str) -> str:
        """`kind`: `manifests` or `blobs`."""
        container = self.get_container(f"{self.host}/{repository}")
        path = container.manifest_url(name) if kind == "manifests" else container.get_blob_url(name)
        return f"{self.prefix}://{path}"

    def uploads(self, repository: str) -> str:
        return f"{self.prefix}://{self.get_container(f'{self.host}/{repository}').upload_blob_url()}"

    # ------------------------------------------------------------ reading
    def get_manifest_bytes(self, repository: str, name: str, accept: str, bytes_max: int) -> tuple[bytes, str] | None:
        """Content and media type of a manifest, by tag or digest; None if it is not there. The content is not judged here."""
        answer = self.do_request(self.url(repository, "manifests", name), headers={"Accept": accept}, stream=True)
        if answer.status_code == 404:
            answer.close()
            return None
        self.expect(answer, "GET", 200)
        return self.read(answer, bytes_max), answer.headers.get("Content-Type", "").partition(";")[0].strip()

    def has_blob(self, repository: str, digest: str) -> bool:
        """HEAD. A registry that keeps blobs elsewhere says so by a redirect."""
        answer = self.do_request(self.url(repository, "blobs", digest), "HEAD")
        return answer.status_code == 200 or answer.status_code in _MOVED

    def download(self, repository: str, digest: str, sink: IO[bytes]) -> None:
        """Stream a blob. Followed to where the registry keeps it, at most HOPS_MAX times, over TLS and without credentials.

        The content is checked by whoever wrote the sink. Raises ImageNotFound, RegistryAway, RegistryDenied."""
        url = self.url(repository, "blobs", digest)
        answer = self.do_request(url, stream=True)
        for _ in range(HOPS_MAX):
            if answer.status_code not in _MOVED:
                break
            url = self._joined(url, answer.headers.get("Location", ""))
            answer.close()
            parts = self._split(url)
            if parts.scheme != "https" and f"{parts.scheme}://{parts.netloc}" != self.origin:
                raise RegistryDenied(
                    f"registry {self.host} keeps blob {digest} at a place without TLS; it is not fetched"
                )
            answer = self._send("GET", url, stream=True)
        if answer.status_code == 429 or answer.status_code >= 500:
            raise RegistryAway(f"{self._said(answer, 'GET')}; it is tried again")
        self.expect(answer, "GET", 200)
        with answer, self._lost():
            for chunk in answer.raw.stream(CHUNK, decode_content=False):
                sink.write(chunk)


def _credentials(host: str, access: Access) -> Credentials:
    """For another registry than ours only what a docker configuration says of it, else none: policies name the registries of base images,
    and a password that names no host must not go to whichever they name. Raises RegistryDenied for ours."""
    if host == access.host:
        return read_credentials(access.credentials, host)
    try:
        named = access.credentials is not None and access.credentials.read_text(encoding="utf-8").lstrip().startswith(
            "{"
        )
        return read_credentials(access.credentials, host) if named else Credentials()
    except (OSError, UnicodeError, RegistryDenied):
        return Credentials()


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _is_read(answer: requests.Response) -> bool:
    return bool(getattr(answer, "_content_consumed", True))


def _detail(error: Mapping[str, Any]) -> str:
    detail = error.get("detail")
    return str(detail) if isinstance(detail, str) else ""
