"""Layers depend on contents alone, and a hostile one is refused before anything of it becomes visible."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployers.images import APP, LAYER_KEY, MODEL, ImageCorrupt, ImageError, ImageRefused, OciLayout, UnpackLimits
from deployers.layers import extract_layer, write_layer
from deployers.oci import CONFIG, LAYER, MANIFEST, Descriptor, canonical_json

LIMITS = UnpackLimits(bytes_max=1_000_000, members_max=50, depth_max=8)


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    return info


def tar_of(*members: tarfile.TarInfo, content: bytes = b"") -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info in members:
            info.size = len(content) if info.type == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(content))
    return sink.getvalue()


def sparse(name: str) -> tarfile.TarInfo:
    """A few bytes that claim to be a huge file."""
    info = member(name)
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.realsize": str(1 << 40),
        "GNU.sparse.name": name,
    }
    return info


def extract(content: bytes, tmp_path: Path, limits: UnpackLimits = LIMITS) -> Path:
    layer, destination = tmp_path / "layer", tmp_path / "inside" / "destination"
    layer.write_bytes(content)
    destination.mkdir(parents=True)
    extract_layer(layer, "model", destination, limits)
    return destination


HOSTILE = {
    "absolute": [member("/etc/passwd")],
    "parent": [member("model/../../escaped")],
    "dot": [member("model/./x")],
    "bare parent": [member("..")],
    "other top": [member("app/serving/runtime.py")],
    "symbolic link": [member("model/x", tarfile.SYMTYPE, "/etc/passwd")],
    "link to write through": [member("model/d", tarfile.SYMTYPE, "/tmp"), member("model/d/x")],
    "hard link": [member("model/x", tarfile.LNKTYPE, "/etc/passwd")],
    "character device": [member("model/x", tarfile.CHRTYPE)],
    "block device": [member("model/x", tarfile.BLKTYPE)],
    "pipe": [member("model/x", tarfile.FIFOTYPE)],
    "whiteout": [member("model/.wh.x")],
    "opaque whiteout": [member("model/.wh..wh..opq")],
    "twice": [member("model/x"), member("model/x")],
    "file then folder": [member("model/x"), member("model/x/y")],
    "folder then file": [member("model/x/y"), member("model/x")],
    "file as top": [member("model"), member("model/x")],
    "deep": [member("model/" + "/".join("d" * 9))],
    "long": [member("model/" + "n" * 256)],
    "many": [member(f"model/{i}") for i in range(51)],
}  # fmt: skip


@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_members_are_refused(members: list[tarfile.TarInfo], tmp_path: Path) -> None:
    """Whatever is not a plain file or folder of its own name below the layer's folder is refused, and nothing is made outside."""
    with pytest.raises(ImageRefused):
        extract(tar_of(*members), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["inside", "layer"]
    assert [p.name for p in (tmp_path / "inside").iterdir()] == ["destination"]


def test_bombs_are_refused(tmp_path: Path) -> None:
    """A sparse file that claims a terabyte, and a layer over the byte limit, are refused before they fill the disk."""
    with pytest.raises(ImageRefused, match=r"sparse|claims"):
        extract(tar_of(sparse("model/bomb"), content=b"1\n0\n1\n"), tmp_path)
    (tmp_path / "more").mkdir()
    with pytest.raises(ImageRefused, match=r"the limit is 1000000"):
        extract(tar_of(member("model/x"), content=bytes(1_000_001)), tmp_path / "more")


@pytest.mark.parametrize("mode", [0o6777, 0o000, 0o444])
def test_modes_and_owners_of_the_layer_do_not_count(mode: int, tmp_path: Path) -> None:
    """Set-uid bits, unreadable modes and owners are not taken over."""
    info = member("model/x")
    info.mode, info.uid, info.gid = mode, 12345, 12345
    path = extract(tar_of(info, content=b"x"), tmp_path) / "model" / "x"
    assert (path.stat().st_mode & 0o7777, path.read_bytes()) == (0o644, b"x")
    assert path.stat().st_uid == tmp_path.stat().st_uid


@pytest.mark.parametrize("content", [b"", b"no tar", bytes(10), b"\x1f\x8b" + bytes(600)])
def test_what_is_no_tar_is_corrupt(content: bytes, tmp_path: Path) -> None:
    """A layer that is not an uncompressed tar file is corrupt, not empty."""
    with pytest.raises(ImageCorrupt, match="not a readable tar file"):
        extract(content, tmp_path)


def test_cut_layer_is_corrupt(tmp_path: Path) -> None:
    """A layer that ends in the middle of a file is corrupt."""
    with pytest.raises(ImageCorrupt):
        extract(tar_of(member("model/x"), content=bytes(5000))[:3000], tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), min_size=1, max_size=8))
def test_any_damage_ends_in_an_image_error_or_inside(
    edits: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However the bytes of a layer are changed, unpacking ends with an ImageError or a tree inside the destination."""
    content = bytearray(tar_of(member("model/a"), member("model/b/c"), content=b"y" * 600))
    for position, value in edits:
        content[position % len(content)] = value
    tmp_path = tmp_path_factory.mktemp("damaged")
    with contextlib.suppress(ImageError):
        extract(bytes(content), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["inside", "layer"]
    assert [p.name for p in (tmp_path / "inside").iterdir()] == ["destination"]


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=70).filter(
    lambda n: (
        n not in {".", "..", "__pycache__"}
        and not n.startswith(".wh.")
        and not n.endswith((".pyc", ".pyo"))
        and len(n.encode()) <= 255
    )
)


@settings(max_examples=60, deadline=None)
@given(files=st.dictionaries(NAMES, st.binary(max_size=2000), max_size=6))
def test_any_folder_survives_the_round_trip(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any UTF-8 file names and any contents come back as they went in, and the bytes do not depend on the order of creation."""
    tmp_path = tmp_path_factory.mktemp("round")
    layers = []
    for order in (list(files), list(reversed(files))):
        source = tmp_path / f"source{len(layers)}"
        source.mkdir()
        for name in order:
            (source / name).write_bytes(files[name])
        layers.append(io.BytesIO())
        write_layer(source, "model", layers[-1])
    assert layers[0].getvalue() == layers[1].getvalue()
    destination = extract(layers[0].getvalue(), tmp_path)
    assert {p.name: p.read_bytes() for p in (destination / "model").iterdir()} == files


def test_pipes_and_odd_names_are_not_packed(tmp_path: Path) -> None:
    """A pipe in the model folder, which would block the reader, and a name that is not UTF-8 are refused by name."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageRefused, match="pipe is a link or no plain file"):
        write_layer(tmp_path, "model", io.BytesIO())
    (tmp_path / "pipe").rename(tmp_path / ".wh.pipe")
    with pytest.raises(ImageRefused, match="a whiteout"):
        write_layer(tmp_path, "model", io.BytesIO())
    (tmp_path / ".wh.pipe").unlink()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")).write_text("")
    with pytest.raises(ImageRefused, match="not UTF-8"):
        write_layer(tmp_path, "model", io.BytesIO())


# ---------------------------------------------------------------- whole images of strangers
def stranger(layout: OciLayout, *layers: tuple[str | None, str, bytes]) -> str:
    """Publish an image with the given (folder annotation, media type, content) layers, as another tool might have written it."""
    blobs = []
    for top, media_type, content in layers:
        blob = layout.blobs.write(media_type, lambda sink, content=content: sink.write(content) and None)
        notes = ((LAYER_KEY, top),) if top else ()
        blobs.append(Descriptor(media_type=media_type, digest=blob.digest, size=blob.size, annotations=notes))
    config = layout.blobs.write_json(CONFIG, {})
    manifest = {"schemaVersion": 2, "config": config.as_json(), "layers": [b.as_json() for b in blobs]}
    entry = layout.blobs.write_json(MANIFEST, manifest)
    index = {"schemaVersion": 2, "manifests": [entry.as_json()]}
    (layout.root / "index.json").write_bytes(canonical_json(index))
    return entry.digest


GOOD_APP = (APP, LAYER, tar_of(member("app/serving/runtime.py")))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([(None, LAYER, tar_of(member("etc/passwd")))], "has no app layer; it was not built by Ratchet"),
        ([GOOD_APP, (MODEL, LAYER + "+gzip", b"zipped")], "the model layer is .*gzip"),
        ([GOOD_APP, (MODEL, LAYER, tar_of(member("model/../x")))], "leads outside"),
    ],
)
def test_strangers_images_are_not_unpacked(
    layers: list[tuple[str | None, str, bytes]], message: str, tmp_path: Path
) -> None:
    """An image that is whole, but not of our making, or hostile, leaves nothing under its digest."""
    layout = OciLayout(tmp_path / "images")
    digest = stranger(layout, *layers)
    with pytest.raises(ImageRefused, match=message):
        layout.unpack(digest, tmp_path / "unpacked")
    assert [p.name for p in (tmp_path / "unpacked").iterdir()] == [".unpack.lock"]


def test_base_layers_are_not_unpacked(tmp_path: Path) -> None:
    """Layers without our annotation, with all their links, devices and whiteouts, are left to container engines."""
    layout = OciLayout(tmp_path / "images")
    base = (None, LAYER, tar_of(member("dev/null", tarfile.CHRTYPE), member("etc/.wh.motd")))
    digest = stranger(layout, base, GOOD_APP, (MODEL, LAYER, tar_of(member("model/model.json"))))
    root = layout.unpack(digest, tmp_path / "unpacked")
    assert sorted(p.name for p in root.rglob("*") if p.is_file()) == ["model.json", "runtime.py"]
