"""`ratchet`: the console script. Start-up stays light: each command imports what it needs when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from controller.cli import notices, overrides, policies, processes, reading
from controller.cli.client import PLACE, CliError, Exit
from controller.cli.output import sayable

app = typer.Typer(
    name="ratchet", no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False,
    help="Keeps machine-learning models good after release. docs/cli.md says more; exit codes: 0 done, 1 refused, "
    "2 wrong usage, 3 no daemon, 4 stale preview, 5 invalid policy.",
)  # fmt: skip


def _say_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"ratchet {version('ratchetd')}")
        raise typer.Exit


@app.callback()
def place(
    server: Annotated[str | None, typer.Option(help="URL of the daemon (RATCHET_SERVER); default: the one of --home.")] = None,
    token: Annotated[str | None, typer.Option(help="API token (RATCHET_TOKEN); default: the one of --home.")] = None,
    home: Annotated[Path | None, typer.Option(help="State folder (RATCHET_HOME); default: .ratchet.")] = None,
    version: Annotated[bool, typer.Option("--version", help="Say which release this is.", is_eager=True, callback=_say_version)] = False,
) -> None:  # fmt: skip
    """Where the daemon is."""
    PLACE.server, PLACE.token, PLACE.home = server, token, home


processes.add_to(app)
policies.add_to(app)
reading.add_to(app)
notices.add_to(app)
overrides.add_to(app)


def main() -> None:
    """Run the command line; never shows a stack trace for what a user can put right."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        app(prog_name="ratchet")
    except CliError as error:
        print(sayable(f"ratchet: {error}"), file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)


if __name__ == "__main__":
    main()
