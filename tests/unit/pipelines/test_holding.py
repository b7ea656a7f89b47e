"""Rows with faults are held: what the prepare job does with them, and what it remembers from one cycle to the next."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flights import context, end_of, flights, policy_json

from pipelines import prepare
from pipelines.data.quality.kept import profile_path, read_profile
from pipelines.jobs.port import RetryableJobError

ROWS = 5_000
ALL = flights(15_000)


def first(rows: int) -> pd.DataFrame:
    """What a snapshot holds after so many flights."""
    return ALL[:rows]


def run(folder: Path, frame: pd.DataFrame, *, now: datetime | None = None, **sections: Any) -> dict[str, Any]:
    """One cycle's prepare job on a snapshot."""
    frame.to_csv(folder / "flights.csv", index=False)
    inputs = {
        "policy": policy_json(**sections),
        "policy_dir": str(folder),
        "home": str(folder / "home"),
        "now": (now or end_of(frame)).isoformat(),
        "model": "flight-late",
    }
    output = prepare.run(inputs, context(folder))
    json.dumps(output, allow_nan=False)
    return output


def kinds(out: dict[str, Any]) -> set[str]:
    return {fault["kind"] for fault in out["faults"]}


def in_knots(frame: pd.DataFrame, since: int) -> pd.DataFrame:
    """The wind of the rows from `since` on in another unit."""
    return frame.assign(wind=np.where(frame.index >= since, frame["wind"] * 1000, frame["wind"]))


def test_a_sound_table_is_taken_whole(tmp_path: Path) -> None:
    """Nothing is held, and the accepted rows are remembered."""
    out = run(tmp_path, first(ROWS))
    assert (out["held"], out["rows_held"], out["faults"]) == ([], 0, [])
    assert out["rows_train"] + out["rows_holdout"] == ROWS
    profile, trouble = read_profile(profile_path(tmp_path / "home", "flight-late"))
    assert profile is not None
    assert not trouble
    assert sum(block.rows for block in profile.blocks) == ROWS


def test_broken_rows_enter_neither_training_nor_holdout(tmp_path: Path) -> None:
    """The newest rows' unit has changed: they are held, told with their time, and the older ones are trained and judged on."""
    frame = in_knots(first(ROWS), 4_000)
    out = run(tmp_path, frame)
    assert kinds(out) == {"unit_changed"}
    assert out["rows_held"] == 1_000
    assert out["rows_train"] + out["rows_holdout"] == 4_000
    taken = pd.concat([pd.read_parquet(out["train"]), pd.read_parquet(out["holdout"])])
    assert taken["wind"].max() == frame["wind"][:4_000].max()
    assert datetime.fromisoformat(out["faults"][0]["since"]) == frame["scheduled_at"][4_000]
    assert out["faults"][0]["source"] == str((tmp_path / "flights.csv").resolve())
    assert "1,000 rows from 2026-02-11 16:00 to 2026-02-22 01:45 are held: the unit of 'wind'" in out["sentence"]


def test_a_fault_stays_held_until_it_is_mended(tmp_path: Path) -> None:
    """Rows that go on like it are held too; a snapshot in which they are mended is taken."""
    run(tmp_path, first(4_000))
    assert run(tmp_path, in_knots(first(4_500), 4_000))["rows_held"] == 500
    assert run(tmp_path, in_knots(first(ROWS), 4_000))["rows_held"] == 1_000
    assert run(tmp_path, in_knots(first(ROWS), 4_000))["rows_held"] == 1_000, "judged as before by the same job again"
    mended = run(tmp_path, first(ROWS))
    assert (mended["rows_held"], mended["faults"]) == (0, [])


@pytest.mark.parametrize(
    ("data", "held", "found"),
    [({"quality": "warn"}, 0, 1), ({"quality": "off"}, 0, 0), ({"quality_ignore": ["wind"]}, 0, 0)],
)
def test_the_owner_may_let_rows_through(tmp_path: Path, data: dict[str, Any], held: int, found: int) -> None:
    """With `warn` faults are told and taken, with `off` and in ignored columns nothing is looked for."""
    out = run(tmp_path, in_knots(first(ROWS), 4_000), data=data)
    assert (out["rows_held"], len(out["faults"])) == (held, found)
    assert out["rows_train"] + out["rows_holdout"] == ROWS


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda f: f.assign(late=np.where(np.random.default_rng(1).random(len(f)) < 0.3, 1 - f["late"], f["late"])), "labels_rewritten"),
        (lambda f: f.assign(wind=f["wind"] * 0.001), "column_rewritten"),
        (lambda f: f.assign(wind=f["hour"], hour=f["wind"]), "columns_swapped"),
        (lambda f: f.assign(hour=f["late"]), "label_leaked"),
        (lambda f: f[(f["late"] == 0) | (f.index >= 4_000)], "class_lost"),
        (lambda f: f[:3_000], "stale_snapshot"),
        (lambda f: f.drop(columns="wind"), "column_missing"),
        (lambda f: f.assign(wind="strong"), "type_changed"),
    ],
)  # fmt: skip
def test_a_snapshot_that_rewrites_history_is_held(tmp_path: Path, change: Any, kind: str) -> None:
    """What was read before must be found again: all of it is held if it is not, and the cycle ends without having failed."""
    run(tmp_path, first(4_000))
    out = run(tmp_path, change(first(4_500)), now=end_of(first(4_500)))
    assert kind in kinds(out)
    assert out["inconclusive"] is True
    assert out["sentence"].startswith("nothing is trained: ")
    assert "fingerprint" not in out


def test_a_source_that_insists_is_believed(tmp_path: Path) -> None:
    """Labels that came in broken are not known to be. Once they are mended the rows are held, for nobody knows which version is right; when
    another snapshot says the same again they are taken, and so is what is new."""
    run(tmp_path, first(4_000))
    rng = np.random.default_rng(1)
    new = ALL.index >= 4_000
    broken = ALL.assign(late=np.where(new & (rng.random(len(ALL)) < 0.4), 1 - ALL["late"], ALL["late"]))
    assert run(tmp_path, broken[:4_500])["rows_held"] == 0
    mended = run(tmp_path, first(ROWS))
    assert kinds(mended) == {"labels_rewritten"}
    assert mended["rows_held"] == 1_000
    assert run(tmp_path, first(ROWS))["rows_held"] == 1_000, "the same snapshot again says nothing new"
    assert run(tmp_path, first(5_500))["rows_held"] == 0
    assert run(tmp_path, first(6_000))["rows_held"] == 0


def test_what_was_refused_is_forgotten_when_the_source_takes_it_back(tmp_path: Path) -> None:
    """Broken, sound, broken again in the same way is no insistence."""
    run(tmp_path, first(4_000))

    def broken(rows: int) -> pd.DataFrame:
        return first(rows).assign(late=lambda f: np.where(f.index.isin(range(3_500, 4_000)), 1 - f["late"], f["late"]))

    for rows, is_broken in ((4_250, True), (4_500, False), (4_750, True)):
        out = run(tmp_path, broken(rows) if is_broken else first(rows))
        assert (out["rows_held"] > 0) == is_broken, f"{rows:,} rows"


def test_late_labels_and_a_few_corrections_are_no_fault(tmp_path: Path) -> None:
    """A hundredth of the labels is corrected, a column is added, and later rows mature: nothing is held, the column is said."""
    frame = first(4_500)
    run(tmp_path, frame, now=frame["scheduled_at"][4_000].to_pydatetime())
    rng = np.random.default_rng(0)
    corrected = frame.assign(late=np.where(rng.random(len(frame)) < 0.01, 1 - frame["late"], frame["late"]))
    out = run(tmp_path, corrected.assign(fog=rng.random(len(frame))))
    assert out["rows_held"] == 0
    assert "column 'fog' is new" in out["notes"]


def test_rows_that_a_source_no_longer_keeps_are_no_fault(tmp_path: Path) -> None:
    """A warehouse that keeps the newest rows only is as sound as one that keeps all."""
    run(tmp_path, first(4_000))
    out = run(tmp_path, first(ROWS)[2_600:])
    assert out["rows_held"] == 0


def test_a_table_whose_beginning_is_odd_is_taken_whole(tmp_path: Path) -> None:
    """In a first table nobody has said which part is right: the newer and larger one is not held for differing from the older."""
    out = run(tmp_path, in_knots(first(ROWS), 1_500))
    assert out["rows_held"] == 0
    assert any("most rows differ from the oldest" in note for note in out["notes"])


def test_a_damaged_profile_is_begun_again(tmp_path: Path) -> None:
    """The file names itself in the notes, and the next cycle has a whole one."""
    run(tmp_path, first(4_000))
    path = profile_path(tmp_path / "home", "flight-late")
    path.write_text(path.read_text()[:1_000])
    out = run(tmp_path, first(4_500))
    assert any("cannot be read and is begun again" in note for note in out["notes"])
    assert read_profile(path)[0] is not None


def test_another_meaning_of_the_rows_is_another_profile(tmp_path: Path) -> None:
    """Where the label is another column, what was known says nothing."""
    run(tmp_path, first(4_000))
    out = run(
        tmp_path,
        first(3_000),
        task="regression",
        objective={"metric": "mae"},
        data={"label": "delay_min", "exclude": ["late", "flight"]},
    )
    assert out["rows_held"] == 0


def test_a_profile_that_cannot_be_kept_is_tried_again(tmp_path: Path) -> None:
    """A full or read-only disk is no fault of the data, and passes."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "quality").write_text("a file where the folder should be")
    with pytest.raises(RetryableJobError, match="quality profile could not be kept"):
        run(tmp_path, first(1_500))


def test_a_profile_stays_small_and_speaks_for_all_rows(tmp_path: Path) -> None:
    """After many cycles it holds a bounded number of blocks, and a rewritten row is still found wherever it lies."""
    for rows in range(2_500, 15_001, 2_500):
        run(tmp_path, first(rows))
    profile, _ = read_profile(profile_path(tmp_path / "home", "flight-late"))
    assert profile is not None
    assert 24 <= len(profile.blocks) <= 48
    assert profile_path(tmp_path / "home", "flight-late").stat().st_size < 400_000
    frame = first(15_000)
    swapped = frame.assign(wind=frame["hour"], hour=frame["wind"])
    out = run(tmp_path, swapped)
    assert out["inconclusive"] is True
    assert out["rows_held"] >= 0.95 * 15_000


def test_without_a_time_rows_are_known_by_their_number(tmp_path: Path) -> None:
    """The same, where row order is time."""
    untimed = {"time": None, "label_time": None, "exclude": ["delay_min", "flight", "scheduled_at", "arrived_at"]}
    run(tmp_path, first(4_000), data=untimed)
    out = run(tmp_path, in_knots(first(ROWS), 4_000), data=untimed)
    assert (out["held"][0]["from"], out["held"][-1]["to"], out["rows_held"]) == (4_000, ROWS - 1, 1_000)
    assert "between row 4,001 and row 5,000 are held" in out["sentence"]


def test_copies_of_older_rows_are_held(tmp_path: Path) -> None:
    """Rows delivered a second time at the end, as new ones, teach nothing and judge with what was trained on."""
    frame = first(4_000)
    copies = frame[:1_000].assign(
        scheduled_at=frame["scheduled_at"][:1_000] + timedelta(days=60),
        arrived_at=frame["arrived_at"][:1_000] + timedelta(days=60),
        flight=frame["flight"][:1_000] + 10_000,
    )
    out = run(tmp_path, pd.concat([frame, copies], ignore_index=True))
    assert kinds(out) == {"rows_duplicated"}
    assert out["rows_held"] == 1_000
