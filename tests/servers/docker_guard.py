"""Cleans up after a Docker Engine once its test run has ended, in whatever way: killed runs close the pipe that this waits on too.

`python docker_guard.py FOLDER`: everything of the Engine is below FOLDER, by which its processes and those in its containers are known.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def processes(folder: str) -> Iterator[int]:
    """The Engine, its containerd, the shims, and what runs in mount namespaces that hold its containers' roots."""
    here = os.readlink("/proc/self/ns/mnt")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            command = (entry / "cmdline").read_bytes().split(b"\0")
            ours = any(folder.encode() in word for word in command) and Path(os.fsdecode(command[0])).name in (
                "dockerd", "containerd", "containerd-shim-runc-v2", "docker-proxy", "runc",
            )  # fmt: skip
            contained = os.readlink(entry / "ns" / "mnt") != here and folder in (entry / "mountinfo").read_text()
            if ours or contained:
                yield int(entry.name)


def clean(folder: str) -> None:
    number, deadline = signal.SIGTERM, time.monotonic() + 10
    while (found := list(processes(folder))) and time.monotonic() < deadline:
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, number)
        time.sleep(0.3 if number is signal.SIGTERM else 0.05)
        number = signal.SIGKILL
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    for point in sorted((line.split()[4] for line in lines if folder in line.split()[4]), reverse=True):
        subprocess.run(["umount", "-l", point], check=False, capture_output=True)
    bridge = Path(folder, "bridge")
    if bridge.exists():
        subprocess.run(["ip", "link", "delete", bridge.read_text()], check=False, capture_output=True)
    if os.fork() == 0:  # nobody need wait for what some disks take half a minute for
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    clean(sys.argv[1])


if __name__ == "__main__":
    main()
