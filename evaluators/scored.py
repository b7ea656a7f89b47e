"""What gates look at, and what they say: the words that all of them share. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from evaluators.baselines import Baseline
from evaluators.pairs import Difference, compare
from evaluators.resampling import DRAWS
from evaluators.reuse import Allowance
from evaluators.wording import count
from pipelines.scores import row_values, score
from policies.metrics import METRICS, Task

Floats: TypeAlias = NDArray[np.float64]


class Verdict(StrEnum):
    """From worst to best: the verdict on several gates is the worst of theirs."""

    ERROR = "error"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    PASS = "pass"  # noqa: S105 - no password

    @property
    def word(self) -> str:
        """As sentences end."""
        return {"pass": "passed", "fail": "failed"}.get(self.value, self.value)


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """error > fail > inconclusive > pass; of none: pass.

    >>> worst([Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.PASS]).value
    'inconclusive'
    """
    return next((v for v in Verdict if v in verdicts), Verdict.PASS)


@dataclass(frozen=True, kw_only=True, slots=True)
class GateResult:
    """What one gate said."""

    gate: str
    verdict: Verdict
    sentence: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """JSON, finite: everything that decided it."""

    @property
    def compared(self) -> bool:
        """Whether rows were spent on a paired comparison."""
        return "decided_at" in self.numbers

    def as_json(self) -> dict[str, Any]:
        return {
            "gate": self.gate,
            "verdict": self.verdict.value,
            "sentence": self.sentence,
            "numbers": dict(self.numbers),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """Matured hold-out rows with the answers of one model or two."""

    task: Task
    labels: Floats
    """(n,): positions in `classes` (below 0: none of them), or values for a regression."""
    classes: int | None
    """How many; None for a regression. In binary tasks class 1 is positive."""
    threshold: float
    challenger: Floats
    champion: Floats | None = None
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Column → (n,) values, for slices."""

    @property
    def rows(self) -> int:
        return len(self.labels)

    def where(self, selected: NDArray[np.int64]) -> Scored:
        """The same of some rows (without `columns`)."""
        return Scored(
            task=self.task,
            labels=self.labels[selected],
            classes=self.classes,
            threshold=self.threshold,
            challenger=self.challenger[selected],
            champion=None if self.champion is None else self.champion[selected],
        )

    def score(self, metric: str, answers: Floats) -> float:
        return score(metric, self.labels, answers, classes=self._codes, threshold=self.threshold)

    def row_values(self, metric: str, answers: Floats) -> Floats:
        """(n,): one number a row, for a metric that is a mean of them."""
        return row_values(metric, self.labels, answers, classes=self._codes, threshold=self.threshold)

    def against(self, rival: Floats) -> Scored:
        """The same with other answers in the champion's place."""
        return replace(self, champion=rival)

    def difference(self, metric: str, *, seed: int, draws: int = DRAWS) -> Difference:
        """The champion must be there, both scores finite, and rows >= 2."""
        assert self.champion is not None
        return compare(
            metric,
            self.labels,
            self.champion,
            self.challenger,
            champion_score=self.score(metric, self.champion),
            challenger_score=self.score(metric, self.challenger),
            classes=self._codes,
            threshold=self.threshold,
            seed=seed,
            draws=draws,
        )

    @property
    def _codes(self) -> list[int] | None:
        return None if self.classes is None else list(range(self.classes))


@dataclass(frozen=True, kw_only=True, slots=True)
class Challenge:
    """Everything that the gates decide on."""

    scored: Scored
    champion_problem: str = ""
    """Why there are no answers of a champion that exists; empty if there are, or if no model was promoted yet."""
    latency_ms: Floats | None = None
    """Wall-clock time of single-row answers, one each."""
    size_mb: float
    """Of the model folder, in 10^6 bytes."""
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    """Those that can be had of these rows, by name."""
    allowance: Allowance = field(default_factory=Allowance)
    """What comparisons may spend on these rows."""
    seed: int = 0


def all_scores(scored: Scored, answers: Floats) -> dict[str, float]:
    """Every metric of the task that is defined on these rows."""
    values = {m.name: scored.score(m.name, answers) for m in METRICS.values() if scored.task in m.tasks}
    return {name: value for name, value in values.items() if math.isfinite(value)}


# ---------------------------------------------------------------- when there is nothing to say
def too_few(name: str, rows: int, needed: int) -> GateResult:
    return GateResult(
        gate=name,
        verdict=Verdict.INCONCLUSIVE,
        sentence=f"{name}: only {count(rows, 'matured row')} where {needed:,} are needed; inconclusive",
        numbers={"rows": rows, "min_rows": needed},
    )


def undefined(name: str, metric: str, who: str, scored: Scored, answers: Floats) -> GateResult:
    return GateResult(
        gate=name,
        verdict=Verdict.INCONCLUSIVE,
        sentence=f"{name}: {metric} is not defined for {who}: {why_undefined(scored, answers)}; inconclusive",
        numbers={"rows": scored.rows},
    )


def why_undefined(scored: Scored, answers: Floats) -> str:
    """Why a metric of `answers` (or of resampled rows of them) has no value, in words."""
    if scored.classes is None:
        return "the labels do not vary"
    if len(np.unique(scored.labels)) < 2:
        return f"the labels of {count(scored.rows, 'row')} hold one class only"
    if answers.ndim == 1 and not (answers >= scored.threshold).any():
        return f"no row is predicted positive at threshold {scored.threshold:g}"
    return "too many resamples of these rows have one class only or nothing predicted positive"
