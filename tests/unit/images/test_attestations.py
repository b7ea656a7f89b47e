"""What is said about an image: a bill of materials, where it comes from, and a signature, all of which repeat."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import referencing
from servers.registry import RegistryServer, registry

from deployers import oci
from deployers.images import OciLayout
from deployers.oci import RegistryAway, RegistryDenied
from deployers.package import run
from deployers.referrers import fallback_tag
from deployers.registry.transport import Access, RegistryClient
from deployers.signing import sign
from pipelines.jobs.port import JobContext, PermanentJobError, RetryableJobError

PACKAGE = Path(__file__).resolve().parents[3] / "deployers"


@pytest.fixture
def context(tmp_path: Path) -> JobContext:
    return JobContext(job_id="late-c1-package-1", workdir=tmp_path, report_path=tmp_path / "progress.json")


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Any]:
    model = tmp_path / "trained"
    model.mkdir()
    (model / "model.json").write_text("{}")
    notes = {
        "dev.ratchet.cycle": "4",
        "dev.ratchet.data": f"sha256:{'d' * 64}",
        "dev.ratchet.policy": f"sha256:{'e' * 64}",
        "org.opencontainers.image.revision": "c" * 40,
    }
    return {
        "home": str(tmp_path / "home"),
        "model": "late",
        "number": 2,
        "model_dir": str(model),
        "annotations": notes,
        "base": None,
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with registry(tmp_path_factory.mktemp("attest")) as running:
        yield running


def documents(layout: OciLayout, digest: str) -> dict[str, dict[str, Any]]:
    """What is attached, by media type."""
    found = {}
    for entry in layout.attached(digest):
        content, _, (config, blob) = layout.manifest(entry.digest)
        manifest = json.loads(content)
        assert manifest["subject"]["digest"] == digest
        assert config.media_type == oci.EMPTY
        found[manifest["artifactType"]] = layout.blobs.read_json(blob)
    return found


def schema_errors(document: dict[str, Any]) -> list[str]:
    """Against CycloneDX's own schema, which its library carries."""
    folder = resources.files("cyclonedx.schema") / "_res"
    names = ("bom-1.6.SNAPSHOT.schema.json", "spdx.SNAPSHOT.schema.json", "jsf-0.82.SNAPSHOT.schema.json")
    loaded = [json.loads((folder / name).read_text()) for name in names]
    known = referencing.Registry().with_contents([(s["$id"], s) for s in loaded])
    return [e.message for e in jsonschema.Draft7Validator(loaded[0], registry=known).iter_errors(document)]


def test_the_bill_of_materials_is_valid_and_complete(inputs: dict[str, Any], context: JobContext) -> None:
    """CycloneDX 1.6 by its own schema: the image, its model by digest, the serving code."""
    out = run(inputs, context)
    layout = OciLayout(Path(inputs["home"]) / "images")
    bill = documents(layout, out["digest"])["application/vnd.cyclonedx+json"]
    assert schema_errors(bill) == []
    assert schema_errors(bill | {"components": [{"type": "no such"}]})
    assert bill["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": oci.hex_of(out["digest"])}]
    by_type = {c["type"]: c for c in bill["components"]}
    model = layout.verify(out["digest"]).model
    assert model is not None
    assert by_type["machine-learning-model"]["hashes"][0]["content"] == oci.hex_of(model.layer.digest)
    assert {"name": "ratchet:data", "value": inputs["annotations"]["dev.ratchet.data"]} in by_type[
        "machine-learning-model"
    ]["properties"]
    assert by_type["application"]["name"] == "serving"


def test_provenance_names_what_went_in(inputs: dict[str, Any], context: JobContext) -> None:
    """An in-toto statement about this digest, with SLSA's predicate: policy, code commit, data fingerprint, builder."""
    out = run(inputs, context)
    statement = documents(OciLayout(Path(inputs["home"]) / "images"), out["digest"])["application/vnd.in-toto+json"]
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert statement["subject"] == [{"name": "late:v2", "digest": {"sha256": oci.hex_of(out["digest"])}}]
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"] == {
        "model": "late", "version": "2", "placement": "image", "policy": f"sha256:{'e' * 64}", "cycle": "4",
    }  # fmt: skip
    assert {d["name"]: d["digest"] for d in definition["resolvedDependencies"]} == {
        "training-code": {"gitCommit": "c" * 40}, "training-data": {"sha256": "d" * 64},
    }  # fmt: skip
    assert statement["predicate"]["runDetails"]["builder"]["id"]


@pytest.mark.slow
def test_a_packaged_version_is_pushed_with_all_that_is_said_of_it(
    inputs: dict[str, Any], context: JobContext, server: RegistryServer, tmp_path: Path
) -> None:
    """Builder `registry`: the same digest as in the layout, signed by reference, and what is attached is listed there once, although
    the job ran twice."""
    signed = tmp_path / "signed"
    script = tmp_path / "sign.py"
    script.write_text(f"import sys; open({str(signed)!r}, 'a').write(sys.argv[-1] + '\\n')")
    delivery = {"builder": "registry", "registry": f"{server.host}/team", "sign_command": [sys.executable, str(script)]}
    layout_only = run(inputs, context)
    out = run(inputs | {"delivery": delivery, "placement": "volume"}, context)
    assert run(inputs | {"delivery": delivery}, context)["digest"] == layout_only["digest"] != out["digest"]
    again = run(inputs | {"delivery": delivery, "placement": "volume"}, context)
    assert again["digest"] == out["digest"]
    assert again["bytes_sent"] < out["bytes_sent"]
    assert out["reference"] == f"{server.host}/team/late@{out['digest']}"
    assert signed.read_text().split()[0] == out["reference"]
    client = RegistryClient(server.host, Access())
    found = client.get_manifest_bytes("team/late", fallback_tag(out["digest"]), oci.INDEX, oci.JSON_MAX)
    assert found is not None
    kinds = [m["artifactType"] for m in json.loads(found[0])["manifests"]]
    assert kinds == ["application/vnd.cyclonedx+json", "application/vnd.in-toto+json"]
    assert (Path(out["root"]) / "model" / "model.json").read_text() == "{}"


@pytest.mark.slow
def test_a_registry_that_is_away_is_for_later_and_one_that_refuses_is_not(
    inputs: dict[str, Any], context: JobContext
) -> None:
    """The job's error says which; the image in the layout is whole in any case."""
    delivery = {"builder": "registry", "registry": "127.0.0.1:1"}
    from deployers.registry import push

    push.BACKOFF_S, before = 0.0, push.BACKOFF_S
    try:
        with pytest.raises(RetryableJobError, match="is not reachable"):
            run(inputs | {"delivery": delivery}, context)
        with pytest.raises(PermanentJobError, match="cannot be read"):
            run(inputs | {"delivery": delivery | {"credentials": "/nowhere/secret"}}, context)
    finally:
        push.BACKOFF_S = before
    layout = OciLayout(Path(inputs["home"]) / "images")
    assert layout.verify(layout.list()[0].digest)


# ---------------------------------------------------------------- signing
def test_signing_gets_the_reference_and_no_shell(tmp_path: Path) -> None:
    """The reference is one argument, whatever is in it."""
    out = tmp_path / "out"
    sign(
        [sys.executable, "-c", f"import sys; open({str(out)!r}, 'w').write(repr(sys.argv[1:]))"],
        "r/x@sha256:0; touch /tmp/evil",
        30,
    )
    assert out.read_text() == "['r/x@sha256:0; touch /tmp/evil']"


def test_a_signature_that_fails_is_final_and_one_that_may_pass_is_not(tmp_path: Path) -> None:
    """Status 75 asks for another try, any other does not; one that hangs is killed with its children."""
    with pytest.raises(RegistryDenied, match="status 3: no key"):
        sign([sys.executable, "-c", "import sys; print('no key'); sys.exit(3)"], "r", 30)
    with pytest.raises(RegistryAway, match="status 75"):
        sign([sys.executable, "-c", "import sys; sys.exit(75)"], "r", 30)
    with pytest.raises(RegistryDenied, match="cannot be started"):
        sign([str(tmp_path / "missing")], "r", 30)
    pid = tmp_path / "pid"
    hang = f"import os, subprocess, sys; c = subprocess.Popen(['sleep', '60']); open({str(pid)!r}, 'w').write(str(c.pid)); c.wait()"
    began = time.monotonic()
    with pytest.raises(RegistryAway, match="took longer than 1 s"):
        sign([sys.executable, "-c", hang], "r", 1)
    assert time.monotonic() - began < 30
    deadline = time.monotonic() + 10
    while (state := _state(pid.read_text())) not in ("", "Z") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert state in ("", "Z")


def _state(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""
