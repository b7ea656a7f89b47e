"""`POST /v1/models/NAME/feedback`: labels, reported when they become known. On record before they are acknowledged."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from serving.frame import shown
from serving.log import LabelRow, LogWriter
from serving.manifest import ClassValue
from serving.runtime.metrics import OTHER, Metrics
from serving.runtime.recent import RecentPredictions
from serving.runtime.requests import DECODE_ERRORS, RequestError, check_id, decode_error

LABEL_CHARACTERS_MAX = 1_024


class _Label(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    label: Any


class FeedbackBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client sends."""

    labels: list[_Label]


_decoder = msgspec.json.Decoder(FeedbackBody)
_encoder = msgspec.json.Encoder()


def read_feedback(body: bytes, *, rows_max: int) -> list[tuple[str, ClassValue]]:
    """(id, label) of each label in a body. Raises RequestError naming the field and the value."""
    try:
        parsed = _decoder.decode(body)
    except DECODE_ERRORS as error:
        raise decode_error(error) from None
    if len(parsed.labels) > rows_max:
        raise RequestError(
            413, f"labels: may hold at most {rows_max} but holds {len(parsed.labels)}; send several requests"
        )
    return [
        (check_id(e.id, f"labels[{i}].id"), _check_label(e.label, f"labels[{i}].label"))
        for i, e in enumerate(parsed.labels)
    ]


def _check_label(label: object, where: str) -> ClassValue:
    """A label as it may enter the log. Raises RequestError."""
    if not isinstance(label, str | int | float | bool):
        raise RequestError(400, f"{where}: must be a string, a number, true or false but got {shown(label)}")
    if isinstance(label, str) and len(label) > LABEL_CHARACTERS_MAX:
        raise RequestError(400, f"{where}: may have at most {LABEL_CHARACTERS_MAX} characters but has {len(label)}")
    if isinstance(label, int) and not -(2**63) <= label < 2**63:
        raise RequestError(400, f"{where}: must fit 64 bits but got {shown(label)}")
    return label


class Feedback:
    """Takes labels: puts them on record, then counts those whose prediction is remembered. Safe for several threads."""

    def __init__(
        self,
        classes: Sequence[ClassValue] | None,
        *,
        log: LogWriter,
        recent: RecentPredictions,
        metrics: Metrics,
        now: Callable[[], float],
    ) -> None:
        self._names = [class_name(value) for value in classes or ()]
        self._index = {_class_key(value): name for value, name in zip(classes or (), self._names, strict=True)}
        self._log = log
        self._recent = recent
        self._metrics = metrics
        self._now = now
        self._counting = threading.Lock()

    def take(self, labels: Sequence[tuple[str, ClassValue]]) -> int:
        """Put labels on record and count them. Returns how many. Raises OSError, and then none is on record."""
        at = self._now()
        if labels:
            self._log.append([LabelRow(id=i, at=at, label=_encoder.encode(label).decode()) for i, label in labels])
        with self._counting:
            self._count(labels)
        return len(labels)

    def _count(self, labels: Sequence[tuple[str, ClassValue]]) -> None:
        pairs, unmatched = [], 0
        for row_id, label in labels:
            found = self._recent.take(row_id)
            if found is None:
                unmatched += 1
            elif not found[1]:
                pairs.append((self._names[found[0]], self._index.get(_class_key(label), OTHER)))
        self._metrics.matched(pairs)
        self._metrics.unmatched(unmatched)


def class_name(value: ClassValue) -> str:
    """A class as a metric's label has it: a string as it is, anything else as JSON."""
    return value if isinstance(value, str) else _encoder.encode(value).decode()


def _class_key(value: ClassValue) -> tuple[bool, ClassValue]:
    """Equal for what counts as the same class: 1, 1.0 and true are, 1 and "1" are not."""
    return isinstance(value, str), value
