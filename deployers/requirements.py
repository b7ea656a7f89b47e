"""The layer of Python packages: installed by pip from a lock, once for each lock, and the same bytes each time.

Cached in `<home>/cache/requirements/<key>/` as `layer.tar` and `manifest.json`, in the form that the step cache prunes; the registry has
the layer as a blob. Only wheels are installed: no code of a package runs here. pip is a child of the packaging job, whose limits of time
and memory hold for it too.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import IO, Any, cast

from deployers import oci
from deployers.documents import DEPS, REQUIREMENTS
from deployers.layers import write_layer
from deployers.lockfile import Pin, lock_digest, lock_text, read_lock
from deployers.oci import Descriptor, ImageRefused, RegistryAway
from pipelines.jobs.files import read_json, write_json_atomic

FORMAT = 1
RUNTIME_LOCK = "runtime.lock"
"""In this package: what the serving code needs, a part of the project's own lock (`make lock`)."""
PIP_TIMEOUT_S = 1500.0
BYTES_MAX = 16 << 30
_GLIBC = ("2_34", "2_28", "2_27", "2_26", "2_24", "2_17", "2_12", "2_5")
"""Of the C library that a base is taken to have: Debian 12, RHEL 9 or newer. Wheels for older ones run there too."""
_ALIASES = {"2_17": "manylinux2014", "2_12": "manylinux2010", "2_5": "manylinux1"}
_SAID_MAX = 600
_DROPPED = (
    "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_PYTHON", "PIP_REQUIREMENT", "PIP_CONSTRAINT", "PIP_EDITABLE", "PIP_DRY_RUN",
    "PIP_NO_BINARY", "PIP_ONLY_BINARY", "PIP_PRE", "PIP_REQUIRE_HASHES", "PIP_UPGRADE", "PIP_LOG", "PIP_REPORT", "PYTHONPATH", "PYTHONHOME",
)  # fmt: skip
"""What would send packages elsewhere than the folder, or have others installed than the lock says."""


def runtime_pins(python: str) -> tuple[Pin, ...]:
    """What the serving code of this release needs. Raises ImageRefused for a Python that it does not run on."""
    text = resources.files("deployers").joinpath(RUNTIME_LOCK).read_text(encoding="utf-8")
    return read_lock(text, python, RUNTIME_LOCK)


def owners_pins(folder: Path, path: str, python: str) -> tuple[Pin, ...]:
    """Of the lock file that a policy names, which lies in the policy's folder. Raises ImageRefused."""
    root = folder.resolve()
    file = (root / path).resolve()
    if not file.is_relative_to(root) or not file.is_file():
        raise ImageRefused(f"deploy.requirements: {path!r} must be a file in the policy's folder {folder}")
    try:
        with file.open("rb") as source:
            text = source.read(oci.JSON_MAX).decode()
    except (OSError, UnicodeError) as error:
        raise ImageRefused(f"deploy.requirements: {file} cannot be read as text: {error}") from error
    return read_lock(text, python, f"deploy.requirements: {path}")


def python_of(config: Mapping[str, Any] | None) -> str:
    """`3.11`, the Python of a base image, as its config says (`PYTHON_VERSION`, which official images set, or a label of ours).

    Without a base, this process's own. Raises ImageRefused if the config does not tell."""
    if config is None:
        return f"{sys.version_info.major}.{sys.version_info.minor}"
    inside = config.get("config") or {}
    known = dict(word.partition("=")[::2] for word in inside.get("Env") or ())
    told = str((inside.get("Labels") or {}).get("dev.ratchet.python") or known.get("PYTHON_VERSION") or "")
    parts = told.split(".")
    if len(parts) < 2 or parts[0] != "3" or not parts[1].isdecimal():
        raise ImageRefused(
            "the base image does not say which Python it has: set the variable PYTHON_VERSION in it (official python images do), or the "
            "label dev.ratchet.python, such as 3.11; if it brings all that serving needs, the label dev.ratchet.requirements says so"
        )
    return f"{parts[0]}.{parts[1]}"


def has_runtime(config: Mapping[str, Any] | None) -> bool:
    """Whether a base brings what the serving code needs, as its label says."""
    labels = ((config or {}).get("config") or {}).get("Labels") or {}
    return bool(labels.get(REQUIREMENTS))


def requirements_layer(home: Path, pins: Sequence[Pin], python: str) -> tuple[Path, Descriptor]:
    """The layer of some packages for a Python: its file and what it is. Built if the cache does not have it whole.

    Raises ImageRefused (no such wheel, hash mismatch), RegistryAway (the index cannot be reached), ImageStoreError (disk)."""
    key = hashlib.sha256(f"{FORMAT} {lock_digest(tuple(pins))} {python} {platform.machine()}".encode()).hexdigest()
    folder = home / "cache" / "requirements" / key
    found = _cached(folder)
    if found is None:
        with oci.disk_errors(f"building the requirements layer in {folder.parent}"):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with oci.folder_lock(folder.parent / f".{key}.lock"):
                found = _cached(folder) or _build(folder, pins, python)
    return folder / "layer.tar", found


def _cached(folder: Path) -> Descriptor | None:
    """What the cache has, if the file is what it was; and marks it as used."""
    try:
        manifest = read_json(folder / "manifest.json")
        layer = None if manifest is None else Descriptor.from_json(manifest["result"], str(folder))
        if layer is None or (folder / "layer.tar").stat().st_size != layer.size:
            return None
        with (folder / "layer.tar").open("rb") as file:
            whole = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == layer.digest
    except (OSError, ValueError, KeyError, TypeError, oci.ImageCorrupt):
        return None
    with suppress(OSError):
        os.utime(folder / "manifest.json")
    return layer if whole else None


def _build(folder: Path, pins: Sequence[Pin], python: str) -> Descriptor:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as name:
        new = Path(name)
        site, entry = new / "site", new / "entry"
        site.mkdir()
        entry.mkdir()
        (new / "lock.txt").write_text(lock_text(tuple(pins)))
        if pins:
            _install(new / "lock.txt", site, python)
        _normalise(site)
        with (entry / "layer.tar").open("wb") as file:
            sink = oci.Hashing(file, size_max=BYTES_MAX)
            write_layer(site, DEPS, cast(IO[bytes], sink))
            file.flush()
            os.fsync(file.fileno())
        layer = Descriptor(media_type=oci.LAYER, digest=f"sha256:{sink.sha256.hexdigest()}", size=sink.size)
        files = {"layer.tar": layer.digest.removeprefix("sha256:")}
        lineage = {"packages": [f"{p.name}=={p.version}" for p in pins], "python": python}
        content = {"format": FORMAT, "files": files, "result": layer.as_json(), "lineage": lineage}
        write_json_atomic(entry / "manifest.json", content)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(entry, folder)
    return layer


def pip_command(lock: Path, site: Path, python: str, machine: str) -> list[str]:
    """Pip, told to install exactly a lock's wheels for another Python. Pure."""
    platforms = [f"manylinux_{v}_{machine}" for v in _GLIBC] + [f"{a}_{machine}" for a in _ALIASES.values()]
    return [
        sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps", "--require-hashes",
        "--only-binary", ":all:", "--no-compile", "--progress-bar", "off", "--target", str(site), "--python-version", python,
        "--implementation", "cp", "--abi", f"cp{python.replace('.', '')}", "--abi", "abi3", "--abi", "none",
        *(word for p in [*platforms, f"linux_{machine}"] for word in ("--platform", p)), "--requirement", str(lock),
    ]  # fmt: skip


def _install(lock: Path, site: Path, python: str) -> None:
    """Raises ImageRefused, RegistryAway with pip's last words."""
    env = {k: v for k, v in os.environ.items() if k not in _DROPPED} | {
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(lock.parent),
    }
    try:
        done = subprocess.run(
            pip_command(lock, site, python, platform.machine()), env=env, capture_output=True, timeout=PIP_TIMEOUT_S,
            stdin=subprocess.DEVNULL, cwd=lock.parent, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RegistryAway(
            f"pip did not install the requirements within {PIP_TIMEOUT_S:.0f} s; it is tried again"
        ) from None
    if done.returncode:
        said = " ".join(without_addresses(done.stderr.decode(errors="replace")).split())[-_SAID_MAX:]
        if any(
            word in said
            for word in ("ConnectionError", "ConnectTimeout", "ReadTimeout", "NewConnectionError", "Temporary failure")
        ):
            raise RegistryAway(f"pip could not reach its package index: {said}")
        raise ImageRefused(f"pip could not install the requirements for Python {python}: {said}")


def without_addresses(text: str) -> str:
    """Pip's words without the addresses in them, which may hold passwords.

    >>> without_addresses("Looking in indexes: https://user:word@index.example/simple")
    'Looking in indexes: (address)'
    """
    return " ".join("(address)" if "://" in word else word for word in text.split(" "))


def _normalise(site: Path) -> None:
    """Take out what depends on the machine: start scripts (they hold the path of this Python) and their lines in RECORD."""
    shutil.rmtree(site / "bin", ignore_errors=True)
    for record in site.glob("*.dist-info/RECORD"):
        lines = record.read_text(encoding="utf-8").splitlines(keepends=True)
        record.write_text("".join(sorted(line for line in lines if not line.startswith("../"))), encoding="utf-8")
    for name in ("direct_url.json", "REQUESTED"):
        for path in site.glob(f"*.dist-info/{name}"):
            path.unlink()
