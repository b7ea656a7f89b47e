"""A base image made of this machine: its Python, the shared libraries that needs, and what serving imports. No registry, no debootstrap.

One uncompressed layer in an OCI layout, kept in the user's cache under a name that says what went in: made once a set of packages. The same
files give the same bytes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

RECIPE = 5
"""Of this module: to be raised when it makes another image of the same packages."""
SERVING = (
    "litestar",
    "uvicorn",
    "httptools",
    "uvloop",
    "msgspec",
    "prometheus-client",
    "scikit-learn",
    "skops",
    "pandas",
    "pyarrow",
)
"""Distributions that the runtime imports; what they require comes too."""
_LIB = "usr/local/lib/python3.11".replace("3.11", f"{sys.version_info.major}.{sys.version_info.minor}")
_LEFT_OUT = {
    "test",
    "tests",
    "include",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "ensurepip",
    "site-packages",
    "tkinter",
    "_pytest",
}
_BULKY = re.compile(r"libarrow_(flight|s3|gcs).*|.*\.(pyx|pxd|a|h|hpp|lib)|config-3.*")
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def base_image(*, serving: bool) -> Path:
    """An OCI layout with one image, `base`; without `serving` it has the standard library alone."""
    names = sorted(_closure(SERVING)) if serving else []
    versions = [f"{name}=={importlib.metadata.version(name)}" for name in names]
    key = hashlib.sha256(json.dumps([RECIPE, sys.version, versions]).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ratchet-tests" / f"base-{key}"
    if not (folder / "index.json").is_file():
        _make(folder, names)
    return folder


def _closure(roots: Iterable[str]) -> set[str]:
    """The distributions, and those that they require without extras, as far as they are installed."""
    found: set[str] = set()
    left = list(roots)
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name in found:
            continue
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        left.extend(re.split(r"[\s;<>=!~\[(]", line, maxsplit=1)[0] for line in requires if "extra ==" not in line)
    return found


# ---------------------------------------------------------------- files
def _files(names: Iterable[str]) -> dict[str, Path]:
    """Path in the image → file here."""
    binary = Path(os.path.realpath(sys.executable))
    files = {"usr/local/bin/python": binary}
    stdlib = Path(sysconfig.get_path("stdlib"))
    files |= {f"{_LIB}/{path.relative_to(stdlib)}": path for path in _walk(stdlib)}
    for name in names:
        for file in importlib.metadata.files(name) or ():
            path = Path(str(file.locate()))
            if ".." not in file.parts and path.is_file() and not _skipped(Path(str(file))):
                files[f"{_LIB}/site-packages/{file}"] = path
    elves = [p for p in files.values() if p == binary or ".so" in p.name]
    files |= {str(path).lstrip("/"): path for path in _libraries(elves)}
    return files


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not _skipped(path.relative_to(folder)):
            yield path


def _skipped(path: Path) -> bool:
    return bool(_LEFT_OUT.intersection(path.parts)) or any(_BULKY.fullmatch(part) for part in path.parts)


def _libraries(elves: list[Path]) -> set[Path]:
    """What they are linked with, outside of site-packages, the loader included."""
    said = subprocess.run(["ldd", *map(str, elves)], capture_output=True, text=True, check=False).stdout
    found = {Path(m) for m in re.findall(r"(/\S+) \(0x", said)}
    return {path for path in found if "site-packages" not in path.parts and path.exists()}


# ---------------------------------------------------------------- layout
def _make(folder: Path, names: list[str]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    try:
        blobs = making / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        with (making / "layer").open("wb") as file:
            _write_layer(_files(names), file)
        with (making / "layer").open("rb") as file:
            layer = hashlib.file_digest(file, "sha256").hexdigest()
        (making / "layer").rename(blobs / layer)
        machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
        config = {
            "architecture": machine, "os": "linux", "created": "1970-01-01T00:00:00Z",
            "config": {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"], "Labels": _labels(names)},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer}"]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "the machine that runs the tests"}],
        }  # fmt: skip
        manifest = {
            "schemaVersion": 2, "mediaType": _MANIFEST, "config": _write(blobs, _CONFIG, config),
            "layers": [{"mediaType": _LAYER, "digest": f"sha256:{layer}", "size": (blobs / layer).stat().st_size}],
        }  # fmt: skip
        entry = _write(blobs, _MANIFEST, manifest) | {"annotations": {"org.opencontainers.image.ref.name": "base"}}
        (making / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        (making / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        try:
            making.rename(folder)
        except OSError:  # somebody else was faster
            assert (folder / "index.json").is_file()
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _labels(names: list[str]) -> dict[str, str]:
    """By which a build knows that it need not add what serving needs."""
    labels = {"dev.ratchet.python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    return labels | ({"dev.ratchet.requirements": "this machine's"} if names else {})


def _write(blobs: Path, kind: str, value: object) -> dict[str, object]:
    content = json.dumps(value, sort_keys=True).encode()
    digest = hashlib.sha256(content).hexdigest()
    (blobs / digest).write_bytes(content)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}


def _write_layer(files: dict[str, Path], sink: object) -> None:
    folders = {str(parent) for name in files for parent in Path(name).parents if parent.name} | {"tmp", "etc"}
    with tarfile.TarFile(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[arg-type]
        for name in sorted(folders):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(info)
        for name, path in sorted(files.items()):
            info = tarfile.TarInfo(name)
            stat = path.stat()
            info.size, info.mode = stat.st_size, 0o755 if os.access(path, os.X_OK) else 0o644
            info.mtime = int(stat.st_mtime)  # by which compiled modules are known to be of their source
            with path.open("rb") as file:
                tar.addfile(info, file)
