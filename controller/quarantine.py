"""What was refused or rolled back, and whether a retrained model is that again. Pure.

A version that was rolled back serves no more (its status says so). But retraining on nearly the same rows gives nearly the same model under
another digest, and a candidate that the gates refused never was a version. So what both were is remembered here, and a model of the same
content or with the same answers is refused before it gets any traffic, until it can be judged on other rows than those that spoke
against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from controller.state import Cycle, ModelState, Outcome, Phase, Refused, VersionStatus

REFUSED_KEPT = 20
TOLERANCE = 0.01
"""Answers that differ by no more than this on any probe row are the same: of a probability, or of the labels' spread."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """What a cycle judges on, as far as the prepare job told."""

    oldest: datetime | None
    held_out: int
    table: int

    @classmethod
    def of(cls, prepared: Mapping[str, Any]) -> Rows:
        oldest = prepared.get("holdout_from")
        parts = ("rows_train", "rows_holdout", "rows_unlabelled")
        return cls(
            oldest=datetime.fromisoformat(oldest) if oldest else None,
            held_out=int(prepared.get("rows_holdout") or 0),
            table=sum(int(prepared.get(part) or 0) for part in parts),
        )


def remembered(state: ModelState, cycle: Cycle, outcome: Outcome, at: datetime) -> tuple[Refused, ...]:
    """The refused models once `cycle` has ended so. One that was refused for being a refused one adds nothing."""
    judged, trained = (cycle.outputs.get(phase.value) for phase in (Phase.JUDGING, Phase.TRAINING))
    version = state.versions.get(cycle.challenger or 0)
    banned = version is not None and version.status is VersionStatus.QUARANTINED
    if judged is None or trained is None or cycle.twin_of is not None or not (banned or outcome is Outcome.REJECTED):
        return state.refused
    rows = Rows.of(cycle.outputs.get(Phase.PREPARING.value, {}))
    judged_to = judged.get("judged_to")
    newest = datetime.fromisoformat(judged_to) if judged_to else None
    if newest is not None and cycle.traffic_since is not None:
        newest = max(newest, at)  # live answers up to now spoke against it
    entry = Refused(
        cycle=cycle.number, version=cycle.challenger if banned else None, model_digest=str(trained["model_digest"]),
        how=f"was {outcome.words}", newest=newest, held_out=rows.held_out, table=rows.table,
    )  # fmt: skip
    return (*(one for one in state.refused if one.cycle != entry.cycle), entry)[-REFUSED_KEPT:]


def pardoned(refused: Sequence[Refused], version: int) -> tuple[Refused, ...]:
    """Without a version that a person let serve again."""
    return tuple(one for one in refused if one.version != version)


def standing(state: ModelState, prepared: Mapping[str, Any]) -> dict[int, Refused]:
    """Cycle → refused model, of those that the rows of this cycle give no new chance.

    A chance is new when no row of the hold-out is among, or before, those that spoke against the model; without times, when the table has
    grown by a hold-out."""
    rows = Rows.of(prepared)
    return {one.cycle: one for one in state.refused if not _moved(one, rows)}


def _moved(refused: Refused, rows: Rows) -> bool:
    if refused.newest is not None and rows.oldest is not None:
        return rows.oldest > refused.newest
    return rows.table >= refused.table + max(refused.held_out, 1)


def same_content(state: ModelState, prepared: Mapping[str, Any], digest: str) -> Refused | None:
    """A refused model with the same content that has no new chance."""
    return next((one for one in standing(state, prepared).values() if one.model_digest == digest), None)


def same_answers(
    state: ModelState, prepared: Mapping[str, Any], judged: Mapping[str, Any]
) -> tuple[Refused, Mapping[str, Any]] | None:
    """A refused model with the same answers that has no new chance, and how near they are (`evaluators.probe`)."""
    likeness = judged.get("likeness")
    if not likeness or likeness["difference"] > TOLERANCE:
        return None
    found = standing(state, prepared).get(int(likeness["cycle"]))
    return None if found is None else (found, likeness)


def until_when(refused: Refused) -> str:
    """What must come before it is tried again."""
    if refused.newest is not None:
        return f"not tried again before it can be judged on rows newer than {refused.newest:%Y-%m-%d %H:%M}"
    return f"not tried again before there are {max(refused.held_out, 1):,} more rows than the {refused.table:,} of then"
