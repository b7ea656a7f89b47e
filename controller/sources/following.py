"""What a revision of a source asks for, held against what is followed now: the changes, or everything that speaks against it.

A revision is taken whole or not at all, so all of it is judged before anything is written: its files, the paths that they name, and whether
the models' present state allows it. A file whose text and paths have the ids of last time is not even read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from controller import applying
from controller.draft import Decision
from controller.overrides import ACTOR_MAX, OverrideRefused
from controller.sources.port import PathRefused, Pinned, PolicyFile, PolicySource, Revision
from controller.state import ModelState, Origin
from policies.documents import parse_document
from policies.problems import Path, Problem, shown, spell_path
from policies.reading import Loaded, parse_policy
from policies.schema import CsvSource, ModelPolicy, ParquetSource, SqlSource

ADOPT = "ratchet.dev/adopt"
"""Annotation with which a file takes over a model that was applied by hand."""
CODE: Path = ("spec", "train", "code")
_SQLITE = "sqlite:///"


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """A policy of the revision that is not followed as it stands there."""

    loaded: Loaded
    origin: Origin


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What the revision asks for. With problems, nothing of it may be done."""

    wanted: tuple[Wanted, ...] = ()
    lost: Mapping[str, str] = field(default_factory=dict)
    """Model → why nothing follows it any more."""
    problems: tuple[Problem, ...] = ()
    final: bool = False
    """Whether the problems lie in the revision alone, so that no other look at it can end better."""
    followed: int = 0
    """Models of the revision."""

    checks_out: bool = False
    """Whether files of the revision are needed on disk."""


def plan(source: PolicySource, revision: Revision, states: Mapping[str, ModelState], now: datetime) -> Plan:
    """Hold the revision against `states`, all models by name. Raises SourceAway."""
    mine = {
        s.name: s
        for s in states.values()
        if s.origin is not None and s.origin.source == source.name and not s.origin.lost
    }
    by_file = {s.origin.file: s for s in mine.values() if s.origin is not None}
    named: dict[str, str] = {}
    fresh: list[PolicyFile] = []
    for file in revision.files:
        state = by_file.get(file.file)
        if state is not None and _as_before(source, revision, file, state):
            named[state.name] = file.file
        else:
            fresh.append(file)
    read = [_read(source, revision, *pair) for pair in zip(fresh, source.read(fresh), strict=True)]
    problems = [*revision.problems, *(problem for _, wrong in read for problem in wrong)]
    problems += _twice(read, named)
    if not named and not read and not revision.problems and len(mine) > 1:
        problems.append(_emptied(revision, len(mine)))
    final = bool(problems)
    wanted = [one for one, _ in read if one is not None]
    judged = [_judge(source, one, states.get(one.loaded.policy.name), now) for one in wanted]
    problems += [found for found, _ in judged if found is not None]
    if problems:
        return Plan(problems=tuple(problems), final=final)
    names = {*named, *(one.loaded.policy.name for one in wanted)}
    lost = {
        name: f"{s.origin.file} was deleted or renamed away in {revision.said}"
        for name, s in mine.items() if name not in names and s.origin is not None
    }  # fmt: skip
    return Plan(
        wanted=tuple(wanted), lost=lost, followed=len(names), checks_out=any(pinned == revision.id for _, pinned in judged)
    )  # fmt: skip


def actor_of(source: PolicySource, revision: Revision) -> str:
    return f"{source.name}: {revision.said}"[:ACTOR_MAX]


# ---------------------------------------------------------------- files
def _as_before(source: PolicySource, revision: Revision, file: PolicyFile, state: ModelState) -> bool:
    origin = state.origin
    if origin is None or origin.blob != file.id:
        return False
    try:
        return all(source.pin(revision.id, file.file, path).id == known for path, known in origin.rests)
    except PathRefused:
        return False  # reading the file says what is wrong with it


def _read(
    source: PolicySource, revision: Revision, file: PolicyFile, content: bytes
) -> tuple[Wanted | None, list[Problem]]:
    reading = parse_policy(content, file=file.file, directory=source.folder(revision.id, file.file))
    if reading.problems:
        return None, list(reading.problems)
    (loaded,) = reading.policies
    pins: dict[Path, tuple[str, Pinned]] = {}
    problems: list[Problem] = []
    for place, path in paths_of(loaded.policy):
        try:
            if place == CODE and path.startswith("/"):
                raise PathRefused("must be a folder of the repository: code is run as its commit has it")
            pins[place] = (path, source.pin(revision.id, file.file, path))
            if place == CODE and not pins[place][1].folder:
                raise PathRefused("must be a folder")
        except PathRefused as error:
            problems.append(_at(content, file.file, place, str(error), path))
    if problems:
        return None, problems
    if not pins:
        loaded = replace(loaded, directory=source.place)
    origin = Origin(
        source=source.name, where=source.where, file=file.file, blob=file.id, revision=revision.id, said=revision.said,
        pinned=revision.id if pins else "", rests=tuple((path, pin.id) for path, pin in pins.values()),
        code=pins[CODE][1].id if CODE in pins else "",
    )  # fmt: skip
    return Wanted(loaded=loaded, origin=origin), []


def paths_of(policy: ModelPolicy) -> Iterator[tuple[Path, str]]:
    """Paths in a policy that start at its folder, each with its place; `train.code` even if it starts at the root."""
    data = policy.spec.data.source
    if isinstance(data, CsvSource | ParquetSource) and not data.path.startswith("/"):
        yield ("spec", "data", "source", "path"), data.path
    if isinstance(data, SqlSource) and (url := data.url or "").startswith(_SQLITE):
        file = url.removeprefix(_SQLITE).partition("?")[0]
        if file and not file.startswith("/") and file != ":memory:":
            yield ("spec", "data", "source", "url"), file
    if (lock := policy.spec.deploy.requirements) is not None and not lock.startswith("/"):
        yield ("spec", "deploy", "requirements"), lock
    if policy.spec.train.code is not None:
        yield CODE, policy.spec.train.code


def _at(content: bytes, file: str, place: Path, rule: str, value: str) -> Problem:
    document, _ = parse_document(content, file=file)
    line, column = document.position(place) if document is not None else (0, 0)
    return Problem(file=file, line=line, column=column, path=spell_path(place), rule=rule, value=shown(value))


def _twice(read: Sequence[tuple[Wanted | None, list[Problem]]], named: Mapping[str, str]) -> Iterator[Problem]:
    first = dict(named)
    for one in (one for one, _ in read if one is not None):
        name, file = one.loaded.policy.name, one.loaded.file
        if first.setdefault(name, file) != file:
            rule = f"a model's name may stand in one file only, and {first[name]} has it too"
            yield Problem(file=file, line=one.loaded.line, path="metadata.name", rule=rule, value=shown(name))


def _emptied(revision: Revision, models: int) -> Problem:
    rule = (
        f"holds no policy file any more, while {models} models are followed: taken for a mistake. If it is meant, delete all files "
        "but one, and that one in another commit"
    )
    return Problem(file=revision.said, rule=rule)


# ---------------------------------------------------------------- the models' present state
def _judge(source: PolicySource, one: Wanted, state: ModelState | None, now: datetime) -> tuple[Problem | None, str]:
    """Why the policy may not be followed as things stand, if so; and in which revision's files its relative paths will start."""
    rule, pinned = "", one.origin.pinned
    if state is not None and not _may_follow(source, one, state):
        owner = f"is followed from {state.origin.where}" if state.origin else "was applied by hand"
        rule = f"{owner}: delete it there first, or write the annotation {ADOPT}: 'true' into this file to take it over"
    elif state is not None:
        try:
            decision = decide(one, state, "git", now)
            kept = decision.after.origin if decision is not None else state.origin
            pinned = kept.pinned if kept is not None else ""
        except OverrideRefused as error:
            rule = str(error)
    if not rule:
        return None, pinned
    name = one.loaded.policy.name
    return Problem(file=one.loaded.file, line=one.loaded.line, path="metadata.name", rule=f"{name}: {rule}"), pinned


def _may_follow(source: PolicySource, one: Wanted, state: ModelState) -> bool:
    if state.origin is not None:
        return state.origin.source == source.name
    same = applying.canonical(one.loaded.policy) == state.policy and not one.origin.rests
    return same or one.loaded.policy.metadata.annotations.get(ADOPT) == "true"


def decide(one: Wanted, state: ModelState, actor: str, now: datetime) -> Decision | None:
    """What becomes of a known model; None if it is followed as it stands there. Raises OverrideRefused."""
    origin, known = one.origin, state.origin
    policy = one.loaded.policy
    if known == origin:
        return None
    same_text = applying.canonical(policy) == state.policy
    if same_text and known is not None and known.rests == origin.rests and not known.forced:
        return applying.restamp(state, policy, replace(origin, pinned=known.pinned), actor, now)
    if same_text and not origin.rests and (known is None or not known.rests):
        return applying.restamp(state, policy, origin, actor, now)
    return applying.change_policy(state, policy, str(one.loaded.directory), actor, now, origin=origin)
