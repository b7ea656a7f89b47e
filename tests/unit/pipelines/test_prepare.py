"""The prepare job: which rows go where, what is cached, and what is refused."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flights import T0, context, end_of, flights, policy_json, spec_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_prediction_log import label, prediction, write_journal, write_segment

from pipelines import prepare
from pipelines.jobs.port import PermanentJobError, RetryableJobError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    flights(600).to_csv(tmp_path / "flights.csv", index=False)
    return tmp_path


def run(folder: Path, now: datetime | None = None, **sections: Any) -> dict[str, Any]:
    inputs = {
        "policy": policy_json(**sections),
        "policy_dir": str(folder),
        "home": str(folder / "home"),
        "now": (now or end_of(flights(600))).isoformat(),
        "model": "flight-late",
    }
    output = prepare.run(inputs, context(folder))
    json.dumps(output, allow_nan=False)
    return output


def test_newest_rows_are_held_out(folder: Path) -> None:
    """The newest fifth is for judging, the rest for training; times, counts, features and classes are told."""
    out = run(folder)
    train, holdout = pd.read_parquet(out["train"]), pd.read_parquet(out["holdout"])
    assert (out["rows_train"], out["rows_holdout"]) == (len(train), len(holdout)) == (480, 120)
    assert train["scheduled_at"].max() < holdout["scheduled_at"].min()
    assert datetime.fromisoformat(out["trained_to"]) == train["scheduled_at"].max()
    assert datetime.fromisoformat(out["holdout_from"]) == holdout["scheduled_at"].min()
    assert (out["rows_immature"], out["rows_unlabelled"], out["rows_table"], out["classes"]) == (0, 0, 600, [0, 1])
    assert {f["name"]: f["kind"] for f in out["features"]} == {
        "carrier": "categorical", "wind": "numeric", "hour": "numeric", "storm": "boolean",
    }  # fmt: skip
    assert set(train.columns) == {"carrier", "wind", "hour", "storm", "late", "scheduled_at", "arrived_at"}
    assert out["sentence"].startswith("480 rows to train on, up to 2026-01-05 23:45, 120 to judge with;")


def test_second_run_finds_everything_in_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same data, later moment, same mature rows: nothing is read or computed again, and the output is the same."""
    first = run(folder)
    monkeypatch.setattr(prepare.checks, "check_table", lambda *_: pytest.fail("read again"))
    second = run(folder, end_of(flights(600)) + timedelta(hours=5))
    assert (first.pop("cached"), second.pop("cached")) == (False, True)
    assert first == second


def test_new_rows_and_other_parameters_are_computed(folder: Path) -> None:
    """Another holdout, other exclusions, more rows: another result."""
    first = run(folder)
    assert run(folder, data={"holdout": 0.3})["rows_holdout"] == 180
    assert "wind" not in json.dumps(run(folder, data={"exclude": ["wind", "delay_min", "flight"]})["features"])
    flights(700).to_csv(folder / "flights.csv", index=False)
    grown = run(folder, end_of(flights(700)))
    assert (grown["cached"], grown["rows_train"]) == (False, 560)
    assert grown["fingerprint"] != first["fingerprint"]


def test_same_inputs_in_another_home_have_the_same_fingerprint(folder: Path, tmp_path_factory: Any) -> None:
    """The fingerprint is of the content, not of the place."""
    other = tmp_path_factory.mktemp("other")
    flights(600).to_csv(other / "flights.csv", index=False)
    assert run(folder)["fingerprint"] == run(other)["fingerprint"]


def test_immature_and_unlabelled_rows_are_left_out_and_counted(folder: Path) -> None:
    """At noon of a day, flights of the last hours wait for their labels, fast or slow; later ones lie in the future."""
    frame = flights(600)
    frame.loc[10:19, "late"] = None
    frame.to_csv(folder / "flights.csv", index=False)
    now = T0 + timedelta(hours=100)
    out = run(folder, now)
    train, holdout = pd.read_parquet(out["train"]), pd.read_parquet(out["holdout"])
    newest = now - timedelta(hours=4)
    assert holdout["scheduled_at"].max() == newest
    assert out["rows_unlabelled"] == 10
    assert out["rows_immature"] == 4 * 4
    assert len(train) + len(holdout) == 4 * 96 + 1 - 10
    assert "lie after 2026-01-05T04:00:00+00:00 and wait" in out["sentence"]


def test_windows_bound_the_training_rows(folder: Path) -> None:
    """Training keeps the longest window before the holdout; the holdout is its share of the newest window."""
    out = run(folder, train={"window": ["1d", "2d"]})
    train, holdout = pd.read_parquet(out["train"]), pd.read_parquet(out["holdout"])
    assert len(holdout) == 39  # a fifth of two days
    start = holdout["scheduled_at"].min()
    assert train["scheduled_at"].min() == start - timedelta(days=2)
    assert len(train) == 192


def test_holdout_of_a_time_span(folder: Path) -> None:
    """`holdout: 6h` keeps the last six hours."""
    out = run(folder, data={"holdout": "6h"})
    assert out["rows_holdout"] == 24


TIMES = st.lists(st.integers(0, 200), min_size=1, max_size=80).map(sorted)


@settings(max_examples=200, deadline=None)
@given(
    minutes=TIMES,
    seed=st.integers(0, 99),
    holdout=st.sampled_from([0.1, 0.2, 0.5, 0.99, "10m", "1h", "5h"]),
    window=st.sampled_from([None, "30m", ["10m", "2h"]]),
)
def test_split_keeps_past_and_future_apart(minutes: list[int], seed: int, holdout: Any, window: Any) -> None:
    """No training row is as new as a held-out one, no row is in both, none counts that should not, and the window holds."""
    spec = spec_of(data={"holdout": holdout}, train={"window": window})
    time = pd.Series([pd.Timestamp(T0 + timedelta(minutes=m)) for m in minutes]).dt.as_unit("us")
    counts = np.random.default_rng(seed).random(len(minutes)) < 0.8
    train, kept = prepare.split(time, counts, spec)
    assert not (train & kept).any()
    assert not ((train | kept) & ~counts).any()
    if not counts.any():
        return
    assert kept.any()
    newest, start = time[counts].max(), time[kept].min()
    assert (kept == (counts & (time >= start).to_numpy())).all()
    if isinstance(holdout, str):
        assert newest - start < spec.data.holdout
    if train.any():
        assert time[train].max() < start
        if window is not None:
            assert spec.train.longest_window is not None
            assert start - time[train].min() <= spec.train.longest_window
    if window is None:
        assert ((train | kept) == counts).all()


@settings(max_examples=200, deadline=None)
@given(
    gaps=st.lists(st.integers(0, 3), min_size=1, max_size=700),
    changed=st.integers(-10, 1500),
    holdout=st.sampled_from([0.1, 0.2, 0.8, "1h", "12h"]),
    window=st.sampled_from(["since_change", "all", ["since_change", "4h"], ["2h", "4h"]]),
)
def test_split_leaves_something_of_the_new_world(gaps: list[int], changed: int, holdout: Any, window: Any) -> None:
    """After a change the hold-out is never larger than without one, still the newest rows, and at most a third of the rows since, if that
    is 100 or more; else all is as without a change. Training stays strictly older, and windows without bound leave nothing out."""
    spec = spec_of(data={"holdout": holdout}, train={"window": window})
    moments = [T0 + timedelta(minutes=int(m)) for m in np.cumsum(gaps)]
    time = pd.Series([pd.Timestamp(moment) for moment in moments]).dt.as_unit("us")
    counts, at = np.ones(len(gaps), dtype=bool), T0 + timedelta(minutes=changed)
    plain_train, plain = prepare.split(time, counts, spec)
    train, kept = prepare.split(time, counts, spec, prepare.Cuts(changed_at=at))
    start = time[kept].min()
    assert kept[-1]
    assert (kept == (time >= start).to_numpy()).all()
    assert not (kept & ~plain).any()
    if train.any():
        assert time[train].max() < start
    since = (time >= at).to_numpy()
    third = int(since.sum()) // 3
    if third >= prepare.HOLDOUT_ROWS_MIN:
        assert (kept & (time > start).to_numpy()).sum() < third
    else:
        assert (kept == plain).all()
        assert (train == plain_train).all()
    if spec.train.longest_window is None:
        assert (train | kept).all()


@given(
    st.integers(1, 300),
    st.integers(0, 99),
    st.sampled_from([0.1, 0.5, "30s", "2m"]),
    st.sampled_from([None, "20s", "2m"]),
)
def test_split_without_a_time_takes_a_row_for_a_second(rows: int, seed: int, holdout: Any, window: Any) -> None:
    """As if each row had come a second after the one before."""
    spec = spec_of(data={"holdout": holdout}, train={"window": window})
    counts = np.random.default_rng(seed).random(rows) < 0.8
    seconds = pd.Series(pd.date_range(T0, periods=rows, freq="s")).dt.as_unit("us")
    timed, untimed = prepare.split(seconds, counts, spec), prepare.split(None, counts, spec)
    assert all((one == other).all() for one, other in zip(timed, untimed, strict=True))


def test_the_hold_out_is_cut_short_after_a_change(folder: Path) -> None:
    """The moment of the cycle reaches the split only where the policy has a window since the change; what is held out is dated."""
    changed = (T0 + timedelta(minutes=15 * 250)).isoformat()
    inputs = {
        "policy_dir": str(folder),
        "home": str(folder / "home"),
        "now": end_of(flights(600)).isoformat(),
        "model": "m",
    }
    found = {}
    for window in ("all", "since_change"):
        policy = policy_json(train={"window": window}, data={"holdout": 0.4})
        out = prepare.run({**inputs, "policy": policy, "changed_at": changed}, context(folder))
        found[window] = (out["rows_train"], out["rows_holdout"])
        held_out = pd.read_parquet(out["holdout"])["scheduled_at"]
        assert datetime.fromisoformat(out["holdout_from"]) == held_out.min()
        assert datetime.fromisoformat(out["holdout_to"]) == held_out.max()
    assert found == {"all": (360, 240), "since_change": (484, 116)}


def test_too_few_rows(folder: Path) -> None:
    """Fewer than data.min_rows matured rows: an error that says how many there are and what the others wait for."""
    with pytest.raises(
        PermanentJobError, match=r"data.min_rows: training needs at least 481 matured rows but there are 480"
    ):
        run(folder, data={"min_rows": 481})
    with pytest.raises(PermanentJobError, match="but there are 0"):
        run(folder, T0 + timedelta(hours=1))


def test_one_class_among_the_matured_rows(folder: Path) -> None:
    """Both classes are in the table, but only one is old enough to train on."""
    frame = flights(600)
    frame["late"] = (frame.index >= 500).astype(int)
    frame.to_csv(folder / "flights.csv", index=False)
    with pytest.raises(PermanentJobError, match="the 480 matured training rows: there must be at least two classes"):
        run(folder)


def test_clock_that_went_back(folder: Path) -> None:
    """All rows in the future: the clock is wrong, and the error says so."""
    with pytest.raises(PermanentJobError, match="has the clock gone back"):
        run(folder, T0 - timedelta(days=30))


def test_file_that_changes_while_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torn read is no training data: try again."""
    original = prepare.sources.CsvFile.read

    def read(self: Any) -> pd.DataFrame:
        frame = original(self)
        flights(601).to_csv(folder / "flights.csv", index=False)
        return frame

    monkeypatch.setattr(prepare.sources.CsvFile, "read", read)
    with pytest.raises(RetryableJobError, match="changed while it was read"):
        run(folder)


def test_data_without_a_time(folder: Path) -> None:
    """Rows are split as they stand, the last ones for judging."""
    timeless: dict[str, Any] = {"time": None, "label_time": None, "exclude": ["delay_min", "flight", "arrived_at"]}
    out = run(folder, data=timeless)
    assert (out["rows_train"], out["trained_to"], out["holdout_from"]) == (480, None, None)


def test_slice_columns_stay_in_the_holdout(folder: Path) -> None:
    """What a gate slices by is kept for judging even if it is no feature; a name that is not there is an error."""
    gate = {"slices": {"by": ["carrier"], "metric": "recall", "no_worse_than_champion": 0.1}}
    out = run(folder, data={"exclude": ["carrier", "delay_min", "flight"]}, gates=[gate])
    assert "carrier" in pd.read_parquet(out["holdout"]).columns
    assert "carrier" not in json.dumps(out["features"])
    gate["slices"]["by"] = ["airline"]
    with pytest.raises(PermanentJobError, match=r"gates: slices\.by names 'airline'"):
        run(folder, gates=[gate])


def test_values_of_different_types_in_a_column(folder: Path) -> None:
    """A column that is neither text nor numbers is named."""
    frame = flights(100).astype({"carrier": object})
    frame.loc[3, "carrier"] = 5
    with pytest.raises(PermanentJobError, match=r"values of different types in one column: .*carrier"):
        prepare.write_parquet(frame, folder / "x.parquet")


def test_invalid_policy_is_permanent(folder: Path) -> None:
    """A job that is given nonsense says so rather than crash."""
    with pytest.raises(PermanentJobError, match="policy: "):
        prepare.parse_policy({"kind": "ModelPolicy"})


def test_regression_and_words(folder: Path) -> None:
    """Regression has no classes; classes may be words."""
    out = run(
        folder,
        task="regression",
        objective={"metric": "mae"},
        data={"label": "delay_min", "exclude": ["late", "flight"]},
    )
    assert out["classes"] is None
    frame = flights(600)
    frame.assign(late=np.where(frame["late"] == 1, "late", "in time")).to_csv(folder / "flights.csv", index=False)
    assert run(folder)["classes"] == ["in time", "late"]


def test_prediction_log_as_the_source(folder: Path) -> None:
    """A model can be trained on what it was asked: live rows whose labels have matured, read anew, cached by content."""
    log = folder / "home" / "log" / "flight-late"
    rows, labels = [], []
    for i, row in enumerate(flights(400).itertuples()):
        at = row.scheduled_at.to_pydatetime()
        rows.append(prediction(str(i), at, f={"wind": row.wind, "carrier": row.carrier}))
        labels.append(label(str(i), row.arrived_at.to_pydatetime(), row.late))
    write_segment(log / "predictions", "a", rows[:300])
    write_journal(log / "predictions", "b", rows[300:], torn='{"id"')
    write_segment(log / "labels", "a", labels)
    data = {"source": {"kind": "prediction-log"}, "time": None, "label_time": None, "exclude": ["delay_min"]}
    now = T0 + timedelta(hours=90)
    first = run(folder, now, data=data)
    assert {f["name"] for f in first["features"]} == {"wind", "carrier"}
    assert first["rows_train"] + first["rows_holdout"] == 4 * (90 - 4) + 1
    assert run(folder, now, data=data)["cached"]
    windowed = run(folder, now, data=data, train={"window": "1d"})
    assert windowed["rows_train"] == 96


def test_progress_is_reported(folder: Path) -> None:
    """People who watch see what the job does."""
    run(folder)
    assert json.loads((folder / "progress.json").read_text()) == {"text": "selecting rows"}


@pytest.mark.parametrize(("seen", "held_out"), [(700, 299), (950, 500), (100, 500), (None, 500)])
def test_rows_that_the_champion_was_trained_on_are_no_hold_out(seen: int | None, held_out: int) -> None:
    """Of 1,000 rows the newest 500 are kept to judge with, but only those that are new to the champion, if they are 100 or more."""
    spec = spec_of(data={"holdout": "500s"}, train={"window": "all"})
    time = pd.Series([pd.Timestamp(T0 + timedelta(seconds=s)) for s in range(1000)]).dt.as_unit("us")
    cuts = prepare.Cuts(seen_to=None if seen is None else T0 + timedelta(seconds=seen))
    train, kept = prepare.split(time, np.ones(1000, dtype=bool), spec, cuts)
    assert (int(kept.sum()), int(train.sum())) == (held_out, 1000 - held_out)
