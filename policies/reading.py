"""Policy files to policies, or to everything that is wrong with them.

All errors of all files are found in one go, each with file, line, path, rule and value. Nothing in a file can make
reading fail otherwise, run long, or construct anything but plain values (`policies.documents`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from policies.documents import SIZE_MAX, Document, parse_document
from policies.messages import translate
from policies.metrics import Task
from policies.problems import Problem, did_you_mean, shown, spell_path
from policies.schema import ModelPolicy
from policies.support import unsupported

SUFFIXES = (".yaml", ".yml")
FILES_MAX = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A policy that was read."""

    policy: ModelPolicy
    file: str
    """As it was named, for messages."""
    directory: Path
    """Absolute; relative paths in the policy start here."""
    line: int
    """Of the model's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What came of reading: the policies without a problem, and the problems of the others."""

    policies: tuple[Loaded, ...]
    problems: tuple[Problem, ...]


def read_policies(paths: Iterable[str | os.PathLike[str]], *, check_support: bool = True) -> Reading:
    """Read files, and folders with all `*.yaml` and `*.yml` below them (hidden files and folders left out).

    With `check_support`, what the software cannot do yet is a problem too. No file is read twice. Never raises.
    """
    loaded: list[Loaded] = []
    problems: list[Problem] = []
    seen: set[str] = set()
    for file in _files(paths):
        if isinstance(file, Problem):
            problems.append(file)
            continue
        real = os.path.realpath(file)
        if real in seen:
            continue
        seen.add(real)
        content = _content(file)
        if isinstance(content, Problem):
            problems.append(content)
            continue
        directory = Path(os.path.abspath(file)).parent
        one = parse_policy(content, file=str(file), directory=directory, check_support=check_support)
        loaded.extend(one.policies)
        problems.extend(one.problems)
    unique, clashes = _unique(loaded)
    return Reading(policies=unique, problems=(*problems, *clashes))


def parse_policy(content: bytes | str, *, file: str, directory: Path, check_support: bool = True) -> Reading:
    """Read one policy from its YAML (or JSON) text; `file` is what messages call it. Never raises."""
    encoded = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    document, problems = parse_document(encoded, file=file)
    if document is None:
        return Reading(policies=(), problems=tuple(problems))
    return read_document(document, problems, file=file, directory=directory, check_support=check_support)


def read_document(
    document: Document, found: Iterable[Problem] = (), *, file: str, directory: Path, check_support: bool = True
) -> Reading:
    """The policy that a document holds, where nothing is wrong with it and nothing was `found` before. Never raises."""
    policy, wrong = _validated(document, file)
    problems = [*found, *wrong]
    if policy is not None and check_support:
        problems += [_not_yet(document, file, path, what) for path, what in unsupported(policy)]
    if policy is None or problems:
        return Reading(policies=(), problems=tuple(sorted(problems, key=lambda p: (p.line, p.column))))
    line, _ = document.position(("metadata", "name"))
    return Reading(policies=(Loaded(policy=policy, file=file, directory=directory, line=line),), problems=())


def _validated(document: Document, file: str) -> tuple[ModelPolicy | None, list[Problem]]:
    value = document.value
    if not isinstance(value, Mapping):
        rule = "a policy file must hold a mapping that starts with apiVersion: ratchet.dev/v1"
        return None, [Problem(file=file, line=1, column=1, rule=rule, value=shown(value))]
    try:
        return ModelPolicy.model_validate(value, context={"task": _task(value)}), []
    except ValidationError as error:
        return None, translate(error, document, file=file)


def _task(value: Mapping[str, Any]) -> Task | None:
    """The task that metrics are checked against, if the file names a valid one."""
    spec = value.get("spec")
    task = spec.get("task") if isinstance(spec, Mapping) else None
    return Task(task) if isinstance(task, str) and task in list(Task) else None


def _not_yet(document: Document, file: str, path: tuple[str | int, ...], what: str) -> Problem:
    line, column = document.position(path)
    return Problem(file=file, line=line, column=column, path=spell_path(path), rule=f"not supported yet: {what}")


def _unique(loaded: list[Loaded]) -> tuple[tuple[Loaded, ...], list[Problem]]:
    """A name that two files claim is nobody's: following either would be a guess."""
    first: dict[str, Loaded] = {}
    clashing: set[str] = set()
    problems = []
    for one in loaded:
        name = one.policy.name
        other = first.setdefault(name, one)
        if other is not one:
            clashing.add(name)
            rule = f"a model's name may stand in one file only, and {other.file}:{other.line} has it too"
            problems.append(Problem(file=one.file, line=one.line, path="metadata.name", rule=rule, value=shown(name)))
    return tuple(one for one in loaded if one.policy.name not in clashing), problems


# ---------------------------------------------------------------- files
def _files(paths: Iterable[str | os.PathLike[str]]) -> Iterator[Path | Problem]:
    for given in paths:
        path = Path(given)
        try:
            if path.is_dir():
                yield from _below(path)
            elif path.is_file():
                yield path
            elif path.exists():
                yield Problem(file=str(path), rule="must be a file or a folder")
            elif path.is_symlink():
                yield Problem(file=str(path), rule="links to a file that is not there")
            else:
                yield _missing(path)
        except (OSError, ValueError) as error:
            yield Problem(file=str(path), rule=f"cannot be read: {_reason(error)}")


def _missing(path: Path) -> Problem:
    try:
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    except OSError:
        siblings = []
    return Problem(file=str(path), rule="no such file or folder", suggestion=did_you_mean(path.name, siblings))


def _below(folder: Path) -> Iterator[Path | Problem]:
    """Policy files in a folder and its subfolders, sorted. Links to files are followed, links to folders are not."""
    unreadable: list[OSError] = []
    count = 0
    for where, folders, names in os.walk(folder, onerror=unreadable.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(where, name)
            if not name.startswith(".") and path.suffix in SUFFIXES and path.is_file():
                count += 1
                if count > FILES_MAX:
                    yield Problem(file=str(folder), rule=f"a folder may hold at most {FILES_MAX} policy files")
                    return
                yield path
    for error in unreadable:
        yield Problem(file=str(error.filename), rule=f"cannot be read: {_reason(error)}")


def _content(file: Path) -> bytes | Problem:
    try:
        with file.open("rb") as handle:
            return handle.read(SIZE_MAX + 1)
    except OSError as error:
        return Problem(file=str(file), rule=f"cannot be read: {_reason(error)}")


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()
