"""What was refused is recognised when retraining makes it again, until it can be judged on other rows."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from controller_states import (
    DAY,
    HOUR,
    NOW,
    OUTPUTS,
    POLICY,
    compared,
    look,
    measured,
    serving,
    state,
    succeeded,
    with_cycle,
)

from controller import overrides
from controller.decide import decide
from controller.overrides import Order, Verb
from controller.phases import job_id
from controller.quarantine import REFUSED_KEPT, TOLERANCE
from controller.state import ModelState, Outcome, Phase, Refused
from controller.work import wanted_job

SEEN_TO = NOW - 2 * DAY
OLD = Refused(
    cycle=5, version=None, model_digest="sha256:old", how="was rejected", newest=SEEN_TO, held_out=1000, table=9000
)  # fmt: skip
NEAR = {"cycle": 5, "difference": 0.004, "rows": 256}


def prepared(oldest: datetime | None = None, **rows: int) -> dict[str, Any]:
    counts = {"rows_train": 8000, "rows_holdout": 1000, "rows_unlabelled": 0, **rows}
    return {"fingerprint": "sha256:data", "holdout_from": oldest.isoformat() if oldest else None, **counts}


def at_work(phase: Phase, rows: dict[str, Any], **changes: Any) -> ModelState:
    made = state(phase, **{"refused": (OLD,), **changes})
    assert made.cycle is not None
    outputs = {**made.cycle.outputs, "preparing": rows}
    return with_cycle(made, outputs=outputs, job_id=job_id(made.name, 7, phase, 1))


def judged(rows: dict[str, Any], verdict: str = "pass", likeness: dict[str, Any] | None = None, **changes: Any) -> Any:
    output = {**OUTPUTS["judging"], "verdict": verdict, "likeness": likeness, "judged_to": NOW.isoformat()}
    return decide(look(at_work(Phase.JUDGING, rows, **changes), job=succeeded(output)), NOW)


SAME_ROWS = prepared(SEEN_TO - DAY)


# ---------------------------------------------------------------- recognised
@pytest.mark.parametrize("verdict", ["pass", "inconclusive"])
def test_a_model_that_answers_like_a_refused_one_is_refused(verdict: str) -> None:
    """Whatever the gates say of it now: no row is newer than those that spoke against it."""
    decision = judged(SAME_ROWS, verdict, NEAR)
    assert decision.closed.outcome is Outcome.REJECTED
    assert decision.closed.twin_of == 5
    assert decision.sentence == (
        "the retrained model answers like that of cycle 5, which was rejected (largest difference 0.004 on 256 probe rows): "
        "not tried again before it can be judged on rows newer than 2026-02-27 12:00"
    )
    assert decision.after.refused == (OLD,)


@pytest.mark.parametrize(
    ("rows", "likeness"),
    [
        (SAME_ROWS, None),
        (SAME_ROWS, {**NEAR, "difference": TOLERANCE * 1.01}),
        (SAME_ROWS, {**NEAR, "cycle": 4}),
        (prepared(SEEN_TO + timedelta(seconds=1)), NEAR),
        (prepared(None, rows_train=9000), NEAR),
    ],
    ids=["not likened", "differs", "forgotten", "newer rows", "many more rows"],
)
def test_another_model_or_other_rows_are_a_new_chance(rows: dict[str, Any], likeness: dict[str, Any] | None) -> None:
    """Other answers, or a hold-out of which no row spoke against it; without times, a hold-out's worth of rows more."""
    after = judged(rows, "pass", likeness).after.cycle
    assert after is not None
    assert after.phase is Phase.PACKAGING


def test_the_same_content_is_recognised_before_it_is_judged() -> None:
    """A refused candidate never was a version, but its digest is remembered; other rows are a new chance for it too."""
    for rows, phase in ((SAME_ROWS, None), (prepared(SEEN_TO + HOUR), Phase.JUDGING)):
        job = succeeded({**OUTPUTS["training"], "model_digest": "sha256:old"})
        decision = decide(look(at_work(Phase.TRAINING, rows), job=job), NOW)
        assert (decision.after.cycle.phase if decision.after.cycle else None) is phase
        if phase is None:
            assert decision.sentence == (
                "the retrained model is the same as that of cycle 5, which was rejected: "
                "not tried again before it can be judged on rows newer than 2026-02-27 12:00"
            )
            assert decision.after.refused == (OLD,)


def test_without_times_it_says_how_many_rows_are_needed() -> None:
    """Nothing tells old rows from new ones then but their number."""
    decision = judged(prepared(None, rows_train=8999), "pass", NEAR, refused=(replace(OLD, newest=None),))
    assert decision.sentence.endswith("not tried again before there are 1,000 more rows than the 9,000 of then")


# ---------------------------------------------------------------- remembered
def test_what_the_gates_refuse_is_remembered() -> None:
    """With the newest row that it was judged on; an inconclusive one is not refused, and is not remembered."""
    entry = judged(SAME_ROWS, "fail").after.refused[-1]
    assert entry == Refused(
        cycle=7, version=None, model_digest="sha256:new", how="was rejected", newest=NOW, held_out=1000, table=9000
    )  # fmt: skip
    assert judged(SAME_ROWS, "inconclusive").after.refused == (OLD,)


def test_what_live_traffic_refused_is_remembered_up_to_that_moment() -> None:
    """The rows that spoke against it are those of the rollout."""
    made = state(Phase.ROLLING_OUT)
    assert made.cycle is not None
    outputs = {**made.cycle.outputs, "preparing": SAME_ROWS}
    outputs["judging"] = {**outputs["judging"], "judged_to": SEEN_TO.isoformat()}
    made = with_cycle(made, outputs=outputs, step=1, step_since=NOW, traffic_since=NOW - HOUR)
    back = decide(look(made, target=serving(made), observation=measured(made, 0.9, compared("worse"))), NOW).after
    (entry,) = back.refused
    assert (entry.version, entry.how, entry.newest) == (3, "was rolled back", NOW)
    order = Order(verb=Verb.PROMOTE, actor="ann", reason="it was the labels", version=3)
    assert overrides.apply(back, POLICY, order, NOW).after.refused == ()


def test_only_so_many_are_remembered() -> None:
    """The newest, so that records of decisions stay small."""
    many = tuple(replace(OLD, cycle=-n) for n in range(REFUSED_KEPT, 0, -1))
    after = judged(SAME_ROWS, "fail", refused=many).after.refused
    assert len(after) == REFUSED_KEPT
    assert [after[0].cycle, after[-1].cycle] == [-REFUSED_KEPT + 1, 7]


def test_the_judge_is_told_what_was_refused() -> None:
    """It compares the challenger's answers with theirs."""
    made = at_work(Phase.JUDGING, SAME_ROWS)
    job = wanted_job(made, POLICY, Path("/h"))
    assert job is not None
    assert (job.inputs["cycle"], job.inputs["refused"]) == (7, [5])
