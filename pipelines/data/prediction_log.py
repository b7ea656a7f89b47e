"""Reader of the prediction log: what the versions of a model were asked, what they answered, and the labels that came later.

The log is append-only: Parquet segments, and journals (`.jsonl`) of rows that are not yet in a segment. It is read at every
observation, so segments outside the asked time are dropped by the statistics in their footers. A damaged file loses its own
rows only: it is named in `problems`, never fatal.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeAlias

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.data.labels import decode_label

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

FEATURE_PREFIX = "f."
_AT = pa.timestamp("us", tz="UTC")
_PREDICTIONS = pa.schema(
    [("id", pa.string()), ("at", _AT), ("version", pa.int32()), ("role", pa.string()), ("key", pa.string()),
     ("score", pa.list_(pa.float64()))]
)  # fmt: skip
_LABELS = pa.schema([("id", pa.string()), ("at", _AT), ("label", pa.string())])
Role = Literal["live", "shadow"]
Journals: TypeAlias = "dict[Path, tuple[pa.Table, Sequence[str]]]"
"""Journals that were read, and the sentences on their bad lines."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Query:
    """Which rows are asked for."""

    since: datetime | None = None
    until: datetime | None = None
    equal: dict[str, Sequence[Any]] = field(default_factory=dict)
    columns: Sequence[str] | None = None
    """None: all."""

    def may_hold(self, oldest: datetime, newest: datetime) -> bool:
        return not ((self.since and newest < self.since) or (self.until and oldest >= self.until))

    def select(self, table: pa.Table) -> pa.Table:
        conditions = []
        if self.since:
            conditions.append(pc.greater_equal(table["at"], pa.scalar(self.since, _AT)))
        if self.until:
            conditions.append(pc.less(table["at"], pa.scalar(self.until, _AT)))
        conditions += [pc.is_in(table[name], pa.array(values, table[name].type)) for name, values in self.equal.items()]
        for condition in conditions[1:]:
            conditions[0] = pc.and_(conditions[0], condition)
        if self.columns is not None:
            table = table.select([name for name in table.column_names if name in self.columns])
        return table.filter(conditions[0]) if conditions else table


def read_predictions(
    log_dir: Path,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    role: Role | None = None,
    versions: Collection[int] | None = None,
    features: bool = True,
    problems: list[str] | None = None,
    journals: Journals | None = None,
) -> pd.DataFrame:
    """Predictions with since <= at < until, oldest first.

    Columns: id, at (UTC), version, role, key, score, and unless `features` is False one `f.<feature>` a feature. `score` is
    float64 where every score is one number (binary, regression), else holds a float64 array a row; see `score_array`.
    Sentences about unreadable files are added to `problems`. A journal that is in `journals` is not read again.
    """
    equal: dict[str, Sequence[Any]] = {}
    if role is not None:
        equal["role"] = [role]
    if versions is not None:
        equal["version"] = sorted(versions)
    query = _Query(since=since, until=until, equal=equal, columns=None if features else _PREDICTIONS.names)
    table = _read_folder(log_dir / "predictions", _PREDICTIONS, query, problems, journals)
    score = table["score"].combine_chunks()
    if pc.all(pc.equal(pc.list_value_length(score), 1), skip_nulls=False, min_count=0).as_py():
        table = table.set_column(table.schema.get_field_index("score"), "score", pc.list_flatten(score))
    return _to_pandas(table.sort_by("at"))


def read_labels(
    log_dir: Path,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    problems: list[str] | None = None,
    journals: Journals | None = None,
) -> pd.DataFrame:
    """Labels that arrived with since <= at < until, one row an id: of several labels for an id the last to arrive.

    Columns: id, at (UTC), label (JSON scalar as a Python value; None where it is not readable). `journals` as in `read_predictions`.
    """
    import pandas as pd

    table = _read_folder(log_dir / "labels", _LABELS, _Query(since=since, until=until), problems, journals)
    frame = _to_pandas(table.sort_by("at")).drop_duplicates("id", keep="last").reset_index(drop=True)
    codes, uniques = pd.factorize(frame["label"])
    values = [*map(decode_label, uniques), None]
    frame["label"] = pd.Series([values[code] for code in codes], index=frame.index, dtype=object)
    return frame


class AnswerLog(Protocol):
    """What was answered and which labels came: the log of a folder, or a recorded stream that is played again."""

    def predictions(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        role: Role | None = None,
        versions: Collection[int] | None = None,
        features: bool = True,
        problems: list[str] | None = None,
    ) -> pd.DataFrame:
        """As `read_predictions`."""

    def labels(
        self, *, since: datetime | None = None, until: datetime | None = None, problems: list[str] | None = None
    ) -> pd.DataFrame:
        """As `read_labels`."""

    def labelled(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        labels_until: datetime | None = None,
        role: Role | None = "live",
        versions: Collection[int] | None = None,
        features: bool = True,
        keep_unlabelled: bool = False,
        problems: list[str] | None = None,
    ) -> pd.DataFrame:
        """As `read_labelled`."""

    def count_labelled(
        self, *, since: datetime, until: datetime, labels_until: datetime, problems: list[str] | None = None
    ) -> int:
        """Number of live rows with since <= at < until whose label arrived before `labels_until`."""


@dataclass(frozen=True, slots=True)
class FolderLog:
    """The log that the runtime writes, for one look: a journal is parsed once, so what is appended to it later is not seen."""

    folder: Path
    _journals: Journals = field(default_factory=dict, init=False, repr=False, compare=False)

    def predictions(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        role: Role | None = None,
        versions: Collection[int] | None = None,
        features: bool = True,
        problems: list[str] | None = None,
    ) -> pd.DataFrame:
        return read_predictions(
            self.folder, since=since, until=until, role=role, versions=versions, features=features, problems=problems,
            journals=self._journals,
        )  # fmt: skip

    def labels(
        self, *, since: datetime | None = None, until: datetime | None = None, problems: list[str] | None = None
    ) -> pd.DataFrame:
        return read_labels(self.folder, since=since, until=until, problems=problems, journals=self._journals)

    def labelled(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        labels_until: datetime | None = None,
        role: Role | None = "live",
        versions: Collection[int] | None = None,
        features: bool = True,
        keep_unlabelled: bool = False,
        problems: list[str] | None = None,
    ) -> pd.DataFrame:
        return read_labelled(
            self, since=since, until=until, labels_until=labels_until, role=role, versions=versions, features=features,
            keep_unlabelled=keep_unlabelled, problems=problems,
        )  # fmt: skip

    def count_labelled(
        self, *, since: datetime, until: datetime, labels_until: datetime, problems: list[str] | None = None
    ) -> int:
        frame = read_labelled(
            self, since=since, until=until, labels_until=labels_until, role="live", features=False, problems=problems
        )
        return int(frame["id"].nunique())


def read_labelled(
    log: AnswerLog,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    labels_until: datetime | None = None,
    role: Role | None = "live",
    versions: Collection[int] | None = None,
    features: bool = True,
    keep_unlabelled: bool = False,
    problems: list[str] | None = None,
) -> pd.DataFrame:
    """Predictions joined with the labels that arrived before `labels_until`, as columns `label` and `label_at`.

    One row an id, role and version (a client's retry under the same id counts once, with its last answer). Rows without a label are
    left out unless `keep_unlabelled`; they then have label None and label_at NaT.
    """
    predictions = log.predictions(
        since=since, until=until, role=role, versions=versions, features=features, problems=problems
    ).drop_duplicates(["id", "role", "version"], keep="last")
    # A label cannot arrive before its prediction was made, so labels older than `since` belong to other rows.
    labels = log.labels(since=since, until=labels_until, problems=problems)
    labels = labels[labels["label"].notna()].rename(columns={"at": "label_at"})
    joined = predictions.merge(labels, on="id", how="left" if keep_unlabelled else "inner")
    joined["label"] = joined["label"].astype(object).where(joined["label"].notna(), None)
    return joined


def score_array(frame: pd.DataFrame) -> NDArray[np.float64]:
    """The column `score` by the score convention: (n,) for binary and regression, (n, k) for multiclass."""
    import numpy as np

    scores = frame["score"]
    if scores.dtype != object:
        return np.asarray(scores.to_numpy(dtype="float64"))
    return np.stack(scores.to_list())


def feature_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """The features of logged rows under their own names."""
    names = [name for name in frame.columns if name.startswith(FEATURE_PREFIX)]
    return frame[names].rename(columns={name: name.removeprefix(FEATURE_PREFIX) for name in names})


# ---------------------------------------------------------------- files
def _read_folder(
    folder: Path, schema: pa.Schema, query: _Query, problems: list[str] | None, journals: Journals | None
) -> pa.Table:
    problems = [] if problems is None else problems
    journals = {} if journals is None else journals
    tables = []
    for stem, suffixes in _stems(folder):
        table = _read_stem(folder, stem, suffixes, schema, query, problems, journals)
        if table is not None and table.num_rows:
            tables.append(table)
    return _concatenate(tables, schema)


def _stems(folder: Path) -> list[tuple[str, frozenset[str]]]:
    """Stem and suffixes (`.parquet`, `.jsonl`) of what is in the folder, oldest first. Temporary files start with a dot.

    A container writes there, with fewer rights than ours: links, which could lead anywhere, and pipes, which never end, are passed over."""
    found: dict[str, set[str]] = {}
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    for name in names:
        stem, dot, suffix = name.rpartition(".")
        if stem and not stem.startswith(".") and suffix in ("parquet", "jsonl"):
            found.setdefault(stem, set()).add(dot + suffix)
    return [(stem, frozenset(suffixes)) for stem, suffixes in sorted(found.items())]


def _read_stem(
    folder: Path,
    stem: str,
    suffixes: frozenset[str],
    schema: pa.Schema,
    query: _Query,
    problems: list[str],
    journals: Journals,
) -> pa.Table | None:
    """One segment; its journal only if there is no segment, or an unreadable one."""
    segment, journal = folder / f"{stem}.parquet", folder / f"{stem}.jsonl"
    if ".parquet" in suffixes:
        try:
            return _read_segment(segment, schema, query)
        except FileNotFoundError:
            return None  # removed by retention since the folder was listed
        except (pa.ArrowException, OSError, ValueError) as error:
            problems.append(f"{segment}: skipped, not a readable segment: {_first_line(error)}")
            if ".jsonl" not in suffixes:
                return None
    try:
        if journal not in journals:
            journals[journal] = _read_journal(journal, schema)
        table, bad = journals[journal]
        problems.extend(bad)
        return query.select(table)
    except FileNotFoundError:
        # The journal became a segment since the folder was listed.
        return None if ".parquet" in suffixes else _read_stem(
            folder, stem, frozenset({".parquet"}), schema, query, problems, journals
        )  # fmt: skip
    except OSError as error:
        problems.append(f"{journal}: skipped, not readable: {error}")
        return None


def _read_segment(path: Path, schema: pa.Schema, query: _Query) -> pa.Table | None:
    """The asked rows of a segment; row groups without any are not read."""
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if missing := [name for name in schema.names if name not in names]:
            raise ValueError(f"it has no column {missing[0]!r}")
        groups = [i for i in range(file.num_row_groups) if _group_may_match(file, i, query)]
        if not groups:
            return None
        wanted = [n for n in names if query.columns is None or n in query.columns]
        table = file.read_row_groups(groups, columns=wanted, use_threads=False)
    for required in schema:
        position = table.schema.get_field_index(required.name)
        table = table.set_column(position, required, table[required.name].cast(required.type))
    return query.select(table)


def _group_may_match(file: pq.ParquetFile, group: int, query: _Query) -> bool:
    # Leaves are counted with nested columns unfolded, so this one is looked up by its path.
    metadata = file.metadata.row_group(group)
    leaf = next(leaf for leaf in map(metadata.column, range(metadata.num_columns)) if leaf.path_in_schema == "at")
    statistics = leaf.statistics
    if statistics is None or not statistics.has_min_max:
        return True
    return query.may_hold(_aware(statistics.min), _aware(statistics.max))


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


_At: TypeAlias = Annotated[float, msgspec.Meta(ge=0, lt=253_402_300_800)]
"""Seconds since 1970, before the year 10000."""


class _PredictionLine(msgspec.Struct, frozen=True, gc=False):
    id: str
    at: _At
    version: Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
    role: str
    score: list[float]
    key: str | None = None
    f: dict[str, float | bool | str | None] | None = None


class _LabelLine(msgspec.Struct, frozen=True, gc=False):
    id: str
    at: _At
    label: str


_Line: TypeAlias = _PredictionLine | _LabelLine


def _read_journal(path: Path, schema: pa.Schema) -> tuple[pa.Table, Sequence[str]]:
    """All whole lines, and the sentence on bad ones. A torn last line (the writer died, or is writing now) is not bad."""
    lines = path.read_bytes().split(b"\n")
    lines.pop()  # what follows the last newline: nothing, or a torn line
    kind: type[_Line] = _PredictionLine if schema is _PREDICTIONS else _LabelLine
    decoder = msgspec.json.Decoder(kind)
    rows = [row for line in lines if (row := _journal_row(line, decoder)) is not None]
    bad = len(lines) - len(rows)
    problems = [f"{path}: {bad} of {len(lines)} lines skipped, not JSON objects of the log's shape"] if bad else []
    columns = {f.name: pa.array([getattr(row, f.name) for row in rows], f.type) for f in schema if f.name != "at"}
    columns["at"] = pa.array([round(row.at * 1e6) for row in rows], pa.int64()).cast(_AT)
    features = [row.f or {} for row in rows if isinstance(row, _PredictionLine)]
    for name in sorted({name for row in features for name in row}):
        columns[FEATURE_PREFIX + name] = _feature_array([row.get(name) for row in features])
    return pa.table({f.name: columns.pop(f.name) for f in schema} | columns), problems


def _journal_row(line: bytes, decoder: msgspec.json.Decoder[_Line]) -> _Line | None:
    """The line as a row; None if it is not of the log's shape."""
    try:
        return decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _feature_array(values: list[float | bool | str | None]) -> pa.Array:
    if str in map(type, values):
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    return pa.array([None if value is None else float(value) for value in values], pa.float64())


def _concatenate(tables: list[pa.Table], schema: pa.Schema) -> pa.Table:
    """One table; features that only some segments have are null in the others, and text where they disagree."""
    if not tables:
        return schema.empty_table()
    kinds: dict[str, set[pa.DataType]] = {}
    for table in tables:
        for column in table.schema:
            if column.name.startswith(FEATURE_PREFIX):
                kinds.setdefault(column.name, set()).add(column.type)
    clashing = {name for name, types in kinds.items() if len(types - {pa.null()}) > 1}
    for name in clashing:
        tables = [_as_text(table, name) for table in tables]
    return pa.concat_tables(tables, promote_options="permissive")


def _as_text(table: pa.Table, name: str) -> pa.Table:
    position = table.schema.get_field_index(name)
    return table if position < 0 else table.set_column(position, name, table[name].cast(pa.string()))


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    return table.to_pandas(ignore_metadata=True)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
