"""The job that looks at one model: answers the queries of its triggers, and compares its challenger if one has traffic.

Entry `evaluators.observe:run`; called every few seconds, so it reads only the part of the log that a query needs and imports Evidently
only when a new drift window has ended. What cannot be measured is unknown, with the reason; a broken sensor is never an exception.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from evaluators.answers import AnswersError, ModelFolder
from evaluators.calibration import calibration
from evaluators.comparison import Request, compare_live
from evaluators.drift.measuring import drift
from evaluators.estimate.signal import estimated_performance
from evaluators.feed_quality import fault_json, feed_faults
from evaluators.live import label_coverage, label_lag, performance, volume
from evaluators.scene import Query, Scene
from pipelines.data.prediction_log import AnswerLog, FolderLog
from pipelines.jobs.port import JobContext
from policies.schema import (
    CalibrationTrigger,
    EstimatedPerformanceTrigger,
    ModelPolicy,
    PerformanceTrigger,
    Spec,
    trigger_leaves,
)
from policies.signals import Comparison, Signal, SignalKind
from policies.trigger_rules import TriggerFacts, TriggerState, filters_of, look_at

_DEFAULT_LAG_WINDOW = timedelta(days=1)


def run(inputs: Mapping[str, Any], context: JobContext, log: AnswerLog | None = None) -> dict[str, Any]:
    """Look once, at the model's own log or at `log`.

    The result is `{"signals": {key: signal}, "comparison": …|null, "evidence": {key: …}, "faults": […],
    "problems": […]}`.

    `evidence` holds, for drift, which features moved and by what score; `faults`: each a
    `policies.signals.Fault`, or null if they could not be looked for; `problems` names files of the log that could not be read.
    """
    queries = [Query.from_json(item) for item in inputs["queries"]]
    now = datetime.fromisoformat(inputs["now"])
    champion = inputs.get("champion")
    if champion is None:
        return _blind(queries, now, "no version has been promoted yet")
    try:
        folder = ModelFolder.read(Path(champion["model_dir"]))
    except AnswersError as error:
        return _blind(queries, now, f"champion v{champion['number']}: {error}")
    trained_to, made_at, home = champion.get("trained_to"), champion.get("created_at"), Path(inputs["home"])
    scene = Scene(
        home=home,
        model=inputs["model"],
        log=log or FolderLog(home / "log" / inputs["model"]),
        now=now,
        spec=ModelPolicy.model_validate(inputs["policy"]).spec,
        champion=int(champion["number"]),
        folder=folder,
        trained_to=None if trained_to is None else datetime.fromisoformat(trained_to),
        champion_scores=champion.get("scores") or {},
        champion_promised=champion.get("promised"),
        champion_usual_errors=champion.get("usual_errors"),
        champion_since=None if made_at is None else datetime.fromisoformat(made_at),
        lag_window=max((q.window for q in queries if q.window), default=_DEFAULT_LAG_WINDOW),
    )
    context.report(text=f"measuring {len(queries)} signals of v{scene.champion}")
    measured = {query.key: _measure(query, scene) for query in queries if query.kind is not SignalKind.DRIFT}
    against = speaks_against(
        scene.spec, {key: s for key, (s, _) in measured.items()}, champion.get("scores") or {}, now
    )
    calm = replace(scene, quiet=against is None)
    measured |= {query.key: _measure(query, calm) for query in queries if query.kind is SignalKind.DRIFT}
    asked = inputs.get("comparison")
    comparison = None if asked is None else compare_live(Request.from_json(asked), scene)
    return {
        "signals": {key: _signal_json(signal) for key, (signal, _) in measured.items()},
        "comparison": None if comparison is None else _comparison_json(comparison),
        "evidence": {key: dict(evidence) for key, (_, evidence) in measured.items() if evidence},
        "faults": _faults(scene),
        "problems": sorted(set(scene.problems)),
    }


def _faults(scene: Scene) -> list[dict[str, Any]]:
    """What is wrong with what feeds the model."""
    stalled = [scene.stalled] if scene.stalled is not None else []
    return [fault_json(fault) for fault in [*stalled, *feed_faults(scene)]]


def speaks_against(spec: Spec, signals: Mapping[str, Signal], scores: Mapping[str, float], now: datetime) -> str | None:
    """The first sentence of a trigger on a score, measured or estimated, or on calibration, that finds it bad at this moment; None without.

    What a trigger waits for (`for: 2h`) is not waited for here: a beginning that may be bad calibrates nothing.
    """
    facts = TriggerFacts(
        now=now,
        since=now,
        signals=signals,
        baselines=scores,
        objective=spec.objective.metric,
        max_age=timedelta(days=1),
    )
    for leaf in (found for one in trigger_leaves(spec.triggers) for found in (one, *filters_of(one))):
        if isinstance(leaf, PerformanceTrigger):
            rule = leaf.performance.model_copy(update={"for_": timedelta(0)})
            look = look_at(PerformanceTrigger(performance=rule), facts, {})
        elif isinstance(leaf, EstimatedPerformanceTrigger | CalibrationTrigger):
            look = look_at(leaf, facts, {})
        else:
            continue
        if look.state is TriggerState.FIRED:
            return look.sentence
    return None


def _measure(query: Query, scene: Scene) -> tuple[Signal, Mapping[str, Any]]:
    match query.kind:
        case SignalKind.PERFORMANCE:
            return performance(query, scene), {}
        case SignalKind.CALIBRATION:
            return calibration(query, scene), {}
        case SignalKind.DRIFT:
            return drift(query, scene)
        case SignalKind.VOLUME:
            return volume(scene), {}
        case SignalKind.ESTIMATED_PERFORMANCE:
            return estimated_performance(query, scene), {}
        case SignalKind.LABEL_COVERAGE:
            return label_coverage(query, scene), {}
        case SignalKind.LABEL_LAG:
            return label_lag(scene), {}


def _blind(queries: Sequence[Query], now: datetime, reason: str) -> dict[str, Any]:
    """Everything unknown."""
    signals = {query.key: _signal_json(Signal.unknown(reason, observed_at=now)) for query in queries}
    return {"signals": signals, "comparison": None, "evidence": {}, "faults": None, "problems": []}


def _signal_json(signal: Signal) -> dict[str, Any]:
    return {
        **asdict(signal),
        "observed_at": signal.observed_at.isoformat(),
        "window_end": None if signal.window_end is None else signal.window_end.isoformat(),
        "changed_at": None if signal.changed_at is None else signal.changed_at.isoformat(),
    }


def _comparison_json(comparison: Comparison) -> dict[str, Any]:
    return {**asdict(comparison), "observed_at": comparison.observed_at.isoformat()}
