"""Where an image comes from: an in-toto statement (v1) with SLSA's provenance (v1) as its predicate. Pure; no clock, so that it repeats.

It is a claim, not a proof: signing (`deployers.signing`) is what makes it one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deployers import oci

MEDIA_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://ratchet.dev/build/package/v1"
BUILDER = "https://ratchet.dev/builder"


def provenance(
    *,
    digest: str,
    annotations: Mapping[str, str],
    base: tuple[str, str] | None,
    requirements: str | None,
    placement: str,
    release: str,
    invocation: str,
) -> bytes:
    """The statement. `base`: name and digest; `requirements`: digest of the lock; `release`: Ratchet's; `invocation`: what asked for it.

    What is not known is left out: no field says more than is so."""
    name, number = annotations[oci.TITLE], annotations[oci.VERSION]
    depends: list[dict[str, Any]] = []
    if base is not None:
        depends.append({"name": "base-image", "uri": f"oci:{base[0]}", "digest": _digests(base[1])})
    if requirements is not None:
        depends.append({"name": "requirements", "digest": _digests(requirements)})
    revision = annotations.get("org.opencontainers.image.revision", "")
    if revision:
        depends.append({"name": "training-code", "digest": _digests(revision)})
    fingerprint = annotations.get("dev.ratchet.data", "")
    if fingerprint:
        depends.append({"name": "training-data", "digest": _digests(fingerprint)})
    parameters = {
        "model": name, "version": number, "placement": placement,
        "policy": annotations.get("dev.ratchet.policy"), "cycle": annotations.get("dev.ratchet.cycle"),
    }  # fmt: skip
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": f"{name}:v{number}", "digest": {"sha256": oci.hex_of(digest)}}],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {k: v for k, v in parameters.items() if v},
                "internalParameters": {},
                "resolvedDependencies": depends,
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"ratchetd": release}},
                "metadata": {"invocationId": invocation},
            },
        },
    }
    return oci.canonical_json(statement)


def _digests(text: str) -> dict[str, str]:
    """A digest as in-toto writes it: by algorithm. What is no digest of a known kind keeps its name.

    >>> _digests("sha256:" + "ab" * 32)["sha256"][:4], _digests("0123456789" * 4), _digests("rows-7")
    ('abab', {'gitCommit': '0123456789012345678901234567890123456789'}, {'ratchet': 'rows-7'})
    """
    kind, found, rest = text.partition(":")
    if found and kind in ("sha256", "sha512") and rest:
        return {kind: rest}
    if len(text) in (40, 64) and all(c in "0123456789abcdef" for c in text):
        return {"gitCommit" if len(text) == 40 else "sha256": text}
    return {"ratchet": text}
