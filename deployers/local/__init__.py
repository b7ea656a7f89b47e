"""The target on one machine without any server: replicas and a router as processes that outlive the daemon."""

from __future__ import annotations

from pathlib import Path

from deployers.local.host import ProcessHost
from deployers.routed.supervised import Limits
from deployers.routed.target import RoutedTarget

__all__ = ["LocalTarget", "ProcessHost"]


class LocalTarget(RoutedTarget):
    """Serves versions as processes, from images unpacked under `<home>/unpacked`."""

    def __init__(self, home: Path, *, port: int, host: str = "127.0.0.1", limits: Limits | None = None) -> None:
        super().__init__(home, {"local": ProcessHost(home.absolute())}, port=port, host=host, limits=limits)
