"""What a notice says beside its sentence: the numbers of the model and its cycle, for channels that can show them. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from controller.state import Cycle, ModelState, Phase
from policies.schema import ModelPolicy

GATES_MAX = 10
HISTORY_MAX = 16
"""Versions whose scores are shown."""
TEXT_MAX = 500
"""Characters of a sentence within the facts; the notice's own text is whole."""
COMPARED = ("challenger_rows", "champion_rows", "challenger_score", "champion_score", "difference", "realised")
"""Keys of an event's data that compare challenger and champion on live answers."""


def life_of(state: ModelState) -> str:
    """Which of the models of this name: the name of a deleted one may be given again."""
    return f"{state.created_at:%Y%m%dT%H%M%S%f}"


def facts_of(
    state: ModelState, closed: Cycle | None, policy: ModelPolicy, actor: str, event: Mapping[str, Any]
) -> dict[str, Any]:
    """JSON. `event`: the data of the event that the notice tells of. What is not known is left out."""
    cycle = state.cycle or closed
    facts = {
        "subject": f"{state.name}/{life_of(state)}/{cycle.number if cycle else 0}",
        "actor": actor,
        "champion": state.champion,
        "previous": state.previous,
        "metric": policy.spec.objective.metric,
        "history": _history(state, policy.spec.objective.metric),
        "traffic": _traffic(state),
        "comparison": {key: event[key] for key in COMPARED if event.get(key) is not None},
        "labels": dict(policy.metadata.labels),
        "to": [notice.model_dump(mode="json") for notice in policy.spec.notify],
        **(_cycle_facts(cycle, policy) if cycle is not None else {}),
    }
    return {key: value for key, value in facts.items() if value not in (None, "", [], {})}


def _cycle_facts(cycle: Cycle, policy: ModelPolicy) -> dict[str, Any]:
    metric = policy.spec.objective.metric
    judged = cycle.outputs.get(Phase.JUDGING.value, {})
    return {
        "cycle": cycle.number,
        "phase": cycle.phase.value,
        "outcome": cycle.outcome.value if cycle.outcome else None,
        "cause": cycle.cause[:TEXT_MAX],
        "opened_at": cycle.opened_at.isoformat(),
        "challenger": cycle.challenger,
        "step": _step(cycle, policy),
        "score": _finite((judged.get("scores") or {}).get(metric)),
        "champion_score": _finite((judged.get("champion_scores") or {}).get(metric)),
        "judged_rows": judged.get("rows"),
        "gates": [
            {"gate": str(g.get("gate", ""))[:100], "verdict": str(g.get("verdict", "")), "sentence": str(g.get("sentence", ""))[:TEXT_MAX]}
            for g in (judged.get("gates") or [])[:GATES_MAX]
            if isinstance(g, Mapping)
        ],
    }  # fmt: skip


def _step(cycle: Cycle, policy: ModelPolicy) -> dict[str, Any] | None:
    steps = policy.spec.rollout.steps
    if cycle.phase is not Phase.ROLLING_OUT or not steps:
        return None
    index = min(cycle.step, len(steps) - 1)
    return {"number": index + 1, "of": len(steps), "label": steps[index].label}


def _traffic(state: ModelState) -> dict[str, Any]:
    if state.plan is None:
        return {}
    weights = {f"v{number}": weight for number, weight in sorted(state.plan.weights.items()) if weight}
    return {"weights": weights, **({"shadow": f"v{state.plan.shadow}"} if state.plan.shadow is not None else {})}


def _history(state: ModelState, metric: str) -> list[list[float]]:
    """[number, score] of the newest versions, oldest first."""
    scored = [(n, _finite(v.scores.get(metric))) for n, v in sorted(state.versions.items())]
    return [[n, score] for n, score in scored if score is not None][-HISTORY_MAX:]


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
