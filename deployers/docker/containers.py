"""What a replica's container is: its labels and the configuration it is created with. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployers.routed.replicas import ReplicaSpec

LABEL = "dev.ratchet."
"""Prefix of our labels' keys."""
HOME = LABEL + "home"
PORT = 8080
"""Where the runtime listens inside a container with a network of its own."""
HOST_NETWORK = "host"
PIDS_MAX = 512
"""Processes and threads of one container, and 64 more for each worker."""
TMP_MB = 256
LOG_MB, LOG_FILES = 4, 2
"""Of what a container says, that the Engine keeps."""
_MODEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""Folders are called by it, and anybody may write labels."""
_EPOCH = re.compile(r"[0-9]{1,18}")
_PLACES = {"announce": "/announce", "clock": "/clock"}
"""Folder of the slot → where the container sees it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContainerSettings:
    """What holds for all containers of a daemon."""

    user: str
    """`UID:GID` that replicas run as; never root."""
    network: str = "bridge"
    """Name of a network of the Engine, or `host`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A container of ours, as the Engine lists it."""

    id: str
    name: str
    slot: str
    spec: ReplicaSpec | None
    """None if its labels cannot be read."""
    model: str
    epoch: int
    config: str
    """Fingerprint of what it was created with."""
    state: str
    """The Engine's word: created, running, paused, restarting, removing, exited, dead."""
    port: int | None
    """Published on 127.0.0.1."""

    @property
    def runs(self) -> bool:
        return self.state in ("running", "paused", "restarting")


def labels_of(home: Path, slot: str, spec: ReplicaSpec, epoch: int) -> dict[str, str]:
    """By which the container is found again, whatever it is called. What there is none of is said too: its image may have such a label."""
    optional = {"memory_mb": spec.memory_mb, "cpus": spec.cpus}
    return {
        HOME: str(home),
        **{
            LABEL + key: str(value)
            for key, value in {
                "slot": slot, "model": spec.model, "version": spec.version, "digest": spec.digest, "workers": spec.workers,
                "arm": spec.arm, "epoch": epoch, **{k: "" if v is None else v for k, v in optional.items()},
            }.items()
        },
    }  # fmt: skip


def read_container(listed: Mapping[str, Any]) -> Found:
    """From one entry of the Engine's list."""
    labels = {k.removeprefix(LABEL): v for k, v in (listed.get("Labels") or {}).items() if k.startswith(LABEL)}
    names = [name.lstrip("/") for name in listed.get("Names") or ()]
    ports = [
        int(p["PublicPort"]) for p in listed.get("Ports") or () if p.get("PrivatePort") == PORT and p.get("PublicPort")
    ]
    model = labels.get("model", "") if _MODEL.fullmatch(labels.get("model", "")) else ""
    return Found(
        id=str(listed["Id"]),
        name=names[0] if names else str(listed["Id"])[:12],
        slot=labels.get("slot", ""),
        spec=_spec(labels) if model else None,
        model=model,
        epoch=int(labels["epoch"]) if _EPOCH.fullmatch(labels.get("epoch", "")) else 0,
        config=labels.get("config", ""),
        state=str(listed.get("State", "")),
        port=ports[0] if ports else None,
    )


def _spec(labels: Mapping[str, str]) -> ReplicaSpec | None:
    try:
        return ReplicaSpec(
            model=labels["model"], version=int(labels["version"]), digest=labels["digest"], workers=int(labels["workers"]),
            arm=labels["arm"], host="docker",
            memory_mb=int(labels["memory_mb"]) if labels.get("memory_mb") else None,
            cpus=float(labels["cpus"]) if labels.get("cpus") else None,
        )  # fmt: skip
    except (KeyError, ValueError):
        return None


def container_name(home: Path, slot: str, model: str) -> str:
    """For people; unique among the homes that share an Engine.

    >>> container_name(Path("/srv/ratchet"), "v3-0", "flights")
    'ratchet-flights-v3-0-4c702c'
    """
    return f"ratchet-{model}-{slot}-{hashlib.sha256(str(home).encode()).hexdigest()[:6]}"


def container_config(
    spec: ReplicaSpec,
    settings: ContainerSettings,
    *,
    folder: Path,
    log_dir: Path,
    clock: str = "",
    model: Path | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configuration and host configuration in the SDK's words, without labels and image.

    As little as serving needs: no root, no capabilities, no way to gain any, nothing writable but /tmp, the prediction log, and where it
    tells its port. `folder`: of the slot; `clock`: name of the clock file in the slot's folder `clock`, if there is one;
    `model`: folder of a model that is not in its image. Folders are mounted as mounts, not as binds: where one is missing the Engine then
    says so, instead of making an empty one."""
    shares_ports = settings.network == HOST_NETWORK
    listen = ["--host", "127.0.0.1", "--port", "0"] if shares_ports else ["--host", "0.0.0.0", "--port", str(PORT)]  # noqa: S104
    command = [
        "--model-dir", "/model", "--name", spec.model, "--version", str(spec.version), "--log-dir", "/log", *listen,
        "--workers", str(spec.workers), "--announce", f"{_PLACES['announce']}/announce.json",
    ]  # fmt: skip
    environment = {"HOME": "/tmp", "PYTHONUNBUFFERED": "1"}  # noqa: S108 - the container's own
    mounts = [_mount(log_dir, "/log"), _mount(folder / "announce", _PLACES["announce"])]
    if model is not None:
        mounts.append(_mount(model, "/model", read_only=True))
    if clock:
        environment["RATCHET_CLOCK"] = f"{_PLACES['clock']}/{clock}"
        mounts.append(_mount(folder / "clock", _PLACES["clock"], read_only=True))
    config: dict[str, Any] = {
        "command": command,
        "environment": environment,
        "user": settings.user,
        "healthcheck": {"test": ["NONE"]},  # a base image's own would ask something else
    }
    host_config: dict[str, Any] = {
        "network_mode": settings.network,
        "mounts": mounts,
        "read_only": True,
        "tmpfs": {"/tmp": f"rw,noexec,nosuid,nodev,size={TMP_MB}m"},  # noqa: S108 - the container's own
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "pids_limit": PIDS_MAX + 64 * spec.workers,
        "restart_policy": {"Name": "no"},  # we restart, later each time, and say why it died
        "log_config": {"type": "json-file", "config": {"max-size": f"{LOG_MB}m", "max-file": str(LOG_FILES)}},
    }
    if not shares_ports:
        config["ports"] = [PORT]
        host_config["port_bindings"] = {PORT: ("127.0.0.1", None)}
    if spec.memory_mb is not None:
        host_config["mem_limit"] = host_config["memswap_limit"] = spec.memory_mb * 1_000_000
    if spec.cpus is not None:
        host_config["nano_cpus"] = round(spec.cpus * 1e9)
    return config, host_config


def _mount(source: Path, target: str, *, read_only: bool = False) -> dict[str, Any]:
    return {"Type": "bind", "Source": str(source), "Target": target, "ReadOnly": read_only}


def fingerprint(config: Mapping[str, Any], host_config: Mapping[str, Any]) -> str:
    """By which a container that was created in another way is told from one that would be created now."""
    text = json.dumps([config, host_config], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def obituary(state: Mapping[str, Any], last_line: str, spec: ReplicaSpec) -> str:
    """Why a container is not running, from its inspected state and the last line that it said.

    >>> spec = ReplicaSpec(model="m", version=1, digest="sha256:0", workers=1, memory_mb=64)
    >>> obituary({"ExitCode": 137, "OOMKilled": True}, "loading", spec)
    'killed by the kernel for using more than its 64 MB of memory (deploy.memory_mb); last said: loading'
    >>> obituary({"ExitCode": 2}, "ERROR model.refused", spec)
    'ended with status 2: ERROR model.refused'
    >>> obituary({"ExitCode": 137}, "", spec)
    'was killed (SIGKILL)'
    """
    code, error = int(state.get("ExitCode") or 0), str(state.get("Error") or "")
    if state.get("OOMKilled"):
        allowed = f"its {spec.memory_mb} MB of memory (deploy.memory_mb)" if spec.memory_mb else "the machine's memory"
        return f"killed by the kernel for using more than {allowed}" + (
            f"; last said: {last_line}" if last_line else ""
        )
    if error:
        return f"the Engine could not start it: {error}"
    if code == 137:
        return "was killed (SIGKILL)" + (f"; last said: {last_line}" if last_line else "")
    return f"ended with status {code}" + (f": {last_line}" if last_line else "")


def valid_user(text: str) -> bool:
    """Whether it is UID:GID, and not root.

    >>> [valid_user(t) for t in ("65532:65532", "0:0", "nobody", "1000:0")]
    [True, False, False, False]
    """
    return re.fullmatch(r"[1-9][0-9]{0,9}:[1-9][0-9]{0,9}", text) is not None
