"""What people see in Slack: one message a cycle, one a fault, one for many alike; and nothing that a hostile text asks for."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers.slack import TOKEN, FakeSlack, fake_slack, problems

sys.path.append(str(Path(__file__).parents[1] / "controller_web"))
from controller_world import START, World

from controller.incidents import facts_of
from controller.notices.building import NoticeOptions, Notices
from controller.notices.outbox import Outbox
from controller.notices.port import Channel, Message, NotifierError
from controller.notices.routing import Defaults
from controller.notices.secrets import Secret
from controller.notices.slack import SlackNotifier
from controller.notices.slack_api import SlackApi
from controller.notices.slack_blocks import (
    digest_blocks,
    digest_fallback,
    fallback,
    incident_blocks,
    notice_blocks,
    reply_blocks,
)
from controller.overrides import Order, Verb
from controller.state import Incident, NoticeRecord
from controller.store.memory import MemoryStore

LINK = "https://ratchet.example/"


@pytest.fixture
def slack() -> Iterator[FakeSlack]:
    with fake_slack() as made:
        yield made
        assert made.broken == [], "Slack would have refused it"


def notifier(slack: FakeSlack, store: Any = None, now: datetime = START) -> SlackNotifier:
    api = SlackApi(token=Secret(name="slack_token", value=TOKEN), url=slack.url, timeout_s=2)
    kept = store if store is not None else MemoryStore()
    return SlackNotifier(channel="#ops", slack=api, store=kept, now=lambda: now, link=LINK, buttons=True)


def outbox(world: World, slack: FakeSlack) -> Outbox:
    told = Channel(notifier=notifier(slack, world.store), settle=timedelta(0))
    return Outbox(store=world.store, route=lambda _n: ["slack:#ops"], channel=lambda _name: told)


def headline(message: dict[str, Any]) -> str:
    return str(message["blocks"][0]["text"]["text"])


def labels(message: dict[str, Any]) -> list[str]:
    """Of the buttons."""
    return [e["text"]["text"] for b in message["blocks"] if b["type"] == "actions" for e in b["elements"]]


def alone(notice: NoticeRecord, *, again: bool = False) -> Message:
    return Message(key=notice.key, notices=(notice,), again=again)


# ---------------------------------------------------------------- a cycle
def test_a_cycle_is_one_message_that_follows_it(slack: FakeSlack) -> None:
    """From its firing to its end; what happened stands in the thread, and the buttons are those of the moment."""
    world = World().serving()
    box = outbox(world, slack)
    box.deliver_all(world.now)
    world.service.order("late", Order(verb=Verb.TRIGGER, actor="ann", reason="new data"))
    world.live()
    box.deliver_all(world.now)
    message = slack.parents()[-1]
    assert headline(message) == "🚦 late · cycle 2: canary goes on"
    assert labels(message) == ["Abort cycle", "Roll back", "Open dashboard"]
    told = json.dumps(message["blocks"], ensure_ascii=False)
    for expected in ("v1 90 %, v2 10 % (step 1 of 2)", "0.8000", "passed all 1 gates", "*Challenger*\\nv2"):
        assert expected in told or expected in json.dumps(slack.messages, ensure_ascii=False), expected
    for _ in range(8):
        world.later(hours=2)
        world.live()
        box.deliver_all(world.now)
    assert world.state().champion == 2
    assert world.state().cycle is None
    assert headline(message) == "🏁 late · cycle 2: stays champion"
    assert labels(message) == ["Roll back", "Open dashboard"]
    assert len(slack.parents()) == 2, "one message for each cycle"
    replies = slack.replies(message["ts"])
    assert [r["text"].split(": ")[1] for r in replies] == ["cycle opened", "gates passed", "promoted", "stays champion"]
    assert [r["reply_broadcast"] for r in replies] == [False, False, True, False]


def test_an_order_is_seen_with_who_gave_it(slack: FakeSlack) -> None:
    """The message that asked for approval shows what became of it, and asks no more."""
    world = World().serving(approval="required")
    box = outbox(world, slack)
    box.deliver_all(world.now)
    (message,) = slack.parents()
    assert labels(message) == ["Approve", "Reject", "Open dashboard"]
    world.service.order("late", Order(verb=Verb.APPROVE, actor="ann (Slack U1)", reason="pressed in Slack"))
    box.deliver_all(world.now)
    assert labels(message) == ["Abort cycle", "Open dashboard"]
    assert "by ann (Slack U1)" in json.dumps(message["blocks"])


def test_dangerous_buttons_ask_once_more() -> None:
    """Abort, roll back and reject; with the model's name."""
    world = World().serving(approval="required")
    (asked,) = [n for n in world.store.unrouted_notices() if n.kind == "approval.requested"]
    rolling = replace(asked, data={**asked.data, "phase": "rolling_out", "champion": 1})
    for notice in (asked, rolling):
        (actions,) = [b for b in notice_blocks(notice, "", buttons=True) if b["type"] == "actions"]
        asking = {
            e["action_id"]: "late" in e["confirm"]["title"]["text"] for e in actions["elements"] if "confirm" in e
        }
        assert asking in ({"ratchet.reject": True}, {"ratchet.abort": True, "ratchet.rollback": True})


def test_without_a_signing_secret_there_are_no_buttons() -> None:
    """But the link."""
    world = World().serving(approval="required")
    (asked,) = [n for n in world.store.unrouted_notices() if n.kind == "approval.requested"]
    (actions,) = [b for b in notice_blocks(asked, LINK, buttons=False) if b["type"] == "actions"]
    assert [(e["action_id"], e["url"]) for e in actions["elements"]] == [("ratchet.open", f"{LINK}#late")]


def cycle_notice(kind: str = "cycle.opened", *, number: int = 1, minute: int = 0) -> NoticeRecord:
    return NoticeRecord(
        key=f"{kind}/{number}/{minute}", model="late", kind=kind, text="so it was said", at=START + timedelta(minutes=minute),
        data={"subject": f"late/life/{number}", "cycle": number, "phase": "queued"},
    )  # fmt: skip


@pytest.mark.parametrize("fault", ["cut-after", "cut"])
def test_a_reply_whose_answer_was_lost_is_there_once(slack: FakeSlack, fault: str) -> None:
    """The thread is searched for it."""
    store = MemoryStore()
    made = notifier(slack, store)
    made.deliver(alone(cycle_notice()))
    slack.faults = [fault]
    with pytest.raises(NotifierError):
        made.deliver(alone(cycle_notice("gates.passed", minute=1)))
    made.deliver(alone(cycle_notice("gates.passed", minute=1), again=True))
    (parent,) = slack.parents()
    assert len(slack.replies(parent["ts"])) == 1
    assert "gates passed" in headline(parent)


def test_old_news_does_not_cover_new(slack: FakeSlack) -> None:
    """A notice that was held up is added to the thread, and the message stays at the newest state."""
    made = notifier(slack)
    made.deliver(alone(cycle_notice()))
    made.deliver(alone(cycle_notice("version.promoted", minute=9)))
    made.deliver(alone(cycle_notice("gates.passed", minute=5)))
    (parent,) = slack.parents()
    assert "promoted" in headline(parent)
    assert len(slack.replies(parent["ts"])) == 2


def test_a_message_that_somebody_deleted_is_posted_anew(slack: FakeSlack) -> None:
    """A moderator may."""
    made = notifier(slack)
    made.deliver(alone(cycle_notice()))
    slack.messages.clear()
    made.deliver(alone(cycle_notice("step.reached", minute=1)))
    assert len(slack.parents()) == 1


def test_an_app_that_may_not_read_posts_again(slack: FakeSlack) -> None:
    """Seen twice is better than not at all; docs/notices.md says so."""
    slack.scopes = frozenset({"chat.postMessage", "chat.update"})
    slack.faults = ["cut-after"]
    made = notifier(slack)
    with pytest.raises(NotifierError):
        made.deliver(alone(cycle_notice()))
    made.deliver(alone(cycle_notice(), again=True))
    assert len(slack.messages) == 2


@pytest.mark.parametrize(
    "fault", ["nonsense", "not_in_channel", "channel_not_found", "missing_scope", "invalid_blocks", "slow"]
)
def test_what_slack_says_no_to_is_an_error_that_helps(slack: FakeSlack, fault: str) -> None:
    """With Slack's own word and what to do; what is wrong with one message holds up no other."""
    slack.faults = [fault]
    with pytest.raises(NotifierError) as caught:
        notifier(slack).deliver(alone(cycle_notice()))
    assert caught.value.channel_is_down is (fault != "invalid_blocks")
    if fault == "not_in_channel":
        assert "/invite @ratchet" in str(caught.value)


# ---------------------------------------------------------------- storms
def many(start: int, count: int, minute: int = 0) -> Message:
    notices = tuple(
        NoticeRecord(
            key=f"k{n}", model=f"m{n}", kind="cycle.opened", text=f"retraining, because drift is 0.{n}",
            at=START + timedelta(minutes=minute), data={"subject": f"m{n}/life/1", "cycle": 1},
        )
        for n in range(start, start + count)
    )  # fmt: skip
    return Message(key=f"batch/{start}", notices=notices, digest=True)


def test_a_storm_is_one_message_with_a_count(slack: FakeSlack) -> None:
    """More of the same is counted in it; told again it is counted once, by a process that remembers nothing too."""
    store = MemoryStore()
    made = notifier(slack, store)
    made.deliver(many(0, 300))
    made.deliver(many(300, 200))
    made.deliver(replace(many(300, 200), again=True))
    notifier(slack, MemoryStore()).deliver(replace(many(0, 300), again=True))
    (message,) = slack.parents()
    assert headline(message) == "🔁 500 × cycle opened" or headline(message) == "🔁 300 × cycle opened"
    made.deliver(replace(many(300, 200), again=True))
    assert headline(message) == "🔁 500 × cycle opened"
    assert "and 490 more" in json.dumps(message["blocks"])
    assert labels(message) == ["Open dashboard"]


def test_another_storm_is_another_message(slack: FakeSlack) -> None:
    """After a quarter of an hour."""
    store = MemoryStore()
    notifier(slack, store).deliver(many(0, 10))
    notifier(slack, store, START + timedelta(minutes=16)).deliver(many(10, 10))
    assert [headline(m) for m in slack.parents()] == ["🔁 10 × cycle opened"] * 2


def test_a_fault_in_five_hundred_models_is_one_message(slack: FakeSlack) -> None:
    """It grows, and in the end it says that it is over."""
    made = notifier(slack)

    def incident(kind: str, models: int, *, over: bool = False) -> NoticeRecord:
        data = {
            "subject": "incident/5", "incident": 5, "fault": "nulls_jumped", "source": "s3://flights", "column": "fare",
            "since": START.isoformat(), "models": models, "affected": 0 if over else models, "names": ["a", "b"], "over": over,
        }  # fmt: skip
        return NoticeRecord(
            key=f"incident/5/{kind}{models}", model="a", kind=f"incident.{kind}", text="nulls", at=START, data=data
        )

    for notice in (incident("opened", 1), incident("grown", 100), incident("grown", 500)):
        made.deliver(alone(notice))
    (message,) = slack.parents()
    assert headline(message) == "🚨 data incident 5 is open: 500 models"
    made.deliver(alone(incident("closed", 500, over=True)))
    assert headline(slack.parents()[0]) == "✅ data incident 5 is over: 500 models"
    assert len(slack.messages) == 1


def test_the_message_of_an_incident_counts_on_by_itself(slack: FakeSlack, tmp_path: Path) -> None:
    """Between the notices of its growth, once for each count; where nothing was told, nothing is changed."""
    world = World().serving()
    one = Incident(
        id=5, kind="nulls_jumped", source="s3://flights", subject="fare", sentence="nulls", since=START, opened_at=START,
        models=1, affected=1, names=("late",),
    )  # fmt: skip
    notices = Notices(
        store=world.store, home=tmp_path, now=lambda: world.now, policy=world.reconciler.policy,
        options=NoticeOptions(
            defaults=Defaults(slack="#ops"), slack_token=Secret(name="slack_token", value=TOKEN), slack_api=slack.url
        ),
    )  # fmt: skip
    world.store._incidents[5] = one
    notices.refresh_incidents()
    assert slack.messages == []
    data = facts_of(one)
    opened = NoticeRecord(
        key="incident/5/opened", model="late", kind="incident.opened", text="nulls", at=START, data=data
    )
    notifier(slack, world.store).deliver(alone(opened))
    world.store._incidents[5] = replace(one, models=437, affected=437)
    for _ in range(3):
        notices.refresh_incidents()
    assert [headline(m) for m in slack.messages] == ["🚨 data incident 5 is open: 437 models"]
    assert slack.calls.count("chat.update") == 1
    slack.faults = [500]
    world.store._incidents[5] = replace(one, models=500, affected=500)
    notices.refresh_incidents()
    notices.refresh_incidents()
    assert headline(slack.messages[0]).endswith("500 models")


# ---------------------------------------------------------------- hostile text
HOSTILE = st.text(max_size=300) | st.sampled_from(
    [
        "<!channel> <@U1> <https://evil|click>",
        "&lt;!here&gt;",
        "a\u202eb",
        "*bold* _x_ `y`",
        "\x00\x1b[31m",
        "x" * 9_000,
        "",
        " \n ",
        "😀" * 3_000,
    ]
)
NUMBERS = st.none() | st.floats() | st.integers()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    st.fixed_dictionaries(
        {"subject": HOSTILE, "cycle": st.integers(), "phase": st.sampled_from(["judging", "rolling_out", "baking", "awaiting_approval"])},
        optional={
            "cause": HOSTILE, "actor": HOSTILE, "metric": HOSTILE, "champion": st.integers(), "challenger": st.integers(),
            "score": st.floats(allow_nan=False, allow_infinity=False), "champion_score": st.floats(allow_nan=False, allow_infinity=False),
            "gates": st.lists(st.fixed_dictionaries({"gate": HOSTILE, "verdict": HOSTILE, "sentence": HOSTILE}), max_size=12),
            "history": st.lists(st.tuples(st.integers(), st.floats(0, 1)), max_size=20),
        },
    ),
    HOSTILE, HOSTILE, HOSTILE,
)  # fmt: skip
def test_no_text_breaks_the_limits_or_the_markup(data: dict[str, Any], model: str, kind: str, text: str) -> None:
    """Whatever models, labels, reasons and sentences hold: no mention, no link, no control character, never too long."""
    notice = NoticeRecord(key="k", model=model, kind=kind, text=text, at=START, data=data)
    for blocks in (
        notice_blocks(notice, LINK, buttons=True), reply_blocks(notice), incident_blocks(replace(notice, data={"names": [model]}), LINK),
        digest_blocks(kind, 9, [model, text], text, LINK),
    ):  # fmt: skip
        assert problems({"blocks": blocks, "text": fallback(notice)}) == []
        shown = json.dumps([b for b in blocks if b["type"] != "actions"], ensure_ascii=False)
        assert not any(char in shown for char in "\u202e\u200b\x00\x1b")
    assert problems({"text": digest_fallback(kind, 9, [model])}) == []
