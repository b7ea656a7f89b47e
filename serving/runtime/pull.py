"""A model that is not in the image: fetched when the replica starts, checked against its digest, and kept for the next.

`<cache>/<layer hex>/model/` appears by one rename, whole and checked; of several replicas that start at once one fetches, under
`<cache>/.<layer hex>.lock`, and the others wait. What came over the network before a replica was killed stays, and the next one goes on
there. Only the standard library: in a container there may be no more.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import ssl
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import IO, Any

logger = logging.getLogger("serving.pull")

CHUNK = 1 << 20
TRIES = 4
TIMEOUT_S = 60.0
"""Between two packets."""
_TOP = "model"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_REGISTRY = re.compile(r"(https?://[A-Za-z0-9.:\[\]-]+)/([a-z0-9._/-]+)")
_MEMBERS_MAX = 100_000
_CREDENTIALS_MAX = 1 << 20
_ANSWER_MAX = 1 << 18
_MOVED = frozenset({301, 302, 303, 307, 308})


class PullError(Exception):
    """The model could not be had; the message says from where, and why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelLayer:
    """What to fetch, and from where."""

    digest: str
    """`sha256:…` of an uncompressed tar, all below `model/`."""
    size: int
    """Bytes of it."""
    sources: tuple[str, ...]
    """Tried in turn: the folder of an OCI layout, or `http(s)://HOST/REPOSITORY`."""
    cache: Path
    credentials: Path | None = None
    """Of the registries: docker's config.json, or one line, `user:password` or a token."""
    ca: Path | None = None


def pull(layer: ModelLayer) -> Path:
    """The model's folder. Raises PullError, OSError (disk)."""
    match = _DIGEST.fullmatch(layer.digest)
    if match is None:
        raise PullError(f"--model-layer: a digest is sha256: and 64 hexadecimal digits, but got {layer.digest!r}")
    name = match[1]
    folder = layer.cache / name
    if folder.is_dir():
        return folder / _TOP
    layer.cache.mkdir(parents=True, exist_ok=True)
    with _locked(layer.cache / f".{name}.lock"):
        if not folder.is_dir():
            began = time.monotonic()
            _fill(layer, name, folder)
            logger.info("model.pulled %s, %d bytes in %.1f s", layer.digest, layer.size, time.monotonic() - began)
    return folder / _TOP


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _fill(layer: ModelLayer, name: str, folder: Path) -> None:
    """Try the sources in turn. Raises PullError with what each said."""
    if not layer.sources:
        raise PullError("no source to pull the model from; name one with --model-from or in RATCHET_MODEL_FROM")
    partial, temporary, said = layer.cache / f".pulling-{name}", layer.cache / f".filling-{name}", []
    for source in layer.sources:
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            path = _in_layout(source, name) if not source.startswith(("http://", "https://")) else partial
            if path is partial:
                _download(layer, source, partial)
            with path.open("rb") as file:
                _extract(_Hashing(file), layer, temporary)
            os.rename(temporary, folder)
            partial.unlink(missing_ok=True)
            return
        except PullError as error:
            said.append(f"{source}: {error}")
            if partial.exists() and partial.stat().st_size >= layer.size:
                partial.unlink()  # all of it came, and it was not the model
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    raise PullError(f"the model {layer.digest} could not be had; {'; '.join(said)}")


def _in_layout(source: str, name: str) -> Path:
    path = Path(source) / "blobs" / "sha256" / name
    if not path.is_file():
        raise PullError("it is not there")
    return path


# ---------------------------------------------------------------- extracting
class _Hashing:
    """Reads a file and knows the digest of what was read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        chunk = self.file.read(size)
        self.sha256.update(chunk)
        self.size += len(chunk)
        return chunk


def _extract(source: _Hashing, layer: ModelLayer, folder: Path) -> None:
    """Plain files and folders below `model/` only, into a new folder. Raises PullError; then what is there is worth nothing."""
    folder.mkdir()
    try:
        with tarfile.open(fileobj=source, mode="r|", bufsize=CHUNK) as tar:  # type: ignore[call-overload]
            for count, member in enumerate(tar):
                target = folder / _checked(member, count, layer)
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(member)
                assert content is not None, "a plain file has content"
                with os.fdopen(
                    os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o444), "wb"
                ) as file:
                    shutil.copyfileobj(content, file, CHUNK)
                    file.flush()
                    os.fsync(file.fileno())
    except (tarfile.TarError, FileExistsError, EOFError) as error:
        raise PullError(f"it is not the layer of a model: {error}") from error
    while source.read(CHUNK):
        pass
    if f"sha256:{source.sha256.hexdigest()}" != layer.digest:
        raise PullError(f"it has the digest sha256:{source.sha256.hexdigest()}")
    (folder / _TOP).mkdir(exist_ok=True)


def _checked(member: tarfile.TarInfo, count: int, layer: ModelLayer) -> PurePosixPath:
    parts = member.name.split("/")
    plain = (member.isreg() and not member.issparse()) or member.isdir()
    if count >= _MEMBERS_MAX or member.size > layer.size or not plain:
        raise PullError(f"{member.name[:100]!r} is no plain file, or too much")
    if parts[0] != _TOP or not all(parts) or {".", ".."} & set(parts) or "\0" in member.name:
        raise PullError(f"{member.name[:100]!r} leads out of {_TOP}/")
    return PurePosixPath(*parts)


# ---------------------------------------------------------------- downloading
def _download(layer: ModelLayer, source: str, partial: Path) -> None:
    """Bring the rest of a layer into the file `partial`. Raises PullError."""
    match = _REGISTRY.fullmatch(source)
    if match is None:
        raise PullError("a registry is named as https://HOST/REPOSITORY")
    registry = _Registry(match[1], match[2], layer)
    for attempt in range(TRIES):
        have = partial.stat().st_size if partial.exists() else 0
        if have > layer.size:
            partial.unlink()
            have = 0
        if have == layer.size and have > 0:
            break
        try:
            with registry.open(have) as answer, partial.open("ab") as file:
                if answer.status != 206 and have:
                    file.truncate(0)
                _copy(answer, file, layer.size)
        except (urllib.error.URLError, HTTPException, OSError) as error:
            if attempt == TRIES - 1 or (
                isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429
            ):
                raise PullError(_said(error)) from None
            time.sleep(0.5 * 2**attempt)
        except ValueError:  # it quotes the header that it refuses
            raise PullError("its answer, or the credentials, hold what no request can carry") from None


def _copy(answer: HTTPResponse, file: IO[bytes], size_max: int) -> None:
    while chunk := answer.read(CHUNK):
        file.write(chunk)
        if file.tell() > size_max:
            raise PullError(f"it is larger than the {size_max} bytes that its image says")


def _said(error: Exception) -> str:
    """Without addresses and headers, which may hold secrets."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the registry answered {error.code}"
    reason = getattr(error, "reason", error)
    return f"the registry cannot be reached ({type(reason).__name__})"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class _Registry:
    """Reads one blob of a repository."""

    def __init__(self, origin: str, repository: str, layer: ModelLayer) -> None:
        self.origin = origin
        self.url = f"{origin}/v2/{repository}/blobs/{layer.digest}"
        self.host = urllib.parse.urlsplit(origin).netloc
        self.basic, self.bearer = _credentials(layer.credentials, self.host)
        self.asked_basic = False
        context = ssl.create_default_context(cafile=str(layer.ca) if layer.ca else None)
        self.opener = urllib.request.build_opener(_NoRedirect, urllib.request.HTTPSHandler(context=context))

    def open(self, offset: int) -> HTTPResponse:
        """The blob from a byte on, if the registry can do that. Raises urllib's errors, PullError."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        for _ in range(2):
            try:
                return self._get(self.url, headers | self._authorization())
            except urllib.error.HTTPError as error:
                if error.code in _MOVED:
                    return self._follow(error.headers.get("Location", ""), headers)
                if error.code != 401 or not self._learn(error.headers.get("Www-Authenticate", "")):
                    raise
        raise PullError("the registry does not let us in")

    def _get(self, url: str, headers: dict[str, str]) -> HTTPResponse:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - callers see to the scheme
        answer: HTTPResponse = self.opener.open(request, timeout=TIMEOUT_S)
        return answer

    def _follow(self, location: str, headers: dict[str, str]) -> HTTPResponse:
        """To where the registry keeps its blobs: over TLS or on the same server, and without our credentials."""
        url = urllib.parse.urljoin(self.url, location)
        parts = urllib.parse.urlsplit(url)
        if parts.scheme != "https" and f"{parts.scheme}://{parts.netloc}" != self.origin:
            raise PullError("the registry points to a place without TLS")
        return self._get(url, headers)

    def _authorization(self) -> dict[str, str]:
        if self.asked_basic:
            return {"Authorization": f"Basic {self.basic}"}
        return {"Authorization": f"Bearer {self.bearer}"} if self.bearer else {}

    def _learn(self, challenge: str) -> bool:
        """What the registry asks for, if we have it."""
        kind, _, rest = challenge[:4096].partition(" ")
        if kind.lower() == "basic" and self.basic:
            repeated, self.asked_basic = self.asked_basic, True
            return not repeated
        if kind.lower() != "bearer" or self.bearer:
            return False
        asked = dict(re.findall(r'([a-z]+)="([^"]*)"', rest))
        realm = asked.pop("realm", "")
        parts = urllib.parse.urlsplit(realm)
        if parts.scheme != "https" and f"{parts.scheme}://{parts.netloc}" != self.origin:
            raise PullError("the registry names a token service without TLS")
        query = urllib.parse.urlencode({k: v for k, v in asked.items() if k in ("service", "scope")})
        headers = {"Authorization": f"Basic {self.basic}"} if self.basic else {}
        with self._get(f"{realm}?{query}", headers) as answer:
            try:
                found = json.loads(answer.read(_ANSWER_MAX))
                self.bearer = str(found.get("token") or found.get("access_token") or "")
            except (ValueError, AttributeError, RecursionError):
                self.bearer = ""
        return bool(self.bearer)


def _credentials(path: Path | None, host: str) -> tuple[str, str]:
    """Base64 of user and password, and bearer token, for a host; empty where there is none. Raises PullError, without the content."""
    if path is None:
        return "", ""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_CREDENTIALS_MAX).strip()
        if not text.startswith("{"):
            return (base64.b64encode(text.encode()).decode(), "") if ":" in text else ("", text)
        entries = json.loads(text).get("auths", {})
        bare = {
            key.rstrip("/").removesuffix("/v1").removesuffix("/v2").split("://")[-1]: entry
            for key, entry in entries.items()
        }
        entry = bare.get(host, {})
        if "username" in entry:
            return base64.b64encode(f"{entry['username']}:{entry['password']}".encode()).decode(), ""
        return str(entry.get("auth") or ""), str(entry.get("registrytoken") or "")
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        raise PullError(f"the credentials in {path} cannot be read") from None


def sources_from(given: Sequence[str] | None, variable: str) -> tuple[str, ...]:
    """Those of the command line, else those of the variable, which spaces separate."""
    return tuple(given) if given else tuple(variable.split())
