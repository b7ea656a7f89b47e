"""The JSON of a replay, its windows, and the pages made of it."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streams

from backtest import report
from backtest.replay import Replayed
from backtest.result import as_json, windows
from backtest.rivals import Periodic, last_label
from controller.state import Cycle, Event, ModelState, Outcome, Phase, Version, VersionStatus

FIRST, SWITCH, ROWS = 100, 260, 400


@pytest.fixture
def replayed(tmp_path: Path) -> Replayed:
    """v1 is always wrong; v2, from row 260 on, is always right. A cycle between was refused, one failed, one holds rows back."""
    stream = streams.stream(tmp_path, streams.rows(ROWS))
    served = np.where(np.arange(ROWS) < SWITCH, 1 - stream.truth, stream.truth)
    served[:FIRST] = np.nan
    champion = np.where(np.arange(ROWS) < FIRST, 0, np.where(np.arange(ROWS) < SWITCH, 1, 2)).astype(np.int32)
    at = {row: stream.moment(row) for row in (FIRST - 1, 150, 200, 240, 259, 300)}

    def version(number: int, row: int, cycle: int) -> Version:
        lineage = {
            "component": "sklearn.ridge",
            "parameters": {"alpha": 0.03125, "fit": None},
            "rows": 100,
            "window_s": None,
        }
        return Version(
            model="toy", number=number, digest=f"sha256:{number}", status=VersionStatus.CHAMPION, created_at=at[row], cycle=cycle,
            lineage=lineage,
        )  # fmt: skip

    def cycle(number: int, row: int, outcome: Outcome, challenger: int | None = None, **outputs: Any) -> Cycle:
        return Cycle(
            model="toy", number=number, phase=Phase.BAKING, outcome=outcome, sentence=f"<b>{outcome.value}</b> in 2.5 s",
            cause="trigger: score & fell",
            opened_at=at[row], phase_since=at[row], closed_at=at[row] + timedelta(seconds=20), challenger=challenger, outputs=outputs,
        )  # fmt: skip

    trained: dict[str, Any] = {"training": {"rows": 100}}
    cycles = [
        cycle(1, FIRST - 1, Outcome.PROMOTED, 1, **trained), cycle(2, 150, Outcome.REJECTED, **trained),
        cycle(3, 200, Outcome.FAILED, preparing={"held": [{}, {}]}), cycle(4, 240, Outcome.PROMOTED, 2, **trained),
        cycle(5, 300, Outcome.ROLLED_BACK, 2, **trained),
    ]  # fmt: skip
    events = [
        Event(model="toy", kind="cycle.opened", sentence="retraining", at=at[150], seq=1),
        Event(model="toy", kind="study.finished", sentence="no news", at=at[150], seq=2),
        Event(model="toy", kind="model.trained", sentence="ridge trained on 100 rows in 2.5 s", at=at[240], seq=3),
    ]
    state = ModelState(
        name="toy", policy="{}", policy_digest="", created_at=at[150], champion=2,
        versions={1: version(1, FIRST - 1, 1), 2: version(2, 259, 4)},
    )  # fmt: skip
    return Replayed(
        stream=stream, first_row=FIRST, served=served, version=champion.copy(), champion=champion, events=events, cycles=cycles,
        state=state, train_seconds=1.25, first_model=tmp_path,
    )  # fmt: skip


@pytest.fixture
def result(replayed: Replayed) -> dict[str, Any]:
    stream = replayed.stream
    static = np.where(np.isnan(replayed.served), np.nan, 1 - stream.truth)
    periodic = Periodic(score=float("nan"), retrains=2, window="expanding")
    found = as_json(replayed, static=static, periodic=periodic, last_label=last_label(stream, FIRST), seconds=3.14159)
    return json.loads(json.dumps(found, allow_nan=False))  # type: ignore[no-any-return]


def test_result_has_the_promised_keys(result: dict[str, Any]) -> None:
    """The shape that scripts rely on; what is not defined is null."""
    assert result["metric"] == {"name": "accuracy", "higher_is_better": True}
    assert (result["model"], result["rows"], result["seconds"]) == ("toy", ROWS, 3.1)
    ours = result["ratchet"]
    assert {key: ours[key] for key in ("retrains", "promotions", "rejected", "rolled_back", "failed", "held", "train_seconds")} == {
        "retrains": 3, "promotions": 1, "rejected": 1, "rolled_back": 1, "failed": 1, "held": 2, "train_seconds": 1.2,
    }  # fmt: skip
    assert ours["score"] == pytest.approx((ROWS - SWITCH) / (ROWS - FIRST), abs=1e-4)
    rivals = result["baselines"]
    assert (rivals["static"]["score"], rivals["periodic"]["score"], rivals["periodic"]["retrains"]) == (0.0, None, 2)
    assert 0 < rivals["last_label"]["score"] < 1
    assert len(rivals["static"]["windows"]) == len(rivals["last_label"]["windows"]) == len(ours["windows"])


def test_events_are_placed_by_rows_and_say_no_times(result: dict[str, Any]) -> None:
    """Of the row that was asked for next; without what only says that something goes on, and without how long this machine took."""
    assert [(event["row"], event["kind"], event["sentence"]) for event in result["events"]] == [
        (151, "cycle.opened", "retraining"), (241, "model.trained", "ridge trained on 100 rows"),
    ]  # fmt: skip
    assert "2.5 s" not in json.dumps(result)


def test_windows_cover_the_replay_and_never_mix_champions(replayed: Replayed) -> None:
    """Without gaps, cut where the champion changed."""
    found = windows(replayed)
    assert (found[0].from_row, found[-1].to_row) == (FIRST, ROWS)
    assert [one.to_row for one in found[:-1]] == [one.from_row for one in found[1:]]
    assert {(one.version, one.score) for one in found} == {(1, 0.0), (2, 1.0)}
    assert SWITCH in [one.from_row for one in found]


class Page(HTMLParser):
    """Checks that tags are closed, and collects what would be loaded from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]
        self.loaded += [tag] if tag in ("script", "link", "img", "iframe") else []
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_and_harmless(result: dict[str, Any]) -> None:
    """Nothing is loaded from anywhere, no script runs, and sentences are text, whatever they hold."""
    text = report.page(result)
    assert Page(text).loaded == []
    assert "<b>rejected</b>" not in text
    assert "&lt;b&gt;rejected&lt;/b&gt;" in text
    for words in ("promoted", "rejected", "rolled back", "failed", "held"):
        assert words in re.sub(r"<style>.*?</style>", "", text)
    assert text.count("<polyline") >= 3


def test_page_of_a_replay_without_scores(result: dict[str, Any]) -> None:
    """Where no row had a label the page says so instead of drawing."""
    for window in result["ratchet"]["windows"]:
        window["score"] = None
    result["ratchet"]["score"] = None
    for rival in result["baselines"].values():
        rival |= {"score": None, "windows": []}
    text = report.page(result)
    assert Page(text).loaded == []
    assert "too few labelled rows" in text


def test_grid_page_marks_the_best(result: dict[str, Any]) -> None:
    """The best score; of equal ones the cheaper."""
    better: dict[str, Any] = json.loads(json.dumps(result))
    better["ratchet"] |= {"score": 0.9, "train_seconds": 20.0}
    cheaper: dict[str, Any] = json.loads(json.dumps(better))
    cheaper["ratchet"]["train_seconds"] = 10.0
    settings = [{"setting": {"cooldown": str(i)}, "result": one} for i, one in enumerate((result, better, cheaper))]
    assert report.best_of(settings) == 2
    text = report.grid_page(settings)
    assert Page(text).loaded == []
    assert text.count('class="dot best"') == 1
    lower = {"name": "mae", "higher_is_better": False}
    assert report.best_of([one | {"result": one["result"] | {"metric": lower}} for one in settings]) == 0
