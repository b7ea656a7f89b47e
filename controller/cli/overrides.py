"""A person's orders: preview, ask, then order exactly what was previewed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import quote

import typer

from controller.cli.client import CliError, Exit, actor, call
from controller.cli.output import Format, Output, confirm, console, print_data, sayable, speaks_unicode

RETRIES = 5
"""With --yes: how often an order is previewed anew when the model has changed in between."""

Model = Annotated[str, typer.Argument(help="The model's name.")]
Reason = Annotated[str, typer.Option("--reason", "-r", help="Why; kept in the record.")]
Version = Annotated[int | None, typer.Option("--version", help="Number of the version.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")]
RowVersion = Annotated[
    int | None, typer.Option("--row-version", help="Refuse if the model has changed since this state was previewed.")
]

HELP = {
    "trigger": "Open a cycle now, whatever the triggers say.",
    "pause": "Stop everything where it is: no cycle opens or goes on, traffic stays as it is.",
    "resume": "End a pause.",
    "freeze": "Let cycles go on up to packaging, but move no traffic.",
    "unfreeze": "Let traffic move again.",
    "pin": "Keep the traffic on the champion (or on --version) and open no cycle.",
    "unpin": "End a pin.",
    "approve": "Let the challenger that waits for approval roll out.",
    "reject": "Turn down the challenger that waits for approval.",
    "promote": "Make a version champion now: the challenger, or --version.",
    "abort": "End the open cycle; the champion stays.",
    "retry": "Open a cycle again after one that failed or was refused.",
    "rollback": "Take the champion or the challenger out of service, back to the version before (or to --version).",
}
"""Verb → what it does."""
WITH_VERSION = frozenset({"pin", "promote", "rollback"})


def add_to(app: typer.Typer) -> None:
    for verb, words in HELP.items():
        make = _with_version if verb in WITH_VERSION else _without_version
        app.command(name=verb, help=words, rich_help_panel="Overrides")(make(verb))


def _with_version(verb: str) -> Callable[..., None]:
    def run(
        model: Model, reason: Reason, version: Version = None, yes: Yes = False, dry_run: DryRun = False,
        row_version: RowVersion = None, output: Output = Format.TABLE,
    ) -> None:  # fmt: skip
        _run(_Wish(verb, model, reason, version, row_version), yes=yes, dry_run=dry_run, output=output)

    return run


def _without_version(verb: str) -> Callable[..., None]:
    def run(
        model: Model, reason: Reason, yes: Yes = False, dry_run: DryRun = False, row_version: RowVersion = None,
        output: Output = Format.TABLE,
    ) -> None:  # fmt: skip
        _run(_Wish(verb, model, reason, None, row_version), yes=yes, dry_run=dry_run, output=output)

    return run


class _Wish:
    """What was typed."""

    def __init__(self, verb: str, model: str, reason: str, version: int | None, row_version: int | None) -> None:
        self.verb = verb
        self.path = f"/models/{quote(model, safe='')}"
        self.row_version = row_version
        self.body = {"verb": verb, "actor": actor(), "reason": reason, "version": version}

    def preview(self) -> dict[str, Any]:
        found: dict[str, Any] = call(
            "POST", f"{self.path}/preview", body={**self.body, "row_version": self.row_version}
        )
        return found

    def order(self, row_version: int) -> dict[str, Any]:
        done: dict[str, Any] = call("POST", f"{self.path}/orders", body={**self.body, "row_version": row_version})
        return done


def _run(wish: _Wish, *, yes: bool, dry_run: bool, output: Format) -> None:
    for left in range(RETRIES, -1, -1):
        preview = wish.preview()
        if dry_run:
            _print_preview(preview) if output is Format.TABLE else print_data(preview, output)
            return
        _print_preview(preview, stderr=output is not Format.TABLE)
        confirm(f"{wish.verb.capitalize()}?", yes=yes)
        try:
            done = wish.order(preview["row_version"])
        except CliError as error:
            # who said --yes has not looked at the preview, so the present one is as good; who did, or named a state, is asked again
            if error.code is not Exit.STALE or not yes or wish.row_version is not None or left == 0:
                raise
            continue
        print(sayable(done["sentence"])) if output is Format.TABLE else print_data(done, output)
        return


def _print_preview(preview: dict[str, Any], *, stderr: bool = False) -> None:
    """Before → after, and what will be on record."""
    from rich.table import Table
    from rich.text import Text

    arrow = "→" if speaks_unicode() else "->"
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    changes = {name: (preview[f"{name}_before"], preview[f"{name}_after"]) for name in ("traffic", "phase", "held")}
    only_held = all((before != after) == (name == "held") for name, (before, after) in changes.items())
    for name, (before, after) in changes.items():
        if before != after:
            grid.add_row(name, Text(sayable(f"{before}  {arrow}  {after}"), "bold"))
        elif name != "held" and not only_held:
            grid.add_row(name, Text(sayable(f"{before}  (unchanged)")))
    for sentence in dict.fromkeys(preview["sentences"]):
        grid.add_row("record", Text(sayable(sentence)))
    console(stderr=stderr).print(grid)
