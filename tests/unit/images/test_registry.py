"""Images in a real registry: pushed whole or not at all, the same digest as in the layout, and little more than what is new."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import need
from servers.registry import PASSWORD, USER, CountingProxy, RegistryServer, counting_proxy, registry

from deployers import oci
from deployers.images import ImageRef, OciLayout
from deployers.oci import ImageCorrupt, RegistryAway, RegistryDenied
from deployers.referrers import attach, fallback_tag
from deployers.registry import push as pushing
from deployers.registry.names import Place
from deployers.registry.publish import Pushed, push_version, withdraw
from deployers.registry.transport import Access, RegistryClient

pytestmark = pytest.mark.slow
MODEL_BYTES = 20_000_000


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with registry(tmp_path_factory.mktemp("guarded"), auth=True) as running:
        yield running


@pytest.fixture
def proxy(server: RegistryServer) -> Iterator[CountingProxy]:
    with counting_proxy(server.port) as running:
        yield running


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushing, "BACKOFF_S", 0.01)


@pytest.fixture
def layout(tmp_path: Path) -> OciLayout:
    return OciLayout(tmp_path / "images")


@pytest.fixture
def app_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "serving"
    folder.mkdir()
    (folder / "__init__.py").write_text("x = 1\n")
    return folder


def build(
    layout: OciLayout, app_dir: Path, number: int = 1, *, name: str = "late", size: int = 1000, placement: str = "image"
) -> ImageRef:
    model = app_dir.parent / f"model-{name}-{number}"
    model.mkdir(exist_ok=True)
    (model / "model.json").write_text("{}")
    (model / "weights").write_bytes(os.urandom(size))
    return layout.build(model, app_dir, name=name, number=number, annotations={}, placement=placement)  # type: ignore[arg-type]


def push(
    layout: OciLayout, image: ImageRef, host: str, *, name: str = "late", number: int = 1, access: Access | None = None
) -> Pushed:
    return push_version(
        layout,
        image.digest,
        place=Place(host=host, prefix="team"),
        model=name,
        number=number,
        access=access or Access(host=host),
    )


def skopeo_digest(host: str, name: str, *options: str) -> str:
    """What an independent reader says the digest is."""
    command = [
        need("skopeo"),
        "inspect",
        "--tls-verify=false",
        *options,
        "--format",
        "{{.Digest}}",
        f"docker://{host}/team/{name}",
    ]
    return subprocess.run(command, capture_output=True, check=True, timeout=60, text=True).stdout.strip()


# ---------------------------------------------------------------- the same image everywhere
def test_an_image_has_the_layouts_digest_in_the_registry(
    layout: OciLayout, app_dir: Path, server: RegistryServer, tmp_path: Path
) -> None:
    """By tag and by digest, and all its bytes can be fetched by others; pushed again, nothing is sent but the manifest."""
    image = build(layout, app_dir)
    pushed = push(layout, image, server.host)
    assert pushed.reference == f"{server.host}/team/late@{image.digest}"
    assert skopeo_digest(server.host, "late:v1") == image.digest
    copy = [
        "copy",
        "-q",
        "--src-tls-verify=false",
        "--preserve-digests",
        f"docker://{pushed.reference}",
        f"oci:{tmp_path / 'copy'}:x",
    ]
    subprocess.run([need("skopeo"), *copy], check=True, timeout=60)
    assert OciLayout(tmp_path / "copy").verify(image.digest).layers == image.layers
    assert push(layout, image, server.host).bytes_sent < 5_000


def test_the_next_version_moves_little_more_than_its_model(
    layout: OciLayout, app_dir: Path, server: RegistryServer, proxy: CountingProxy
) -> None:
    """With 20 MB of serving code that stays and a model of 1 MB that changes, the second push sends 1 MB and a few kilobytes."""
    (app_dir / "large.py").write_bytes(os.urandom(MODEL_BYTES))
    push(layout, build(layout, app_dir, 1, name="next", size=1_000_000), proxy.host, name="next")
    assert proxy.sent > MODEL_BYTES
    before = proxy.sent
    second = push(layout, build(layout, app_dir, 2, name="next", size=1_000_000), proxy.host, name="next", number=2)
    assert second.bytes_sent < 1_020_000
    assert proxy.sent - before < 1_030_000


def test_another_model_mounts_what_the_registry_has(
    layout: OciLayout, app_dir: Path, server: RegistryServer, proxy: CountingProxy
) -> None:
    """The serving code of one model is not sent again for another, although each has a repository of its own."""
    (app_dir / "large.py").write_bytes(os.urandom(MODEL_BYTES))
    push(layout, build(layout, app_dir, name="one"), proxy.host, name="one")
    before = proxy.sent
    image = build(layout, app_dir, name="two")
    assert push(layout, image, proxy.host, name="two").bytes_present > MODEL_BYTES
    assert proxy.sent - before < 50_000
    assert skopeo_digest(server.host, "two:v1") == image.digest


# ---------------------------------------------------------------- cuts and crashes
def test_a_cut_connection_goes_on_where_it_was(
    layout: OciLayout, app_dir: Path, server: RegistryServer, proxy: CountingProxy
) -> None:
    """Three cuts in a blob of 60 MB cost at most the chunk under way each, and the image is whole."""
    image = build(layout, app_dir, name="cut", size=60_000_000)
    proxy.cut_after.extend([15_000_000, 12_000_000, 1_000_000])
    push(layout, image, proxy.host, name="cut")
    assert proxy.cut_after == []
    assert proxy.sent < 60_000_000 + 3.5 * pushing.CHUNK_BYTES
    assert skopeo_digest(server.host, "cut:v1") == image.digest


def test_a_push_that_died_anywhere_is_simply_repeated(
    layout: OciLayout, app_dir: Path, server: RegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at the n-th request, for every n: no name without a whole image, and the next push ends it."""
    requests = 0
    for n in range(1, 60):
        image = build(layout, app_dir, n, name="dies")
        left = [n]

        class Dying(RegistryClient):
            def _send(self, method: str, url: str, left: list[int] = left, **rest: object) -> object:
                left[0] -= 1
                if left[0] == 0:
                    raise KeyboardInterrupt
                return super()._send(method, url, **rest)

        try:
            push_version(
                layout, image.digest, place=Place(host=server.host, prefix="team"), model="dies", number=n, access=Access(),
                client=Dying(server.host, Access()),
            )  # fmt: skip
            break
        except KeyboardInterrupt:
            found = RegistryClient(server.host, Access()).get_manifest_bytes(
                "team/dies", f"v{n}", oci.MANIFEST, oci.JSON_MAX
            )
            assert found is None or oci.digest_of(found[0]) == image.digest
            push(layout, image, server.host, name="dies", number=n)
            assert skopeo_digest(server.host, f"dies:v{n}") == image.digest
            requests = n
    assert requests > 8


def test_a_registry_that_is_away_is_asked_again_later(layout: OciLayout, app_dir: Path, tmp_path: Path) -> None:
    """A registry that does not run is trouble that may pass, and the message says which it is."""
    image = build(layout, app_dir)
    with pytest.raises(RegistryAway, match=r"registry 127\.0\.0\.1:1 is not reachable .*is it running"):
        push(layout, image, "127.0.0.1:1")


# ---------------------------------------------------------------- who may
def test_credentials_come_from_a_file_in_three_forms(
    layout: OciLayout, app_dir: Path, guarded: RegistryServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`user:password`, docker's auth and docker's username and password open the registry; none and a wrong one are final, and
    no message shows a secret."""
    image = build(layout, app_dir)
    file = tmp_path / "credentials"
    plain = f"{USER}:{PASSWORD}"
    encoded = base64.b64encode(plain.encode()).decode()
    documents = [{"auth": encoded}, {"username": USER, "password": PASSWORD}]
    for n, text in enumerate([plain, *(json.dumps({"auths": {f"http://{guarded.host}/v2/": d}}) for d in documents)]):
        file.write_text(text + "\n")
        access = Access(credentials=file, host=guarded.host)
        assert push(layout, image, guarded.host, name=f"m{n}", access=access).bytes_sent > 0
        assert skopeo_digest(guarded.host, f"m{n}:v1", "--creds", plain) == image.digest
    with pytest.raises(RegistryDenied, match=r"401.*RATCHET_REGISTRY_CREDENTIALS"):
        push(layout, image, guarded.host)
    for wrong in (
        f"{USER}:not-{PASSWORD}",
        f"not-{PASSWORD}",
        json.dumps({"auths": {"other.example": documents[0]}}),
        "{" + PASSWORD,
    ):
        file.write_text(wrong)
        with pytest.raises(RegistryDenied) as refused:
            push(layout, image, guarded.host, access=Access(credentials=file, host=guarded.host))
        assert PASSWORD not in str(refused.value)
        assert PASSWORD not in repr(refused.value.__cause__)
    assert PASSWORD not in "".join(capfd.readouterr())


def test_plain_http_is_for_this_machine_only() -> None:
    """Another machine is spoken to over TLS, unless the settings say otherwise."""
    assert RegistryClient("registry.example", Access()).origin == "https://registry.example"
    assert RegistryClient("registry.example", Access(plain_http=True)).origin == "http://registry.example"
    assert RegistryClient("localhost:5000", Access()).origin == "http://localhost:5000"


# ---------------------------------------------------------------- attached, placed, withdrawn
def test_what_is_attached_is_found_by_the_fallback_tag(
    layout: OciLayout, app_dir: Path, server: RegistryServer
) -> None:
    """Debian's registry has no referrers API: the list under the image's own tag names each document once, also after a repetition."""
    image = build(layout, app_dir, name="attached")
    digests = [attach(layout, image.digest, f"application/x-{n}+json", b"{}", {"n": str(n)}) for n in range(2)]
    for _ in range(2):
        push(layout, image, server.host, name="attached")
    found = RegistryClient(server.host, Access()).get_manifest_bytes(
        "team/attached", fallback_tag(image.digest), oci.INDEX, oci.JSON_MAX
    )
    assert found is not None
    listed = json.loads(found[0])["manifests"]
    assert [(e["digest"], e["artifactType"]) for e in listed] == [
        (d, f"application/x-{n}+json") for n, d in enumerate(digests)
    ]
    assert layout.annotations(image.digest).get("n") is None
    assert layout.remove(image.digest)
    assert layout.attached(image.digest) == ()


def test_a_model_image_is_pushed_beside_its_image(layout: OciLayout, app_dir: Path, server: RegistryServer) -> None:
    """A version that keeps its model elsewhere names it by digest; the registry has it under the version's name, and as it was."""
    image = build(layout, app_dir, name="apart", placement="volume")
    push(layout, image, server.host, name="apart")
    assert image.model is not None
    assert skopeo_digest(server.host, "apart:v1-model") == image.model.image
    assert skopeo_digest(server.host, "apart:v1") == image.digest


def test_a_withdrawn_version_is_gone_and_others_stay(layout: OciLayout, app_dir: Path, server: RegistryServer) -> None:
    """Deleted with what is attached; again is harmless."""
    first, second = (build(layout, app_dir, n, name="gone") for n in (1, 2))
    attach(layout, first.digest, "application/x+json", b"{}", {})
    push(layout, first, server.host, name="gone")
    push(layout, second, server.host, name="gone", number=2)
    place = Place(host=server.host, prefix="team")
    assert withdraw(place, "gone", first.digest, Access())
    assert not withdraw(place, "gone", first.digest, Access())
    client = RegistryClient(server.host, Access())
    assert client.get_manifest_bytes("team/gone", "v1", oci.MANIFEST, oci.JSON_MAX) is None
    assert client.get_manifest_bytes("team/gone", fallback_tag(first.digest), oci.INDEX, oci.JSON_MAX) is None
    assert skopeo_digest(server.host, "gone:v2") == second.digest


def test_a_spoilt_blob_is_not_pushed(layout: OciLayout, app_dir: Path, server: RegistryServer) -> None:
    """What the disk has changed never gets a name in the registry."""
    image = build(layout, app_dir, name="spoilt")
    path = layout.blobs.path(image.layers[-1].digest)
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(ImageCorrupt, match="its content was changed"):
        push(layout, image, server.host, name="spoilt")
    assert (
        RegistryClient(server.host, Access()).get_manifest_bytes("team/spoilt", "v1", oci.MANIFEST, oci.JSON_MAX)
        is None
    )


def test_tls_is_verified_against_the_named_authority(layout: OciLayout, app_dir: Path, tmp_path: Path) -> None:
    """With the authority's file all goes well; without it the certificate is refused for good, and never left unchecked."""
    image = build(layout, app_dir, name="tls")
    with registry(tmp_path / "tls", tls=True, auth=True) as server:
        secret = tmp_path / "secret"
        secret.write_text(f"{USER}:{PASSWORD}")
        place = Place(host=server.host)
        trusted = Access(ca=server.ca, credentials=secret, host=server.host)
        pushed = push_version(layout, image.digest, place=place, model="tls", number=1, access=trusted)
        assert pushed.bytes_sent > 0
        client = RegistryClient(server.host, trusted)
        assert client.origin == f"https://{server.host}"
        client._tls_verify = True
        with pytest.raises(RegistryDenied, match=r"certificate .* is not trusted; .*RATCHET_REGISTRY_CA"):
            client.get_manifest_bytes("tls", "v1", oci.MANIFEST, oci.JSON_MAX)
    with pytest.raises(RegistryDenied, match="does not exist"):
        RegistryClient("registry.example", Access(ca=tmp_path / "missing.pem"))
