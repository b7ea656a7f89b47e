"""The store on PostgreSQL when connections are cut, servers restart, leaders are suspended, and hands are at the database."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from servers.cutting_proxy import Cut, CuttingProxy, cutting_proxy
from servers.postgres import PASSWORD, USER, Postgres, running_postgres
from structlog.testing import capture_logs

from controller.invariants import InvariantBroken
from controller.state import Cycle, Event, ModelState, NoticeRecord, Outcome, Phase, Version, VersionStatus
from controller.store import postgres as module
from controller.store.address import parse_address
from controller.store.port import Commit, FencedError, Record, StoreError, UnknownOutcomeError
from controller.store.postgres import PostgresDatabase
from controller.store.sql import SqlStore, open_store

NOW = datetime(2026, 3, 1, tzinfo=UTC)
STATE = ModelState(name="m", policy="{}", policy_digest="d", created_at=NOW)
COMMIT = b"COMMIT\0"
"""As it goes over the wire, and BEGIN ISOLATION LEVEL READ COMMITTED does not."""


@pytest.fixture
def database(postgres: Postgres) -> str:
    return postgres.clean_database()


@pytest.fixture
def store(postgres: Postgres, database: str) -> Iterator[SqlStore]:
    """A store that holds the model `m`, led by epoch 1."""
    made = open_store(postgres.url(database), postgres.password_file)
    assert made.acquire("a", None, 3600) == 1
    made.create(1, STATE, [])
    yield made
    made.close()


@pytest.fixture
def proxy(postgres: Postgres) -> Iterator[CuttingProxy]:
    with cutting_proxy(postgres.port) as made:
        yield made


@pytest.fixture
def far(postgres: Postgres, database: str, store: SqlStore, proxy: CuttingProxy) -> Iterator[SqlStore]:
    """The same database as `store`, behind the proxy."""
    made = SqlStore(postgres.url(database, port=proxy.port), postgres.password_file)
    yield made
    made.close()


def loaded(store: SqlStore) -> ModelState:
    state = store.load("m")
    assert state is not None
    return state


def one_more(state: ModelState) -> Commit:
    """A commit that leaves a trace of every kind, told apart by its number."""
    n = state.row_version
    version = Version(
        model="m", number=n, digest=f"sha256:{n}", status=VersionStatus.CANDIDATE, created_at=NOW, cycle=n
    )
    cycle = Cycle(
        model="m", number=n, phase=Phase.BAKING, outcome=Outcome.PROMOTED, sentence="s", cause="c", opened_at=NOW,
        phase_since=NOW, closed_at=NOW,
    )  # fmt: skip
    return Commit(
        model=replace(state, versions={**state.versions, n: version}), closed=cycle,
        events=[Event(model="m", kind="a.b", sentence=f"{n}", at=NOW)],
        notices=[NoticeRecord(key=f"{n}", model="m", kind="k", text="t", at=NOW)],
    )  # fmt: skip


def assert_whole(store: SqlStore) -> None:
    """Every commit is there once and whole: row version, versions, cycles, events and notices tell the same."""
    state = loaded(store)
    numbers = list(range(1, state.row_version))
    assert list(state.versions) == numbers
    assert [cycle.number for cycle in store.cycles("m", limit=1000)] == numbers[::-1]
    assert [event.sentence for event in store.events(limit=1000)] == [str(n) for n in numbers]
    assert sorted(int(n.key) for n in store.pending_notices(limit=1000)) == numbers


# ---------------------------------------------------------------- connections
def test_a_backend_that_is_ended_at_any_statement_costs_nothing(postgres: Postgres, store: SqlStore) -> None:
    """Whichever statement of a commit its connection dies at, the commit is made, once and whole."""
    engine = store._db.engine
    die_at, seen = 0, 0

    @sa.event.listens_for(engine, "before_cursor_execute")
    def _kill(connection: sa.Connection, *_rest: object) -> None:
        nonlocal seen
        seen += 1
        if seen == die_at:
            pid = connection.connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
            postgres.sql(f"SELECT pg_terminate_backend({pid}, 5000)")

    while seen >= die_at:
        die_at, seen = die_at + 1, 0
        store.commit(1, one_more(loaded(store)))
    assert die_at > 8
    assert loaded(store).row_version == die_at + 1
    assert_whole(store)


@pytest.mark.parametrize("how", [Cut.BEFORE, Cut.AFTER, Cut.HANG])
def test_a_commit_whose_connection_is_lost_is_made_once(
    store: SqlStore, far: SqlStore, proxy: CuttingProxy, how: Cut
) -> None:
    """Whether the server saw the COMMIT or not, and even if it still waits for it with the lock in its hands."""
    proxy.cut_at(COMMIT, how)
    with capture_logs() as logs:
        after = far.commit(1, one_more(loaded(store)))
    assert proxy.cuts == 1
    assert [line["event"] for line in logs if line["log_level"] != "debug"] == (
        ["store.commit_found"] if how is Cut.AFTER else []
    )
    assert after == loaded(store)
    assert after.row_version == 2
    assert_whole(store)


def test_every_kind_of_change_survives_a_lost_answer(store: SqlStore, far: SqlStore, proxy: CuttingProxy) -> None:
    """Creating, deleting, marking a notice, taking and releasing the lease are known again as done."""
    proxy.cut_at(COMMIT, Cut.AFTER, times=1)
    assert far.acquire("a", None, 3600) == 1
    store.commit(1, one_more(loaded(store)))
    for change in (
        lambda: far.create(1, replace(STATE, name="other"), []),
        lambda: far.route_notices({"1": ["ops"]}, NOW),
        lambda: far.begin_deliveries("ops", ["1"], "b"),
        lambda: far.delete(1, "other", []),
        lambda: far.release("a"),
    ):
        proxy.cut_at(COMMIT, Cut.AFTER)
        change()
    assert store.names() == ["m"]
    assert [one.attempts for one in store.due_deliveries("ops", NOW)] == [1]
    assert store.holder() is None


def test_a_lost_answer_is_known_again_although_another_daemon_wrote_since(
    store: SqlStore, far: SqlStore, proxy: CuttingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that stands by keeps the alerts that it is told of, just when the leader looks whether its own change was made."""
    trouble = far._db._trouble  # type: ignore[attr-defined]

    def meanwhile(*args: object, **more: object) -> None:
        for n in range(3):
            store.keep(f"alert {n}", "", NOW)
        trouble(*args, **more)

    monkeypatch.setattr(far._db, "_trouble", meanwhile)
    proxy.cut_at(COMMIT, Cut.AFTER)
    far.record(1, Record(events=[Event(model="", kind="a.b", sentence="once", at=NOW)]))
    assert proxy.cuts == 1
    assert [event.sentence for event in store.events()] == ["once"]


def test_a_commit_that_nobody_can_answer_for_says_so(
    store: SqlStore, far: SqlStore, proxy: CuttingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is gone right after the COMMIT: it may have been made, so whoever asked is told to look again, in bounded time."""
    monkeypatch.setattr(module, "PATIENCE_S", 0.5)
    state = loaded(store)
    proxy.cut_at(COMMIT, Cut.AFTER, then_refuse=True)
    with pytest.raises(UnknownOutcomeError, match="so look again before you repeat it") as caught:
        far.commit(1, one_more(state))
    assert PASSWORD not in str(caught.value)
    proxy.refuses = False
    assert loaded(far).row_version == 2
    assert_whole(far)


def test_a_server_that_is_away_is_said_and_found_again(
    far: SqlStore, proxy: CuttingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading and writing end with where, what and what to do, without the password; once it is back, both work as before."""
    monkeypatch.setattr(module, "PATIENCE_S", 0.3)
    state = loaded(far)
    proxy.refuses = True
    proxy.cut_all()
    for call in (lambda: far.load("m"), lambda: far.commit(1, one_more(state)), lambda: far.acquire("a", None, 1)):
        with pytest.raises(
            StoreError, match=rf"postgresql://{USER}@127.0.0.1:{proxy.port}/.*the server is away"
        ) as caught:
            call()
        assert PASSWORD not in str(caught.value)
        assert PASSWORD not in repr(caught.value.__cause__)
    proxy.refuses = False
    assert far.commit(1, one_more(loaded(far))).row_version == 2
    assert_whole(far)


@pytest.mark.slow
def test_servers_that_restart_or_crash_under_a_writer_lose_and_double_nothing() -> None:
    """Stopped in order or by kill -9, again and again: the writer waits, and every commit that it was told of is there once."""
    with running_postgres() as server:
        store = open_store(server.url(server.new_database()), server.password_file)
        assert store.acquire("a", None, 3600) == 1
        state = store.create(1, STATE, [])
        stop = threading.Event()
        failed: list[Exception] = []

        def write() -> None:
            nonlocal state
            try:
                while not stop.is_set():
                    state = store.commit(1, one_more(state))
            except Exception as error:  # noqa: BLE001 - told by the test's own thread
                failed.append(error)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for kill in (False, True, False, True):
                time.sleep(0.3)
                before = state.row_version
                server.stop(kill=kill)
                server.start()
                deadline = time.monotonic() + 20
                while state.row_version < before + 5 and not failed:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
        finally:
            stop.set()
            writer.join(20)
        assert failed == []
        assert loaded(store) == state
        assert_whole(store)
        store.close()


def test_two_transactions_in_each_others_way_are_both_made(postgres: Postgres, database: str, store: SqlStore) -> None:
    """The server ends one of two that wait for each other; that one is made again."""
    address = parse_address(postgres.url(database), postgres.password_file)
    assert not isinstance(address, Path)
    both = threading.Barrier(2, timeout=20)
    done: list[int] = []

    def work(first: int, second: int) -> None:
        tried = 0

        def lock(db: sa.Connection) -> None:
            nonlocal tried
            tried += 1
            db.execute(sa.select(sa.func.pg_advisory_xact_lock(first)))
            if tried == 1:
                both.wait()
            db.execute(sa.select(sa.func.pg_advisory_xact_lock(second)))

        one = PostgresDatabase(address)
        one.write(lock)
        one.close()
        done.append(tried)

    threads = [threading.Thread(target=work, args=order) for order in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(done) == [1, 2]


# ---------------------------------------------------------------- leading
def test_a_leader_that_is_stopped_with_the_lock_in_its_hands_keeps_nobody_out(
    postgres: Postgres, database: str, store: SqlStore
) -> None:
    """The server undoes what it had begun, and when it wakes up it finds its connection gone and its epoch old."""
    stopped = SqlStore(postgres.url(database), postgres.password_file)
    assert stopped.acquire("a", None, 0.1) == 1
    woken, refused = threading.Event(), []

    def sleep_in_transaction(db: sa.Connection) -> None:
        db.execute(sa.text("SELECT * FROM leadership FOR UPDATE"))
        if not woken.is_set():
            woken.wait(30)
            db.execute(sa.text("SELECT 1"))
        refused.append(db.execute(sa.text("SELECT epoch FROM leadership")).scalar_one())

    sleeper = threading.Thread(target=stopped._db.write, args=(sleep_in_transaction,))
    sleeper.start()
    time.sleep(0.3)
    began = time.monotonic()
    assert store.acquire("b", None, 60) == 2
    assert module.IDLE_S - 1 < time.monotonic() - began < module.PATIENCE_S + module.LOCK_S
    woken.set()
    sleeper.join(20)
    assert refused == [2]
    with pytest.raises(FencedError):
        stopped.commit(1, one_more(loaded(store)))
    with pytest.raises(FencedError):
        stopped.begin_deliveries("ops", ["1"], "b")
    stopped.close()
    assert_whole(store)


COMMIT_FOR_EVER = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from test_store_postgres import SqlStore, loaded, one_more
store = SqlStore({url!r}, Path({password_file!r}))
epoch = store.acquire("old", None, 1.0)
state = loaded(store)
print(epoch, flush=True)
try:
    while True:
        state = store.commit(epoch, one_more(state))
except Exception as error:
    print(type(error).__name__, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_leader_that_wakes_up_after_losing_its_lease_writes_nothing(
    postgres: Postgres, database: str, store: SqlStore, seed: int
) -> None:
    """A process that commits without pause is suspended at any moment, another takes over, and the first wakes up: it is refused."""
    store.release("a")
    code = COMMIT_FOR_EVER.format(paths=sys.path, url=postgres.url(database), password_file=str(postgres.password_file))
    old = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert old.stdout is not None
        epoch = int(old.stdout.readline())
        time.sleep(random.Random(seed).uniform(0.2, 0.5))
        old.send_signal(signal.SIGSTOP)
        newer, deadline = None, time.monotonic() + 15
        while newer is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
            newer = store.acquire("new", None, 60)
        assert newer == epoch + 1
        before, told = loaded(store), store.events(limit=10_000)
        old.send_signal(signal.SIGCONT)
        assert old.stdout.read().split()[-1] == "FencedError"
    finally:
        old.kill()
        old.wait()
        if old.stdout:
            old.stdout.close()
    assert before.row_version > 1
    assert (loaded(store), store.events(limit=10_000)) == (before, told)
    assert store.commit(newer, one_more(before)).row_version == before.row_version + 1
    assert_whole(store)


def test_the_lease_runs_by_the_clock_of_the_server(store: SqlStore, postgres: Postgres, database: str) -> None:
    """However wrong the clocks of the daemons' machines are: no time of theirs goes into it."""
    store.release("a")
    assert store.acquire("b", None, 0.4) == 2
    (((left,),)) = postgres.sql("SELECT extract(epoch FROM expires_at - clock_timestamp()) FROM leadership", database)
    assert 0 < float(left[0] if isinstance(left, tuple) else left) <= 0.4
    assert store.acquire("c", None, 60) is None
    time.sleep(0.45)
    assert store.acquire("c", None, 60) == 3


def test_asking_for_a_lease_that_is_held_waits_for_nobody(store: SqlStore, postgres: Postgres, database: str) -> None:
    """A standby that asks every second is not in the leader's way, nor the leader in its."""
    other = SqlStore(postgres.url(database), postgres.password_file)
    with store._db.engine.begin() as db:
        db.execute(sa.text("SELECT * FROM leadership FOR UPDATE"))
        began = time.monotonic()
        assert other.acquire("b", None, 60) is None
        assert time.monotonic() - began < module.IDLE_S / 2
    other.close()


# ---------------------------------------------------------------- hands at the database
@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE events SET sentence = 'nicer'", "events are append-only"),
        ("DELETE FROM events", "events are append-only"),
        ("TRUNCATE events", "events are append-only"),
        ("UPDATE versions SET digest = 'sha256:other'", "the digest of a version never changes"),
        ("UPDATE versions SET number = 9", "the digest of a version never changes"),
        ("UPDATE cycles SET outcome = NULL, closed_at = NULL WHERE number = 1", "a closed cycle never changes"),
        ("UPDATE cycles SET number = 3, outcome = 'aborted' WHERE number = 2", "outcome_with_closed_at"),
        ("INSERT INTO cycles SELECT model, 3, phase, outcome, opened_at, closed_at, '' FROM cycles WHERE number = 2", "cycles_one_open"),
        ("INSERT INTO versions SELECT * FROM versions", "versions_pk"),
        ("UPDATE leadership SET epoch = 0", "the epoch never goes back"),
        ("INSERT INTO leadership VALUES (2, 'b', 9, NULL, NULL)", "one_row"),
        ("DELETE FROM models", "foreign key"),
    ],
)  # fmt: skip
def test_the_database_itself_refuses_what_breaks_an_invariant(store: SqlStore, statement: str, message: str) -> None:
    """What SQLite's triggers and indices refuse, PostgreSQL's refuse."""
    state = store.commit(1, one_more(loaded(store)))
    opened = Cycle(model="m", number=2, phase=Phase.BAKING, sentence="s", cause="c", opened_at=NOW, phase_since=NOW)
    state = store.commit(1, Commit(model=replace(state, cycle=opened)))
    with pytest.raises(InvariantBroken, match=message):
        store._db.write(lambda db: db.exec_driver_sql(statement))
    assert loaded(store) == state
    assert [event.sentence for event in store.events()] == ["1"]


def test_text_that_postgresql_cannot_keep_is_kept_as_near_as_can_be(store: SqlStore) -> None:
    """A NUL character in what somebody wrote neither stops the record nor a question."""
    told = Event(model="m", kind="a.b", sentence="a\0b", at=NOW, actor="j\0", data={"raw": "a\0b"})
    store.commit(1, Commit(model=loaded(store), events=[told]))
    (event,) = store.events()
    assert (event.sentence, event.actor, event.data) == ("a\ufffdb", "j\ufffd", {"raw": "a\0b"})
    assert store.load("m\0") is None


def test_names_sort_by_code_point_whatever_the_collation_of_the_database(postgres: Postgres) -> None:
    """As Python and SQLite sort them, so that lists are the same everywhere."""
    name = postgres.new_database("en-US-x-icu")
    store = open_store(postgres.url(name), postgres.password_file)
    assert store.acquire("a", None, 60) == 1
    for model in ("b-a", "a", "ba", "B", "b"):
        store.create(1, replace(STATE, name=model), [])
    assert store.names() == ["B", "a", "b", "b-a", "ba"]
    assert [state.name for state in store.load_all()] == store.names()
    store.close()


def test_load_all_takes_as_many_queries_for_many_models_as_for_one(store: SqlStore) -> None:
    """Three, and the transaction's own."""
    queries: list[str] = []
    sa.event.listen(store._db.engine, "before_cursor_execute", lambda *args: queries.append(args[2]))
    store.load_all()
    for_one = len(queries)
    for i in range(50):
        store.create(1, replace(STATE, name=f"m{i}"), [])
    queries.clear()
    assert len(store.load_all()) == 51
    assert len(queries) == for_one <= 4


# ---------------------------------------------------------------- who may come in
def test_a_wrong_password_is_said_without_it(
    postgres: Postgres, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So are a database and a server that do not exist, and a password file that cannot be read."""
    monkeypatch.setattr(module, "PATIENCE_S", 0.1)
    wrong = tmp_path / "password"
    wrong.write_text("not-the-pass-word\nmore\n")
    for url, file, message in (
        (postgres.url(database), wrong, "password authentication failed"),
        (postgres.url("no_such_db"), postgres.password_file, "does not exist"),
        (postgres.url(database, port=1), postgres.password_file, "refused"),
        (postgres.url(database), tmp_path / "nowhere", "RATCHET_DATABASE_PASSWORD_FILE: .*cannot be read"),
        (postgres.url(database).replace("@", ":not-the-pass-word@"), None, "password authentication failed"),
    ):  # fmt: skip
        with capture_logs() as logs, pytest.raises(StoreError, match=message) as caught:
            open_store(url, file)
        told = f"{caught.value!r} {caught.value.__cause__!r} {logs}"
        assert "not-the-pass-word" not in told
        assert PASSWORD not in told


def test_a_password_may_change_while_the_store_is_open(postgres: Postgres, tmp_path: Path) -> None:
    """The file is read for each new connection; a URL may hold it too, and shows it nowhere."""
    name, role = postgres.new_database(), "rotating"
    postgres.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'first'")
    postgres.sql(f"ALTER DATABASE {name} OWNER TO {role}")
    postgres.sql(f"GRANT ALL ON SCHEMA public TO {role}", name)
    file = tmp_path / "password"
    file.write_text("first\n")
    store = open_store(postgres.url(name).replace(USER, role), file)
    assert store.acquire("a", None, 60) == 1
    postgres.sql(f"ALTER ROLE {role} PASSWORD 'second'")
    file.write_text("second\n")
    postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", "postgres", role)
    assert store.acquire("a", None, 60) == 1
    store.close()
    in_url = open_store(postgres.url(name).replace(USER, f"{role}:second"))
    assert "second" not in f"{in_url._where} {in_url._db.engine!r} {in_url._db.engine.url!r}"
    in_url.close()


def test_a_role_without_rights_is_told_what_it_lacks(postgres: Postgres, database: str) -> None:
    """On a database that it may look at but not write to."""
    postgres.sql("CREATE ROLE looker LOGIN PASSWORD 'looker'")
    with pytest.raises(StoreError, match=r"permission denied.*the user lacks a right"):
        open_store(postgres.url(database).replace(USER, "looker:looker"))
