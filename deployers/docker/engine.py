"""The Docker Engine on this machine, in the target's words: which containers there are, and what can be done to one.

All errors of the SDK end here, as two: the Engine does not answer (`EngineAway`: try again later), or it says no (`EngineRefused`). The SDK
is imported when the Engine is first asked for something: a daemon that runs no containers does not pay for it.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

from deployers.target import TargetError

CALL_TIMEOUT_S = 10.0
"""Of one call. Starting a container takes the Engine about half a second."""
LOAD_TIMEOUT_S = 900.0
"""Without a word from an Engine that unpacks an image."""
_OLDEST_API = "1.41"
"""Of Engine 20.10; newer ones are spoken to in their own, as far as the SDK knows it."""
_SAID_BYTES_MAX = 64 * 1024


class EngineAway(TargetError):
    """The Engine does not answer. The message says what to do."""


class EngineRefused(Exception):
    """The Engine says no; the message is its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        """As in HTTP: 404 for what is not there, 409 for what is in the way, 500 for trouble of its own."""


class Engine:
    """The Engine behind a Unix socket. Safe for several threads: each has its own connections."""

    def __init__(self, url: str, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        """`url`: `unix:///var/run/docker.sock`. Only a socket of this machine will do, since containers write to its folders.

        Raises ValueError."""
        if not url.startswith("unix://"):
            raise ValueError(f"docker_host must be unix:// and the path of a socket on this machine, but got {url!r}")
        self.url = url
        self._timeout_s = timeout_s
        self._clients = threading.local()

    # ------------------------------------------------------------ containers
    def containers(self, label: str) -> Sequence[Mapping[str, Any]]:
        """All that have this label (`key=value`), running or not, as the Engine's list has them. Raises EngineAway, EngineRefused."""
        with self._errors() as client:
            found: list[dict[str, Any]] = client.containers(all=True, filters={"label": [label]})
        return found

    def create(self, name: str, image: str, config: Mapping[str, Any], host_config: Mapping[str, Any]) -> str:
        """The ID of a new container. Raises EngineAway, EngineRefused (404: no such image; 409: the name is taken)."""
        with self._errors() as client:
            made = client.create_container(
                image, name=name, host_config=client.create_host_config(**host_config), **config
            )
        return str(made["Id"])

    def start(self, container: str) -> None:
        """Does nothing if it runs. Raises EngineAway, EngineRefused."""
        with self._errors() as client:
            client.start(container)

    def signal(self, container: str, name: str) -> None:
        """Done also if it does not run any more. Raises EngineAway, EngineRefused."""
        with self._unless_gone(), self._errors() as client:
            client.kill(container, signal=name)

    def unpause(self, container: str) -> None:
        """Done also if it is not paused. Raises EngineAway, EngineRefused."""
        with self._unless_gone(), self._errors() as client:
            client.unpause(container)

    def remove(self, container: str) -> None:
        """End it at once and forget it; done also if it is not there. Raises EngineAway, EngineRefused."""
        with self._unless_gone(), self._errors() as client:
            client.remove_container(container, force=True, v=True)

    def state(self, container: str) -> Mapping[str, Any]:
        """`State` of its inspection: ExitCode, OOMKilled, Error, StartedAt. Raises EngineAway, EngineRefused (404)."""
        with self._errors() as client:
            found: dict[str, Any] = client.inspect_container(container)["State"]
        return found

    def last_said(self, container: str, lines: int = 40) -> str:
        """The last lines of its log, of either stream. Raises EngineAway, EngineRefused."""
        with self._errors() as client:
            said: bytes = client.logs(container, tail=lines)
        return said[-_SAID_BYTES_MAX:].decode(errors="replace")

    # ------------------------------------------------------------ images
    def images(self) -> frozenset[str]:
        """IDs of all images. Raises EngineAway, EngineRefused."""
        with self._errors() as client:
            return frozenset(str(image["Id"]) for image in client.images())

    def image_id(self, name: str) -> str | None:
        """The ID of the image with this name, ID or digest; None if there is none. Raises EngineAway, EngineRefused."""
        try:
            with self._errors() as client:
                return str(client.inspect_image(name)["Id"])
        except EngineRefused as error:
            if error.status == 404:
                return None
            raise

    def load(self, archive: Iterable[bytes]) -> None:
        """Take in an archive of images as `docker load` does. Raises EngineAway, EngineRefused; what `archive` raises goes through."""
        with self._errors(LOAD_TIMEOUT_S) as client:
            for line in client.load_image(archive, quiet=True):
                if "error" in line:
                    raise EngineRefused(500, str(line["error"])[:500])

    def remove_image(self, image: str) -> None:
        """With all its names; done also if it is not there. Raises EngineAway, EngineRefused (409: a container runs from it)."""
        try:
            with self._errors() as client:
                client.remove_image(image, force=True)
        except EngineRefused as error:
            if error.status != 404:
                raise

    def keeps_manifests(self) -> bool:
        """Whether images are kept by containerd, as newer Engines do, where an image's ID is its manifest's digest. Raises as above."""
        with self._errors() as client:
            told = client.info()
        return any("containerd.snapshotter" in str(pair) for pair in told.get("DriverStatus") or ())

    # ------------------------------------------------------------ errors
    @contextmanager
    def _unless_gone(self) -> Iterator[None]:
        """404 (not there) and 409 (does not run, being removed) are what the caller wants."""
        try:
            yield
        except EngineRefused as error:
            if error.status not in (304, 404, 409) and "is not paused" not in str(error):
                raise

    @contextmanager
    def _errors(self, timeout_s: float | None = None) -> Iterator[Any]:
        """The SDK's client; its errors become ours."""
        import docker.errors
        import requests

        try:
            self._knock()
            yield self._client(timeout_s or self._timeout_s)
        except docker.errors.APIError as error:
            said = str(error.explanation or error)[:500]
            raise EngineRefused(int(error.status_code or 500), said) from error
        except (requests.RequestException, docker.errors.DockerException, OSError, ValueError, KeyError) as error:
            raise EngineAway(
                f"the Docker Engine at {self.url} does not answer ({_brief(error)}); see that it runs (systemctl status docker) "
                f"and that this user may open its socket; what runs serves on"
            ) from error

    def _knock(self) -> None:
        """Raises OSError if nobody is behind the socket. The SDK would find out too, but not close what it opened."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(self._timeout_s)
            probe.connect(self.url.removeprefix("unix://"))

    def _client(self, timeout_s: float) -> Any:
        known: dict[float, Any] = vars(self._clients).setdefault("by_timeout", {})
        if timeout_s not in known:
            with closing(_sdk_client(self.url, _OLDEST_API, self._timeout_s)) as client:
                spoken = str(client.version(api_version=False)["ApiVersion"])
            known[timeout_s] = _sdk_client(self.url, spoken, timeout_s)
        return known[timeout_s]


def _sdk_client(url: str, version: str, timeout_s: float) -> Any:
    import docker
    from docker.constants import DEFAULT_DOCKER_API_VERSION

    newest = min((version, DEFAULT_DOCKER_API_VERSION), key=lambda text: [int(part) for part in text.split(".")])
    client = docker.APIClient(base_url=url, version=newest, timeout=timeout_s)
    client.trust_env = False  # no proxies, no netrc, for a socket of this machine
    return client


def _brief(error: Exception) -> str:
    """
    >>> _brief(OSError("a" * 300))[-5:]
    'aaaa…'
    """
    text = f"{type(error).__name__}: {error}"
    return text if len(text) <= 200 else text[:199] + "…"
