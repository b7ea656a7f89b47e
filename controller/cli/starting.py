"""`ratchet init`: a first policy from a light look at the data, without loading a data library where that can be avoided."""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from controller.cli.client import CliError, Exit
from policies.metrics import Task

ROWS_LOOKED_AT = 5_000
MANY_VALUES = 20
"""A label of numbers with more different values than this is a quantity, not a class."""
NEARLY_ALL = 0.9
"""A label that is no number and differs in this share of the rows names them and predicts nothing."""
_MISSING = frozenset({"", "na", "nan", "null", "none"})


def init(
    name: Annotated[str, typer.Argument(help="The model's name.")],
    source: Annotated[Path, typer.Option("--from", help="CSV or Parquet file with the data.")],
    label: Annotated[str, typer.Option(help="Column that is to be predicted.")],
    time: Annotated[str | None, typer.Option(help="Column: when the prediction is asked for.")] = None,
    label_time: Annotated[str | None, typer.Option(help="Column: when the label becomes known.")] = None,
    metric: Annotated[str | None, typer.Option(help="What good means; default: one that suits the label.")] = None,
    write: Annotated[Path | None, typer.Option("-w", "--write", help="Write to this file, not to the terminal.")] = None,
) -> None:  # fmt: skip
    """Write a first policy for a table of data: complete, commented, ready for 'ratchet validate'."""
    from policies.reading import parse_policy
    from policies.starter import Starter, starter_policy

    kind, columns, values = look_at(source, label)
    for option, column in (("--time", time), ("--label-time", label_time)):
        if column is not None and column not in columns:
            raise CliError(f"{option}: {source} has no column {column!r}; it has {', '.join(columns)}", Exit.USAGE)
    task = infer_task(values)
    if task is Task.MULTICLASS and (why := no_class(values)):
        raise CliError(
            f"--label: {label!r} {why}; name the column that is to be predicted, one of {_others(columns, label)}",
            Exit.USAGE,
        )
    base = (write.parent if write else Path.cwd()).absolute()
    start = Starter(
        name=name, task=task, source=kind, label=label, location=_relative(source, base), time=time,
        label_time=label_time, metric=metric,
    )  # fmt: skip
    try:
        text = starter_policy(start)
    except ValueError as error:
        raise CliError(str(error), Exit.USAGE) from error
    reading = parse_policy(text, file="the starter", directory=base)
    if reading.problems:
        raise CliError("\n".join(str(problem) for problem in reading.problems), Exit.INVALID_POLICY)
    if write is None:
        print(text, end="")
        return
    try:
        with write.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        kept = "; it is never overwritten" if isinstance(error, FileExistsError) else ""
        raise CliError(f"{write} cannot be written: {error.strerror}{kept}", Exit.USAGE) from error
    print(f"{write} written: look through it, then 'ratchet validate {write}'")


def _others(columns: Sequence[str], label: str) -> str:
    return ", ".join(column for column in columns if column != label)


def _relative(source: Path, base: Path) -> str:
    """As the policy names it: relative where it lies below the policy's folder."""
    absolute = source.absolute()
    return str(absolute.relative_to(base)) if absolute.is_relative_to(base) else str(absolute)


def look_at(source: Path, label: str) -> tuple[Any, Sequence[str], Sequence[str]]:
    """Kind of the source, its columns, and the first labels as text. Raises CliError naming file or column."""
    parquet = source.suffix.lower() in (".parquet", ".pq") or source.is_dir()
    try:
        columns, values = _look_at_parquet(source, label) if parquet else _look_at_csv(source, label)
    except (OSError, ValueError, csv.Error) as error:
        raise CliError(f"{source} cannot be read: {getattr(error, 'strerror', None) or error}", Exit.USAGE) from error
    if label not in columns:
        raise CliError(f"--label: {source} has no column {label!r}; it has {', '.join(columns)}", Exit.USAGE)
    known = [value for value in values if value.strip().lower() not in _MISSING]
    if len(set(known)) < 2:
        raise CliError(
            f"--label: {label!r} has fewer than two different values in the first {len(values)} rows", Exit.USAGE
        )
    return ("parquet" if parquet else "csv"), columns, known


def _look_at_csv(source: Path, label: str) -> tuple[Sequence[str], Sequence[str]]:
    unpacked = gzip.open if source.suffix == ".gz" else open
    with unpacked(source, "rt", encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text)
        columns = list(reader.fieldnames or ())
        return columns, list(_first(reader, label))


def _first(reader: csv.DictReader[str], label: str) -> Iterator[str]:
    for i, row in enumerate(reader):
        if i >= ROWS_LOOKED_AT:
            return
        yield row.get(label) or ""


def _look_at_parquet(source: Path, label: str) -> tuple[Sequence[str], Sequence[str]]:
    import pyarrow.dataset as dataset

    table = dataset.dataset(source)
    columns = list(table.schema.names)
    if label not in columns:
        return columns, []
    head = table.head(ROWS_LOOKED_AT, columns=[label]).column(label).to_pylist()
    return columns, ["" if value is None else str(value) for value in head]


def infer_task(values: Sequence[str]) -> Task:
    """Two values: binary. Numbers of many values, or with fractions: regression. Else multiclass.

    >>> infer_task(["0", "1", "1"]).value, infer_task(["1.5", "2", "7"]).value, infer_task(["a", "b", "c"]).value
    ('binary', 'regression', 'multiclass')
    """
    different = set(values)
    if len(different) == 2:
        return Task.BINARY
    try:
        numbers = [float(value) for value in different]
    except ValueError:
        return Task.MULTICLASS
    fractions = any(math.isfinite(n) and n != int(n) for n in numbers)
    return Task.REGRESSION if fractions or len(different) > MANY_VALUES else Task.MULTICLASS


def no_class(values: Sequence[str]) -> str:
    """Why these values, which are not all numbers, are no classes that one could predict; empty if they may be.

    >>> no_class([f"2013-01-{day:02}" for day in range(1, 31)])
    'looks like a time: 30 different ones in 30 rows'
    >>> no_class([f"order-{i}" for i in range(100)])
    'looks like an id or free text: 100 different values in 100 rows'
    >>> no_class(["AA", "UA", "DL"] * 10)
    ''
    """
    different = set(values)
    if len(different) <= MANY_VALUES:
        return ""
    if all(map(_is_time, different)):
        return f"looks like a time: {len(different):,} different ones in {len(values):,} rows"
    if len(different) >= NEARLY_ALL * len(values):
        return f"looks like an id or free text: {len(different):,} different values in {len(values):,} rows"
    return ""


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
