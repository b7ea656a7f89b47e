"""Metrics in triggers and rollouts: bad goes back, unknown pauses, and nothing moves on what is only a point."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from controller_states import HOUR, MINUTE, NOW, compared, in_line, look, measured, policy, serving, state

from controller.decide import Snapshot, decide, metric_of
from controller.reconcile import replay, snapshot_json
from controller.state import ModelState, Outcome, Phase
from policies.signals import Basis, Signal

KEY = "metric:error_rate"
FOLLOW = policy(
    rollout={
        "steps": [{"shadow": "30m"}, {"10%": "1h"}, {"50%": "1h"}, "100%"], "bake": "4h", "min_labelled_rows": 20,
        "deadline": "1d", "metrics": [{"name": "error_rate", "above": 0.02}],
    }
)  # fmt: skip


def share(events: int, total: int, at: datetime = NOW) -> Signal:
    return Signal(
        value=events / total, rows=total, observed_at=at, good_until=at + timedelta(minutes=5), basis=Basis.SHARE,
        detail=f"{events} of {total}",
    )  # fmt: skip


def rolling(step: int = 1, phase: Phase = Phase.ROLLING_OUT, **changes: Any) -> ModelState:
    """v3 at a step, whose hold is over."""
    made = state(phase, follow=FOLLOW)
    assert made.cycle is not None
    since = {"step": step, "step_since": NOW - 2 * HOUR, "traffic_since": NOW - 3 * HOUR}
    return in_line(replace(made, cycle=replace(made.cycle, **{**since, **changes})), FOLLOW)


def seen(made: ModelState, signal: Signal | None, comparison: str = "no_worse", version: int = 3) -> Snapshot:
    metrics = {} if signal is None else {metric_of(KEY, version): signal}
    observation = replace(measured(made, 0.9, compared(comparison)), metrics=metrics)
    return look(made, target=serving(made), observation=observation)


def test_a_bad_metric_takes_the_challenger_back() -> None:
    """At once, with the numbers in the sentence; and the recorded decision can be taken again."""
    made = rolling()
    snapshot = seen(made, share(60, 1000))
    decision = decide(snapshot, NOW)
    assert decision.closed is not None
    assert decision.closed.outcome is Outcome.ROLLED_BACK
    assert decision.sentence == (
        "rolled back: v3: error_rate 0.060 (60 of 1000), at least 0.045 at 99 %, is above 0.02; v2 serves, v3 is quarantined"
    )
    assert replay(snapshot_json(snapshot, NOW)).sentence == decision.sentence


@pytest.mark.parametrize(
    ("signal", "why"),
    [
        (None, "error_rate is unknown: not asked for yet"),
        (Signal.unknown("Prometheus is away", observed_at=NOW), "error_rate is unknown: Prometheus is away"),
        (share(0, 99), "it rests on 99 counted, of 100 needed (min_count)"),
        (share(0, 1000, NOW - 6 * MINUTE), "the newest answer is from 6m ago"),
        (share(0, 1000, NOW + 2 * MINUTE), "in the future, so a clock is wrong"),
        (replace(share(0, 1000), value=float("nan")), "it is nan"),
        (share(5, 200), "is not shown above 0.02, though the point is"),
    ],
)
def test_an_unknown_metric_pauses_the_canary(signal: Signal | None, why: str) -> None:
    """Neither forward nor back, whatever else speaks for it; so does a point beyond the limit that may be chance."""
    made = rolling()
    decision = decide(seen(made, signal), NOW)
    assert why in decision.sentence
    assert "v3 at 10 % (step 2 of 4): waits, because" in decision.sentence
    assert decision.after.plan == made.plan
    late = replace(made, cycle=replace(made.cycle, phase_since=NOW - 25 * HOUR))  # type: ignore[type-var]
    ended = decide(seen(late, signal), NOW)
    assert ended.closed is not None
    assert ended.closed.outcome is Outcome.INCONCLUSIVE
    assert ended.after.champion == 2


def test_a_metric_that_holds_lets_it_go_on() -> None:
    """The champion's metric of the same name is another matter."""
    made = rolling()
    assert decide(seen(made, share(1, 1000)), NOW).sentence.startswith("v3 goes from 10 % to 50 %")
    assert "not asked for yet" in decide(seen(made, share(900, 1000), version=2), NOW).sentence


def test_a_shadow_needs_no_metric() -> None:
    """It has no live traffic that Prometheus could count."""
    assert decide(seen(rolling(0), None), NOW).sentence.startswith("v3 goes from shadow to 10 %")


def test_a_bake_ends_on_a_known_metric_only() -> None:
    """Unknown keeps it watched; bad takes it back; fine lets it stay."""
    made = rolling(3, Phase.BAKING, phase_since=NOW - 5 * HOUR, step_since=None)
    snapshot = seen(made, None)
    assert "still watched, because error_rate is unknown" in decide(snapshot, NOW).sentence
    assert decide(seen(made, share(60, 1000)), NOW).after.champion == 2
    assert decide(seen(made, share(1, 1000)), NOW).sentence.startswith("v3 stays")


def firing(**rule: Any) -> ModelState:
    return state(follow=policy(triggers={"metric": {"name": "error_rate", "above": 0.02, **rule}}))


def test_a_trigger_fires_on_the_bound_not_on_the_point() -> None:
    """3 errors of 100 are not shown to be above 2 %; 60 of 1,000 are."""
    made = firing()
    quiet = decide(seen(made, share(3, 100), version=2), NOW)
    assert quiet.after.cycle is None
    assert "is not shown above 0.02, though the point is" in quiet.sentence
    fired = decide(seen(made, share(60, 1000), version=2), NOW)
    assert fired.after.cycle is not None
    assert "retraining, because error_rate 0.060 (60 of 1000), at least 0.049 at 95 %, is above 0.02" in fired.sentence


def test_a_trigger_waits_for_its_time() -> None:
    """An unknown look pauses the count, and does not fire."""
    made = firing(**{"for": "10m"})
    began = decide(seen(made, share(60, 1000), version=2), NOW)
    assert "fires after 10m" in began.sentence
    unknown = decide(seen(began.after, None), NOW + 11 * MINUTE)
    assert unknown.after.cycle is None
    assert "error_rate is unknown" in unknown.sentence
    fired = decide(seen(unknown.after, share(60, 1000, NOW + 12 * MINUTE), version=2), NOW + 12 * MINUTE)
    assert fired.after.cycle is not None


def test_a_bare_value_fires_only_if_told_so() -> None:
    """Nobody knows how much it rests on."""
    bare = Signal(value=9.0, observed_at=NOW, basis=Basis.BARE)
    assert "nothing says how many it rests on: give total" in decide(seen(firing(), bare, version=2), NOW).sentence
    assert decide(seen(firing(min_count=0), bare, version=2), NOW).after.cycle is not None
