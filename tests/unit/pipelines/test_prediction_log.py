"""The reader of the prediction log: what it returns, what it leaves out, and what it does with damaged files."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data import prediction_log
from pipelines.data.prediction_log import (
    FolderLog,
    feature_columns,
    read_labelled,
    read_labels,
    read_predictions,
    score_array,
)

T0 = datetime(2026, 3, 1, tzinfo=UTC)


def hours(count: float) -> datetime:
    return T0 + timedelta(hours=count)


def prediction(row_id: str, at: datetime, **changes: Any) -> dict[str, Any]:
    row = {"id": row_id, "at": at, "version": 1, "role": "live", "key": None, "score": [0.25]}
    return row | {"f": {"x": 1.5, "carrier": "UA"}} | changes


def label(row_id: str, at: datetime, value: Any) -> dict[str, Any]:
    return {"id": row_id, "at": at, "label": json.dumps(value)}


def write_segment(folder: Path, stem: str, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    fixed: list[tuple[str, pa.DataType]] = [("id", pa.string()), ("at", pa.timestamp("us", tz="UTC"))]
    if folder.name == "labels":
        fixed.append(("label", pa.string()))
    else:
        fixed += [
            ("version", pa.int32()),
            ("role", pa.string()),
            ("key", pa.string()),
            ("score", pa.list_(pa.float64())),
        ]
    columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in fixed}
    for name in sorted({name for row in rows for name in row.get("f", {})}):
        columns[f"f.{name}"] = pa.array([row["f"].get(name) for row in rows])
    path = folder / f"{stem}.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def write_journal(folder: Path, stem: str, rows: list[dict[str, Any]], *, torn: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.jsonl"
    lines = [json.dumps(row | {"at": row["at"].timestamp()}) + "\n" for row in rows]
    path.write_text("".join(lines) + torn)
    return path


def test_rows_of_segments_and_journals_come_back_in_order_of_time(tmp_path: Path) -> None:
    """Rows of a segment and of a younger journal are one table, oldest first, times in UTC."""
    write_journal(tmp_path / "predictions", "b", [prediction("3", hours(3)), prediction("2", hours(2))])
    write_segment(tmp_path / "predictions", "a", [prediction("1", hours(1)), prediction("4", hours(4))])
    frame = read_predictions(tmp_path)
    assert frame["id"].tolist() == ["1", "2", "3", "4"]
    assert [at.to_pydatetime() for at in frame["at"]] == [hours(1), hours(2), hours(3), hours(4)]
    assert frame["score"].tolist() == [0.25] * 4
    assert feature_columns(frame)["carrier"].tolist() == ["UA"] * 4


def test_missing_log_is_an_empty_table_with_the_columns(tmp_path: Path) -> None:
    """A model that was never asked has an empty log, not an error."""
    assert read_predictions(tmp_path / "none").columns.tolist() == ["id", "at", "version", "role", "key", "score"]
    assert read_labels(tmp_path / "none").empty
    assert read_labelled(FolderLog(tmp_path / "none")).empty


def test_journal_is_ignored_once_its_segment_is_there(tmp_path: Path) -> None:
    """Rotation writes the segment first and deletes the journal later: rows in both count once."""
    rows = [prediction("1", hours(1)), prediction("2", hours(2))]
    write_journal(tmp_path / "predictions", "a", rows)
    write_segment(tmp_path / "predictions", "a", rows)
    assert read_predictions(tmp_path)["id"].tolist() == ["1", "2"]


def test_journal_that_became_a_segment_while_reading_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a listed journal is gone at the time of opening it, its segment is read instead."""
    folder = tmp_path / "predictions"
    journal = write_journal(folder, "a", [prediction("1", hours(1))])
    listed = prediction_log._stems(folder)
    journal.unlink()
    write_segment(folder, "a", [prediction("1", hours(1))])
    monkeypatch.setattr(prediction_log, "_stems", lambda _: listed)
    problems: list[str] = []
    assert read_predictions(tmp_path, problems=problems)["id"].tolist() == ["1"]
    assert problems == []


def test_torn_last_line_is_ignored_and_other_bad_lines_are_reported(tmp_path: Path) -> None:
    """A line that is still being written is nothing to report; a damaged line in the middle is, and costs only itself."""
    good = [prediction("1", hours(1)), prediction("2", hours(2))]
    path = write_journal(tmp_path / "predictions", "a", good, torn='{"id": "3", "at": 17')
    problems: list[str] = []
    assert read_predictions(tmp_path, problems=problems)["id"].tolist() == ["1", "2"]
    assert problems == []
    lines = path.read_text().splitlines()
    bad = ["[1]", '{"id": "9"}', "\x00\x00", json.dumps({**good[0], "at": 1.0, "score": "x"}), json.dumps({"at": "x"})]
    path.write_text("\n".join([lines[0], *bad, lines[1]]) + "\n")
    assert read_predictions(tmp_path, problems=problems)["id"].tolist() == ["1", "2"]
    assert len(problems) == 1
    assert "5 of 7 lines" in problems[0]
    assert "a.jsonl" in problems[0]


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "other columns"])
def test_damaged_segment_is_named_and_costs_only_its_own_rows(tmp_path: Path, damage: str) -> None:
    """One bad segment is reported by name; the others are read."""
    folder = tmp_path / "predictions"
    write_segment(folder, "a", [prediction("1", hours(1))])
    bad = write_segment(folder, "b", [prediction("2", hours(2))])
    content = {"truncated": bad.read_bytes()[:-40], "empty": b"", "garbage": b"PAR1 no, not at all PAR1"}
    if damage == "other columns":
        pq.write_table(pa.table({"x": [1]}), bad)
    else:
        bad.write_bytes(content[damage])
    problems: list[str] = []
    assert read_predictions(tmp_path, problems=problems)["id"].tolist() == ["1"]
    assert len(problems) == 1
    assert "b.parquet" in problems[0]


def test_journal_of_a_damaged_segment_is_used_if_it_is_still_there(tmp_path: Path) -> None:
    """A segment that cannot be read does not hide the journal it was made from."""
    write_journal(tmp_path / "predictions", "a", [prediction("1", hours(1))])
    write_segment(tmp_path / "predictions", "a", [prediction("1", hours(1))]).write_bytes(b"PAR1")
    assert read_predictions(tmp_path)["id"].tolist() == ["1"]


def test_filters_by_time_role_and_version(tmp_path: Path) -> None:
    """since is inclusive, until exclusive; role and versions select."""
    rows = [
        prediction(f"{version}-{role}-{hour}", hours(hour), version=version, role=role)
        for version in (1, 2)
        for role in ("live", "shadow")
        for hour in range(4)
    ]
    write_segment(tmp_path / "predictions", "a", rows[:9])
    write_journal(tmp_path / "predictions", "b", rows[9:])
    frame = read_predictions(tmp_path, since=hours(1), until=hours(3), role="shadow", versions=[2])
    assert frame["id"].tolist() == ["2-shadow-1", "2-shadow-2"]
    bare = read_predictions(tmp_path, features=False)
    assert len(bare) == 16
    assert bare.columns.tolist() == ["id", "at", "version", "role", "key", "score"]


def test_segments_outside_the_window_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups are dropped by the statistics in the footer, so an observation costs what its window holds."""
    for day in range(10):
        write_segment(tmp_path / "predictions", f"{day}", [prediction(f"{day}", hours(24 * day))])
    read: list[Any] = []
    original = pq.ParquetFile.read_row_groups
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_groups", lambda self, *a, **k: read.append(a) or original(self, *a, **k)
    )
    assert read_predictions(tmp_path, since=hours(24 * 8))["id"].tolist() == ["8", "9"]
    assert len(read) == 2


def test_features_that_changed_between_versions_are_unified(tmp_path: Path) -> None:
    """A feature that a version lacks is missing there; one that turned from number to text is text."""
    write_segment(tmp_path / "predictions", "a", [prediction("1", hours(1), f={"x": 1.5, "old": 1.0})])
    write_segment(tmp_path / "predictions", "b", [prediction("2", hours(2), f={"x": "high", "new": 2.0})])
    features = feature_columns(read_predictions(tmp_path))
    assert features["x"].tolist() == ["1.5", "high"]
    assert features["old"].isna().tolist() == [False, True]
    assert features["new"].isna().tolist() == [True, False]


def test_multiclass_scores_are_a_matrix(tmp_path: Path) -> None:
    """score_array gives (n,) for one number a row and (n, k) for k."""
    write_segment(
        tmp_path / "predictions", "a", [prediction(str(i), hours(i), score=[0.1, 0.2, 0.7]) for i in range(2)]
    )
    assert score_array(read_predictions(tmp_path)).tolist() == [[0.1, 0.2, 0.7]] * 2
    write_segment(tmp_path / "predictions", "a", [prediction(str(i), hours(i)) for i in range(2)])
    assert np.array_equal(score_array(read_predictions(tmp_path)), [0.25, 0.25])


def test_last_label_of_an_id_wins_and_every_kind_of_label_is_decoded(tmp_path: Path) -> None:
    """Several labels for an id: the last to arrive counts, wherever it stands in the files."""
    write_segment(tmp_path / "labels", "b", [label("1", hours(1), 0), label("2", hours(1), "late")])
    write_journal(tmp_path / "labels", "a", [label("1", hours(5), 1), label("3", hours(2), 12.5)])
    write_segment(tmp_path / "labels", "c", [label("1", hours(3), 0), {"id": "4", "at": hours(1), "label": "not json"}])
    found = read_labels(tmp_path).set_index("id")["label"].to_dict()
    assert found == {"1": 1, "2": "late", "3": 12.5, "4": None}


def test_labelled_rows_are_joined_and_labels_from_the_future_are_not_seen(tmp_path: Path) -> None:
    """read_labelled joins by id, sees labels up to labels_until, and keeps unlabelled rows only when asked."""
    rows = [prediction(str(i), hours(i)) for i in range(4)] + [prediction("1", hours(1), role="shadow", version=2)]
    write_segment(tmp_path / "predictions", "a", [*rows, prediction("0", hours(0))])
    write_segment(
        tmp_path / "labels", "a", [label("0", hours(1), 1), label("1", hours(6), 0), label("zz", hours(1), 1)]
    )
    assert read_labelled(FolderLog(tmp_path))["id"].tolist() == ["0", "1"]
    assert read_labelled(FolderLog(tmp_path), role=None)["role"].tolist() == ["live", "live", "shadow"]
    seen = read_labelled(FolderLog(tmp_path), labels_until=hours(5), keep_unlabelled=True)
    assert seen["label"].tolist() == [1, None, None, None]
    assert seen["label_at"].notna().tolist() == [True, False, False, False]


def test_labelled_rows_are_counted_once(tmp_path: Path) -> None:
    """Live rows of the span, of whatever version, each id once, whose label had come; shadow copies and unlabelled rows not."""
    rows = [prediction(str(i), hours(i)) for i in range(5)]
    rows += [prediction("1", hours(1.5), version=2), prediction("2", hours(2), role="shadow", version=2)]
    write_segment(tmp_path / "predictions", "a", rows)
    come = [label("0", hours(1), 1), label("1", hours(2), 0), label("1", hours(3), 1), label("3", hours(9), 1)]
    write_segment(tmp_path / "labels", "a", [*come, label("4", hours(5), None)])
    log = FolderLog(tmp_path)
    assert log.count_labelled(since=hours(0), until=hours(5), labels_until=hours(10)) == 3
    assert log.count_labelled(since=hours(0), until=hours(5), labels_until=hours(8)) == 2
    assert log.count_labelled(since=hours(1), until=hours(3), labels_until=hours(10)) == 1
    assert log.count_labelled(since=hours(6), until=hours(7), labels_until=hours(10)) == 0


def test_a_look_parses_a_journal_once_and_names_its_bad_lines_each_time(tmp_path: Path) -> None:
    """One `FolderLog` sees one state of a journal, with its bad lines, until it becomes a segment; the next sees what was appended."""
    write_journal(tmp_path / "predictions", "a", [prediction("1", hours(1)), prediction("2", hours(2))])
    journal = tmp_path / "predictions" / "a.jsonl"
    journal.write_bytes(journal.read_bytes() + b"broken\n")
    log = FolderLog(tmp_path)
    for since, ids in ((hours(0), ["1", "2"]), (hours(2), ["2"])):
        problems: list[str] = []
        assert log.predictions(since=since, problems=problems)["id"].tolist() == ids
        assert len(problems) == 1
        assert "1 of 3 lines skipped" in problems[0]
        write_journal(tmp_path / "predictions", "a", [prediction(str(i), hours(i)) for i in range(1, 5)])
    assert FolderLog(tmp_path).predictions()["id"].tolist() == ["1", "2", "3", "4"]
    write_segment(tmp_path / "predictions", "a", [prediction(str(i), hours(i)) for i in range(1, 6)])
    assert log.predictions()["id"].tolist() == ["1", "2", "3", "4", "5"]


def test_what_a_container_put_there_instead_of_files_is_not_followed(tmp_path: Path) -> None:
    """It may write into its log folder and read nothing else of this machine: a link must not make us read it instead, nor a pipe wait."""
    folder, elsewhere = tmp_path / "a" / "predictions", tmp_path / "b"
    secret = write_journal(elsewhere, "1", [prediction("another's", hours(1))])
    segment = write_segment(elsewhere, "2", [prediction("another's too", hours(1))])
    write_journal(folder, "0", [prediction("own", hours(1))])
    (folder / "1.jsonl").symlink_to(secret)
    (folder / "2.parquet").symlink_to(segment)
    os.mkfifo(folder / "3.jsonl")
    assert list(read_predictions(tmp_path / "a")["id"]) == ["own"]
