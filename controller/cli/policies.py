"""Verbs about policy files: init, schema, validate, apply, delete."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from controller.cli.client import CliError, Exit, actor, call
from controller.cli.output import Format, Output, confirm, print_data, sayable

if TYPE_CHECKING:
    from policies.reading import Reading

BATCH_BYTES = 4 * 2**20
"""Of policy text in one request; the daemon takes twice as much."""

Paths = Annotated[list[Path], typer.Argument(help="Policy files, or folders of them.", show_default=False)]


def add_to(app: typer.Typer) -> None:
    from controller.cli.backtesting import backtest
    from controller.cli.starting import init

    app.command()(init)
    app.command()(schema)
    app.command()(validate)
    app.command()(backtest)
    app.command()(apply)
    app.command()(delete)


def schema() -> None:
    """Print the JSON Schema of policy files, with which editors complete and check them."""
    import json

    from policies.jsonschema import json_schema

    print(json.dumps(json_schema(), indent=2))


def validate(paths: Paths, output: Output = Format.TABLE) -> None:
    """Check policy files; say everything that is wrong, or in words what each policy does."""
    from datetime import UTC, datetime

    from controller.cli.sources import warn
    from policies.explain import explain

    reading = _read(paths)
    warnings = warn(reading.policies)
    if output is not Format.TABLE:
        valid = [{"name": one.policy.name, "file": one.file} for one in reading.policies]
        problems = [str(problem) for problem in reading.problems]
        print_data({"valid": valid, "problems": problems, "warnings": warnings}, output)
    elif not reading.problems:
        for i, one in enumerate(reading.policies):
            lines = explain(one.policy, now=datetime.now(UTC))
            print(sayable("\n".join(([""] if i else []) + [lines[0], *(f"  {line}" for line in lines[1:])])))
    if reading.problems:
        _refuse(reading, say=output is Format.TABLE)


def _read(paths: list[Path]) -> Reading:
    from policies.reading import read_policies

    reading = read_policies(paths)
    if not reading.policies and not reading.problems:
        raise CliError(f"no policy files (*.yaml, *.yml) in {', '.join(map(str, paths))}", Exit.USAGE)
    return reading


def _refuse(reading: Reading, *, say: bool = True) -> None:
    count = len(reading.problems)
    problems = [str(problem) for problem in reading.problems] if say else []
    raise CliError("\n".join([f"{count} problem{'s' if count > 1 else ''}", *problems]), Exit.INVALID_POLICY)


def apply(
    paths: Paths,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before an open cycle is ended.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also where the policy is followed from Git; it counts until that changes.")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Have the daemon follow these policies from now on. All are checked first; with a problem, none is applied."""
    from controller.cli.sources import warn

    reading = _read(paths)
    if reading.problems:
        _refuse(reading)
    warn(reading.policies)
    documents = [
        {"text": Path(one.file).read_text("utf-8-sig"), "file": one.file, "directory": str(one.directory)}
        for one in reading.policies
    ]
    planned = _send(documents, dry_run=True, force=force)
    ending = [f"cycle {a['superseded']} of {a['name']}" for a in planned if a["superseded"] is not None]
    if ending and not dry_run:
        confirm(f"This ends {', '.join(ending)}, which looked for a model by the old policy. Apply?", yes=yes)
    applied = planned if dry_run else _send(documents, dry_run=False, force=force)
    if output is not Format.TABLE:
        print_data({"applied": applied}, output)
        return
    for one in applied:
        ended = f"; cycle {one['superseded']} is superseded" if one["superseded"] is not None else ""
        print(sayable(f"{one['name']} {'would be ' if dry_run else ''}{one['action']}{ended}"))
        if one["action"] == "created" and not dry_run:
            print(f"its first version is on its way: 'ratchet watch {one['name']}'", file=sys.stderr)


def _send(documents: list[dict[str, str]], *, dry_run: bool, force: bool) -> list[dict[str, Any]]:
    applied: list[dict[str, Any]] = []
    batch: list[dict[str, str]] = []
    size = 0
    for document in documents:
        size += len(document["text"].encode())
        if batch and size > BATCH_BYTES:
            applied += _post(batch, dry_run=dry_run, force=force)
            batch, size = [], len(document["text"].encode())
        batch.append(document)
    return applied + (_post(batch, dry_run=dry_run, force=force) if batch else [])


def _post(batch: list[dict[str, str]], *, dry_run: bool, force: bool) -> list[dict[str, Any]]:
    body = {"documents": batch, "actor": actor(), "dry_run": dry_run, "force": force}
    answer: list[dict[str, Any]] = call("POST", "/policies", body=body, timeout_s=120)["applied"]
    return answer


def delete(
    name: Annotated[str, typer.Argument(help="The model's name.")],
    reason: Annotated[str, typer.Option("--reason", "-r", help="Why; kept in the record.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Forget a model and stop what serves it. Its events stay."""
    path = f"/models/{quote(name, safe='')}"
    model = call("GET", path)
    serving = f"v{model['champion']} serves and will stop" if model["champion"] is not None else "nothing serves"
    confirm(f"Delete {name}? {serving}; {len(model['versions'])} versions will be forgotten.", yes=yes)
    call("DELETE", path, params={"actor": actor(), "reason": reason}, timeout_s=60)
    print(f"{name} deleted", file=sys.stdout)
