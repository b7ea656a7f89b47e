"""The job that an open cycle needs now, as a pure function of the persisted state.

Asking for the same job again is harmless (jobs are idempotent by name), so the controller simply asks on every look.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controller.budget import compute_left_s
from controller.cycle import JOB_PHASES, final_model
from controller.state import Cycle, ModelState, Phase, Version
from pipelines.jobs.port import JobSpec, Limits
from policies.schema import ModelPolicy

PREPARE_TIMEOUT_S = 3600.0
JUDGE_TIMEOUT_S = 3600.0
PACKAGE_TIMEOUT_S = 1800.0
OBSERVE_TIMEOUT_S = 300.0
TUNE_GRACE_S = 120.0
"""Beyond the study's own time budget, for start-up and the trial under way."""

ENTRIES: Mapping[Phase, str] = {
    Phase.PREPARING: "pipelines.prepare:run",
    Phase.TUNING: "tuners.tune:run",
    Phase.TRAINING: "tuners.train:run",
    Phase.JUDGING: "evaluators.judge:run",
    Phase.PACKAGING: "deployers.package:run",
}


def wanted_job(
    state: ModelState, policy: ModelPolicy, home: Path, packaging: Mapping[str, Any] | None = None,
    studies: Mapping[str, Any] | None = None,
) -> JobSpec | None:  # fmt: skip
    """The job that must run or have run for the open cycle's phase; None when the phase needs none.

    `packaging`: what the daemon's settings say about images, as `deployers.package` takes it. `studies`: where searches are kept if not in
    their working folders, as `tuners.shared_study` takes it."""
    cycle = state.cycle
    if cycle is None or cycle.job_id is None or cycle.phase not in JOB_PHASES or state.paused or state.pinned:
        return None
    inputs = {"home": str(home), "model": state.name, **_inputs(state, policy, cycle, home, packaging or {})}
    if studies and cycle.phase is Phase.TUNING:
        inputs["study"] = {**studies, "model": state.name, "cycle": cycle.number}
    return JobSpec(
        job_id=cycle.job_id,
        entry=ENTRIES[cycle.phase],
        inputs=inputs,
        limits=Limits(timeout_s=_timeout_s(state, policy, cycle), memory_mb=_memory_mb(policy, cycle.phase)),
        workdir=str(home / "work" / state.name / f"c{cycle.number}" / cycle.phase.value),
    )


def _timeout_s(state: ModelState, policy: ModelPolicy, cycle: Cycle) -> float:
    spec = policy.spec
    match cycle.phase:
        case Phase.TUNING:
            limit = spec.tune.timeout.total_seconds() + TUNE_GRACE_S
        case Phase.TRAINING:
            limit = spec.train.timeout.total_seconds()
        case Phase.PREPARING:
            limit = PREPARE_TIMEOUT_S
        case Phase.JUDGING:
            limit = JUDGE_TIMEOUT_S
        case _:
            limit = PACKAGE_TIMEOUT_S
    return min(limit, max(compute_left_s(state, policy), 1.0))


def _memory_mb(policy: ModelPolicy, phase: Phase) -> int:
    return policy.spec.tune.memory_mb if phase is Phase.TUNING else policy.spec.train.memory_mb


def _inputs(
    state: ModelState, policy: ModelPolicy, cycle: Cycle, home: Path, packaging: Mapping[str, Any]
) -> dict[str, Any]:
    champion = state.versions[state.champion] if state.champion is not None else None
    document = {"policy": json.loads(state.policy), "policy_dir": state.policy_dir}
    if (code := _pinned_code(state)) is not None:
        document["code"] = code
    outputs = cycle.outputs
    changed = {"changed_at": cycle.changed_at.isoformat() if cycle.changed_at else None}
    match cycle.phase:
        case Phase.PREPARING:
            assert cycle.cutoff is not None
            seen_to = champion.trained_to.isoformat() if champion is not None and champion.trained_to else None
            return {**document, **changed, "now": cycle.cutoff.isoformat(), "seen_to": seen_to}
        case Phase.TUNING:
            return {
                **document,
                **changed,
                "prepared": outputs[Phase.PREPARING],
                "champion": _parameters(champion),
                "seed": policy.spec.train.seed + cycle.number,
            }
        case Phase.TRAINING:
            return {**document, **changed, "prepared": outputs[Phase.PREPARING], "tuned": outputs[Phase.TUNING]}
        case Phase.JUDGING:
            return {
                **document,
                "prepared": outputs[Phase.PREPARING],
                "cycle": cycle.number,
                "refused": [one.cycle for one in state.refused],
                "earlier": list(state.hold_out_uses),
                "model_dir": outputs[Phase.TRAINING]["model_dir"],
                "refit_dir": (outputs[Phase.TRAINING].get("refit") or {}).get("model_dir"),
                "champion": _rival(champion, home),
                "seed": policy.spec.train.seed + cycle.number,
            }
        case _:
            return {
                "number": cycle.challenger,
                "model_dir": final_model(outputs)["model_dir"],
                "estimator": outputs[Phase.JUDGING].get("estimator"),
                "annotations": image_annotations(state, cycle),
                "base": policy.spec.deploy.base_image or packaging.get("base"),
                "requirements": _requirements(state, policy),
                "placement": policy.spec.model.placement,
                "delivery": {key: value for key, value in packaging.items() if key != "base"},
            }


def _requirements(state: ModelState, policy: ModelPolicy) -> dict[str, str] | None:
    """The owner's lock file: its folder, and its path in there."""
    path = policy.spec.deploy.requirements
    return None if path is None else {"folder": state.policy_dir, "path": path}


def _pinned_code(state: ModelState) -> dict[str, str] | None:
    """The commit and tree that the owner's code must be of, if it is followed from Git."""
    origin = state.origin
    if origin is None or not origin.code or origin.forced:
        return None
    return {"commit": origin.pinned, "tree": origin.code}


def model_dir(home: Path, version: Version) -> Path:
    """Where the model folder of a packaged version lies unpacked."""
    return home / "unpacked" / version.digest.removeprefix("sha256:") / "model"


def _rival(champion: Version | None, home: Path) -> dict[str, Any] | None:
    """The champion, as the judge needs it."""
    if champion is None:
        return None
    trained_to = champion.trained_to.isoformat() if champion.trained_to else None
    return {"number": champion.number, "model_dir": str(model_dir(home, champion)), "trained_to": trained_to}


def _parameters(champion: Version | None) -> dict[str, Any] | None:
    if champion is None:
        return None
    kept = {key: champion.lineage.get(key) for key in ("component", "parameters", "window_s")}
    return {"number": champion.number, **kept}


def image_annotations(state: ModelState, cycle: Cycle) -> dict[str, str]:
    """The lineage that goes into the image. No clock in it but the data's: the same inputs must give the same digest."""
    prepared, trained = cycle.outputs[Phase.PREPARING], final_model(cycle.outputs)
    judged = cycle.outputs[Phase.JUDGING]
    code = trained.get("code") or {}
    followed = state.origin if state.origin is not None and not state.origin.forced else None
    return {
        "dev.ratchet.cycle": str(cycle.number),
        "dev.ratchet.cause": cycle.cause,
        "dev.ratchet.data": str(prepared["fingerprint"]),
        "dev.ratchet.trained-to": str(trained.get("trained_to") or ""),
        "dev.ratchet.component": str(trained["component"]),
        "dev.ratchet.parameters": json.dumps(trained["parameters"], sort_keys=True),
        "dev.ratchet.scores": json.dumps(judged.get("scores") or {}, sort_keys=True),
        "dev.ratchet.verdict": str(judged["sentence"]),
        "dev.ratchet.policy": state.policy_digest,
        **(
            {"dev.ratchet.policy-commit": followed.revision, "dev.ratchet.policy-file": followed.file}
            if followed
            else {}
        ),
        **({"org.opencontainers.image.source": followed.where.split(" ")[0]} if followed else {}),
        "org.opencontainers.image.revision": str(code.get("commit") or code.get("digest") or ""),
    }
