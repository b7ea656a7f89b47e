"""The dashboard: one static page, its script and its style, read from this folder. All data comes from the API."""

from __future__ import annotations

from pathlib import Path

from litestar import Response, get

_FOLDER = Path(__file__).with_name("static")


def _file(name: str, media_type: str) -> Response[bytes]:
    return Response((_FOLDER / name).read_bytes(), media_type=media_type)


@get("/", sync_to_thread=True, include_in_schema=False)
def page() -> Response[bytes]:
    return _file("dashboard.html", "text/html")


@get("/dashboard.js", sync_to_thread=True, include_in_schema=False)
def script() -> Response[bytes]:
    return _file("dashboard.js", "text/javascript")


@get("/dashboard.css", sync_to_thread=True, include_in_schema=False)
def style() -> Response[bytes]:
    return _file("dashboard.css", "text/css")


PAGES = (page, script, style)
