"""What a source of metrics is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

SAMPLES_MAX = 1_000_000
"""Of one answer; beyond it the question was wrong."""


class MetricsError(Exception):
    """Why there is no answer, and what to do: one sentence, without secrets. Everything that was asked for is unknown."""


class Sample(NamedTuple):
    """One series at the moment of asking."""

    labels: Mapping[str, str]
    value: float
    """May be NaN or infinite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """An instant query."""

    promql: str
    at: float
    """Moment of evaluation, in seconds since 1970."""


class MetricSource(Protocol):
    """Answers one query at a time; may be called by several threads at once."""

    def ask(self, question: Question) -> Iterable[Sample]:
        """The instant vector. Raises MetricsError: refused, away, late, too long, partial, or nonsense."""

    def close(self) -> None:
        """Let go of connections."""
