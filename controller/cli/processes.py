"""Verbs that start and stop processes: demo, daemon, shutdown."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from controller.cli.client import PLACE, CliError, Exit
from controller.cli.output import confirm


def add_to(app: typer.Typer) -> None:
    raw = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command(context_settings=raw, add_help_option=False)(demo)
    app.command()(daemon)
    app.command()(shutdown)
    app.command()(recover)


def demo(context: typer.Context) -> None:
    """Watch a model of real flights decay and be renewed, in five minutes. 'ratchet demo --help' lists its options."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "demo", *context.args])  # noqa: S606 - our own module, no shell


def daemon(
    host: Annotated[str | None, typer.Option(help="Address of the API (RATCHET_HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the API (RATCHET_PORT); 0 takes a free one.")] = None,
    router_port: Annotated[int | None, typer.Option(help="Port where predictions are asked for (RATCHET_ROUTER_PORT).")] = None,
    settings: Annotated[Path | None, typer.Option(help="YAML file of settings (RATCHET_SETTINGS); variables go before it.")] = None,
) -> None:  # fmt: skip
    """Run the controller in the foreground. Settings are environment variables, or stand in a YAML file: docs/settings.md."""
    from config.reading import SettingsError, read_settings

    try:
        found = read_settings(_settings_file(settings), home=PLACE.home, host=host, port=port, router_port=router_port)
    except SettingsError as error:
        raise CliError(str(error), Exit.USAGE) from error
    from controller.daemon import run

    sys.exit(run(found))


def _settings_file(named: Path | None) -> Path | None:
    from config.reading import FILE_VARIABLE

    variable = os.environ.get(FILE_VARIABLE)
    return named if named is not None else Path(variable) if variable else None


def shutdown(
    home: Annotated[Path | None, typer.Option(help="State folder (RATCHET_HOME).")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Stop the daemon of a state folder, and all that serves and works for it. Nothing is lost: 'ratchet daemon' goes on."""
    from controller.shutdown import NotStopped, stop_everything

    if home is not None:
        PLACE.home = home
    folder = PLACE.home_folder()
    if not (folder / "run").is_dir():
        raise CliError(f"{folder} is no state folder of ratchet", Exit.USAGE)
    confirm(f"Stop the daemon of {folder}, its router, replicas and jobs? Its models will not answer.", yes=yes)
    try:
        for line in stop_everything(folder):
            print(line)
    except NotStopped as error:
        raise CliError(str(error)) from error


def recover(
    reason: Annotated[str, typer.Option(help="Why; stays on record.")],
    settings: Annotated[
        Path | None, typer.Option(help="The daemon's YAML file of settings (RATCHET_SETTINGS).")
    ] = None,
    home: Annotated[Path | None, typer.Option(help="State folder (RATCHET_HOME).")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """After a backup of the database was restored: let it count from now on. No daemon may run. docs/postgresql.md says when."""
    from config.reading import SettingsError, read_settings
    from controller.cli.client import actor
    from controller.restored import NotRecovered, recover_all

    if not reason.strip():
        raise CliError("--reason must say why, so that others can read later why it was done", Exit.USAGE)
    try:
        found = read_settings(_settings_file(settings), home=home or PLACE.home)
    except SettingsError as error:
        raise CliError(str(error), Exit.USAGE) from error
    from controller.telemetry import logs

    logs.configure("warning", found.log_format)
    confirm("Let the champions that the restored database knows serve again, and end its open cycles?", yes=yes)
    try:
        for line in recover_all(found, actor(), reason.strip()):
            print(line)
    except NotRecovered as error:
        raise CliError(str(error)) from error
