"""What the files that a policy names look like from here: said before the first cycle finds out.

Only ever warnings, since the daemon may run where other files are. Nothing but the header line of a CSV file is read.
"""

from __future__ import annotations

import csv
import gzip
import os
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from controller.cli.output import sayable
from policies.documents import parse_document
from policies.problems import Path as Place
from policies.problems import Problem, did_you_mean, shown, spell_path
from policies.reading import Loaded
from policies.schema import CsvSource, DataSpec, ParquetSource

CONSEQUENCE = "the first cycle will fail unless it is there by then"
HEADER_MAX = 1 << 20
"""Characters of a header line; a longer one is none."""
_DATA: Place = ("spec", "data")


def warn(policies: Iterable[Loaded]) -> list[str]:
    """Say on standard error what the policies' files lack; the sentences."""
    sentences = [str(problem) for one in policies for problem in missing(one)]
    for sentence in sentences:
        print(sayable(f"warning: {sentence}"), file=sys.stderr)
    return sentences


def missing(loaded: Loaded) -> list[Problem]:
    """The files that are not there, and what the data lack."""
    return [*_missing_data(loaded), *_missing_lock(loaded)]


def _missing_lock(loaded: Loaded) -> list[Problem]:
    named = loaded.policy.spec.deploy.requirements
    path = loaded.directory / (named or "")
    if named is None or path.is_file():
        return []
    place = ("spec", "deploy", "requirements")
    return [_problem(loaded, place, f"no such file: {os.path.normpath(path)}", f"{CONSEQUENCE}{_sibling(path)}")]


def _missing_data(loaded: Loaded) -> list[Problem]:
    """The data file that is not there, or the columns that its header line does not name."""
    data = loaded.policy.spec.data
    if not isinstance(data.source, CsvSource | ParquetSource):
        return []
    path = loaded.directory / data.source.path
    place = (*_DATA, "source", "path")
    try:
        if not path.exists():
            return [
                _problem(loaded, place, f"no such file: {os.path.normpath(path)}", f"{CONSEQUENCE}{_sibling(path)}")
            ]
        if isinstance(data.source, ParquetSource) or path.is_fifo():  # reading a pipe would wait for its writer
            return []
        columns = header(path)
    except (OSError, UnicodeDecodeError, EOFError, zlib.error, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return [
            _problem(
                loaded, place, f"{path} cannot be read", f"{reason}; the first cycle will fail unless it can by then"
            )
        ]
    if not columns:
        return [_problem(loaded, place, f"{path} is empty", "it must have a header line and rows")]
    return [
        _problem(loaded, (*_DATA, *key), f"{path} has no column {shown(name)}", _column_hint(name, columns))
        for key, name in _named_columns(data)
        if name not in columns
    ]


def header(path: Path) -> list[str]:
    """The column names of a CSV file (gzip if its name ends in `.gz`), empty if it has none.

    Raises OSError, UnicodeDecodeError, EOFError, zlib.error or csv.Error for a file that cannot be read as one.
    """
    unpacked = gzip.open if path.suffix == ".gz" else open
    with unpacked(path, "rt", encoding="utf-8-sig", newline="") as text:
        return next((row for row in csv.reader(iter(lambda: text.readline(HEADER_MAX), "")) if row), [])


def _named_columns(data: DataSpec) -> Iterator[tuple[Place, str]]:
    """Each column that the policy names, and where below `spec.data`."""
    for key, name in (("label", data.label), ("time", data.time), ("label_time", data.label_time), ("id", data.id)):
        if name is not None:
            yield (key,), name
    for key, names in (("include", data.include or ()), ("exclude", data.exclude)):
        for i, name in enumerate(names):
            yield (key, i), name


def _column_hint(name: str, columns: list[str]) -> str:
    return did_you_mean(name, columns) or f"it has {', '.join(columns[:20])}{', …' if len(columns) > 20 else ''}"


def _sibling(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    except OSError:
        names = []
    hint = did_you_mean(path.name, names)
    return f"; {hint}" if hint else ""


def _problem(loaded: Loaded, place: Place, rule: str, suggestion: str) -> Problem:
    """With the line of `place`, found by looking at the file once more: what was read keeps no lines."""
    try:
        document, _ = parse_document(Path(loaded.file).read_bytes(), file=loaded.file)
    except OSError:
        document = None
    line, column = document.position(place) if document else (loaded.line, 0)
    return Problem(file=loaded.file, line=line, column=column, path=spell_path(place), rule=rule, suggestion=suggestion)
