"""What every way to people must do, held against the journal, Slack, webhooks and a real Alertmanager alike."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from servers.alertmanager import alertmanager
from servers.listener import Listener, listener
from servers.slack import TOKEN, FakeSlack, fake_slack

from controller.notices.alertmanager import Alertmanager
from controller.notices.alerts import Alert
from controller.notices.journal import JournalNotifier
from controller.notices.port import Message, Notifier, NotifierError
from controller.notices.secrets import Secret
from controller.notices.slack import SlackNotifier
from controller.notices.slack_api import SlackApi
from controller.notices.webhook import WebhookNotifier
from controller.state import NoticeRecord
from controller.store.memory import MemoryStore

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECRET = "a-secret-that-nobody-may-see"
TIMEOUT_S = 1


def notice(number: int) -> NoticeRecord:
    return NoticeRecord(
        key=f"late/1/{number}", model="late", kind="cycle.opened", text=f"news {number}", at=NOW,
        data={"subject": f"late/life/{number}", "cycle": number, "phase": "queued", "champion": 2},
    )  # fmt: skip


def message(number: int, *, again: bool = False) -> Message:
    return Message(key=notice(number).key, notices=(notice(number),), again=again)


@dataclass
class AsNotifier(Notifier):
    """An Alertmanager has states and no messages: the news is an alert here, with the key for a label."""

    instance: Alertmanager

    def deliver(self, message: Message) -> None:
        alert = Alert(
            labels={"alertname": "News", "key": message.key},
            annotations={"summary": message.newest.text},
            starts_at=NOW,
        )
        self.instance.send([alert], [], datetime.now(UTC))


@dataclass
class Rig:
    """A way to people, what they see of it, and one like it that leads somewhere else."""

    notifier: Notifier
    seen: Callable[[], list[str]]
    elsewhere: Callable[[str], Notifier] | None
    """The same with another address; None where there is none."""
    faulty: Any = None
    """What misbehaves on request."""
    store: MemoryStore = field(default_factory=MemoryStore)


def slack_to(url: str, store: MemoryStore) -> SlackNotifier:
    slack = SlackApi(token=Secret(name="slack_token", value=TOKEN), url=url, timeout_s=TIMEOUT_S)
    return SlackNotifier(channel="#ops", slack=slack, store=store, now=lambda: NOW, buttons=True)


def slack_by_file(path: Path, url: str) -> SlackNotifier:
    slack = SlackApi(token=Secret(name="slack_token", file=path), url=url)
    return SlackNotifier(channel="#ops", slack=slack, store=MemoryStore(), now=lambda: NOW)


def webhook_to(url: str) -> WebhookNotifier:
    address = Secret(name="webhooks.a.url", value=f"{url}/{SECRET}?k={SECRET}")
    return WebhookNotifier(address, secret=Secret(name="webhooks.a.secret", value=SECRET), timeout_s=TIMEOUT_S)


def alertmanager_to(url: str) -> AsNotifier:
    return AsNotifier(
        Alertmanager(url, user="u", secret=Secret(name="alertmanager_secret", value=SECRET), timeout_s=TIMEOUT_S)
    )


@pytest.fixture(scope="session")
def real_alertmanager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with alertmanager(tmp_path_factory.mktemp("alertmanager")) as running:
        yield running


@pytest.fixture(params=["journal", "slack", "webhook", "alertmanager"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    with ExitStack() as stack:
        match request.param:
            case "journal":
                path = tmp_path / "notices.jsonl"
                yield Rig(
                    notifier=JournalNotifier(path), elsewhere=None,
                    seen=lambda: [json.loads(line)["key"] for line in path.read_text().splitlines()] if path.exists() else [],
                )  # fmt: skip
            case "slack":
                store, slack = MemoryStore(), stack.enter_context(fake_slack())
                yield Rig(
                    notifier=slack_to(slack.url, store), store=store, elsewhere=lambda url: slack_to(f"{url}/api/", store),
                    seen=lambda: [m["metadata"]["event_payload"]["key"] for m in slack.messages], faulty=slack,
                )  # fmt: skip
                assert slack.broken == []
            case "webhook":
                hook = stack.enter_context(listener())
                yield Rig(
                    notifier=webhook_to(hook.url), elsewhere=webhook_to, faulty=hook,
                    seen=lambda: list({headers["idempotency-key"]: 1 for headers, _ in hook.requests}),
                )  # fmt: skip
            case _:
                running = request.getfixturevalue("real_alertmanager")
                before = {a["fingerprint"] for a in running.alerts()}
                yield Rig(
                    notifier=alertmanager_to(running.url), elsewhere=alertmanager_to,
                    seen=lambda: [a["labels"]["key"] for a in running.alerts() if a["fingerprint"] not in before],
                )  # fmt: skip
                AsNotifier(Alertmanager(running.url)).instance.send(
                    [],
                    [(Alert(labels=a["labels"], annotations={}, starts_at=NOW), NOW) for a in running.alerts()],
                    datetime.now(UTC),
                )


def test_what_is_delivered_is_seen_once(rig: Rig) -> None:
    """However often it is delivered under the same key, and whoever delivers it again knows of it."""
    rig.notifier.deliver(message(1))
    rig.notifier.deliver(message(1, again=True))
    rig.notifier.deliver(message(2))
    rig.notifier.deliver(message(1, again=True))
    assert sorted(rig.seen()) == ["late/1/1", "late/1/2"]


@pytest.mark.parametrize("rig", ["slack", "webhook", "alertmanager"], indirect=True)
@pytest.mark.parametrize("fault", ["refused", "slow"])
def test_a_dead_address_is_an_error_in_bounded_time_that_tells_no_secret(
    rig: Rig, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody listens, or somebody who never answers."""
    assert rig.elsewhere is not None
    caplog.set_level(logging.DEBUG)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        if fault == "slow":
            mute.listen()
        began = time.monotonic()
        with pytest.raises(NotifierError) as caught:
            rig.elsewhere(f"http://127.0.0.1:{mute.getsockname()[1]}").deliver(message(1))
    assert time.monotonic() - began < 20
    assert caught.value.channel_is_down
    assert_secretive(caught.value, caplog)


def assert_secretive(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None:
        chain.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    told = " ".join(map(repr, chain)) + caplog.text
    assert SECRET not in told
    assert TOKEN not in told


@pytest.mark.parametrize("rig", ["slack", "webhook"], indirect=True)
@pytest.mark.parametrize("fault", [(500, 0), (502, 0), (429, 7), "cut", (302, 0), (403, 0)])
def test_a_refusal_is_an_error_and_the_next_attempt_delivers(
    rig: Rig, fault: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """With the time that the other side asks for; nothing follows a redirect."""
    caplog.set_level(logging.DEBUG)
    given = fault
    if isinstance(rig.faulty, Listener):
        given = (
            fault if isinstance(fault, str) else (fault[0], {"location": rig.faulty.url, "retry-after": str(fault[1])})
        )
    rig.faulty.faults = [given]
    with pytest.raises(NotifierError) as caught:
        rig.notifier.deliver(message(1))
    assert caught.value.channel_is_down
    assert caught.value.retry_after_s == (7 if fault == (429, 7) else 0)
    assert_secretive(caught.value, caplog)
    assert rig.seen() == []
    rig.notifier.deliver(message(1, again=True))
    assert rig.seen() == ["late/1/1"]


@pytest.mark.parametrize("rig", ["slack", "webhook"], indirect=True)
def test_a_delivery_whose_answer_was_lost_is_seen_once(rig: Rig) -> None:
    """The other side took it and the connection broke: the next attempt finds out."""
    rig.faulty.faults = ["cut-after"]
    with pytest.raises(NotifierError):
        rig.notifier.deliver(message(1))
    rig.notifier.deliver(message(1, again=True))
    assert rig.seen() == ["late/1/1"]


def test_a_crash_before_anything_was_written_down_is_seen_once(rig: Rig, tmp_path: Path) -> None:
    """A new process remembers nothing of the delivery but that it was begun."""
    rig.notifier.deliver(message(1))
    fresh = MemoryStore()
    if isinstance(rig.faulty, FakeSlack):
        slack_to(rig.faulty.url, fresh).deliver(message(1, again=True))
    elif isinstance(rig.notifier, JournalNotifier):
        JournalNotifier(tmp_path / "notices.jsonl").deliver(message(1, again=True))
    else:
        rig.notifier.deliver(message(1, again=True))
    assert rig.seen() == ["late/1/1"]


# ---------------------------------------------------------------- webhooks alone
def test_a_slow_drip_is_slow_too() -> None:
    """A server that sends a byte now and then holds nobody for longer."""
    with listener() as hook:
        hook.faults = ["drip"]
        with pytest.raises(NotifierError, match="did not answer within 1 s"):
            webhook_to(hook.url).deliver(message(1))


def test_slack_is_slow_too_where_it_drips() -> None:
    """A thread that waits for a byte now and then would be held for ever."""
    with listener() as kept:
        kept.faults = ["drip"]
        slack = SlackApi(token=Secret(name="slack_token", value=TOKEN), url=f"{kept.url}/api/", timeout_s=1)
        with pytest.raises(NotifierError, match="did not answer within 1 s"):
            slack.call("chat_postMessage", channel="#ops", text="x")


@pytest.mark.parametrize("status", [301, 302, 303])
def test_slacks_token_goes_nowhere_else(status: int) -> None:
    """What answers for Slack says that it is elsewhere: nobody there is asked, with the token or without."""
    with listener() as kept, listener() as elsewhere:
        kept.faults = [(status, {"location": elsewhere.url})]
        slack = SlackApi(token=Secret(name="slack_token", value=TOKEN), url=f"{kept.url}/api/")
        with pytest.raises(NotifierError) as caught:
            slack.call("chat_postMessage", channel="#ops", text="x")
        assert elsewhere.requests == []
    assert caught.value.channel_is_down
    assert TOKEN not in str(caught.value)


def test_a_webhook_that_says_its_address_back_does_not_make_it_known() -> None:
    """Frameworks answer `Cannot POST /services/…` where nothing is; for many webhooks that path is the secret."""
    with listener() as kept:
        url = Secret(name="webhook", value=f"{kept.url}/services/T0/B%2Fsecret?key=s3cr3t")
        said = b"Cannot POST /services/T0/B%2Fsecret?key=s3cr3t (B/secret)"
        kept.faults = [(404, {}, said)]
        with pytest.raises(NotifierError, match="answered 404: Cannot POST") as caught:
            WebhookNotifier(url).deliver(message(1))
    assert "secret" not in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


def test_an_alertmanager_that_says_the_password_back_does_not_make_it_known() -> None:
    """Neither as it is nor as it is sent."""
    with listener() as kept:
        secret = Secret(name="alertmanager_secret", value="hunter22")
        kept.faults = [(400, {}, b"bad header Basic dTpodW50ZXIyMg== of hunter22")]
        with pytest.raises(NotifierError, match="answered 400: bad header") as caught:
            Alertmanager(kept.url, user="u", secret=secret).send(
                [Alert(labels={"alertname": "x"}, annotations={}, starts_at=NOW)], [], NOW
            )
    assert "hunter22" not in str(caught.value)
    assert "dTpodW50ZXIyMg" not in str(caught.value)


def test_a_webhook_is_signed_and_says_what_happened() -> None:
    """The receiver can check who sent it and when, as docs/notices.md says."""
    import hashlib
    import hmac

    with listener() as hook:
        webhook_to(hook.url).deliver(message(1))
        ((headers, body),) = hook.requests
    stamp = headers["x-ratchet-timestamp"]
    right = hmac.new(SECRET.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
    assert headers["x-ratchet-signature"] == f"v1={right}"
    assert abs(int(stamp) - time.time()) < 60
    told = json.loads(body)
    assert (told["schema"], told["kind"], told["model"], told["count"]) == (
        "ratchet.dev/notice/v1",
        "cycle.opened",
        "late",
        1,
    )
    assert told["notices"][0]["facts"]["cycle"] == 1


def test_a_digest_is_one_post_with_all_of_it() -> None:
    """The count, and each notice."""
    notices = tuple(replace(notice(n), model=f"m{n}") for n in range(500))
    with listener() as hook:
        webhook_to(hook.url).deliver(Message(key="batch/1", notices=notices, digest=True))
        ((_, body),) = hook.requests
    told = json.loads(body)
    assert (told["digest"], told["count"], told["model"], len(told["notices"])) == (True, 500, None, 500)


@pytest.mark.parametrize(
    "url",
    ["ftp://x", "https://[", "http://", "file:///etc/passwd"],
)
def test_nonsense_for_an_address_is_an_error(url: str) -> None:
    """And not a bug."""
    with pytest.raises(NotifierError, match="is no URL that can be asked"):
        WebhookNotifier(Secret(name="webhook", value=url)).deliver(message(1))


# ---------------------------------------------------------------- secrets
@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "No such file"), (b"", "must hold one line"), (b"two\nlines", "must hold one line"), (b"\xff", "is not text"),
     (b"x" * 70_000, "must hold one line")],
)  # fmt: skip
def test_a_secret_that_cannot_be_read_says_where_and_not_what(tmp_path: Path, content: bytes | None, said: str) -> None:
    """The channel is down until it can."""
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    made = slack_by_file(path, "http://127.0.0.1:9/")
    with pytest.raises(NotifierError, match=said) as caught:
        made.deliver(message(1))
    assert "two" not in str(caught.value)
    assert caught.value.channel_is_down


def test_a_secret_that_is_replaced_counts_at_once(tmp_path: Path) -> None:
    """No restart after a rotation."""
    path = tmp_path / "token"
    path.write_text("wrong\n")
    with fake_slack() as slack:
        made = slack_by_file(path, slack.url)
        with pytest.raises(NotifierError, match="invalid_auth; is the token right"):
            made.deliver(message(1))
        path.write_text(TOKEN + "\n")
        made.deliver(message(1))
        assert len(slack.messages) == 1


# ---------------------------------------------------------------- Alertmanager alone
def test_an_alert_that_is_over_ends_there(real_alertmanager: Any) -> None:
    """The same labels are the same alert: it fires once, and is gone when it is said to be over."""
    instance = Alertmanager(real_alertmanager.url)
    alert = Alert(
        labels={"alertname": "RatchetIncident", "column": "fare"}, annotations={"summary": "1 model"}, starts_at=NOW
    )
    now = datetime.now(UTC)
    instance.send([alert], [], now)
    instance.send([replace(alert, annotations={"summary": "500 models"})], [], now)
    (found,) = [a for a in real_alertmanager.alerts() if a["labels"].get("column") == "fare"]
    assert found["annotations"] == {"summary": "500 models"}
    assert datetime.fromisoformat(found["endsAt"]) - now > timedelta(minutes=3)
    instance.send([], [(alert, datetime.now(UTC))], datetime.now(UTC))
    deadline = time.monotonic() + 10
    while any(a["labels"].get("column") == "fare" for a in real_alertmanager.alerts()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
