"""`ratchet backtest`: asks a process that holds the heavy libraries to replay a policy on recorded data, and shows what it says."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from controller.cli.client import PLACE, CliError, Exit
from controller.cli.output import Format, Output, console, print_data, print_table, sayable, sayable_line

if TYPE_CHECKING:
    from policies.reading import Loaded
    from policies.variants import Axis, Setting

PLAIN_EVERY_S = 10.0
"""Between lines of progress where no terminal is."""
TROUBLE_LINES = 15
"""Of what the process said, shown if it dies."""
EVENTS_SHOWN = 40


def backtest(
    policy: Annotated[Path, typer.Argument(help="Policy file.", show_default=False)],
    data: Annotated[Path | None, typer.Option(help="Recorded rows, CSV or Parquet; default: the policy's own source.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random; default: train.seed of the policy.", min=0)] = None,
    initial: Annotated[str | None, typer.Option(help="Rows (1500) or share (25%) that train the first version; default: 25%.")] = None,
    output: Output = Format.TABLE,
    report: Annotated[Path | None, typer.Option(help="Write a page with plots to this file.")] = None,
    grid: Annotated[list[str] | None, typer.Option(help="KEY=A,B,C: replay once with each value; several make all combinations.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder of the work folders; default: backtests in --home.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew, whatever a stopped replay left.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep models and records after success.")] = False,
) -> None:  # fmt: skip
    """Replay a policy on recorded data: what would it have served, beside no retraining, periodic retraining and the last label?"""
    loaded, settings = _settings(policy, grid or [])
    if data is not None and not data.exists():
        raise CliError(f"--data: no such file or folder: {data}", Exit.USAGE)
    if report is not None and not report.absolute().parent.is_dir():
        raise CliError(f"--report: no such folder: {report.absolute().parent}", Exit.USAGE)
    root = (work or PLACE.home_folder() / "backtests").absolute()
    request = {
        "settings": [{"setting": one.values, "policy": one.policy.model_dump(mode="json", by_alias=True)} for one in settings],
        "policy_dir": str(loaded.directory),
        "data": str(data.absolute()) if data else None,
        "log_dir": str(PLACE.home_folder() / "log" / loaded.policy.name),
        "seed": seed,
        "initial": initial,
        "root": str(root),
        "fresh": fresh,
        "keep": keep,
        "report": str(report.absolute()) if report else None,
    }  # fmt: skip
    request["cache"] = str(root / f"cache-{_digest(request)}") if len(settings) > 1 else None
    results, best = _replay(request, [one.values for one in settings])
    if output is not Format.TABLE:
        print_data(results[0] if not grid else _grid_data(settings, results), output)
    elif grid:
        _show_grid(settings, results, best)
    else:
        _show(results[0])
    if report is not None:
        print(f"report: {report}", file=sys.stderr)


# ---------------------------------------------------------------- what is asked
def _settings(policy: Path, grid: Sequence[str]) -> tuple[Loaded, list[Setting]]:
    """The policy as it stands, and each setting of it. Raises CliError with everything that is wrong."""
    from policies.reading import read_policies
    from policies.variants import Setting, settings

    reading = read_policies([policy])
    if reading.problems:
        _refuse([str(problem) for problem in reading.problems])
    if len(reading.policies) != 1:
        raise CliError(f"{policy} must hold one policy, but holds {len(reading.policies)}", Exit.USAGE)
    (loaded,) = reading.policies
    if not grid:
        return loaded, [Setting(values={}, policy=loaded.policy)]
    axes = _axes(grid)
    try:
        found, problems = settings(Path(loaded.file).read_bytes(), axes, file=loaded.file, directory=loaded.directory)
    except ValueError as error:
        raise CliError(f"--grid: {error}", Exit.USAGE) from error
    if problems:
        _refuse([str(problem) for problem in problems])
    return loaded, found


def _axes(grid: Sequence[str]) -> list[Axis]:
    from policies.variants import parse_axis

    try:
        return [parse_axis(text) for text in grid]
    except ValueError as error:
        raise CliError(f"--grid: {error}", Exit.USAGE) from error


def _refuse(problems: Sequence[str]) -> None:
    many = "" if len(problems) == 1 else "s"
    raise CliError("\n".join([f"{len(problems)} problem{many}", *problems]), Exit.INVALID_POLICY)


def _digest(request: Mapping[str, Any]) -> str:
    """Equal for the same command, so that a grid that goes on finds its cache."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]


# ---------------------------------------------------------------- the process
def _replay(
    request: Mapping[str, Any], settings: Sequence[Mapping[str, str]]
) -> tuple[list[dict[str, Any]], int | None]:
    """One result a setting, and the position of the best. Raises CliError with the process's reason; KeyboardInterrupt stops it."""
    with tempfile.TemporaryFile("w+", errors="replace") as said, _process(said) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once: its end tells more
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        with _screen() as screen:
            results, message = _follow(process.stdout, screen, settings)
        if "best" not in message:
            raise CliError(_epitaph(process, said))
        return results, message["best"]


@contextlib.contextmanager
def _process(said: IO[str]) -> Iterator[subprocess.Popen[str]]:
    """In a session of its own, so that all that it forks ends with it; what it does is safe to stop at any moment."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "backtest"],  # -P: a folder of that name where somebody stands is none of ours
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()


def _follow(
    lines: IO[str], screen: Screen, settings: Sequence[Mapping[str, str]]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Results so far, and the last message. Raises CliError if the process gives a reason, or is interrupted by a person."""
    results: list[dict[str, Any]] = []
    message: dict[str, Any] = {}
    at = 0, 0
    try:
        for line in lines:
            message = json.loads(line)
            if progress := message.get("progress"):
                at = progress["row"], progress["rows"]
                screen.show(progress, _which(settings, len(results)))
            elif "result" in message:
                results.append(message["result"])
            elif "error" in message:
                raise CliError(message["error"], Exit.USAGE if message["kind"] == "usage" else Exit.REFUSED)
    except KeyboardInterrupt:
        screen.close()
        print(f"stopped at row {at[0]:,} of {at[1]:,}; the same command goes on from there", file=sys.stderr)
        raise
    return results, message


def _which(settings: Sequence[Mapping[str, str]], index: int) -> str:
    """Which of several settings is being replayed."""
    if len(settings) == 1:
        return ""
    words = ", ".join(f"{key}={value}" for key, value in settings[min(index, len(settings) - 1)].items())
    return f"{index + 1} of {len(settings)}: {words}"


def _epitaph(process: subprocess.Popen[str], said: IO[str]) -> str:
    code = process.wait()
    said.seek(0)
    last = [sayable_line(line) for line in said.read().splitlines()[-TROUBLE_LINES:]]
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return "\n".join([f"the replaying process {how}; the same command goes on from where it was", *last])


# ---------------------------------------------------------------- progress
class Screen:
    """Lines now and then, for logs."""

    def __init__(self) -> None:
        self._next = 0.0

    def show(self, progress: Mapping[str, Any], which: str) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + PLAIN_EVERY_S
        parts = [which, f"row {progress['row']:,} of {progress['rows']:,}", _promotions(progress), progress["sentence"]]
        print(sayable_line("  ".join(part for part in parts if part)), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing to take down."""


class LiveScreen(Screen):
    """A bar and the newest sentence, on a terminal."""

    def __init__(self) -> None:
        from rich.live import Live

        super().__init__()
        self._console = console(stderr=True)
        self._live = Live(console=self._console, transient=True, refresh_per_second=8)
        self._live.start()
        self._began = time.monotonic()

    def show(self, progress: Mapping[str, Any], which: str) -> None:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        first, row, rows = progress["first_row"], progress["row"], progress["rows"]
        head = Table.grid(padding=(0, 2, 0, 0))
        head.add_row(
            ProgressBar(total=max(rows - first, 1), completed=row - first, width=32), f"row {row:,} of {rows:,}", _promotions(progress),
            f"{time.monotonic() - self._began:.0f} s",
        )  # fmt: skip
        sentence = Text(sayable_line(progress["sentence"]), style="dim", no_wrap=True, overflow="ellipsis")
        self._live.update(Group(*([Text(sayable_line(which))] if which else []), head, sentence))

    def close(self) -> None:
        self._live.stop()


@contextlib.contextmanager
def _screen() -> Iterator[Screen]:
    screen = LiveScreen() if sys.stderr.isatty() else Screen()
    try:
        yield screen
    finally:
        screen.close()


def _promotions(progress: Mapping[str, Any]) -> str:
    number = progress["promotions"]
    return f"{number} promotion{'' if number == 1 else 's'}"


# ---------------------------------------------------------------- what came of it
def _show(result: Mapping[str, Any]) -> None:
    ratchet, rivals, metric = result["ratchet"], result["baselines"], result["metric"]
    better = "higher" if metric["higher_is_better"] else "lower"
    print(
        sayable(
            f"{result['model']}: {result['rows'] - result['first_row']:,} rows replayed after the first {result['first_row']:,}; "
            f"{metric['name']}, {better} is better\n"
        )
    )
    periodic = rivals["periodic"]
    print_table(
        ["who", "score", "how"],
        [
            ("Ratchet", _score(ratchet["score"]), _deeds(ratchet)),
            ("static", _score(rivals["static"]["score"]), "the first version alone"),
            (
                "periodic", _score(periodic["score"]),
                f"{_count(periodic['retrains'], 'retrain')}, evenly spaced; best window: {periodic['window']}",
            ),
            ("last label", _score(rivals["last_label"]["score"]), "repeats the newest known label"),
        ],
        empty="",
    )  # fmt: skip
    events = [event for event in result["events"] if event["kind"] != "model.created"]
    print(
        f"\n{ratchet['train_seconds']:,.1f} s of search and training after the first version, {result['seconds']:,.1f} s in all\n"
    )
    if len(events) > EVENTS_SHOWN:
        print(f"the last {EVENTS_SHOWN} of {len(events)} events (all with -o json or --report):")
    print_table(
        ["row", "event", "sentence"],
        [(f"{event['row']:,}", event["kind"], event["sentence"]) for event in events[-EVENTS_SHOWN:]],
        empty="nothing happened",
    )


def _deeds(ratchet: Mapping[str, Any]) -> str:
    parts = [
        _count(ratchet["retrains"], "retrain"),
        _count(ratchet["promotions"], "promotion"),
        f"{ratchet['rejected']} rejected",
    ]
    parts += [f"{ratchet[name]} {name.replace('_', ' ')}" for name in ("rolled_back", "failed") if ratchet[name]]
    parts += [f"{_count(ratchet['held'], 'window')} held back"] if ratchet["held"] else []
    return ", ".join(parts)


def _grid_data(settings: Sequence[Setting], results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"setting": one.values, **found} for one, found in zip(settings, results, strict=True)]


def _show_grid(settings: Sequence[Setting], results: Sequence[dict[str, Any]], best: int | None) -> None:
    metric = results[0]["metric"]
    print(sayable(f"{results[0]['model']}: {len(results)} settings on {results[0]['rows']:,} rows; {metric['name']}\n"))
    keys = list(settings[0].values)
    print_table(
        ["", *keys, "score", "promotions", "retrains", "train seconds"],
        [
            (
                "*" if i == best else " ", *(one.values[key] for key in keys), _score(found["ratchet"]["score"]),
                found["ratchet"]["promotions"], found["ratchet"]["retrains"], f"{found['ratchet']['train_seconds']:,.1f}",
            )
            for i, (one, found) in enumerate(zip(settings, results, strict=True))
        ],
        empty="",
    )  # fmt: skip
    rivals = results[0]["baselines"]
    print(
        f"\n* best, in hindsight: on other rows expect less. For comparison: static {_score(rivals['static']['score'])}, "
        f"last label {_score(rivals['last_label']['score'])}"
    )


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
