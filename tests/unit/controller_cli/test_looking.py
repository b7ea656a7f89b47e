"""What `ratchet init` sees in a table: which columns are features, what time is, what gives the label away."""

from __future__ import annotations

import gzip
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from controller.cli.looking import ORDER_VALUES_MIN, Look, LookError, look_at
from policies.metrics import Task

ROWS = 1_200
RANDOM = random.Random(5)
NOISE = [RANDOM.random() for _ in range(ROWS)]
BATCHES = 2 * ORDER_VALUES_MIN
BATCH = [i * BATCHES // ROWS for i in range(ROWS)]
SHUFFLED = RANDOM.sample(range(BATCHES), BATCHES)


def look(tmp_path: Path, label: str = "y", time: str | None = None, **columns: Sequence[Any]) -> Look:
    """At a CSV file of these columns, beside an ordinary feature and a label that depends on it a little."""
    table = {"noise": NOISE, "y": [int(value + RANDOM.random() > 1) for value in NOISE]} | columns
    path = tmp_path / "rows.csv"
    pyarrow.csv.write_csv(pa.table(table), path)
    return look_at(path, label=label, time=time, label_time=None, exclude=[])


def excluded(seen: Look) -> set[str]:
    return {remark.column for remark in seen.excluded}


# ---------------------------------------------------------------- columns that are no features
@pytest.mark.parametrize(
    ("values", "why"),
    [
        (range(ROWS), "order of the rows"), (BATCH, "order of the rows"),
        ([-i / 7 for i in range(ROWS)], "order of the rows"), ([SHUFFLED[i] for i in BATCH], "order of the rows"),
        ([f"batch-{SHUFFLED[i]}" for i in BATCH], "order of the rows"),
        ([i + 40 * (i == 600) for i in range(ROWS)], "order of the rows, nearly"),
        ([7] * ROWS, "same in every row"), ([None] * ROWS, "no values"),
        ([f"{RANDOM.getrandbits(64):x}-x" for _ in range(ROWS)], "names the rows"),
        (RANDOM.sample(range(10**9), ROWS), "names the rows"),
        ([f"2026-01-{1 + i % 28:02}" for i in RANDOM.sample(range(ROWS), ROWS)], "holds times"),
    ],
)  # fmt: skip
def test_columns_that_teach_nothing_that_lasts_are_left_out(tmp_path: Path, values: Sequence[Any], why: str) -> None:
    """Counters, batches, dates, ids and constants are excluded, each with the reason."""
    seen = look(tmp_path, odd=list(values))
    assert {remark.column: why in remark.why for remark in seen.excluded} == {"odd": True}


@pytest.mark.parametrize(
    "values",
    [
        [RANDOM.random() for _ in range(ROWS)], [i % 24 for i in range(ROWS)], [1 + (i // 50) % 12 for i in range(ROWS)],
        [0 if i < 500 else RANDOM.random() for i in range(ROWS)], [RANDOM.choice("abc") for _ in range(ROWS)],
        [i + 40 * RANDOM.random() for i in range(ROWS)], [RANDOM.random() < 0.01 for _ in range(ROWS)],
        [i * (ORDER_VALUES_MIN - 1) // ROWS for i in range(ROWS)], [f"store {'cab'[i // 400]}" for i in range(ROWS)],
    ],
    ids=["noise", "hour", "month", "goes-live", "category", "trend", "rare", "year", "store"],
)  # fmt: skip
def test_ordinary_features_are_kept(tmp_path: Path, values: Sequence[Any]) -> None:
    """Hours, months, trends, features that go live, and levels that only rise but are few: they can be learnt from."""
    seen = look(tmp_path, usual=list(values))
    assert seen.excluded == ()
    assert seen.warned == ()
    assert seen.texts == ()


def test_free_text_is_told_from_names(tmp_path: Path) -> None:
    """Titles are text; short codes are categories."""
    words = [f"word{i}" for i in range(50)]
    titles = [" ".join(RANDOM.choices(words, k=5)) for _ in range(ROWS)]
    assert look(tmp_path, title=titles).texts == ("title",)


# ---------------------------------------------------------------- the label in other words
def test_columns_that_make_up_the_label_are_left_out(tmp_path: Path) -> None:
    """Sums of two and three, differences and products, exactly, are known only when the label is."""
    a, b, c = ([RANDOM.randrange(1, 200) for _ in range(ROWS)] for _ in range(3))
    pairs = list(zip(a, b, c, strict=True))
    for made, used, spelled in (
        ([x + y for x, y, _ in pairs], {"a", "b"}, "a + b = y"),
        ([x + y + z for x, y, z in pairs], {"a", "b", "c"}, "a + b + c = y"),
        ([x - z for x, _, z in pairs], {"a", "c"}, "a - c = y"),
        ([y * z for _, y, z in pairs], {"b", "c"}, "b × c = y"),
        ([float(x) for x, _, _ in pairs], {"a"}, "a = y"),
    ):
        seen = look(tmp_path, a=a, b=b, c=c, y=made)
        assert seen.task is Task.REGRESSION
        assert excluded(seen) == used
        assert seen.excluded[0].why.startswith(spelled)


def test_columns_that_nearly_are_the_label_are_doubted(tmp_path: Path) -> None:
    """What tells the label almost alone may be an honest feature, so it is said and not excluded."""
    y = [RANDOM.random() for _ in range(ROWS)]
    near = look(
        tmp_path,
        y=y,
        near=[value + 0.001 * RANDOM.random() for value in y],
        far=[value + 2 * RANDOM.random() for value in y],
    )
    assert ([remark.column for remark in near.warned], excluded(near)) == (["near"], set())
    classes = RANDOM.sample("ab" * (ROWS // 2), ROWS)
    told = look(
        tmp_path, y=classes, status=["done" if one == "b" else RANDOM.choice(["late", "lost"]) for one in classes],
        renamed=["late" if one == "a" else "done" for one in classes],
        number=[RANDOM.random() + (one == "a") for one in classes], half=[one if RANDOM.random() < 0.8 else "a" for one in classes],
    )  # fmt: skip
    assert ([remark.column for remark in told.warned], excluded(told)) == (["status", "number"], {"renamed"})


def test_a_rare_class_is_not_taken_for_one_that_is_told(tmp_path: Path) -> None:
    """Where nearly all rows have one label, every column tells nearly all of them; that speaks against none."""
    y = ["fraud" if i % 400 == 0 else "fine" for i in range(ROWS)]
    assert look(tmp_path, y=y, a=[RANDOM.choice("xy") for _ in y]).warned == ()


# ---------------------------------------------------------------- time
@pytest.mark.parametrize(
    ("times", "row_s", "arrivals"),
    [
        (list(range(ROWS)), 1.0, True), ([0.5 * i for i in range(ROWS)], 0.5, True),
        ([1_700_000_000 + 60 * i for i in range(ROWS)], 60.0, False),
        ([datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=i) for i in range(ROWS)], 3600.0, False),
        ([f"2026-01-{1 + i // 100:02}" for i in range(ROWS)], 864.0, False),
    ],
    ids=["index", "half-index", "epoch", "hours", "days-of-100"],
)  # fmt: skip
def test_pace_of_rows(tmp_path: Path, times: Sequence[Any], row_s: float, arrivals: bool) -> None:
    """Seconds between rows, in every form that a time has; a hundred rows a day are one each 864 seconds."""
    seen = look(tmp_path, time="t", t=list(times))
    assert seen.row_s == pytest.approx(row_s, rel=0.02)
    assert seen.arrivals is arrivals


def test_order_is_that_of_time(tmp_path: Path) -> None:
    """Whether a column goes with the rows is asked of the rows in the order of time, not of the file."""
    order = RANDOM.sample(range(ROWS), ROWS)
    assert excluded(look(tmp_path, time="t", t=order, batch=[BATCH[i] for i in order])) == {"batch"}


def test_lag_of_labels(tmp_path: Path) -> None:
    """How long most labels take is seen in the column that says when they came."""
    path = tmp_path / "rows.parquet"
    day = timedelta(days=1)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    table = {
        "t": [start + i * day / 24 for i in range(ROWS)],
        "known": [start + i * day / 24 + 3 * day for i in range(ROWS)],
    }
    pyarrow.parquet.write_table(pa.table(table | {"x": NOISE, "y": [i % 2 for i in range(ROWS)]}), path)
    seen = look_at(path, label="y", time="t", label_time="known", exclude=["x"])
    assert (seen.kind, seen.lag_s, seen.excluded) == ("parquet", 3 * 86_400, ())


# ---------------------------------------------------------------- edges
@pytest.mark.parametrize(
    ("columns", "time", "message"),
    [
        ({}, "when", "--time: .* has no column 'when'"), ({"t": [10**13] * ROWS}, "t", "milliseconds"),
        ({"t": ["soon"] * ROWS}, "t", "must hold times"),
        ({"t": [True] * ROWS}, "t", "no times"),
    ],
)  # fmt: skip
def test_times_that_are_none_are_refused(tmp_path: Path, columns: dict[str, Any], time: str, message: str) -> None:
    """The option is named, and what stands there instead."""
    with pytest.raises(LookError, match=message):
        look(tmp_path, time=time, **columns)


def test_packed_files_and_odd_columns_are_read(tmp_path: Path) -> None:
    """gzip by its name; nested columns are no features and stop nobody."""
    packed = tmp_path / "rows.csv.gz"
    packed.write_bytes(gzip.compress(b"x,y\n" + b"".join(b"%d,%d\n" % (i * 7919 % 97, i % 2) for i in range(300))))
    assert look_at(packed, label="y", time=None, label_time=None, exclude=[]).task is Task.BINARY
    nested = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pa.table({"x": NOISE, "l": [[1]] * ROWS, "y": [i % 3 for i in range(ROWS)]}), nested)
    seen = look_at(nested, label="y", time=None, label_time=None, exclude=[])
    assert (seen.task, excluded(seen)) == (Task.MULTICLASS, {"l"})
