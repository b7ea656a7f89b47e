"""Debian's docker-registry (the reference implementation, 2.8), with and without a password, and a proxy in front that counts and cuts."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from servers import answers, free_port, need, running, wait_until

USER, PASSWORD = "robot", "s3cret-of-the-robot"
_HTPASSWD = "robot:$2b$05$abcdefghijklmnopqrstuueMK1O/oe6maWBy0SODKvFEEhVddOiNu\n"
"""Its bcrypt hash, of the least cost there is but one."""
_CONFIG = """\
version: 0.1
log: {{level: info, accesslog: {{disabled: false}}}}
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: true}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
http: {{addr: "127.0.0.1:{port}", secret: of-one-test{tls}}}
"""
_AUTH = "auth: {{htpasswd: {{realm: test, path: {path}}}}}\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class RegistryServer:
    """One that runs."""

    port: int
    root: Path
    """Its storage."""
    log: Path
    ca: Path | None = None

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextmanager
def registry(folder: Path, *, auth: bool = False, tls: bool = False, port: int = 0) -> Iterator[RegistryServer]:
    """Run a registry that keeps everything below `folder`; started again there it has what it had.

    `tls`: with a certificate for 127.0.0.1 that is its own authority, `RegistryServer.ca`."""
    command = need("docker-registry")
    port = port or free_port()
    folder.mkdir(parents=True, exist_ok=True)
    config, log, root = folder / "config.yml", folder / "registry.log", folder / "data"
    ca, key = folder / "ca.pem", folder / "key.pem"
    if tls:
        subject = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
        made = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", str(key), "-out", str(ca), *subject]
        subprocess.run([need("openssl"), "req", *made], check=True, capture_output=True, timeout=60)
    text = _CONFIG.format(root=root, port=port, tls=f", tls: {{certificate: {ca}, key: {key}}}" if tls else "")
    if auth:
        (folder / "htpasswd").write_text(_HTPASSWD)
        text += _AUTH.format(path=folder / "htpasswd")
    config.write_text(text)
    with running([command, "serve", str(config)], log) as child:
        wait_until(lambda: answers(port), child, log)
        yield RegistryServer(port=port, root=root, log=log, ca=ca if tls else None)


@dataclass(kw_only=True, slots=True)
class CountingProxy:
    """Passes bytes on, counts them, and cuts connections when told to."""

    port: int
    sent: int = 0
    """Bytes from clients to the registry."""
    received: int = 0
    cut_after: list[int] = field(default_factory=list)
    """Cut the connection once so many bytes were sent since the last cut, one entry a cut; what is under way is lost."""
    since_cut: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def count(self, size: int, *, up: bool) -> bool:
        """Whether the connection lives on."""
        with self.lock:
            if not up:
                self.received += size
                return True
            self.sent += size
            self.since_cut += size
            if self.cut_after and self.since_cut >= self.cut_after[0]:
                self.cut_after.pop(0)
                self.since_cut = 0
                return False
            return True


@contextmanager
def counting_proxy(upstream_port: int) -> Iterator[CountingProxy]:
    """A proxy in front of 127.0.0.1:`upstream_port`."""
    listener = socket.create_server(("127.0.0.1", 0))
    proxy = CountingProxy(port=listener.getsockname()[1])
    stopping = threading.Event()

    def serve() -> None:
        while not stopping.is_set():
            with suppress(OSError):
                client, _ = listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", upstream_port), timeout=5)
                    server.settimeout(None)
                except OSError:
                    client.close()
                    continue
                threading.Thread(target=_pump, args=(client, server, proxy, True), daemon=True).start()
                threading.Thread(target=_pump, args=(server, client, proxy, False), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        stopping.set()
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", proxy.port), timeout=1).close()
        thread.join(5)
        listener.close()


def _pump(source: socket.socket, sink: socket.socket, proxy: CountingProxy, up: bool) -> None:
    with suppress(OSError):
        while chunk := source.recv(1 << 16):
            if not proxy.count(len(chunk), up=up):
                break
            sink.sendall(chunk)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    if up:
        for end in (source, sink):
            end.close()
