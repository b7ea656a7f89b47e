"""Orders of people: in every state each is either carried out within the rules or refused in plain words."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from controller_states import DAY, HOUR, MINUTE, NOW, POLICY, hold, look, newborn, policy, state, version, with_cycle

from controller import overrides
from controller.applying import change_policy
from controller.decide import decide
from controller.draft import Decision
from controller.overrides import WITH_VERSION, Order, OverrideRefused, StalePreview, Verb
from controller.state import ModelState, Outcome, Phase, VersionStatus
from controller.store.memory import MemoryStore
from controller.store.port import Commit

HOLDS = [(), ("paused",), ("frozen",), ("pinned",), ("paused", "frozen"), ("paused", "frozen", "pinned")]


def order(verb: Verb, number: int | None = None, **changes: object) -> Order:
    return replace(Order(verb=verb, actor="ann", reason="she said so", version=number), **changes)  # type: ignore[arg-type]


def give(made: ModelState, verb: Verb, number: int | None = None, now: datetime = NOW) -> Decision:
    return overrides.apply(made, POLICY, order(verb, number), now)


def refused(made: ModelState, verb: Verb, number: int | None = None) -> str:
    with pytest.raises(OverrideRefused) as caught:
        give(made, verb, number)
    return str(caught.value)


def every_state() -> Iterator[ModelState]:
    """Every phase and none, with and without a champion, with quarantined, removed and never served versions, under every hold."""
    for phase in (None, *Phase):
        made = state(phase)
        old = {8: version(8, VersionStatus.QUARANTINED), 9: version(9, VersionStatus.CANDIDATE)}
        old[10] = version(10, removed_at=NOW - DAY)
        rich = replace(made, versions={**made.versions, **old}, next_version=11)
        for kind in (made, rich, replace(rich, previous=None)) if phase is not Phase.BAKING else (made, rich):
            yield from (replace(kind, **{name: hold() for name in holds}) for holds in HOLDS)
    for phase in (None, *(p for p in Phase if p is not Phase.BAKING)):
        yield from (replace(newborn(phase), **{name: hold() for name in holds}) for holds in HOLDS)
    failed = newborn(versions={1: version(1, VersionStatus.QUARANTINED)}, next_version=2, next_cycle=8)
    yield failed


EVERY_STATE = tuple(every_state())


@pytest.mark.parametrize("verb", list(Verb))
def test_every_order_in_every_state_is_legal_or_refused(verb: Verb) -> None:
    """Nothing but OverrideRefused ever comes out; what is carried out can be stored, leaves the person's name and reason, and
    quarantined versions carry traffic only by this person's word."""
    carried_out, refusals = 0, set()
    for made in EVERY_STATE:
        numbers = (None, 1, 2, 3, 8, 9, 10, 99) if verb in WITH_VERSION else (None,)
        for number in numbers:
            try:
                decision = give(made, verb, number)
            except OverrideRefused as refusal:
                refusals.add(str(refusal))
                continue
            carried_out += 1
            assert_legal(made, decision)
    assert carried_out > 5
    unclear = [words for words in refusals if "None" in words or len(words.split()) < 4]
    assert not unclear


def assert_legal(before: ModelState, decision: Decision) -> None:
    after = decision.after
    override = [e for e in decision.events if e.kind.startswith("override.")]
    assert len(override) == 1
    assert override[0].actor == "ann"
    assert override[0].data["reason"] == "she said so"
    assert "None" not in decision.sentence
    assert {e.actor for e in decision.events} == {"ann"}
    keys = [n.key for n in decision.notices]
    assert len(keys) == len(set(keys))
    if after.champion is not None:
        champion = after.versions[after.champion]
        assert champion.status is VersionStatus.CHAMPION
        assert champion.removed_at is None
        moved = after.champion != before.champion
        assert not moved or champion.forced == "ann: she said so"
        assert after.plan is not None
        assert after.plan.weights
    else:
        assert before.champion is None
    for number, one in after.versions.items():
        assert one.status is not VersionStatus.CHAMPION or number == after.champion
    if decision.closed is not None:
        assert decision.closed.outcome is not None
        assert after.cycle is None or after.cycle.number > decision.closed.number
    if after.cycle is not None and after.cycle.phase is Phase.BAKING:
        assert after.previous is not None
    _store_takes(before, decision)
    decide(look(after), NOW + MINUTE)


def _store_takes(before: ModelState, decision: Decision) -> None:
    store = MemoryStore()
    epoch = store.acquire("me", NOW, 60)
    assert epoch is not None
    store.create(epoch, replace(before, row_version=before.row_version - 1), [])
    store.commit(
        epoch, Commit(model=decision.after, closed=decision.closed, events=decision.events, notices=decision.notices)
    )


def test_orders_in_a_row_stay_legal() -> None:
    """Any two orders after each other are as safe as one: nobody can argue the model into a corner."""
    starts = [state(), state(Phase.ROLLING_OUT), state(Phase.BAKING), state(Phase.TRAINING), newborn(Phase.ROLLING_OUT)]
    for made, (first, second) in itertools.product(starts, itertools.product(Verb, Verb)):
        try:
            then = replace(give(made, first).after, row_version=made.row_version + 1)
            assert_legal(then, give(then, second, now=NOW + MINUTE))
        except OverrideRefused:
            continue


# ---------------------------------------------------------------- the order itself
def test_an_order_needs_a_reason_and_a_person() -> None:
    """Others must be able to read later who it was and why; nobody may sign as the controller."""
    for blank in ("", "  \n"):
        with pytest.raises(OverrideRefused, match="pause needs a reason"):
            overrides.apply(state(), POLICY, order(Verb.PAUSE, reason=blank), NOW)
    for actor in ("", " ", "ratchet"):
        with pytest.raises(OverrideRefused, match="name of the person"):
            overrides.apply(state(), POLICY, order(Verb.PAUSE, actor=actor), NOW)


def test_a_stale_preview_is_refused() -> None:
    """What was previewed on another state is not what would happen now."""
    with pytest.raises(StalePreview, match=r"state 4, now 5\); look again"):
        overrides.apply(state(), POLICY, order(Verb.PAUSE, row_version=4), NOW)
    decision = overrides.apply(state(), POLICY, order(Verb.PAUSE, row_version=5), NOW)
    assert decision.events[0].data["previewed"] == 5


def test_a_version_is_refused_where_it_means_nothing() -> None:
    """`abort --version 3` is a misunderstanding, not an abort."""
    assert refused(state(Phase.TRAINING), Verb.ABORT, 3) == "abort takes no version (--version), but got 3"


def test_a_preview_tells_what_would_change_and_changes_nothing() -> None:
    """Traffic and phase before and after, for a person to say yes to."""
    made = with_cycle(state(Phase.ROLLING_OUT), step=1)
    told = overrides.preview(made, POLICY, order(Verb.ROLLBACK, reason=""), NOW)
    assert (told.traffic_before, told.traffic_after) == ("v2 90 %, v3 10 %", "v2 100 %")
    assert (told.phase_before, told.phase_after) == ("cycle 7, rolling out", "no open cycle")
    assert (told.held_before, told.held_after) == ("no", "no")
    assert told.row_version == 5
    frozen = overrides.preview(state(paused=hold()), POLICY, order(Verb.FREEZE), NOW)
    assert (frozen.held_before, frozen.held_after) == ("paused", "paused, frozen")


# ---------------------------------------------------------------- abort, rollback
def test_abort_in_a_rollout_gives_the_traffic_back_and_sticks() -> None:
    """The challenger is quarantined, and the champion has all (invariant 7)."""
    decision = give(with_cycle(state(Phase.ROLLING_OUT), step=2), Verb.ABORT)
    assert decision.closed is not None
    assert decision.closed.outcome is Outcome.ABORTED
    assert decision.after.versions[3].status is VersionStatus.QUARANTINED
    assert decision.after.plan is not None
    assert decision.after.plan.weights == {2: 100}


def test_abort_in_a_bake_is_a_rollback() -> None:
    """The version before serves again; the baking one is quarantined."""
    decision = give(state(Phase.BAKING), Verb.ABORT)
    assert decision.closed is not None
    assert decision.closed.outcome is Outcome.ROLLED_BACK
    assert (decision.after.champion, decision.after.previous) == (2, None)
    assert decision.after.versions[3].status is VersionStatus.QUARANTINED


def test_rollback_goes_one_version_back_each_time() -> None:
    """Past what was taken back before, to the newest that served without complaint; then there is nothing left."""
    versions = {n: version(n) for n in (1, 2, 3)} | {4: version(4, VersionStatus.CHAMPION)}
    made = state(versions=versions, champion=4, previous=3, next_version=5)
    went = []
    for _ in range(3):
        made = give(made, Verb.ROLLBACK).after
        went.append(made.champion)
    assert went == [3, 2, 1]
    assert [v.status for v in made.versions.values()][1:] == [VersionStatus.QUARANTINED] * 3
    assert refused(made, Verb.ROLLBACK).startswith("there is no version before v1 to go back to")


def test_rollback_during_packaging_aborts_and_goes_back() -> None:
    """The candidate that is being packaged is not waited for."""
    decision = give(state(Phase.PACKAGING), Verb.ROLLBACK)
    assert decision.closed is not None
    assert decision.closed.outcome is Outcome.ABORTED
    assert decision.after.champion == 1


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (2, "v2 is the champion already"),
        (9, "v9 has never been champion, so it is nothing to go back to; promote it instead"),
        (10, "v10 was removed at 2026-02-28 12:00 to make room"),
        (99, "has no v99"),
    ],
)
def test_rollback_refuses_what_is_nothing_to_go_back_to(number: int, words: str) -> None:
    """And names what there is."""
    old = {9: version(9, VersionStatus.CANDIDATE), 10: version(10, removed_at=NOW - DAY)}
    made = state(versions={**state().versions, **old}, next_version=11)
    assert words in refused(made, Verb.ROLLBACK, number)


def test_rollback_to_the_challenger_under_way_is_refused() -> None:
    """That would be a promotion under another name."""
    assert "promote it instead" in refused(state(Phase.ROLLING_OUT), Verb.ROLLBACK, 3)


# ---------------------------------------------------------------- promote, pin
def test_a_quarantined_version_serves_again_only_by_a_word_and_only_until_it_fails_again() -> None:
    """The word is on record with it, and is used up when the version is taken back again (invariant 7)."""
    banned = version(1, VersionStatus.QUARANTINED)
    made = state(versions={**state().versions, 1: banned}, previous=None)
    forced = give(made, Verb.PROMOTE, 1).after
    assert forced.champion == 1
    assert forced.versions[1].forced == "ann: she said so"
    again = give(forced, Verb.ROLLBACK, 2).after
    assert (again.versions[1].status, again.versions[1].forced) == (VersionStatus.QUARANTINED, "")


def test_promoting_the_challenger_skips_the_rest_of_the_rollout_but_not_the_bake() -> None:
    """A person may be wrong too: the version before stays ready."""
    decision = give(state(Phase.ROLLING_OUT), Verb.PROMOTE)
    after = decision.after
    assert after.cycle is not None
    assert (after.champion, after.previous, after.cycle.phase) == (3, 2, Phase.BAKING)
    assert after.plan is not None
    assert after.plan.digests.keys() == {2, 3}


def test_promoting_another_version_ends_the_rollout_under_way() -> None:
    """The challenger was compared with a champion that is gone."""
    decision = give(state(Phase.ROLLING_OUT), Verb.PROMOTE, 1)
    assert decision.closed is not None
    assert decision.closed.outcome is Outcome.ABORTED
    assert decision.after.champion == 1
    assert decision.after.versions[3].status is VersionStatus.QUARANTINED


def test_promote_without_a_version_asks_which() -> None:
    """And lists what there is."""
    assert (
        refused(state(), Verb.PROMOTE)
        == "which version? name one with --version; flight-late has v1 (retired), v2 (champion)"
    )


def test_another_champion_makes_the_triggers_count_anew() -> None:
    """Two hours below the limit were the other version's."""
    made = state(trigger_memory={"any[0].performance": {"since": "x"}})
    assert not give(made, Verb.PROMOTE, 1).after.trigger_memory


def test_pin_stops_everything_where_it_is() -> None:
    """A cycle before traffic ends; in the bake the new champion is pinned, and counts as promoted."""
    ends = {Phase.TRAINING: Outcome.ABORTED, Phase.ROLLING_OUT: Outcome.ABORTED, Phase.BAKING: Outcome.PROMOTED}
    for phase, outcome in ends.items():
        made = state(phase)
        decision = give(made, Verb.PIN)
        assert decision.closed is not None
        assert decision.closed.outcome is outcome
        assert decision.after.champion == made.champion
        assert decision.after.pinned is not None


def test_pin_to_the_version_before_in_a_bake_bans_the_new_one() -> None:
    """The person took it back."""
    decision = give(state(Phase.BAKING), Verb.PIN, 2)
    assert decision.closed is not None
    assert decision.closed.outcome is Outcome.ABORTED
    assert decision.after.champion == 2
    assert decision.after.versions[3].status is VersionStatus.QUARANTINED


def test_pin_to_the_challenger_promotes_it() -> None:
    """It keeps the traffic, without a bake: pinned traffic does not move, not even back."""
    decision = give(state(Phase.ROLLING_OUT), Verb.PIN, 3)
    assert decision.closed is not None
    assert decision.closed.outcome is Outcome.PROMOTED
    assert decision.after.champion == 3


# ---------------------------------------------------------------- holds and time
def test_time_on_hold_does_not_count() -> None:
    """After two hours of pause a step has as much left as before, and so has the deadline."""
    made = with_cycle(state(Phase.ROLLING_OUT), step=1, step_since=NOW - 20 * MINUTE, phase_since=NOW - HOUR)
    paused = give(made, Verb.PAUSE).after
    back = give(paused, Verb.RESUME, now=NOW + 2 * HOUR).after
    assert back.cycle is not None
    assert back.cycle.step_since == NOW - 20 * MINUTE + 2 * HOUR
    assert back.cycle.phase_since == NOW + HOUR


def test_overlapping_holds_are_counted_once() -> None:
    """Paused from 0 to 3, frozen from 1 to 5: five hours in all, whichever ends first."""
    made = with_cycle(state(Phase.BAKING), phase_since=NOW - HOUR)
    for first, second in ((Verb.PAUSE, Verb.FREEZE), (Verb.FREEZE, Verb.PAUSE)):
        release = {Verb.PAUSE: Verb.RESUME, Verb.FREEZE: Verb.UNFREEZE}
        for ends in ((first, second), (second, first)):
            held = give(made, first).after
            held = give(held, second, now=NOW + HOUR).after
            held = give(held, release[ends[0]], now=NOW + 3 * HOUR).after
            held = give(held, release[ends[1]], now=NOW + 5 * HOUR).after
            assert held.cycle is not None
            assert held.cycle.phase_since == NOW + 4 * HOUR, (first, ends)


def test_a_freeze_prolongs_only_what_it_held() -> None:
    """Waiting for approval goes on under a freeze, so its deadline stands."""
    made = state(Phase.AWAITING_APPROVAL, frozen=hold(NOW))
    after = give(made, Verb.UNFREEZE, now=NOW + 5 * HOUR).after
    assert after.cycle is not None
    assert after.cycle.phase_since == NOW


def test_a_hold_from_the_future_gives_no_time_back() -> None:
    """A clock that went back during a hold makes no negative pause."""
    made = with_cycle(state(Phase.BAKING, paused=hold(NOW + HOUR)), phase_since=NOW - HOUR)
    after = give(made, Verb.RESUME).after
    assert after.cycle is not None
    assert after.cycle.phase_since == NOW - HOUR


def test_approving_a_held_cycle_waits_for_the_hold_to_end() -> None:
    """The word counts, the hold too."""
    for name in ("paused", "frozen"):
        made = state(Phase.AWAITING_APPROVAL, **{name: hold()})
        after = give(made, Verb.APPROVE).after
        assert after.cycle is not None
        assert after.cycle.phase is Phase.PACKAGING
        assert not decide(look(after), NOW + MINUTE).changed


def test_trigger_says_what_is_in_its_way() -> None:
    """An open cycle, a pause or a pin; a freeze is none, for it holds only traffic."""
    assert "cycle 7 is open (training)" in refused(state(Phase.TRAINING), Verb.TRIGGER)
    assert "is paused; resume it first" in refused(state(paused=hold()), Verb.TRIGGER)
    assert "is pinned; unpin it first" in refused(state(pinned=hold()), Verb.TRIGGER)
    opened = give(state(frozen=hold()), Verb.TRIGGER).after.cycle
    assert opened is not None
    assert opened.cause == "person: ann, she said so"


# ---------------------------------------------------------------- notices, policies
def test_notices_of_a_model_that_was_deleted_and_came_back_have_keys_of_their_own() -> None:
    """Numbers may begin again at the same place; the news is new."""
    first = give(state(), Verb.PAUSE).notices[0].key
    again = give(state(created_at=NOW - timedelta(days=1)), Verb.PAUSE).notices[0].key
    assert first != again


def test_an_edited_policy_raises_no_traffic() -> None:
    """At 10 % of four steps, two steps of 5 % and 100 % go on at 5 %, from the beginning of that step."""
    made = with_cycle(state(Phase.ROLLING_OUT), step=1, step_since=NOW - HOUR, traffic_since=NOW - HOUR)
    shorter = policy(rollout={"steps": [{"5%": "1h"}, "100%"]})
    after = change_policy(made, shorter, "", "ann", NOW).after
    assert after.cycle is not None
    assert (after.cycle.step, after.cycle.step_since) == (0, None)
    assert after.plan is not None
    assert after.plan.weights == {2: 95, 3: 5}


def test_a_policy_that_would_move_held_traffic_is_refused() -> None:
    """A freeze is a person's word; a file is none (invariant 11)."""
    made = with_cycle(state(Phase.ROLLING_OUT, frozen=hold()), step=1)
    with pytest.raises(OverrideRefused, match=r"held by bob .*would move its traffic from v2 90 %, v3 10 % to v2 95 %"):
        change_policy(made, policy(rollout={"steps": [{"5%": "1h"}, "100%"]}), "", "ann", NOW)
    assert change_policy(made, policy(cooldown="9h"), "", "ann", NOW).after.plan == made.plan
