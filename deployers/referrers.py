"""What is attached to an image without changing its digest: documents in manifests of their own, whose `subject` is the image's manifest.

As the image-spec 1.1 has it ("referrers"). In the layout they stand in the index beside the images, under an annotation that names their
image, and go when it goes.
"""

from __future__ import annotations

from deployers import oci
from deployers.documents import SUBJECT, manifest_of
from deployers.images import OciLayout
from deployers.oci import Descriptor

ARTIFACT = "dev.ratchet.artifact"
"""Annotation, in the layout's index: what kind of document it is."""


def attach(layout: OciLayout, image: str, media_type: str, document: bytes, annotations: dict[str, str]) -> str:
    """Attach a document to an image of the layout; the digest of its manifest. The same again changes nothing.

    Raises ImageNotFound, ImageStoreError."""
    subject = layout.entry(image)
    with layout.writing():
        config = layout.blobs.write_json(oci.EMPTY, {})
        blob = layout.blobs.write_small(media_type, document)
        manifest = manifest_of(
            config, [blob], annotations, artifactType=media_type,
            subject={"mediaType": subject.media_type, "digest": subject.digest, "size": subject.size},
        )  # fmt: skip
        written = layout.blobs.write_json(oci.MANIFEST, manifest)
        notes = tuple(sorted({SUBJECT: image, ARTIFACT: media_type}.items()))
        layout.add(Descriptor(media_type=oci.MANIFEST, digest=written.digest, size=written.size, annotations=notes))
    return written.digest


def fallback_tag(image: str) -> str:
    """The tag under which registries without a referrers API keep the list of what is attached (distribution-spec 1.1).

    >>> fallback_tag("sha256:" + "0" * 64)[:14]
    'sha256-0000000'
    """
    return f"sha256-{oci.hex_of(image)}"


def merged_index(known: list[dict[str, object]], mine: list[dict[str, object]]) -> dict[str, object]:
    """The list of what is attached, with mine in it once; what others attached stays."""
    digests = {entry["digest"] for entry in mine}
    kept = [entry for entry in known if entry.get("digest") not in digests]
    return {"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": [*kept, *mine]}
