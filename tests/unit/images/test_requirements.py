"""The requirements layer: only what the lock says by hash, the same bytes each time, made once."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from deployers import requirements
from deployers.lockfile import lock_digest, lock_text, merged, read_lock
from deployers.oci import ImageRefused
from deployers.requirements import has_runtime, owners_pins, pip_command, python_of, requirements_layer, runtime_pins

ROOT = Path(__file__).resolve().parents[3]
HASH = "--hash=sha256:" + "a" * 64


def wheel(folder: Path, name: str, version: str = "1.0") -> str:
    """A tiny wheel with a start script; its sha256."""
    info = f"{name}-{version}.dist-info"
    content = {
        f"{name}/__init__.py": "x = 1\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name}-run = {name}:x\n",
    }
    record = ""
    for path, text in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text)}\n"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in {**content, f"{info}/RECORD": record + f"{info}/RECORD,,\n"}.items():
            archive.writestr(member, text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that stands for the package index."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


# ---------------------------------------------------------------- the layer
@pytest.mark.slow
def test_a_lock_makes_the_same_layer_everywhere(index: Path, tmp_path: Path) -> None:
    """Two homes on two days get the same bytes: no times, no compiled code, no start scripts with this machine's paths."""
    digest = wheel(index, "spam")
    pins = read_lock(f"spam==1.0 --hash=sha256:{digest}\n", "3.11", "lock")
    (tmp_path / "a-much-longer-home").mkdir()
    (file, first), (_, second) = (
        requirements_layer(tmp_path / h, pins, "3.11") for h in ("home", "a-much-longer-home")
    )
    assert first == second
    with tarfile.open(file) as tar:
        names = [m.name for m in tar.getmembers()]
        assert {m.mtime for m in tar.getmembers()} == {0}
    assert "deps/spam/__init__.py" in names
    assert not [n for n in names if n.endswith(".pyc") or "/bin" in n]


@pytest.mark.slow
def test_a_layer_is_made_once(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache answers without pip; a spoilt entry is made again."""
    pins = read_lock(f"spam==1.0 --hash=sha256:{wheel(index, 'spam')}", "3.11", "lock")
    file, layer = requirements_layer(tmp_path, pins, "3.11")
    with monkeypatch.context() as without_pip:
        without_pip.setattr(requirements, "_install", lambda *_: pytest.fail("pip was started"))
        assert requirements_layer(tmp_path, pins, "3.11") == (file, layer)
    file.write_bytes(b"x" * layer.size)
    assert requirements_layer(tmp_path, pins, "3.11") == (file, layer)
    assert file.stat().st_size == layer.size
    assert not list(file.parent.parent.glob(".new-*"))


@pytest.mark.slow
def test_what_has_another_hash_is_not_installed(index: Path, tmp_path: Path) -> None:
    """A package that somebody replaced in the index, and one that is only there as source code, are refused in pip's words."""
    wheel(index, "spam")
    with pytest.raises(ImageRefused, match=r"could not install.*(?s:.)*(hash|HASH)"):
        requirements_layer(tmp_path, read_lock(f"spam==1.0 {HASH}", "3.11", "lock"), "3.11")
    (index / "eggs-1.0.tar.gz").write_bytes(b"code that would run")
    with pytest.raises(ImageRefused, match="could not install"):
        requirements_layer(tmp_path, read_lock(f"eggs==1.0 {HASH}", "3.11", "lock"), "3.11")
    assert not list((tmp_path / "cache" / "requirements").glob("[!.]*"))


def test_pip_is_told_the_bases_python() -> None:
    """Wheels are chosen for the base image's Python and Linux, never for this process; nothing is built from source."""
    words = pip_command(Path("lock"), Path("site"), "3.12", "x86_64")
    assert words[words.index("--python-version") + 1] == "3.12"
    assert {"cp312", "abi3", "none"} <= set(words)
    assert {"--require-hashes", "--no-deps", "--no-compile", "manylinux_2_28_x86_64", "manylinux2014_x86_64"} <= set(
        words
    )
    assert words[words.index("--only-binary") + 1] == ":all:"


# ---------------------------------------------------------------- locks
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("spam==1.0", "has no hash"),
        (f"spam>=1.0 {HASH}", "must name one version with =="),
        (f"spam==1.* {HASH}", "must name one version with =="),
        (f"spam @ https://evil.example/spam.whl {HASH}", "and no address"),
        ("--index-url https://evil.example/simple", "options have no place here"),
        ("-r other.txt", "options have no place here"),
        ("-e .", "options have no place here"),
        (f"spam==1.0 --config-settings=x {HASH}", "options have no place here"),
        (f"../spam {HASH}", "is not a package"),
        (f"spam==1.0 {HASH}\nspam==2.0 {HASH}", "line 2: spam is pinned twice"),
        ("x" * (3 << 20), "is larger than"),
    ],
)
def test_a_lock_may_only_pin(line: str, said: str) -> None:
    """Options, addresses, ranges and packages without a hash are refused with the line that they stand in."""
    with pytest.raises(ImageRefused, match=re.escape(said)):
        read_lock(line, "3.11", "lock")


def test_a_lock_is_reduced_to_one_python() -> None:
    """Markers are judged for the base's Python, comments and order do not matter, and equal pins have equal digests."""
    text = f"""
# made by a tool
b==2.0 ; python_version < "3.12" \\
    {HASH} \\
    --hash=sha256:{"b" * 64}
A_a==1.0 ; sys_platform == "linux" {HASH}  # and so on
c==3.0 ; sys_platform == "win32" {HASH}
"""
    assert [(p.name, p.version, len(p.hashes)) for p in read_lock(text, "3.11", "x")] == [
        ("a-a", "1.0", 1),
        ("b", "2.0", 2),
    ]
    assert [p.name for p in read_lock(text, "3.12", "x")] == ["a-a"]
    again = read_lock(lock_text(read_lock(text, "3.11", "x")), "3.11", "y")
    assert lock_digest(again) == lock_digest(read_lock(text, "3.11", "x"))
    assert [p.version for p in merged(again, read_lock(f"b==9.0 {HASH}", "3.11", "z"))] == ["1.0", "9.0"]


def test_an_owners_lock_lies_in_the_policys_folder(tmp_path: Path) -> None:
    """Paths and links that lead out of it are refused."""
    folder = tmp_path / "policies"
    folder.mkdir()
    (tmp_path / "secret").write_text(f"spam==1.0 {HASH}")
    (folder / "link").symlink_to(tmp_path / "secret")
    for path in ("../secret", str(tmp_path / "secret"), "link", "missing", "."):
        with pytest.raises(ImageRefused, match="must be a file in the policy's folder"):
            owners_pins(folder, path, "3.11")


def test_the_runtimes_lock_is_a_part_of_ours() -> None:
    """What goes into images has the versions and hashes that everything was tested with, and covers what serving imports."""

    def entries(path: Path) -> dict[str, tuple[str, frozenset[str]]]:
        """Package → its line without marker, and its hashes."""
        blocks = [block for block in re.split(r"\n(?=[a-z0-9])", path.read_text()) if "==" in block]
        return {
            b.split("==")[0]: (re.split(r"[ \\;]", b)[0], frozenset(re.findall("sha256:[0-9a-f]{64}", b)))
            for b in blocks
        }

    ours, runtime = entries(ROOT / "requirements.lock"), entries(ROOT / "deployers" / requirements.RUNTIME_LOCK)
    assert {name: ours[name] for name in runtime} == runtime
    for python in ("3.11", "3.12", "3.13"):
        names = {pin.name for pin in runtime_pins(python)}
        assert {
            "scikit-learn",
            "skops",
            "numpy",
            "litestar",
            "uvicorn",
            "httptools",
            "uvloop",
            "aiohttp",
            "pyarrow",
        } <= names
    assert not {"kubernetes", "evidently", "optuna", "tensorflow-cpu"} & names
    assert (
        "deployers"
        in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
            "packages"
        ]
    )


def test_a_base_says_which_python_it_has() -> None:
    """By the variable of official images or by a label; one that says nothing is refused with what to do."""
    assert python_of({"config": {"Env": ["PYTHON_VERSION=3.12.4"]}}) == "3.12"
    assert python_of({"config": {"Env": ["PYTHON_VERSION=3.12.4"], "Labels": {"dev.ratchet.python": "3.11"}}}) == "3.11"
    for config in ({}, {"config": {"Env": ["PATH=/bin"]}}, {"config": {"Env": ["PYTHON_VERSION=2.7.1"]}}):
        with pytest.raises(ImageRefused, match="PYTHON_VERSION"):
            python_of(config)
    assert has_runtime({"config": {"Labels": {"dev.ratchet.requirements": "sha256:0"}}})
    assert not has_runtime({"config": {"Labels": None}})
    assert json.dumps(lock_digest(())).startswith('"sha256:')
