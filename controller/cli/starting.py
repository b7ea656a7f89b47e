"""`ratchet init`: a first policy from a light look at the data, without loading a data library where that can be avoided."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from controller.cli.client import CliError, Exit

if TYPE_CHECKING:
    from controller.cli.looking import Look
    from policies.starter import Starter

NAME_MAX = 63


def init(
    source: Annotated[Path, typer.Option("--from", help="CSV or Parquet file with the data.")],
    label: Annotated[str, typer.Option(help="Column that is to be predicted.")],
    name: Annotated[str | None, typer.Argument(help="The model's name; default: that of the file.", show_default=False)] = None,
    time: Annotated[str | None, typer.Option(help="Column: when the prediction is asked for; default: the order of rows.")] = None,
    label_time: Annotated[str | None, typer.Option(help="Column: when the label becomes known.")] = None,
    metric: Annotated[str | None, typer.Option(help="What good means; default: one that suits the label.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Column that is no feature; may be given again.")] = None,
    write: Annotated[Path | None, typer.Option("-w", "--write", help="Write to this file, not to the terminal.")] = None,
) -> None:  # fmt: skip
    """Write a first policy for a table of data: complete, commented, ready for 'ratchet validate' and 'ratchet backtest'."""
    from policies.reading import parse_policy
    from policies.starter import starter_policy

    if label_time is not None and time is None:
        raise CliError("--label-time needs --time: when the prediction is asked for", Exit.USAGE)
    base = (write.parent if write else Path.cwd()).absolute()
    start = _starter(
        name or name_of(source), source, base, label=label, time=time, label_time=label_time, metric=metric, exclude=exclude or []
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
    print(
        f"{write} written: look through it, then 'ratchet validate {write}' or 'ratchet backtest {write} --data {source}'"
    )


def _starter(
    name: str, source: Path, base: Path, *, label: str, time: str | None, label_time: str | None, metric: str | None, exclude: list[str]
) -> Starter:  # fmt: skip
    from datetime import timedelta

    from policies.starter import Starter

    look = _look(source, label=label, time=time, label_time=label_time, exclude=exclude)
    return Starter(
        name=name, task=look.task, source=look.kind, label=label, location=_relative(source, base), time=time,
        label_time=label_time, metric=metric, text=bool(look.texts),
        exclude=dict.fromkeys(exclude, "") | {remark.column: remark.why for remark in look.excluded},
        doubtful={remark.column: remark.why for remark in look.warned},
        row_s=look.row_s, arrivals=look.arrivals, label_lag=timedelta(seconds=look.lag_s), spread=look.spread,
        amounts=look.amounts,
    )  # fmt: skip


def _look(source: Path, *, label: str, time: str | None, label_time: str | None, exclude: list[str]) -> Look:
    """Raises CliError naming file or column."""
    from controller.cli.looking import LookError, look_at

    try:
        return look_at(source, label=label, time=time, label_time=label_time, exclude=exclude)
    except LookError as error:
        raise CliError(str(error), Exit.USAGE) from error
    except (OSError, ValueError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0]
        raise CliError(f"{source} cannot be read: {reason}", Exit.USAGE) from error
    except ImportError as error:
        raise CliError(f"reading data needs pyarrow, which the extra 'ml' installs: {error}", Exit.USAGE) from error


def name_of(source: Path) -> str:
    """A model's name from a file's: a DNS label.

    >>> name_of(Path("data/Elec2_v1.csv.gz")), name_of(Path("---.csv"))
    ('elec2-v1', 'model')
    """
    stem = source.name.partition(".")[0] if not source.name.startswith(".") else source.name[1:]
    label = re.sub(r"[^a-z0-9]+", "-", stem.lower())[:NAME_MAX].strip("-")
    return label or "model"


def _relative(source: Path, base: Path) -> str:
    """As the policy names it: relative where it lies below the policy's folder."""
    absolute = source.absolute()
    return str(absolute.relative_to(base)) if absolute.is_relative_to(base) else str(absolute)
