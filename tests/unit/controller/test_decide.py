"""decide: from a snapshot to the next state, with no cycle open and where a cycle waits."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from controller_states import (
    DAY,
    HOUR,
    MINUTE,
    NOW,
    PERFORMANCE_KEY,
    POLICY,
    compared,
    cycle,
    hold,
    look,
    measured,
    newborn,
    policy,
    state,
    with_cycle,
)

from controller.decide import Observation, decide, held
from controller.state import ModelState, Outcome, Phase, VersionStatus
from policies.signals import Signal


def test_a_new_model_opens_its_first_cycle_at_once() -> None:
    """Nothing serves, so nothing need fire."""
    decision = decide(look(newborn()), NOW)
    assert decision.after.cycle is not None
    assert (decision.after.cycle.phase, decision.after.cycle.cause) == (Phase.QUEUED, "bootstrap")
    assert decision.after.plan is None


def test_a_known_bad_signal_opens_a_cycle_and_says_why() -> None:
    """Precision below the rule fires: cause, sentence, event and notice all carry the number."""
    made = state()
    decision = decide(look(made, observation=measured(made, 0.4)), NOW)
    assert decision.after.cycle is not None
    assert decision.after.cycle.cause.startswith("trigger: accuracy 0.400 is below 0.5")
    assert [e.kind for e in decision.events] == ["cycle.opened"]
    assert [n.text for n in decision.notices] == [decision.sentence]
    assert decision.after.plan == made.plan


@pytest.mark.parametrize("changed_at", [NOW - 3 * HOUR, None])
def test_a_cycle_remembers_since_when_the_score_is_bad(changed_at: datetime | None) -> None:
    """The place that the window shows, else the window's start; a cycle of a person's knows none."""
    made = state()
    signal = replace(Signal.of(0.4, observed_at=NOW, rows=500, window_end=NOW), changed_at=changed_at)
    seen = replace(measured(made), signals={PERFORMANCE_KEY: signal})
    opened = decide(look(made, observation=seen), NOW).after.cycle
    assert opened is not None
    assert opened.changed_at == (changed_at or NOW - HOUR)
    assert with_cycle(state(Phase.QUEUED)).cycle.changed_at is None  # type: ignore[union-attr]


@pytest.mark.parametrize(("judged_rows", "opens"), [(50_000, True), (100, False), (None, False)])
def test_how_sure_the_score_at_promotion_was_counts(judged_rows: int | None, opens: bool) -> None:
    """.78 after .80, with 2 standard errors now: beyond chance (1.64) if .80 is of many rows, not if of a hundred, or of as many as now."""
    rule = {"metric": "accuracy", "drop": 0, "confidence": 0.95, "window": "1h", "min_rows": 100}
    made = state(follow=policy(triggers={"any": [{"performance": rule}]}))
    champion = made.versions[2]
    lineage = {**champion.lineage, "judged_rows": judged_rows}
    made = replace(made, versions={**made.versions, 2: replace(champion, lineage=lineage)})
    signal = replace(Signal.of(0.78, observed_at=NOW, rows=500), stderr=0.01)
    decision = decide(look(made, observation=replace(measured(made), signals={PERFORMANCE_KEY: signal})), NOW)
    assert (decision.after.cycle is not None) is opens


@pytest.mark.parametrize(("trained", "opens"), [(1000, True), (1001, False), (None, False)])
def test_growth_is_by_the_rows_of_the_champion(trained: int | None, opens: bool) -> None:
    """500 new rows are half as many again as 1,000; of a version that does not say its rows it is unknown."""
    made = state(follow=policy(triggers={"any": [{"volume": {"growth": 1.5}}]}))
    champion = made.versions[2]
    made = replace(
        made, versions={**made.versions, 2: replace(champion, lineage={**champion.lineage, "rows": trained})}
    )
    signals = {"volume": Signal.of(500.0, observed_at=NOW, rows=500)}
    decision = decide(look(made, observation=replace(measured(made), signals=signals)), NOW)
    assert (decision.after.cycle is not None) is opens


def test_unknown_fires_nothing() -> None:
    """Missing, not finite, stale, of the future, or of another champion: no cycle opens (invariant 4)."""
    made = state()
    bad = Signal.of(0.1, observed_at=NOW, rows=500)
    observations = [
        None,
        Observation(champion=2),
        measured(made),
        measured(made, float("nan")),
        Observation(champion=2, signals={PERFORMANCE_KEY: replace(bad, observed_at=NOW - 7 * HOUR)}),
        Observation(champion=2, signals={PERFORMANCE_KEY: replace(bad, observed_at=NOW + HOUR)}),
        Observation(champion=1, signals={PERFORMANCE_KEY: bad}),
    ]
    for observed in observations:
        decision = decide(look(made, observation=observed), NOW)
        assert decision.after.cycle is None, observed
        assert "unknown" in decision.sentence


def test_what_was_measured_on_a_version_taken_back_does_not_fire_for_the_one_that_serves_again() -> None:
    """After a rollback in the bake, the bad scores of the version taken back are not its predecessor's."""
    baking = state(Phase.BAKING)
    observed = measured(baking, 0.1, compared("worse"))
    back = decide(look(with_cycle(baking, traffic_since=NOW - HOUR), observation=observed), NOW).after
    assert (back.champion, back.cycle) == (2, None)
    later = decide(look(back, observation=observed), NOW + 3 * HOUR)
    assert later.after.cycle is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"last_closed_at": NOW - HOUR}, "cooldown lasts until 2026-03-01 13:00"),
        (
            {"recent_cycles": tuple((NOW - age * HOUR, 5.0) for age in (40, 30, 20))},
            "the budget of 3 cycles per 2d is spent until 2026-03-01 20:00",
        ),
    ],
)
def test_cooldown_and_budget_hold_a_firing_back(changes: dict[str, object], words: str) -> None:
    """A firing in the cooldown, or beyond the budget, opens nothing and says until when (invariant 10)."""
    made = state(**changes)
    decision = decide(look(made, observation=measured(made, 0.4)), NOW)
    assert decision.after.cycle is None
    assert words in decision.sentence


def test_budget_counts_only_what_lies_in_its_period() -> None:
    """A cycle exactly one period old no longer counts."""
    made = state(recent_cycles=tuple((NOW - age * HOUR, 5.0) for age in (48, 30, 20)))
    assert decide(look(made, observation=measured(made, 0.4)), NOW).after.cycle is not None


def test_compute_budget_holds_a_firing_back() -> None:
    """What the cycles of the period used adds up against the budget."""
    follow = policy(budget={"cycles": 9, "per": "2d", "compute": "10m"})
    made = state(follow=follow, recent_cycles=((NOW - DAY, 400.0), (NOW - 10 * HOUR, 200.0)))
    decision = decide(look(made, observation=measured(made, 0.4)), NOW)
    assert decision.after.cycle is None
    assert "10m of compute per 2d is spent (600 s used)" in decision.sentence


def test_first_version_waits_for_its_cooldown_too() -> None:
    """A model whose first cycle failed is not trained again and again."""
    decision = decide(look(newborn(last_closed_at=NOW - HOUR)), NOW)
    assert decision.after.cycle is None
    assert "brought none; cooldown lasts until 2026-03-01 13:00; 'ratchet trigger " in decision.sentence


def test_nothing_to_do_changes_nothing() -> None:
    """A quiet look is no transaction."""
    made = state()
    decision = decide(look(made, observation=measured(made, 0.9)), NOW)
    assert not decision.changed
    assert decision.sentence == "v2 serves; accuracy 0.900 is not below 0.5 (500 rows)"


# ---------------------------------------------------------------- holds
@pytest.mark.parametrize("field", ["paused", "pinned"])
def test_paused_and_pinned_models_stay_as_they_are(field: str) -> None:
    """Neither a firing nor bad evidence moves a held model (invariant 11)."""
    for made in (state(), state(Phase.ROLLING_OUT), state(Phase.BAKING), newborn()):
        stopped = replace(made, **{field: hold()})
        observed = measured(stopped, 0.1, compared("worse"))
        decision = decide(look(stopped, observation=observed), NOW)
        assert not decision.changed
        assert decision.sentence.startswith(field)
        assert "by bob since 2026-03-01 11:00: an audit" in decision.sentence


def test_frozen_model_goes_on_up_to_packaging() -> None:
    """A freeze holds traffic, not work."""
    for phase in Phase:
        said = held(state(phase, frozen=hold()))
        assert (said is not None) is (phase in (Phase.PACKAGING, Phase.ROLLING_OUT, Phase.BAKING))


# ---------------------------------------------------------------- places, approval
def test_queued_cycle_waits_for_a_place() -> None:
    """The fleet's limit holds; with a place the data's cutoff is set to now."""
    made = state(Phase.QUEUED, cycle=cycle(Phase.QUEUED, cutoff=None))
    full = decide(look(made, busy_cycles=2, max_busy_cycles=2), NOW)
    assert not full.changed
    assert "waits for one of 2 places" in full.sentence
    free = decide(look(made, busy_cycles=1, max_busy_cycles=2), NOW).after
    assert free.cycle is not None
    assert (free.cycle.phase, free.cycle.cutoff) == (Phase.PREPARING, NOW)


def test_approval_runs_out() -> None:
    """Nobody's word is not a yes: at the deadline the champion stays (inconclusive)."""
    follow = policy(approval="required", approval_timeout="3h")
    made = state(Phase.AWAITING_APPROVAL, follow=follow)
    early = decide(look(made), NOW + 3 * HOUR - timedelta(seconds=1))
    assert not early.changed
    late = decide(look(made), NOW + 3 * HOUR)
    assert late.closed is not None
    assert late.closed.outcome is Outcome.INCONCLUSIVE
    assert late.after.champion == 2


# ---------------------------------------------------------------- time
def test_a_clock_that_went_back_only_prolongs() -> None:
    """Moments that seem to lie in the future never fire, promote or end anything early."""
    ahead = NOW + 5 * HOUR
    for made in (
        state(last_closed_at=ahead),
        with_cycle(state(Phase.ROLLING_OUT), phase_since=ahead, step_since=ahead, traffic_since=ahead),
        with_cycle(state(Phase.BAKING), phase_since=ahead),
    ):
        decision = decide(look(made, observation=measured(made, 0.1, compared(at=ahead))), NOW)
        assert decision.after.champion == made.champion
        assert (decision.after.cycle is None) is (made.cycle is None)
        assert decision.closed is None


def test_same_snapshot_gives_the_same_decision() -> None:
    """No clock is read and nothing is drawn: a decision can be taken again."""
    for made in all_states():
        snapshot = look(made, observation=measured(made, 0.4, compared()))
        assert decide(snapshot, NOW + MINUTE) == decide(snapshot, NOW + MINUTE, POLICY)


def all_states() -> list[ModelState]:
    return [state(), newborn(), *(state(phase) for phase in Phase)]


def test_a_version_keeps_its_status_while_it_is_only_watched() -> None:
    """Looking at a bake marks nothing."""
    made = state(Phase.BAKING)
    after = decide(look(made), NOW + HOUR).after
    assert {n: v.status for n, v in after.versions.items()} == {
        1: VersionStatus.RETIRED, 2: VersionStatus.RETIRED, 3: VersionStatus.CHAMPION,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        ("bootstrap", "preparing data, because no version serves yet"),
        ("trigger: accuracy fell", "preparing data, because accuracy fell"),
        ("person: ann, more data, please", "preparing data, because ann asked: more data, please"),
    ],
)
def test_a_cycle_says_in_words_why_it_was_opened(cause: str, expected: str) -> None:
    """The cause on record starts with a word for programs; people read a sentence."""
    assert decide(look(with_cycle(state(Phase.QUEUED), cause=cause)), NOW).sentence == expected
