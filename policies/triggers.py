"""When a policy fires: a pure function from measured facts to a state and one sentence.

Every trigger is in one of three states. *Fired* and *quiet* need evidence; whatever is missing, stale, not finite or
measured in the future is *unknown*, and unknown never fires (invariant 4). `any`, `all` and `at_least` combine the three
by Kleene's strong logic: unknown is the answer exactly if the missing facts could still change it.

Triggers are level-based. A schedule fires as long as one of its firings lies in `(since, now]`, so that a daemon which
was down catches up, once for all that it missed. What must be remembered between looks (since when a condition holds,
how many windows have drifted) is JSON that the caller keeps. It belongs to one rule and to one `since`: editing the rule
or closing a cycle starts the count again. An unknown look pauses the count: it keeps the moment since when the condition
holds, neither resets nor advances the number of windows, and does not fire. A clock that went back restarts the count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from policies.metric_rules import CLOCK_SKEW
from policies.problems import Path, spell_path
from policies.signals import SignalQuery
from policies.trigger_rules import TriggerFacts, TriggerState, look_at, queries_of
from policies.trigger_shapes import AllOf, AnyOf, AtLeast, TriggerNode, children, leaf_kind, trigger_leaves

__all__ = ["CLOCK_SKEW", "LeafResult", "TriggerFacts", "TriggerResult", "TriggerState", "evaluate", "kleene", "needs"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LeafResult:
    id: str
    """Place and kind, such as `any[0].performance`."""
    state: TriggerState
    sentence: str
    next_at: datetime | None = None
    """Earliest moment after now at which time alone may fire it."""
    changed_at: datetime | None = None
    """Since when the score is likely to be worse than before; None where nothing stands out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TriggerResult:
    state: TriggerState
    sentence: str
    """Why, with numbers: of the leaves that decided it."""
    memory: Mapping[str, Mapping[str, Any]]
    """JSON to keep for the next look, by trigger id."""
    leaves: tuple[LeafResult, ...]
    """In the order of the policy."""
    next_at: datetime | None
    """Earliest `next_at` of the leaves."""

    @property
    def changed_at(self) -> datetime | None:
        """Since when it has been bad, as far back as any leaf has seen: a short window may fire on what only a long one can date."""
        if not any(leaf.state is TriggerState.FIRED and leaf.changed_at for leaf in self.leaves):
            return None
        return min(leaf.changed_at for leaf in self.leaves if leaf.changed_at)


def needs(node: TriggerNode) -> tuple[SignalQuery, ...]:
    """What must be measured to evaluate a trigger: each query once, in the order of the policy."""
    queries = [query for leaf in trigger_leaves(node) for query in queries_of(leaf)]
    return tuple({query.key: query for query in queries}.values())


def evaluate(node: TriggerNode, facts: TriggerFacts) -> TriggerResult:
    """Look at a trigger once. Odd facts and odd memory never raise: what cannot be used is unknown or forgotten."""
    branch = _evaluate(node, (), facts)
    return TriggerResult(
        state=branch.state,
        sentence=branch.sentence,
        memory=branch.memory,
        leaves=branch.leaves,
        next_at=min((leaf.next_at for leaf in branch.leaves if leaf.next_at is not None), default=None),
    )


def kleene(needed: int, states: Sequence[TriggerState]) -> TriggerState:
    """Whether at least `needed` of the states are fired, in Kleene's strong logic; `any` is 1 of n, `all` is n of n.

    >>> kleene(2, [TriggerState.FIRED, TriggerState.UNKNOWN, TriggerState.QUIET]).value
    'unknown'
    """
    fired = sum(state is TriggerState.FIRED for state in states)
    unknown = sum(state is TriggerState.UNKNOWN for state in states)
    if fired >= needed:
        return TriggerState.FIRED
    return TriggerState.UNKNOWN if fired + unknown >= needed else TriggerState.QUIET


@dataclass(frozen=True, kw_only=True, slots=True)
class _Branch:
    state: TriggerState
    sentence: str
    leaves: tuple[LeafResult, ...]
    memory: Mapping[str, Mapping[str, Any]]


def _evaluate(node: TriggerNode, place: Path, facts: TriggerFacts) -> _Branch:
    below = [_evaluate(child, (*place, *steps), facts) for steps, child in children(node)]
    if not below:
        return _evaluate_leaf(node, spell_path((*place, leaf_kind(node))), facts)
    state = kleene(_needed(node), [branch.state for branch in below])
    return _Branch(
        state=state,
        sentence=_joined(node, state, below),
        leaves=tuple(leaf for branch in below for leaf in branch.leaves),
        memory={key: value for branch in below for key, value in branch.memory.items()},
    )


def _evaluate_leaf(leaf: TriggerNode, leaf_id: str, facts: TriggerFacts) -> _Branch:
    memory = facts.memory.get(leaf_id)
    look = look_at(leaf, facts, memory if isinstance(memory, Mapping) else {})
    next_at = look.next_at if look.next_at is not None and look.next_at > facts.now else None
    result = LeafResult(
        id=leaf_id, state=look.state, sentence=look.sentence, next_at=next_at, changed_at=look.changed_at
    )
    kept = {leaf_id: look.memory} if look.memory else {}
    return _Branch(state=look.state, sentence=look.sentence, leaves=(result,), memory=kept)


def _needed(node: TriggerNode) -> int:
    match node:
        case AllOf():
            return len(node.all)
        case AtLeast():
            return node.at_least
        case _:
            assert isinstance(node, AnyOf), node
            return 1


def _joined(node: TriggerNode, state: TriggerState, below: Sequence[_Branch]) -> str:
    """The sentences of the branches that are in the state of the whole, since these decided it."""
    text = "; ".join(dict.fromkeys(branch.sentence for branch in below if branch.state is state))
    if not isinstance(node, AtLeast):
        return text
    fired = sum(branch.state is TriggerState.FIRED for branch in below)
    return f"{fired} of {len(below)} triggers fire, {node.at_least} needed: {text}"
