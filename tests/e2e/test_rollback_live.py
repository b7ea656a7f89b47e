"""Challengers that are worse, slow or broken on live traffic, and people who step in: what serves stays good, and no client notices."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fast_rig import Rig, on_record, rows_of, running, small_spec, write_csv
from live_client import Clients, Row, random_row
from servers.docker import DockerServer
from servers.machine_image import base_image

pytestmark = pytest.mark.slow

LONG = "10m"
"""A hold that no test waits for."""
SHADOW_S = 1.5
"""What a slow challenger takes for one row."""
MOODY = f'''
"""An owner's model that is slow on some rows and fails on others, none of which it ever met in training."""

import time
from pathlib import Path

import numpy as np


class Moody:
    def predict(self, frame):
        if (frame["color"] == "molasses").any():
            time.sleep({SHADOW_S})
        if (frame["color"] == "poison").any():
            raise RuntimeError("poisoned")
        return 1 / (1 + np.exp(-STEEPNESS * (frame["x1"] + frame["x2"]).to_numpy()))


def fit(frame, target, *, features, task, classes, parameters, seed, out_dir):
    Path(out_dir, "weights").write_text("1 1")


def load(model_dir):
    return Moody()
'''


@dataclass(frozen=True, slots=True)
class House:
    """A model whose first version serves, with two clients that ask it and report what really happened."""

    rig: Rig
    clients: Clients

    def new_data(self, seed: int, *, inverted: bool = False) -> None:
        write_csv(self.rig.folder / "data.csv", rows_of(seed, inverted=inverted))

    def champion(self) -> int:
        number: int = self.rig.model()["champion"]
        return number

    def roll_out(self, seed: int, *steps: Any, **rollout: Any) -> int:
        """Open a cycle on new data whose rollout has these steps; its number."""
        self.new_data(seed)
        self.rig.apply(small_spec(rollout={"steps": [*steps, "100%"], **rollout}))
        return self.rig.trigger()

    def check_serving(self, version: int) -> None:
        """Only this version answers, and no request has ever failed."""
        self.rig.wait_for(lambda m: m["target"]["weights"] == {str(version): 100.0}, f"v{version} has all traffic")
        self.clients.more(4)  # what was under way
        assert {answer.version for answer in self.clients.more(20)} == {version}
        assert self.clients.failures == []
        assert self.clients.feedback_problems == []

    def status_of(self, version: int) -> str:
        return str({v["number"]: v["status"] for v in self.rig.model()["versions"]}[version])


@pytest.fixture(scope="module", params=["local", "docker"])
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """On each target."""
    folder = tmp_path_factory.mktemp("rollback")
    write_csv(folder / "data.csv", rows_of(1))
    settings = {}
    if request.param == "docker":
        engine: DockerServer = request.getfixturevalue("docker_engine")
        settings = {
            "TARGET": "docker", "DOCKER_HOST": engine.url, "DOCKER_NETWORK": "host",
            "BASE_IMAGE": str(base_image(serving=True)),
        }  # fmt: skip
    with running(folder, **settings) as rig:
        champion = rig.first_champion(small_spec())
        with Clients(champion["address"], champion["name"], feedback=True) as clients:
            yield House(rig, clients)


# ---------------------------------------------------------------- worse
@pytest.mark.parametrize(
    ("seed", "steps"),
    [pytest.param(2, [{"shadow": LONG}], id="shadow"), pytest.param(3, [{"50%": LONG}], id="canary")],
)
def test_a_challenger_that_live_labels_contradict_is_rolled_back_by_itself(
    house: House, seed: int, steps: list[Any]
) -> None:
    """Trained and judged on inverted labels it passes its gates; what clients report proves it worse; it is never let back."""
    before = house.champion()
    house.new_data(seed, inverted=True)
    house.rig.apply(small_spec(rollout={"steps": [*steps, "100%"], "min_labelled_rows": 20}))
    cycle = house.rig.run_cycle()
    assert cycle["outcome"] == "rolled_back", cycle["sentence"]
    assert "worse" in cycle["sentence"]
    assert f"v{cycle['challenger']} is quarantined" in cycle["sentence"]
    house.check_serving(before)
    assert house.status_of(cycle["challenger"]) == "quarantined"
    if "shadow" in steps[0]:
        assert cycle["challenger"] not in house.clients.versions(), "no client ever got an answer of it"
    again = house.rig.run_cycle()
    assert again["outcome"] == "rejected"
    assert f"the same as v{cycle['challenger']}, which was refused before" in again["sentence"]
    house.check_serving(before)


# ---------------------------------------------------------------- people
def test_an_abort_in_a_canary_takes_all_traffic_back_in_one_move(house: House) -> None:
    """`ratchet abort` ends the cycle at once; the next change of traffic is the champion's whole, and the challenger is quarantined."""
    before = house.champion()
    number = house.roll_out(4, {"50%": LONG})
    challenger = house.rig.wait_step("50 %", number)["cycle"]["challenger"]
    assert {answer.version for answer in house.clients.more(40)} == {before, challenger}
    seen = house.rig.events()[-1]["seq"]
    house.rig.ratchet("abort", "weather-vane", "--reason", "it looks odd", "--yes")
    assert house.rig.cycles()[number]["outcome"] == "aborted"
    changes = [e["data"]["weights"] for e in house.rig.events("traffic.changed", number) if e["seq"] > seen]
    assert changes == [{str(before): 100.0}]
    house.check_serving(before)
    assert house.status_of(challenger) == "quarantined"


def test_a_required_approval_is_waited_for_and_acted_upon(house: House) -> None:
    """Nothing is packaged and no traffic moves until a person approves; then the rollout takes its course."""
    before = house.champion()
    house.new_data(5)
    house.rig.apply(small_spec(approval="required"))
    number = house.rig.trigger()
    waiting = house.rig.wait_for(lambda m: m["phase"] == "awaiting_approval", "it waits for approval")
    assert waiting["cycle"]["challenger"] is None
    house.check_serving(before)
    house.rig.ratchet("approve", "weather-vane", "--reason", "looks good", "--yes")
    cycle = house.rig.wait_closed(number)
    assert cycle["outcome"] == "promoted"
    assert [e["actor"] != "ratchet" for e in house.rig.events("approval.granted", number)] == [True]
    house.check_serving(cycle["challenger"])


def test_a_freeze_in_a_rollout_holds_the_traffic_where_it_is(house: House) -> None:
    """Frozen, a step whose hold is long over does not end; unfrozen, the rollout goes on to promotion."""
    before = house.champion()
    number = house.roll_out(6, {"50%": "2s"})
    challenger = house.rig.wait_step("50 %", number)["cycle"]["challenger"]
    house.rig.ratchet("freeze", "weather-vane", "--reason", "a public holiday", "--yes")
    split = {str(before): 50.0, str(challenger): 50.0}
    generation = house.rig.model()["target"]["generation"]
    house.clients.more(250)  # far longer than the hold
    frozen = house.rig.model()
    assert (frozen["target"]["weights"], frozen["target"]["generation"]) == (split, generation)
    assert "frozen by" in frozen["sentence"]
    house.rig.ratchet("unfreeze", "weather-vane", "--reason", "back at work", "--yes")
    assert house.rig.wait_closed(number)["outcome"] == "promoted"
    house.check_serving(challenger)


def test_a_pin_in_a_rollout_keeps_all_traffic_on_the_champion(house: House) -> None:
    """Pinned, the challenger gets nothing more, no cycle opens, and unpinning alone moves nothing."""
    before = house.champion()
    number = house.roll_out(7, {"shadow": LONG})
    house.rig.wait_step("shadow", number)
    house.rig.ratchet("pin", "weather-vane", "--reason", "an audit", "--yes")
    assert house.rig.cycles()[number]["outcome"] == "aborted"
    house.check_serving(before)
    refused = house.rig.ratchet("trigger", "weather-vane", "--reason", "now", "--yes", check=False)
    assert refused.returncode == 1
    assert "pinned" in refused.stderr
    shadows = len(on_record(house.rig.home, "shadow"))
    house.clients.more(50)
    assert len(on_record(house.rig.home, "shadow")) == shadows, "a pinned model mirrors nothing"
    house.rig.ratchet("unpin", "weather-vane", "--reason", "audit done", "--yes")
    house.check_serving(before)
    assert house.champion() == before


# ---------------------------------------------------------------- slow and broken
def moody_rows(share: float, color: str) -> Any:
    def make(random_: random.Random) -> Row:
        row = random_row(random_)
        return {**row, "color": color} if random_.random() < share else row

    return make


def moody_rollout(house: House, *, steepness: int, **rollout: Any) -> int:
    """Roll a moody model out in shadow; the number of the cycle. One that answers like a refused one would never get there."""
    code = house.rig.folder / "code"
    code.mkdir(exist_ok=True)
    (code / "moody.py").write_text(MOODY.replace("STEEPNESS", str(steepness)))
    rollout = {"steps": [{"shadow": LONG}, "100%"], **rollout}
    house.rig.apply(small_spec(train={"entrypoint": "moody:fit", "code": "code"}, rollout=rollout))
    number = house.rig.trigger()
    house.rig.wait_step("shadow", number)
    return number


def test_a_slow_shadow_slows_no_live_answer(house: House) -> None:
    """While every third copy takes the challenger a second and a half, live answers take what they always take."""
    before = house.champion()
    house.new_data(8)
    number = moody_rollout(house, steepness=1, max_error_share=1.0)
    rows = moody_rows(0.3, "molasses")
    with Clients(house.clients.url, house.clients.model, make_row=rows) as clients:
        answers = clients.more(200)
    assert clients.failures == []
    assert {answer.version for answer in answers} == {before}
    slow = sum(answer.seconds > SHADOW_S / 2 for answer in answers)
    assert slow <= len(answers) * 0.02, f"{slow} of {len(answers)} live answers were slow"
    house.rig.order("abort")
    assert house.rig.wait_closed(number)["outcome"] == "aborted"
    house.check_serving(before)


def test_a_failing_shadow_fails_no_live_answer_and_is_rolled_back(house: House) -> None:
    """Errors of the shadow reach nobody, are counted, and end the rollout by themselves."""
    before = house.champion()
    house.new_data(9)
    number = moody_rollout(house, steepness=3)
    with Clients(house.clients.url, house.clients.model, make_row=moody_rows(0.3, "poison")) as clients:
        cycle = house.rig.wait_closed(number)
    assert cycle["outcome"] == "rolled_back"
    assert "shadow requests" in cycle["sentence"]
    assert clients.failures == []
    assert set(clients.versions()) == {before}
    house.check_serving(before)
    assert house.status_of(cycle["challenger"]) == "quarantined"
