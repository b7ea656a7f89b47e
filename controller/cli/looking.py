"""What a table looks like to somebody who is to write its first policy: task, columns that are no features, pace of the rows.

Everything is read with Arrow, which the command loads for this alone; no data frames. The rules see the whole table where that is cheap
(order of rows, distinct values) and an even sample of it where it is not. What they are not sure of becomes a warning, not an exclusion.
"""

from __future__ import annotations

import gzip
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal

from policies.metrics import Task

BYTES_MAX = 512 * 2**20
"""Of a CSV file's text, and rows of a Parquet file: more is not looked at."""
PARQUET_ROWS_MAX = 2_000_000
SAMPLE_ROWS = 2_000
MANY_VALUES = 20
"""A label of numbers with more different values than this is a quantity, not a class."""
NEARLY_ALL = 0.9
"""Text that differs in this share of the rows names them, unless it has spaces."""
TEXT_DISTINCT_MIN, TEXT_DISTINCT_SHARE, TEXT_SPACED_SHARE = 30, 0.1, 0.5
"""As `pipelines.data.kinds` tells text from categories."""
ORDER_ROWS_MIN = 100
"""Fewer rows grow by chance."""
ORDER_VALUES_MIN = 50
"""A column of fewer values, such as a year or a season's number, is one that a model may need: levels differ, and come back or stay."""
BACKWARD_SHARE = 0.01
ORDER_CORRELATION = 0.98
"""A column that goes back in at most this share of its changes, and whose ranks go so closely with the rows, is a calendar with errors."""
RENAMED = "is the label by other names: known only when the label is"
PURITY = 0.995
GIVEN_AWAY = 0.995
"""Share of labels that a column tells, and correlation with a label, from which it may be the label in other words."""
SUMMANDS_MAX = 3
COLUMNS_FOR_SUMS = 60
ARRIVAL_MAX = 100_000_000
"""Smaller numbers as times count arrivals: as seconds since 1970 they would lie before 1973."""
EPOCH_MAX = 10_000_000_000
_MISSING = frozenset({"", "na", "nan", "null", "none"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Remark:
    """A column that should be, or may have to be, kept from the features."""

    column: str
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """All that was seen."""

    kind: Literal["csv", "parquet"]
    columns: tuple[str, ...]
    rows: int
    task: Task
    excluded: tuple[Remark, ...] = ()
    warned: tuple[Remark, ...] = ()
    texts: tuple[str, ...] = ()
    """Features that hold free text."""
    row_s: float = 1.0
    """Seconds between rows, typically."""
    arrivals: bool = True
    """Whether time counts rows rather than being a clock."""
    lag_s: float = 0.0
    """After how long nine of ten labels were known."""
    spread: float | None = None
    """Mean absolute deviation of a label that is a quantity."""
    amounts: bool = False
    """Whether the label is a quantity that is never negative and has a long tail, as counts and prices have."""


class LookError(ValueError):
    """The table cannot be used as it was named; the message says which option is wrong and why."""


@dataclass(slots=True)
class _Table:
    """An Arrow table and what was asked of it."""

    data: Any
    _samples: dict[str, list[Any]] = field(default_factory=dict)

    def column(self, name: str) -> Any:
        return self.data.column(name)

    def sample(self, name: str) -> list[Any]:
        """At most about `SAMPLE_ROWS` values at even distances, the same rows for every column; None where one is missing."""
        if name not in self._samples:
            every = max(1, self.data.num_rows // SAMPLE_ROWS)
            self._samples[name] = [_plain(value) for value in self.column(name).to_pylist()[::every]]
        return self._samples[name]


def look_at(source: Path, *, label: str, time: str | None, label_time: str | None, exclude: Sequence[str]) -> Look:
    """Raises LookError naming the option and what is wrong; OSError, EOFError or ValueError for a file that cannot be read."""
    parquet = source.suffix.lower() in (".parquet", ".pq") or source.is_dir()
    data = _read_parquet(source) if parquet else _read_csv(source)
    columns = tuple(data.schema.names)
    named = [
        ("--label", label),
        ("--time", time),
        ("--label-time", label_time),
        *(("--exclude", one) for one in exclude),
    ]
    for option, name in named:
        if name is not None and name not in columns:
            raise LookError(f"{option}: {source} has no column {name!r}; it has {', '.join(columns)}")
    if time is not None:
        data = data.take(_order(data.column(time)))
    table = _Table(data)
    task = _task(table, label, [name for name in columns if name != label])
    special = {label, time, label_time, *exclude}
    features = [name for name in columns if name not in special]
    excluded, texts = _no_features(table, features)
    left = [name for name in features if name not in {remark.column for remark in excluded} and name not in texts]
    sums, warned = _label_in_other_words(table, label, task, left)
    seconds = None if time is None else _seconds(table.column(time), time)
    lag = 0.0
    if label_time is not None:
        lag = _lag(seconds or [], _seconds(table.column(label_time), label_time))
    known = [value for value in seconds or () if value is not None]
    arrivals = time is None or (_is_number(table.column(time)) and max(known, default=0.0) < ARRIVAL_MAX)
    return Look(
        kind="parquet" if parquet else "csv", columns=columns, rows=table.data.num_rows, task=task, excluded=(*excluded, *sums),
        warned=tuple(warned), texts=tuple(texts), row_s=_pace(known), arrivals=arrivals, lag_s=lag,
        spread=_spread(table.sample(label)) if task is Task.REGRESSION else None,
        amounts=task is Task.REGRESSION and _are_amounts(table.sample(label)),
    )  # fmt: skip


# ---------------------------------------------------------------- reading
def _read_csv(source: Path) -> Any:
    """As the pipelines read it, so that types are the same; the first `BYTES_MAX` of it."""
    import pyarrow
    from pyarrow import csv

    opened = gzip.open if source.suffix == ".gz" else open
    with opened(source, "rb") as file:
        content = file.read(BYTES_MAX)
    if len(content) == BYTES_MAX:
        content = content[: content.rindex(b"\n") + 1]
    if not content.strip():
        return pyarrow.table({})
    return csv.read_csv(
        pyarrow.BufferReader(content),
        read_options=csv.ReadOptions(block_size=len(content) + 1),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False),
    )


def _read_parquet(source: Path) -> Any:
    import pyarrow.dataset as dataset

    return dataset.dataset(source).head(PARQUET_ROWS_MAX)


# ---------------------------------------------------------------- label
def _task(table: _Table, label: str, others: Sequence[str]) -> Task:
    """Raises LookError for a label that nothing can be learnt of."""
    import pyarrow.types as types

    kind = table.column(label).type
    if types.is_nested(kind) or types.is_binary(kind):
        raise LookError(f"--label: {label!r} holds {kind} values; a label is a number, UTF-8 text, or true or false")
    values = [_plain(value) for value in table.column(label).to_pylist()]
    known = [str(value) for value in values if value is not None and str(value).strip().lower() not in _MISSING]
    if len(set(known)) < 2:
        raise LookError(f"--label: {label!r} has fewer than two different values in {len(values):,} rows")
    task = infer_task(known)
    if task is Task.MULTICLASS and (why := no_class(known)):
        raise LookError(
            f"--label: {label!r} {why}; name the column that is to be predicted, one of {', '.join(others)}"
        )
    return task


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


def _spread(values: Sequence[Any]) -> float | None:
    numbers = [float(value) for value in values if _finite(value)]
    if not numbers:
        return None
    middle = sum(numbers) / len(numbers)
    return sum(abs(number - middle) for number in numbers) / len(numbers) or None


def _are_amounts(values: Sequence[Any]) -> bool:
    """
    >>> _are_amounts([0, 1, 1, 2, 9]), _are_amounts([-1, 1, 1, 2, 9]), _are_amounts([7, 8, 9])
    (True, False, False)
    """
    numbers = sorted(float(value) for value in values if _finite(value))
    return bool(numbers) and numbers[0] >= 0 and sum(numbers) / len(numbers) > numbers[len(numbers) // 2]


# ---------------------------------------------------------------- columns that are no features
def _no_features(table: _Table, names: Sequence[str]) -> tuple[list[Remark], list[str]]:
    """Columns to exclude, and those that hold free text."""
    excluded, texts = [], []
    for name in names:
        column = table.column(name)
        if why := _no_feature(column):
            excluded.append(Remark(column=name, why=why))
        elif _is_text(column) and _is_prose(column):
            texts.append(name)
    return excluded, texts


def _no_feature(column: Any) -> str:
    """Why a column can teach nothing that lasts; empty if it may."""
    import pyarrow.compute as compute
    import pyarrow.types as types

    kind = column.type
    if types.is_temporal(kind):
        return "holds times: derive numbers such as the hour from them"
    known = column.drop_null()
    if not len(known):
        return "has no values"
    if types.is_nested(kind) or types.is_binary(kind):
        return f"holds {kind} values, which are no feature"
    different = compute.count_distinct(known).as_py()
    if different == 1 and not column.null_count:
        return "is the same in every row"
    if _is_text(column) and not _is_prose(column):
        if all(_is_time(value) for value in known.slice(0, 200).to_pylist()):
            return "holds times: derive numbers such as the hour from them"
        if len(known) >= ORDER_ROWS_MIN and different >= NEARLY_ALL * len(known):
            return "names the rows: nearly every one has another value"
    if _is_text(column) and _is_prose(column):
        return ""
    if len(known) >= ORDER_ROWS_MIN and not types.is_boolean(kind) and (why := _follows_the_rows(known, different)):
        return why
    if types.is_integer(kind) and different == len(known) >= 10 * ORDER_ROWS_MIN:
        return "names the rows: every one has another number"
    return ""


def _follows_the_rows(known: Any, different: int) -> str:
    """Whether a column only counts on with the rows: dates as numbers, counters, numbers or names of batches."""
    import pyarrow.compute as compute

    if different < ORDER_VALUES_MIN:
        return ""
    before, after = known.slice(0, len(known) - 1), known.slice(1)
    changes = compute.sum(compute.not_equal(before, after)).as_py() or 0
    if not changes:
        return ""
    whole = _is_text(known) or _is_integer(known)
    if whole and changes + 1 == different < len(known):
        return "goes with the order of the rows: a model would learn the past by it"
    if _is_text(known):
        return ""
    down = compute.sum(compute.less(after, before)).as_py() or 0
    backward = min(down, changes - down)
    if not backward:
        return "goes with the order of the rows: a model would learn the past by it"
    if backward > BACKWARD_SHARE * changes:
        return ""
    ranks = compute.rank(known.combine_chunks() if hasattr(known, "combine_chunks") else known, tiebreaker="first")
    if abs(_correlation(ranks.to_pylist()[:: max(1, len(ranks) // SAMPLE_ROWS)])) < ORDER_CORRELATION:
        return ""
    return "goes with the order of the rows, nearly: a model would learn the past by it"


def _is_prose(column: Any) -> bool:
    """Many different strings, most of which have spaces."""
    import pyarrow.compute as compute

    different = compute.unique(column.drop_null())
    if len(different) <= max(TEXT_DISTINCT_MIN, TEXT_DISTINCT_SHARE * (len(column) - column.null_count)):
        return False
    spaced = compute.match_substring(compute.utf8_trim_whitespace(different), " ")
    return bool(compute.sum(spaced).as_py() > TEXT_SPACED_SHARE * len(different))


# ---------------------------------------------------------------- the label in other words
def _label_in_other_words(
    table: _Table, label: str, task: Task, names: Sequence[str]
) -> tuple[list[Remark], list[Remark]]:
    """Columns that make up the label by arithmetic, to exclude; and columns that tell it so well that somebody should look."""
    truth = table.sample(label)
    if task is not Task.REGRESSION:
        remarks = [remark for name in names if (remark := _tells_class(name, table.sample(name), truth))]
        return [one for one in remarks if one.why == RENAMED], [one for one in remarks if one.why != RENAMED]
    columns = {name: table.sample(name) for name in names if _is_number(table.column(name))}
    whole = [Remark(column=name, why=why) for names_, why in _sums(columns, truth, label) for name in names_]
    whole = list({remark.column: remark for remark in reversed(whole)}.values())[::-1]
    made = {remark.column for remark in whole}
    warned = []
    for name, values in columns.items():
        together = [(float(a), float(b)) for a, b in zip(values, truth, strict=True) if _finite(a) and _finite(b)]
        if name not in made and abs(close := _pearson(together)) > GIVEN_AWAY:
            warned.append(Remark(column=name, why=f"correlation with the label {close:.4f}"))
    return whole, warned


def _tells_class(name: str, values: Sequence[Any], truth: Sequence[Any]) -> Remark | None:
    pairs = [(value, label) for value, label in zip(values, truth, strict=True) if label is not None]
    usual = max(Counter(label for _, label in pairs).values(), default=0) / max(len(pairs), 1)
    groups: dict[Any, Counter[Any]] = {}
    for value, label in _grouped(pairs):
        groups.setdefault(value, Counter())[label] += 1
    told = sum(max(counts.values()) for counts in groups.values()) / max(len(pairs), 1)
    if len(groups) > len(pairs) / 20 or told < PURITY or told - usual < (1 - usual) / 2:
        return None
    if told == 1 and len(pairs) >= ORDER_ROWS_MIN and len(groups) == len({label for _, label in pairs}):
        return Remark(column=name, why=RENAMED)
    return Remark(column=name, why=f"alone tells the label in {100 * told:.1f} % of the rows")


def _grouped(pairs: Sequence[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    """Numbers of many values by their fiftieths."""
    numbers = sorted({value for value, _ in pairs if _finite(value)})
    if len(numbers) <= 50:
        yield from pairs
        return
    ordered = sorted((value for value, _ in pairs if _finite(value)))
    cuts = sorted({ordered[len(ordered) * i // 50] for i in range(1, 50)})
    for value, label in pairs:
        yield (sum(value >= cut for cut in cuts) if _finite(value) else None), label


def _sums(
    columns: Mapping[str, Sequence[Any]], truth: Sequence[Any], label: str
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Sets of columns whose sum, difference or product is the label in every row of the sample, the smallest first."""
    rows = [i for i, value in enumerate(truth) if _finite(value)]
    varying = {
        name: [float(values[i]) for i in rows]
        for name, values in columns.items()
        if all(_finite(values[i]) for i in rows) and len({values[i] for i in rows}) > 1
    }
    wanted = [float(truth[i]) for i in rows]
    used: set[str] = set()
    for size in range(1, SUMMANDS_MAX + 1):
        left = [name for name in varying if name not in used][:COLUMNS_FOR_SUMS]
        for names in itertools.combinations(left, size):
            if (spelled := _made_of([varying[name] for name in names], wanted)) is not None:
                used.update(names)
                yield names, f"{spelled.format(*names)} = {label} exactly: known only when the label is"


def _made_of(parts: Sequence[Sequence[float]], wanted: Sequence[float]) -> str | None:
    forms: dict[str, Any] = {" + ".join(["{}"] * len(parts)): sum}
    if len(parts) == 2:
        forms |= {
            "{} - {}": lambda pair: pair[0] - pair[1],
            "{1} - {0}": lambda pair: pair[1] - pair[0],
            "{} × {}": lambda pair: pair[0] * pair[1],
        }
    for spelled, compute in forms.items():
        if all(
            math.isclose(compute(row), value, rel_tol=1e-9, abs_tol=1e-9)
            for row, value in zip(zip(*parts, strict=True), wanted, strict=True)
        ):
            return spelled
    return None


# ---------------------------------------------------------------- time
def _order(column: Any) -> Any:
    import pyarrow.compute as compute

    return compute.sort_indices(column)


def _seconds(column: Any, name: str) -> list[float | None]:
    """As the pipelines read times: numbers are seconds since 1970, text is ISO 8601. Raises LookError."""
    import pyarrow.types as types

    values = column.to_pylist()
    if types.is_boolean(column.type):
        raise LookError(f"--time: {name!r} holds true and false, and no times")
    if _is_number(column):
        known = [float(value) for value in values if value is not None]
        if bad := [value for value in known if not 0 <= value <= EPOCH_MAX]:
            raise LookError(
                f"--time: numbers are seconds since 1970, or count arrivals, and must be from 0 to {EPOCH_MAX}, "
                f"but {name!r} holds {bad[0]:g}; are they milliseconds?"
            )
        return [None if value is None else float(value) for value in values]
    return [None if value is None else _moment_s(value, name) for value in values]


def _moment_s(value: Any, name: str) -> float:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        if not isinstance(moment, datetime):
            moment = datetime(moment.year, moment.month, moment.day)  # noqa: DTZ001 - only distances are of interest
        return (moment.replace(tzinfo=None) - datetime(1970, 1, 1)).total_seconds()  # noqa: DTZ001
    except (ValueError, AttributeError) as error:
        raise LookError(
            f"--time: {name!r} must hold times such as 2026-03-01T12:00:00Z, or numbers, but holds {value!r}"
        ) from error


def _pace(seconds: Sequence[float]) -> float:
    """Seconds between rows, the median; where rows come in bursts, by the median of what five thousand rows (or a third of all) take.

    >>> _pace([0.0, 0.0, 0.0, 3600.0, 3600.0, 3600.0, 7200.0, 7200.0, 7200.0]), _pace([])
    (1200.0, 1.0)
    """
    step = min(5000, max(1, len(seconds) // 3))
    middle, gap = (_middle_gap(seconds, rows) / rows for rows in (step, 1))
    if abs(gap - middle) <= 0.1 * middle:
        return gap or 1.0
    if middle > 0:
        return middle
    return (seconds[-1] - seconds[0]) / (len(seconds) - 1) if len(seconds) > 1 and seconds[-1] > seconds[0] else 1.0


def _middle_gap(seconds: Sequence[float], rows: int) -> float:
    spans = sorted(b - a for a, b in zip(seconds, seconds[rows:], strict=False))
    return spans[len(spans) // 2] if spans else 0.0


def _lag(asked: Sequence[float | None], known: Sequence[float | None]) -> float:
    lags = sorted(b - a for a, b in zip(asked, known, strict=True) if a is not None and b is not None)
    return max(lags[len(lags) * 9 // 10], 0.0) if lags else 0.0


# ---------------------------------------------------------------- values
def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, date) else value


def _finite(value: Any) -> bool:
    return value is not None and not isinstance(value, str) and math.isfinite(value)


def _is_number(column: Any) -> bool:
    import pyarrow.types as types

    kind = column.type
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))


def _is_integer(column: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_integer(column.type))


def _is_text(column: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_string(column.type) or types.is_large_string(column.type) or types.is_string_view(column.type))


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _correlation(values: Sequence[float]) -> float:
    """With their positions."""
    return _pearson([(float(i), float(value)) for i, value in enumerate(values)])


def _pearson(pairs: Sequence[tuple[float, float]]) -> float:
    """0 where it is not defined."""
    if len(pairs) < 3:
        return 0.0
    x, y = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    xy = sum((a - x) * (b - y) for a, b in pairs)
    xx, yy = sum((a - x) ** 2 for a, _ in pairs), sum((b - y) ** 2 for _, b in pairs)
    return xy / math.sqrt(xx * yy) if xx > 0 and yy > 0 else 0.0
