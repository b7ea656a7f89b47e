"""What the shapes of a policy are built from: their base class and the types of their fields.

Numbers, texts and truth values are taken as YAML read them, never converted: `trials: "40"` is a mistake to point at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from policies.metrics import METRICS, Task

NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
NAME_RULE = "must be a DNS label: at most 63 of a-z, 0-9 and -, neither starting nor ending with -"


class Shape(BaseModel):
    """Base of every shape: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Flag = Annotated[bool, Strict()]
Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
PositiveInt = Annotated[Whole, Field(ge=1)]
Share = Annotated[Number, Field(gt=0, le=1)]
Confidence = Annotated[Number, Field(gt=0.5, lt=1)]
Scalar: TypeAlias = str | Whole | Number | Flag
Parameters: TypeAlias = Mapping[str, Scalar | None]


def metric_names(task: Task | None) -> list[str]:
    """The metrics for a task, sorted; all of them if the task is not known."""
    return sorted(m.name for m in METRICS.values() if task is None or task in m.tasks)


def _known_metric(name: str, info: ValidationInfo) -> str:
    """Checked against the task when the reader gives one as context, so that each error has its own place."""
    task: Task | None = (info.context or {}).get("task")
    choices = metric_names(task)
    if name not in choices:
        of_task = f" for {task.value}" if task else ""
        raise PydanticCustomError(
            "choice",
            "must be a metric{of_task}: {listed}",
            {"of_task": of_task, "listed": ", ".join(choices), "choices": choices},
        )
    return name


MetricName = Annotated[
    str, AfterValidator(_known_metric), WithJsonSchema({"type": "string", "enum": metric_names(None)})
]


def check_direction(metric: str, key: str, *, higher_is_better: bool, use: str) -> None:
    """Raises ValueError if `key` looks for the wrong end of the metric, such as `mae: {below: 3}` for bad news."""
    if METRICS[metric].higher_is_better is not higher_is_better:
        better = "higher" if METRICS[metric].higher_is_better else "lower"
        raise ValueError(f"{metric} is better when {better}: use {use} instead of {key}")


def one_key(value: Any, keys: tuple[str, ...]) -> str | None:
    """Tag of the shape that is meant, by the first of `keys` that a mapping (or a shape) has.

    Tags stand in angle brackets, so that nobody mistakes them for the keys of a file in the places of errors.
    """
    present = value if isinstance(value, Mapping) else getattr(type(value), "model_fields", {})
    return next((f"<{key}>" for key in keys if key in present), None)


def one_or_many(value: Any) -> str:
    """Tag of a value that may also be written as a list."""
    return "<many>" if isinstance(value, list | tuple) else "<one>"
