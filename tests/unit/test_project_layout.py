"""The shape of the project: names that nobody else owns, a wheel with everything in it, a daemon without ML, files of a readable size."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS: list[str] = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
LINES_MAX = 600

HEAVY = frozenset(
    {
        "evidently", "joblib", "keras", "numpy", "pandas", "pyarrow", "scipy", "serving", "skops", "sklearn", "statsmodels",
        "tensorflow",
    }
)  # fmt: skip
"""What the daemon must never import, wherever the import stands: libraries of its jobs, and the code of the replicas."""
DAEMON_ROOTS = ("controller", "policies", "config", "deployers", "pipelines.jobs")
JOB_PROCESSES = frozenset({"pipelines.jobs.host", "pipelines.jobs.worker"})
"""Of the folders above, what runs in processes of its own, which are there to import the heavy things."""


def modules(folder: str) -> Iterator[tuple[str, Path]]:
    """Dotted name and file of every module in a folder of the project."""
    for path in sorted((ROOT / folder.replace(".", "/")).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def is_migration(name: str) -> bool:
    """Migrations are read by Alembic in a context of its own and cannot be imported."""
    return name.startswith("controller.store.migrations.")


def test_nobody_else_owns_our_package_names() -> None:
    """No other installed distribution has a top-level package of ours, so that an import means what it says."""
    owners = packages_distributions()
    assert {room: set(owners.get(room, ())) - {"ratchetd"} for room in ROOMS} == {room: set() for room in ROOMS}


def test_every_room_stands_in_the_packaging_and_the_import_rules() -> None:
    """Each top-level package is in the wheel, the import contracts and the type check, or is one of those not shipped."""
    packages = {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert packages - set(ROOMS) == {"bench"}
    assert set(PYPROJECT["tool"]["importlinter"]["root_packages"]) == set(ROOMS)
    assert set(PYPROJECT["tool"]["mypy"]["packages"]) == set(ROOMS)


@pytest.mark.slow
def test_wheel_holds_every_file_of_every_room(tmp_path: Path) -> None:
    """The wheel has each tracked file of the rooms, migrations, templates and other data included, and nothing else of ours."""
    tracked = subprocess.run(["git", "ls-files", "-z", *ROOMS], cwd=ROOT, capture_output=True, check=True, timeout=60)
    wanted = {name for name in tracked.stdout.decode().split("\0") if name and (ROOT / name).is_file()}
    builder = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    command = [sys.executable, "-c", builder, str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    with zipfile.ZipFile(tmp_path / built.stdout.split()[-1]) as wheel:
        found = {n for n in wheel.namelist() if ".dist-info/" not in n}
    assert wanted <= found
    assert {name.split("/")[0] for name in found} == set(ROOMS)
    assert any("migrations/versions/" in name for name in found)


@pytest.mark.slow
def test_the_daemon_imports_no_ml_library() -> None:
    """With every module that the daemon may reach imported, no library of training, judging or serving has come along."""
    names = [n for root in DAEMON_ROOTS for n, _ in modules(root) if n not in JOB_PROCESSES and not is_migration(n)]
    script = (
        "import importlib, json, sys\n"
        "before = {}\n"
        "for name in json.loads(sys.stdin.read()):\n"
        "    importlib.import_module(name)\n"
        "    for loaded in list(sys.modules):\n"
        "        before.setdefault(loaded.split('.')[0], name)\n"
        "print(json.dumps(before))\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, input=json.dumps(names), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    first_imported_by = json.loads(done.stdout)
    assert {library: first_imported_by[library] for library in HEAVY & set(first_imported_by)} == {}


@pytest.mark.parametrize("folder", [*ROOMS, "bench", "tests", "scripts"])
def test_files_are_of_a_readable_size_and_say_why_they_exist(folder: str) -> None:
    """No file is over 600 lines, and each module begins with a docstring; an empty __init__.py says enough by being there."""
    files = [path for _, path in modules(folder)]
    lines = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in files}
    assert {name: count for name, count in lines.items() if count > LINES_MAX} == {}
    silent = [
        str(p.relative_to(ROOT))
        for p in files
        if p.read_text().strip() and not ast.get_docstring(ast.parse(p.read_text()))
    ]
    assert silent == []


def test_console_script_exists() -> None:
    """The installed command `ratchet` points at a function that exists."""
    (script,) = (e for e in distribution("ratchetd").entry_points if e.group == "console_scripts")
    assert script.name == "ratchet"
    assert callable(script.load())


def test_lock_is_portable_and_complete() -> None:
    """requirements.lock pins every direct dependency, each pin has hashes, and it names no host, path or index."""
    lock = (ROOT / "requirements.lock").read_text()
    pins = [line for line in lock.splitlines() if "==" in line]
    hashes = [line for line in lock.splitlines() if "--hash=sha256:" in line]
    assert len(hashes) >= len(pins) > 100
    assert not any(mark in lock for mark in ("://", "\n-", " @ "))
    project = PYPROJECT["project"]
    direct = [d for ds in (project["dependencies"], *project["optional-dependencies"].values()) for d in ds]
    names = {d.split(";")[0].split("[")[0].split(">")[0].split("=")[0].strip().lower() for d in direct} - {"ratchetd"}
    pinned = {pin.split("==")[0].replace("_", "-") for pin in pins}
    assert {name for name in names if name.replace(".", "-") not in pinned and name not in pinned} == set()
