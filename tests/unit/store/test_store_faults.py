"""The SQL store under kill -9, full disks, damage, locks and other processes."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from controller.invariants import InvariantBroken
from controller.state import Cycle, Event, ModelState, NoticeRecord, Outcome, Phase, Version, VersionStatus
from controller.store import engine as engine_module
from controller.store import tables
from controller.store.port import Commit, CorruptStoreError, FencedError, StoreError
from controller.store.rows import cycle_values, model_values, version_values
from controller.store.sql import SqlStore, open_store

NOW = datetime(2026, 3, 1, tzinfo=UTC)
STATE = ModelState(name="m", policy="{}", policy_digest="d", created_at=NOW)


def url(folder: Path) -> str:
    return f"sqlite:///{folder}/state.db"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    """A store that holds the model `m`, led by epoch 1."""
    made = open_store(url(tmp_path))
    assert made.acquire("a", NOW, 3600) == 1
    made.create(1, STATE, [])
    yield made
    made.close()


def loaded(store: SqlStore) -> ModelState:
    state = store.load("m")
    assert state is not None
    return state


@pytest.mark.parametrize(
    "write",
    [
        lambda store: store.keep("slack/at", "older", NOW),
        lambda store: store.keep_once("slack/seen", "", NOW),
        lambda store: store.put_alerts([], drop=["f"]),
        lambda store: store.forget(NOW + timedelta(days=1)),
        lambda store: store.route_notices({}, NOW),
        lambda store: store.begin_deliveries("log", [], "b"),
        lambda store: store.end_deliveries("log", [], at=NOW, done=True),
    ],
)
def test_who_lost_the_lease_changes_nothing_of_what_notifiers_remember_either(
    store: SqlStore, tmp_path: Path, write: Callable[[SqlStore], object]
) -> None:
    """Its threads that tell people do not know yet that another leads, and tells them too."""
    store.keep("slack/at", "old", NOW)
    newer = SqlStore(url(tmp_path))
    assert newer.acquire("b", NOW + timedelta(hours=2), 60) == 2
    newer.keep("slack/at", "new", NOW)
    with pytest.raises(FencedError, match="stop acting"):
        write(store)
    assert newer.kept("slack/at") == "new"
    newer.close()


COMMIT_FOR_EVER = """
import sys
from dataclasses import replace
from datetime import UTC, datetime
from controller.state import Cycle, Event, NoticeRecord, Outcome, Phase, Version, VersionStatus
from controller.store.port import Commit
from controller.store.sql import SqlStore

now = datetime(2026, 3, 1, tzinfo=UTC)
store = SqlStore(sys.argv[1])
state = store.load("m")
while True:
    n = state.row_version
    version = Version(model="m", number=n, digest=f"sha256:{n}", status=VersionStatus.CANDIDATE, created_at=now, cycle=n)
    cycle = Cycle(model="m", number=n, phase=Phase.BAKING, outcome=Outcome.PROMOTED, sentence="x" * 3000, cause="c",
                  opened_at=now, phase_since=now, closed_at=now)
    state = store.commit(1, Commit(
        model=replace(state, versions={**state.versions, n: version}, champion=n), closed=cycle,
        events=[Event(model="m", kind="a.b", sentence="s" * 3000, at=now, data={"n": n})] * 2,
        notices=[NoticeRecord(key=f"{n}", model="m", kind="k", text="t", at=now)],
    ))
    print(n, flush=True)
"""


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_whole_commits_only(store: SqlStore, tmp_path: Path) -> None:
    """After a kill every acknowledged commit is there, and of each commit either all of its records or none."""
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", COMMIT_FOR_EVER, url(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        wanted = chance.randrange(1, 25)
        for _, line in zip(range(wanted), writer.stdout, strict=False):
            acknowledged = int(line)
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split()
        writer.wait()
        writer.stdout.close()
        acknowledged = int(rest[-1]) if rest else acknowledged
        state = loaded(store)
        commits = state.row_version - 1
        assert commits in (acknowledged, acknowledged + 1)
        assert sorted(state.versions) == list(range(1, commits + 1))
        assert state.champion == commits
        assert [c.number for c in store.cycles("m", limit=1000)] == list(range(commits, 0, -1))
        told = [event.data["n"] for event in store.events(limit=1000)]
        assert told == [n for n in range(1, commits + 1) for _ in range(2)]
        assert [n.key for n in store.pending_notices(1000)] == [str(n) for n in range(1, commits + 1)]


COMPETE = """
import sys
from dataclasses import replace
from datetime import UTC, datetime
from controller.state import Event
from controller.store.port import Commit, ConflictError
from controller.store.sql import SqlStore

store = SqlStore(sys.argv[1])
sys.stdin.readline()
won = conflicts = 0
while won < 60:
    state = store.load("m")
    event = Event(model="m", kind="a.b", sentence=sys.argv[2], at=datetime.now(UTC), data={"read": state.row_version})
    try:
        store.commit(1, Commit(model=replace(state, next_cycle=state.next_cycle + 1), events=[event]))
        won += 1
    except ConflictError:
        conflicts += 1
print(won, conflicts)
"""


@pytest.mark.slow
def test_two_processes_that_read_the_same_row_never_both_win(store: SqlStore, tmp_path: Path) -> None:
    """Each row version is the base of one commit only, and no commit is lost."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", COMPETE, url(tmp_path), name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for name in ("one", "two")
    ]  # fmt: skip
    outcomes = [process.communicate("go\n", timeout=60) for process in running]
    assert [errors for _, errors in outcomes] == ["", ""]
    won = sum(int(out.split()[0]) for out, _ in outcomes)
    assert won == 120
    assert loaded(store).row_version == 1 + won
    assert loaded(store).next_cycle == 1 + won
    assert [event.data["read"] for event in store.events(limit=1000)] == list(range(1, won + 1))


def test_threads_share_a_store(store: SqlStore) -> None:
    """Many threads that commit at once all succeed, each on its own model, and no event is lost."""

    def work(name: str) -> None:
        state = store.create(1, replace(STATE, name=name), [])
        for _ in range(20):
            told = Event(model=name, kind="a.b", sentence="s", at=NOW)
            state = store.commit(1, Commit(model=state, events=[told]))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [f"m{i}" for i in range(8)]))
    assert [state.row_version for state in store.load_all()] == [1, *[21] * 8]
    assert len(store.events(limit=1000)) == 160


def test_a_full_disk_is_a_clear_error_that_loses_nothing(store: SqlStore) -> None:
    """A commit that does not fit is refused whole; what was stored stays readable, and with space again the same commit works."""
    state = store.commit(
        1, Commit(model=replace(STATE, row_version=1), events=[Event(model="m", kind="a.b", sentence="s", at=NOW)])
    )
    big = Commit(
        model=replace(state, champion=1),
        events=[Event(model="m", kind="a.b", sentence="x" * 100_000, at=NOW)],
        notices=[NoticeRecord(key="k", model="m", kind="k", text="t", at=NOW)],
    )
    with store._db.engine.connect() as db:
        pages = db.exec_driver_sql("PRAGMA page_count").scalar()
        assert pages is not None
        db.exec_driver_sql(f"PRAGMA max_page_count={pages + 4}")
    for _ in range(2):
        with pytest.raises(StoreError, match=r"state.db: database or disk is full: .*free space"):
            store.commit(1, big)
        assert loaded(store) == state
        assert [event.sentence for event in store.events()] == ["s"]
        assert list(store.pending_notices()) == []
    with store._db.engine.connect() as db:
        db.exec_driver_sql("PRAGMA max_page_count=1000000")
    assert store.commit(1, big).row_version == state.row_version + 1


def test_a_lock_held_by_another_process_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer waits a bounded time, then says who to look for; readers are never kept waiting."""
    monkeypatch.setattr(engine_module, "BUSY_TIMEOUT_S", 0.05)
    store = open_store(url(tmp_path))
    assert store.acquire("a", NOW, 60) == 1
    made = store.create(1, STATE, [])
    with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"state.db: database is locked: another process holds the write lock"):
            store.commit(1, Commit(model=made))
        assert loaded(store) == made
        other.execute("ROLLBACK")
    assert store.commit(1, Commit(model=made)).row_version == 2
    store.close()


def test_damage_found_while_running_is_named(store: SqlStore, tmp_path: Path) -> None:
    """A page that goes bad under a running daemon is reported as damage of that file, with what to do."""
    store.close()
    file = tmp_path / "state.db"
    data = file.read_bytes()
    file.write_bytes(data[:8192] + b"\xff" * (len(data) - 8192))
    with pytest.raises(CorruptStoreError, match=r"state.db: the database is damaged .* backup"):
        open_unchecked(tmp_path)


def open_unchecked(folder: Path) -> None:
    """Read everything without the check of `open_store`."""
    with closing(SqlStore(url(folder))) as store:
        store.load_all()


def test_a_document_of_a_newer_release_names_the_model(store: SqlStore) -> None:
    """A record that a newer release wrote is refused with the file and the model in the message."""
    newer = sa.func.replace(tables.models.c.document, '{"schema":1,', '{"schema":2,')
    with store._db.engine.begin() as db:
        db.execute(sa.update(tables.models).values(document=newer))
    with pytest.raises(CorruptStoreError, match=r"state.db: model m: written by a newer release"):
        store.load("m")


def test_a_naive_time_is_refused(store: SqlStore) -> None:
    """A time without zone would mean another moment on another machine, so it is not stored."""
    naive = NOW.replace(tzinfo=None)
    with pytest.raises(StoreError, match="has no time zone"):
        store.commit(1, Commit(model=loaded(store), events=[Event(model="m", kind="a.b", sentence="s", at=naive)]))
    assert loaded(store).row_version == 1


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE events SET sentence = 'nicer'", "events are append-only"),
        ("DELETE FROM events", "events are append-only"),
        ("UPDATE versions SET digest = 'sha256:other'", "the digest of a version never changes"),
        ("UPDATE versions SET number = 9", "the digest of a version never changes"),
        ("UPDATE cycles SET outcome = NULL, closed_at = NULL WHERE number = 1", "a closed cycle never changes"),
        ("UPDATE cycles SET number = 3, outcome = 'aborted' WHERE number = 2", "outcome_with_closed_at"),
        ("INSERT INTO cycles SELECT model, 3, phase, outcome, opened_at, closed_at, document FROM cycles WHERE number = 2", "UNIQUE"),
        ("INSERT INTO versions SELECT * FROM versions", "UNIQUE"),
        ("UPDATE leadership SET epoch = 0", "the epoch never goes back"),
        ("INSERT INTO leadership VALUES (2, 'b', 9, NULL, NULL)", "one_row"),
        ("DELETE FROM models", "FOREIGN KEY"),
    ],
)  # fmt: skip
def test_the_database_itself_refuses_what_breaks_an_invariant(store: SqlStore, statement: str, message: str) -> None:
    """Even a hand at the database cannot rewrite the record, change what a version means or open a second cycle."""
    opened = Cycle(model="m", number=1, phase=Phase.BAKING, sentence="s", cause="c", opened_at=NOW, phase_since=NOW)
    version = Version(model="m", number=1, digest="sha256:1", status=VersionStatus.CHAMPION, created_at=NOW, cycle=1)
    told = Event(model="m", kind="a.b", sentence="s", at=NOW)
    ended = replace(opened, outcome=Outcome.PROMOTED, closed_at=NOW)
    state = store.commit(1, Commit(model=replace(loaded(store), versions={1: version}), closed=ended, events=[told]))
    state = store.commit(1, Commit(model=replace(state, cycle=replace(opened, number=2))))
    with (
        pytest.raises((InvariantBroken, StoreError), match=message),
        engine_module.writing(store._db.engine, Path(store._db.where)) as db,
    ):
        db.exec_driver_sql(statement)
    assert loaded(store) == state
    assert [event.sentence for event in store.events()] == ["s"]


def test_commits_are_synced_and_readers_do_not_block(store: SqlStore) -> None:
    """A commit survives a loss of power (synchronous FULL = 2) on a write-ahead log, with foreign keys checked."""
    with store._db.engine.connect() as db:
        found = [
            db.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert found == ["wal", 2, 1]


def test_load_all_takes_as_many_queries_for_5000_models_as_for_one(store: SqlStore) -> None:
    """Reading every model takes a fixed number of queries, however many there are."""
    states = [
        replace(
            STATE, name=f"m{i:04}", row_version=1,
            cycle=Cycle(
                model=f"m{i:04}", number=1, phase=Phase.QUEUED, sentence="s", cause="c", opened_at=NOW, phase_since=NOW
            ),
            versions={
                n: Version(model=f"m{i:04}", number=n, digest="d", status=VersionStatus.RETIRED, created_at=NOW, cycle=1)
                for n in (1, 2)
            },
        )
        for i in range(4999)
    ]  # fmt: skip
    queries: list[str] = []
    sa.event.listen(store._db.engine, "before_cursor_execute", lambda *args: queries.append(args[2]))
    store.load_all()
    for_one = len(queries)
    with store._db.engine.begin() as db:
        db.execute(sa.insert(tables.models), [model_values(s) for s in states])
        db.execute(sa.insert(tables.cycles), [cycle_values(s.cycle) for s in states if s.cycle])
        db.execute(sa.insert(tables.versions), [version_values(v) for s in states for v in s.versions.values()])
    queries.clear()
    found = store.load_all()
    assert len(queries) == for_one <= 5  # begin, row versions, models, cycles, versions
    assert [*found[1:]] == states
