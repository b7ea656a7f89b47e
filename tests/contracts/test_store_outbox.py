"""What every store must do for whoever tells people, held against the fake and the real ones alike."""

# ruff: noqa: F811 - fixtures are imported, and then are names of arguments

from __future__ import annotations

from dataclasses import replace

from test_store import A_MINUTE, NOW, bare, epoch, notice, store  # noqa: F401 - fixtures

from controller.state import ModelState, ToldAlert
from controller.store.port import Commit, Store


def test_a_notice_is_kept_once_and_delivered_once(store: Store, epoch: int) -> None:
    """The same key twice is one message; a delivered one never comes back."""
    state = store.create(epoch, bare(), [])
    both = [notice("k"), notice("k"), notice("later", NOW + A_MINUTE)]
    state = store.commit(epoch, Commit(model=state, notices=both))
    state = store.commit(epoch, Commit(model=state, notices=[notice("k"), notice("older", NOW - A_MINUTE)]))
    assert [n.key for n in store.pending_notices()] == ["older", "k", "later"]
    assert [n.key for n in store.pending_notices(limit=2)] == ["older", "k"]
    store.route_notices({"k": ["log"], "unknown": ["log"]}, NOW)
    assert [n.key for n in store.unrouted_notices()] == ["older", "later"]
    store.end_deliveries("log", ["k"], at=NOW, done=True)
    store.commit(epoch, Commit(model=state, notices=[notice("k")]))
    assert [n.key for n in store.pending_notices()] == ["older", "later"]


def outbox(store: Store, epoch: int, *keys: str) -> ModelState:
    state = store.create(epoch, bare(), [])
    return store.commit(epoch, Commit(model=state, notices=[notice(key) for key in keys]))


def test_each_channel_is_told_on_its_own(store: Store, epoch: int) -> None:
    """What one has been told or could not be told changes nothing for another; the notice is done when all are."""
    outbox(store, epoch, "k", "nobody")
    store.route_notices({"k": ["log", "slack:#a", "log"], "nobody": []}, NOW)
    assert store.waiting() == {"log": 1, "slack:#a": 1}
    store.begin_deliveries("log", ["k"], "k")
    store.end_deliveries("log", ["k"], at=NOW, done=True)
    assert store.waiting() == {"slack:#a": 1}
    assert store.due_deliveries("log", NOW) == []
    assert [n.key for n in store.pending_notices()] == ["k"], "nobody is to be told of the other"
    store.begin_deliveries("slack:#a", ["k"], "k")
    store.end_deliveries("slack:#a", ["k"], at=NOW, done=True)
    assert [*store.pending_notices(), *store.waiting()] == []


def test_a_failed_delivery_is_due_later_and_remembers_its_message(store: Store, epoch: int) -> None:
    """Attempts are counted when they begin; the message that carried it, when it is due and why it failed are kept."""
    outbox(store, epoch, "a", "b")
    store.route_notices({"a": ["log"], "b": ["log"]}, NOW)
    store.begin_deliveries("log", ["a", "b"], "batch/1")
    store.end_deliveries("log", ["a"], at=NOW, done=False, due_at=NOW + A_MINUTE, error="refused")
    assert [(d.notice.key, d.attempts, d.batch) for d in store.due_deliveries("log", NOW)] == [("b", 1, "batch/1")]
    again = store.due_deliveries("log", NOW + A_MINUTE)
    assert [(d.notice.key, d.error) for d in again] == [("a", "refused"), ("b", "")]
    assert [d.notice.key for d in store.due_deliveries("log", NOW + A_MINUTE, limit=1)] == ["a"]
    store.end_deliveries("log", ["a", "b", "unknown"], at=NOW, done=True)
    store.end_deliveries("log", ["a"], at=NOW, done=False, due_at=NOW)
    assert store.due_deliveries("log", NOW + A_MINUTE) == []


def test_what_was_never_tried_is_due_whatever_the_clock_says(store: Store, epoch: int) -> None:
    """A clock that is set back does not silence the outbox."""
    outbox(store, epoch, "k")
    store.route_notices({"k": ["log"]}, NOW)
    assert [d.notice.key for d in store.due_deliveries("log", NOW - 9 * A_MINUTE)] == ["k"]


def test_a_notice_is_routed_once(store: Store, epoch: int) -> None:
    """Who is told is settled the first time."""
    outbox(store, epoch, "k")
    store.route_notices({"k": ["log"]}, NOW)
    store.route_notices({"k": ["slack:#a"]}, NOW)
    assert store.waiting() == {"log": 1}
    assert store.unrouted_notices() == []


def test_undelivered_notices_outlive_their_model(store: Store, epoch: int) -> None:
    """People still hear of what happened to a model that was deleted since."""
    outbox(store, epoch, "told", "untold", "unrouted")
    store.route_notices({"told": ["log"], "untold": ["log"]}, NOW)
    store.end_deliveries("log", ["told"], at=NOW, done=True)
    store.delete(epoch, "flight-late", [])
    assert [n.key for n in store.pending_notices()] == ["untold", "unrouted"]
    assert [d.notice.key for d in store.due_deliveries("log", NOW)] == ["untold"]


def test_facts_of_a_notice_come_back_as_they_were(store: Store, epoch: int) -> None:
    """With what is nested, and what is not finite."""
    told = replace(notice("k"), data={"score": 0.5, "names": ["a"], "traffic": {"v1": 100.0}})
    store.commit(epoch, Commit(model=store.create(epoch, bare(), []), notices=[told]))
    assert store.pending_notices() == [told]


# ---------------------------------------------------------------- what is remembered for others
def test_what_is_kept_is_found_again_until_it_is_forgotten(store: Store) -> None:
    """The newest value counts; of `keep_once` the first."""
    assert store.kept("a") is None
    store.keep("a", "1", NOW)
    store.keep("a", "2", NOW)
    assert store.kept("a") == "2"
    assert [store.keep_once("b", value, NOW + A_MINUTE) for value in "xy"] == [True, False]
    assert store.kept("b") == "x"
    store.forget(NOW + A_MINUTE)
    assert [store.kept("a"), store.kept("b")] == [None, "x"]


def test_alerts_are_kept_as_they_were_last_told(store: Store) -> None:
    """One row an alert; dropped ones are gone."""
    first, second = alert("f1"), alert("f2")
    store.put_alerts([second, first])
    store.put_alerts([replace(first, firing=False)])
    assert list(store.alerts()) == [replace(first, firing=False), second]
    store.put_alerts([], drop=["f1", "unknown"])
    assert list(store.alerts()) == [second]


def alert(fingerprint: str) -> ToldAlert:
    return ToldAlert(
        fingerprint=fingerprint, labels={"alertname": "Slow", "model": "late"}, firing=True, starts_at="2026-03-01T00:00:00Z",
        heard_at=NOW, said_at=NOW,
    )  # fmt: skip
