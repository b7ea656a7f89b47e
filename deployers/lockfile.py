"""Lock files of Python packages, in pip's format: read strictly, and reduced to what one Python on one platform needs. Pure.

A lock may come from a stranger's repository. It can name packages, exact versions and hashes; options, addresses, paths and further files
are refused, so that nothing is fetched but from the index that this machine's pip is set up for, and nothing but what the hash says.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from deployers.oci import ImageRefused

BYTES_MAX = 2 << 20
PACKAGES_MAX = 2000
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_PYTHON = re.compile(r"3\.[0-9]{1,2}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pin:
    """One package of a lock."""

    name: str
    """Canonical."""
    version: str
    hashes: tuple[str, ...]
    """sha256, hexadecimal, sorted: of its wheels and archives for all platforms."""


def read_lock(text: str, python: str, where: str) -> tuple[Pin, ...]:
    """The pins that hold for a Python (`3.11`) on Linux and this machine's processor, sorted by name. Raises ImageRefused with the line.

    >>> read_lock("six==1.16.0 ; python_version >= '3.8' --hash=sha256:" + "a" * 64, "3.11", "lock")[0].version
    '1.16.0'
    """
    if len(text) > BYTES_MAX:
        raise ImageRefused(f"{where} is larger than {BYTES_MAX} bytes; it must be a lock file of Python packages")
    environment = _environment(python, where)
    found: dict[str, Pin] = {}
    for number, line in _logical_lines(text):
        pin = _pin(line, environment, f"{where}, line {number}")
        if pin is None:
            continue
        if found.setdefault(pin.name, pin) != pin:
            raise ImageRefused(f"{where}, line {number}: {pin.name} is pinned twice")
        if len(found) > PACKAGES_MAX:
            raise ImageRefused(f"{where} pins more than {PACKAGES_MAX} packages")
    return tuple(found[name] for name in sorted(found))


def _environment(python: str, where: str) -> Mapping[str, str]:
    if not _PYTHON.fullmatch(python):
        raise ImageRefused(f"{where}: the base image's Python is {python[:40]!r}; it must be like 3.11")
    return {
        "python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux", "os_name": "posix",
        "platform_system": "Linux", "implementation_name": "cpython", "platform_python_implementation": "CPython",
    }  # fmt: skip


def _logical_lines(text: str) -> list[tuple[int, str]]:
    """Lines with continuations joined, without comments and blank ones; each with the number of its first."""
    lines: list[tuple[int, str]] = []
    parts: list[str] = []
    begun = 0
    for number, raw in enumerate(text.splitlines(), start=1):
        line = re.sub(r"(^|\s)#.*$", "", raw).rstrip()
        begun = begun if parts else number
        parts.append(line.removesuffix("\\").strip())
        if not line.endswith("\\"):
            if whole := " ".join(filter(None, parts)):
                lines.append((begun, whole))
            parts = []
    if whole := " ".join(filter(None, parts)):
        lines.append((begun, whole))
    return lines


def _pin(line: str, environment: Mapping[str, str], where: str) -> Pin | None:
    """The pin in a line; None if it is for another environment."""
    hashes = _HASH.findall(line)
    rest = _HASH.sub("", line).strip()
    if rest.startswith("-") or " --" in rest:
        raise ImageRefused(
            f"{where}: {rest[:80]!r}: options have no place here; only packages, each with == and --hash=sha256:"
        )
    try:
        requirement = Requirement(rest)
    except InvalidRequirement as error:
        raise ImageRefused(f"{where}: {rest[:80]!r} is not a package with an exact version") from error
    versions = list(requirement.specifier)
    if requirement.url or len(versions) != 1 or versions[0].operator != "==" or versions[0].version.endswith(".*"):
        raise ImageRefused(f"{where}: {rest[:80]!r} must name one version with ==, and no address")
    if not hashes:
        raise ImageRefused(f"{where}: {rest[:80]!r} has no hash; make the lock with --generate-hashes")
    if requirement.marker is not None and not requirement.marker.evaluate(dict(environment)):
        return None
    return Pin(name=canonicalize_name(requirement.name), version=versions[0].version, hashes=tuple(sorted(set(hashes))))


def merged(below: tuple[Pin, ...], above: tuple[Pin, ...]) -> tuple[Pin, ...]:
    """Both together; where both pin a package, the version above holds."""
    return tuple(pin for _, pin in sorted(({p.name: p for p in below} | {p.name: p for p in above}).items()))


def lock_text(pins: tuple[Pin, ...]) -> str:
    """The pins as pip reads them: no markers, no options but the hashes. Equal pins have equal texts."""
    return "".join(f"{p.name}=={p.version}{''.join(f' --hash=sha256:{h}' for h in p.hashes)}\n" for p in pins)


def lock_digest(pins: tuple[Pin, ...]) -> str:
    """`sha256:…` of a lock's meaning."""
    return f"sha256:{hashlib.sha256(lock_text(pins).encode()).hexdigest()}"
