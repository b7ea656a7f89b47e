"""People are told once, whatever happens between telling them and writing down that they were."""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from controller_states import DAY, NAME, NOW, state

from controller.notices.dispatcher import Dispatcher
from controller.notices.grouping import ALIKE_FROM
from controller.notices.journal import JournalNotifier
from controller.notices.outbox import BURST, DROP_AFTER, Outbox, outbox_of_one
from controller.notices.port import Channel, Message, Notifier, NotifierError
from controller.state import NoticeRecord
from controller.store.memory import MemoryStore
from controller.store.port import Commit, StoreError


def notice(number: int) -> NoticeRecord:
    return NoticeRecord(key=f"k{number}", model=NAME, kind="cycle.opened", text=f"news {number}", at=NOW)


def outbox(*notices: NoticeRecord) -> MemoryStore:
    store = MemoryStore()
    epoch = store.acquire("me", NOW, 1e6)
    assert epoch is not None
    made = store.create(epoch, replace(state(), row_version=0), [])
    store.commit(epoch, Commit(model=made, notices=notices))
    return store


def lines(path: Path) -> list[str]:
    return [json.loads(line)["key"] for line in path.read_text().splitlines()]


@dataclass
class Moody(Notifier):
    """Fails for some keys, and remembers the rest."""

    bad: set[str] = field(default_factory=set)
    seen: list[str] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    error: Exception = field(default_factory=lambda: NotifierError("channel not found"))

    def deliver(self, message: Message) -> None:
        self.messages.append(message)
        if self.bad & {"*", *(notice.key for notice in message.notices)}:
            raise self.error
        self.seen += [notice.key for notice in message.notices]


def settled(seconds: float = 6) -> datetime:
    return NOW + timedelta(seconds=seconds)


def channels(store: MemoryStore, **notifiers: Notifier) -> Outbox:
    """An outbox that tells each of these of everything."""
    opened = {name: Channel(notifier=notifier) for name, notifier in notifiers.items()}
    return Outbox(store=store, route=lambda _notice: list(notifiers), channel=opened.__getitem__)


def test_each_notice_is_delivered_once_in_order(tmp_path: Path) -> None:
    """A second round has nothing to do."""
    store, notifier = outbox(notice(1), notice(2)), JournalNotifier(tmp_path / "notices.jsonl")
    assert outbox_of_one(store, notifier).deliver_all(NOW) == 2
    assert outbox_of_one(store, notifier).deliver_all(NOW) == 0
    assert lines(tmp_path / "notices.jsonl") == ["k1", "k2"]


def test_a_crash_between_telling_and_marking_tells_once(tmp_path: Path) -> None:
    """The next process knows that people may have it, and finds the key in the journal (invariant 5)."""

    class Dying(MemoryStore):
        def end_deliveries(self, channel: str, keys: object, **_: object) -> None:  # type: ignore[override]
            raise StoreError("the process died here")

    store = outbox(notice(1))
    dying = Dying()
    dying.__dict__.update(store.__dict__)
    path = tmp_path / "notices.jsonl"
    with pytest.raises(StoreError):
        outbox_of_one(dying, JournalNotifier(path)).deliver_all(NOW)
    assert outbox_of_one(store, JournalNotifier(path)).deliver_all(NOW) == 1
    assert lines(path) == ["k1"]
    assert not store.pending_notices()


@pytest.mark.parametrize("error", [NotifierError("bad channel"), KeyError("bug")])
def test_a_failing_notice_holds_nothing_up(error: Exception) -> None:
    """It is tried again later, with its attempts counted; the others are delivered. A bug in the notifier is no different."""
    store, notifier = outbox(notice(1), notice(2), notice(3)), Moody(bad={"k1"}, error=error)
    box = outbox_of_one(store, notifier)
    assert box.deliver_all(NOW) == 2
    assert box.deliver_all(NOW) == 0
    assert notifier.seen == ["k2", "k3"]
    assert [(d.notice.key, d.attempts) for d in store.due_deliveries("log", NOW + DAY)] == [("k1", 1)]
    notifier.bad.clear()
    assert box.deliver_all(NOW + timedelta(seconds=4)) == 0, "it waits a little"
    assert box.deliver_all(NOW + timedelta(seconds=5)) == 1
    assert notifier.messages[-1].again


def test_old_news_is_dropped_in_the_end() -> None:
    """The outbox stays bounded."""
    store, notifier = outbox(notice(1)), Moody(bad={"k1"})
    box = outbox_of_one(store, notifier)
    box.deliver_all(NOW + DROP_AFTER)
    assert store.pending_notices()
    box.deliver_all(NOW + DROP_AFTER + DAY)
    assert not store.pending_notices()


def test_a_dead_channel_holds_up_no_other() -> None:
    """The living one is told everything, once; the dead one rests ever longer and is told everything when it is back."""
    store = outbox(*map(notice, range(3)))
    dead, alive = Moody(bad={"*"}, error=NotifierError("refused", channel_is_down=True)), Moody()
    box = channels(store, dead=dead, alive=alive)
    for second in range(6, 60):
        box.deliver_all(settled(second))
    assert alive.seen == ["k0", "k1", "k2"]
    assert len(dead.messages) == 4, "after 6, 11, 21 and 41 s, one message each time"
    dead.bad.clear()
    box.deliver_all(settled(3600))
    assert sorted(dead.seen) == ["k0", "k1", "k2"]
    assert not store.pending_notices()


def test_a_channel_that_asks_for_time_gets_it() -> None:
    """As with a 429 and its Retry-After."""
    store, moody = (
        outbox(notice(1)),
        Moody(bad={"*"}, error=NotifierError("429", retry_after_s=120, channel_is_down=True)),
    )
    box = channels(store, slack=moody)
    for second in range(6, 126):
        box.deliver_all(settled(second))
    assert len(moody.messages) == 1
    box.deliver_all(settled(126))
    assert len(moody.messages) == 2


def test_a_channel_that_is_not_set_up_says_so_and_loses_nothing() -> None:
    """Its notices wait, as if it were down."""
    store = outbox(notice(1))

    def closed(name: str) -> Channel:
        raise NotifierError("RATCHET_SLACK_TOKEN_FILE is not set")

    box = Outbox(store=store, route=lambda _n: ["slack:#a"], channel=closed)
    assert box.deliver_all(settled()) == 0
    assert box.error("slack:#a") == "RATCHET_SLACK_TOKEN_FILE is not set"
    assert [d.error for d in store.due_deliveries("slack:#a", settled(99))] == ["RATCHET_SLACK_TOKEN_FILE is not set"]


# ---------------------------------------------------------------- storms
def firing(number: int, text: str = "retraining, because drift is {}", kind: str = "cycle.opened") -> NoticeRecord:
    said = text.format(number / 1000)
    return NoticeRecord(
        key=f"f{number}", model=f"m{number}", kind=kind, text=said, at=NOW, data={"subject": f"m{number}/1"}
    )


def test_five_hundred_firings_of_one_cause_are_one_message() -> None:
    """Whatever their numbers are; what has nothing to do with them is told apart."""
    store, moody = outbox(*map(firing, range(500)), notice(9)), Moody()
    box = channels(store, slack=moody)
    box.deliver_all(NOW)
    assert moody.messages == [], "it waits for what else comes"
    assert box.deliver_all(settled()) == 501
    assert [(len(m.notices), m.digest) for m in moody.messages] == [(500, True), (1, False)]


def test_a_channel_that_is_not_set_up_is_tried_more_and_more_rarely() -> None:
    """One line in the log for all that waits, at each attempt; a policy with a misspelt webhook must not fill the disk. Nothing is lost."""
    store = outbox(notice(1), notice(2), notice(3))
    tried: list[int] = []
    there: list[Channel] = []

    def channel(_name: str) -> Channel:
        tried.append(second)
        if not there:
            raise NotifierError("no webhook 'pagr' is set up")
        return there[0]

    box = Outbox(store=store, route=lambda _notice: ["webhook:pagr"], channel=channel)
    for second in range(0, 60, 2):
        box.deliver_all(settled(second))
    assert tried == [0, 6, 16, 36]
    assert "pagr" in box.error("webhook:pagr")
    people = Moody()
    there.append(Channel(notifier=people))
    second = 76
    assert box.deliver_all(settled(second)) == 3
    assert people.seen == ["k1", "k2", "k3"]


def test_a_digest_is_tried_again_with_the_same_models() -> None:
    """After a crash or an error the message has the same key, whatever has come since (invariant 5)."""
    store, moody = outbox(*map(firing, range(ALIKE_FROM))), Moody(bad={"*"})
    box = channels(store, slack=moody)
    box.deliver_all(settled())
    epoch = store.acquire("me", NOW, 1e6)
    assert epoch is not None
    late = [replace(firing(n), at=settled()) for n in range(100, 110)]
    made = store.load(NAME)
    assert made is not None
    store.commit(epoch, Commit(model=made, notices=late))
    moody.bad.clear()
    channels(store, slack=moody).deliver_all(settled(20))
    first, again, other = moody.messages
    assert (again.key, again.notices, again.again) == (first.key, first.notices, True)
    assert len(other.notices) == 10


def test_a_channel_is_sent_a_bounded_number_of_messages() -> None:
    """Beyond that, what is of one kind is told together; nothing is lost."""
    kinds = [
        NoticeRecord(key=f"{n}", model=f"m{n}", kind=f"kind.{n % 3}", text=f"{chr(97 + n)}", at=NOW) for n in range(26)
    ]
    store, moody = outbox(*kinds), Moody()
    box = channels(store, slack=moody)
    assert box.deliver_all(settled()) == 26
    assert len(moody.messages) == 3 <= BURST


def test_an_incident_is_one_message_however_it_grows() -> None:
    """What was said of it meanwhile is told by the newest."""
    grown = [
        NoticeRecord(key=f"incident/5/{n}", model="m", kind="incident.opened", text=f"{n}", at=NOW,
                     data={"incident": 5, "subject": "incident/5"})
        for n in (1, 10, 100)
    ]  # fmt: skip
    moody = Moody()
    channels(outbox(*grown), slack=moody).deliver_all(settled())
    assert [(m.newest.text, m.digest) for m in moody.messages] == [("100", False)]


# ---------------------------------------------------------------- threads
def test_a_slow_channel_holds_neither_the_loop_nor_another() -> None:
    """Each has a thread of its own; a round returns at once, and the slow one is not asked twice at a time."""
    begun, go_on = threading.Semaphore(0), threading.Event()

    class Slow(Moody):
        def deliver(self, message: Message) -> None:
            begun.release()
            assert go_on.wait(30)
            super().deliver(message)

    store, slow, quick = outbox(notice(1)), Slow(), Moody()
    dispatcher = Dispatcher(channels(store, slow=slow, quick=quick), settled)
    dispatcher.round()
    assert begun.acquire(timeout=10)
    while not quick.seen:
        dispatcher.round()
    go_on.set()
    dispatcher.wait(10)
    assert (slow.seen, quick.seen) == (["k1"], ["k1"])
    assert not begun.acquire(blocking=False), "the slow channel was given it once"
    assert not store.pending_notices()


def test_a_crash_anywhere_in_a_round_loses_and_doubles_nothing() -> None:
    """Each call of the store in turn is the last one of its process; the next process tells the rest, and tells the same message again
    only as one that people may have."""
    for deadly in range(8):
        store, people = outbox(*map(notice, range(3))), Moody()
        seen: Counter[str] = Counter()
        calls = count()

        class Mortal:
            def __init__(self, alive: MemoryStore, calls: Iterator[int], deadly: int) -> None:
                self.alive, self.calls, self.deadly = alive, calls, deadly

            def __getattr__(self, name: str) -> Any:
                if next(self.calls) == self.deadly:
                    raise StoreError("the process died here")
                return getattr(self.alive, name)

        with suppress(StoreError):
            channels(Mortal(store, calls, deadly), slack=people).deliver_all(settled())  # type: ignore[arg-type]
        channels(store, slack=people).deliver_all(settled(9))
        for message in people.messages:
            if not (message.again and seen[message.key]):  # which a notifier looks for
                seen[message.key] += 1
        assert seen == {"k0": 1, "k1": 1, "k2": 1}, f"died at call {deadly}"
        assert not store.pending_notices()


# ---------------------------------------------------------------- the journal
def one(number: int) -> Message:
    return Message(key=f"k{number}", notices=(notice(number),))


def test_the_journal_holds_the_numbers_too(tmp_path: Path) -> None:
    """For machines to read; NaN is null."""
    path = tmp_path / "notices.jsonl"
    told = replace(notice(1), data={"score": math.nan, "to": [{"slack": "#a"}], "gates": [{"verdict": "pass"}]})
    JournalNotifier(path).deliver(Message(key="k1", notices=(told,)))
    assert json.loads(path.read_text())["facts"] == {"score": None, "gates": [{"verdict": "pass"}]}


def test_a_torn_line_costs_no_other(tmp_path: Path) -> None:
    """What a crash left of a line ends there; the notice itself is told again, whole."""
    path = tmp_path / "notices.jsonl"
    path.write_text('{"key": "k0", "text": "old"}\n{"key": "k1", "te')
    notifier = JournalNotifier(path)
    for number in (0, 1, 2):
        notifier.deliver(one(number))
    whole = [line for line in path.read_text().splitlines() if line.endswith("}")]
    assert [json.loads(line)["key"] for line in whole] == ["k0", "k1", "k2"]


def test_a_journal_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    """With its path; the outbox keeps the notice."""
    notifier = JournalNotifier(tmp_path / "away" / "notices.jsonl")
    with pytest.raises(NotifierError, match=r"away/notices\.jsonl: No such file"):
        notifier.deliver(one(1))
    (tmp_path / "away").mkdir()
    notifier.deliver(one(1))
    assert lines(tmp_path / "away" / "notices.jsonl") == ["k1"]


def test_half_a_write_is_no_delivery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up in the middle of a line gives an error, and the line is written anew when there is room."""
    import controller.notices.journal as journal

    real, path = journal.os.write, tmp_path / "notices.jsonl"
    monkeypatch.setattr(journal.os, "write", lambda handle, data: real(handle, data[:10]))
    notifier = JournalNotifier(path)
    with pytest.raises(NotifierError, match="only part of the line"):
        notifier.deliver(one(1))
    monkeypatch.undo()
    notifier.deliver(one(1))
    assert json.loads(path.read_text().splitlines()[-1])["key"] == "k1"
