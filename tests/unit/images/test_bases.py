"""Base images from a registry: resolved once, fetched once, and refused when they are not what they say."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from servers import need
from servers.registry import RegistryServer, counting_proxy, registry

from deployers import oci
from deployers.documents import this_architecture
from deployers.images import OciLayout
from deployers.oci import ImageCorrupt, ImageError, ImageNotFound, ImageRefused, RegistryAway, RegistryDenied
from deployers.registry.bases import BaseLimits, take_base
from deployers.registry.names import Reference, parse_place, parse_reference
from deployers.registry.transport import Access, RegistryClient


def sha(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


# ---------------------------------------------------------------- a registry that says whatever it is told
@dataclass
class Liar:
    """Answers of a registry: path → (status, headers, body)."""

    port: int = 0
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """(path, Authorization) of each request."""

    challenge: str = ""
    cut: set[str] = field(default_factory=set)
    """Paths whose answers end before their length."""
    tokens: set[str] = field(default_factory=set)
    """If there are any, the registry wants one of these, and answers 401 with the challenge."""

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def blob(self, content: bytes, name: str = "") -> str:
        self.answers[f"/v2/base/blobs/{name or sha(content)}"] = (200, {}, content)
        return name or sha(content)

    def manifest(self, value: Any, kind: str = oci.MANIFEST, name: str = "") -> str:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        for key in (sha(content), name):
            self.answers[f"/v2/base/manifests/{key}"] = (200, {"Content-Type": kind}, content)
        return sha(content)

    def image(self, layer: bytes = b"", *, architecture: str = "", **changes: Any) -> str:
        """A sound image of one gzip layer, with `changes` of its manifest; tagged `x`."""
        packed = gzip.compress(layer, mtime=0)
        config = {
            "os": "linux",
            "architecture": architecture or this_architecture(),
            "config": {},
            "rootfs": {"diff_ids": [sha(layer)]},
        }
        content = json.dumps(config).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": oci.MANIFEST,
            "config": {"mediaType": oci.CONFIG, "digest": self.blob(content), "size": len(content)},
            "layers": [{"mediaType": oci.LAYER + "+gzip", "digest": self.blob(packed), "size": len(packed)}],
        }
        return self.manifest({k: v for k, v in (manifest | changes).items() if v is not None}, name="x")


@pytest.fixture
def liar() -> Iterator[Liar]:
    told = Liar()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            told.asked.append((self.path, self.headers.get("Authorization")))
            status, headers, body = told.answers.get(self.path, (404, {}, b"{}"))
            if told.tokens and self.path.startswith("/v2/") and self.headers.get("Authorization") not in told.tokens:
                status, headers, body = 401, {"Www-Authenticate": told.challenge}, b"{}"
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body) + (self.path in told.cut)))
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = self.path in told.cut

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield told
    server.shutdown()
    server.server_close()


@pytest.fixture
def layout(tmp_path: Path) -> OciLayout:
    return OciLayout(tmp_path / "images")


def take(liar: Liar, layout: OciLayout, limits: BaseLimits | None = None, access: Access | None = None) -> str:
    reference = Reference(host=liar.host, repository="base", tag="x")
    return take_base(
        reference, RegistryClient(liar.host, access or Access()), layout, layout.root.parent / "bases", limits
    )


def test_a_tag_is_resolved_once(liar: Liar, layout: OciLayout) -> None:
    """What a tag meant first it means for good, although the registry moves it; and what was fetched is not fetched again."""
    first = liar.image(b"one")
    assert take(liar, layout) == first
    liar.image(b"two")
    asked = len(liar.asked)
    assert take(liar, layout) == first
    assert len(liar.asked) == asked
    for note in (layout.root.parent / "bases").iterdir():
        note.unlink()
    assert take(liar, layout) != first


def test_a_connection_that_is_lost_within_a_blob_is_for_later(liar: Liar, layout: OciLayout) -> None:
    """It is no error of ours, and nothing half is kept."""
    liar.image(b"one")
    path = next(path for path in liar.answers if "/blobs/" in path)
    liar.cut.add(path)
    with pytest.raises(RegistryAway):
        take(liar, layout)
    liar.cut.clear()
    take(liar, layout)


def test_an_error_that_breaks_off_is_still_a_refusal(liar: Liar, layout: OciLayout) -> None:
    """Of what was to be said the status remains."""
    liar.image(b"one")
    path = next(path for path in liar.answers if "/blobs/" in path)
    liar.answers[path] = (403, {}, b'{"errors": []}')
    liar.cut.add(path)
    with pytest.raises(RegistryDenied, match="answered 403"):
        take(liar, layout)


def test_an_answer_that_only_its_status_is_read_of_is_bounded(liar: Liar) -> None:
    """A registry may say as much as it likes to a DELETE or PUT."""
    liar.answers["/v2/base/manifests/x"] = (200, {}, b"x" * (8 << 20))
    client = RegistryClient(liar.host, Access())
    with pytest.raises(ImageCorrupt, match="more than"):
        client.do_request(client.url("base", "manifests", "x"))


@pytest.mark.parametrize("how", ["realm", "redirect"])
def test_an_address_that_is_none_is_a_refusal(liar: Liar, layout: OciLayout, how: str) -> None:
    """Else it would end whoever asked, such as the daemon's housekeeping."""
    liar.image(b"one")
    if how == "realm":
        liar.tokens, liar.challenge = {"Bearer x"}, 'Bearer realm="https://[::1/token",service="s"'
    else:
        path = next(path for path in liar.answers if "/blobs/" in path)
        liar.answers[path] = (307, {"Location": "https://[::1/blob"}, b"")
    with pytest.raises(RegistryDenied, match="no address"):
        take(liar, layout)


def test_only_what_is_missing_is_fetched(liar: Liar, layout: OciLayout) -> None:
    """A fetch that died in the middle, or another image with the same layer, does not fetch the layer again."""
    liar.image(b"")
    take(liar, layout)
    liar.image(b"", history=None, annotations={"n": "2"})
    for note in (layout.root.parent / "bases").iterdir():
        note.unlink()
    before = len(liar.asked)
    take(liar, layout)
    assert not [path for path, _ in liar.asked[before:] if "/blobs/" in path]


def entry(**changes: Any) -> dict[str, Any]:
    return {"mediaType": oci.LAYER + "+gzip", "digest": sha(b"q"), "size": 1} | changes


@pytest.mark.parametrize(
    ("changes", "refusal", "said"),
    [
        ({"layers": [entry(urls=["http://other.example/x"])]}, ImageCorrupt, "no urls"),
        (
            {"layers": [entry(mediaType="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")]},
            ImageRefused,
            "a layer is",
        ),
        ({"layers": [entry(digest="sha256:../../etc/passwd")]}, ImageCorrupt, "is not a descriptor"),
        ({"layers": [entry(size=-1)]}, ImageCorrupt, "-1 bytes"),
        ({"layers": [entry(size=1 << 60)]}, ImageRefused, "the limit is"),
        ({"layers": [entry()] * 128}, ImageRefused, "1 to 127 layers"),
        ({"layers": []}, ImageRefused, "1 to 127 layers"),
        ({"layers": "x"}, ImageRefused, "1 to 127 layers"),
        ({"manifests": []}, ImageRefused, "its fields do not settle it"),
        ({"mediaType": oci.INDEX}, ImageRefused, "the registry calls it"),
        ({"schemaVersion": 1}, ImageRefused, "schema version 2"),
        (
            {"config": {"mediaType": "application/vnd.example", "digest": sha(b""), "size": 0}},
            ImageRefused,
            "it is no image",
        ),
        ({"config": None}, ImageRefused, "its fields do not settle it"),
    ],
)
def test_a_hostile_manifest_is_refused(
    liar: Liar, layout: OciLayout, changes: dict[str, Any], refusal: type[ImageError], said: str
) -> None:
    """Layers kept elsewhere, kinds that contradict each other, sizes and digests that cannot be: refused with what is wrong."""
    liar.image(b"x", **changes)
    with pytest.raises(refusal, match=said):
        take(liar, layout)
    assert layout.list() == ()


def test_other_architectures_are_refused(liar: Liar, layout: OciLayout) -> None:
    """An image for another machine, also if an index calls it one for this machine."""
    digest = liar.image(b"x", architecture="s390x")
    with pytest.raises(ImageRefused, match="is for linux/s390x"):
        take(liar, layout)
    platform = {"os": "linux", "architecture": this_architecture()}
    one = {"mediaType": oci.MANIFEST, "digest": digest, "size": 1, "platform": platform}
    for path in (layout.root.parent / "bases").iterdir():
        path.unlink()
    liar.manifest({"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": [one]}, oci.INDEX, "x")
    with pytest.raises(ImageRefused, match="is for linux/s390x"):
        take(liar, layout)


def test_an_index_is_followed_once_and_is_bounded(liar: Liar, layout: OciLayout) -> None:
    """The image for this machine is taken from an index; an index in an index and one of a thousand images are refused."""
    good = liar.image(b"x")
    platform = {"os": "linux", "architecture": this_architecture()}

    def index(*digests: str) -> str:
        listed = [{"mediaType": oci.MANIFEST, "digest": d, "size": 1, "platform": platform} for d in digests]
        return liar.manifest({"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": listed}, oci.INDEX, "x")

    outer = index(good)
    assert take(liar, layout) == good
    asked = len(liar.asked)
    assert take(liar, layout) == good
    assert len(liar.asked) == asked
    for digests, said in (([outer], "an index inside of an index"), ([good] * 300, "at most 256")):
        for note in (layout.root.parent / "bases").iterdir():
            note.unlink()
        index(*digests)
        with pytest.raises(ImageRefused, match=said):
            take(liar, layout)


def test_content_that_is_not_its_digest_is_refused(liar: Liar, layout: OciLayout) -> None:
    """Another layer, a longer one, and a manifest under a wrong digest: nothing of it stays."""
    liar.image(b"x")
    path = next(p for p in liar.answers if "/blobs/" in p and liar.answers[p][2][:2] == b"\x1f\x8b")
    good = liar.answers[path]
    for bad in (b"z" * len(good[2]), good[2] + b"more"):
        liar.answers[path] = (200, {}, bad)
        with pytest.raises(ImageCorrupt):
            take(liar, layout)
    assert layout.list() == ()
    reference = Reference(host=liar.host, repository="base", digest=sha(b"other"))
    liar.answers[f"/v2/base/manifests/{sha(b'other')}"] = (200, {"Content-Type": oci.MANIFEST}, b"{}")
    with pytest.raises(ImageCorrupt, match="the registry sent"):
        take_base(reference, RegistryClient(liar.host, Access()), layout, layout.root.parent / "bases")


def test_a_bomb_is_refused(liar: Liar, layout: OciLayout) -> None:
    """A small layer that decompresses to more than the limit, and one whose content is not the promised."""
    liar.image(b"\0" * 50_000_000)
    with pytest.raises(ImageRefused, match="decompresses to more than 1000000 bytes"):
        take(liar, layout, BaseLimits(unpacked_bytes_max=1_000_000))
    content = b'{"os":"linux","architecture":"%s","rootfs":{"diff_ids":["%s"]}}' % (
        this_architecture().encode(),
        sha(b"promise").encode(),
    )
    liar.image(b"other", config={"mediaType": oci.CONFIG, "digest": liar.blob(content), "size": len(content)})
    for note in (layout.root.parent / "bases").iterdir():
        note.unlink()
    with pytest.raises(ImageCorrupt, match="its config promises"):
        take(liar, layout)


def test_a_huge_manifest_is_not_read(liar: Liar, layout: OciLayout) -> None:
    """No more than 4 MiB are taken of what should be a manifest."""
    liar.manifest(b" " * (oci.JSON_MAX + 2), name="x")
    with pytest.raises(ImageCorrupt, match="more than 4194304 bytes"):
        take(liar, layout)


def test_credentials_go_nowhere_else(liar: Liar, layout: OciLayout, tmp_path: Path) -> None:
    """A registry that redirects, or names a token service without TLS, learns nothing and leads nowhere."""
    secret = tmp_path / "secret"
    secret.write_text("robot:hunter2")
    access = Access(credentials=secret, host=liar.host)
    for location in ("http://127.0.0.1:9/x", "file:///etc/passwd", "http://169.254.169.254/latest"):
        liar.answers["/v2/base/manifests/x"] = (307, {"Location": location}, b"")
        with pytest.raises(ImageError):
            take(liar, layout, access=access)
    liar.answers["/v2/base/manifests/x"] = (
        401,
        {"Www-Authenticate": 'Bearer realm="http://other.example/token",service="s"'},
        b"{}",
    )
    with pytest.raises(RegistryDenied, match="token service without TLS"):
        take(liar, layout, access=access)
    echo = json.dumps(
        {"errors": [{"code": "DENIED", "message": "not robot:hunter2 Basic cm9ib3Q6aHVudGVyMg=="}]}
    ).encode()
    liar.answers["/v2/base/manifests/x"] = (401, {"Www-Authenticate": 'Basic realm="r"'}, echo)
    with pytest.raises(RegistryDenied) as refused:
        take(liar, layout, access=access)
    assert "hunter2" not in str(refused.value)
    assert "cm9ib3Q6aHVudGVyMg" not in str(refused.value)
    assert liar.asked[-1][1] == "Basic cm9ib3Q6aHVudGVyMg=="
    assert [seen for _, seen in liar.asked[:3]] == [None, None, None]


@pytest.mark.parametrize("ours", ["", "registry.example"])
def test_a_password_that_names_no_host_goes_to_our_registry_alone(
    liar: Liar, layout: OciLayout, tmp_path: Path, ours: str
) -> None:
    """A policy may name any registry for its base; that one is told only what docker's configuration says is for it."""
    liar.image(b"x")
    liar.tokens, liar.challenge = {"Basic cm9ib3Q6aHVudGVyMg=="}, 'Basic realm="r"'
    secret = tmp_path / "secret"
    secret.write_text("robot:hunter2")
    with pytest.raises(RegistryDenied, match="it wants to know who asks"):
        take(liar, layout, access=Access(credentials=secret, host=ours))
    assert {seen for _, seen in liar.asked} == {None}
    secret.write_text(json.dumps({"auths": {liar.host: {"username": "robot", "password": "hunter2"}}}))
    assert take(liar, layout, access=Access(credentials=secret, host=ours))


def test_a_token_service_is_asked_with_the_password_and_the_registry_with_the_token(
    liar: Liar, layout: OciLayout, tmp_path: Path
) -> None:
    """As larger registries do it: the password goes to the service that the registry names, and its token to the registry."""
    digest = liar.image(b"x")
    secret = tmp_path / "secret"
    secret.write_text("robot:hunter2")
    challenge = f'Bearer realm="http://{liar.host}/token",service="r",scope="repository:base:pull"'
    liar.tokens = {"Bearer t0ken"}
    liar.challenge = challenge
    liar.answers["/token?service=r&scope=repository%3Abase%3Apull"] = (200, {}, b'{"token":"t0ken"}')
    assert take(liar, layout, access=Access(credentials=secret, host=liar.host)) == digest
    assert {seen for path, seen in liar.asked if path.startswith("/token")} == {"Basic cm9ib3Q6aHVudGVyMg=="}
    assert {seen for path, seen in liar.asked if path.startswith("/v2/")} == {None, "Bearer t0ken"}
    liar.answers["/token?service=r&scope=repository%3Abase%3Apull"] = (200, {}, b'["no token"]')
    with pytest.raises(RegistryDenied, match="gave no token"):
        RegistryClient(liar.host, Access(credentials=secret, host=liar.host)).has_blob("base", digest)


@pytest.mark.parametrize(("status", "said"), [(403, "quota"), (412, "quota"), (413, "quota")])
def test_a_quota_is_final_and_told_in_the_registrys_words(
    liar: Liar, layout: OciLayout, status: int, said: str
) -> None:
    """Trying again would not help until somebody makes room."""
    body = json.dumps(
        {"errors": [{"code": "DENIED", "message": "adding 1 GB exceeds the quota\x1b[31m of 2 GB"}]}
    ).encode()
    liar.answers["/v2/base/manifests/x"] = (status, {}, body)
    with pytest.raises(
        RegistryDenied, match=rf"answered {status} to GET: DENIED adding 1 GB exceeds the {said} ?\[31m of 2 GB"
    ):
        take(liar, layout)


def test_trouble_that_may_pass_is_told_from_refusal(liar: Liar, layout: OciLayout) -> None:
    """503 and 429 are tried again; what is not there is not."""
    for status in (500, 503, 429):
        liar.answers["/v2/base/manifests/x"] = (status, {}, b"oh")
        with pytest.raises(RegistryAway, match=f"answered {status}"):
            take(liar, layout)
    del liar.answers["/v2/base/manifests/x"]
    with pytest.raises(ImageNotFound, match="the registry has no such image"):
        take(liar, layout)


# ---------------------------------------------------------------- names
@pytest.mark.parametrize(
    "text",
    [
        "https://registry.example",
        "Registry.Example",
        "registry",
        "user@registry.example",
        "registry.example/",
        "r.example/../x",
        "r.example/A",
    ],
)
def test_bad_registries_are_refused(text: str) -> None:
    """A registry is a host and a prefix, nothing that could lead elsewhere."""
    with pytest.raises(ImageRefused, match="a registry is named"):
        parse_place(text)


def test_a_name_without_tag_is_refused() -> None:
    """`latest` is what nobody means."""
    with pytest.raises(ImageRefused, match="neither tag nor digest"):
        parse_reference("registry.example/python")


# ---------------------------------------------------------------- the real thing
@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with registry(tmp_path_factory.mktemp("bases")) as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["oci", "v2s2"])
def test_a_base_in_a_registry_carries_our_layers(
    server: RegistryServer, tmp_path: Path, layout: OciLayout, kind: str
) -> None:
    """An image of docker's kind or of OCI's, pushed by another tool, becomes a base; skopeo can read and copy what stands on it."""
    model, app = tmp_path / "model", tmp_path / "serving"
    for folder in (model, app):
        folder.mkdir()
        (folder / "model.json").write_text("{}")
    other = OciLayout(tmp_path / "other")
    other.build(model, app, name="python", number=3, annotations={})
    skopeo = need("skopeo")
    there = f"docker://{server.host}/base/python-{kind}:3"
    copy = [skopeo, "copy", "-q", "--dest-tls-verify=false", "--format", kind, "--dest-compress-format", "gzip"]
    subprocess.run([*copy, f"oci:{other.root}:python:v3", there], check=True, timeout=60)
    reference = parse_reference(there.removeprefix("docker://"))
    assert reference is not None
    with counting_proxy(server.port):
        digest = take_base(reference, RegistryClient(server.host, Access()), layout, tmp_path / "bases")
    image = layout.build(model, app, name="late", number=1, annotations={}, base=digest)
    assert layout.annotations(image.digest)[oci.BASE_DIGEST] == digest
    assert len(image.layers) == 4
    assert {d.media_type for d in image.layers} <= {oci.LAYER, oci.LAYER + "+gzip"}
    shown = subprocess.run(
        [skopeo, "inspect", f"oci:{layout.root}:late:v1"], capture_output=True, check=True, timeout=60
    )
    assert json.loads(shown.stdout)["Digest"] == image.digest
    assert layout.gc() >= 0
    assert layout.verify(image.digest) == image
