"""The search on a real PostgreSQL: as in the working folder, going on after kills and lost connections, with the password nowhere."""

from __future__ import annotations

import gc
import itertools
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
import pytest
import tune_bench
from servers.cutting_proxy import CuttingProxy, cutting_proxy
from servers.postgres import PASSWORD, USER, Postgres
from test_tune import CHAMPION, context
from tune_bench import inputs

from pipelines.jobs.port import RetryableJobError
from tuners.shared_study import StudyPlace, disconnect, forget_old
from tuners.study import release_lost
from tuners.trials import TrialState

# Optuna leaves connections of its sessions to the garbage collector, of which the driver complains.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
_MODELS = itertools.count()


@pytest.fixture(autouse=True)
def _disconnected() -> Iterator[None]:
    yield
    disconnect()
    gc.collect()


def place(postgres: Postgres, *, cycle: int = 7, port: int | None = None) -> StudyPlace:
    """A study of a model that has none."""
    url = postgres.url(postgres.clean_database(), port=port).replace("postgresql:", "postgresql+psycopg:")
    return StudyPlace(url=url, model=f"m{next(_MODELS)}", cycle=cycle, password_file=str(postgres.password_file))


def run(folder: Path, where: StudyPlace, **settings: Any) -> dict[str, Any]:
    return tune_bench.run({**inputs(folder, **settings), "study": asdict(where)}, context(folder))


def trials(where: StudyPlace) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=where.name, storage=where.storage()).get_trials()


def test_a_search_finds_the_same_as_in_its_folder(tmp_path: Path, postgres: Postgres) -> None:
    """Where the study is kept changes nothing of what is found; its table of migrations is not the state's."""
    where = place(postgres)
    told = run(tmp_path / "a", where, tune={"trials": 8}, champion=CHAMPION)
    kept = tune_bench.run(inputs(tmp_path / "b", tune={"trials": 8}, champion=CHAMPION), context(tmp_path / "b"))
    for out in (told, kept):
        out.pop("compute_s")
    assert told == kept
    assert len(trials(where)) == 8
    assert not (tmp_path / "a" / "study.journal").exists()
    database = where.url.rpartition("/")[2]
    tables = postgres.sql(
        "SELECT DISTINCT schemaname FROM pg_tables WHERE tablename IN ('trials', 'alembic_version')", database
    )
    assert tables == [("ratchet_studies",)]
    written = "".join(p.read_text(errors="replace") for p in tmp_path.rglob("*") if p.is_file())
    assert PASSWORD not in written + json.dumps(told) + repr(where) + repr(where.storage().engine.url)


def test_parallel_trials_share_one_study_and_budget(tmp_path: Path, postgres: Postgres) -> None:
    """All processes together start no more than the budget has."""
    where = place(postgres)
    out = run(tmp_path, where, tune={"trials": 9, "parallel": 3}, component={"slow_s": 0.02})
    assert out["trials"] == 9
    assert len({trial.user_attrs["pid"] for trial in trials(where)}) > 1


def test_what_a_killed_job_left_running_is_tried_once_more(tmp_path: Path, postgres: Postgres) -> None:
    """Nothing waits for a heartbeat: while a job holds its name no other works on its study."""
    where = place(postgres)
    run(tmp_path, where, tune={"trials": 3})
    study = optuna.load_study(study_name=where.name, storage=where.storage())
    lost = study.ask()
    lost.set_user_attr("pid", os.getpid())
    out = run(tmp_path, where, tune={"trials": 6})
    assert out["trials"] == 6
    assert not [t for t in trials(where) if t.state is TrialState.RUNNING]
    assert release_lost(study) == 0


def test_a_study_of_other_rows_gives_way_and_old_ones_go(tmp_path: Path, postgres: Postgres) -> None:
    """Trials say nothing about another question, and the database does not grow for ever."""
    where = place(postgres, cycle=1)
    run(tmp_path / "a", where, tune={"trials": 3}, seed=1)
    run(tmp_path / "b", where, tune={"trials": 3}, seed=2)
    assert len(trials(where)) == 3
    later = StudyPlace(**{**asdict(where), "cycle": 6})
    storage = where.storage()
    for kept in (f"x-{where.model}/c1", f"{where.model}/c2"):
        optuna.create_study(study_name=kept, storage=storage)
    forget_old(later)
    left = [name for name in optuna.get_all_study_names(storage=storage) if where.model in name]
    assert sorted(left) == [f"{where.model}/c2", f"x-{where.model}/c1"]


def test_two_jobs_that_are_the_first_both_get_the_tables(postgres: Postgres) -> None:
    """Neither fails, whoever makes them."""
    where = place(postgres)
    postgres.sql("DROP SCHEMA IF EXISTS ratchet_studies CASCADE", where.url.rpartition("/")[2])
    failed: list[Exception] = []

    def connect() -> None:
        try:
            where.storage()
        except Exception as error:  # noqa: BLE001 - told by the test's own thread
            failed.append(error)

    threads = [threading.Thread(target=connect) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []


def test_a_database_that_goes_away_ends_the_attempt_and_the_next_goes_on(tmp_path: Path, postgres: Postgres) -> None:
    """With a sentence that holds no password, as trouble that may pass; no trial is done twice."""
    with cutting_proxy(postgres.port) as proxy:
        where = place(postgres, port=proxy.port)
        where.storage()
        cutter = threading.Thread(target=_cut_after_some_trials, args=(proxy, where, postgres))
        cutter.start()
        with pytest.raises(RetryableJobError, match=r"RATCHET_STUDY_DATABASE\) is away") as caught:
            run(tmp_path, where, tune={"trials": 12}, component={"slow_s": 0.05})
        cutter.join(30)
        assert PASSWORD not in str(caught.value)
        with pytest.raises(RetryableJobError, match="away"):
            run(tmp_path, where, tune={"trials": 12})
        proxy.refuses = False
        done = [t.number for t in trials(where) if t.state.is_finished()]
        assert done
        out = run(tmp_path, where, tune={"trials": 12}, component={"slow_s": 0.05})
        assert out["trials"] == 12
        assert {t.number for t in trials(where) if t.state.is_finished()} >= set(done)


def _cut_after_some_trials(proxy: CuttingProxy, where: StudyPlace, postgres: Postgres) -> None:
    deadline, database = time.monotonic() + 30, where.url.rpartition("/")[2]
    count = (
        "SELECT count(*) FROM ratchet_studies.trials JOIN ratchet_studies.studies USING (study_id) "
        "WHERE study_name = %s AND state = 'COMPLETE'"
    )
    while postgres.sql(count, database, where.name)[0][0] < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    proxy.refuses = True
    proxy.cut_all()


def test_a_wrong_password_or_a_missing_file_is_trouble_without_a_secret(tmp_path: Path, postgres: Postgres) -> None:
    """Neither a secret nor a stack of the driver's."""
    wrong = tmp_path / "wrong"
    wrong.write_text("not-the-pass-word")
    for file in (wrong, tmp_path / "nowhere"):
        where = StudyPlace(**{**asdict(place(postgres)), "password_file": str(file)})
        with pytest.raises(RetryableJobError, match="RATCHET_STUDY_DATABASE") as caught:
            where.storage()
        assert "not-the-pass-word" not in repr(caught.value)
    assert USER in str(caught.value) or "nowhere" in str(caught.value)
