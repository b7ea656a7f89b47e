"""A version in the registry: its image, its model's image, what is attached to both, and last of all its name.

What is under a name is therefore whole. Versions can be withdrawn again, if the settings say so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deployers import oci
from deployers.documents import BASE_HOME, MODEL_IMAGE
from deployers.images import OciLayout
from deployers.oci import Descriptor, ImageCorrupt, ImageNotFound, RegistryDenied
from deployers.referrers import fallback_tag, merged_index
from deployers.registry.names import Place
from deployers.registry.push import Pusher
from deployers.registry.transport import Access, RegistryClient

SOURCES_MAX = 4
"""Repositories that are asked for a blob before it is sent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pushed:
    """What a push did."""

    reference: str
    """`host/repository@sha256:…`: what to give to others."""
    tag: str
    bytes_sent: int
    """Of blobs and manifests; without HTTP's own."""
    bytes_present: int
    """Of blobs that the registry had, in this repository or another."""


def push_version(
    layout: OciLayout,
    digest: str,
    *,
    place: Place,
    model: str,
    number: int,
    access: Access,
    progress: Callable[[str], None] = lambda text: None,
    client: RegistryClient | None = None,
) -> Pushed:
    """Push an image of the layout as `<place>/<model>:v<number>`, same digest. May be repeated.

    Raises ImageNotFound, ImageCorrupt, RegistryAway, RegistryDenied."""
    repository, tag = place.repository(model), f"v{number}"
    client = client or RegistryClient(place.host, access)
    pusher = Pusher(client=client, repository=repository, layout=layout, sources=_sources(layout, place, repository))
    model_image = layout.annotations(digest).get(MODEL_IMAGE)
    if model_image is not None:
        progress("pushing the model image")
        pusher.manifest(model_image, f"{tag}-model")
    progress("pushing the image")
    pusher.manifest(digest)
    progress("pushing what is attached to it")
    attach(pusher, digest, layout.attached(digest))
    content, media_type, _ = layout.manifest(digest)
    pusher.put(content, media_type, tag)
    pusher.check(tag, digest, media_type)
    return Pushed(
        reference=f"{place.host}/{repository}@{digest}", tag=tag, bytes_sent=pusher.sent, bytes_present=pusher.present
    )


def _sources(layout: OciLayout, place: Place, repository: str) -> Callable[[str], Sequence[str]]:
    """Where in the registry a blob may be already: other models' repositories, and where base images came from."""
    holders: dict[str, list[str]] = {}
    for entry in layout.list():
        home = entry.annotations.get(BASE_HOME, "")
        title = entry.annotations.get(oci.TITLE, "")
        if home.startswith(f"{place.host}/"):
            name = home.removeprefix(f"{place.host}/")
        elif title:
            name = place.repository(title)
        else:
            continue
        if name != repository:
            try:
                _, _, blobs = layout.manifest(entry.digest)
            except (ImageNotFound, ImageCorrupt):
                continue
            for blob in blobs:
                known = holders.setdefault(blob.digest, [])
                if name not in known:
                    known.append(name)
    return lambda digest: holders.get(digest, [])[:SOURCES_MAX]


# ---------------------------------------------------------------- what is attached
def attach(pusher: Pusher, image: str, entries: Sequence[Descriptor]) -> None:
    """Push what is attached to an image; where the registry has no referrers API, list it under the fallback tag."""
    unlisted = [listed for entry in entries if (listed := _attach(pusher, image, entry)) is not None]
    if not unlisted:
        return
    tag = fallback_tag(image)
    found = pusher.client.get_manifest_bytes(pusher.repository, tag, oci.INDEX, oci.JSON_MAX)
    known = _listed(found[0], tag) if found is not None else []
    index = oci.canonical_json(merged_index(known, unlisted))
    if found is None or found[0] != index:
        pusher.put(index, oci.INDEX, tag)


def _attach(pusher: Pusher, image: str, entry: Descriptor) -> dict[str, object] | None:
    """Push one document; its entry for the list, if the registry does not keep that itself."""
    content, media_type, blobs = pusher.layout.manifest(entry.digest)
    for blob in blobs:
        pusher.blob(blob)
    answer = pusher.put(content, media_type, entry.digest)
    pusher.check(entry.digest, entry.digest, media_type)
    if answer.headers.get("OCI-Subject") == image:
        return None
    value = json.loads(content)
    return {
        "mediaType": media_type, "digest": entry.digest, "size": len(content), "artifactType": value["artifactType"],
        "annotations": value.get("annotations") or {},
    }  # fmt: skip


def _listed(content: bytes, tag: str) -> list[dict[str, object]]:
    """Entries of the fallback list. Raises ImageCorrupt: what others attached is not overwritten."""
    entries = oci.parse_object(content, f"the list {tag}").get("manifests")
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise ImageCorrupt(f"the list of what is attached, tag {tag}, is not an image index; delete the tag")
    return entries


# ---------------------------------------------------------------- withdrawing
def withdraw(place: Place, model: str, digest: str, access: Access, model_image: str | None = None) -> bool:
    """Delete an image, its list of what is attached, and its model image, from the registry. False if it was not there.

    The registry frees the space at its own garbage collection. Raises RegistryAway; RegistryDenied, if it may not or cannot delete."""
    client = RegistryClient(place.host, access)
    repository = place.repository(model)
    gone = [_delete(client, repository, name) for name in _condemned(client, repository, digest, model_image)]
    return any(gone)


def _condemned(client: RegistryClient, repository: str, digest: str, model_image: str | None) -> list[str]:
    """Digests to delete, the image itself last: while it is there, a repetition knows what is left to do."""
    tag = fallback_tag(digest)
    found = client.get_manifest_bytes(repository, tag, oci.INDEX, oci.JSON_MAX)
    attached = [str(e.get("digest")) for e in _listed(found[0], tag)] if found is not None else []
    listed = [oci.digest_of(found[0])] if found is not None else []
    return [*map(oci.check_digest, attached), *listed, *([model_image] if model_image else []), digest]


def _delete(client: RegistryClient, repository: str, digest: str) -> bool:
    answer = client.do_request(client.url(repository, "manifests", digest), "DELETE")
    if answer.status_code == 404:
        return False
    if answer.status_code == 405:
        raise RegistryDenied(
            f"registry {client.host} does not delete; allow it there (docker-registry: storage.delete.enabled), or set "
            "RATCHET_REGISTRY_DELETE=false"
        )
    client.expect(answer, "DELETE", 200, 202, 204)
    return True
