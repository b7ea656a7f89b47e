"""Verbs about telling people: which channels there are, and whether they work."""

from __future__ import annotations

import typer

from controller.cli.client import CliError, actor, call
from controller.cli.output import Format, Output, print_data, print_table

TEST_TIMEOUT_S = 60.0

notices = typer.Typer(no_args_is_help=True, help="See and test the channels that people are told by.")


def add_to(app: typer.Typer) -> None:
    app.add_typer(notices, name="notices")


@notices.command()
def status(output: Output = Format.TABLE) -> None:
    """Which channels there are, how much waits for each, and why its newest attempt failed."""
    answer = call("GET", "/notices")
    if output is not Format.TABLE:
        print_data(answer, output)
        return
    rows = [(c["channel"], c["waiting"], c["error"] or "–") for c in answer["channels"]]
    print_table(("channel", "waiting", "newest attempt failed because"), rows, empty="no channels")


@notices.command("test")
def send_test(output: Output = Format.TABLE) -> None:
    """Send a test message to every channel, and say what came of each; exit code 1 if one failed."""
    answer = call("POST", "/notices/test", body={"actor": actor()}, timeout_s=TEST_TIMEOUT_S)
    if output is not Format.TABLE:
        print_data(answer, output)
    else:
        rows = [(t["channel"], "yes" if t["ok"] else "NO", f"{t['ms']:.0f} ms", t["said"]) for t in answer["tests"]]
        print_table(("channel", "works", "took", "what came of it"), rows, empty="no channels")
    failed = [t["channel"] for t in answer["tests"] if not t["ok"]]
    if failed:
        raise CliError(f"{len(failed)} of {len(answer['tests'])} channels failed: {', '.join(failed)}")
