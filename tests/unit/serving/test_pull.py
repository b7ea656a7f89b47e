"""A model that is pulled is whole and checked, fetched once by however many replicas, and goes on where a killed one stopped."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from servers.registry import PASSWORD, USER, RegistryServer, counting_proxy, registry

from deployers.documents import MODEL_LAYER
from deployers.images import ImageRef, OciLayout
from deployers.layers import UnpackLimits
from deployers.placement import fill_from_blob, model_folder, read_placement, sweep_models
from deployers.registry.names import Place
from deployers.registry.publish import push_version
from deployers.registry.transport import Access
from serving.runtime.pull import ModelLayer, PullError, pull
from serving.runtime.settings import parse_settings


@pytest.fixture
def layout(tmp_path: Path) -> OciLayout:
    return OciLayout(tmp_path / "images")


def build(layout: OciLayout, size: int = 1000, placement: str = "pull") -> ImageRef:
    model, app = layout.root.parent / "trained", layout.root.parent / "serving"
    (model / "deep").mkdir(parents=True, exist_ok=True)
    app.mkdir(exist_ok=True)
    (app / "__init__.py").write_text("")
    (model / "model.json").write_text("{}")
    (model / "deep" / "weights").write_bytes(os.urandom(size))
    return layout.build(model, app, name="late", number=1, annotations={}, placement=placement)  # type: ignore[arg-type]


def layer_of(image: ImageRef, tmp_path: Path, *sources: str) -> ModelLayer:
    assert image.model is not None
    return ModelLayer(
        digest=image.model.layer.digest, size=image.model.layer.size, sources=sources, cache=tmp_path / "cache"
    )


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_model_is_pulled_from_the_layout(layout: OciLayout, tmp_path: Path) -> None:
    """Byte for byte, read-only, and not touched again."""
    layer = layer_of(build(layout), tmp_path, str(layout.root))
    folder = pull(layer)
    assert files(folder) == files(tmp_path / "trained")
    assert folder == model_folder(layer.cache, layer.digest)
    assert (folder / "model.json").stat().st_mode & 0o222 == 0
    assert pull(replace(layer, sources=())) == folder
    assert sorted(p.name for p in layer.cache.iterdir()) == [f".{folder.parent.name}.lock", folder.parent.name]


def test_pulling_and_filling_make_the_same_folder(layout: OciLayout, tmp_path: Path) -> None:
    """What the packaging job fills for a volume is what a replica would have pulled: either may find the other's."""
    image = build(layout)
    layer = layer_of(image, tmp_path, str(layout.root))
    assert image.model is not None
    filled = fill_from_blob(tmp_path / "models", image.model.layer, layout.blobs.path(layer.digest), UnpackLimits())
    pulled = pull(layer)
    assert files(filled) == files(pulled)
    assert {p.relative_to(filled): p.stat().st_mode for p in filled.rglob("*")} == {
        p.relative_to(pulled): p.stat().st_mode for p in pulled.rglob("*")
    }


def test_of_many_at_once_one_fills(layout: OciLayout, tmp_path: Path) -> None:
    """Sixteen replicas and packaging jobs that want the same model at the same time all get it, and it is extracted once."""
    image = build(layout, 3_000_000)
    layer = layer_of(image, tmp_path, str(layout.root))
    assert image.model is not None
    blob, model = layout.blobs.path(layer.digest), image.model

    def want(n: int) -> int:
        folder = pull(layer) if n % 2 else fill_from_blob(layer.cache, model.layer, blob, UnpackLimits())
        return (folder / "deep" / "weights").stat().st_ino

    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(want, range(16)))) == 1


def tar_of(*members: tuple[str, bytes | None]) -> bytes:
    """A tar of files; None is a link to /etc/passwd."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return sink.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (tar_of(("../evil", b"x")), "leads out of model/"),
        (tar_of(("/model/evil", b"x")), "leads out of model/"),
        (tar_of(("model/../../evil", b"x")), "leads out of model/"),
        (tar_of(("app/evil", b"x")), "leads out of model/"),
        (tar_of(("model/link", None)), "is no plain file"),
        (tar_of(("model/a", b"x"), ("model/a", b"y")), "not the layer of a model"),
        (b"no tar at all" * 100, "not the layer of a model"),
    ],
)
def test_a_hostile_layer_leaves_nothing(tmp_path: Path, content: bytes, said: str) -> None:
    """Names that lead out, links and what is no tar are refused, although the digest is right."""
    name = hashlib.sha256(content).hexdigest()
    blobs = tmp_path / "layout" / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (blobs / name).write_bytes(content)
    layer = ModelLayer(
        digest=f"sha256:{name}", size=len(content), sources=(str(tmp_path / "layout"),), cache=tmp_path / "cache"
    )
    with pytest.raises(PullError, match=said):
        pull(layer)
    assert [p.name for p in layer.cache.iterdir()] == [f".{name}.lock"]
    assert not (tmp_path / "evil").exists()


def test_a_spoilt_source_is_passed_over(layout: OciLayout, tmp_path: Path) -> None:
    """A layout whose blob the disk has changed is refused by its digest; the next source is asked."""
    image = build(layout)
    other = OciLayout(tmp_path / "other" / "images")
    (tmp_path / "other").mkdir()
    layer = layer_of(image, tmp_path, str(other.root), str(layout.root))
    other.blobs.folder.mkdir(parents=True)
    path = other.blobs.path(layer.digest)
    path.write_bytes(layout.blobs.path(layer.digest).read_bytes()[:-1] + b"x")
    with pytest.raises(PullError, match="it has the digest"):
        pull(replace(layer, sources=(str(other.root),)))
    assert files(pull(layer)) == files(tmp_path / "trained")


# ---------------------------------------------------------------- unpacked images
@pytest.mark.parametrize("placement", ["volume", "pull"])
def test_an_unpacked_image_says_where_its_model_is(layout: OciLayout, tmp_path: Path, placement: str) -> None:
    """Its digest still fixes the model; the judge finds it under `model`; a second version of the same model takes no more room; and
    when the last image goes, the model goes."""
    first = build(layout, placement=placement)
    second = layout.build(
        tmp_path / "trained", tmp_path / "serving", name="late", number=2, annotations={}, placement=placement
    )  # type: ignore[arg-type]
    assert first.model is not None
    assert first.model == second.model
    assert layout.annotations(first.digest)[MODEL_LAYER] == first.model.layer.digest
    roots = [layout.unpack(i.digest, tmp_path / "unpacked") for i in (first, second)]
    assert {(r / "model").resolve() for r in roots} == {model_folder(tmp_path / "models", first.model.layer.digest)}
    known = read_placement(roots[0])
    assert known is not None
    assert (known.placement, known.layer, known.image) == (placement, first.model.layer.digest, first.model.image)
    layout.remove(first.digest)
    assert layout.gc() > 0
    assert layout.verify(second.digest) == second
    assert sweep_models(tmp_path) == 0
    for root in roots:
        (root / "placement.json").unlink()
    assert sweep_models(tmp_path) == 1


def test_a_container_of_a_pulled_model_is_told_what_to_pull(layout: OciLayout) -> None:
    """The command in the image names layer and size; where from is said by who starts it, so that the digest does not depend on it."""
    image = build(layout)
    _, _, blobs = layout.manifest(image.digest)
    settings = parse_settings(layout.blobs.read_json(blobs[0])["config"]["Cmd"])
    assert image.model is not None
    assert settings.layer is not None
    assert (settings.layer.digest, settings.layer.size) == (image.model.layer.digest, image.model.layer.size)
    assert settings.layer.sources == ()
    assert settings.name == "late"


# ---------------------------------------------------------------- over the network
@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with registry(tmp_path_factory.mktemp("pull"), auth=True) as running:
        yield running


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(f"{USER}:{PASSWORD}\n")
    return path


@pytest.mark.slow
def test_a_cut_download_goes_on_where_it_was(
    guarded: RegistryServer, layout: OciLayout, tmp_path: Path, secret: Path
) -> None:
    """A replica that is killed in the middle of 40 MB leaves what it has; the next one fetches the rest, and no more."""
    image = build(layout, 40_000_000)
    access = Access(credentials=secret, host=guarded.host)
    push_version(layout, image.digest, place=Place(host=guarded.host), model="late", number=1, access=access)
    with counting_proxy(guarded.port) as proxy:
        layer = replace(layer_of(image, tmp_path, f"http://{proxy.host}/late"), credentials=secret)
        script = f"""
import os, signal
from pathlib import Path
import serving.runtime.pull as p

def some(answer, file, size_max):
    file.write(answer.read(15_000_000))
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

p._copy = some
where = dict(sources={layer.sources!r}, cache=Path({str(layer.cache)!r}), credentials=Path({str(secret)!r}))
p.pull(p.ModelLayer(digest={layer.digest!r}, size={layer.size}, **where))
"""
        killed = subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
        assert killed.returncode == -signal.SIGKILL
        before = proxy.received
        assert files(pull(layer)) == files(tmp_path / "trained")
        assert proxy.received - before < layer.size - 14_000_000
    assert not list(layer.cache.glob(".pulling-*"))


@pytest.mark.slow
def test_without_the_password_nothing_is_pulled_and_nothing_told(
    guarded: RegistryServer, tmp_path: Path, secret: Path
) -> None:
    """A wrong password is refused in a sentence that does not show it."""
    secret.write_text(f"{USER}:wrong-{PASSWORD}")
    layer = ModelLayer(
        digest=f"sha256:{'0' * 64}",
        size=1,
        sources=(f"http://{guarded.host}/late",),
        cache=tmp_path / "cache",
        credentials=secret,
    )
    with pytest.raises(PullError, match=r"answered 401|does not let us in") as refused:
        pull(layer)
    assert PASSWORD not in str(refused.value)


@pytest.mark.parametrize(
    "content", ["first-half\nhunter2", "hunter2-\u2603", '{"auths": {"127.0.0.1:9": {"registrytoken": "a\\nhunter2"}}}']
)
def test_credentials_that_no_header_can_carry_are_refused_unshown(tmp_path: Path, content: str) -> None:
    """Python's HTTP client quotes them in its errors, which would stand in the replica's log."""
    secret = tmp_path / "secret"
    secret.write_text(content)
    layer = ModelLayer(
        digest=f"sha256:{'0' * 64}", size=1, sources=("http://127.0.0.1:9/late",), cache=tmp_path / "cache", credentials=secret
    )  # fmt: skip
    with pytest.raises(PullError, match="credentials") as refused:
        pull(layer)
    assert "hunter2" not in "".join(traceback.format_exception(refused.value))
