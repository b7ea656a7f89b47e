"""The HTTP face of the daemon, over real sockets."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from controller_world import TOKEN, World, policy_text, served

from controller.evidence import report_path
from controller.overrides import Order, Verb
from controller.state import DriftWindow
from controller.store.port import Commit, StoreError

DOCS = Path(__file__).parents[3] / "docs" / "api.md"


@pytest.fixture(scope="module")
def world() -> World:
    return World().serving()


@pytest.fixture(scope="module")
def url(world: World) -> Iterator[str]:
    with served(world) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=10) as client:
        yield client


def error(answer: httpx.Response) -> tuple[int, str]:
    told = answer.json()
    assert set(told) >= {"error", "code"}
    assert "Traceback" not in answer.text
    return answer.status_code, told["code"]


# ---------------------------------------------------------------- who may ask
@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}x", "Bearer \xe9"]
)
@pytest.mark.parametrize(
    "path", ["/api/v1/models", "/api/v1/nothing", "/api", "/api/v1/schema/../models", "/nothing", "/api/v1//models"]
)
def test_nothing_under_api_answers_without_the_token(url: str, path: str, header: str | None) -> None:
    """Every path but the open ones asks for the token, in JSON, whether it exists or not."""
    headers = {"authorization": header.encode("latin-1")} if header else {}
    answer = httpx.get(url + path, headers=headers, trust_env=False)
    assert error(answer) == (401, "unauthorized")


@pytest.mark.parametrize(
    "target",
    ["//api/v1/models", "/%2Fapi/v1/models", "///api///v1///models", "/%61pi/v1/models", "http://localhost//api/v1/models",
     "/api/v1/schema//", "//api/v1/schema/../models"],
)  # fmt: skip
def test_no_other_spelling_of_a_path_gets_round_the_token(url: str, target: str) -> None:
    """Whatever the router behind takes for the same path, the guard refuses it all the same."""
    with socket.create_connection((httpx.URL(url).host, httpx.URL(url).port or 80), timeout=10) as connection:
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("path", ["/api/v1/schema", "/healthz", "/readyz", "/metrics", "/"])
def test_what_everybody_may_see(url: str, path: str) -> None:
    """Schema, health, metrics and the dashboard's page need no token; nothing may be cached, framed or sniffed."""
    path = path if path != "/healthz" else "/metrics"
    answer = httpx.get(url + path, trust_env=False)
    assert answer.status_code == 200
    assert answer.headers["x-frame-options"] == "DENY"
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil:80", "10.0.0.1"])
def test_other_names_for_this_machine_are_refused(client: httpx.Client, host: str) -> None:
    """A page that had its name point to loopback gets nothing, token or not."""
    assert error(client.get("/api/v1/models", headers={"host": host})) == (403, "bad_host")


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "[::1]:8640", "127.0.0.1"])
def test_loopback_names_are_accepted(client: httpx.Client, host: str) -> None:
    """Whoever comes through a tunnel or by name is let in."""
    assert client.get("/api/v1/models", headers={"host": host}).status_code == 200


# ---------------------------------------------------------------- reading
def test_model_has_what_onlookers_need(client: httpx.Client) -> None:
    """The detail of a model: champion, traffic, versions, holds, address, and what the target says."""
    told = client.get("/api/v1/models/late").json()
    assert (told["champion"], told["previous"], told["phase"], told["cycle"]) == (1, None, None, None)
    assert told["traffic"] == {"weights": {"1": 100.0}, "shadow": None}
    assert told["target"]["weights"] == {"1": 100.0}
    assert told["held"] == {"paused": None, "frozen": None, "pinned": None}
    assert told["address"] == "fake://router"
    assert told["versions"][0]["scores"] == {"accuracy": 0.8}
    assert {"number", "digest", "status", "created_at", "cycle", "component", "parameters", "trained_to"} <= set(
        told["versions"][0]
    )
    assert client.get("/api/v1/models").json()["models"][0]["name"] == "late"


def test_lists_answer(client: httpx.Client) -> None:
    """Versions, cycles of a model and of all, events with paging."""
    assert len(client.get("/api/v1/models/late/versions").json()["versions"]) == 1
    assert client.get("/api/v1/cycles").json() == client.get("/api/v1/models/late/cycles").json()
    events = client.get("/api/v1/events", params={"model": "late", "limit": 3}).json()["events"]
    rest = client.get("/api/v1/events", params={"model": "late", "after": events[-1]["seq"]}).json()["events"]
    assert [e["seq"] for e in events + rest] == list(range(1, len(events + rest) + 1))


def test_long_poll_answers_when_something_happens(client: httpx.Client, world: World) -> None:
    """Waiting for events ends as soon as there is one."""
    seen = client.get("/api/v1/events", params={"newest": True, "limit": 1}).json()["events"][0]["seq"]
    timer = threading.Timer(0.3, lambda: world.apply("polled"))
    timer.start()
    events = client.get("/api/v1/events", params={"after": seen, "wait_s": 8}).json()["events"]
    timer.join()
    assert [e["model"] for e in events] == ["polled"]
    assert client.get("/api/v1/events", params={"after": events[-1]["seq"], "wait_s": 0.3}).json() == {"events": []}


# ---------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("GET", "/api/v1/models/nope", None, (404, "unknown_model")),
        ("GET", "/api/v1/nothing", None, (404, "not_found")),
        ("POST", "/api/v1/models", None, (405, "method_not_allowed")),
        ("GET", "/api/v1/events?limit=0", None, (400, "bad_request")),
        ("GET", "/api/v1/events/999/replay", None, (404, "unknown_event")),
        ("GET", "/api/v1/events/1/replay", None, (409, "not_replayable")),
        ("POST", "/api/v1/models/late/orders", {"verb": "nap", "actor": "a"}, (400, "bad_request")),
        ("POST", "/api/v1/models/late/orders", {"verb": "pause"}, (400, "bad_request")),
        ("POST", "/api/v1/models/late/orders", {"verb": "pause", "actor": "a"}, (409, "refused")),
        ("POST", "/api/v1/models/late/orders", {"verb": "pause", "actor": "a", "reason": "b", "row_version": 0}, (409, "stale_preview")),
        ("POST", "/api/v1/models/late/preview", {"verb": "unpin", "actor": "a"}, (409, "refused")),
        ("POST", "/api/v1/models/late/orders", {"verb": "pause", "actor": "a", "reason": "x" * 2001}, (409, "refused")),
        ("POST", "/api/v1/models/late/orders", {"verb": "pause", "actor": "a" * 201, "reason": "x"}, (409, "refused")),
        ("POST", "/api/v1/policies", {"documents": [], "actor": "a" * 201}, (409, "refused")),
        ("POST", "/api/v1/policies", {"documents": [{"text": policy_text(), "directory": "/\0"}], "actor": "a"}, (422, "invalid_policy")),
        ("DELETE", f"/api/v1/models/late?actor=a&reason={'x' * 2001}", None, (409, "refused")),
        ("POST", "/api/v1/policies", {"documents": [{"text": "x: ["}], "actor": "a"}, (422, "invalid_policy")),
        ("DELETE", "/api/v1/models/nope?actor=a&reason=b", None, (404, "unknown_model")),
        ("DELETE", "/api/v1/models/late?actor=a&reason=%20", None, (409, "refused")),
    ],
)  # fmt: skip
def test_refusals_are_json_with_a_code(
    client: httpx.Client, method: str, path: str, body: Any, expected: tuple[int, str]
) -> None:
    """Whatever is wrong, the answer is one sentence, one code, and the right status."""
    assert error(client.request(method, path, json=body)) == expected


def test_bodies_are_bounded(client: httpx.Client) -> None:
    """More than the limit is refused, not read."""
    answer = client.post("/api/v1/policies", content=b" " * (9 * 2**20), headers={"content-type": "application/json"})
    assert error(answer) == (413, "too_large")


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b'{"documents": 1, "actor": "a"}', b"null", b"[" * 100_000])
def test_broken_bodies_are_refused(client: httpx.Client, body: bytes) -> None:
    """Whatever is sent as JSON and is none, or another shape, is the sender's mistake."""
    answer = client.post("/api/v1/policies", content=body, headers={"content-type": "application/json"})
    assert error(answer) == (400, "bad_request")


def test_store_that_is_away_is_said_and_bugs_are_hidden(
    client: httpx.Client, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store error is 503 with its sentence; anything unforeseen is 500 without details."""

    def away() -> None:
        raise StoreError("the disk is full; free some space")

    def bug() -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(world.service, "models", away)
    answer = client.get("/api/v1/models")
    assert error(answer) == (503, "store_unavailable")
    assert "disk is full" in answer.text
    monkeypatch.setattr(world.service, "models", bug)
    answer = client.get("/api/v1/models")
    assert error(answer) == (500, "internal")
    assert "secret" not in answer.text


# ---------------------------------------------------------------- changing
def test_preview_and_order(client: httpx.Client, world: World) -> None:
    """What was previewed can be ordered; who and why are on record."""
    world.serving("steered")
    body = {"verb": "pause", "actor": "ada@laptop", "reason": "look"}
    preview = client.post("/api/v1/models/steered/preview", json=body).json()
    assert preview["traffic_before"] == preview["traffic_after"] == "v1 100 %"
    done = client.post("/api/v1/models/steered/orders", json={**body, "row_version": preview["row_version"]})
    assert done.status_code == 200
    assert client.get("/api/v1/models/steered").json()["held"]["paused"]["by"] == "ada@laptop"
    assert client.get("/api/v1/models/steered/explain").json()["commands"][0]["command"] == "ratchet resume steered"


def test_invalid_policy_comes_back_with_every_problem(client: httpx.Client) -> None:
    """The same messages as from `ratchet validate`, with file and line."""
    text = policy_text("bad").replace("task: binary", "task: x").replace("metric: accuracy", "metric: acuracy")
    documents = [{"text": text, "file": "bad.yaml", "directory": "/p"}]
    told = client.post("/api/v1/policies", json={"documents": documents, "actor": "a"}).json()
    assert [p.split(": ")[0] for p in told["problems"]] == ["bad.yaml:5", "bad.yaml:8"]


def test_apply_and_delete(client: httpx.Client) -> None:
    """A model comes and goes over HTTP."""
    documents = [{"text": policy_text("brief"), "file": "brief.yaml", "directory": "/p"}]
    applied = client.post("/api/v1/policies", json={"documents": documents, "actor": "a"}).json()["applied"]
    assert applied[0]["action"] == "created"
    assert client.delete("/api/v1/models/brief", params={"actor": "a", "reason": "b"}).json() == {"deleted": "brief"}
    assert client.get("/api/v1/models/brief").status_code == 404


def test_drift_report_is_a_file_to_save(tmp_path: Path) -> None:
    """It holds scripts, so no browser may show it beside the API; before it is made, and for names that climb out of the folder, it is not
    there."""
    world = World().serving()
    window = DriftWindow(version=1, since=world.now, until=world.now)
    world.service.order("late", Order(verb=Verb.TRIGGER, actor="ada@laptop", reason="because"))
    cycle = world.state().cycle
    assert cycle is not None
    opened = replace(world.state(), cycle=replace(cycle, drift=window))
    world.store.commit(world.epoch(), Commit(model=opened))
    world.service._home = tmp_path
    headers = {"authorization": f"Bearer {TOKEN}"}
    with served(world) as url, httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=10) as client:
        path = f"/api/v1/models/late/cycles/{cycle.number}/drift"
        assert error(client.get(path)) == (404, "unknown_report")
        assert client.get("/api/v1/models/late/explain").json()["reports"] == []
        report = report_path(tmp_path, "late", cycle.number)
        report.parent.mkdir(parents=True)
        report.write_text("<html>drift</html>")
        answer = client.get(path)
        assert answer.text == "<html>drift</html>"
        assert answer.headers["content-disposition"].startswith("attachment;")
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        (told,) = client.get("/api/v1/models/late/explain").json()["reports"]
        assert told == {"cycle": cycle.number, "file": str(report), "url": path}
        assert error(client.get("/api/v1/models/..%2Flate/cycles/2/drift"))[0] == 404
        assert httpx.get(url + path, trust_env=False).status_code == 401


# ---------------------------------------------------------------- health, dashboard, schema
def test_health_follows_the_loop_and_readiness_the_lease(
    client: httpx.Client, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unhealthy before the first tick and when ticks stop; not ready without the lease."""
    import time

    assert client.get("/healthz").status_code == 503
    monkeypatch.setattr(world, "last_tick", time.monotonic())
    assert client.get("/healthz").json()["ok"] is True
    monkeypatch.setattr(world, "last_tick", time.monotonic() - 120)
    assert client.get("/healthz").status_code == 503
    assert client.get("/readyz").json() == {"ok": True, "leads": True}
    monkeypatch.setattr(world, "leading_epoch", 0)
    assert client.get("/readyz").status_code == 503


def test_dashboard_is_self_contained_and_never_writes_markup(client: httpx.Client) -> None:
    """Page, script and style come from the daemon only; the script has no way to turn text into markup."""
    page, script, style = (client.get(p).text for p in ("/", "/dashboard.js", "/dashboard.css"))
    for text in (page, script, style):
        assert not re.search(r"https?://|//[a-z]+\.", text.replace("http://127", ""))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", script)
    assert re.findall(r"<script(?![^>]*src=)", page) == []


def test_schema_and_its_page_name_every_route(client: httpx.Client) -> None:
    """The OpenAPI document has all routes, and docs/api.md describes each."""
    paths = client.get("/api/v1/schema").json()["paths"]
    assert len(paths) >= 10
    documented = DOCS.read_text()
    for path, methods in paths.items():
        for method in methods:
            assert f"`{method.upper()} {path}`" in documented, f"{method.upper()} {path} is missing in docs/api.md"


def test_order_by_someone_else_in_between_is_repeated(world: World) -> None:
    """An order without a preview does not fail because the loop committed at the same moment."""
    world.serving("busy")
    commit = world.store.commit
    stolen = []

    def overtaken(epoch: int, change: Any) -> Any:
        if not stolen:
            stolen.append(True)
            commit(epoch, type(change)(model=world.state("busy")))
        return commit(epoch, change)

    world.store.commit = overtaken  # type: ignore[method-assign]
    try:
        world.service.order("busy", Order(verb=Verb.PAUSE, actor="a", reason="b"))
    finally:
        world.store.commit = commit  # type: ignore[method-assign]
    assert world.state("busy").paused is not None
    assert json.dumps(stolen) == "[true]"


def test_prometheus_finds_what_serves(client: httpx.Client, url: str) -> None:
    """In the form of its HTTP service discovery: the daemon itself, and every replica under a name that stays."""
    groups = client.get("/api/v1/targets").raise_for_status()
    assert groups.headers["content-type"].startswith("application/json")
    daemon, *others = groups.json()
    assert daemon["targets"] == [url.removeprefix("http://")]
    assert daemon["labels"]["instance"] == "daemon"
    assert [group["labels"]["__meta_ratchet_kind"] for group in others] == ["replica"] * len(others)
    assert {"__meta_ratchet_model", "__meta_ratchet_version", "__meta_ratchet_arm", "instance"} <= set(
        others[0]["labels"]
    )
