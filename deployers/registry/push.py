"""Pushing an image of the layout: what the registry has is not sent, what it has elsewhere is mounted, and the name comes last.

The manifest is sent byte for byte as it stands in the layout, so that the image has the same digest wherever it is. A crash leaves blobs
and perhaps a manifest without a name in the registry; pushing again finds them there and goes on.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import oras.utils
import requests

from deployers import oci
from deployers.images import OciLayout
from deployers.oci import Descriptor, ImageCorrupt, ImageNotFound, RegistryAway, RegistryDenied
from deployers.registry.transport import RegistryClient

CHUNK_BYTES = 8 << 20
"""A blob is sent in requests of so many bytes; after a cut it goes on with the first that did not arrive."""
TRIES = 5
BACKOFF_S = 0.5
"""Before the second try; doubled each time."""
_DIGEST_HEADER = "Docker-Content-Digest"
_OCTETS = {"Content-Type": "application/octet-stream"}
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")


T = TypeVar("T")


class How(StrEnum):
    """How a blob came to be in the repository."""

    PRESENT = "present"
    MOUNTED = "mounted"
    SENT = "sent"


@dataclass(slots=True)
class Pusher:
    """One repository to push to."""

    client: RegistryClient
    repository: str
    layout: OciLayout
    sources: Callable[[str], Sequence[str]] = lambda digest: ()
    """Other repositories of the registry that may hold a blob."""
    sent: int = 0
    """Bytes of blobs and manifests, without HTTP's own."""
    present: int = 0
    """Bytes of blobs that the registry had, in this repository or another."""

    # ------------------------------------------------------------ manifests
    def manifest(self, digest: str, tag: str | None = None) -> None:
        """Push a manifest of the layout with its config and layers; then give it the tag. Verified afterwards.

        Raises ImageNotFound, ImageCorrupt (the layout, or what the registry made of it), RegistryAway, RegistryDenied."""
        content, media_type, blobs = self.layout.manifest(digest)
        for blob in blobs:
            self.blob(blob)
        self.put(content, media_type, digest)
        if tag is not None:
            self.put(content, media_type, tag)
            self.check(tag, digest, media_type)
        self.check(digest, digest, media_type)

    def put(self, content: bytes, media_type: str, name: str) -> requests.Response:
        """PUT a manifest under a tag or its digest."""
        url = self.client.url(self.repository, "manifests", name)
        answer = self._again(
            lambda: self.client.do_request(url, "PUT", data=content, headers={"Content-Type": media_type})
        )
        self.client.expect(answer, "PUT", 200, 201, 202)
        told = answer.headers.get(_DIGEST_HEADER, "")
        if told and told != oci.digest_of(content):
            raise ImageCorrupt(
                f"registry {self.client.host} stored {self.repository}:{name} as {told[:80]}, not as it was sent"
            )
        self.sent += len(content)
        return answer

    def check(self, name: str, digest: str, media_type: str) -> None:
        """Read a manifest back. Raises ImageCorrupt if it is not the one."""
        found = self._again(lambda: self.client.get_manifest_bytes(self.repository, name, media_type, oci.JSON_MAX))
        if found is None or oci.digest_of(found[0]) != digest:
            what = "nothing" if found is None else oci.digest_of(found[0])
            raise ImageCorrupt(
                f"registry {self.client.host}: {self.repository}:{name} should be {digest} but is {what}; does somebody else push there?"
            )

    # ------------------------------------------------------------ blobs
    def blob(self, blob: Descriptor) -> How:
        """See that the repository has the blob. Raises as `manifest` does."""
        if self._again(lambda: self.client.has_blob(self.repository, blob.digest)):
            self.present += blob.size
            return How.PRESENT
        path = self.layout.blobs.path(blob.digest)
        if not path.is_file():
            raise ImageNotFound(f"blob {path} is missing; build the image again")
        for source in self.sources(blob.digest):
            session = self._again(lambda source=source: self._open(mount=blob.digest, source=source))  # type: ignore[misc]
            if session is None:
                self.present += blob.size
                return How.MOUNTED
            self._drop(session)
        for attempt in range(TRIES):
            try:
                self._send(blob, path)
                return How.SENT
            except (_Restart, RegistryAway) as error:
                self.layout.blobs.verify(blob)  # what is spoilt here can never arrive whole
                if attempt == TRIES - 1:
                    raise RegistryAway(f"{error}; given up after {TRIES} tries") from error
                _wait(attempt)
        raise AssertionError("the loop returns or raises")

    def _open(self, mount: str = "", source: str = "") -> str | None:
        """Begin an upload: its address, or None if the blob was mounted and there is nothing to send."""
        url = self.client.uploads(self.repository)
        if mount:
            url = oras.utils.append_url_params(url, {"mount": mount, "from": source})
        answer = self.client.do_request(url, "POST", headers={"Content-Length": "0"})
        self.client.expect(answer, "POST", 201, 202)
        return None if answer.status_code == 201 and mount else self.client.location(answer)

    def _drop(self, session: str) -> None:
        """Forget an upload that a refused mount has begun. Registries that do not know how, clear it away some day."""
        try:
            self.client.do_request(session, "DELETE")
        except (RegistryAway, RegistryDenied):
            return

    def _send(self, blob: Descriptor, path: Path) -> None:
        """Raises _Restart if the upload must begin anew, RegistryAway if the registry stays away."""
        session, offset, cuts = self._again(self._open), 0, 0
        assert session is not None, "nothing was to be mounted"
        if blob.size <= CHUNK_BYTES:
            self._finish(blob, session, path.read_bytes())
            return
        with path.open("rb") as file:
            while offset < blob.size:
                file.seek(offset)
                chunk = file.read(CHUNK_BYTES)
                if not chunk:
                    raise ImageCorrupt(f"blob {path} is shorter than the {blob.size} bytes that its descriptor says")
                try:
                    session, offset = self._patch(session, offset, chunk)
                except RegistryAway:
                    cuts += 1
                    if cuts >= TRIES:
                        raise
                    _wait(cuts - 1)
                    session, offset = self._resume(session)
        self._finish(blob, session, b"")

    def _finish(self, blob: Descriptor, session: str, rest: bytes) -> None:
        """End an upload with what is left of the blob. Raises _Restart if it did not arrive whole."""
        url = oras.utils.append_url_params(session, {"digest": blob.digest})
        answer = self.client.do_request(url, "PUT", data=rest, headers={"Content-Length": str(len(rest)), **_OCTETS})
        self.sent += len(rest)
        if answer.status_code in (400, 404, 416) and not self.client.has_blob(self.repository, blob.digest):
            raise _Restart(
                f"registry {self.client.host} did not get blob {blob.digest} whole (it answered {answer.status_code})"
            )
        if answer.status_code not in (400, 404, 416):
            self.client.expect(answer, "PUT", 201, 202, 204)

    def _patch(self, session: str, offset: int, chunk: bytes) -> tuple[str, int]:
        """Send one chunk: where to go on, and how many bytes have arrived."""
        headers = {"Content-Range": f"{offset}-{offset + len(chunk) - 1}", "Content-Length": str(len(chunk)), **_OCTETS}
        answer = self.client.do_request(session, "PATCH", data=chunk, headers=headers)
        if answer.status_code == 416:
            return self._resume(session)
        if answer.status_code == 404:
            raise _Restart(f"registry {self.client.host} forgot an upload")
        if answer.status_code == 413:
            raise RegistryDenied(
                f"registry {self.client.host}, or what is before it, refuses requests of {len(chunk)} bytes; allow them"
            )
        self.client.expect(answer, "PATCH", 201, 202, 204)
        self.sent += len(chunk)
        return self.client.location(answer), offset + len(chunk)

    def _resume(self, session: str) -> tuple[str, int]:
        """How far an upload has come. Raises _Restart if the registry no longer knows."""
        answer = self._again(lambda: self.client.do_request(session, "GET"))
        match = _RANGE.fullmatch(answer.headers.get("Range", ""))
        if answer.status_code != 204 or match is None:
            raise _Restart(f"registry {self.client.host} forgot an upload")
        last = int(match[1])
        return self.client.location(answer), last + 1 if last else 0

    def _again(self, request: Callable[[], T]) -> T:
        """A request that may be repeated, repeated while the registry is away."""
        for attempt in range(TRIES - 1):
            try:
                return request()
            except RegistryAway:
                _wait(attempt)
        return request()


def _wait(attempt: int) -> None:
    time.sleep(BACKOFF_S * 2**attempt)


class _Restart(Exception):
    """The upload of one blob must begin anew."""
