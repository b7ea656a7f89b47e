"""The router's table on disk, so that a router that was killed comes back with the traffic it had."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path

from serving.router.table import Route, RouteError, parse_route

FORMAT = 1
log = logging.getLogger("router")


def save_routes(path: Path, routes: Iterable[Route]) -> None:
    """Replace the file by rename. Raises OSError (disk full, no permission); the old file then stays."""
    content = json.dumps(
        {"format": FORMAT, "models": {route.model: route.to_json() for route in routes}}, sort_keys=True
    )
    write_atomic(path, content)


def write_atomic(path: Path, content: str) -> None:
    """A reader sees the old content or the new, never a part. Raises OSError and then leaves `path` untouched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(content)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def load_routes(path: Path) -> list[Route]:
    """The saved routes; none if there is no file.

    A file that cannot be understood is set aside and the router starts empty: its controller applies the plans again."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    try:
        state = json.loads(content)
        if state["format"] != FORMAT:
            raise ValueError(f"format is {state['format']!r}, this release reads {FORMAT}")
        return [parse_route(model, body) for model, body in state["models"].items()]
    except (ValueError, KeyError, TypeError, AttributeError, RouteError) as error:
        aside = path.with_name(f"{path.name}.corrupt-{time.time_ns()}")
        os.replace(path, aside)
        log.error("table %s is damaged (%s); set aside as %s, starting with an empty table", path, error, aside)
        return []
