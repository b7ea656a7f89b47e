"""Laws that hold for all trigger trees and all facts."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from policies.schema import TriggerNode, trigger_leaves
from policies.signals import AlertSignal, Basis, Signal
from policies.trigger_rules import alerts_wanted
from policies.trigger_shapes import MetricTrigger
from policies.triggers import TriggerFacts, TriggerState, evaluate, kleene, needs

NODES: TypeAdapter[Any] = TypeAdapter(TriggerNode)
FIRED, QUIET, UNKNOWN = TriggerState.FIRED, TriggerState.QUIET, TriggerState.UNKNOWN
LAW = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine is no counterexample."""
ORDER = {QUIET: 0, UNKNOWN: 1, FIRED: 2}
states = st.sampled_from(list(TriggerState))
moments = st.integers(0, 3600 * 24 * 3650).map(lambda s: datetime(2020, 1, 1, tzinfo=UTC) + timedelta(seconds=s))

leaves = st.one_of(
    st.builds(
        lambda metric, rule, hold: {"performance": {"metric": metric, **rule, "for": hold}},
        st.sampled_from(["precision", "recall"]),
        st.sampled_from(
            [
                {"below": 0.5},
                {"below": 0.7},
                {"drop": 0.1},
                {"below": 0.6, "confidence": 0.9},
                {"drop": 0, "confidence": 0.99, "window": "36500d"},
            ]
        ),
        st.sampled_from(["0s", "2h"]),
    ),
    st.builds(lambda share, n: {"drift": {"share": share, "for": n}}, st.sampled_from([0.3, 0.6]), st.integers(1, 3)),
    st.sampled_from(
        [
            {"metric": {"name": "error_rate", "above": 0.5, "min_count": 2}},
            {"metric": {"name": "error_rate", "above": 0.3, "for": "2h", "min_count": 0}},
            {"metric": {"query": "up", "below": 0.5, "min_count": 0}},
        ]
    ),
    st.just({"drift": {"threshold": 0.2, "only_if": {"estimated_performance": {"drop": 0.1, "metric": "recall"}}}}),
    st.sampled_from([{"schedule": "0 4 * * 1"}, {"schedule": "*/5 * * * *"}, {"staleness": "30d"}, {"manual": None}]),
    st.sampled_from([{"volume": {"labelled_rows": 500}}, {"volume": {"growth": 1.5}}]),
    st.sampled_from([{"alert": "Slow"}, {"alert": {"name": "Slow", "match": {}, "for": "2h"}}]),
    st.sampled_from([{"estimated_performance": {"metric": "recall", "drop": 0.1}}]),
)
trees = st.recursive(
    leaves,
    lambda below: st.one_of(
        st.lists(below, min_size=1, max_size=3).map(lambda c: {"any": c}),
        st.lists(below, min_size=1, max_size=3).map(lambda c: {"all": c}),
        st.lists(below, min_size=2, max_size=3).map(lambda c: {"at_least": 2, "of": c}),
    ),
    max_leaves=6,
).map(NODES.validate_python)


@st.composite
def looks(draw: st.DrawFn, tree: Any) -> TriggerFacts:
    """Any facts for a tree: signals present, absent, not finite, old, from the future; clocks in any order."""
    now = draw(moments)
    ages = st.timedeltas(timedelta(days=-2), timedelta(days=2))
    signals: dict[str, Signal] = {}
    metrics = [leaf.metric.key for leaf in trigger_leaves(tree) if isinstance(leaf, MetricTrigger)]
    for key in [*(query.key for query in needs(tree)), *dict.fromkeys(metrics)]:
        value = draw(st.one_of(st.none(), st.floats(), st.floats(0, 1)))
        if value is not None:
            at = now - draw(ages)
            signals[key] = Signal(
                value=value, observed_at=at, rows=draw(st.integers(0, 5)), window_end=draw(st.sampled_from([at, None])),
                stderr=draw(st.one_of(st.none(), st.just(0.0), st.floats(0), st.just(float("nan")))),
                earlier=draw(st.one_of(st.none(), st.floats(), st.floats(0, 1))), earlier_rows=draw(st.integers(0, 9)),
                changed_at=draw(st.one_of(st.none(), moments)),
                basis=draw(st.sampled_from(Basis)) if key in metrics else None,
                good_until=draw(st.one_of(st.none(), moments)) if key in metrics else None,
            )  # fmt: skip
    alerts = {
        key: AlertSignal(
            firing=tuple(sorted(draw(st.lists(moments, max_size=2)))), said_at=draw(st.one_of(st.none(), moments)),
            reason=draw(st.sampled_from(["", "stale", "no token"])),
        )
        for key in alerts_wanted(tree, "late")
        if draw(st.booleans())
    }  # fmt: skip
    return TriggerFacts(
        now=now,
        since=draw(moments),
        signals=signals,
        alerts=alerts,
        model="late",
        opened_at=draw(st.one_of(st.none(), moments)),
        baselines=draw(st.dictionaries(st.sampled_from(["precision", "recall"]), st.floats())),
        baseline_rows=draw(st.one_of(st.none(), st.integers(0, 5))),
        trained_rows=draw(st.one_of(st.none(), st.integers(0, 500))),
        trained_to=draw(st.one_of(st.none(), moments)),
    )


@LAW
@given(st.lists(states, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_kleene_laws(values: list[TriggerState], random: Any) -> None:
    """any is the maximum and all the minimum of quiet < unknown < fired, in any order, and so De Morgan holds."""
    by_rank = sorted(values, key=ORDER.__getitem__)
    shuffled = list(values)
    random.shuffle(shuffled)
    for needed in range(1, len(values) + 1):
        assert kleene(needed, values) is by_rank[-needed]
        assert kleene(needed, shuffled) is kleene(needed, values)
        negated = [{FIRED: QUIET, QUIET: FIRED, UNKNOWN: UNKNOWN}[v] for v in values]
        opposite = kleene(len(values) - needed + 1, negated)
        assert {FIRED: QUIET, QUIET: FIRED, UNKNOWN: UNKNOWN}[opposite] is kleene(needed, values)


@LAW
@given(st.lists(states, min_size=1, max_size=5), st.data())
def test_unknown_is_the_answer_exactly_if_it_matters(values: list[TriggerState], data: st.DataObject) -> None:
    """Learning what was unknown never changes an answer that was known, and can change one that was not."""
    needed = data.draw(st.integers(1, len(values)))
    best = [FIRED if v is UNKNOWN else v for v in values]
    worst = [QUIET if v is UNKNOWN else v for v in values]
    outcomes = {kleene(needed, best), kleene(needed, worst)}
    assert kleene(needed, values) is (outcomes.pop() if len(outcomes) == 1 else UNKNOWN)


@LAW
@given(st.lists(states, min_size=1, max_size=5), st.data())
def test_kleene_is_monotonous(values: list[TriggerState], data: st.DataObject) -> None:
    """Raising one input (quiet, unknown, fired) never lowers the answer, and asking for more never raises it."""
    needed, index = data.draw(st.integers(1, len(values))), data.draw(st.integers(0, len(values) - 1))
    higher = data.draw(states.filter(lambda state: ORDER[state] >= ORDER[values[index]]))
    raised = [*values[:index], higher, *values[index + 1 :]]
    assert ORDER[kleene(needed, raised)] >= ORDER[kleene(needed, values)]
    if needed < len(values):
        assert ORDER[kleene(needed + 1, values)] <= ORDER[kleene(needed, values)]


@LAW
@given(st.data())
def test_any_facts_are_looked_at(data: st.DataObject) -> None:
    """No facts make evaluation raise; memory survives JSON; next_at is in the future; ids are unique."""
    tree = data.draw(trees)
    memory: Any = {}
    for _ in range(3):
        facts = data.draw(looks(tree))
        result = evaluate(tree, replace(facts, memory=memory))
        assert evaluate(tree, replace(facts, memory=memory)) == result
        assert result.next_at is None or result.next_at > facts.now
        assert len({leaf.id for leaf in result.leaves}) == len(result.leaves)
        assert set(result.memory) <= {leaf.id for leaf in result.leaves}
        assert result.sentence
        memory = json.loads(json.dumps(result.memory, allow_nan=False))
        assert memory == result.memory


@LAW
@given(st.data())
def test_without_signals_only_time_fires(data: st.DataObject) -> None:
    """A leaf that needs a signal never fires without one, whatever it remembers."""
    tree = data.draw(trees)
    first = evaluate(tree, data.draw(looks(tree)))
    result = evaluate(tree, replace(data.draw(looks(tree)), signals={}, memory=first.memory))
    for leaf in result.leaves:
        if leaf.id.endswith(("performance", "drift", "volume")):
            assert leaf.state is UNKNOWN
            assert result.memory.get(leaf.id) == first.memory.get(leaf.id)


@LAW
@given(st.data())
def test_asking_to_be_surer_never_fires_more(data: st.DataObject) -> None:
    """Whatever the facts: the higher the confidence, the less a rule fires; and a limit with one fires only if it does without. (A drop
    with a confidence is looked for from the version's own earlier score too.)"""
    bare = {"metric": "recall", **data.draw(st.sampled_from([{"below": 0.5}, {"drop": 0.1}]))}
    rules = [bare, {**bare, "confidence": 0.6}, {**bare, "confidence": 0.999}]
    trees = [NODES.validate_python({"performance": rule}) for rule in rules]
    facts = data.draw(looks(trees[0]))
    loose, sure, surest = (evaluate(tree, facts).state for tree in trees)
    assert (sure is FIRED) >= (surest is FIRED)
    assert (sure is QUIET) <= (surest is QUIET)
    if "below" in bare:
        assert (loose is FIRED) >= (sure is FIRED)
        assert (loose is QUIET) <= (sure is QUIET)


@LAW
@given(st.data())
def test_the_date_of_a_change_is_one_that_was_seen(data: st.DataObject) -> None:
    """It is the oldest of those that the leaves tell, if one that fires tells any; and only those tell one whose signal may be used."""
    tree = data.draw(trees)
    facts = data.draw(looks(tree))
    result = evaluate(tree, facts)
    told = [(leaf.changed_at, leaf.state) for leaf in result.leaves if leaf.changed_at is not None]
    fired = any(state is FIRED for _, state in told)
    assert result.changed_at == (min(moment for moment, _ in told) if fired else None)
    assert evaluate(tree, replace(facts, signals={})).changed_at is None
    for leaf in result.leaves:
        assert leaf.changed_at is None or leaf.id.endswith(".performance") or leaf.id == "performance"


@LAW
@given(st.data(), st.timedeltas(timedelta(0), timedelta(days=400)))
def test_waiting_never_unfires_time(data: st.DataObject, wait: timedelta) -> None:
    """A schedule or staleness that has fired keeps firing until a cycle closes."""
    tree = NODES.validate_python({"any": [{"schedule": "0 4 * * 1"}, {"staleness": "30d"}]})
    facts = data.draw(looks(tree))
    before, after = evaluate(tree, facts), evaluate(tree, replace(facts, now=facts.now + wait))
    for early, late in zip(before.leaves, after.leaves, strict=True):
        assert ORDER[late.state] >= ORDER[early.state]


@LAW
@given(st.data())
def test_next_at_is_when_time_fires(data: st.DataObject) -> None:
    """At `next_at` the time-based leaf that named it fires, and just before it none does that had not fired."""
    tree = NODES.validate_python({"any": [{"schedule": "0 4 * * 1"}, {"staleness": "30d"}]})
    facts = data.draw(looks(tree))
    result = evaluate(tree, facts)
    if result.next_at is None or result.state is FIRED:
        return
    assert evaluate(tree, replace(facts, now=result.next_at)).state is FIRED
    just_before = max(result.next_at - timedelta(microseconds=1), facts.now)
    assert evaluate(tree, replace(facts, now=just_before)).state is QUIET


@LAW
@given(st.data(), st.timedeltas(timedelta(minutes=2), timedelta(days=900)))
def test_clock_going_back_never_fires(data: st.DataObject, back: timedelta) -> None:
    """What did not fire before the clock went back by more than the allowed skew does not fire after it."""
    tree = data.draw(trees)
    facts = data.draw(looks(tree))
    signals = {key: replace(signal, observed_at=facts.now) for key, signal in facts.signals.items()}
    facts = replace(facts, signals=signals)
    first = evaluate(tree, facts)
    again = evaluate(tree, replace(facts, now=facts.now - back, memory=first.memory))
    for before, after in zip(first.leaves, again.leaves, strict=True):
        if before.state is not FIRED:
            assert after.state is not FIRED
