"""Images are reproducible, whole or absent, and safe for several builders at once."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from deployers import oci
from deployers.images import (
    ImageCorrupt,
    ImageNotFound,
    ImageRef,
    ImageRefused,
    ImageStoreError,
    OciLayout,
    annotations_of,
)

NOTES = {"fingerprint": "sha256:abc", "cycle": "4", "org.opencontainers.image.created": "2013-03-01T00:00:00Z"}


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "code" / "__pycache__").mkdir(parents=True)
    (folder / "model.json").write_text('{"format":1}')
    (folder / "estimator.skops").write_bytes(bytes(range(256)) * 500)
    (folder / "code" / "größe.py").write_text("x = 1\n")
    (folder / "code" / "__pycache__" / "x.pyc").write_bytes(b"differs from machine to machine")
    return folder


@pytest.fixture
def app_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "site-packages" / "serving"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "runtime.py").write_text("print('serving')\n")
    return folder


@pytest.fixture
def layout(tmp_path: Path) -> OciLayout:
    return OciLayout(tmp_path / "images")


def build(layout: OciLayout, model_dir: Path, app_dir: Path, number: int = 1, base: str | None = None) -> ImageRef:
    return layout.build(model_dir, app_dir, name="flight-late", number=number, annotations=NOTES, base=base)


def files_below(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


# ---------------------------------------------------------------- reproducible
def test_same_inputs_same_digest(layout: OciLayout, model_dir: Path, app_dir: Path, tmp_path: Path) -> None:
    """Times, owners, modes, compiled code and the order on the disk do not change an image's digest; one byte of the model does."""
    first = build(layout, model_dir, app_dir)
    copy = tmp_path / "elsewhere"
    shutil.copytree(model_dir, copy)
    os.utime(copy / "model.json", (1, 1))
    (copy / "model.json").chmod(0o600)
    shutil.rmtree(copy / "code" / "__pycache__")
    assert build(OciLayout(tmp_path / "other"), copy, app_dir) == first
    (copy / "model.json").write_text('{"format":2}')
    assert build(layout, copy, app_dir).digest != first.digest


def test_unpacked_image_is_what_was_packed(layout: OciLayout, model_dir: Path, app_dir: Path, tmp_path: Path) -> None:
    """Unpacking gives the model under model/ and the serving package under app/serving/, byte for byte, without compiled code."""
    image = build(layout, model_dir, app_dir)
    root = layout.unpack(image.digest, tmp_path / "unpacked")
    assert root == tmp_path / "unpacked" / image.digest.removeprefix("sha256:")
    wanted = {f"model/{k}": v for k, v in files_below(model_dir).items() if not k.endswith(".pyc")}
    assert files_below(root) == wanted | {f"app/serving/{k}": v for k, v in files_below(app_dir).items()}
    inode = (root / "model" / "model.json").stat().st_ino
    assert layout.unpack(image.digest, tmp_path / "unpacked") == root
    assert (root / "model" / "model.json").stat().st_ino == inode


def test_lineage_stands_in_the_manifest(layout: OciLayout, model_dir: Path, app_dir: Path) -> None:
    """Short annotation keys go under dev.ratchet., OCI's own keys say name, number and time, and a fixed key cannot be contradicted."""
    image = build(layout, model_dir, app_dir, number=7)
    assert layout.annotations(image.digest) == {
        "dev.ratchet.fingerprint": "sha256:abc",
        "dev.ratchet.cycle": "4",
        "org.opencontainers.image.created": "2013-03-01T00:00:00Z",
        "org.opencontainers.image.title": "flight-late",
        "org.opencontainers.image.version": "7",
    }
    assert annotations_of("m", 1, {})["org.opencontainers.image.created"] == "1970-01-01T00:00:00Z"
    with pytest.raises(ImageRefused, match=r"image\.version is '7' by the build and cannot be '8'"):
        annotations_of("m", 7, {"org.opencontainers.image.version": "8"})


def test_moved_tag_leaves_the_old_image_under_its_digest(layout: OciLayout, model_dir: Path, app_dir: Path) -> None:
    """A rebuild with other content takes the tag; the earlier digest still means what it meant (invariant 3)."""
    old = build(layout, model_dir, app_dir)
    (model_dir / "model.json").write_text('{"format":2}')
    new = build(layout, model_dir, app_dir)
    assert [(e.digest, e.tag) for e in layout.list()] == [(old.digest, ""), (new.digest, "flight-late:v1")]
    assert layout.gc() == 0
    assert layout.verify(old.digest) == old


# ---------------------------------------------------------------- base images
def test_base_layers_come_below_ours(layout: OciLayout, model_dir: Path, app_dir: Path, tmp_path: Path) -> None:
    """An image on a base holds the base's layers, environment and history, records its digest, and outlives the base's folder."""
    base_layout = OciLayout(tmp_path / "base")
    base = build(base_layout, model_dir, app_dir)
    (model_dir / "model.json").write_text('{"format":2}')
    image = build(layout, model_dir, app_dir, number=2, base=f"{base_layout.root}:flight-late:v1")
    assert image == build(layout, model_dir, app_dir, number=2, base=str(base_layout.root))
    assert image.layers[:2] == base.layers
    assert layout.annotations(image.digest)["org.opencontainers.image.base.digest"] == base.digest
    shutil.rmtree(base_layout.root)
    assert layout.verify(image.digest) == image
    root = layout.unpack(image.digest, tmp_path / "unpacked")
    assert (root / "model" / "model.json").read_text() == '{"format":2}'
    on_digest = build(layout, model_dir, app_dir, number=3, base=image.digest)
    assert len(on_digest.layers) == 6


@pytest.mark.parametrize("base", ["{tmp}/nowhere", "{tmp}/base:v9", "sha256:" + "0" * 64])
def test_missing_base_is_named(layout: OciLayout, model_dir: Path, app_dir: Path, tmp_path: Path, base: str) -> None:
    """A base that does not exist is an error that names it, and no image appears."""
    build(OciLayout(tmp_path / "base"), model_dir, app_dir)
    base = base.format(tmp=tmp_path)
    with pytest.raises(ImageNotFound, match=base):
        build(layout, model_dir, app_dir, base=base)
    assert layout.list() == ()


def test_spoiled_base_is_refused(layout: OciLayout, model_dir: Path, app_dir: Path, tmp_path: Path) -> None:
    """A base layer whose bytes changed is found out while it is copied, and neither it nor an image appears."""
    base_layout = OciLayout(tmp_path / "base")
    base = build(base_layout, model_dir, app_dir)
    spoil(base_layout.blobs.path(base.layers[1].digest))
    with pytest.raises(ImageCorrupt, match=r"of the base image: .*has the digest"):
        build(layout, app_dir, app_dir, base=str(base_layout.root))
    assert layout.list() == ()


# ---------------------------------------------------------------- damage
def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)


def test_changed_byte_is_found(layout: OciLayout, model_dir: Path, app_dir: Path, tmp_path: Path) -> None:
    """One flipped bit in any blob makes verify and unpack raise, naming the blob; a rebuild mends it."""
    image = build(layout, model_dir, app_dir)
    blob = layout.blobs.path(image.layers[1].digest)
    spoil(blob)
    for act in (lambda: layout.verify(image.digest), lambda: layout.unpack(image.digest, tmp_path / "unpacked")):
        with pytest.raises(ImageCorrupt, match=blob.name):
            act()
    assert not list((tmp_path / "unpacked").glob("[!.]*"))
    assert build(layout, model_dir, app_dir) == layout.verify(image.digest)
    blob.write_bytes(blob.read_bytes()[:-1])
    with pytest.raises(ImageCorrupt, match=r"bytes where its descriptor says"):
        layout.verify(image.digest)
    blob.unlink()
    with pytest.raises(ImageNotFound, match=f"{blob.name} is missing"):
        layout.verify(image.digest)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"manifests":[{"digest":"sha256:../../x"}]}', '{"manifests":[7]}'])
def test_damaged_index_deletes_nothing(layout: OciLayout, model_dir: Path, app_dir: Path, content: str) -> None:
    """An index that cannot be understood is named in an error, and gc keeps every blob."""
    build(layout, model_dir, app_dir)
    before = layout.blobs.digests()
    (layout.root / "index.json").write_text(content)
    for act in (layout.list, layout.gc):
        with pytest.raises(ImageCorrupt, match=r"index\.json"):
            act()
    assert layout.blobs.digests() == before


def test_damaged_manifest_deletes_nothing(layout: OciLayout, model_dir: Path, app_dir: Path) -> None:
    """While one manifest is unreadable nobody knows which blobs it needs, so gc deletes none."""
    image = build(layout, model_dir, app_dir)
    layout.blobs.path(image.digest).write_text("{}")
    before = layout.blobs.digests()
    with pytest.raises(ImageCorrupt, match=image.digest.removeprefix("sha256:")):
        layout.gc()
    assert layout.blobs.digests() == before


@pytest.mark.parametrize("digest", ["", "sha256:../../../etc", "latest", "sha256:" + "A" * 64, "sha512:" + "0" * 128])
def test_digest_cannot_lead_outside(layout: OciLayout, tmp_path: Path, digest: str) -> None:
    """What is not a sha256 digest never becomes a path."""
    for act in (layout.verify, layout.remove, lambda d: layout.unpack(d, tmp_path)):
        with pytest.raises(ImageRefused, match="an image digest has the form"):
            act(digest)


@pytest.mark.parametrize(("name", "number"), [("../up", 1), ("Flight Late", 1), ("", 1), ("m", 0)])
def test_bad_name_or_number_is_refused(
    layout: OciLayout, model_dir: Path, app_dir: Path, name: str, number: int
) -> None:
    """A name that is not a policy's name, or a number below 1, makes no image."""
    with pytest.raises(ImageRefused, match="numbered from 1"):
        layout.build(model_dir, app_dir, name=name, number=number, annotations={})
    assert layout.list() == ()


def test_links_in_the_model_folder_are_refused(layout: OciLayout, model_dir: Path, app_dir: Path) -> None:
    """A link could pack a file from outside the model folder, so it is refused by name and leaves no blob behind."""
    (model_dir / "secret").symlink_to("/etc/passwd")
    with pytest.raises(ImageRefused, match=r"secret is a link"):
        build(layout, model_dir, app_dir)
    assert not list(layout.blobs.ingest.iterdir())
    with pytest.raises(ImageNotFound, match=r"model folder .* does not exist"):
        build(layout, model_dir / "missing", app_dir)


# ---------------------------------------------------------------- removing
def test_gc_frees_only_what_nothing_refers_to(layout: OciLayout, model_dir: Path, app_dir: Path) -> None:
    """After a removal gc deletes the blobs of that image alone; shared layers stay, and a second removal finds nothing."""
    first = build(layout, model_dir, app_dir, number=1)
    (model_dir / "model.json").write_text('{"format":2}')
    second = build(layout, model_dir, app_dir, number=2)
    assert layout.remove(first.digest) is True
    assert layout.remove(first.digest) is False
    assert layout.gc() == first.size - first.layers[0].size
    assert layout.verify(second.digest) == second
    with pytest.raises(ImageNotFound):
        layout.verify(first.digest)


def test_empty_layout_is_no_error(layout: OciLayout) -> None:
    """Nothing was ever built: the list is empty, gc frees nothing, and neither creates anything."""
    assert (layout.list(), layout.gc(), layout.root.exists()) == ((), 0, False)


# ---------------------------------------------------------------- crashes, disk, company
_SLOW_BUILD = """
import sys, pathlib
from deployers import images
from deployers.images import OciLayout
write = images.write_layer
def write_and_wait(source, prefix, sink):
    write(source, prefix, sink)
    if prefix == "model":
        print("half", flush=True)
        sys.stdin.read()
images.write_layer = write_and_wait
root, model, app = map(pathlib.Path, sys.argv[1:])
OciLayout(root).build(model, app, name="flight-late", number=1, annotations={})
"""


def test_killed_build_leaves_nothing_visible(layout: OciLayout, model_dir: Path, app_dir: Path) -> None:
    """A builder killed by SIGKILL in the middle of a layer leaves no image, and the next build clears its leavings."""
    command = [sys.executable, "-c", _SLOW_BUILD, str(layout.root), str(model_dir), str(app_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "half\n"
        waiting = threading.Thread(target=layout.gc)
        waiting.start()
        assert layout.list() == ()
        assert list(layout.blobs.ingest.iterdir())
        builder.send_signal(signal.SIGKILL)
    waiting.join(10)
    image = build(layout, model_dir, app_dir)
    assert not list(layout.blobs.ingest.iterdir())
    assert layout.gc() == 0
    assert layout.verify(image.digest) == image


_LIMITED = """
import pathlib, resource, sys
from deployers.images import ImageStoreError, OciLayout
root, model, app, unpacked, digest = sys.argv[1:]
layout = OciLayout(pathlib.Path(root))
resource.setrlimit(resource.RLIMIT_FSIZE, (64_000, 64_000))
try:
    if digest:
        layout.unpack(digest, pathlib.Path(unpacked))
    else:
        layout.build(pathlib.Path(model), pathlib.Path(app), name="flight-late", number=2, annotations={})
except ImageStoreError as error:
    print(error)
"""


def said_by_a_full_disk(layout: OciLayout, model_dir: Path, app_dir: Path, unpacked: Path, digest: str = "") -> str:
    """What building (or, with a digest, unpacking) says where no file may grow beyond 64 kB."""
    command = [sys.executable, "-c", _LIMITED, *map(str, (layout.root, model_dir, app_dir, unpacked)), digest]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_full_disk_is_a_clear_error(layout: OciLayout, model_dir: Path, app_dir: Path, tmp_path: Path) -> None:
    """When the disk takes no more bytes the error says so and what to do; earlier images stay and nothing half-written is left."""
    shutil.copytree(model_dir, small := tmp_path / "small", ignore=shutil.ignore_patterns("*.skops"))
    image = build(layout, small, app_dir)
    said = said_by_a_full_disk(layout, model_dir, app_dir, tmp_path / "unpacked")
    assert "writing an image blob" in said
    assert "free some space or run gc(), then try again" in said
    assert [e.digest for e in layout.list()] == [image.digest]
    assert not list(layout.blobs.ingest.iterdir())
    assert layout.verify(image.digest) == image


def test_full_disk_leaves_no_half_unpacked_image(
    layout: OciLayout, model_dir: Path, app_dir: Path, tmp_path: Path
) -> None:
    """When the disk is full while unpacking, the error says so, nothing stands under the digest, and a later try succeeds."""
    image = build(layout, model_dir, app_dir)
    said = said_by_a_full_disk(layout, model_dir, app_dir, tmp_path / "unpacked", image.digest)
    assert f"unpacking {image.digest}" in said
    assert "then try again" in said
    assert [p.name for p in (tmp_path / "unpacked").iterdir()] == [".unpack.lock"]
    assert (layout.unpack(image.digest, tmp_path / "unpacked") / "model" / "model.json").is_file()


def test_unwritable_place_is_a_clear_error(model_dir: Path, app_dir: Path, tmp_path: Path) -> None:
    """A layout folder that cannot be made is named in the error."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ImageStoreError, match=r"creating the image layout .*/file/images"):
        build(OciLayout(tmp_path / "file" / "images"), model_dir, app_dir)


def _build_many(root: str, model_dir: str, app_dir: str, numbers: range) -> None:
    for number in numbers:
        image = build(OciLayout(Path(root)), Path(model_dir), Path(app_dir), number)
        OciLayout(Path(root)).unpack(image.digest, Path(root) / "unpacked")


def test_builders_and_collectors_at_once(layout: OciLayout, model_dir: Path, app_dir: Path) -> None:
    """Three processes building overlapping numbers while gc runs end with every image whole, once in the index, and unpacked."""
    spawn = multiprocessing.get_context("spawn")
    ranges = [range(1, 9), range(5, 13), range(1, 13)]
    builders = [
        spawn.Process(target=_build_many, args=(str(layout.root), str(model_dir), str(app_dir), r)) for r in ranges
    ]
    for builder in builders:
        builder.start()
    while any(b.is_alive() for b in builders):
        layout.gc()
        builders[0].join(0.01)
    for builder in builders:
        builder.join()
    assert [b.exitcode for b in builders] == [0, 0, 0]
    assert sorted(e.tag for e in layout.list()) == sorted(f"flight-late:v{n}" for n in range(1, 13))
    for entry in layout.list():
        root = layout.root / "unpacked" / oci.hex_of(layout.verify(entry.digest).digest)
        assert (root / "model" / "model.json").is_file()
    assert layout.gc() == 0


def test_interrupted_unpacking_is_made_again(layout: OciLayout, model_dir: Path, app_dir: Path, tmp_path: Path) -> None:
    """What a killed unpacking left is cleared by the next one, and never taken for the image."""
    image = build(layout, model_dir, app_dir)
    left = tmp_path / "unpacked" / f".unpacking-{oci.hex_of(image.digest)}"
    left.mkdir(parents=True)
    (left / "half").write_text("")
    root = layout.unpack(image.digest, tmp_path / "unpacked")
    assert not left.exists()
    assert sorted(p.name for p in root.iterdir()) == ["app", "model"]


# ---------------------------------------------------------------- another reader
def test_skopeo_reads_the_layout(layout: OciLayout, model_dir: Path, app_dir: Path, tmp_path: Path) -> None:
    """An independent implementation of the image-spec finds the image by tag, agrees on its digest, and copies it whole."""
    skopeo = shutil.which("skopeo")
    if skopeo is None:
        assert not (os.environ.get("CI") and os.geteuid() == 0), (
            "scripts/setup.sh installs skopeo for tests run by root"
        )
        pytest.skip("skopeo is not installed (apt-get install skopeo)")
    image = build(layout, model_dir, app_dir, number=3)
    where = f"oci:{layout.root}:flight-late:v3"
    shown = subprocess.run([skopeo, "inspect", where], capture_output=True, check=True, timeout=60)
    found = json.loads(shown.stdout)
    assert found["Digest"] == image.digest
    assert found["Labels"]["dev.ratchet.cycle"] == "4"
    assert found["Layers"] == [layer.digest for layer in image.layers]
    command = [
        skopeo,
        "--insecure-policy",
        "copy",
        "--preserve-digests",
        "--quiet",
        where,
        f"oci:{tmp_path / 'copy'}:v3",
    ]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    assert OciLayout(tmp_path / "copy").verify(image.digest) == image
