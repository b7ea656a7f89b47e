"""What a target remembers of a model: the newest plan it accepted, the traffic in force, and the fence against older plans."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from deployers.target import StalePlanError, TrafficPlan
from pipelines.jobs.files import read_json, write_json_atomic

FORMAT = 1
log = structlog.get_logger("target")


@dataclass(frozen=True, kw_only=True, slots=True)
class InForce:
    """The traffic that the router was last told, and which images it needs."""

    generation: int = 0
    """Of the newest plan that was completely in force; 0 if none."""
    weights: Mapping[int, float] = field(default_factory=dict)
    shadow: int | None = None
    digests: Mapping[int, str] = field(default_factory=dict)
    """Of the versions that carry it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRecord:
    plan: TrafficPlan | None = None
    in_force: InForce = InForce()
    removed_epoch: int = 0
    """Epoch of the controller that removed the model last; older ones may not bring it back."""
    told: Mapping[str, Any] | None = None
    """The last table that the router accepted."""
    told_to: str = ""
    """Which router process that was."""

    def accept(self, plan: TrafficPlan) -> ModelRecord:
        """The record with this plan. Raises StalePlanError if it is older than what is followed (invariant 6)."""
        fence = (self.plan.epoch, self.plan.generation) if self.plan else (self.removed_epoch, 0)
        if (plan.epoch, plan.generation) < fence:
            raise StalePlanError(
                f"{plan.model}: plan {plan.epoch}/{plan.generation} (epoch/generation) is older than {fence[0]}/{fence[1]}"
            )
        return replace(self, plan=replace(plan, weights=dict(plan.weights), digests=dict(plan.digests)))

    def remove(self, model: str, epoch: int) -> ModelRecord:
        """The record of a removed model. Raises StalePlanError if a newer controller leads."""
        newest = self.plan.epoch if self.plan else self.removed_epoch
        if epoch < newest:
            raise StalePlanError(f"{model}: epoch {epoch} is older than {newest}")
        return ModelRecord(removed_epoch=epoch)


def load_record(path: Path) -> ModelRecord:
    """The saved record; an empty one if there is none or if it is damaged.

    A damaged one is set aside: the controller applies its plan again, and what runs is found in the slots."""
    try:
        content = read_json(path)
        return ModelRecord() if content is None else _from_json(content)
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        aside = path.with_name(f"{path.name}.corrupt-{time.time_ns()}")
        with contextlib.suppress(FileNotFoundError):  # somebody else set it aside first
            os.replace(path, aside)
        log.error("record.set_aside", file=str(path), aside=str(aside), error=str(error))
        return ModelRecord()


def save_record(path: Path, record: ModelRecord) -> None:
    """Raises OSError; the old record then stays."""
    write_json_atomic(path, {"format": FORMAT, **asdict(record)})


def _from_json(content: Any) -> ModelRecord:
    if content["format"] != FORMAT:
        raise ValueError(f"format is {content['format']!r}, this release reads {FORMAT}")
    plan, in_force = content["plan"], content["in_force"]
    return ModelRecord(
        plan=None if plan is None else TrafficPlan(**_by_version(plan)),
        in_force=InForce(**_by_version(in_force)),
        removed_epoch=content["removed_epoch"],
        told=content["told"],
        told_to=content["told_to"],
    )


def _by_version(value: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's keys are strings; versions are numbers."""
    mappings = {name: {int(v): x for v, x in value[name].items()} for name in ("weights", "digests")}
    return {**value, **mappings}
