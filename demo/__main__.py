"""`python -m demo`: play the year, then write `demo-report/`."""

from __future__ import annotations

import argparse
import shutil
import sys
import threading
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from demo import report, scores
from demo.flights import TIME, DataMissing, load
from demo.screen import Screen
from demo.simclock import DAY_S, SimClock
from demo.stack import Stack
from demo.story import MODEL, YEAR_END, Story
from demo.system import DemoError, Ratchet
from demo.traffic import Traffic
from demo.upstream import Warehouse

FIRST_DAY = datetime(2013, 1, 19, tzinfo=UTC)
"""When the model goes live; the flights before train its first version."""
LOOK_EVERY_S = 0.3
BOOTSTRAP_TIMEOUT_S = 120.0


def main(argv: list[str] | None = None) -> int:
    """Run the demonstration; 0 if everything that it promises was seen."""
    options = _options(argv)
    console = Console()
    console.print(
        "[bold]Ratchet demo[/]: a year of New York flights in about four minutes. Nothing leaves this machine."
    )
    home = options.home.absolute()
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    try:
        with ExitStack() as ends:
            stack = ends.enter_context(Stack(home / "stack", home / "state")) if options.stack else None
            summary = Demo(options, home, console, stack).run()
    except (DataMissing, DemoError) as error:
        console.print(f"[bold red]The demo cannot go on:[/] {error}")
        return 1
    return report.verdict(summary, console)


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ratchet demo", description=main.__doc__)
    parser.add_argument("--home", type=Path, default=Path(".ratchet-demo"), help="state folder; emptied first")
    parser.add_argument("--report", type=Path, default=Path("demo-report"), help="folder of the report")
    parser.add_argument("--share", type=float, default=1 / 3, help="part of the flights that take part, above 0 to 1")
    parser.add_argument("--seed", type=int, default=0, help="which part of the flights")
    parser.add_argument("--seconds", type=float, default=220, help="time to aim at, in seconds")
    parser.add_argument(
        "--stack",
        action="store_true",
        help="on PostgreSQL, Prometheus, Alertmanager and a registry, as in examples/stack",
    )
    return parser.parse_args(argv)


class Demo:
    """One run."""

    def __init__(self, options: argparse.Namespace, home: Path, console: Console, stack: Stack | None) -> None:
        self._options = options
        self._home = home
        self._stack = stack
        self._console = console
        self._started = time.monotonic()
        self._flights = load(options.share, options.seed)
        self._first_row = int(self._flights[TIME].searchsorted(pd.Timestamp(FIRST_DAY)))
        self._clock = SimClock(home / "clock.json", FIRST_DAY)
        self._warehouse = Warehouse(home / "warehouse", self._flights)
        self._ratchet = Ratchet(home / "state", home / "clock.json", stack.environment if stack else {})
        self._story = Story(self._ratchet, self._clock, self._warehouse, options.seconds)
        self._first_scores: np.ndarray | None = None

    def run(self) -> report.Summary:
        """The whole; what came of it. Raises DemoError."""
        self._warehouse.advance(FIRST_DAY)
        shutil.copy(
            self._stack.policy if self._stack else Path(__file__).parent / "policy.yaml", self._home / "policy.yaml"
        )
        with Screen(self._console) as screen:
            try:
                screen.say(f"{len(self._flights):,} flights; starting the daemon", style="dim")
                self._ratchet.start()
                self._ratchet.run("apply", str(self._home / "policy.yaml"))
                self._wait_for_first_version(screen)
                traffic = self._play_year(screen)
            finally:
                self._story.look()
                self._ratchet.shutdown()
        self._options.report.mkdir(parents=True, exist_ok=True)
        screen.save_picture(self._options.report / "terminal.svg")
        return self._summarise(traffic)

    # ------------------------------------------------------------ acts
    def _wait_for_first_version(self, screen: Screen) -> None:
        deadline = time.monotonic() + BOOTSTRAP_TIMEOUT_S
        while not self._story.view.model.get("champion"):
            self._story.look()
            self._show(screen, None)
            if time.monotonic() > deadline:
                raise DemoError(f"no version serves after {BOOTSTRAP_TIMEOUT_S:.0f} s; see {self._ratchet.log}")
            time.sleep(LOOK_EVERY_S)
        threading.Thread(target=self._score_first_version, name="first version", daemon=True).start()

    def _score_first_version(self) -> None:
        """What the first version would have answered all year, for the chart."""
        digest = self._story.view.model["versions"][0]["digest"]
        rows, out = self._home / "year.parquet", self._home / "first.npz"
        self._flights.to_parquet(rows, index=False)
        self._ratchet.offline_scores(self._ratchet.model_dir(digest), rows, out)
        self._first_scores = np.load(out)["scores"]

    def _play_year(self, screen: Screen) -> Traffic:
        traffic = Traffic(self._clock, self._flights, self._first_row, self._story.view.model["address"], MODEL)
        traffic.start()
        try:
            while not traffic.done and traffic.is_alive():
                self._story.look()
                self._story.play(traffic)
                self._show(screen, traffic)
                time.sleep(LOOK_EVERY_S)
            self._finish_cycle(screen, traffic)
        finally:
            traffic.stop()
            traffic.join(timeout=30)
        return traffic

    def _finish_cycle(self, screen: Screen, traffic: Traffic) -> None:
        """Labels of the last flights come in; a cycle that is under way is not waited for."""
        self._clock.run(3.0)
        end = YEAR_END + timedelta(days=2)
        while traffic.is_alive() and self._clock.now() < end:
            self._story.look()
            self._show(screen, traffic)
            time.sleep(LOOK_EVERY_S)

    def _show(self, screen: Screen, traffic: Traffic | None) -> None:
        now = self._clock.now()
        points = []
        if traffic is not None:
            points = scores.by_block(self._flights, traffic.tally.score, self._first_scores, pd.Timestamp(now), days=7)
        screen.show(
            self._story.view, points, now=now, days_per_s=self._clock.speed / DAY_S,
            elapsed_s=time.monotonic() - self._started, sent=traffic.tally.sent if traffic else 0,
            failed=traffic.tally.failed if traffic else 0,
        )  # fmt: skip

    # ------------------------------------------------------------ results
    def _summarise(self, traffic: Traffic) -> report.Summary:
        if self._first_scores is None:
            raise DemoError("the first version's scores of the year are missing")
        material = report.Material(
            flights=self._flights, served=traffic.tally.score, first=self._first_scores, story=self._story,
            sent=traffic.tally.sent, failed=traffic.tally.failed, errors=traffic.tally.errors,
            seconds=time.monotonic() - self._started, until=pd.Timestamp(self._clock.now()), stack=self._stack,
        )  # fmt: skip
        return report.write(material, self._options.report)


if __name__ == "__main__":
    sys.exit(main())
