"""The log of a replay gives what the log on disk gives for the same rows."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import live_log
import numpy as np
import pandas as pd
import pytest
import streams

from backtest.log import StreamLog
from backtest.stream import Stream, from_us
from pipelines.data.prediction_log import FolderLog

CUT, END = 30, 50


def played(tmp_path: Path, task: str) -> tuple[Stream, StreamLog, FolderLog]:
    """Fifty rows: v1 answers, then v2 half of them, then v1 again with v3 in shadow; labels four seconds later. And the same on disk."""
    table = streams.rows(END + 10, task=task)
    table["y"][5] = None  # type: ignore[call-overload]
    stream = streams.stream(tmp_path, table, task=task, data=", label_delay: 4s")
    width = {"multiclass": (3,)}.get(task, ())
    scores = np.random.default_rng(3).random((END, *width))
    log, disk = StreamLog(stream), tmp_path / "disk"
    for version, role, rows, end in (
        (1, "live", range(20), 20), (1, "live", range(20, CUT, 2), CUT), (2, "live", range(21, CUT, 2), CUT),
        (1, "live", range(CUT, END), END), (3, "shadow", range(CUT, END), END),
    ):  # fmt: skip
        if log.replayed < end:
            log.ask(end)
        which = np.array(rows)
        log.answer(which, version, role, scores[which])  # type: ignore[arg-type]
        live_log.write_predictions(
            disk, [str(i) for i in which], [from_us(int(stream.asked[i])) for i in which], scores[which].tolist(), version=version,
            role=role, a=stream.frame["a"].to_numpy()[which].tolist(),
        )  # fmt: skip
    known = [i for i in range(END) if i != 5]
    labels = stream.frame["y"].tolist()
    live_log.write_labels(
        disk,
        [str(i) for i in known],
        [from_us(int(stream.known[i])) for i in known],
        [_plain(labels[i]) for i in known],
    )
    return stream, log, FolderLog(disk)


def _plain(label: Any) -> Any:
    return label.item() if hasattr(label, "item") else label


def same(ours: pd.DataFrame, disk: pd.DataFrame) -> None:
    """Equal but for the order of rows of one moment, and for columns that only one of them was told of."""
    key = [name for name in ("id", "version", "role") if name in ours]
    columns = [name for name in disk.columns if name in ours and name not in ("key", "score")]
    a, b = (frame.sort_values(key).reset_index(drop=True) for frame in (ours, disk))
    pd.testing.assert_frame_equal(a[columns], b[columns], check_dtype=False)
    if "score" in disk:
        assert np.array_equal(np.array(a["score"].tolist()), np.array(b["score"].tolist()))


def moments(stream: Stream) -> list[tuple[datetime | None, datetime | None]]:
    at = [stream.moment(i) for i in (0, 12, 29, 30, 41)]
    return [(None, None), (at[1], None), (None, at[2]), (at[1], at[3]), (at[3], at[4]), (at[4], at[1])]


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_answers_and_labels_are_those_of_the_disk(tmp_path: Path, task: str) -> None:
    """Predictions, labels, both joined, and their count, for every span of time, role and version."""
    stream, ours, disk = played(tmp_path, task)
    for since, until in moments(stream):
        for role, versions in ((None, None), ("live", None), ("shadow", None), ("live", [2]), (None, [1, 3])):
            asked: dict[str, Any] = {"since": since, "until": until, "role": role, "versions": versions}
            same(ours.predictions(**asked), disk.predictions(**asked))
            same(
                ours.labelled(**asked, labels_until=stream.moment(33)),
                disk.labelled(**asked, labels_until=stream.moment(33)),
            )
            kept = {**asked, "keep_unlabelled": True, "labels_until": stream.moment(33)}
            same(ours.labelled(**kept), disk.labelled(**kept))
        same(ours.labels(since=since, until=until), disk.labels(since=since, until=until))
        if since is not None and until is not None:
            counted = {"since": since, "until": until, "labels_until": stream.moment(40)}
            assert ours.count_labelled(**counted) == disk.count_labelled(**counted)


def test_rows_that_were_not_asked_for_are_not_there(tmp_path: Path) -> None:
    """The future of the stream is nobody's to see, neither rows nor labels."""
    _, ours, _ = played(tmp_path, "binary")
    assert len(ours.stream) > END
    assert ours.predictions(role="live")["id"].astype(int).max() == END - 1
    assert ours.labels()["id"].astype(int).max() == END - 1
    assert "5" not in set(ours.labels()["id"])


def test_versions_that_know_other_numbers_of_classes_answer_the_same_stream(tmp_path: Path) -> None:
    """Each row has the scores of its own version, however many: a class may be new to the one, and gone from the other."""
    log = StreamLog(streams.stream(tmp_path, streams.rows(20, task="multiclass"), task="multiclass"))
    log.ask(10)
    log.answer(np.arange(0, 10, 2), 1, "live", np.full((5, 3), 1 / 3))
    log.answer(np.arange(1, 10, 2), 2, "live", np.full((5, 2), 1 / 2))
    assert [len(scores) for scores in log.predictions()["score"]] == [3, 2] * 5
