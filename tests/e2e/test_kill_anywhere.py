"""kill -9 of anything at any moment, while clients ask: the same cycle goes on, and nothing happens twice."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from fast_rig import Rig, kill_now, on_record, rows_of, running, small_spec, wait_until, write_csv
from live_client import Clients

pytestmark = pytest.mark.slow

SEED = 2
KILLS = 12
ONCE = (
    "cycle.opened", "cycle.started", "data.prepared", "study.finished", "model.trained", "gates.passed",
    "version.created", "version.promoted", "cycle.promoted",
)  # fmt: skip
"""Kinds of events of which a cycle that is promoted has one each."""
OWNER = '''
"""An owner's training that writes down each time that it is run as the training job, and takes as long as it is told."""

import os
import time
from pathlib import Path

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.compose import make_column_transformer


def fit(frame, target, *, features, task, classes, parameters, seed, out_dir):
    if Path.cwd().name == "training":
        with open(parameters["journal"], "a") as journal:
            journal.write(f"{Path.cwd().parent.name} {os.getpid()}\\n")
        time.sleep(parameters["seconds"])
    numbers = make_column_transformer(("passthrough", ["x1", "x2"]))
    return make_pipeline(numbers, LogisticRegression()).fit(frame, target)
'''


def owners_spec(folder: Path, seconds: float, **changes: object) -> dict[str, object]:
    """A policy that trains with `OWNER`."""
    (folder / "code").mkdir(exist_ok=True)
    (folder / "code" / "owner.py").write_text(OWNER)
    parameters = {"journal": str(folder / "trainings"), "seconds": seconds}
    return small_spec(train={"entrypoint": "owner:fit", "code": "code", "parameters": parameters}, **changes)


def trainings(folder: Path) -> Counter[str]:
    """How often the training of each cycle (`c1`, `c2` …) was run."""
    return Counter(line.split()[0] for line in (folder / "trainings").read_text().splitlines())


def check_promoted_once(rig: Rig, number: int) -> None:
    """The cycle led to one version, and each of its events is on record once."""
    counts = Counter(event["kind"] for event in rig.events(cycle=number))
    assert {kind: counts[kind] for kind in ONCE} == dict.fromkeys(ONCE, 1)
    steps = Counter(event["data"]["step"] for event in rig.events("step.reached", number))
    assert set(steps.values()) == {1}
    generations = [event["data"]["generation"] for event in rig.events("traffic.changed")]
    assert generations == list(range(1, len(generations) + 1))


def in_flight(clients: Clients, kills: Sequence[tuple[float, float]]) -> set[str]:
    """The requests that were under way at one of these moments."""
    return {a.id for a in clients.answers for began, ended in kills if a.at <= ended and a.at + a.seconds >= began}


def timed_kill(pid: int) -> tuple[float, float]:
    """Kill; between which two moments it was done."""
    began = time.monotonic()
    kill_now(pid)
    return began, time.monotonic()


def check_all(rig: Rig, clients: Clients, versions: int, kills: Sequence[tuple[float, float]] = ()) -> None:
    """Versions, cycles and events are numbered without a gap, no request failed, and every answer is on record once.

    `kills`: between which two moments of the monotonic clock a replica or the router died. Only what was being answered just then may
    stand there once more: who dies between writing an answer down and sending it leaves it to be asked again."""
    model = rig.model()
    assert [v["number"] for v in model["versions"]] == list(range(1, versions + 1))
    assert model["champion"] == versions
    cycles = rig.cycles()
    assert sorted(cycles) == list(range(1, len(cycles) + 1))
    seqs = [event["seq"] for event in rig.events()]
    assert seqs == list(range(1, len(seqs) + 1))
    assert clients.failures == []
    recorded = on_record(rig.home)
    again = {row for row, times in Counter(recorded).items() if times > 1}
    assert again <= in_flight(clients, kills)
    assert len(recorded) - len(set(recorded)) == len(again), "nothing more than twice"
    assert {answer.id for answer in clients.answers} <= set(recorded)


def test_a_daemon_killed_at_random_moments_does_everything_once(tmp_path: Path) -> None:
    """Twelve kills at seeded moments of whole cycles: each cycle keeps its number, trains once, and is promoted once."""
    random_ = random.Random(SEED)
    print(f"seed {SEED}")
    write_csv(tmp_path / "data.csv", rows_of(1))
    with running(tmp_path) as rig:
        champion = rig.first_champion(owners_spec(tmp_path, 0.5))
        with Clients(champion["address"], champion["name"]) as clients:
            kills, number = 0, 1
            while kills < KILLS:
                write_csv(tmp_path / "data.csv", rows_of(10 + number))
                number += 1
                assert rig.trigger() == number
                kills += kill_through(rig, random_, KILLS - kills, clients)
                assert rig.wait_closed(number)["outcome"] == "promoted"
                check_promoted_once(rig, number)
            clients.more(10)
        check_all(rig, clients, versions=number)
        assert trainings(tmp_path) == {f"c{n}": 1 for n in range(1, number + 1)}
        assert rig.events("job.retried") == []


def kill_through(rig: Rig, random_: random.Random, kills_max: int, clients: Clients) -> int:
    """Kill the daemon again and again as long as its cycle is open; how often."""
    for kills in range(kills_max):
        if rig.model()["cycle"] is None:
            return kills
        clients.more(random_.randrange(1, 100))
        rig.kill()
        clients.more(random_.randrange(1, 30))
        rig.start()
    return kills_max


def test_killed_jobs_are_tried_again_and_a_killed_job_host_is_not_missed(tmp_path: Path) -> None:
    """A worker killed in training costs one attempt of the same cycle; a job host killed beside it costs nothing."""
    write_csv(tmp_path / "data.csv", rows_of(1))
    with running(tmp_path) as rig:
        champion = rig.first_champion(owners_spec(tmp_path, 1.5))
        with Clients(champion["address"], champion["name"]) as clients:
            write_csv(tmp_path / "data.csv", rows_of(2))
            assert rig.trigger() == 2
            wait_until(lambda: trainings(tmp_path)["c2"] == 1, "the training has begun")
            kill_now(rig.job_host_pid())
            kill_now(rig.worker_pid("weather-vane-c2-training-1"))
            assert rig.wait_closed(2)["outcome"] == "promoted"
            check_promoted_once(rig, 2)
            assert len(rig.events("job.retried", 2)) == 1
            assert trainings(tmp_path) == {"c1": 1, "c2": 2}
            write_csv(tmp_path / "data.csv", rows_of(3))
            assert rig.trigger() == 3
            wait_until(lambda: trainings(tmp_path)["c3"] == 1, "the training has begun")
            kill_now(rig.job_host_pid())
            assert rig.wait_closed(3)["outcome"] == "promoted"
            assert rig.events("job.retried", 3) == []
        check_all(rig, clients, versions=3)
        assert trainings(tmp_path) == {"c1": 1, "c2": 2, "c3": 1}


def test_killed_replicas_and_routers_are_replaced_in_the_middle_of_a_rollout(tmp_path: Path) -> None:
    """With two replicas a killed one costs no request; a killed router comes back on its port, with the weights it had."""
    write_csv(tmp_path / "data.csv", rows_of(1))
    rollout = {"steps": [{"50%": "4s"}, "100%"], "bake": "1s"}
    with running(tmp_path) as rig:
        champion = rig.first_champion(small_spec(deploy={"replicas": 2}, rollout=rollout))
        with Clients(champion["address"], champion["name"], patient=True) as clients:
            victim = rig.replica_pids(1)[0]
            kills = [timed_kill(victim)]
            clients.more(20)
            wait_until(lambda: len(rig.replica_pids(1)) == 2 and victim not in rig.replica_pids(1), "another runs")
            assert clients.retries == 0, "no client noticed"
            write_csv(tmp_path / "data.csv", rows_of(2))
            number = rig.trigger()
            rig.wait_step("50 %", number)
            kills.append(timed_kill(rig.replica_pids(2)[0]))
            clients.more(20)
            assert clients.retries == 0, "no client noticed"
            router = rig.router_pid()
            kills.append(timed_kill(router))
            wait_until(lambda: rig.router_pid() not in (0, router), "another router runs")
            clients.more(20)
            assert rig.model()["address"] == champion["address"]
            assert rig.wait_closed(number)["outcome"] == "promoted"
            check_promoted_once(rig, number)
            clients.more(10)
        check_all(rig, clients, versions=2, kills=kills)
