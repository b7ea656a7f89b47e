"""Data sources: what they read, and what they say about files that are missing or damaged."""

from __future__ import annotations

import gzip
import json
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flights import T0, flights, spec_of
from test_prediction_log import label, prediction, write_segment

from pipelines.data.sources import CsvFile, DataSource, ParquetFiles, open_source, with_log_columns
from pipelines.jobs.port import PermanentJobError, RetryableJobError


def test_csv_plain_and_gzip_give_the_same_table(tmp_path: Path) -> None:
    """Types are told from the whole column; empty cells and NA are missing."""
    text = "a,b,c,d\n" + "1,x,true,\n" * 3 + '2.5,"y, z",false,NA\n'
    (tmp_path / "d.csv").write_text(text)
    (tmp_path / "d.csv.gz").write_bytes(gzip.compress(text.encode()))
    plain, packed = CsvFile(tmp_path / "d.csv").read(), CsvFile(tmp_path / "d.csv.gz").read()
    pd.testing.assert_frame_equal(plain, packed)
    assert plain["a"].tolist() == [1, 1, 1, 2.5]
    assert plain["b"].tolist() == ["x", "x", "x", "y, z"]
    assert plain["c"].tolist() == [True, True, True, False]
    assert plain["d"].isna().all()


def test_csv_column_whose_type_changes_far_down(tmp_path: Path) -> None:
    """Two megabytes of whole numbers, then a fraction: still a column of numbers."""
    (tmp_path / "d.csv").write_text("a,b\n" + "1000000,xxxxxxxxxx\n" * 120_000 + "1.5,x\n")
    frame = CsvFile(tmp_path / "d.csv").read()
    assert frame["a"].iloc[-1] == 1.5


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("d.csv", b"", "the file is empty"),
        ("d.csv", b"a,b\n1,2\n3\n", "truncated or damaged"),
        ("d.csv", b"a,a\n1,2\n", "column names must differ but 'a' occurs 2 times"),
        ("d.csv", b"a,b\n\xff\xfe\x00,2\n", "d.csv"),
        ("d.csv.gz", gzip.compress(b"a,b\n1,2\n")[:-6], "truncated or damaged"),
        ("d.csv.gz", b"not gzip", "truncated or damaged"),
    ],
)
def test_damaged_csv_is_named(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    """Empty, cut in a row, doubled columns, cut gzip: the message has the file and the reason."""
    (tmp_path / name).write_bytes(content)
    if content.startswith(
        b"a,b\n\xff"
    ):  # bytes that are no UTF-8 stay bytes, which can be no feature; they do not crash
        CsvFile(tmp_path / name).read()
        return
    with pytest.raises(PermanentJobError) as caught:
        CsvFile(tmp_path / name).read()
    assert expected in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("source", [CsvFile(Path("/nowhere/d.csv")), ParquetFiles(Path("/nowhere/d.parquet"))])
def test_missing_file_is_named(source: DataSource) -> None:
    """Both reading and fingerprinting say which file is not there."""
    with pytest.raises(PermanentJobError, match=r"data.source.path: there is no file /nowhere/d\."):
        source.read()
    with pytest.raises(PermanentJobError, match="there is no file /nowhere"):
        source.fingerprint()


def test_folder_in_place_of_a_csv(tmp_path: Path) -> None:
    """A folder is no CSV file."""
    with pytest.raises(PermanentJobError, match="cannot be read: Is a directory"):
        CsvFile(tmp_path).read()


def test_parquet_file_and_folder(tmp_path: Path) -> None:
    """A folder's files in the order of names, subfolders too, hidden ones not; columns that some lack are missing there."""
    frame = flights(20)
    (tmp_path / "d" / "sub").mkdir(parents=True)
    frame.iloc[:10].to_parquet(tmp_path / "d" / "a.parquet")
    frame.iloc[10:].drop(columns="wind").to_parquet(tmp_path / "d" / "sub" / "b.parquet")
    (tmp_path / "d" / ".c.parquet.tmp").write_text("being written")
    (tmp_path / "d" / "_d.parquet").write_text("not ours")
    read = ParquetFiles(tmp_path / "d").read()
    assert read["flight"].tolist() == list(range(20))
    assert read["wind"].isna().sum() == 10
    single = ParquetFiles(tmp_path / "d" / "a.parquet").read()
    assert single["wind"].tolist() == frame["wind"][:10].tolist()


def test_parquet_decimals_categories_and_dates_become_plain(tmp_path: Path) -> None:
    """Decimals are numbers, dictionary-encoded text is text, dates are timestamps."""
    table = pa.table(
        {
            "money": pa.array([1, 2]).cast(pa.decimal128(24, 2)),
            "kind": pa.array(["a", "b"]).dictionary_encode(),
            "day": pa.array([0, 1], pa.date32()),
        }
    )
    pq.write_table(table, tmp_path / "d.parquet")
    frame = ParquetFiles(tmp_path / "d.parquet").read()
    assert frame["money"].tolist() == [1.0, 2.0]
    assert frame["kind"].tolist() == ["a", "b"]
    assert pd.api.types.is_datetime64_any_dtype(frame["day"])


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    """Truncated, empty, in a folder: the file is named; so are folders without files and with files that do not fit together."""
    path = tmp_path / "d.parquet"
    flights(200).to_parquet(path)
    whole = path.read_bytes()
    for content in (whole[:-100], whole[: len(whole) // 2], b""):
        path.write_bytes(content)
        with pytest.raises(PermanentJobError, match=r"d\.parquet: not a whole Parquet file \(truncated or damaged"):
            ParquetFiles(tmp_path).read()
    path.unlink()
    with pytest.raises(PermanentJobError, match=r"holds no \*\.parquet file"):
        ParquetFiles(tmp_path).read()
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": ["one"]}), tmp_path / "b.parquet")
    with pytest.raises(PermanentJobError, match="do not have the same columns"):
        ParquetFiles(tmp_path).read()


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    """Equal content, equal fingerprint, whatever the dates; one byte more, another one."""
    source = ParquetFiles(tmp_path)
    flights(20).to_parquet(tmp_path / "a.parquet")
    before = source.fingerprint()
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content)
    assert source.fingerprint() == before
    flights(21).to_parquet(tmp_path / "b.parquet")
    assert source.fingerprint() != before


def test_paths_start_at_the_policys_folder(tmp_path: Path) -> None:
    """A relative path in a policy is relative to the policy's own folder."""
    data = spec_of().data
    source = open_source(data, policy_dir=tmp_path, log_dir=tmp_path, now=T0)
    assert source == CsvFile(tmp_path / "flights.csv")


def test_unreadable_file_may_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that does not answer is worth another try."""

    def broken(self: Path) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(RetryableJobError, match=r"could not be read now: .*Input/output error"):
        CsvFile(tmp_path / "d.csv").read()


# ---------------------------------------------------------------- prediction log
def test_prediction_log_as_a_table(tmp_path: Path) -> None:
    """Live rows with their features, the label under the policy's name, and the log's own time, label time and id."""
    rows = [prediction(str(i), T0 + timedelta(hours=i), f={"x": float(i), "carrier": "UA"}) for i in range(5)]
    write_segment(tmp_path / "predictions", "a", [*rows, prediction("0", T0, role="shadow", version=2)])
    write_segment(
        tmp_path / "labels", "a", [label("0", T0 + timedelta(hours=2), 1), label("1", T0 + timedelta(hours=9), "0")]
    )
    data = with_log_columns(
        spec_of(data={"source": {"kind": "prediction-log"}, "time": None, "label_time": None, "exclude": []}).data
    )
    assert (data.time, data.label_time, data.id) == ("at", "label_at", "id")
    source = open_source(data, policy_dir=tmp_path, log_dir=tmp_path, now=T0 + timedelta(hours=4))
    frame = source.read()
    assert source.fingerprint() is None
    assert frame["x"].tolist() == [0, 1, 2, 3]
    assert frame["late"].tolist()[0] == 1
    assert frame["late"].isna().sum() == 3
    assert set(frame.columns) == {"x", "carrier", "late", "at", "label_at", "id"}


def test_prediction_log_of_mixed_labels(tmp_path: Path) -> None:
    """Labels that clients spelled as numbers and as text are one type in the table."""
    rows = [prediction(str(i), T0) for i in range(3)]
    write_segment(tmp_path / "predictions", "a", rows)
    write_segment(tmp_path / "labels", "a", [label("0", T0, 1), label("1", T0, "0"), label("2", T0, True)])
    data = spec_of(data={"source": {"kind": "prediction-log"}, "label_time": None, "label_delay": "1h"}).data
    assert with_log_columns(data).label_time is None
    frame = open_source(data, policy_dir=tmp_path, log_dir=tmp_path, now=T0 + timedelta(hours=1)).read()
    assert sorted(frame["late"]) == ["0", "1", "1"]
    assert json.dumps(frame["late"].tolist())


def test_empty_prediction_log_says_so(tmp_path: Path) -> None:
    """A model that was never asked cannot be trained on its log."""
    data = spec_of(data={"source": {"kind": "prediction-log"}}).data
    with pytest.raises(PermanentJobError, match="holds no rows; train the first version from another source"):
        open_source(data, policy_dir=tmp_path, log_dir=tmp_path, now=T0).read()
