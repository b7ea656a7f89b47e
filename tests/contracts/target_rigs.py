"""The targets of the contract suite, each with a way to make images that start well, never get ready, or break."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from deployers.local import LocalTarget
from deployers.routed.supervised import Limits
from deployers.routed.target import RoutedTarget
from deployers.target import FakeTarget, StalePlanError, Target, TargetError, TargetStatus, TrafficPlan
from pipelines.jobs.files import write_json_atomic

PATIENCE_S = 30.0
LIMITS = Limits(
    start_timeout_s=20,
    probe_every_s=0.2,
    backoff_s=0.05,
    backoff_max_s=0.5,
    stable_s=2.0,
    drain_timeout_s=10,
    grace_s=1.5,
)
STUB = Path(__file__).with_name("replica_stub.py")


def digest_of(name: str) -> str:
    return "sha256:" + sha256(name.encode()).hexdigest()


def plan(generation: int, weights: Mapping[int, float], digests: Mapping[int, str], **more: Any) -> TrafficPlan:
    defaults = {"model": "flights", "epoch": 1}
    return TrafficPlan(**{**defaults, **more}, generation=generation, weights=weights, digests=digests)


class Rig(Protocol):
    @property
    def target(self) -> Target: ...

    def image(self, name: str, **behaviour: Any) -> str:
        """Digest of an image that is ready at once, or that has `mode` "unready" or "broken" (with a `message`)."""

    def heal(self, name: str) -> None:
        """From now on the image gets ready."""

    def restart(self) -> None:
        """Replace the target object, as a new daemon would."""


@dataclass
class FakeRig:
    target: FakeTarget = field(default_factory=FakeTarget)

    def image(self, name: str, **behaviour: Any) -> str:
        digest = digest_of(name)
        if behaviour.get("mode") == "unready":
            self.target.unready.add(digest)
        elif behaviour.get("mode") == "broken":
            self.target.broken[digest] = behaviour["message"]
        return digest

    def heal(self, name: str) -> None:
        self.target.unready.discard(digest_of(name))
        self.target.broken.pop(digest_of(name), None)

    def restart(self) -> None:
        """A fake has nothing outside itself."""


class RealRig:
    """A rig with replicas and a router that really run. Made anew, by `again`, it finds what runs."""

    home: Path
    port: int
    target: RoutedTarget

    @property
    def base(self) -> str | None:
        """The base image that real images need to run here."""
        return None

    def again(self) -> RealRig:
        """Another rig for the same home, as for another daemon."""
        raise NotImplementedError

    def arguments(self) -> list[str]:
        """Of which another process makes such a rig."""
        return [str(self.home), str(self.port)]

    def image(self, name: str, **behaviour: Any) -> str:
        raise NotImplementedError

    def heal(self, name: str) -> None:
        raise NotImplementedError

    def restart(self) -> None:
        raise NotImplementedError

    def replica(self, slot: str) -> int:
        """Pid of the replica in slot `v<N>-<k>`; 0 if there is none."""
        raise NotImplementedError

    def replicas(self) -> int:
        """How many processes or containers of this home run as replicas."""
        raise NotImplementedError

    def routers(self) -> int:
        """How many routers of this home run."""
        return len(processes_of(self.home, b"\0serving.router\0"))

    def process(self, slot: str) -> int:
        """Pid of the replica in slot `v<N>-<k>`, or of the `router`."""
        return announced_pid(self.home / "run" / "router") if slot == "router" else self.replica(slot)

    def predict(self, timeout_s: float = 10.0, **headers: str) -> tuple[int, Mapping[str, str], Any]:
        """One prediction over the router: status, headers, JSON."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/models/flights:predict",
            data=b'{"instances": [{"x": 1}]}',
            headers={"Content-Type": "application/json", **{n.replace("_", "-"): v for n, v in headers.items()}},
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return answer.status, dict(answer.headers), json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), json.load(error)


def announced_pid(folder: Path) -> int:
    """0 if nobody has announced anything."""
    with suppress(FileNotFoundError):
        return int(json.loads((folder / "announce.json").read_text())["pid"])
    return 0


def processes_of(home: Path, word: bytes) -> list[Path]:
    """Those that name this home and have this word on their command lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(home).encode() in (content := path.read_bytes()) and word in content:
                found.append(path)
    return found


@dataclass
class LocalRig(RealRig):
    home: Path
    port: int
    target: RoutedTarget = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.target = LocalTarget(self.home, port=self.port, limits=LIMITS)

    def again(self) -> LocalRig:
        return LocalRig(self.home, self.port)

    def _root(self, digest: str) -> Path:
        return self.home / "unpacked" / digest.removeprefix("sha256:")

    def image(self, name: str, **behaviour: Any) -> str:
        digest = digest_of(name)
        serving = self._root(digest) / "app" / "serving"
        serving.mkdir(parents=True)
        (serving / "__init__.py").touch()
        (serving / "runtime.py").write_text(STUB.read_text())
        self._root(digest).joinpath("model").mkdir()
        self._behave(digest, behaviour)
        return digest

    def heal(self, name: str) -> None:
        self._behave(digest_of(name), {})

    def _behave(self, digest: str, behaviour: Mapping[str, Any]) -> None:
        write_json_atomic(self._root(digest) / "model" / "behaviour.json", dict(behaviour))

    def replica(self, slot: str) -> int:
        return announced_pid(self.home / "run" / "replicas" / "flights" / slot)

    def replicas(self) -> int:
        return len(processes_of(self.home, b"\0serving.runtime\0"))


def settle(
    rig: Rig, wanted: TrafficPlan, until: Callable[[TargetStatus], bool] | None = None, *, what: str = "in force"
) -> TargetStatus:
    """Apply tick by tick until the status is as wanted (by default: the plan's generation is in force).

    Like the controller, goes on after a TargetError, which says that a later try may help."""
    reached = until or (lambda status: status.generation == wanted.generation)
    deadline = time.monotonic() + PATIENCE_S
    status, trouble = None, ""
    while time.monotonic() < deadline:
        try:
            rig.target.apply(wanted)
        except StalePlanError:
            raise
        except TargetError as error:
            trouble = str(error)
        status = rig.target.observe(wanted.model)
        if status is not None and reached(status):
            return status
        time.sleep(0.02)
    raise AssertionError(f"not {what} after {PATIENCE_S:g} s: {status} {trouble}")


class Hammer:
    """A client that sends predictions all the time from a thread, and keeps what failed."""

    def __init__(self, rig: RealRig) -> None:
        self._rig = rig
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.failures: list[str] = []
        self.versions: list[str] = []

    def __enter__(self) -> Hammer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                status, headers, body = self._rig.predict()
            except OSError as error:
                self.failures.append(repr(error))
                continue
            if status != 200:
                self.failures.append(f"{status} {body}")
            self.versions.append(headers.get("x-ratchet-version", "none"))

    def wait_for(self, count: int) -> None:
        """Until so many more answers have come."""
        enough, deadline = len(self.versions) + count, time.monotonic() + PATIENCE_S
        while len(self.versions) < enough:
            assert time.monotonic() < deadline, f"no {count} answers in {PATIENCE_S:g} s; failures: {self.failures[:3]}"
            time.sleep(0.01)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    assert isinstance(port, int)
    return port


def is_alive(pid: int) -> bool:
    """Whether the process lives; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S:g} s"
        time.sleep(0.01)
