"""Small HTTP calls to processes on this machine, over TCP or a Unix socket: short time-outs, no proxies, no pools."""

from __future__ import annotations

import http.client
import json
import os
import socket
from pathlib import Path
from typing import Any


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket, reached through its folder's descriptor because a socket's path may have only 107 bytes."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            self.sock.connect(f"/proc/self/fd/{folder}/{self._path.name}")
        finally:
            os.close(folder)


def call_unix(path: Path, method: str, target: str, body: Any = None, *, timeout_s: float) -> tuple[int, Any]:
    """Status and decoded JSON (None if it is not JSON) of the answer. Raises OSError if there is none in time."""
    return _call(_UnixConnection(path, timeout_s), method, target, body)


def is_ok(host: str, port: int, target: str, *, timeout_s: float) -> bool:
    """Whether GET on this path answers 200 in time."""
    try:
        return _call(http.client.HTTPConnection(host, port, timeout=timeout_s), "GET", target, None)[0] == 200
    except OSError:
        return False


def _call(connection: http.client.HTTPConnection, method: str, target: str, body: Any) -> tuple[int, Any]:
    try:
        connection.request(
            method,
            target,
            body=None if body is None else json.dumps(body),
            headers={"Content-Type": "application/json", "Connection": "close"},
        )
        response = connection.getresponse()
        content = response.read()
    except http.client.HTTPException as error:
        raise ConnectionError(f"no whole answer: {type(error).__name__} {error}") from error
    finally:
        connection.close()
    try:
        return response.status, json.loads(content)
    except ValueError:
        return response.status, None
