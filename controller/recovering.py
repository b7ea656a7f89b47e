"""Going on from a restored backup: what was counted since then is gone, so counting goes on far above it.

A database that is older than what the targets follow must move nothing by itself: its plans are of the past, and its next numbers were
given out before. The controller holds such models (`is_behind`), until a person says that the database as restored shall count from now
on (`ratchet recover`). Then the champion that it knows serves again; the rest of the way is retraining.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from controller.cycle import TABLE, Move
from controller.draft import Decision, Draft
from controller.plan import desired_plan
from controller.state import ModelState
from deployers.target import TargetStatus
from policies.schema import ModelPolicy

NUMBERS_SKIPPED = 1000
"""Of versions and cycles: more than anybody makes between two backups."""
GENERATIONS_SKIPPED = 1_000_000
EPOCHS_SKIPPED = 1_000_000


def is_behind(state: ModelState, status: TargetStatus | None) -> str:
    """Why the database is older than what the target follows; empty if it is not, or if the target is not known."""
    known = state.plan.generation if state.plan else 0
    if status is None or status.generation <= known:
        return ""
    return (
        f"holds, because the target follows plan {status.generation} and the database knows {known} only: an older database was restored; "
        "what serves goes on serving. Stop the daemon and run 'ratchet recover' (docs/postgresql.md)"
    )


def recover(state: ModelState, policy: ModelPolicy, actor: str, reason: str, now: datetime) -> Decision:
    """The decision that the state as restored counts from now on: no number of the time since the backup comes again, no job of it is taken
    for one of an open cycle, and every target takes the next plan for the newest."""
    draft = Draft(state, policy, now, actor=actor)
    sentence = f"{actor}: goes on from a restored backup ({reason})"
    draft.event("model.recovered", sentence, notify=True, reason=reason, champion=state.champion)
    if state.cycle is not None and (state.cycle.phase, Move.ABORTED) in TABLE:
        ended = f"{actor}: ends cycle {state.cycle.number}, which began before a backup was restored"
        draft.move(Move.ABORTED, ended, kind="cycle.aborted")
    after = draft.state
    draft.set(next_version=after.next_version + NUMBERS_SKIPPED, next_cycle=after.next_cycle + NUMBERS_SKIPPED)
    plan = after.plan or desired_plan(after, policy)
    draft.set(plan=replace(plan, generation=plan.generation + GENERATIONS_SKIPPED))
    return draft.finish(sentence)
