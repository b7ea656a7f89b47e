"""The bill of materials of an image (CycloneDX 1.6): what it is made of, as far as that is known. The same image, the same bytes."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime

from deployers import oci
from deployers.lockfile import Pin

MEDIA_TYPE = "application/vnd.cyclonedx+json"
_NAMESPACE = uuid.UUID("5b0c1a5e-9f0e-5e5c-8a53-3d7f6a2c9a01")
"""Of serial numbers: UUIDs that follow from an image's digest."""


def bill_of_materials(
    *,
    digest: str,
    annotations: Mapping[str, str],
    pins: Sequence[Pin],
    base: tuple[str, str] | None,
    model_layer: str,
    app_layer: str,
) -> bytes:
    """The document. `pins`: packages of the requirements layer; `base`: name and digest; `*_layer`: digests.

    Of the packages inside of a base nothing is known but the base's own digest: its maker's bill of materials says more."""
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    def component(
        kind: ComponentType, name: str, version: str, ref: str, sha256: str = "", purl: object = None
    ) -> Component:
        hashes = [HashType(alg=HashAlgorithm.SHA_256, content=sha256)] if sha256 else []
        return Component(type=kind, name=name, version=version, bom_ref=ref, hashes=hashes, purl=purl)  # type: ignore[arg-type]

    name, version = annotations[oci.TITLE], annotations[oci.VERSION]
    image = component(ComponentType.CONTAINER, name, version, digest, oci.hex_of(digest))
    model = component(
        ComponentType.MACHINE_LEARNING_MODEL, name, version, f"model:{model_layer}", oci.hex_of(model_layer)
    )
    for key in ("dev.ratchet.component", "dev.ratchet.data", "dev.ratchet.trained-to", "dev.ratchet.policy"):
        if annotations.get(key):
            model.properties.add(Property(name=key.replace("dev.ratchet.", "ratchet:"), value=annotations[key]))
    code = component(
        ComponentType.APPLICATION, "serving", annotations.get("org.opencontainers.image.revision", ""), f"serving:{app_layer}",
        oci.hex_of(app_layer),
    )  # fmt: skip
    parts = [model, code]
    if base is not None:
        parts.append(component(ComponentType.CONTAINER, base[0], base[1], f"base:{base[1]}", oci.hex_of(base[1])))
    for pin in pins:
        purl = PackageURL(type="pypi", name=pin.name, version=pin.version)
        parts.append(component(ComponentType.LIBRARY, pin.name, pin.version, purl.to_string(), purl=purl))
    bom = Bom(
        serial_number=uuid.uuid5(_NAMESPACE, digest),
        metadata=BomMetaData(component=image, timestamp=datetime.fromisoformat(_created(annotations))),
        components=parts,
    )
    bom.register_dependency(image, parts)
    text: str = JsonV1Dot6(bom).output_as_string()
    return oci.canonical_json(oci.parse_object(text.encode(), "the bill of materials"))


def _created(annotations: Mapping[str, str]) -> str:
    return annotations.get(oci.CREATED, "1970-01-01T00:00:00Z")
