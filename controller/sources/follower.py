"""Follows a policy source: one `sync` looks once, and puts a new revision into force as a whole or says why not.

What it does follows from the store and the source alone. Its status file is for people and saves work: without it the newest revision is
simply judged again. A crash in the middle of putting a revision into force leaves its name in that file, and it is finished before
anything newer is looked at, so that no mixture of two revisions stays. Runs beside the reconciler; both write by the store's row versions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Lock

import structlog

from controller import applying
from controller.draft import Decision
from controller.incidents import NO_MODEL
from controller.overrides import OverrideRefused
from controller.sources import following
from controller.sources.following import Plan, Wanted
from controller.sources.incidents import Trouble, settle
from controller.sources.port import (
    PathRefused,
    PolicySource,
    Revision,
    RevisionRefused,
    SourceAway,
    SourceGone,
    SourceStatus,
)
from controller.sources.status import StatusFile
from controller.state import Event, ModelState
from controller.store.port import Commit, ConflictError, Record, Store
from controller.telemetry.metrics import count_events
from policies.problems import Problem
from policies.schema import ModelPolicy

log = structlog.get_logger()

AWAY_AFTER = timedelta(minutes=10)
"""A source that could not be asked for so long is an incident."""
PROBLEMS_SHOWN = 5
TRIES = 20
REFUSED, GONE, AWAY = "git_commit_refused", "git_branch_gone", "git_unreachable"


class PolicyFollower:
    """One source. `sync` is called from one thread at a time; `status` from any."""

    def __init__(
        self, *, source: PolicySource, store: Store, epoch: Callable[[], int], now: Callable[[], datetime],
        wake: Callable[[str], None], status_file: Path, away_after: timedelta = AWAY_AFTER,
    ) -> None:  # fmt: skip
        self._source = source
        self._store = store
        self._epoch = epoch
        self._now = now
        self._wake = wake
        self._away_after = away_after
        self._turn = Lock()
        self._file = StatusFile(status_file)
        self._status = self._file.load() or SourceStatus(name=source.name, where=source.where)
        if self._status.where != source.where:
            self._status = SourceStatus(name=source.name, where=source.where)
        self._judged: str | None = None
        """A revision that was refused for what it holds, whatever the models' state."""
        self._restored = False

    @property
    def status(self) -> SourceStatus:
        return self._status

    def sync(self) -> None:
        """Look once. Raises LostLeadership, StoreError; whatever is wrong with the source is in `status` and in an incident."""
        with self._turn:
            self._epoch()
            try:
                self._restore_worktrees()
                self._finish_interrupted()
                self._look()
            except RevisionRefused as error:
                self._refuse_unread(error)
            except SourceGone as error:
                self._note_failure(str(error), gone=True)
            except SourceAway as error:
                self._note_failure(str(error), gone=False)

    def sweep(self) -> None:
        """Delete the worktrees that no model needs. Raises StoreError."""
        with self._turn:
            if gone := self._source.sweep(needed_commits(self._store.load_all())):
                log.info("worktrees.deleted", worktrees=gone)

    def close(self) -> None:
        self._source.close()

    # ------------------------------------------------------------ looking
    def _look(self) -> None:
        done = self._status.applied if not self._status.refused else self._judged
        revision = self._source.newest(done if done == self._status.newest else None)
        if revision is None:
            trouble = [t for t in (self._refusal(),) if t is not None]
            self._set(error="", failing_since=None, looked_at=self._now())
            self._settle(trouble)
            return
        self._consider(revision)

    def _restore_worktrees(self) -> None:
        """Once after a start: what open cycles and next ones rest on must be there, whoever cleared the folder."""
        if self._restored:
            return
        for commit in sorted(needed_commits(self._store.load_all())):
            try:
                if self._source.at(commit) is not None:
                    self._source.check_out(commit)
            except (SourceAway, PathRefused) as error:
                log.warning("worktree.not_restored", commit=commit, error=str(error))
        self._restored = True

    def _finish_interrupted(self) -> None:
        """A revision that was found good and is in force only in part comes first."""
        if self._status.applying is None:
            return
        revision = self._source.at(self._status.applying)
        if revision is not None:
            self._consider(revision)
        self._set(applying=None)

    def _consider(self, revision: Revision) -> None:
        states = {state.name: state for state in self._store.load_all()}
        plan = following.plan(self._source, revision, states, self._now())
        if self._status.applied and revision.id != self._status.newest:
            note = self._note_rewrite(revision)
        else:
            note = self._status.note
        self._set(
            newest=revision.id, newest_said=revision.said, note=note, error="", failing_since=None, looked_at=self._now()
        )  # fmt: skip
        problems = plan.problems or self._put_into_force(revision, plan)
        if problems:
            self._judged = revision.id if plan.final else None
            self._refuse(revision, problems)
            return
        self._judged = None
        self._set(
            refused=(),
            applied=revision.id,
            applied_said=revision.said,
            applied_at=self._now(),
            applying=None,
            models=plan.followed,
        )
        self._settle([])

    def _note_rewrite(self, revision: Revision) -> str:
        """A force-push is followed, but not in silence."""
        applied = self._status.applied
        note = self._source.note(revision.id, applied) if applied and revision.id != applied else ""
        if note:
            event = Event(
                model=NO_MODEL, kind="policies.rewritten", sentence=note, at=self._now(), actor=following.actor_of(self._source, revision),
                data={"from": applied, "to": revision.id},
            )  # fmt: skip
            self._record(Record(events=[event]))
        return note

    # ------------------------------------------------------------ putting into force
    def _put_into_force(self, revision: Revision, plan: Plan) -> tuple[Problem, ...]:
        """Whatever went wrong after all; nothing was changed then unless a person came in between."""
        if not plan.wanted and not plan.lost:
            return ()
        if plan.checks_out:
            try:
                self._source.check_out(revision.id)
            except PathRefused as error:
                return (Problem(file=revision.said, rule=str(error)),)
        self._set(applying=revision.id)
        actor = following.actor_of(self._source, revision)
        counts: dict[str, int] = {}
        problems = []
        for one in plan.wanted:
            try:
                did = _retried(partial(self._follow, one, actor))
                counts[did] = counts.get(did, 0) + 1
            except OverrideRefused as error:
                problems.append(Problem(file=one.loaded.file, line=one.loaded.line, rule=str(error)))
        for name, why in plan.lost.items():
            _retried(partial(self._lose, name, why, actor))
            counts["lost"] = counts.get("lost", 0) + 1
        if not problems:
            self._tell_applied(revision, plan, counts, actor)
        return tuple(problems)

    def _tell_applied(self, revision: Revision, plan: Plan, counts: Mapping[str, int], actor: str) -> None:
        did = ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))
        sentence = f"{revision.said} is in force: {plan.followed} models are followed ({did})"
        event = Event(
            model=NO_MODEL, kind="policies.applied", sentence=sentence, at=self._now(), actor=actor,
            data={"commit": revision.id, "author": revision.author, "source": self._source.where, **counts},
        )  # fmt: skip
        self._record(Record(events=[event]))
        log.info("policies.applied", commit=revision.id, sentence=sentence)

    def _follow(self, one: Wanted, actor: str) -> str:
        name = one.loaded.policy.name
        state = self._store.load(name)
        if state is None:
            self._create(one, actor)
            return "created"
        decision = following.decide(one, state, actor, self._now())
        if decision is None:
            return "unchanged"
        self._commit(decision)
        return "updated"

    def _create(self, one: Wanted, actor: str) -> None:
        name = one.loaded.policy.name
        last = next(iter(self._store.events(name, limit=1, newest=True)), None)
        numbers = applying.numbers_after(last)
        state, event = applying.new_model(
            one.loaded.policy, str(one.loaded.directory), actor, self._now(), next_version=numbers[0], next_cycle=numbers[1],
            origin=one.origin,
        )  # fmt: skip
        self._store.create(self._epoch(), state, [event])
        count_events([event])
        self._wake(name)

    def _lose(self, name: str, why: str, actor: str) -> str:
        state = self._store.load(name)
        if state is not None and state.origin is not None and not state.origin.lost:
            policy = ModelPolicy.model_validate_json(state.policy)
            self._commit(applying.lose(state, policy, why, actor, self._now()))
        return "lost"

    def _commit(self, decision: Decision) -> ModelState:
        commit = Commit(model=decision.after, closed=decision.closed, events=decision.events, notices=decision.notices)
        after = self._store.commit(self._epoch(), commit)
        count_events(decision.events)
        self._wake(after.name)
        return after

    # ------------------------------------------------------------ saying what is wrong
    def _refuse(self, revision: Revision, problems: tuple[Problem, ...]) -> None:
        told = tuple(str(problem) for problem in problems[:PROBLEMS_SHOWN])
        more = len(problems) - len(told)
        is_news = self._status.refused != told
        self._set(refused=(*told, f"and {more} more") if more else told)
        trouble = self._refusal()
        assert trouble is not None
        if is_news:
            log.warning("policies.refused", commit=revision.id, sentence=trouble.sentence)
            event = Event(
                model=NO_MODEL, kind="policies.refused", sentence=trouble.sentence, at=self._now(),
                actor=following.actor_of(self._source, revision),
                data={"commit": revision.id, "author": revision.author, "problems": [
                    {"file": p.file, "line": p.line, "path": p.path, "rule": p.rule} for p in problems[:100]
                ]},
            )  # fmt: skip
            self._record(Record(events=[event]))
        self._settle([trouble])

    def _refuse_unread(self, error: RevisionRefused) -> None:
        said = f"commit {error.revision[:10]}"
        self._set(newest=error.revision, newest_said=said, error="", failing_since=None, looked_at=self._now())
        self._judged = None
        self._refuse(
            Revision(id=error.revision, said=said, author="", at=self._now(), files=()), (Problem(file=said, rule=str(error)),)
        )  # fmt: skip

    def _refusal(self) -> Trouble | None:
        status = self._status
        if not status.refused or status.newest is None:
            return None
        stays = f"what is in force stays ({status.applied_said})" if status.applied else "nothing of it is applied"
        return Trouble(
            kind=REFUSED, subject=status.newest, sentence=f"{status.newest_said} is refused: {'; '.join(status.refused)}; {stays}"
        )  # fmt: skip

    def _note_failure(self, error: str, *, gone: bool) -> None:
        now = self._now()
        since = self._status.failing_since or now
        if error != self._status.error:
            log.warning("policies.source_away", source=self._source.where, error=error)
        self._set(error=error, failing_since=since, looked_at=now)
        trouble = [t for t in (self._refusal(),) if t is not None]
        stays = "; the policies in force stay"
        if gone:
            trouble.append(Trouble(kind=GONE, subject="", sentence=f"{error}{stays}"))
        elif now - since >= self._away_after:
            trouble.append(Trouble(kind=AWAY, subject="", sentence=f"the repository cannot be read: {error}{stays}"))
        self._settle(trouble, unsure=not gone)

    def _settle(self, trouble: list[Trouble], *, unsure: bool = False) -> None:
        """`unsure`: the source could not be asked, so nothing that was wrong is known to be right again."""
        settle(
            self._store, self._epoch(), self._source.where, (REFUSED, GONE, AWAY), trouble, self._now(), unsure=unsure
        )

    def _record(self, record: Record) -> None:
        self._store.record(self._epoch(), record)
        count_events(record.events)

    def _set(self, **changes: object) -> None:
        before, self._status = self._status, replace(self._status, **changes)  # type: ignore[arg-type]
        if replace(before, looked_at=None) != replace(self._status, looked_at=None):
            self._file.save(self._status)


def needed_commits(states: Iterable[ModelState]) -> set[str]:
    """Commits whose worktrees a model's next job may read. An open cycle reads those of its policy, which another one would end."""
    return {state.origin.pinned for state in states if state.origin is not None and state.origin.pinned}


def _retried(attempt: Callable[[], str]) -> str:
    """Others commit to the same models; the last ConflictError if they never stop."""
    for _ in range(TRIES - 1):
        try:
            return attempt()
        except ConflictError:
            continue
    return attempt()
