"""A TCP proxy that loses connections at a chosen word: what networks do to a database's clients, made repeatable."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from enum import Enum


class Cut(Enum):
    """What becomes of a message from the client that holds the word."""

    BEFORE = "it never arrives, and both sides are told"
    AFTER = "it arrives, but its answer does not"
    HANG = "it never arrives, and the server is not told: its side of the connection stays open"


class CuttingProxy:
    """Forwards everything, until `cut_at` says otherwise; then cuts so many times and forwards again."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._rule: tuple[bytes, Cut] | None = None
        self._left = 0
        self.refuses = False
        """Whether new connections are closed at once."""
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_at(self, word: bytes, how: Cut, *, times: int = 1, then_refuse: bool = False) -> None:
        self._rule, self._left, self._then_refuse = (word, how), times, then_refuse

    def cut_all(self) -> None:
        """Cut every connection there is now."""
        while self._open:
            _drop(self._open.pop())

    def close(self) -> None:
        self._listener.close()
        self.cut_all()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.refuses:
                    _drop(client)
                    continue
                try:
                    server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
                    server.settimeout(None)
                except OSError:
                    _drop(client)
                    continue
                self._open += [client, server]
                threading.Thread(target=self._to_server, args=(client, server), daemon=True).start()
                threading.Thread(target=self._to_client, args=(server, client), daemon=True).start()

    def _to_server(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := client.recv(65536):
                if self._rule is not None and self._left > 0 and self._rule[0] in chunk:
                    self._left -= 1
                    self._cut(self._rule[1], chunk, client, server)
                    return
                server.sendall(chunk)
        _drop(server)

    def _cut(self, how: Cut, chunk: bytes, client: socket.socket, server: socket.socket) -> None:
        self.cuts += 1
        self.refuses = self._then_refuse
        if how is Cut.AFTER:
            _drop_reading(client)  # before the answer can come through
            server.sendall(chunk)
            server.shutdown(socket.SHUT_WR)
            _drop(client)
        elif how is Cut.BEFORE:
            _drop(server)
            _drop(client)
        else:
            _drop(client)

    def _to_client(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := server.recv(65536):
                client.sendall(chunk)
        _drop(client)


def _drop_reading(one: socket.socket) -> None:
    """Nothing can be sent to whoever is at the other end any more."""
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_WR)


def _drop(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


@contextlib.contextmanager
def cutting_proxy(port: int) -> Iterator[CuttingProxy]:
    """In front of a port of this machine."""
    proxy = CuttingProxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
