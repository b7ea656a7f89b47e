"""The prediction log loses nothing that was appended: over rotation, kills, full disks and rivals."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from serving_rig import PROJECT, logged, wait_until

from serving.log import Journal, LabelRow, LogWriter, PredictionRow, Rotation, convert, recover
from serving.segments import read_journal

NOW = 1_700_000_000.25


def prediction(row_id: str, **changes: object) -> PredictionRow:
    """A row of version 7."""
    fields = {"at": NOW, "version": 7, "role": "live", "key": None, "score": [0.25], "f": {"age": 1.5, "city": "Rome"}}
    return PredictionRow(id=row_id, **(fields | changes))  # type: ignore[arg-type]


def writer(tmp_path: Path, kind: str = "predictions", **rotation: Any) -> LogWriter:
    """A writer that rotates only as told."""
    return LogWriter(tmp_path / kind, now=lambda: NOW, rotation=Rotation(**rotation))


def ids(tmp_path: Path) -> list[str]:
    return sorted(row["id"] for row in logged(tmp_path))


@contextlib.contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Files of this process end at so many bytes: writes beyond are cut short and then refused, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_row_is_on_record_when_append_returns(tmp_path: Path) -> None:
    """The journal holds the row, one JSON object a line, named by UTC time, process and a random part."""
    log = writer(tmp_path)
    log.append([prediction("a", key="k", score=[0.1, 0.9], f={"age": float("nan"), "city": None})])
    (journal,) = (tmp_path / "predictions").iterdir()
    assert journal.name.startswith(f"20231114T221320250000-{os.getpid()}-")
    assert json.loads(journal.read_bytes()) == {
        "id": "a",
        "at": NOW,
        "version": 7,
        "role": "live",
        "key": "k",
        "score": [0.1, 0.9],
        "f": {"age": None, "city": None},
    }


def test_closing_turns_journals_into_segments_of_the_contract(tmp_path: Path) -> None:
    """After close() there are Parquet segments only, with the columns that readers expect."""
    log = writer(tmp_path)
    log.append([prediction("a"), prediction("b", role="shadow", key="k", f={"age": None, "city": "Oslo"})])
    log.close()
    (segment,) = (tmp_path / "predictions").iterdir()
    table = pq.read_table(segment)
    assert {field.name: str(field.type) for field in table.schema} == {
        "id": "string",
        "at": "timestamp[us, tz=UTC]",
        "version": "int32",
        "role": "string",
        "key": "string",
        "score": "list<element: double>",
        "f.age": "double",
        "f.city": "string",
    }
    assert [row["at"].timestamp() for row in table.to_pylist()] == [NOW, NOW]
    assert table.column("f.age").to_pylist() == [1.5, None]
    assert table.column("role").to_pylist() == ["live", "shadow"]


def test_labels_have_their_own_folder_and_shape(tmp_path: Path) -> None:
    """A label is an id, the time when it came, and its JSON encoding."""
    log = writer(tmp_path, "labels")
    log.append([LabelRow(id="a", at=NOW, label='"yes"')])
    log.close()
    (row,) = logged(tmp_path, "labels")
    assert (row["id"], row["label"], row["at"].timestamp()) == ("a", '"yes"', NOW)


def test_strange_ids_stay_one_row_each(tmp_path: Path) -> None:
    """Newlines, quotes, NULs and any Unicode in an id come back as they were."""
    strange = ["a\nb", '{"id":"x"}\n', "\u2028\u0000", "😀", "é" * 200]
    log = writer(tmp_path)
    log.append([prediction(row_id) for row_id in strange])
    assert ids(tmp_path) == sorted(strange)
    log.close()
    assert ids(tmp_path) == sorted(strange)


@pytest.mark.parametrize("bound", [{"rows": 10}, {"size_bytes": 1500}, {"age_s": 0.05}])
def test_full_or_old_journals_become_segments_while_rows_come(tmp_path: Path, bound: dict[str, Any]) -> None:
    """By rows, bytes or age, journals are replaced while four threads write; every row is found once, throughout."""
    log = writer(tmp_path, **bound)
    log.start()

    def write(part: int) -> None:
        for i in range(50):
            log.append([prediction(f"{part}-{i}")])

    threads = [threading.Thread(target=write, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: any((tmp_path / "predictions").glob("*.parquet")))
    log.close()
    assert ids(tmp_path) == sorted(f"{part}-{i}" for part in range(4) for i in range(50))
    assert not list((tmp_path / "predictions").glob("*.jsonl"))


def test_two_writers_share_a_folder(tmp_path: Path) -> None:
    """Writers that start at the same instant have journals of their own and leave each other's alone."""
    first, second = writer(tmp_path), writer(tmp_path)
    first.append([prediction("a")])
    second.append([prediction("b")])
    assert recover(tmp_path / "predictions") == []
    second.close()
    first.append([prediction("c")])
    assert ids(tmp_path) == ["a", "b", "c"]
    first.close()
    assert ids(tmp_path) == ["a", "b", "c"]


def test_a_killed_writers_rows_are_taken_over(tmp_path: Path) -> None:
    """What a process appended before kill -9 is read from its journal, and becomes a segment when the next writer starts."""
    program = (
        "import sys, time; from pathlib import Path; from serving.log import *\n"
        f"log = LogWriter(Path({str(tmp_path / 'predictions')!r}), now=lambda: {NOW})\n"
        "log.append([PredictionRow(id=str(i), at=1.0, version=1, role='live', key=None, score=[0.5], f={}) for i in range(5)])\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=PROJECT)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"ready\n"
        assert recover(tmp_path / "predictions") == []
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert ids(tmp_path) == list("01234")
    log = writer(tmp_path)
    log.start()
    wait_until(lambda: not list((tmp_path / "predictions").glob("*.jsonl")))
    log.close()
    assert ids(tmp_path) == list("01234")


def test_torn_and_strange_lines_lose_only_themselves(tmp_path: Path) -> None:
    """A journal with a torn last line, garbage and foreign values is turned into a segment of its good rows."""
    folder = tmp_path / "predictions"
    folder.mkdir()
    good = b'{"id":"a","at":1.5,"version":1,"role":"live","key":null,"score":[1],"f":{"x":1,"y":"s","z":null}}\n'
    strange = [b"\xff\xfe\n", b"[1]\n", b"null\n", b'{"id":5,"at":1}\n', b'{"id":"n"}\n', b"[" * 5000 + b"\n", b"\n"]
    torn = b'{"id":"b","at":2.5,"ver'
    (folder / "s.jsonl").write_bytes(b"".join(strange) + good + torn)
    assert [path.name for path in recover(folder)] == ["s.jsonl"]
    (row,) = pq.read_table(folder / "s.parquet").to_pylist()
    assert (row["id"], row["f.x"], row["f.y"]) == ("a", 1.0, "s")
    assert "f.z" not in row


def test_an_empty_journal_leaves_nothing(tmp_path: Path) -> None:
    """A process that died before its first row leaves no segment."""
    folder = tmp_path / "predictions"
    folder.mkdir()
    (folder / "s.jsonl").touch()
    recover(folder)
    assert list(folder.iterdir()) == []


def test_a_kill_between_segment_and_removal_doubles_nothing(tmp_path: Path) -> None:
    """Where both are there, the segment stands and the journal is removed unread."""
    log = writer(tmp_path)
    log.append([prediction("a")])
    (journal,) = (tmp_path / "predictions").iterdir()
    content = journal.read_bytes()
    log.close()
    journal.write_bytes(content)
    assert ids(tmp_path) == ["a"]
    recover(tmp_path / "predictions")
    assert ids(tmp_path) == ["a"]
    assert not journal.exists()


def test_a_damaged_segment_beside_its_journal_is_written_again(tmp_path: Path) -> None:
    """A journal is removed only where its segment is whole: after a power cut the rows are written once more."""
    log = writer(tmp_path)
    log.append([prediction("a")])
    (journal,) = (tmp_path / "predictions").iterdir()
    journal.with_suffix(".parquet").write_bytes(b"PAR1 torn")
    log.close()
    assert ids(tmp_path) == ["a"]


def test_one_bad_journal_does_not_keep_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that cannot be turned stays, and the next is turned."""
    folder = tmp_path / "predictions"
    folder.mkdir()
    line = b'{"id":"a","at":1.5,"version":1,"role":"live","key":null,"score":[1],"f":{}}\n'
    bad = b'{"id":"b","at":1.5,"version":"seven","role":"live","key":null,"score":[1],"f":{}}\n'
    (folder / "1.jsonl").write_bytes(bad)
    (folder / "2.jsonl").write_bytes(line)
    assert [path.name for path in recover(folder)] == ["2.jsonl"]
    assert (folder / "1.jsonl").read_bytes() == bad


# ---------------------------------------------------------------- full disk
def test_a_full_disk_refuses_whole_rows_and_keeps_the_earlier_ones(tmp_path: Path) -> None:
    """An append that does not fit raises and leaves no torn line; once there is room, rows go on in the same journal."""
    log = writer(tmp_path)
    log.append([prediction("a")])
    (journal,) = (tmp_path / "predictions").iterdir()
    before = journal.read_bytes()
    with file_size_limit(len(before) + 40), pytest.raises(OSError, match="too large"):
        log.append([prediction("b"), prediction("c")])
    assert journal.read_bytes() == before
    log.append([prediction("d")])
    assert ids(tmp_path) == ["a", "d"]
    log.close()
    assert ids(tmp_path) == ["a", "d"]


def test_a_torn_line_that_cannot_be_cut_back_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where even truncating fails, the next row starts on a line of its own."""

    def refuse(fd: int, size: int) -> None:
        raise OSError(5, "Input/output error")

    log = writer(tmp_path)
    log.append([prediction("a")])
    (journal,) = (tmp_path / "predictions").iterdir()
    monkeypatch.setattr(os, "ftruncate", refuse)
    with file_size_limit(journal.stat().st_size + 40), pytest.raises(OSError, match="too large"):
        log.append([prediction("b")])
    log.append([prediction("c")])
    assert [row["id"] for row in read_journal(journal)] == ["a", "c"]


def test_no_room_for_a_segment_leaves_the_journal(tmp_path: Path) -> None:
    """A segment that does not fit is tried again later; its rows stay readable, and no half of it is left."""
    log = writer(tmp_path)
    log.append([prediction("a")])
    with file_size_limit(100):
        log.close()
    (journal,) = (tmp_path / "predictions").iterdir()
    assert (journal.suffix, ids(tmp_path)) == (".jsonl", ["a"])
    recover(tmp_path / "predictions")
    assert (list((tmp_path / "predictions").glob("*.jsonl")), ids(tmp_path)) == ([], ["a"])


def test_a_folder_that_cannot_be_made_refuses_rows_until_it_can(tmp_path: Path) -> None:
    """A log folder in the way of a file raises OSError a row, and works once the file is gone."""
    (tmp_path / "predictions").touch()
    log = writer(tmp_path)
    with pytest.raises(OSError, match="exists"):
        log.append([prediction("a")])
    (tmp_path / "predictions").unlink()
    log.append([prediction("b")])
    assert ids(tmp_path) == ["b"]


def test_a_journal_taken_over_before_its_lock_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that finds its new journal locked by one that recovers leaves it and makes another."""
    real, rivals = fcntl.flock, [True]

    def flock(fd: int, operation: int) -> None:
        if rivals:
            rivals.pop()
            raise BlockingIOError
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(FileExistsError, match="taken over"):
        Journal(tmp_path / "s.jsonl")
    rivals.append(True)
    log = writer(tmp_path)
    log.append([prediction("a")])
    assert (rivals, ids(tmp_path)) == ([], ["a"])


def test_a_journal_that_somebody_deleted_is_replaced(tmp_path: Path) -> None:
    """After the folder was emptied, or removed, under a live writer, new rows go to a new journal."""
    log = writer(tmp_path)
    log.append([prediction("lost")])
    shutil.rmtree(tmp_path / "predictions")
    log.append([prediction("a")])
    assert ids(tmp_path) == ["a"]
    log.close()
    assert ids(tmp_path) == ["a"]


def test_fsync_can_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fsync every append is flushed before it returns."""
    flushed: list[int] = []
    monkeypatch.setattr(os, "fdatasync", flushed.append)
    log = LogWriter(tmp_path / "predictions", now=lambda: NOW, fsync=True)
    log.append([prediction("a")])
    assert len(flushed) == 1
    log.close()


def test_convert_is_what_both_paths_use(tmp_path: Path) -> None:
    """Converting a journal that is already gone, because another process was faster, is no error where a segment stands."""
    log = writer(tmp_path)
    log.append([prediction("a")])
    (journal,) = (tmp_path / "predictions").iterdir()
    convert(journal)
    convert(journal)
    assert ids(tmp_path) == ["a"]
