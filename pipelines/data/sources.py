"""Data sources: where a policy's rows come from.

A source reads; it neither checks nor selects (`pipelines.data.checks` and `pipelines.prepare` do). Errors name the file or database and say
what to do: `PermanentJobError` where trying again cannot help, `RetryableJobError` where it may.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipelines.data.labels import label_key
from pipelines.data.prediction_log import FolderLog, feature_columns, read_labelled
from pipelines.jobs.port import PermanentJobError, RetryableJobError
from policies.schema import CsvSource, DataSpec, ParquetSource, PredictionLogSource, SqlSource

if TYPE_CHECKING:
    import pandas as pd

_BLOCK_BYTES_MAX = 2**31 - 1


class DataSource(Protocol):
    """Something that gives a table."""

    def fingerprint(self) -> str | None:
        """`sha256:…` of what `read` would give, if that can be told without reading it; else None.
        Raises PermanentJobError, RetryableJobError."""

    def read(self) -> pd.DataFrame:
        """All rows. Raises PermanentJobError, RetryableJobError."""


@dataclass(frozen=True, slots=True)
class CsvFile:
    """Comma-separated values in UTF-8 with a header line; gzip if the name ends in `.gz`."""

    path: Path

    def fingerprint(self) -> str:
        with _file_errors(self.path, "CSV"):
            return f"sha256:{_file_digest(self.path)}"

    def read(self) -> pd.DataFrame:
        with _file_errors(self.path, "CSV"):
            content = self.path.read_bytes()
            if self.path.suffix == ".gz":
                content = gzip.decompress(content)
            if not content.strip():
                raise PermanentJobError(f"{self.path}: the file is empty; it must have a header line and rows")
            # One block, so that a column's type is told from all its values and not from the first megabyte of them.
            options = pyarrow.csv.ReadOptions(block_size=min(max(len(content) + 1, 1 << 20), _BLOCK_BYTES_MAX))
            table = pyarrow.csv.read_csv(
                pa.BufferReader(content),
                read_options=options,
                parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
                convert_options=pyarrow.csv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False),
            )
        return _to_frame(table, self.path)


@dataclass(frozen=True, slots=True)
class ParquetFiles:
    """One Parquet file, or all `*.parquet` of a folder (subfolders too), in the order of their names."""

    path: Path

    def _files(self) -> list[Path]:
        if not self.path.is_dir():
            return [self.path]
        found = sorted(p for p in self.path.rglob("*.parquet") if not p.name.startswith((".", "_")))
        if not found:
            raise PermanentJobError(f"data.source.path: folder {self.path} holds no *.parquet file")
        return found

    def fingerprint(self) -> str:
        total = hashlib.sha256()
        for path in self._files():
            with _file_errors(path, "Parquet"):
                name = path.relative_to(self.path) if path != self.path else path.name
                total.update(f"{name}\0{_file_digest(path)}\n".encode())
        return f"sha256:{total.hexdigest()}"

    def read(self) -> pd.DataFrame:
        tables = []
        for path in self._files():
            with _file_errors(path, "Parquet"), pq.ParquetFile(path) as file:
                tables.append(file.read())
        try:
            table = pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowException as error:
            raise PermanentJobError(
                f"{self.path}: its files do not have the same columns: {first_line(error)}"
            ) from error
        return _to_frame(table, self.path)


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionLog:
    """What the live versions of the model were asked, with the labels that came back, under the policy's column names."""

    log_dir: Path
    spec: DataSpec
    now: datetime
    since: datetime | None = None

    def fingerprint(self) -> None:
        return None

    def read(self) -> pd.DataFrame:
        rows = read_labelled(
            FolderLog(self.log_dir), since=self.since, until=self.now, labels_until=self.now, keep_unlabelled=True
        )
        if rows.empty:
            raise PermanentJobError(
                f"data.source: the prediction log {self.log_dir} holds no rows; train the first version from another source"
            )
        frame = feature_columns(rows)
        frame[self.spec.label] = _of_one_type(rows["label"])
        # A policy may name a logged feature as its time or id; what the log itself knows stands in where it does not.
        for column, own in ((self.spec.time, "at"), (self.spec.label_time, "label_at"), (self.spec.id, "id")):
            if column is not None and column not in frame:
                frame[column] = rows[own]
        return frame


def _of_one_type(labels: pd.Series) -> pd.Series:
    """Labels as reported by clients, which may mix `1`, `1.0` and `"1"`: as they are if of one type, else numbers, else text."""
    import pandas as pd

    types = {type(value) for value in labels if value is not None}
    if len(types) <= 1:
        return labels.infer_objects()
    if types <= {bool, int, float}:
        return pd.to_numeric(labels.map(float, na_action="ignore"))
    return labels.map(label_key, na_action="ignore")


def with_log_columns(spec: DataSpec) -> DataSpec:
    """The policy's data section with the prediction log's own columns where the policy names none, since the log has them always."""
    if not isinstance(spec.source, PredictionLogSource):
        return spec
    changes = {"time": spec.time or "at", "id": spec.id or "id"}
    if spec.label_time is None and spec.label_delay is None:
        changes["label_time"] = "label_at"
    return spec.model_copy(update=changes)


def open_source(
    spec: DataSpec, *, policy_dir: Path, log_dir: Path, now: datetime, since: datetime | None = None
) -> DataSource:
    """The source that `data.source` names; relative paths start at `policy_dir`. `since` spares reading older rows of the log."""
    match spec.source:
        case CsvSource(path=path):
            return CsvFile(policy_dir / path)
        case ParquetSource(path=path):
            return ParquetFiles(policy_dir / path)
        case SqlSource():
            from pipelines.data.sql import SqlQuery

            return SqlQuery.of(spec.source, policy_dir)
        case PredictionLogSource():
            return PredictionLog(log_dir=log_dir, spec=with_log_columns(spec), now=now, since=since)


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# ---------------------------------------------------------------- files
def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _file_errors(path: Path, kind: str) -> Iterator[None]:
    """Say what is wrong with the file in the owner's words."""
    try:
        yield
    except FileNotFoundError as error:
        raise PermanentJobError(f"data.source.path: there is no file {path}") from error
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise PermanentJobError(f"data.source.path: {path} cannot be read: {error.strerror}") from error
    except (pa.ArrowException, gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise PermanentJobError(
            f"{path}: not a whole {kind} file (truncated or damaged?): {first_line(error)}"
        ) from error
    except OSError as error:
        if error.errno is None or error.errno == errno.EINVAL:  # Arrow's own, about the content
            raise PermanentJobError(
                f"{path}: not a whole {kind} file (truncated or damaged?): {first_line(error)}"
            ) from error
        raise RetryableJobError(f"{path}: could not be read now: {error}") from error


def _to_frame(table: pa.Table, path: Path) -> pd.DataFrame:
    """As pandas, with the few column types that the rest deals with: numbers, booleans, text, timestamps."""
    names = table.column_names
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise PermanentJobError(
            f"{path}: column names must differ but {doubled[0]!r} occurs {names.count(doubled[0])} times"
        )
    for position, field in enumerate(table.schema):
        if pa.types.is_decimal(field.type):
            table = table.set_column(position, field.name, table[position].cast(pa.float64()))
        elif pa.types.is_dictionary(field.type):
            table = table.set_column(position, field.name, table[position].cast(field.type.value_type))
    return table.to_pandas(ignore_metadata=True, date_as_object=False)
