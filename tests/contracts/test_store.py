"""What every store must do, held against the fake and the real one alike."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from servers.postgres import Postgres

from controller.incidents import NO_MODEL
from controller.invariants import InvariantBroken
from controller.state import (
    Cycle,
    Event,
    FaultOrigin,
    Hold,
    KnownFault,
    ModelState,
    NoticeRecord,
    Outcome,
    Phase,
    Version,
    VersionStatus,
)
from controller.store.memory import MemoryStore
from controller.store.port import Commit, ConflictError, FencedError, Record, Store, StoreError
from controller.store.sql import open_store
from deployers.target import TrafficPlan

NOW = datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)
A_MINUTE = timedelta(minutes=1)


@pytest.fixture(params=["memory", "memory-audited", "sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Each store in turn, empty."""
    if request.param == "sqlite":
        made: Store = open_store(f"sqlite:///{tmp_path}/state.db")
    elif request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        made = open_store(server.url(server.clean_database()), server.password_file)
    else:
        made = MemoryStore(audit=request.param == "memory-audited")
    yield made
    made.close()


@pytest.fixture
def epoch(store: Store) -> int:
    """The epoch of a leader called `a` whose lease is valid for an hour."""
    taken = store.acquire("a", NOW, 3600)
    assert taken is not None
    return taken


def bare(name: str = "flight-late") -> ModelState:
    return ModelState(name=name, policy="{}", policy_digest="sha256:p", created_at=NOW)


def cycle(number: int = 1, name: str = "flight-late", **changes: object) -> Cycle:
    made = Cycle(
        model=name, number=number, phase=Phase.QUEUED, sentence="queued", cause="person: asked",
        opened_at=NOW + number * A_MINUTE, phase_since=NOW,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def closed(number: int = 1, name: str = "flight-late") -> Cycle:
    return cycle(number, name, outcome=Outcome.PROMOTED, closed_at=NOW + number * A_MINUTE)


def version(number: int, **changes: object) -> Version:
    made = Version(
        model="flight-late", number=number, digest=f"sha256:{number:064x}", status=VersionStatus.CANDIDATE,
        created_at=NOW, cycle=1,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def event(sentence: str = "it happened", name: str = "flight-late", **changes: object) -> Event:
    return replace(Event(model=name, kind="model.changed", sentence=sentence, at=NOW), **changes)  # type: ignore[arg-type]


def notice(key: str, at: datetime = NOW, name: str = "flight-late") -> NoticeRecord:
    return NoticeRecord(key=key, model=name, kind="cycle.closed", text="promoted v2", at=at)


def rich() -> ModelState:
    """A state with every field filled, and with what JSON is bad at: integer keys, nesting, unicode, microseconds."""
    hold = Hold(by="åsa", reason='the "upstream" fault\n→ wait', at=NOW)
    return ModelState(
        name="flight-late", policy='{"spec": "…"}', policy_digest="sha256:p", policy_dir="/policies", created_at=NOW,
        champion=1, previous=2, next_version=11, next_cycle=4, paused=hold, frozen=hold, pinned=hold,
        plan=TrafficPlan(
            model="flight-late", epoch=3, generation=7, digests={1: "sha256:1", 2: "sha256:2", 10: "sha256:10"},
            weights={1: 95.0, 10: 5.0}, shadow=2, replicas=2, workers=3,
        ),
        trigger_memory={"any.0": {"since": "2026-01-01", "count": 2, "nested": {"list": [1, 2.5, None, True]}}},
        last_closed_at=NOW - timedelta(days=1), recent_cycles=((NOW - timedelta(days=2), 12.5), (NOW, 0.0)),
        cycle=cycle(
            3, phase=Phase.ROLLING_OUT, attempt=2, not_before=NOW + A_MINUTE, job_id="flight-late-c3-train-2",
            outputs={"training": {"rows": 10, "scores": {"ap": 0.5}}}, challenger=10, step=1, step_since=NOW,
            compute_s=1.5,
        ),
        versions={
            1: version(1, status=VersionStatus.CHAMPION, trained_to=NOW, scores={"ap": 0.5}, forced="Jo: yes"),
            2: version(2, status=VersionStatus.QUARANTINED),
            10: version(10, lineage={"code": None, "parameters": {"depth": 3}, "gates": [{"gate": "ap", "ok": True}]}),
        },
    )  # fmt: skip


# ---------------------------------------------------------------- what concerns no single model
def test_a_record_of_no_model_opens_and_closes_incidents(store: Store, epoch: int) -> None:
    """Events, notices and incidents of what all models share are written under the lease, and name no model."""
    fault = KnownFault(
        kind="git_branch_gone", source="repo main", subject="", sentence="the branch is gone", since=NOW, origin=FaultOrigin.LIVE,
        found_at=NOW, absent_at=NOW + A_MINUTE,
    )  # fmt: skip
    with pytest.raises(FencedError):
        store.record(epoch + 1, Record(found=[fault]))
    assert store.incidents() == []
    store.record(epoch, Record(events=[event(name=NO_MODEL)], notices=[notice("k", name=NO_MODEL)], found=[fault]))
    store.record(epoch, Record(found=[fault]))
    (opened,) = store.incidents(open_only=True)
    assert (opened.models, opened.affected, opened.names) == (0, 1, ())
    assert len(store.pending_notices()) == 2
    store.record(epoch, Record(gone=[fault]))
    assert store.incidents(open_only=True) == []
    assert [one.kind for one in store.events()] == ["model.changed", "incident.opened", "incident.closed"]
    assert store.names() == []


# ---------------------------------------------------------------- reading back
def test_a_rich_state_comes_back_as_it_was_created(store: Store, epoch: int) -> None:
    """Every field of a state survives, with its type, and the row version has grown by one."""
    made = store.create(epoch, rich(), [])
    assert made == replace(rich(), row_version=1)
    assert store.load("flight-late") == made
    assert list(store.load_all()) == [made]


def test_a_rich_state_comes_back_as_it_was_committed(store: Store, epoch: int) -> None:
    """A commit replaces all of the state, and every field of it survives."""
    made = store.create(epoch, bare(), [])
    written = store.commit(epoch, Commit(model=replace(rich(), row_version=made.row_version)))
    assert written == replace(rich(), row_version=2)
    assert store.load("flight-late") == written


def test_a_time_in_another_zone_comes_back_as_the_same_moment(store: Store, epoch: int) -> None:
    """Times are moments: the zone in which one was written does not change what is read."""
    from zoneinfo import ZoneInfo

    tokyo = NOW.astimezone(ZoneInfo("Asia/Tokyo"))
    store.create(epoch, bare(), [event(at=tokyo)])
    assert store.events()[0].at == NOW


def test_a_score_of_nan_stays_nan(tmp_path: Path) -> None:
    """A score that came out as NaN or infinite is read as such, neither lost nor turned into something that counts."""
    store = open_store(f"sqlite:///{tmp_path}/state.db")
    epoch = store.acquire("a", NOW, 60)
    assert epoch is not None
    store.create(epoch, replace(bare(), versions={1: version(1, scores={"ap": math.nan, "loss": math.inf})}), [])
    loaded = store.load("flight-late")
    assert loaded is not None
    assert math.isnan(loaded.versions[1].scores["ap"])
    assert loaded.versions[1].scores["loss"] == math.inf
    store.close()


def test_what_is_unknown_is_none(store: Store) -> None:
    """An empty store has no models, no cycles, no events and no notices."""
    assert store.load("flight-late") is None
    assert [*store.names(), *store.load_all(), *store.cycles(), *store.events(), *store.pending_notices()] == []
    assert store.open_cycles() == 0


def test_load_all_equals_load_for_each_sorted_by_name(store: Store, epoch: int) -> None:
    """Reading all at once gives the same states as reading one by one, in order of name."""
    for name in ("zebra", "ant", "mole"):
        store.create(epoch, replace(bare(name), cycle=cycle(1, name)), [])
    store.create(epoch, rich(), [])
    assert list(store.names()) == ["ant", "flight-late", "mole", "zebra"]
    assert list(store.load_all()) == [store.load(name) for name in store.names()]


def test_load_all_tells_every_change_since_it_was_asked_last(store: Store, epoch: int) -> None:
    """A store may remember what it read; it must never tell what was before, not even of a model that was deleted and made again."""
    names = [f"m{i:03}" for i in range(80)]
    for name in names:
        store.create(epoch, bare(name), [])
    assert [state.row_version for state in store.load_all()] == [1] * 80
    for state in store.load_all()[:3]:
        store.commit(epoch, Commit(model=replace(state, policy_digest="new")))
    assert [state.policy_digest for state in store.load_all()][:4] == ["new"] * 3 + ["sha256:p"]
    for state in store.load_all():
        store.commit(epoch, Commit(model=replace(state, champion=None, previous=7)))
    assert {state.previous for state in store.load_all()} == {7}
    store.delete(epoch, "m079", [])
    assert [state.name for state in store.load_all()] == names[:-1]
    store.create(epoch, replace(bare("m079"), policy_digest="again"), [])
    assert store.load_all()[-1] == store.load("m079")
    assert [store.load(name) for name in names] == list(store.load_all())


# ---------------------------------------------------------------- conflicts
def test_load_all_sees_every_change(store: Store, epoch: int) -> None:
    """What it remembers of the last time never stands for what was changed, deleted, or deleted and made anew since."""
    for name in ("a", "b", "c"):
        store.create(epoch, bare(name), [event(name=name)])
    before = {state.name: state for state in store.load_all()}
    store.commit(epoch, Commit(model=replace(before["b"], fruitless=7)))
    assert [(state.name, state.fruitless) for state in store.load_all()] == [("a", 0), ("b", 7), ("c", 0)]
    store.delete(epoch, "a", [event(name="a")])
    store.delete(epoch, "c", [event(name="c")])
    store.create(epoch, replace(bare("c"), fruitless=3), [event(name="c")])
    assert [(state.name, state.fruitless) for state in store.load_all()] == [("b", 7), ("c", 3)]


def test_a_second_model_of_the_same_name_is_refused(store: Store, epoch: int) -> None:
    """Creating over an existing model conflicts and writes nothing."""
    made = store.create(epoch, bare(), [event("first")])
    with pytest.raises(ConflictError, match="flight-late"):
        store.create(epoch, rich(), [event("second")])
    assert store.load("flight-late") == made
    assert [e.sentence for e in store.events()] == ["first"]


def test_a_commit_on_an_older_row_is_refused_whole(store: Store, epoch: int) -> None:
    """Of two commits that read the same row, the second conflicts; none of its events or notices stay."""
    made = store.create(epoch, bare(), [])
    won = store.commit(epoch, Commit(model=replace(made, policy_digest="won")))
    lost = Commit(
        model=replace(made, policy_digest="lost", cycle=cycle()), events=[event("lost")], notices=[notice("lost")]
    )
    with pytest.raises(ConflictError, match="row version is 2, not 1"):
        store.commit(epoch, lost)
    assert store.load("flight-late") == won
    assert [*store.events(), *store.pending_notices(), *store.cycles()] == []


def test_a_commit_to_a_model_that_is_gone_conflicts(store: Store, epoch: int) -> None:
    """Whoever commits to, or deletes, a deleted model is told to read again."""
    made = store.create(epoch, bare(), [])
    store.delete(epoch, "flight-late", [])
    with pytest.raises(ConflictError, match="no such model"):
        store.commit(epoch, Commit(model=made))
    with pytest.raises(ConflictError, match="no such model"):
        store.delete(epoch, "flight-late", [event("deleted twice")])
    assert list(store.events()) == []


# ---------------------------------------------------------------- leadership
def test_only_one_holds_the_lease_until_it_runs_out(store: Store) -> None:
    """While a lease is valid nobody else gets it; at the moment it runs out anybody does, under a higher epoch."""
    assert store.acquire("a", NOW, 10) == 1
    assert store.acquire("b", NOW + timedelta(seconds=9.9), 10) is None
    assert store.acquire("b", NOW + timedelta(seconds=10), 10) == 2
    assert store.acquire("a", NOW + timedelta(seconds=10), 10) is None


def test_renewing_keeps_the_epoch_and_extends_the_lease(store: Store) -> None:
    """The holder keeps his epoch, in time or late, and his time starts anew."""
    assert store.acquire("a", NOW, 10) == 1
    assert store.acquire("a", NOW + timedelta(seconds=8), 10) == 1
    assert store.acquire("b", NOW + timedelta(seconds=12), 10) is None
    assert store.acquire("a", NOW + timedelta(seconds=60), 10) == 1
    assert store.acquire("b", NOW + timedelta(seconds=61), 10) is None


def test_a_released_lease_is_free_and_its_epoch_stays_used(store: Store) -> None:
    """After a release anybody may lead at once, never under the old epoch; others cannot release it."""
    assert store.acquire("a", NOW, 3600) == 1
    store.release("b")
    assert store.acquire("b", NOW, 3600) is None
    store.release("a")
    assert store.acquire("b", NOW, 3600) == 2
    store.release("b")
    assert store.acquire("b", NOW, 3600) == 3


def test_who_lost_the_lease_can_write_nothing(store: Store, epoch: int) -> None:
    """An old epoch is refused for every write once another leads, even where the row version also differs."""
    made = store.create(epoch, bare(), [])
    newer = store.acquire("b", NOW + timedelta(hours=2), 10)
    assert newer is not None
    written = store.commit(newer, Commit(model=replace(made, policy_digest="newer")))
    with pytest.raises(FencedError, match=rf"epoch {epoch} does not lead: b does, with epoch {newer}"):
        store.commit(epoch, Commit(model=made, events=[event("late")], notices=[notice("late")]))
    with pytest.raises(FencedError):
        store.create(epoch, bare("other"), [event("late")])
    with pytest.raises(FencedError):
        store.delete(epoch, "flight-late", [event("late")])
    assert list(store.load_all()) == [written]
    assert [*store.events(), *store.pending_notices()] == []


def test_who_never_led_or_released_can_write_nothing(store: Store) -> None:
    """Without a holder there is no leader, whatever epoch is claimed."""
    with pytest.raises(FencedError, match="nobody does"):
        store.create(0, bare(), [])
    epoch = store.acquire("a", NOW, 10)
    assert epoch is not None
    store.release("a")
    with pytest.raises(FencedError, match="nobody does"):
        store.create(epoch, bare(), [])
    with pytest.raises(FencedError):
        store.create(epoch + 1, bare(), [])
    assert list(store.names()) == []


def test_an_expired_lease_that_nobody_took_still_writes(store: Store) -> None:
    """Writing needs no clock: until another takes the lease, the epoch stays the newest and so is safe."""
    epoch = store.acquire("a", NOW, 0.001)
    assert epoch is not None
    assert store.create(epoch, bare(), []).row_version == 1


# ---------------------------------------------------------------- events
def test_events_are_numbered_in_order_and_read_in_pages(store: Store, epoch: int) -> None:
    """Pages by `after` give every event once and in order, of all models or one."""
    state = store.create(epoch, bare(), [event("0")])
    store.create(epoch, bare("other"), [event("other", "other")])
    for i in range(1, 7):
        state = store.commit(epoch, Commit(model=state, events=[event(f"{i}"), event(f"{i}b", data={"step": i})]))
    seen: list[Event] = []
    while page := store.events(after=seen[-1].seq if seen else 0, limit=4):
        assert len(page) <= 4
        seen += page
    assert [e.sentence for e in seen] == ["0", "other", *[s for i in range(1, 7) for s in (f"{i}", f"{i}b")]]
    assert [e.seq for e in seen] == sorted({e.seq for e in seen})
    own = store.events("flight-late", after=seen[1].seq, limit=3)
    assert [e.sentence for e in own] == ["1", "1b", "2"]
    assert own[1].data == {"step": 1}


def test_the_newest_events_come_in_order(store: Store, epoch: int) -> None:
    """`newest` gives the end of the record, still oldest first, and never what is at or before `after`."""
    store.create(epoch, bare(), [event(f"{i}") for i in range(5)])
    store.create(epoch, bare("other"), [event("other", "other")])
    assert [e.sentence for e in store.events(limit=2, newest=True)] == ["4", "other"]
    assert [e.sentence for e in store.events("flight-late", limit=2, newest=True)] == ["3", "4"]
    last = store.events("flight-late", newest=True)[-2].seq
    assert [e.sentence for e in store.events("flight-late", after=last, limit=9, newest=True)] == ["4"]
    assert list(store.events("unknown", newest=True)) == []


def test_every_field_of_an_event_survives(store: Store, epoch: int) -> None:
    """What a decision rested on can be read back whole, so that it can be replayed."""
    told = event("→ v2", cycle=3, actor="jo", data={"signals": {"a": {"value": None}}, "weights": {"1": 95.0}})
    store.create(epoch, bare(), [told])
    assert store.events()[0] == replace(told, seq=store.events()[0].seq)


def test_deleting_a_model_keeps_its_events(store: Store, epoch: int) -> None:
    """The rows and cycles of a deleted model go, its record stays; the name may be used again and starts clean."""
    made = store.create(epoch, rich(), [event("created")])
    store.commit(epoch, Commit(model=replace(made, cycle=None), closed=closed(3), events=[event("closed")]))
    store.create(epoch, bare("other"), [])
    store.delete(epoch, "flight-late", [event("deleted")])
    assert list(store.names()) == ["other"]
    assert store.load("flight-late") is None
    assert list(store.cycles()) == []
    assert [e.sentence for e in store.events("flight-late")] == ["created", "closed", "deleted"]
    again = store.create(epoch, replace(bare(), cycle=cycle(1), versions={1: version(1, digest="sha256:new")}), [])
    assert store.load("flight-late") == again


# ---------------------------------------------------------------- cycles
def test_cycles_are_listed_newest_first_and_open_ones_counted(store: Store, epoch: int) -> None:
    """The open cycle leads, closed ones follow back in time, of one model or of all."""
    state = store.create(epoch, bare(), [])
    for number in (1, 2):
        state = store.commit(epoch, Commit(model=replace(state, cycle=cycle(number))))
        state = store.commit(epoch, Commit(model=replace(state, cycle=None), closed=closed(number)))
    store.create(epoch, replace(bare("other"), cycle=cycle(3, "other")), [])
    state = store.commit(epoch, Commit(model=replace(state, cycle=cycle(4))))
    assert list(store.cycles("flight-late")) == [cycle(4), closed(2), closed(1)]
    assert [(c.model, c.number) for c in store.cycles(limit=3)] == [
        ("flight-late", 4),
        ("other", 3),
        ("flight-late", 2),
    ]
    assert store.open_cycles() == 2
    store.commit(epoch, Commit(model=replace(state, cycle=None), closed=closed(4)))
    assert store.open_cycles() == 1


def test_a_cycle_may_open_and_close_in_one_commit(store: Store, epoch: int) -> None:
    """A cycle that ended before it was ever written open is listed as closed."""
    state = store.create(epoch, bare(), [])
    store.commit(epoch, Commit(model=state, closed=closed(1)))
    assert list(store.cycles()) == [closed(1)]
    assert store.open_cycles() == 0


def test_an_open_cycle_cannot_vanish_or_be_replaced(store: Store, epoch: int) -> None:
    """Invariant 1: what is open stays the model's open cycle until a commit closes that very cycle."""
    state = store.create(epoch, replace(bare(), cycle=cycle(1)), [])
    bad = [
        Commit(model=replace(state, cycle=None)),
        Commit(model=replace(state, cycle=cycle(2))),
        Commit(model=replace(state, cycle=None), closed=closed(2)),
        Commit(model=state, closed=closed(1)),
        Commit(model=replace(state, cycle=None), closed=cycle(1)),
        Commit(model=replace(state, cycle=closed(1))),
    ]
    for commit in bad:
        with pytest.raises(InvariantBroken, match="flight-late"):
            store.commit(epoch, commit)
    assert store.load("flight-late") == state


def test_a_closed_cycle_never_opens_again(store: Store, epoch: int) -> None:
    """A cycle's number is used once, whether it comes back open or closed."""
    state = store.create(epoch, replace(bare(), cycle=cycle(2)), [])
    state = store.commit(epoch, Commit(model=replace(state, cycle=None), closed=closed(2)))
    for number in (1, 2):
        with pytest.raises(InvariantBroken, match=f"number {number} was used"):
            store.commit(epoch, Commit(model=replace(state, cycle=cycle(number))))
    with pytest.raises(InvariantBroken):
        store.commit(epoch, Commit(model=state, closed=closed(2)))
    assert list(store.cycles()) == [closed(2)]


# ---------------------------------------------------------------- versions
def test_a_version_may_change_its_status_but_never_its_digest(store: Store, epoch: int) -> None:
    """Invariant 3: a number means one image for ever, and does not vanish or come late."""
    state = store.create(epoch, replace(bare(), versions={1: version(1), 3: version(3)}), [])
    champion = version(1, status=VersionStatus.CHAMPION, scores={"ap": 0.7})
    state = store.commit(epoch, Commit(model=replace(state, versions={1: champion, 3: version(3), 4: version(4)})))
    assert state.versions[1] == champion
    for versions in (
        {**state.versions, 1: version(1, digest="sha256:other")},
        {1: champion, 3: version(3)},
        {**state.versions, 2: version(2)},
        {**state.versions, 5: version(6)},
        {**state.versions, 5: version(5, model="other")},
    ):
        with pytest.raises(InvariantBroken, match="invariant 3: flight-late"):
            store.commit(epoch, Commit(model=replace(state, versions=versions)))
    assert store.load("flight-late") == state


# ---------------------------------------------------------------- incidents
def fault(subject: str = "wind", at: datetime = NOW, **changes: object) -> KnownFault:
    made = KnownFault(
        kind="unit_changed", source="x.csv", subject=subject, sentence="in knots", since=NOW, origin=FaultOrigin.LIVE,
        found_at=at,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def having(store: Store, epoch: int, name: str, *faults: KnownFault) -> ModelState:
    """A new model that has these faults."""
    state = store.create(epoch, bare(name), [])
    return store.commit(epoch, Commit(model=replace(state, faults=faults), found=faults))


def lose(store: Store, epoch: int, state: ModelState, at: datetime) -> ModelState:
    gone = [replace(one, absent_at=at) for one in state.faults]
    return store.commit(epoch, Commit(model=replace(state, faults=()), gone=gone))


def test_the_same_fault_in_many_models_is_one_incident(store: Store, epoch: int) -> None:
    """The first opens it, the others join; another column is another incident; events and notices say so once."""
    for i in range(12):
        having(store, epoch, f"m{i:02}", fault())
    having(store, epoch, "other", fault("rain"))
    newest, wind = store.incidents()
    assert (newest.subject, newest.models) == ("rain", 1)
    assert (wind.models, wind.affected, wind.names[:2], wind.closed_at) == (12, 12, ("m00", "m01"), None)
    kinds = [(e.kind, e.model, e.data["models"]) for e in store.events() if e.kind.startswith("incident")]
    assert kinds == [("incident.opened", "m00", 1), ("incident.grown", "m09", 10), ("incident.opened", "other", 1)]
    told = [n.key for n in store.pending_notices()]
    assert sorted(told) == sorted(
        [f"incident/{wind.id}/opened", f"incident/{wind.id}/10", f"incident/{newest.id}/opened"]
    )


def test_an_incident_closes_with_its_last_model_and_may_open_again(store: Store, epoch: int) -> None:
    """Soon after it is the same incident, later another; saying twice that a model has the fault, or lost it, counts once."""
    a, b = having(store, epoch, "a", fault()), having(store, epoch, "b", fault())
    a = store.commit(epoch, Commit(model=a, found=[fault()]))
    assert store.incidents()[0].affected == 2
    a = lose(store, epoch, a, NOW + A_MINUTE)
    a = store.commit(epoch, Commit(model=a, gone=[fault(absent_at=NOW + A_MINUTE)]))
    assert (store.incidents()[0].affected, store.incidents()[0].closed_at) == (1, None)
    lose(store, epoch, b, NOW + 2 * A_MINUTE)
    assert store.incidents()[0].closed_at == NOW + 2 * A_MINUTE
    assert store.incidents(open_only=True) == []
    soon = fault(at=NOW + 3 * A_MINUTE)
    a = store.commit(epoch, Commit(model=replace(a, faults=(soon,)), found=[soon]))
    (again,) = store.incidents(open_only=True)
    assert (again.id, again.models, again.affected) == (store.incidents()[0].id, 2, 1)
    a = lose(store, epoch, a, NOW + 4 * A_MINUTE)
    later = fault(at=NOW + timedelta(days=1))
    store.commit(epoch, Commit(model=replace(a, faults=(later,)), found=[later]))
    assert [(i.models, i.closed_at is None) for i in store.incidents()] == [(1, True), (2, False)]
    assert [n.key for n in store.pending_notices()].count(f"incident/{again.id}/closed") == 1


def test_a_refused_commit_opens_no_incident(store: Store, epoch: int) -> None:
    """Faults are part of the transaction: an older row or an older epoch writes none of it."""
    state = store.create(epoch, bare(), [])
    store.commit(epoch, Commit(model=state))
    with pytest.raises(ConflictError):
        store.commit(epoch, Commit(model=replace(state, faults=(fault(),)), found=[fault()]))
    with pytest.raises(FencedError):
        store.commit(epoch - 1, Commit(model=state, found=[fault()]))
    assert store.incidents() == []
    assert store.pending_notices() == []


def test_a_deleted_model_leaves_its_incidents(store: Store, epoch: int) -> None:
    """They close if it was the last, and stay on record."""
    having(store, epoch, "a", fault())
    having(store, epoch, "b", fault())
    for i, name in enumerate(["a", "b"], start=1):
        store.delete(epoch, name, [Event(model=name, kind="model.deleted", sentence="deleted", at=NOW + i * A_MINUTE)])
    (left,) = store.incidents()
    assert (left.models, left.affected, left.closed_at) == (2, 0, NOW + 2 * A_MINUTE)


def test_incidents_are_read_newest_first_and_in_bounds(store: Store, epoch: int) -> None:
    """With a limit the newest of them; faults of a state come back as they were."""
    state = having(store, epoch, "a", fault("x"), fault("y"), fault("z"))
    assert [i.subject for i in store.incidents(limit=2)] == ["z", "y"]
    assert store.load("a") == state


# ---------------------------------------------------------------- bad values
@pytest.mark.parametrize("store", ["memory-audited", "sqlite", "postgresql"], indirect=True)
def test_what_has_no_json_form_is_refused_whole(store: Store, epoch: int) -> None:
    """A value that cannot be written is an error that names it, and leaves the store as it was."""
    state = store.create(epoch, bare(), [])
    with pytest.raises(StoreError, match="cannot be written"):
        store.commit(epoch, Commit(model=replace(state, champion=1), events=[event(data={"bad": object()})]))
    assert store.load("flight-late") == state
    assert list(store.events()) == []


def test_the_audit_finds_a_state_that_was_changed_in_place() -> None:
    """The audited fake notices when somebody mutates what it stored."""
    store = MemoryStore(audit=True)
    epoch = store.acquire("a", NOW, 60)
    assert epoch is not None
    memory: dict[str, dict[str, object]] = {"t": {"since": "now"}}
    store.create(epoch, replace(bare(), trigger_memory=memory), [])
    memory["t"]["since"] = "later"
    with pytest.raises(InvariantBroken, match="changed in place"):
        store.load("flight-late")


def test_the_audit_finds_a_record_that_json_would_change() -> None:
    """The audited fake notices a value that a real store would give back as another, such as a tuple."""
    store = MemoryStore(audit=True)
    epoch = store.acquire("a", NOW, 60)
    assert epoch is not None
    with pytest.raises(InvariantBroken, match="does not survive"):
        store.create(epoch, replace(bare(), trigger_memory={"t": {"pair": (1, 2)}}), [])
    assert list(store.names()) == []
