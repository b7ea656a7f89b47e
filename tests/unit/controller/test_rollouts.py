"""Rolling out and baking: evidence moves forward, missing evidence pauses, bad evidence goes back."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from controller_states import (
    DAY,
    HOUR,
    MINUTE,
    NOW,
    compared,
    hold,
    look,
    measured,
    newborn,
    policy,
    serving,
    state,
    with_cycle,
)

from controller.decide import Snapshot, decide
from controller.draft import Decision
from controller.rollouts import ERROR_WINDOW
from controller.state import ModelState, Outcome, Phase, VersionStatus
from deployers.target import ReplicaState, ReplicaStatus
from policies.signals import Comparison, Estimate


def rolling(step: int = 0, since: datetime | None = None, **changes: Any) -> ModelState:
    """v3 at a step of the rollout, in force since then."""
    made = state(Phase.ROLLING_OUT)
    return with_cycle(made, step=step, step_since=since, traffic_since=since and NOW - 2 * HOUR, **changes)


def baking(**changes: Any) -> ModelState:
    return with_cycle(state(Phase.BAKING), traffic_since=NOW - 2 * HOUR, **changes)


def seen(made: ModelState, comparison: Comparison | None = None, **replicas: ReplicaStatus) -> Snapshot:
    return look(made, target=serving(made, **replicas), observation=measured(made, 0.9, comparison))


def traffic(decision: Decision) -> tuple[dict[int, float], int | None]:
    plan = decision.after.plan
    assert plan is not None
    return dict(plan.weights), plan.shadow


# ---------------------------------------------------------------- forward
def test_a_step_counts_from_when_it_is_in_force() -> None:
    """Asking for traffic is not having it."""
    made = rolling()
    waiting = decide(look(made, target=serving(made, generation=3)), NOW)
    assert not waiting.changed or waiting.after.cycle == replace(made.cycle, **counters(waiting))  # type: ignore[arg-type]
    assert waiting.sentence.startswith("v3 at shadow (step 1 of 4): waits for its traffic to be in force; gives up at")
    reached = decide(seen(made), NOW)
    assert reached.sentence == "v3 at shadow (step 1 of 4): in force, holds for 30m"
    assert reached.after.cycle is not None
    assert (reached.after.cycle.step_since, reached.after.cycle.traffic_since) == (NOW, NOW)


def counters(decision: Decision) -> dict[str, Any]:
    after = decision.after.cycle
    assert after is not None
    return {"counts": after.counts, "counts_since": after.counts_since}


def test_it_says_what_it_waits_for() -> None:
    """Target away, replicas starting, replicas missing: each has its words."""
    made = rolling()
    starting = ReplicaStatus(state=ReplicaState.STARTING, reason="0 of 1 replicas ready")
    away = decide(look(made, target=None, target_error="the router does not answer"), NOW)
    assert "waits for the target (the router does not answer)" in away.sentence
    slow = decide(look(made, target=serving(made, generation=3, v3=starting)), NOW)
    assert "waits for its replicas (0 of 1 replicas ready)" in slow.sentence
    none = replace(serving(made, generation=3), replicas={})
    assert "waits for its replicas (not started yet)" in decide(look(made, target=none), NOW).sentence


def test_shadow_step_passes_after_its_hold_and_on_evidence() -> None:
    """A shadow's answers are compared like any others before a challenger gets its first live request."""
    made = rolling(0, NOW - 30 * MINUTE)
    blind = decide(seen(made), NOW)
    assert "v3 at shadow (step 1 of 4): waits, because its answers have not been compared" in blind.sentence
    assert traffic(blind) == ({2: 100.0}, 3)
    decision = decide(seen(made, compared()), NOW)
    assert decision.sentence == "v3 goes from shadow to 10 %; compared on 1000 rows: undecided"
    assert traffic(decision) == ({2: 90.0, 3: 10.0}, None)
    early = decide(seen(rolling(0, NOW - 29 * MINUTE)), NOW)
    assert early.sentence == "v3 at shadow (step 1 of 4): holds for 1m more; not compared yet"
    assert traffic(early) == ({2: 100.0}, 3)


@pytest.mark.parametrize(
    ("state", "mine", "others", "waits"),
    [
        ("undecided", 0.25, 0.15, True),
        ("undecided", 0.16, 0.15, False),
        ("undecided", None, 0.15, False),
        ("no_worse", 0.25, 0.15, False),
    ],
)
def test_a_loss_that_is_expected_keeps_the_share_small(
    state: str, mine: float | None, others: float, waits: bool
) -> None:
    """While labels have decided nothing, confidences that speak against the challenger hold its step; they never roll it back."""
    made = rolling(1, NOW - HOUR)
    comparison = replace(compared(state), estimated_challenger=mine, estimated_champion=others)
    decision = decide(seen(made, comparison), NOW)
    after = decision.after.cycle
    assert after is not None
    assert after.phase is Phase.ROLLING_OUT
    assert after.step == (1 if waits else 2)
    if waits:
        assert "its loss is expected to be 0.100 above the champion's, more than" in decision.sentence


def test_every_step_gives_the_traffic_that_the_policy_says() -> None:
    """Shadow, 10 %, 50 %, 100 %, and then champion: each after its hold and with evidence."""
    made, now, weights = rolling(), NOW, []
    for _ in range(12):
        observed = measured(made, 0.9, compared("no_worse", at=now))
        made = decide(look(made, target=serving(made), observation=observed), now).after
        assert made.plan is not None
        weights.append(made.plan.weights.get(3, 0))
        now += 61 * MINUTE
        if made.champion == 3:
            break
    assert sorted(set(weights)) == [0, 10, 50, 98]
    assert weights == sorted(weights)
    assert made.champion == 3
    assert made.previous == 2
    assert made.cycle is not None
    assert made.cycle.phase is Phase.BAKING


@pytest.mark.parametrize(
    ("comparison", "words"),
    [
        (None, "its answers have not been compared with the champion's yet"),
        (compared(rows=19), "only 19 of its answers can be compared so far, of 20 needed"),
        (compared(at=NOW - 2 * HOUR), "have not been compared with the champion's since this step began"),
    ],
)
def test_missing_evidence_pauses_a_step(comparison: Comparison | None, words: str) -> None:
    """Unknown promotes nothing (invariant 4): the step stays, and says until when."""
    made = rolling(1, NOW - HOUR)
    decision = decide(seen(made, comparison), NOW)
    assert traffic(decision) == traffic(decide(seen(made, comparison), NOW - MINUTE))
    assert "v3 at 10 % (step 2 of 4): waits, because" in decision.sentence
    assert words in decision.sentence
    assert "gives the traffic back at 2026-03-02 12:00" in decision.sentence


def test_stale_evidence_pauses_a_step() -> None:
    """An old comparison says nothing about now."""
    made = rolling(1, NOW - 9 * HOUR)
    decision = decide(seen(with_cycle(made, traffic_since=NOW - DAY), compared(at=NOW - 7 * HOUR)), NOW)
    assert "waits, because the newest comparison is from 2026-03-01 05:00" in decision.sentence


def test_a_comparison_of_other_versions_is_none() -> None:
    """Evidence counts for the two versions it was taken of, since their rollout began."""
    made = rolling(1, NOW - HOUR)
    for observed in (
        replace(measured(made, 0.9, compared("worse")), baseline=1),
        replace(measured(made, 0.9, compared("worse")), challenger=1),
        measured(made, 0.9, compared("worse", at=NOW - 3 * HOUR)),
    ):
        decision = decide(look(made, observation=observed), NOW)
        assert decision.closed is None
        assert "not been compared" in decision.sentence


def test_no_evidence_is_asked_for_where_the_owner_wants_none() -> None:
    """`min_labelled_rows: 0` moves on time alone."""
    follow = policy(rollout={"steps": [{"10%": "1h"}, "100%"], "min_labelled_rows": 0})
    made = with_cycle(state(Phase.ROLLING_OUT, follow=follow), step_since=NOW - HOUR, traffic_since=NOW - HOUR)
    assert traffic(decide(look(made), NOW)) == ({2: 2.0, 3: 98.0}, None)
    last = decide(look(replace(made, cycle=replace(made.cycle, step=1))), NOW)  # type: ignore[type-var]
    assert last.after.champion == 3
    assert last.after.cycle is not None
    baked = decide(look(replace(last.after, cycle=replace(last.after.cycle, phase_since=NOW - DAY))), NOW)
    assert baked.closed is not None
    assert "realised gain unknown: no matured answers of v2" in baked.sentence


@pytest.mark.parametrize(("step", "goes"), [(0, True), (1, True), (2, False), (3, False)])
def test_all_the_traffic_asks_for_being_shown_no_worse(step: int, goes: bool) -> None:
    """Small shares go on while nothing is shown against the challenger; before 100 % and promotion that is not enough."""
    made = rolling(step, NOW - HOUR)
    undecided = decide(seen(made, compared()), NOW)
    assert bool(undecided.events) is goes
    if not goes:
        words = "waits, because it is not shown yet to be no worse by 0.02; compared on 1000 rows: undecided; gives the traffic back"
        assert words in undecided.sentence
        shown = decide(seen(made, compared("no_worse")), NOW)
        assert shown.events
        assert shown.after.champion == (3 if step == 3 else 2)


@pytest.mark.parametrize(("value", "goes"), [(-0.01, True), (0.001, True), (0.003, False), (0.015, False)])
def test_what_looks_worse_is_not_given_all_the_traffic(value: float, goes: bool) -> None:
    """Being shown no worse by the margin of .02 is not enough; a tenth of the margin is no more than chance between two that are alike."""
    made = rolling(2, NOW - HOUR)
    estimate = Estimate(value=value, low=value - 0.02, high=value + 0.004, outcomes=1000)
    decision = decide(seen(made, replace(compared("no_worse"), difference=estimate)), NOW)
    assert bool(decision.events) is goes
    if not goes:
        assert "so far it looks worse than the champion, if by less than the margin" in decision.sentence


@pytest.mark.parametrize(("low", "ends"), [(0.001, True), (-0.001, False)])
def test_what_is_shown_to_be_worse_within_the_margin_is_given_up_before_the_deadline(low: float, ends: bool) -> None:
    """It would never be promoted, and a better one may wait for its turn. Nobody is quarantined for so little."""
    made = rolling(1, NOW - HOUR)
    slightly = replace(compared("no_worse"), difference=Estimate(value=0.01, low=low, high=0.019, outcomes=1000))
    decision = decide(seen(made, slightly), NOW)
    assert (decision.closed is not None) is ends
    if decision.closed is not None:
        assert decision.closed.outcome is Outcome.INCONCLUSIVE
        assert "v3 is shown to be worse, if by less than the margin; v2 serves" in decision.sentence
        assert decision.after.versions[3].status is VersionStatus.CANDIDATE
        few = replace(slightly, challenger_rows=3)
        assert decide(seen(made, few), NOW).closed is None


# ---------------------------------------------------------------- the target away
def test_time_in_which_traffic_was_not_seen_does_not_count() -> None:
    """A hold of an hour is an hour of traffic, not of silence."""
    made = rolling(1, NOW - 50 * MINUTE)
    blind = decide(look(made, target=None), NOW).after
    assert blind.cycle is not None
    assert blind.cycle.blind_since == NOW
    assert decide(look(blind, target=None), NOW + HOUR).after == blind
    later = NOW + 2 * HOUR
    back = decide(look(blind, observation=measured(blind, 0.9, compared(at=later))), later)
    assert back.after.cycle is not None
    assert (back.after.cycle.step, back.after.cycle.blind_since) == (1, None)
    assert "holds for 10m more" in back.sentence


def test_a_bake_that_nobody_could_watch_does_not_end() -> None:
    """'Nothing spoke against it' is said only of what could speak (invariant 4)."""
    made = baking(phase_since=NOW - 3 * HOUR)
    blind = decide(look(made, target=None, target_error="no route"), NOW).after
    late = decide(look(blind, target=None, target_error="no route"), NOW + DAY)
    assert late.after.cycle is not None
    assert "cannot be watched: waits for the target (no route)" in late.sentence
    back = decide(look(blind), NOW + DAY)
    assert back.after.cycle is not None
    assert back.sentence == "v3 is champion, watched until 2026-03-02 13:00; not compared yet"
    observed = measured(back.after, 0.9, compared("no_worse", at=NOW + DAY + HOUR))
    assert decide(look(back.after, observation=observed), NOW + DAY + HOUR).closed is not None


# ---------------------------------------------------------------- the deadline
def test_at_the_deadline_the_traffic_goes_back() -> None:
    """Unknown for too long is given up: the champion gets everything (invariant 4), and nobody is quarantined for it."""
    for made in (rolling(1, NOW - HOUR), rolling(0)):
        for target in (serving(made), None):
            decision = decide(look(made, target=target), NOW + DAY)
            assert decision.closed is not None
            assert decision.closed.outcome is Outcome.INCONCLUSIVE
            assert traffic(decision) == ({2: 100.0}, None)
            assert decision.after.versions[3].status is VersionStatus.CANDIDATE


# ---------------------------------------------------------------- back
WORSE = compared("worse")
BROKEN = ReplicaStatus(state=ReplicaState.FAILED, reason="it exited with code 1")
ERRORS = ReplicaStatus(state=ReplicaState.READY, requests=100, errors=5)
SHADOW_ERRORS = ReplicaStatus(state=ReplicaState.READY, shadow_requests=50, shadow_errors=5)


@pytest.mark.parametrize("made", [rolling(0, NOW), rolling(1, NOW), rolling(3, NOW), baking()])
@pytest.mark.parametrize(
    ("evidence", "words"),
    [
        ({"comparison": WORSE}, "compared on 1000 rows: worse"),
        ({"v3": BROKEN}, "v3 does not run: it exited with code 1"),
        ({"v3": ERRORS}, "v3 failed 5 of 100 requests, more than 2 %"),
        ({"v3": SHADOW_ERRORS}, "v3 failed 5 of 50 shadow requests, more than 2 %"),
    ],
)
def test_bad_evidence_rolls_back_at_once(made: ModelState, evidence: dict[str, Any], words: str) -> None:
    """In shadow, canary, at 100 % and in the bake: one move gives everything to the version before, and bans the challenger."""
    decision = decide(seen(made, **evidence), NOW)
    assert decision.closed is not None
    assert decision.closed.outcome is Outcome.ROLLED_BACK
    assert decision.sentence == f"rolled back: {words}; v2 serves, v3 is quarantined"
    assert traffic(decision) == ({2: 100.0}, None)
    assert decision.after.champion == 2
    assert decision.after.versions[3].status is VersionStatus.QUARANTINED
    assert decision.after.versions[2].status is VersionStatus.CHAMPION
    assert [n.kind for n in decision.notices] == ["cycle.rolled_back"]


def test_few_errors_are_no_pattern() -> None:
    """Four errors of ten requests decide nothing yet."""
    made = rolling(1, NOW)
    few = ReplicaStatus(state=ReplicaState.READY, requests=10, errors=4)
    assert decide(seen(made, v3=few), NOW).closed is None
    rare = ReplicaStatus(state=ReplicaState.READY, requests=1000, errors=20)
    assert decide(seen(made, v3=rare), NOW).closed is None


def test_a_sudden_failure_is_not_diluted_by_a_long_good_past() -> None:
    """After a million good answers, a burst is judged against the requests of the latest minutes."""
    good = ReplicaStatus(state=ReplicaState.READY, requests=1_000_000, errors=10)
    made = decide(seen(baking(), v3=good), NOW).after
    assert made.cycle is not None
    assert (made.cycle.counts["requests"], made.cycle.counts_since) == (1_000_000, NOW)
    burst = replace(good, requests=1_000_200, errors=110)
    decision = decide(seen(made, v3=burst), NOW + MINUTE)
    assert decision.closed is not None
    assert "v3 failed 100 of 200 latest requests" in decision.sentence
    calm = decide(seen(made, v3=replace(good, requests=1_000_900)), NOW + ERROR_WINDOW).after
    assert calm.cycle is not None
    assert calm.cycle.counts["requests"] == 1_000_900


def test_a_rollout_waits_while_challenger_and_baseline_fail_alike() -> None:
    """Not taken back for what is not its fault, and not given more; when it is over, the rollout goes on."""
    made = rolling(1, NOW - HOUR)
    failing = replace(ERRORS, errors=20)
    target = replace(serving(made, v3=failing), baseline=failing)
    observed = measured(made, 0.9, compared())
    waits = decide(look(made, target=target, observation=observed), NOW)
    assert waits.closed is None
    assert "waits, because v3 failed 20 of 100 requests, but fresh replicas of v2 fail likewise" in waits.sentence
    assert not waits.events
    alone = decide(look(made, target=replace(target, baseline=None), observation=observed), NOW)
    assert alone.closed is not None


def test_counters_that_began_again_are_counted_anew() -> None:
    """A restarted replica starts at nought; the difference to before means nothing."""
    made = baking(counts={"requests": 900, "errors": 90, "shadow_requests": 0, "shadow_errors": 0}, counts_since=NOW)
    fresh = ReplicaStatus(state=ReplicaState.READY, requests=50, errors=0)
    after = decide(seen(made, v3=fresh), NOW + MINUTE)
    assert after.closed is None
    assert after.after.cycle is not None
    assert after.after.cycle.counts["requests"] == 50


def test_a_challenger_that_never_served_has_failed_not_been_rolled_back() -> None:
    """It took nothing from the champion; it is quarantined all the same."""
    made = rolling()
    broken = serving(made, generation=3, v3=BROKEN)
    decision = decide(look(made, target=broken), NOW)
    assert decision.closed is not None
    assert decision.closed.outcome is Outcome.FAILED
    assert decision.sentence == "not rolled out: v3 does not run: it exited with code 1; v2 serves"
    assert decision.after.versions[3].status is VersionStatus.QUARANTINED


def test_traffic_that_was_in_force_unseen_makes_it_a_rollback() -> None:
    """The controller may have died between moving the traffic and seeing it move."""
    follow = policy(rollout={"steps": [{"10%": "1h"}, "100%"]})
    made = state(Phase.ROLLING_OUT, follow=follow)
    decision = decide(look(made, target=serving(made, v3=ERRORS)), NOW)
    assert decision.closed is not None
    assert decision.closed.outcome is Outcome.ROLLED_BACK


# ---------------------------------------------------------------- the first version
def test_the_first_version_serves_as_soon_as_it_is_ready() -> None:
    """There is nobody to compare it with, and a model that serves nothing helps no one."""
    made = newborn(Phase.ROLLING_OUT)
    decision = decide(look(made), NOW)
    assert decision.after.champion == 1
    assert decision.after.previous is None
    assert decision.closed is not None
    assert decision.closed.outcome is Outcome.PROMOTED
    assert decision.sentence == "v1 serves: the first version"


@pytest.mark.parametrize("replica", [BROKEN, ERRORS])
def test_a_first_version_that_fails_is_given_up(replica: ReplicaStatus) -> None:
    """There is nothing to go back to, in force or not; the next cycle tries anew."""
    made = newborn(Phase.ROLLING_OUT)
    for generation in (0, None):
        decision = decide(look(made, target=serving(made, generation=generation, v1=replica)), NOW)
        assert decision.closed is not None
        assert decision.closed.outcome is Outcome.FAILED
        assert decision.after.versions[1].status is VersionStatus.QUARANTINED
        assert traffic(decision) == ({}, None)


def test_a_first_version_that_never_gets_ready_is_given_up_at_the_deadline() -> None:
    """Nothing serves, and that is said; it is quarantined so that the same image is not tried for ever."""
    made = newborn(Phase.ROLLING_OUT)
    decision = decide(look(made, target=None), NOW + DAY)
    assert decision.sentence == "v1 did not serve within 1d; no version serves"
    assert decision.after.plan is not None
    assert not decision.after.plan.weights


# ---------------------------------------------------------------- baking
GAIN = Estimate(value=-0.0123, low=-0.02, high=-0.001, outcomes=812)


def test_a_bake_without_complaints_ends_in_promotion() -> None:
    """The version before serves the holdback until then, and is let go after; what was gained is told and recorded."""
    made = baking()
    assert made.plan is not None
    assert made.plan.digests.keys() == {2, 3}
    still = decide(seen(made, compared()), NOW + 4 * HOUR - MINUTE)
    assert still.closed is None
    assert traffic(still) == ({2: 2.0, 3: 98.0}, None)
    end = NOW + 4 * HOUR
    done = decide(seen(made, replace(compared("no_worse", at=end), realised=GAIN)), end)
    assert done.closed is not None
    assert done.closed.outcome is Outcome.PROMOTED
    assert done.sentence == (
        "v3 stays: nothing spoke against it in 4h; predicted gain unknown; "
        "realised gain 0.0123 in brier (95 % interval 0.0010 to 0.0200, 812 comparisons with v2)"
    )
    assert done.events[0].data["realised"] == {"value": -0.0123, "low": -0.02, "high": -0.001, "outcomes": 812}
    assert done.after.plan is not None
    assert done.after.plan.digests.keys() == {3}
    assert traffic(done) == ({3: 100.0}, None)


@pytest.mark.parametrize(
    ("judged", "words"),
    [
        ({"scores": {"accuracy": 0.8}, "champion_scores": {"accuracy": 0.75}}, "predicted gain 0.0500 in accuracy;"),
        (
            {"scores": {"brier": 0.1}, "champion_scores": {"brier": 0.13}, "rows": 1500},
            "0.0300 in brier on 1,500 hold-out rows;",
        ),
    ],
)
def test_the_predicted_gain_is_the_judge_s(judged: dict[str, Any], words: str) -> None:
    """In Brier's score where the judge has it, as that is what live rows are compared by; else in the objective's metric."""
    made = baking()
    assert made.cycle is not None
    made = with_cycle(made, outputs={**made.cycle.outputs, "judging": judged})
    end = NOW + 4 * HOUR
    assert words in decide(seen(made, compared("no_worse", at=end)), end).sentence


def test_a_bake_does_not_end_on_what_is_not_known() -> None:
    """Not shown to be no worse (any more), or not measured: it goes on, and after the deadline the version before serves again."""
    made, end = baking(), NOW + 4 * HOUR
    for comparison in (None, compared(at=end)):
        waits = decide(seen(made, comparison), end)
        assert waits.closed is None
        assert "still watched, because" in waits.sentence
        assert "v2 serves again at 2026-03-02 16:00" in waits.sentence
    late = decide(seen(made, compared(at=end + DAY)), end + DAY)
    assert late.closed is not None
    assert late.closed.outcome is Outcome.INCONCLUSIVE
    assert late.after.champion == 2
    assert traffic(late) == ({2: 100.0}, None)
    assert {n: v.status for n, v in late.after.versions.items()} == {
        1: VersionStatus.RETIRED, 2: VersionStatus.CHAMPION, 3: VersionStatus.RETIRED,
    }  # fmt: skip


def test_a_promotion_by_a_person_s_word_asks_for_no_evidence() -> None:
    """Who promoted it has answered for it; found worse, it is taken back all the same."""
    made = baking()
    made = replace(made, versions={**made.versions, 3: replace(made.versions[3], forced="ann: I know it")})
    assert decide(seen(made, compared("worse")), NOW).after.champion == 2
    done = decide(seen(made), NOW + 4 * HOUR)
    assert done.closed is not None
    assert done.closed.outcome is Outcome.PROMOTED
    assert done.after.champion == 3


# ---------------------------------------------------------------- held
@pytest.mark.parametrize("field", ["paused", "frozen", "pinned"])
@pytest.mark.parametrize("made", [rolling(1, NOW), baking()])
def test_a_challenger_that_fails_while_held_is_told_once(made: ModelState, field: str) -> None:
    """Its traffic stays (invariant 11), but people hear of it; when the hold ends it is taken back."""
    stopped = replace(made, **{field: hold()})
    assert not decide(seen(stopped, compared()), NOW).changed
    first = decide(seen(stopped, v3=ERRORS), NOW)
    assert traffic(first) == (dict(made.plan.weights), None)  # type: ignore[union-attr]
    assert [n.kind for n in first.notices] == ["challenger.failing"]
    assert first.sentence.startswith(
        "v3 failed 5 of 100 requests, more than 2 %; it keeps its traffic, because the model is"
    )
    assert not decide(seen(first.after, v3=ERRORS), NOW + MINUTE).changed
    lifted = replace(first.after, **{field: None})
    taken = decide(seen(lifted, v3=ERRORS), NOW + MINUTE)
    assert taken.closed is not None
    assert taken.after.champion == 2
    well = decide(seen(lifted), NOW + MINUTE).after
    assert well.cycle is not None
    assert not well.cycle.alarmed


def test_a_policy_with_fewer_steps_stays_inside_them() -> None:
    """A step index beyond the steps (edited meanwhile) is the last one, not an error."""
    follow = policy(rollout={"steps": ["100%"]})
    made = replace(state(Phase.ROLLING_OUT, follow=follow))
    made = replace(made, cycle=replace(made.cycle, step=3, step_since=NOW, traffic_since=NOW))  # type: ignore[type-var]
    decision = decide(look(made, observation=measured(made, 0.9, compared("no_worse"))), NOW)
    assert decision.after.champion == 3
