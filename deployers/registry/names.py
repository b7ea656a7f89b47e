"""Names of registries and of images in them, as people write them. Pure.

What is not exactly of the expected form is refused, so that no name can lead a request elsewhere.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from deployers.oci import ImageRefused, check_digest

_HOST = r"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(?::[0-9]{1,5})?"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = rf"{_PART}(?:/{_PART})*"
_PLACE = re.compile(rf"(?P<host>{_HOST})(?:/(?P<prefix>{_PATH}))?")
_REFERENCE = re.compile(
    rf"(?:docker://)?(?P<host>{_HOST})/(?P<repository>{_PATH})(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{{0,127}}))?(?:@(?P<digest>sha256:[0-9a-f]{{64}}))?"
)
_HUB = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}
_LENGTH_MAX = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where versions are pushed: a registry, and what all names there begin with."""

    host: str
    prefix: str = ""

    def repository(self, model: str) -> str:
        """Of a model. Each has its own.

        >>> Place(host="registry.example", prefix="models").repository("flight-late")
        'models/flight-late'
        """
        return f"{self.prefix}/{model}" if self.prefix else model


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """An image in a registry."""

    host: str
    repository: str
    tag: str | None = None
    digest: str | None = None
    """Goes before the tag."""

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.host}/{self.repository}{tag}" + (f"@{self.digest}" if self.digest else "")


def parse_place(text: str) -> Place:
    """Raises ImageRefused.

    >>> parse_place("registry.example:5000/team/models")
    Place(host='registry.example:5000', prefix='team/models')
    """
    match = _PLACE.fullmatch(text)
    if match is None or not _looks_like_host(match["host"]) or len(text) > _LENGTH_MAX - 100:
        raise ImageRefused(
            f"a registry is named HOST, HOST:PORT or HOST:PORT/PREFIX in lower case, without https://, but got {text[:200]!r}"
        )
    return Place(host=match["host"], prefix=match["prefix"] or "")


def parse_reference(text: str) -> Reference | None:
    """The image in a registry that the text names; None if it names none, and may be a folder.

    As with docker the part before the first `/` is a host only if it holds a `.` or `:`, or is `localhost`. Raises ImageRefused if it is
    too long, or names neither tag nor digest: what `latest` means changes behind everybody's back.

    >>> str(parse_reference("registry.example/base/python:3.11"))
    'registry.example/base/python:3.11'
    >>> parse_reference("bases/python:3.11") is parse_reference("./bases.d/python") is None
    True
    """
    match = _REFERENCE.fullmatch(text)
    if match is None or not _looks_like_host(match["host"]):
        return None
    if len(text) > _LENGTH_MAX + 128 + 72:
        raise ImageRefused(f"the image name {text[:80]!r}… has {len(text)} characters; use a shorter one")
    if match["tag"] is None and match["digest"] is None:
        raise ImageRefused(f"the image {text} names neither tag nor digest; add one, such as {text}:3.11")
    digest = check_digest(match["digest"]) if match["digest"] else None
    host = _HUB.get(match["host"], match["host"])
    return Reference(host=host, repository=match["repository"], tag=match["tag"], digest=digest)


def _looks_like_host(host: str) -> bool:
    return host == "localhost" or "." in host or ":" in host


def is_loopback(host: str) -> bool:
    """Whether the registry is on this machine, so that plain HTTP reaches nobody else.

    >>> [is_loopback(h) for h in ("localhost:5000", "127.0.0.1", "[::1]:5000", "registry.example", "127.evil.example")]
    [True, True, True, False, False]
    """
    name = host.rsplit("]", 1)[0].removeprefix("[") if host.startswith("[") else host.split(":")[0]
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
