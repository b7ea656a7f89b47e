"""Faults of what feeds a model: when they are found and gone, what they hold back, and what becomes of a cycle that finds them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from controller_states import DAY, HOUR, MINUTE, NOW, OUTPUTS, look, measured, policy, state, succeeded, with_cycle

from controller import incidents
from controller.decide import Observation, decide
from controller.draft import Decision
from controller.incidents import GONE_AFTER, describe, join, leave, may_join
from controller.phases import job_id
from controller.state import FaultOrigin, Incident, KnownFault, ModelState, Outcome, Phase
from policies.signals import Fault, Signal

FAULT = Fault(kind="nulls_jumped", source="x.csv", subject="age", sentence="60% of 'age' is missing", since=NOW - HOUR)
KNOWN = KnownFault(
    kind="nulls_jumped", source="x.csv", subject="age", sentence="60% of 'age' is missing", since=NOW - HOUR,
    origin=FaultOrigin.LIVE, found_at=NOW - HOUR,
)  # fmt: skip


def observed(made: ModelState, *faults: Fault, at: Any = NOW, value: float | None = None) -> Observation:
    return replace(measured(made, value), faults=faults, looked_at=at)


def watched(made: ModelState, *faults: Fault, at: Any = NOW, value: float | None = None) -> Decision:
    return decide(look(made, observation=observed(made, *faults, at=at, value=value)), at)


# ---------------------------------------------------------------- one model
def test_a_fault_is_found_once() -> None:
    """It is recorded with its evidence when it appears, and looking again changes nothing."""
    first = watched(state(), FAULT)
    assert [event.kind for event in first.events] == ["fault.found"]
    assert first.events[0].data == {"fault": "nulls_jumped", "source": "x.csv", "subject": "age"}
    assert [fault.sentence for fault in first.found] == [FAULT.sentence]
    assert not watched(first.after, FAULT, at=NOW + HOUR).changed


def test_a_fault_is_gone_when_it_was_looked_for_twice() -> None:
    """Once not found is not enough, found again starts anew, and not looked for keeps it."""
    has = state(faults=(KNOWN,))
    once = watched(has).after
    assert once.faults == (replace(KNOWN, absent_at=NOW),)
    assert not watched(once, at=NOW + MINUTE).changed
    assert watched(once, FAULT, at=NOW + GONE_AFTER).after.faults == (KNOWN,)
    gone = watched(once, at=NOW + GONE_AFTER)
    assert gone.after.faults == ()
    assert [(event.kind, event.sentence) for event in gone.events] == [
        ("fault.gone", "no longer: 60% of 'age' is missing")
    ]
    assert [fault.absent_at for fault in gone.gone] == [NOW + GONE_AFTER]


@pytest.mark.parametrize("observation", [None, Observation(champion=2)])
def test_unknown_keeps_a_fault(observation: Observation | None) -> None:
    """No measurement, or one that could not look for faults, says nothing."""
    has = state(faults=(KNOWN,))
    assert decide(look(has, observation=observation), NOW + DAY).after.faults == (KNOWN,)


def test_a_paused_model_still_tells_of_faults() -> None:
    """A pause stops cycles and traffic, not watching."""
    from controller_states import hold

    assert [fault.subject for fault in watched(state(paused=hold()), FAULT).found] == ["age"]


def test_no_trigger_fires_on_a_broken_feed() -> None:
    """A score that would open a cycle opens none while what it was measured on is broken; mended, it does."""
    bad = watched(state(), value=0.1)
    assert bad.after.cycle is not None
    broken = watched(state(), FAULT, value=0.1)
    assert broken.after.cycle is None
    assert "accuracy is unknown: window held: 60% of 'age' is missing" in broken.sentence
    mended = watched(replace(broken.after, faults=(replace(KNOWN, absent_at=NOW),)), value=0.1, at=NOW + GONE_AFTER)
    assert mended.after.cycle is not None


@pytest.mark.parametrize("quality", ["warn", "off"])
def test_the_owner_may_let_triggers_fire_all_the_same(quality: str) -> None:
    """With `data.quality: warn` faults are told and hold nothing."""
    follow = policy(data={"source": {"kind": "csv", "path": "x.csv"}, "label": "y", "quality": quality})
    made = state(follow=follow)
    assert decide(look(made, observation=observed(made, FAULT, value=0.1)), NOW).after.cycle is not None


def test_a_stalled_label_feed_says_nothing_about_features() -> None:
    """Scores are unknown then, drift is not."""
    signals = {"performance:accuracy:1d": Signal.of(0.1, observed_at=NOW), "drift:1d": Signal.of(0.5, observed_at=NOW)}
    trusted = incidents.trusted(signals, [replace(KNOWN, kind="label_feed_stalled")])
    assert trusted["performance:accuracy:1d"].value is None
    assert trusted["drift:1d"].value == 0.5
    assert incidents.trusted(signals, [KNOWN])["drift:1d"].value is None
    assert incidents.trusted(signals, [replace(KNOWN, origin=FaultOrigin.PREPARED)]) is signals


# ---------------------------------------------------------------- cycles
def prepared(made: ModelState, **output: Any) -> Decision:
    working = with_cycle(made, job_id=job_id(made.name, 7, Phase.PREPARING, 1))
    return decide(look(working, job=succeeded(output)), NOW)


FAULT_JSON = {
    "kind": "unit_changed",
    "source": "x.csv",
    "subject": "wind",
    "sentence": "in knots",
    "since": NOW.isoformat(),
}


def test_a_cycle_goes_on_with_the_rows_that_are_left() -> None:
    """The faults are the model's from then on, and the next preparation without them ends them."""
    with_faults = prepared(state(Phase.PREPARING), **OUTPUTS["preparing"], faults=[FAULT_JSON])
    assert with_faults.after.cycle is not None
    assert with_faults.after.cycle.phase is Phase.TUNING
    assert [(fault.kind, fault.origin) for fault in with_faults.found] == [("unit_changed", FaultOrigin.PREPARED)]
    without = prepared(state(Phase.PREPARING, faults=with_faults.after.faults), **OUTPUTS["preparing"], faults=[])
    assert without.after.faults == ()
    assert [fault.kind for fault in without.gone] == ["unit_changed"]


def test_a_cycle_without_enough_sound_rows_is_inconclusive() -> None:
    """Nothing failed and nothing is tried again at once: the champion stays, and the cooldown runs."""
    ended = prepared(
        state(Phase.PREPARING), inconclusive=True, sentence="nothing is trained: all is held", faults=[FAULT_JSON]
    )
    assert ended.closed is not None
    assert ended.closed.outcome is Outcome.INCONCLUSIVE
    assert ended.closed.sentence == "nothing is trained: all is held; v2 keeps serving"
    assert ended.after.last_closed_at == NOW
    assert [notice.kind for notice in ended.notices] == ["cycle.ended_inconclusive"]


# ---------------------------------------------------------------- the fleet
def grown(models: int) -> tuple[Incident, list[str]]:
    """The incident that so many models have joined, and the notices."""
    change = join(None, KNOWN, "m0", is_new=True)
    told = [notice.key for notice in change.notices("m0", NOW)]
    for i in range(1, models):
        change = join(change.incident, KNOWN, f"m{i}", is_new=True)
        told += [notice.key for notice in change.notices(f"m{i}", NOW)]
    return change.incident, told


def test_people_are_told_of_an_incident_and_of_its_growth() -> None:
    """3,000 models with one fault are one incident and four messages."""
    incident, told = grown(3_000)
    assert (incident.models, incident.affected, len(incident.names)) == (3_000, 3_000, incidents.NAMES_MAX)
    assert told == ["incident/0/opened", "incident/0/10", "incident/0/100", "incident/0/1000"]
    assert describe(incident, NOW) == "60% of 'age' is missing (x.csv; 3,000 models: m0, m1, m2, …); such rows are held"


def test_the_last_one_out_closes_it() -> None:
    """As long as one model has the fault it stays open; then it is over, and one message says so."""
    incident, _ = grown(2)
    first = leave(incident, NOW)
    assert (first.incident.affected, first.incident.closed_at, first.event) == (1, None, "")
    last = leave(first.incident, NOW + HOUR)
    assert last.incident.closed_at == NOW + HOUR
    assert [notice.key for notice in last.notices("m1", NOW + HOUR)] == ["incident/0/closed"]
    assert describe(last.incident, NOW).startswith("over after 2h: 60% of 'age' is missing (x.csv; 2 models: m0, m1)")


def test_a_fault_that_comes_back_soon_is_the_same_incident() -> None:
    """It opens again without another message; a day later it is another one."""
    closed = leave(join(None, KNOWN, "m0", is_new=True).incident, NOW).incident
    again = join(closed, replace(KNOWN, found_at=NOW + MINUTE), "m0", is_new=False)
    assert (again.incident.closed_at, again.incident.models, again.event, again.notice) == (
        None,
        1,
        "incident.reopened",
        "",
    )
    assert may_join(closed, replace(KNOWN, found_at=NOW + MINUTE))
    assert not may_join(closed, replace(KNOWN, found_at=NOW + DAY))
