"""How late and how fully labels come, and that a feed which has stalled is told from one that is only quiet."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from live_log import NOW, minutes_before, write_labels, write_predictions

from evaluators.label_feed import Floats, LabelFeed, read_feed, stalled_label_feed
from pipelines.data.prediction_log import FolderLog

DAY, HOUR = 86_400.0, 3_600.0


def _stream(kind: str, *, seed: int, days: int = 24, a_day: int = 400) -> tuple[Floats, Floats]:
    """When rows were predicted and when their labels come, seconds; four fifths get one, six hours later at the median."""
    rng = np.random.default_rng(seed)
    asked = np.sort(rng.random(a_day * days) * days * DAY)
    if "nights" in kind:
        hour = (asked % DAY) / HOUR
        asked = asked[(hour > 7) & (hour < 22)]
    come = asked + rng.lognormal(np.log(6 * HOUR), 0.8, len(asked))
    if "batch" in kind:
        come = np.ceil(come / DAY) * DAY + 2 * HOUR
    return asked, np.where(rng.random(len(asked)) < 0.8, come, np.nan)


def _feed(asked: Floats, come: Floats, now: float) -> LabelFeed:
    """What is known of it at `now`."""
    arrivals = np.sort(come[come <= now])
    since = arrivals[-1] - 5 * DAY
    rows = (asked > since) & (asked <= now)
    return LabelFeed(
        now=now,
        since=since,
        window_s=DAY,
        asked=asked[rows],
        arrived=np.where(come <= now, come, np.nan)[rows],
        arrivals=arrivals[arrivals > now - 15 * DAY],
    )


@pytest.mark.parametrize("kind", ["steady", "nights", "batch", "nights, batch"])
def test_a_feed_that_runs_is_never_called_stalled(kind: str) -> None:
    """200 looks at three feeds each, at all hours: quiet nights and the wait for a nightly batch owe nothing unusual."""
    for seed in range(3):
        asked, come = _stream(kind, seed=seed)
        for now in np.linspace(6 * DAY, 24 * DAY, 67):
            assert stalled_label_feed(_feed(asked, come, now), "late") is None, (seed, now / DAY)


@pytest.mark.parametrize(
    ("kind", "left", "within_h"),
    [("steady", 0.0, 8), ("steady", 0.1, 10), ("nights", 0.0, 16), ("batch", 0.0, 52), ("nights, batch", 0.0, 52)],
)
def test_a_stall_is_found_and_stays_found(kind: str, left: float, within_h: float) -> None:
    """Labels stop, or a tenth of them still comes: found within hours (a nightly batch must fail to come first), and not forgotten."""
    stop = 15.3 * DAY
    for seed in range(3):
        asked, come = _stream(kind, seed=seed)
        lost = (come > stop) & (np.random.default_rng(seed).random(len(come)) >= left)
        come = np.where(lost, np.nan, come)
        fault = stalled_label_feed(_feed(asked, come, stop + within_h * HOUR), "late")
        assert fault is not None, seed
        assert (fault.kind, fault.source, fault.subject) == ("label_feed_stalled", "label feed", "late")
        assert abs(fault.since.timestamp() - stop) < DAY
        if not left:
            later = np.linspace(stop + within_h * HOUR, 24 * DAY, 20)
            assert all(stalled_label_feed(_feed(asked, come, now), "late") for now in later)


def test_traffic_that_stops_owes_no_labels() -> None:
    """No predictions, no labels: that is not the feed's fault."""
    asked, come = _stream("steady", seed=1)
    kept = asked < 15 * DAY
    for hours in (10, 30, 60):
        assert stalled_label_feed(_feed(asked[kept], come[kept], 15 * DAY + hours * HOUR), "late") is None


def test_too_little_is_known_to_call_it_a_stall() -> None:
    """A new model, a model with a handful of labels, and one without any: unknown, so no fault."""
    asked, come = _stream("steady", seed=2)
    assert stalled_label_feed(_feed(asked, come, 0.9 * DAY), "late") is None
    few = np.where(np.arange(len(come)) % 150 == 0, come, np.nan)
    assert stalled_label_feed(_feed(asked, np.where(few > 8 * DAY, np.nan, few), 12 * DAY), "late") is None
    none = LabelFeed(
        now=DAY, since=0.0, window_s=DAY, asked=asked[:99], arrived=np.full(99, np.nan), arrivals=np.zeros(0)
    )
    assert stalled_label_feed(none, "late") is None
    assert (none.lag_s(), none.coverage(HOUR)[0]) == (None, 0.0)


def test_lag_and_coverage(tmp_path: Path) -> None:
    """The lag is that of the labels that arrived within the window; coverage counts rows that are old enough."""
    log = tmp_path / "log"
    minutes = [float(m) for m in range(1, 301)]
    ids = [f"r{m:.0f}" for m in minutes]
    write_predictions(log, ids, minutes_before(NOW, minutes), [0.5] * 300)
    known = [i for i, m in enumerate(minutes) if m > 40 and m % 4]
    write_labels(log, [ids[i] for i in known], minutes_before(NOW, [minutes[i] - 40 for i in known]), [1] * len(known))
    feed = read_feed(FolderLog(log), NOW, timedelta(hours=2), [])
    assert feed.lag_s() == 40 * 60
    assert feed.coverage(41 * 60) == (pytest.approx(0.75, abs=0.01), 120)


def test_lags_longer_than_a_few_windows_are_seen(tmp_path: Path) -> None:
    """Labels that come after twenty windows are matched with their rows, instead of taken for labels of nothing."""
    log = tmp_path / "log"
    minutes = [float(m) for m in range(1, 3_000, 5)]
    ids = [f"r{m:.0f}" for m in minutes]
    write_predictions(log, ids, minutes_before(NOW, minutes), [0.5] * len(ids))
    known = [i for i, m in enumerate(minutes) if m > 1_200]
    write_labels(
        log, [ids[i] for i in known], minutes_before(NOW, [minutes[i] - 1_200 for i in known]), [1] * len(known)
    )
    feed = read_feed(FolderLog(log), NOW, timedelta(hours=1), [])
    assert feed.lag_s() == 1_200 * 60


def test_rows_that_are_predicted_when_their_labels_are_known_owe_none(tmp_path: Path) -> None:
    """A client that catches up with half a day at once, while labels came as ever, does not make the feed look stalled."""
    log = tmp_path / "log"
    due = np.arange(0.5, 10 * 24 * 60, 2.0)
    asked = np.where((due > 3 * 60) & (due < 15 * 60), 3 * 60.0, due)
    ids = [f"r{m:g}" for m in due]
    write_predictions(log, ids, minutes_before(NOW, asked), [0.5] * len(ids))
    come = np.flatnonzero(due > 60)
    write_labels(log, [ids[i] for i in come], minutes_before(NOW, due[come] - 60), [1] * len(come))
    feed = read_feed(FolderLog(log), NOW, timedelta(days=1), [])
    assert stalled_label_feed(feed, "late") is None
    assert feed.lags_s().min() == 0
