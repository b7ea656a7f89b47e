"""People are told once, whatever happens between telling them and writing down that they were."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from controller_states import DAY, NAME, NOW, state

from controller.notices.journal import JournalNotifier
from controller.notices.outbox import DROP_AFTER, deliver_pending
from controller.notices.port import Notifier, NotifierError
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
    error: type[Exception] = NotifierError

    def deliver(self, notice: NoticeRecord) -> None:
        if notice.key in self.bad:
            raise self.error("channel not found")
        self.seen.append(notice.key)


def test_each_notice_is_delivered_once_in_order(tmp_path: Path) -> None:
    """A second round has nothing to do."""
    store, notifier = outbox(notice(1), notice(2)), JournalNotifier(tmp_path / "notices.jsonl")
    assert deliver_pending(store, notifier, NOW) == 2
    assert deliver_pending(store, notifier, NOW) == 0
    assert lines(tmp_path / "notices.jsonl") == ["k1", "k2"]


def test_a_crash_between_telling_and_marking_tells_once(tmp_path: Path) -> None:
    """The next process finds the key in the journal (invariant 5)."""

    class Dying(MemoryStore):
        def mark_notice(self, key: str, **_: object) -> None:  # type: ignore[override]
            raise StoreError("the process died here")

    store = outbox(notice(1))
    dying = Dying()
    dying.__dict__.update(store.__dict__)
    path = tmp_path / "notices.jsonl"
    with pytest.raises(StoreError):
        deliver_pending(dying, JournalNotifier(path), NOW)
    assert deliver_pending(store, JournalNotifier(path), NOW) == 1
    assert lines(path) == ["k1"]
    assert not store.pending_notices()


@pytest.mark.parametrize("error", [NotifierError, KeyError])
def test_a_failing_notice_holds_nothing_up(error: type[Exception]) -> None:
    """It stays pending with its attempts counted; the others are delivered. A bug in the notifier is no different."""
    store, notifier = outbox(notice(1), notice(2), notice(3)), Moody(bad={"k1"}, error=error)
    assert deliver_pending(store, notifier, NOW) == 2
    assert deliver_pending(store, notifier, NOW) == 0
    assert notifier.seen == ["k2", "k3"]
    assert [(n.key, n.attempts) for n in store.pending_notices()] == [("k1", 2)]
    notifier.bad.clear()
    assert deliver_pending(store, notifier, NOW) == 1


def test_old_news_is_dropped_in_the_end() -> None:
    """The outbox stays bounded."""
    store, notifier = outbox(notice(1)), Moody(bad={"k1"})
    deliver_pending(store, notifier, NOW + DROP_AFTER)
    assert store.pending_notices()
    deliver_pending(store, notifier, NOW + DROP_AFTER + DAY)
    assert not store.pending_notices()


def test_a_torn_line_costs_no_other(tmp_path: Path) -> None:
    """What a crash left of a line ends there; the notice itself is told again, whole."""
    path = tmp_path / "notices.jsonl"
    path.write_text('{"key": "k0", "text": "old"}\n{"key": "k1", "te')
    notifier = JournalNotifier(path)
    for number in (0, 1, 2):
        notifier.deliver(notice(number))
    whole = [line for line in path.read_text().splitlines() if line.endswith("}")]
    assert [json.loads(line)["key"] for line in whole] == ["k0", "k1", "k2"]


def test_a_journal_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    """With its path; the outbox keeps the notice."""
    notifier = JournalNotifier(tmp_path / "away" / "notices.jsonl")
    with pytest.raises(NotifierError, match=r"away/notices\.jsonl: No such file"):
        notifier.deliver(notice(1))
    (tmp_path / "away").mkdir()
    notifier.deliver(notice(1))
    assert lines(tmp_path / "away" / "notices.jsonl") == ["k1"]


def test_half_a_write_is_no_delivery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up in the middle of a line gives an error, and the line is written anew when there is room."""
    import controller.notices.journal as journal

    real, path = journal.os.write, tmp_path / "notices.jsonl"
    monkeypatch.setattr(journal.os, "write", lambda handle, data: real(handle, data[:10]))
    notifier = JournalNotifier(path)
    with pytest.raises(NotifierError, match="only part of the line"):
        notifier.deliver(notice(1))
    monkeypatch.undo()
    notifier.deliver(notice(1))
    assert json.loads(path.read_text().splitlines()[-1])["key"] == "k1"
