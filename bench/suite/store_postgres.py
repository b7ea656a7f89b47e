"""Milliseconds of one commit on PostgreSQL, against SQLite, both on disk before they answer; and what reading 5,000 models takes.

A real server on loopback, with fsync, so the network's own time comes on top.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa

from bench.harness import Bench, Sides
from controller.state import Event, ModelState, Version, VersionStatus
from controller.store import tables
from controller.store.port import Commit
from controller.store.rows import model_values, version_values
from controller.store.sql import SqlStore, open_store
from tests.servers.postgres import running_postgres

MODELS, VERSIONS, COMMITS = 5_000, 5, 100
NOW = datetime(2026, 3, 1, tzinfo=UTC)
POLICY = '{"apiVersion":"ratchet.dev/v1","kind":"ModelPolicy","spec":{"note":"' + "x" * 1500 + '"}}'


@contextmanager
def _setup(folder: Path) -> Iterator[Sides]:
    with (
        running_postgres(durable=True) as server,
        closing(open_store(server.url(server.new_database()), server.password_file)) as ours,
        closing(open_store(f"sqlite:///{folder}/state.db")) as peer,
    ):
        read = {name: _fill(store) for name, store in (("PostgreSQL", ours), ("SQLite", peer))}
        told = "; ".join(f"{name}: {words}" for name, words in read.items())
        yield Sides(
            ours=lambda: _commit_ms(ours),
            peer=lambda: _commit_ms(peer),
            note=lambda _value: f"{MODELS} models, {told}",
        )


def _fill(store: SqlStore) -> str:
    """What reading them took, the first time and when nothing has changed since."""
    epoch = store.acquire("bench", None, 86_400)
    assert epoch == 1
    states = [_state(f"m{i:05}") for i in range(MODELS)]
    with store._db.engine.execution_options(ratchet_writes=True).begin() as db:
        db.execute(sa.insert(tables.models), [model_values(state) for state in states])
        db.execute(sa.insert(tables.versions), [version_values(v) for state in states for v in state.versions.values()])
    first_s, again_s = _seconds(store), statistics.median(_seconds(store) for _ in range(5))
    return f"first read {first_s:.2f} s, read again unchanged {again_s * 1000:.0f} ms"


def _seconds(store: SqlStore) -> float:
    began = time.perf_counter()
    assert len(store.load_all()) == MODELS
    return time.perf_counter() - began


def _state(name: str) -> ModelState:
    versions = {
        n: Version(
            model=name, number=n, digest=f"sha256:{n:064}", status=VersionStatus.RETIRED, created_at=NOW, cycle=n,
            scores={"roc_auc": 0.8},
        )
        for n in range(1, VERSIONS + 1)
    }  # fmt: skip
    return ModelState(
        name=name, row_version=1, policy=POLICY, policy_digest="sha256:p", created_at=NOW, versions=versions
    )


def _commit_ms(store: SqlStore) -> float:
    """Median of so many commits, each with an event of some kilobytes, as decisions have."""
    state, taken = store.load("m00000"), []
    assert state is not None
    for _ in range(COMMITS):
        told = Event(model=state.name, kind="a.b", sentence="s", at=NOW, data={"snapshot": "x" * 4000})
        began = time.perf_counter()
        state = store.commit(1, Commit(model=replace(state, policy_dir="/p"), events=[told]))
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1000


BENCH = Bench(
    name="store_postgres",
    unit="ms",
    better="lower",
    peer="the same commit on SQLite",
    runs=3,
    setup=_setup,
)
