"""A source in memory, for tests and the simulation. Held to the same contract suite as Prometheus."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from controller.metering.port import MetricsError, Question, Sample

_PART = re.compile(r'label_replace\(\((?P<promql>.*?)\n\), "(?P<label>\w+)", "(?P<part>\w+)", "", ""\)', re.DOTALL)


@dataclass
class FakeSource:
    """Answers what was put into it by the text of the query; understands the union of parts that `named` writes."""

    series: dict[str, list[Sample]] = field(default_factory=dict)
    """By PromQL. What is not here is no error: it has no series."""
    broken: str = ""
    """Why every question is refused, as long as it is not empty."""
    asked: list[Question] = field(default_factory=list)
    before: Callable[[Question], None] = lambda _question: None
    """Called at each question: may raise or wait."""

    def ask(self, question: Question) -> Iterable[Sample]:
        self.asked.append(question)
        self.before(question)
        if self.broken:
            raise MetricsError(self.broken)
        parts = list(_PART.finditer(question.promql))
        if not parts:
            return list(self.series.get(question.promql, ()))
        return [
            Sample(labels={**sample.labels, part["label"]: part["part"]}, value=sample.value)
            for part in parts
            for sample in self.series.get(part["promql"], ())
        ]

    def close(self) -> None:
        """Nothing is held."""
