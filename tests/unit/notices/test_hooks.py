"""What other systems may call: alerts of a real Alertmanager's shape, and buttons as Slack sends them, over real sockets."""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers.slack import TOKEN as BOT
from servers.slack import FakeSlack, fake_slack, wait_for

sys.path.append(str(Path(__file__).parents[1] / "controller_web"))
from controller_world import TOKEN as API_TOKEN
from controller_world import World, served

from controller.facts import life_of
from controller.notices.building import NoticeOptions, Notices
from controller.notices.routing import Defaults
from controller.notices.secrets import Secret
from controller.notices.slack_api import SlackApi
from controller.notices.slack_blocks import pressed
from controller.notices.slack_clicks import SlackClicks
from controller.notices.told_alerts import ALERTS_MAX, AlertBook, TooManyAlerts, heard, parse
from controller.overrides import Order, Verb
from controller.state import NoticeRecord, Phase, ToldAlert
from controller.web.hooks import Hooks

ALERTS = "token-of-alertmanager"
SIGNING = "slack-signing-secret"
MAX_AGE = timedelta(hours=5)


def book_of(world: World, *, listens: bool = True) -> AlertBook:
    return AlertBook(
        store=world.store, now=lambda: world.now, listens=listens, max_age=MAX_AGE, monotonic=Ticks().__call__
    )


class Ticks:
    """A clock that is always long after."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        self.at += 10
        return self.at


class Rig:
    """A world whose API takes alerts and buttons."""

    def __init__(self, world: World, slack: FakeSlack) -> None:
        self.world, self.slack = world, slack
        self.api = SlackApi(token=Secret(name="slack_token", value=BOT), url=slack.url)
        self.clicks = self.new_clicks()
        self.hooks = Hooks(
            alerts=book_of(world), alert_token=Secret(name="alert_hook_token", value=ALERTS), clicks=self.clicks
        )
        self.url = ""

    def new_clicks(self) -> SlackClicks:
        return SlackClicks(
            store=self.world.store, signing=Secret(name="slack_signing_secret", value=SIGNING), users=frozenset({"U1"}),
            order=self.world.service.order, slack=self.api, now=lambda: self.world.now,
        )  # fmt: skip

    def click(self, value: str, *, user: str = "U1", at: float | None = None, **changes: Any) -> httpx.Response:
        body, headers = signed(value, user=user, at=at, **changes)
        return self.post("/hooks/slack", body, headers)

    def post(self, path: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
        return httpx.post(self.url + path, content=body, headers=headers, trust_env=False, timeout=10)


def signed(
    value: str, *, user: str = "U1", at: float | None = None, secret: str = SIGNING, action: str | None = None
) -> tuple[bytes, dict[str, str]]:
    """A press as Slack sends it."""
    verb = action or json.loads(value)["verb"]
    payload = {
        "type": "block_actions", "user": {"id": user, "username": "ann"}, "channel": {"id": "C1"},
        "actions": [{"action_id": f"ratchet.{verb}", "value": value}],
    }  # fmt: skip
    body = urllib.parse.urlencode({"payload": json.dumps(payload)}).encode()
    stamp = str(int(time.time() if at is None else at))
    signature = "v0=" + hmac.new(secret.encode(), f"v0:{stamp}:".encode() + body, hashlib.sha256).hexdigest()
    return body, {
        "content-type": "application/x-www-form-urlencoded", "x-slack-request-timestamp": stamp, "x-slack-signature": signature,
    }  # fmt: skip


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A model that waits for approval."""
    with fake_slack() as slack:
        world = World().serving(approval="required")
        made = Rig(world, slack)
        with served(world, made.hooks) as url:
            made.url = url
            yield made


def waiting(world: World) -> str:
    """What the button of the message says that asks for approval."""
    return button(world, "approve")


def button(world: World, verb: str) -> str:
    (asked,) = [n for n in world.store.unrouted_notices() if n.kind == "approval.requested"]
    return pressed(asked, verb)


# ---------------------------------------------------------------- Slack
def test_a_press_approves_and_says_who(rig: Rig) -> None:
    """The one who pressed is in the record; the answer comes at once."""
    value = waiting(rig.world)
    assert rig.click(value).status_code == 200
    wait_for(lambda: rig.world.state().cycle.phase is Phase.PACKAGING)  # type: ignore[union-attr]
    (event,) = [e for e in rig.world.store.events("late") if e.kind == "override.approve"]
    assert event.actor == "ann (Slack U1)"
    (notice,) = [n for n in rig.world.store.unrouted_notices() if n.kind == "override.approve"]
    assert notice.data["actor"] == "ann (Slack U1)"


def test_the_same_request_counts_once_after_a_restart_too(rig: Rig) -> None:
    """Who has overheard a request cannot send it again."""
    body, headers = signed(waiting(rig.world))
    assert rig.post("/hooks/slack", body, headers).status_code == 200
    assert rig.post("/hooks/slack", body, headers).status_code == 409
    stamp, signature = headers["x-slack-request-timestamp"], headers["x-slack-signature"]
    assert rig.new_clicks().receive(body, stamp, signature).status == 409


@pytest.mark.parametrize(
    "changes",
    [
        lambda now: {"secret": "wrong"},
        lambda now: {"at": now - 301},
        lambda now: {"at": now + 400},
        lambda now: {"at": 0},
    ],
    ids=["another secret", "too old", "from the future", "the epoch"],
)
def test_what_slack_has_not_just_signed_is_refused(rig: Rig, changes: Callable[[float], dict[str, Any]]) -> None:
    """And changes nothing."""
    before = rig.world.state()
    assert rig.click(waiting(rig.world), **changes(time.time())).status_code == 401
    assert rig.world.state() == before


@pytest.mark.parametrize("header", ["x-slack-signature", "x-slack-request-timestamp"])
@pytest.mark.parametrize("value", ["", "v0=", "9" * 400, "-1", "1e3", "\u00e4"])
def test_nonsense_for_a_signature_is_refused(rig: Rig, header: str, value: str) -> None:
    """With 401, and never an error of ours."""
    body, headers = signed(waiting(rig.world))
    raw = {**headers, header: value}
    answer = httpx.post(
        rig.url + "/hooks/slack", content=body, headers={k: v.encode() for k, v in raw.items()}, trust_env=False
    )
    assert answer.status_code == 401


def test_a_changed_body_is_refused(rig: Rig) -> None:
    """The signature is of the whole of it."""
    body, headers = signed(waiting(rig.world))
    assert rig.post("/hooks/slack", body.replace(b"approve", b"reject+"), headers).status_code == 401


def test_only_those_who_may_are_obeyed_and_others_are_told(rig: Rig) -> None:
    """By the allow-list of the settings."""
    before = rig.world.state()
    assert rig.click(waiting(rig.world), user="U2").status_code == 200
    wait_for(lambda: rig.slack.ephemeral)
    assert "are not among those who may" in rig.slack.ephemeral[0]["text"]
    assert (rig.slack.ephemeral[0]["user"], rig.slack.broken) == ("U2", [])
    assert rig.world.state() == before


def test_an_old_button_says_so_and_acts_on_no_other_cycle(rig: Rig) -> None:
    """The message of cycle 1 does nothing to cycle 2."""
    world, old = rig.world, waiting(rig.world)
    world.service.order("late", Order(verb=Verb.REJECT, actor="bob", reason="no"))
    world.later(days=1)
    world.live()
    world.service.order(
        "late", Order(verb=Verb.TRIGGER, actor="bob", reason="again")
    ) if world.state().cycle is None else None
    before = world.state()
    assert before.cycle is not None
    assert before.cycle.number == 2
    assert rig.click(old).status_code == 200
    wait_for(lambda: rig.slack.ephemeral)
    said = rig.slack.ephemeral[0]["text"]
    assert "late has moved on: this was about cycle 1" in said
    assert "now it is cycle 2" in said
    assert world.state().cycle.number == 2  # type: ignore[union-attr]
    assert [e.kind for e in world.store.events("late") if e.kind.startswith("override.approve")] == []


def test_a_button_of_a_model_that_was_deleted_and_made_again_is_old(rig: Rig) -> None:
    """The same name, the same cycle number, another model."""
    old = json.loads(waiting(rig.world))
    assert old["life"] == life_of(rig.world.state())
    assert rig.click(json.dumps({**old, "life": "20200101T000000000000"})).status_code == 200
    wait_for(lambda: rig.slack.ephemeral)
    assert "has moved on" in rig.slack.ephemeral[0]["text"]


@pytest.mark.parametrize(
    "value",
    [
        '{"verb": "pin"}',
        "{}",
        "[]",
        "x",
        '{"verb": "approve"}',
        '{"verb":"approve","model":"late","life":"x","cycle":"1","champion":null}',
    ],
)
def test_what_is_no_button_of_ours_is_refused(rig: Rig, value: str) -> None:
    """Signed or not: only four orders are given from Slack, and each needs its state."""
    assert rig.click(value, action="approve").status_code == 400
    assert rig.slack.ephemeral == []


def test_a_link_button_is_no_order(rig: Rig) -> None:
    """Slack tells of it too."""
    assert rig.click("x", action="open").status_code == 200


def test_a_large_body_is_refused(rig: Rig) -> None:
    """Before anything looks at it."""
    assert rig.post("/hooks/slack", b"x" * 300_000, {"content-type": "text/plain"}).status_code == 413
    headers = {"content-type": "application/json", "authorization": f"Bearer {ALERTS}"}
    assert rig.post("/hooks/alertmanager", b" " * (5 * 2**20), headers).status_code == 413


def test_without_settings_nothing_is_taken() -> None:
    """No buttons without a signing secret, no alerts without a token; both say what to set."""
    world = World()
    with served(world) as url:
        for path, setting in (
            ("slack", "RATCHET_SLACK_SIGNING_SECRET_FILE"),
            ("alertmanager", "RATCHET_ALERT_HOOK_TOKEN_FILE"),
        ):
            answer = httpx.post(f"{url}/hooks/{path}", json={}, trust_env=False)
            assert answer.status_code == 403
            assert setting in answer.json()["error"]


def test_buttons_carry_what_they_need_within_the_limit() -> None:
    """2,000 characters, whatever the model's name."""
    notice = NoticeRecord(
        key="k", model="m" * 63, kind="gates.passed", text="t", at=World().now,
        data={"subject": f"{'m' * 63}/20260101T000000000000/7", "cycle": 7, "phase": "judging", "champion": 1},
    )  # fmt: skip
    value = json.loads(pressed(notice, "abort"))
    assert value == {"verb": "abort", "model": "m" * 63, "life": "20260101T000000000000", "cycle": 7, "champion": 1}


# ---------------------------------------------------------------- alerts
def payload(*alerts: dict[str, Any]) -> dict[str, Any]:
    return {"version": "4", "groupKey": "g", "status": "firing", "receiver": "ratchet", "alerts": list(alerts)}


def told(
    name: str = "Slow", status: str = "firing", starts: str = "2026-03-02T02:00:00Z", **labels: str
) -> dict[str, Any]:
    return {
        "status": status, "labels": {"alertname": name, "model": "late", **labels}, "annotations": {"summary": "x"},
        "startsAt": starts, "endsAt": "0001-01-01T00:00:00Z", "generatorURL": "http://p", "fingerprint": "f",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("header", "status"),
    [(f"Bearer {ALERTS}", 200), ("Basic dTp0b2tlbi1vZi1hbGVydG1hbmFnZXI=", 200), ("", 401), ("Bearer x", 401), ("Basic !", 401),
     ("Basic dTp4", 401), (f"Bearer {ALERTS}x", 401), (f"Digest {ALERTS}", 401), ("Bearer", 401)],
)  # fmt: skip
def test_alerts_are_taken_from_who_has_the_token(rig: Rig, header: str, status: int) -> None:
    """As a bearer token or as the password of basic authentication; the API's own token does not open it, nor the other way round."""
    answer = rig.post("/hooks/alertmanager", json.dumps(payload()).encode(), {"authorization": header})
    assert answer.status_code == status
    listed = httpx.get(rig.url + "/api/v1/models", headers={"authorization": f"Bearer {ALERTS}"}, trust_env=False)
    assert listed.status_code == 401


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"version": "3", "alerts": []}', b"[" * 100_000, b'{"version":"4","alerts":{}}', b"\xff"],
)
def test_nonsense_is_refused(rig: Rig, body: bytes) -> None:
    """With 400."""
    answer = rig.post("/hooks/alertmanager", body, {"authorization": f"Bearer {ALERTS}"})
    assert answer.status_code == 400, answer.text


def test_alerts_that_make_no_sense_are_left_out() -> None:
    """One of them spoils no other."""
    odd: list[Any] = [
        None, {}, told(status="pending"), {**told(), "labels": {"alertname": 3}}, {**told(), "labels": {"a": "b"}},
        {**told(), "startsAt": None}, told(x="y" * 2_000), {**told(), "labels": {"alertname": "A", **{f"l{n}": "" for n in range(80)}}},
    ]  # fmt: skip
    assert [one.labels["alertname"] for one in parse(payload(*odd, told("Good")))] == ["Good"]


def test_an_alert_opens_one_cycle_however_often_it_is_told() -> None:
    """Repeated, after a restart, and after the cycle has closed; only its next episode opens another. `explain` says so."""
    world = alert_world()
    world.live()
    assert (
        world.sentences["late"]
        == 'v1 serves; the alert Slow{model="late"} does not fire, as far as Alertmanager has told'
    )
    for _ in range(3):
        book_of(world).hear(payload(told()))
    said = world.live()
    opened = [e for e in world.store.events("late") if e.kind == "cycle.opened"]
    assert len(opened) == 2, said
    assert 'trigger: the alert Slow{model="late"} fires' in str(opened[1].data["cause"])
    assert world.service.replay(opened[1].seq).same, "the alert is among what the decision was recorded with"
    world.later(days=1)
    settle(world)
    world.reconciler.alerts = book_of(world).signals  # a restart
    for _ in range(30):  # Alertmanager goes on and on, for days
        world.later(hours=4)
        book_of(world).hear(payload(told()))
        world.live()
    assert count(world) == 2
    assert "has fired for" in world.sentences["late"]
    book_of(world).hear(payload(told(status="resolved")))
    world.live()
    assert "it was over" in world.sentences["late"]
    book_of(world).hear(payload(told(starts="2026-03-20T00:00:00Z")))
    world.live()
    assert count(world) == 3


def alert_world() -> World:
    """A model that serves v1, and whose policy waits for an alert."""
    import controller_world

    text = controller_world.POLICY
    controller_world.POLICY = text.replace("triggers: {{staleness: 30d}}", "triggers: {{alert: Slow}}")
    try:
        world = World()
        world.reconciler.alerts = book_of(world).signals
        world.serving()
    finally:
        controller_world.POLICY = text
    settle(world)
    return world


def settle(world: World) -> None:
    """Until no cycle is open, and its cooldown is over."""
    for _ in range(40):
        world.live()
        if world.state().cycle is None:
            break
        world.later(hours=2)
    assert world.state().cycle is None
    world.later(hours=3)


def count(world: World) -> int:
    return sum(e.kind == "cycle.opened" for e in world.store.events("late", limit=1000))


def test_an_alert_of_another_model_is_not_ours() -> None:
    """The label `model` must be the model's name."""
    world = alert_world()
    book_of(world).hear(payload({**told(), "labels": {"alertname": "Slow", "model": "other"}}, told("Fast")))
    world.live()
    assert count(world) == 1


def test_an_alert_that_alertmanager_no_longer_repeats_is_unknown() -> None:
    """It may have died: nobody said that the alert is over, nor that it lasts."""
    world = alert_world()
    world.service.order("late", Order(verb=Verb.PAUSE, actor="bob", reason="x"))
    book_of(world).hear(payload(told()))
    world.later(hours=6)
    world.service.order("late", Order(verb=Verb.RESUME, actor="bob", reason="x"))
    assert "fired, but Alertmanager has not repeated it for 6h" in world.live()
    assert count(world) == 1
    book_of(world).hear(payload(told()))
    world.live()
    assert count(world) == 2


def test_who_hears_of_no_alerts_knows_nothing() -> None:
    """Unknown, with what to set."""
    world = alert_world()
    world.reconciler.alerts = book_of(world, listens=False).signals
    assert "RATCHET_ALERT_HOOK_TOKEN_FILE is not set" in world.live()


def test_word_that_comes_late_revives_nothing() -> None:
    """A notification that was under way when the alert ended."""
    world = World()
    book = book_of(world)
    book.hear(payload(told()))
    book.hear(payload(told(status="resolved")))
    book.hear(payload(told()))
    (alert,) = world.store.alerts()
    assert not alert.firing
    book.hear(payload(told("Never", status="resolved")))
    assert len(world.store.alerts()) == 1


def test_what_is_kept_is_bounded() -> None:
    """Room is made by what has long been over; without, new alerts are refused and nothing is lost."""
    world = World()
    one = ToldAlert(
        fingerprint="", labels={"alertname": "A"}, firing=True, starts_at="", heard_at=world.now, said_at=world.now
    )
    known = {f"f{n}": replace(one, fingerprint=f"f{n}", firing=n > 0) for n in range(ALERTS_MAX)}
    new = parse(payload(told()))
    with pytest.raises(TooManyAlerts):
        heard(known, new, world.now)
    after, old = heard(known, new, world.now + timedelta(days=2))
    assert (len(after), old) == (1, ["f0"])


# ---------------------------------------------------------------- the API and the command line
def test_channels_are_listed_and_tried_over_the_api(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """`ratchet notices` says what works and what does not, by exit code too."""
    from controller.cli.client import PLACE, CliError
    from controller.cli.notices import send_test, status

    world = World()
    world.service._notices = Notices(
        store=world.store, home=tmp_path, now=lambda: world.now, policy=world.reconciler.policy,
        options=NoticeOptions(defaults=Defaults(webhook="http://127.0.0.1:9/secret")),
    )  # fmt: skip
    with served(world) as url:
        monkeypatch.setattr(PLACE, "server", url)
        monkeypatch.setattr(PLACE, "token", API_TOKEN)
        status()
        with pytest.raises(CliError, match=r"1 of 2 channels failed: webhook:http://127.0.0.1:9/…"):
            send_test()
    told = " ".join(capsys.readouterr().out.split())
    assert "log yes" in told
    assert "cannot be reached" in told
    assert "secret" not in told
    assert "notices.tested" in (tmp_path / "notices.jsonl").read_text()
