"""Signing: any command that takes the reference of a pushed image, such as `cosign sign --yes --key /etc/ratchet/cosign.key`."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence

from deployers.oci import RegistryAway, RegistryDenied

_SAID_MAX = 400
RETRY = 75
"""Exit status EX_TEMPFAIL (sysexits.h): it may work later."""


def sign(command: Sequence[str], reference: str, timeout_s: float) -> None:
    """Run the command with the reference (`host/name@sha256:…`) as its last argument; no shell, no input.

    Its output is not repeated but for a few last words if it fails. Raises RegistryAway if it takes too long or ends with status 75,
    RegistryDenied if it cannot be started or ends with another: a version that must be signed does not serve unsigned."""
    try:
        child = subprocess.Popen(
            [*command, reference],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise RegistryDenied(f"sign_command {command[0]!r} cannot be started: {error.strerror or error}") from None
    try:
        output, _ = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise RegistryAway(
            f"sign_command {command[0]!r} took longer than {timeout_s:g} s and was killed; it is tried again"
        ) from None
    finally:
        _end(child)
    if child.returncode:
        said = " ".join(output.decode(errors="replace").split())[-_SAID_MAX:]
        kind = RegistryAway if child.returncode == RETRY else RegistryDenied
        raise kind(f"sign_command {command[0]!r} ended with status {child.returncode}: {said}")


def _end(child: subprocess.Popen[bytes]) -> None:
    """Whatever it started goes with it."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        child.wait()
        if child.stdout is not None:
            child.stdout.close()
