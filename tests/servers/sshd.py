"""An OpenSSH server of the test run: loopback, its own keys, one allowed key, the present user."""

from __future__ import annotations

import getpass
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from servers import answers, free_port, need, running, wait_until


@dataclass(frozen=True)
class Sshd:
    port: int
    user: str
    key: Path
    """Of the client, which is let in."""
    known_hosts: Path

    def url(self, repository: Path) -> str:
        return f"ssh://{self.user}@127.0.0.1:{self.port}{repository}"


@contextmanager
def running_sshd(folder: Path) -> Iterator[Sshd]:
    """In `folder`, with everything that it needs. Skips, or in CI fails, without openssh-server."""
    program = need("sshd", "openssh-server")
    for name in ("host", "client"):
        subprocess.run(
            [need("ssh-keygen", "openssh-client"), "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)],
            check=True,
        )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd as root keeps its unprivileged half
    port = free_port()
    config = folder / "sshd_config"
    config.write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n"
        f"AuthorizedKeysFile {folder}/client.pub\n"
    )
    known = folder / "known_hosts"
    known.write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    log = folder / "sshd.log"
    with running([program, "-D", "-e", "-f", str(config)], log) as child:
        wait_until(lambda: answers(port), child, log)
        yield Sshd(port=port, user=getpass.getuser(), key=folder / "client", known_hosts=known)
