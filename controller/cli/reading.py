"""Verbs that only look: get, explain, watch."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from controller.cli.client import call
from controller.cli.output import (
    Format,
    Output,
    moment,
    print_data,
    print_table,
    second,
    stops,
    traffic,
    version_name,
    words,
)

Name = Annotated[str, typer.Argument(help="The model's name.")]
MaybeName = Annotated[str | None, typer.Argument(help="The model's name; without, all.")]
Limit = Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")]

get = typer.Typer(no_args_is_help=True, help="List models, versions, cycles, incidents, sources or events.")


def add_to(app: typer.Typer) -> None:
    app.add_typer(get, name="get")
    app.command()(explain)
    app.command()(watch)


def path_of(name: str, rest: str = "") -> str:
    return f"/models/{quote(name, safe='')}{rest}"


@get.command()
def models(name: MaybeName = None, output: Output = Format.TABLE) -> None:
    """Models, what serves, and what the controller said last."""
    if name is not None and output is not Format.TABLE:
        print_data(call("GET", path_of(name)), output)
        return
    answer = {"models": [call("GET", path_of(name))]} if name is not None else call("GET", "/models")
    if output is not Format.TABLE:
        print_data(answer, output)
        return
    rows = [
        (m["name"], version_name(m["champion"]), m["score"], words(m["phase"]), stops(m["held"]), traffic(m["traffic"]), m["sentence"])
        for m in answer["models"]
    ]  # fmt: skip
    columns = ("name", "champion", "score", "phase", "held", "traffic", "sentence")
    print_table(columns, rows, empty="no models yet: 'ratchet apply FILE' adds one")


@get.command()
def versions(name: Name, output: Output = Format.TABLE) -> None:
    """A model's versions."""
    answer = call("GET", path_of(name, "/versions"))
    if output is not Format.TABLE:
        print_data(answer, output)
        return
    rows: list[tuple[object, ...]] = [
        (version_name(v["number"]), v["status"], v["cycle"], moment(v["created_at"]), moment(v["trained_to"]),
         v["digest"].removeprefix("sha256:")[:12], f"{v['component']}: {_scores(v['scores'])}")
        for v in answer["versions"]
    ]  # fmt: skip
    columns = ["version", "status", "cycle", "created (utc)", "trained to", "sha256", "component and scores"]
    if any(v.get("containers") for v in answer["versions"]):
        columns.append("containers")
        rows = [(*row, ", ".join(v["containers"])) for row, v in zip(rows, answer["versions"], strict=True)]
    print_table(columns, rows, empty=f"{name} has no versions yet")


def _scores(scores: dict[str, Any]) -> str:
    return ", ".join(f"{metric} {value:.3f}" for metric, value in scores.items() if isinstance(value, int | float))


@get.command()
def cycles(name: MaybeName = None, limit: Limit = 20, output: Output = Format.TABLE) -> None:
    """Cycles, newest first."""
    answer = call("GET", path_of(name, "/cycles") if name else "/cycles", params={"limit": limit})
    if output is not Format.TABLE:
        print_data(answer, output)
        return
    rows = [
        (c["model"], c["number"], words(c["outcome"] or c["phase"]), moment(c["opened_at"]), moment(c["closed_at"]),
         version_name(c["challenger"]), c["sentence"])
        for c in answer["cycles"]
    ]  # fmt: skip
    columns = ("model", "cycle", "state", "opened (utc)", "closed (utc)", "challenger", "sentence")
    print_table(columns, rows, empty="no cycles yet")


@get.command()
def incidents(
    all_: Annotated[bool, typer.Option("--all", help="Those too that are over.")] = False,
    limit: Limit = 20,
    output: Output = Format.TABLE,
) -> None:
    """What is wrong with the data that feeds the models, or with a repository."""
    answer = call("GET", "/incidents", params={"open": not all_, "limit": limit})
    if output is not Format.TABLE:
        print_data(answer, output)
        return
    rows = [
        (i["id"], i["kind"].replace("_", " "), i["models"], moment(i["since"]), moment(i["closed_at"]), i["source"], i["sentence"])
        for i in answer["incidents"]
    ]  # fmt: skip
    columns = ("id", "fault", "models", "since (utc)", "over", "source", "sentence")
    print_table(columns, rows, empty="no incidents" if all_ else "no open incidents")


@get.command()
def sources(output: Output = Format.TABLE) -> None:
    """Repositories that policies are followed from and promoted digests are written to."""
    answer = call("GET", "/sources")
    if output is not Format.TABLE:
        print_data(answer, output)
        return
    rows = [
        (s["name"], s["where"], (s["applied"] or "-")[:10], moment(s["applied_at"]), s["models"], moment(s["looked_at"]), _state(s))
        for s in answer["sources"]
    ]  # fmt: skip
    columns = ("name", "repository", "commit", "in force since", "models", "looked at (utc)", "state")
    print_table(columns, rows, empty="nothing is followed: RATCHET_GIT_URL names a repository, see docs/git.md")


def _state(source: dict[str, Any]) -> str:
    """What is wrong, or worth knowing."""
    if source["error"]:
        return f"cannot be read since {moment(source['failing_since'])}: {source['error']}"
    if source["refused"] and source["name"] == "gitops":
        return "; ".join(source["refused"])
    if source["refused"]:
        return f"{source['newest_said']} is refused: {'; '.join(source['refused'])}"
    if source["applying"]:
        return f"putting commit {source['applying'][:10]} into force"
    if source["name"] == "gitops":
        return "every champion's digest stands there" if source["applied"] else "not looked at yet"
    return source["note"] or (f"{source['applied_said']} is in force" if source["applied"] else "not looked at yet")


@get.command()
def events(
    name: MaybeName = None,
    after: Annotated[int | None, typer.Option(min=0, help="Those after this number; default: the newest.")] = None,
    limit: Limit = 20,
    grounds: Annotated[bool, typer.Option("--grounds", help="With what each decision rested on.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """The record: what happened, who ordered it, why."""
    params = {"model": name, "after": after or 0, "limit": limit, "newest": after is None, "grounds": grounds}
    answer = call("GET", "/events", params=params)
    if output is not Format.TABLE:
        print_data(answer, output)
        return
    rows = [
        (e["seq"], second(e["at"]), e["model"], e["cycle"], e["kind"], e["actor"], e["sentence"]) for e in answer["events"]
    ]  # fmt: skip
    columns = ("seq", "at (utc)", "model", "cycle", "kind", "actor", "sentence")
    print_table(columns, rows, empty=f"no events of {name!r}" if name else "no events yet")


def explain(
    name: Name,
    replay: Annotated[
        int | None, typer.Option(min=1, help="Take the decision of this event again, and compare.")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Why a model is where it is, what comes next and when, and how to stop it."""
    from controller.cli.explanation import print_explanation, print_replay

    path = path_of(name, "/explain") if replay is None else f"/events/{replay}/replay"
    answer = call("GET", path)
    if output is not Format.TABLE:
        print_data(answer, output)
    elif replay is None:
        print_explanation(answer)
    else:
        print_replay(answer)


def watch(
    name: MaybeName = None,
    after: Annotated[int | None, typer.Option(min=0, help="Start after this event; default: now.")] = None,
) -> None:
    """Follow what happens, until Ctrl-C: a live table on a terminal, else a line an event."""
    from controller.cli.watching import watch_lines, watch_table

    if _is_terminal() and after is None:
        watch_table(name)
    else:
        watch_lines(name, after)


def _is_terminal() -> bool:
    import sys

    return sys.stdout.isatty()
