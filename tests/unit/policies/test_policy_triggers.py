"""Leaves of trigger trees: when each kind fires, is quiet, or is unknown."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import TypeAdapter

from policies.schema import TriggerNode
from policies.signals import AlertSignal, Signal
from policies.trigger_rules import alerts_wanted, query_of
from policies.triggers import TriggerFacts, TriggerResult, TriggerState, evaluate, needs

NODES: TypeAdapter[Any] = TypeAdapter(TriggerNode)
NOW = datetime(2026, 11, 23, 13, 0, tzinfo=UTC)  # a Monday
H, D = timedelta(hours=1), timedelta(days=1)
FIRED, QUIET, UNKNOWN = TriggerState.FIRED, TriggerState.QUIET, TriggerState.UNKNOWN
PRECISION = "performance:precision:1d:100"


def node(**leaf: Any) -> Any:
    return NODES.validate_python(leaf)


def facts(
    value: float | Signal | None = None, *, key: str = PRECISION, now: datetime = NOW, **more: Any
) -> TriggerFacts:
    signals = {}
    if isinstance(value, Signal):
        signals = {key: value}
    elif value is not None:
        signals = {key: Signal.of(value, observed_at=now, rows=412, window_end=more.pop("window_end", None))}
    return TriggerFacts(now=now, since=more.pop("since", NOW - 5 * D), signals=signals, **more)


def run(leaf: Any, *looks: TriggerFacts) -> TriggerResult:
    """Looks one after the other, each with what the one before remembered."""
    memory: Any = {}
    for look in looks:
        changed = TriggerFacts(
            now=look.now, since=look.since, signals=look.signals, baselines=look.baselines,
            trained_to=look.trained_to, memory=memory, max_age=look.max_age,
        )  # fmt: skip
        result = evaluate(leaf, changed)
        memory = result.memory
    return result


BELOW = node(performance={"metric": "precision", "below": 0.55})
BELOW_2H = node(performance={"metric": "precision", "below": 0.55, "for": "2h"})
DROP = node(performance={"metric": "precision", "drop": 0.05})
ABOVE = node(performance={"metric": "log_loss", "above": 0.7})
DRIFT_2 = node(drift={"share": 0.3, "for": 2})
DRIFT_KEY = "drift:1d:100"


@pytest.mark.parametrize(("value", "state"), [(0.512, FIRED), (0.55, QUIET), (0.6, QUIET), (None, UNKNOWN)])
def test_below_fires_strictly_below(value: float | None, state: TriggerState) -> None:
    """`below` fires below the limit, not at it, and a score not measured is unknown."""
    assert evaluate(BELOW, facts(value)).state is state


def test_sentence_carries_the_numbers() -> None:
    """The sentence of a firing names the score, the limit, how long it held and how many rows it rests on."""
    result = run(BELOW_2H, facts(0.512), facts(0.512, now=NOW + timedelta(hours=2, minutes=10)))
    assert result.sentence == "precision 0.512 is below 0.55 since 2h10m (412 rows)"


def test_above_is_for_errors() -> None:
    """`above` fires above the limit."""
    key = "performance:log_loss:1d:100"
    assert evaluate(ABOVE, facts(0.71, key=key)).state is FIRED
    assert evaluate(ABOVE, facts(0.7, key=key)).state is QUIET


def test_drop_is_measured_from_the_score_at_promotion() -> None:
    """`drop` compares with the baseline, and without a finite baseline it is unknown."""
    assert evaluate(DROP, facts(0.5, baselines={"precision": 0.56})).state is FIRED
    assert evaluate(DROP, facts(0.5, baselines={"precision": 0.54})).state is QUIET
    assert evaluate(DROP, facts(0.6, baselines={"precision": 0.54})).state is QUIET
    assert evaluate(DROP, facts(0.5)).state is UNKNOWN
    assert evaluate(DROP, facts(0.5, baselines={"precision": math.nan})).state is UNKNOWN


def test_drop_of_an_error_is_a_rise() -> None:
    """For metrics where lower is better, a drop in quality is a rise of the number."""
    leaf = node(performance={"metric": "mae", "drop": 2})
    key = "performance:mae:1d:100"
    assert evaluate(leaf, facts(12.5, key=key, baselines={"mae": 10})).state is FIRED
    assert evaluate(leaf, facts(7.5, key=key, baselines={"mae": 10})).state is QUIET


def test_for_needs_the_condition_to_hold() -> None:
    """With `for: 2h` the condition must hold for two hours; until then it says when it would fire."""
    result = run(BELOW_2H, facts(0.5))
    assert (result.state, result.next_at) == (QUIET, NOW + 2 * H)
    assert run(BELOW_2H, facts(0.5), facts(0.5, now=NOW + 2 * H)).state is FIRED


def test_for_starts_again_after_a_good_look() -> None:
    """One good look between two bad ones restarts the time."""
    looks = facts(0.5), facts(0.6, now=NOW + H), facts(0.5, now=NOW + 2 * H)
    assert run(BELOW_2H, *looks).state is QUIET
    assert run(BELOW_2H, *looks, facts(0.5, now=NOW + 4 * H)).state is FIRED


def test_unknown_pauses_for() -> None:
    """An unknown look keeps the moment since when the condition holds, but cannot fire."""
    looks = facts(0.5), facts(None, now=NOW + 3 * H)
    assert run(BELOW_2H, *looks).state is UNKNOWN
    assert run(BELOW_2H, *looks, facts(0.5, now=NOW + 4 * H)).state is FIRED


def test_closing_a_cycle_restarts_for() -> None:
    """What held before the last cycle closed says nothing about the new champion."""
    result = run(BELOW_2H, facts(0.5), facts(0.5, now=NOW + 4 * H, since=NOW + 3 * H))
    assert result.state is QUIET


def test_editing_the_rule_restarts_for() -> None:
    """Memory of another limit or window under the same id is not used."""
    memory = run(BELOW_2H, facts(0.5)).memory
    other = node(performance={"metric": "precision", "below": 0.56, "for": "2h"})
    assert evaluate(other, facts(0.5, now=NOW + 3 * H, memory=memory)).state is QUIET
    assert evaluate(BELOW_2H, facts(0.5, now=NOW + 3 * H, memory=memory)).state is FIRED


@pytest.mark.parametrize(
    "memory",
    [
        {"performance": None}, {"performance": {"since": 3}}, {"performance": "x"}, {"x": {}},
        {"performance": {"rule": f"{PRECISION} below 0.55", "from": (NOW - 5 * D).isoformat(), "since": "nonsense"}},
        {"performance": {"rule": f"{PRECISION} below 0.55", "from": (NOW - 5 * D).isoformat(), "since": "2020-01-01"}},
    ],
)  # fmt: skip
def test_damaged_memory_is_forgotten(memory: Any) -> None:
    """Memory of any other shape counts as none."""
    assert evaluate(BELOW_2H, facts(0.5, memory=memory)).state is QUIET


@pytest.mark.parametrize(
    "signal",
    [
        Signal.unknown("only 12 rows of 100", observed_at=NOW),
        Signal.of(math.nan, observed_at=NOW),
        Signal(value=math.inf, observed_at=NOW),
        Signal.of(0.1, observed_at=NOW - 2 * D),
        Signal.of(0.1, observed_at=NOW + H),
    ],
)
def test_unusable_signals_are_unknown(signal: Signal) -> None:
    """Missing, not finite, stale and future values are unknown, and the sentence says why."""
    result = evaluate(BELOW, facts(signal))
    assert result.state is UNKNOWN
    assert result.sentence.startswith("precision is unknown: ")


def test_drift_counts_windows_that_do_not_overlap() -> None:
    """The same window twice, or one that overlaps, is one window."""
    first = facts(0.4, key=DRIFT_KEY, window_end=NOW)
    again = facts(0.4, key=DRIFT_KEY, now=NOW + H, window_end=NOW)
    overlapping = facts(0.4, key=DRIFT_KEY, now=NOW + 2 * H, window_end=NOW + 2 * H)
    second = facts(0.4, key=DRIFT_KEY, now=NOW + D, window_end=NOW + D)
    assert run(DRIFT_2, first, again, overlapping).state is QUIET
    result = run(DRIFT_2, first, again, overlapping, second)
    assert result.state is FIRED
    assert result.sentence == "0.400 of the features drifted, 0.3 or more, in 2 windows running (412 rows)"
    assert run(DRIFT_2, first, second, facts(0.4, key=DRIFT_KEY, now=NOW + D + H, window_end=NOW + D)).state is FIRED


FILTERED = node(drift={"share": 0.3, "only_if": {"estimated_performance": {"drop": 0.02, "metric": "recall"}}})
ESTIMATE_KEY = "estimated_performance:recall:1d:100"


def both(share: float | None, estimate: float | None, now: datetime = NOW, **more: Any) -> TriggerFacts:
    """Facts of a drift and an estimate; None: not measured."""
    values = {DRIFT_KEY: share, ESTIMATE_KEY: estimate}
    signals = {
        key: Signal.of(value, observed_at=now, rows=412, window_end=now)
        for key, value in values.items()
        if value is not None
    }
    return TriggerFacts(now=now, since=NOW - 5 * D, signals=signals, baselines={"recall": 0.8}, **more)


@pytest.mark.parametrize(
    ("share", "estimate", "state"),
    [
        (0.4, 0.70, FIRED), (0.4, 0.79, QUIET), (0.4, None, UNKNOWN), (0.2, 0.70, QUIET), (0.2, None, QUIET),
        (None, 0.70, UNKNOWN), (None, 0.79, QUIET), (None, None, UNKNOWN),
    ],
)  # fmt: skip
def test_filtered_drift_fires_only_while_the_estimate_is_bad_too(
    share: float | None, estimate: float | None, state: TriggerState
) -> None:
    """Kleene's and: one quiet side is quiet whatever the other is; else an unknown one leaves it unknown."""
    result = evaluate(FILTERED, both(share, estimate))
    assert result.state is state, result.sentence
    assert [query.key for query in needs(FILTERED)] == [DRIFT_KEY, ESTIMATE_KEY]


def test_filter_keeps_the_count_of_drifted_windows() -> None:
    """Windows are counted while the estimate still looks good, so that it fires as soon as that falls; the sentence says what is
    missing."""
    tree = node(
        drift={"share": 0.3, "for": 2, "only_if": {"estimated_performance": {"drop": 0.02, "metric": "recall"}}}
    )
    second = run(tree, both(0.4, 0.8), both(0.4, 0.8, NOW + D))
    assert second.state is QUIET
    assert "in 2 windows running (412 rows), but estimated recall 0.800 is no worse" in second.sentence
    third = evaluate(tree, both(0.4, 0.7, NOW + D + H, memory=second.memory))
    assert third.state is FIRED


def test_drift_is_measured_by_the_policy_s_threshold_and_named_in_the_sentence() -> None:
    """Each threshold is a measurement of its own; what moved furthest stands in the sentence."""
    rules: list[dict[str, Any]] = [{}, {"threshold": 0.2}, {"threshold": "calibrated"}]
    keys = [query.key for rule in rules for query in needs(node(drift=rule))]
    assert keys == ["drift:1d:100", "drift:1d:100:0.2", "drift:1d:100:calibrated"]
    signal = replace(Signal.of(0.5, observed_at=NOW, rows=412), detail="wind 1.2, limit .1")
    result = evaluate(node(drift={}), facts(signal, key=DRIFT_KEY))
    assert result.sentence == "0.500 of the features drifted, 0.5 or more (412 rows): wind 1.2, limit .1"


def test_drift_starts_again_after_a_window_without() -> None:
    """Windows must follow one another."""
    looks = [facts(v, key=DRIFT_KEY, now=NOW + i * D, window_end=NOW + i * D) for i, v in enumerate((0.4, 0.1, 0.4))]
    assert run(DRIFT_2, *looks).state is QUIET


def test_unknown_pauses_drift() -> None:
    """A window that could not be measured neither resets nor advances the count."""
    looks = (
        facts(0.4, key=DRIFT_KEY, window_end=NOW),
        facts(None, now=NOW + D),
        facts(0.4, key=DRIFT_KEY, now=NOW + 2 * D, window_end=NOW + 2 * D),
    )
    assert run(DRIFT_2, *looks[:2]).state is UNKNOWN
    assert run(DRIFT_2, *looks).state is FIRED


def test_drift_fires_at_its_share() -> None:
    """The share given is the least that fires, and `for: 1` remembers nothing."""
    leaf = node(drift={"share": 0.5})
    result = evaluate(leaf, facts(0.5, key=DRIFT_KEY))
    assert (result.state, result.memory) == (FIRED, {})
    assert evaluate(leaf, facts(0.49, key=DRIFT_KEY)).state is QUIET


def test_volume_counts_new_labelled_rows() -> None:
    """Volume fires at its number of rows."""
    leaf = node(volume={"labelled_rows": 500})
    assert evaluate(leaf, facts(500, key="volume")).state is FIRED
    assert evaluate(leaf, facts(499, key="volume")).state is QUIET
    assert evaluate(leaf, facts()).state is UNKNOWN


@pytest.mark.parametrize(
    ("rows", "trained", "state", "words"),
    [
        (500, 1000, FIRED, "500 new labelled rows are in, 500 or more (the champion was trained on 1000)"),
        (499, 1000, QUIET, "499 new labelled rows are in, fewer than 500 (the champion was trained on 1000)"),
        (2, 3, FIRED, "2 new labelled rows are in, 2 or more (the champion was trained on 3)"),
        (1, 3, QUIET, "1 new labelled rows are in, fewer than 2 (the champion was trained on 3)"),
        (
            9999,
            None,
            UNKNOWN,
            "9999 new labelled rows are in, but it is not known on how many the champion was trained",
        ),
    ],
)
def test_volume_as_growth(rows: int, trained: int | None, state: TriggerState, words: str) -> None:
    """Growth is by the rows that the champion was trained on: half as many new ones for 1.5; unknown if that number is."""
    result = evaluate(node(volume={"growth": 1.5}), facts(rows, key="volume", trained_rows=trained))
    assert (result.state, result.sentence) == (state, words)


# ---------------------------------------------------------------- beyond chance, and since when
def scored(value: float, stderr: float | None, *, rows: int = 412, **more: Any) -> Signal:
    return replace(Signal.of(value, observed_at=NOW, rows=rows, window_end=NOW - H), stderr=stderr, **more)


@pytest.mark.parametrize(
    ("stderr", "state", "words"),
    [
        (0.02, FIRED, "precision 0.510 is below 0.55, 2.0 standard errors (1.6 needed) (412 rows)"),
        (0.03, QUIET, "precision 0.510 is below 0.55, 1.3 standard errors (1.6 needed) (412 rows)"),
        (0.0, FIRED, "precision 0.510 is below 0.55, inf standard errors (1.6 needed) (412 rows)"),
        (None, UNKNOWN, "precision 0.510 is below 0.55, but how much of that is chance is unknown (412 rows)"),
        (math.nan, UNKNOWN, "precision 0.510 is below 0.55, but how much of that is chance is unknown (412 rows)"),
    ],
)
def test_a_limit_beyond_chance(stderr: float | None, state: TriggerState, words: str) -> None:
    """With a confidence of 95 % a score must be 1.645 standard errors below; an unknown error leaves it unknown."""
    leaf = node(performance={"metric": "precision", "below": 0.55, "confidence": 0.95})
    result = evaluate(leaf, facts(scored(0.51, stderr)))
    assert (result.state, result.sentence) == (state, words)
    assert evaluate(leaf, facts(scored(0.56, stderr))).state is QUIET


def test_an_error_metric_beyond_chance() -> None:
    """`above` is the other way round."""
    leaf, key = (
        node(performance={"metric": "log_loss", "above": 0.7, "confidence": 0.95}),
        "performance:log_loss:1d:100",
    )
    assert evaluate(leaf, facts(scored(0.74, 0.02), key=key)).state is FIRED
    assert evaluate(leaf, facts(scored(0.74, 0.03), key=key)).state is QUIET


@pytest.mark.parametrize(("then", "state"), [(412, QUIET), (None, QUIET), (4120, FIRED), (41, QUIET), (0, QUIET)])
def test_any_drop_beyond_chance(then: int | None, state: TriggerState) -> None:
    """`drop: 0` with a confidence: the score at promotion is uncertain too, the more so the fewer rows it was of.

    2 standard errors of the score now; of the difference 1.41 with as many rows then, 1.91 with ten times as many; 1.64 needed."""
    leaf = node(performance={"metric": "precision", "drop": 0, "confidence": 0.95})
    told = facts(scored(0.50, 0.02), baselines={"precision": 0.54}, baseline_rows=then)
    assert evaluate(leaf, told).state is state
    assert evaluate(leaf, facts(scored(0.54, 0.02), baselines={"precision": 0.54})).state is QUIET
    assert evaluate(leaf, facts(scored(0.50, 0.02))).state is UNKNOWN


@pytest.mark.parametrize(
    ("earlier", "rows", "state", "words"),
    [
        (
            0.56,
            4120,
            FIRED,
            "0.060 worse than the 0.560 on 4120 rows before, 2.9 standard errors (1.6 needed) (412 rows)",
        ),
        (None, 4120, QUIET, "0.010 worse than the 0.510 at promotion, 0.2 standard errors (1.6 needed) (412 rows)"),
        (math.nan, 4120, QUIET, "0.010 worse than the 0.510 at promotion, 0.2 standard errors (1.6 needed) (412 rows)"),
        (0.40, 4120, QUIET, "0.010 worse than the 0.510 at promotion, 0.2 standard errors (1.6 needed) (412 rows)"),
        (0.52, 10, QUIET, "0.010 worse than the 0.510 at promotion, 0.2 standard errors (1.6 needed) (412 rows)"),
    ],
)
def test_a_drop_from_the_versions_own_earlier_score(
    earlier: float | None, rows: int, state: TriggerState, words: str
) -> None:
    """A hold-out may be small or already changed: beyond chance, whichever of both scores tells more is compared with."""
    leaf = node(performance={"metric": "precision", "drop": 0, "confidence": 0.95})
    signal = scored(0.50, 0.02, earlier=earlier, earlier_rows=rows)
    result = evaluate(leaf, facts(signal, baselines={"precision": 0.51}, baseline_rows=60))
    assert (result.state, result.sentence) == (state, f"precision 0.500 is {words}")
    bare = node(performance={"metric": "precision", "drop": 0.05})
    assert evaluate(bare, facts(signal, baselines={"precision": 0.51})).state is QUIET


def test_an_unknown_error_pauses_and_a_changed_confidence_restarts_for() -> None:
    """As every look that is unknown, and every rule that is edited."""
    leaf = node(performance={"metric": "precision", "below": 0.55, "for": "2h", "confidence": 0.95})
    first = facts(scored(0.5, 0.02))
    later = NOW + 2 * H
    unsure = facts(replace(scored(0.5, None), observed_at=NOW + H), now=NOW + H)
    third = facts(replace(scored(0.5, 0.02), observed_at=later), now=later)
    assert run(leaf, first, unsure).state is UNKNOWN
    assert run(leaf, first, unsure, third).state is FIRED
    surer = node(performance={"metric": "precision", "below": 0.55, "for": "2h", "confidence": 0.96})
    assert evaluate(surer, replace(third, memory=run(leaf, first).memory)).state is QUIET


def test_since_when_is_told_by_the_window_or_is_its_start() -> None:
    """A change seen in the window is told if it fires; a window that is bad throughout changed before it began."""
    dated = scored(0.5, None, changed_at=NOW - 9 * H)
    assert evaluate(BELOW, facts(dated)).changed_at == NOW - 9 * H
    assert evaluate(BELOW, facts(replace(dated, value=0.9))).changed_at is None
    assert evaluate(BELOW, facts(scored(0.5, None))).changed_at == NOW - H - D
    assert evaluate(BELOW, facts(scored(0.9, None))).changed_at is None
    assert evaluate(BELOW, facts(replace(scored(0.5, None), window_end=None))).changed_at is None
    assert evaluate(BELOW, facts(replace(dated, observed_at=NOW - 2 * D))).changed_at is None


def test_of_several_changes_the_oldest_counts() -> None:
    """A short window may fire on what only a long one, quiet itself, can date; if none fires there is nothing to date."""
    both_windows = NODES.validate_python(
        {
            "any": [
                {"performance": {"metric": "precision", "below": b, "window": w}}
                for b, w in ((0.55, "30d"), (0.6, "10d"))
            ]
        }
    )
    signals = {
        "performance:precision:30d:100": scored(0.58, None, changed_at=NOW - 13 * D),
        "performance:precision:10d:100": scored(0.5, None),
    }
    result = evaluate(both_windows, TriggerFacts(now=NOW, since=NOW - 40 * D, signals=signals))
    assert [leaf.state for leaf in result.leaves] == [QUIET, FIRED]
    assert result.changed_at == NOW - 13 * D
    signals["performance:precision:10d:100"] = scored(0.7, None)
    quiet = evaluate(both_windows, TriggerFacts(now=NOW, since=NOW - 40 * D, signals=signals))
    assert (quiet.state, quiet.changed_at) == (QUIET, None)


def test_schedule_fires_if_due_since_the_last_cycle() -> None:
    """A schedule fires if one of its moments lies in (since, now], once for all that were missed."""
    leaf = node(schedule="0 4 * * 1")
    due = datetime(2026, 11, 23, 4, tzinfo=UTC)
    assert evaluate(leaf, facts(since=NOW - 5 * D)).state is FIRED
    assert evaluate(leaf, facts(since=NOW - 500 * D)).state is FIRED
    assert evaluate(leaf, facts(since=due)).state is QUIET
    assert evaluate(leaf, facts(now=due, since=due - H)).state is FIRED
    assert evaluate(leaf, facts(now=due - timedelta(microseconds=1), since=due - H)).state is QUIET
    assert evaluate(leaf, facts(since=due)).next_at == due + 7 * D


def test_staleness_counts_from_training_or_the_last_cycle() -> None:
    """Staleness fires once both the newest training row and the last cycle are old enough."""
    leaf = node(staleness="30d")
    assert evaluate(leaf, facts(since=NOW - 31 * D, trained_to=NOW - 40 * D)).state is FIRED
    assert evaluate(leaf, facts(since=NOW - 3 * D, trained_to=NOW - 40 * D)).state is QUIET
    assert evaluate(leaf, facts(since=NOW - 31 * D, trained_to=NOW - 3 * D)).state is QUIET
    assert evaluate(leaf, facts(since=NOW - 31 * D)).state is FIRED
    assert evaluate(leaf, facts(since=NOW - 3 * D)).next_at == NOW + 27 * D


def test_manual_never_fires() -> None:
    """A manual trigger is quiet."""
    assert evaluate(node(manual=None), facts()).state is QUIET


@pytest.mark.parametrize(
    ("metric", "estimate", "state", "words"),
    [
        (None, 0.72, FIRED, "estimated recall 0.720 is 0.080 worse than the 0.800 at promotion (900 rows, without labels)"),
        (None, 0.77, QUIET, "estimated recall 0.770 is 0.030 worse than the 0.800 at promotion, less than 0.05"),
        (None, 0.85, QUIET, "no worse than the 0.800 at promotion"),
        ("log_loss", 0.45, FIRED, "estimated log_loss 0.450 is 0.150 worse"),
        ("log_loss", 0.25, QUIET, "no worse than the 0.300 at promotion"),
        ("brier", 0.4, UNKNOWN, "its score at promotion is unknown"),
        (None, None, UNKNOWN, "estimated recall is unknown: packaged without an estimator"),
    ],
)  # fmt: skip
def test_estimated_performance(metric: str | None, estimate: float | None, state: TriggerState, words: str) -> None:
    """Fires on a drop of the estimate under the score at promotion, by the metric's direction; by default of the objective."""
    leaf = node(estimated_performance={"drop": 0.05, **({"metric": metric} if metric else {})})
    signal = Signal(value=estimate, reason="packaged without an estimator", rows=900, observed_at=NOW)
    query = query_of(leaf)
    assert query is not None
    assert query.key == ":".join(filter(None, ["estimated_performance", metric, "1d", "100"]))
    told = TriggerFacts(
        now=NOW, since=NOW, signals={query.key: signal}, baselines={"recall": 0.8, "log_loss": 0.3}, objective="recall"
    )
    result = evaluate(leaf, told)
    assert result.state is state, result.sentence
    assert words in result.sentence


@pytest.mark.parametrize("back", [timedelta(seconds=5), H, 400 * D])
def test_clock_going_back_fires_nothing(back: timedelta) -> None:
    """After the clock went back, time-based triggers are quiet, counts start again and old measurements are unknown."""
    tree = node(any=[{"schedule": "* * * * *"}, {"staleness": "1h"}, BELOW_2H])
    before = facts(0.5, since=NOW)
    after = facts(Signal.of(0.5, observed_at=NOW - back), now=NOW - back, since=NOW)
    assert run(tree, before, after).state is not FIRED
    late = facts(Signal.of(0.5, observed_at=NOW), now=NOW - back, since=NOW)
    assert run(tree, before, late).state is not FIRED


def test_ids_are_paths() -> None:
    """Each leaf is known by its place and kind, which is also the key of its memory."""
    inner = {"all": [{"manual": None}, {"at_least": 1, "of": [{"drift": {"for": 2}}]}]}
    tree = node(any=[BELOW_2H, inner])
    result = evaluate(tree, facts(0.4))
    assert [leaf.id for leaf in result.leaves] == [
        "any[0].performance",
        "any[1].all[0].manual",
        "any[1].all[1].of[0].drift",
    ]
    assert list(result.memory) == ["any[0].performance"]


def test_needs_each_query_once() -> None:
    """Equal queries are asked once, in the order of the policy; clocks need none."""
    recall = [{"performance": {"metric": "recall", **rule}} for rule in ({"below": 0.5}, {"drop": 0.1})]
    tree = node(any=[{"schedule": "0 4 * * 1"}, {"drift": {}}, *recall, {"volume": {"labelled_rows": 5}}])
    assert [query.key for query in needs(tree)] == [DRIFT_KEY, "performance:recall:1d:100", "volume"]


def test_sentence_of_a_tree_names_what_decided() -> None:
    """`any` says which fired, `at_least` says how many."""
    tree = node(any=[{"performance": {"metric": "precision", "below": 0.5}}, {"manual": None}])
    assert evaluate(tree, facts(0.4)).sentence == "precision 0.400 is below 0.5 (412 rows)"
    two = node(at_least=2, of=[{"performance": {"metric": "precision", "below": 0.5}}, {"manual": None}])
    assert evaluate(two, facts(0.4)).sentence == "1 of 2 triggers fire, 2 needed: fires only by hand"


# ---------------------------------------------------------------- alerts
ALERT = 'Slow{model="late"}'


def alerted(now: datetime = NOW, rule: Any = "Slow", **more: Any) -> TriggerResult:
    return evaluate(node(alert=rule), facts(now=now, model="late", **more))


def fires(*since: datetime) -> dict[str, Any]:
    return {"alerts": {ALERT: AlertSignal(firing=since)}}


def test_an_alert_fires_once_an_episode() -> None:
    """Alertmanager repeats it; only one that started after the last cycle opened counts."""
    assert alerted(**fires(NOW - H)).state is FIRED
    had = alerted(**fires(NOW - H), opened_at=NOW - timedelta(minutes=30))
    assert (had.state, had.sentence) == (QUIET, f"the alert {ALERT} has fired for 1h, and had its cycle")
    assert alerted(**fires(NOW - 2 * H, NOW - H), opened_at=NOW - 1.5 * H).state is FIRED, "another episode"


def test_an_alert_counts_from_when_it_was_heard_of() -> None:
    """`for` is measured by our clock, and the next moment of interest is known."""
    rule = {"name": "Slow", "for": "2h"}
    early = alerted(rule=rule, **fires(NOW - H))
    assert (early.state, early.next_at) == (QUIET, NOW + H)
    assert alerted(NOW + H, rule=rule, **fires(NOW - H)).state is FIRED
    assert alerted(NOW - 2 * H, **fires(NOW)).state is FIRED, "a clock that went back makes no time negative"


@pytest.mark.parametrize(
    ("signal", "state", "words"),
    [
        (None, UNKNOWN, "nobody looked"),
        (AlertSignal(), QUIET, "does not fire, as far as Alertmanager has told"),
        (AlertSignal(said_at=NOW - H), QUIET, "does not fire, as far as Alertmanager has told: it was over 1h ago"),
        (AlertSignal(reason="stale", said_at=NOW - H), UNKNOWN, "fired, but Alertmanager has not repeated it for 1h"),
        (AlertSignal(reason="no token is set"), UNKNOWN, "is unknown: no token is set"),
    ],
)
def test_an_alert_that_is_not_known_to_fire(signal: AlertSignal | None, state: TriggerState, words: str) -> None:
    """What was never heard of is quiet: Alertmanager tells of what fires only. What is stale or cannot be heard is unknown."""
    result = alerted(alerts={ALERT: signal} if signal else {})
    assert (result.state, words in result.sentence) == (state, True), result.sentence


def test_an_alert_is_known_by_its_labels() -> None:
    """The model's name unless something else is asked for."""
    trigger = node(
        any=[{"alert": "Slow"}, {"alert": {"name": "Down", "match": {}}}, {"alert": {"name": "A", "match": {"b": '"'}}}]
    )
    assert alerts_wanted(trigger, "late") == {
        ALERT: {"alertname": "Slow", "model": "late"},
        "Down{}": {"alertname": "Down"},
        'A{b="\\""}': {"alertname": "A", "b": '"'},
    }
