"""Prints what `ratchet explain` found: short, in the order in which it is needed, whole at 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from controller.cli.output import PIPE_WIDTH, console, moment, sayable, speaks_unicode, traffic, version_name, words

if TYPE_CHECKING:
    from rich.table import Table

WIDTH_MAX = 100
"""Longer lines are hard to read."""
BAR_WIDTH = 30


def print_explanation(told: dict[str, Any]) -> None:
    """The API's `Explanation`."""
    from rich.text import Text

    screen = console()
    screen.width = min(screen.width, WIDTH_MAX) if screen.width != PIPE_WIDTH else WIDTH_MAX
    model = told["model"]
    held = any(model["held"].values())
    title = Text(model["name"], "bold")
    title.append(f"  {told['headline']}", "bold yellow" if held else "bold cyan")
    screen.print(title)
    screen.print(Text(("─" if speaks_unicode() else "-") * screen.width, "dim"))
    grid = _grid()
    _row(grid, "now", told["sentence"])
    for i, line in enumerate(told.get("faults", ())):
        _row(grid, "" if i else "data", line, "yellow")
    for i, line in enumerate(told.get("metrics", ())):
        _row(grid, "" if i else "metrics", line)
    for i, line in enumerate(_traffic(model)):
        _row(grid, "" if i else "traffic", line)
    for i, line in enumerate(_containers(model["target"])):
        _row(grid, "" if i else "docker", line)
    if model["target"]["error"]:
        _row(grid, "target", model["target"]["error"], "red")
    if origin := model.get("origin"):
        _row(grid, "policy", *_policy(origin))
    if feed := model.get("feed"):
        _row(grid, "labels", feed["sentence"])
    for i, line in enumerate(told["next"]):
        _row(grid, "" if i else "next", line)
    _row(grid, "why", told["opened"])
    _serving(grid, told["serving"], model, told.get("gitops", ""))
    earlier = [r for r in told["refused"] if r["sentence"] not in told["opened"]]  # the last cycle's is said by "why"
    for i, refusal in enumerate(earlier):
        text = f"cycle {refusal['cycle']}, {moment(refusal['at'])}, {words(refusal['outcome'])}: {refusal['sentence']}"
        _row(grid, "" if i else "refused", text)
    for i, report in enumerate(told.get("reports", ())):
        _row(grid, "" if i else "drift", f"cycle {report['cycle']}: {report['file']}")
    screen.print(grid)
    _commands(told["commands"])


def _grid() -> Table:
    from rich.table import Table

    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="dim", width=9, no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _row(grid: Table, name: str, text: str, style: str = "") -> None:
    from rich.text import Text

    grid.add_row(name, Text(sayable(text), style))


def _traffic(model: dict[str, Any]) -> list[str]:
    """A bar a version, of what is in force; what was ordered, where that is something else."""
    force, ordered = model["target"], model["traffic"]
    full, empty = ("█", "░") if speaks_unicode() else ("#", ".")
    lines = []
    states = {r["version"]: r["state"] for r in force["replicas"]}
    for number, weight in sorted(force["weights"].items(), key=lambda item: int(item[0])):
        filled = round(weight / 100 * BAR_WIDTH)
        state = states.get(int(number), "ready")
        lines.append(
            f"v{number} {full * filled}{empty * (BAR_WIDTH - filled)} {weight:g} %{'' if state == 'ready' else f' ({state})'}"
        )
    if force["shadow"] is not None:
        lines.append(f"v{force['shadow']} gets a copy, its answers are thrown away")
    if (force["weights"], force["shadow"]) != (ordered["weights"], ordered["shadow"]):
        lines.append(f"ordered, not yet in force: {traffic(ordered)}")
    return lines or ["none"]


def _policy(origin: dict[str, Any]) -> tuple[str, str]:
    """Where the policy comes from, and how that is to be shown."""
    came = f"{origin['file']} of {origin['said']} ({origin['where']})"
    if origin["lost"]:
        return f"was {came}; nothing follows it any more: {origin['lost']}", "yellow"
    if origin["forced"]:
        return f"applied by hand by {origin['forced']} instead of {came}, until that file changes", "yellow"
    return came, ""


def _containers(target: dict[str, Any]) -> list[str]:
    """Which containers serve what, by the names that `docker logs` takes."""
    found = [(f"v{r['version']}", r) for r in target["replicas"]]
    if target.get("baseline"):
        found.append((f"v{target['baseline']['version']}, fresh", target["baseline"]))
    return [f"{name}: {', '.join(r['containers'])}" for name, r in found if r.get("containers")]


def _serving(grid: Table, serving: dict[str, Any] | None, model: dict[str, Any], told_gitops: str) -> None:
    if serving is None:
        return
    version = serving["version"]
    score = version["scores"].get(model["metric"])
    judged = f", {model['metric']} {score:.3f} when judged" if score is not None else ""
    made = f"made {moment(version['created_at'])} by cycle {version['cycle']}"
    _row(grid, "serving", f"v{version['number']}, {made}{f', {cause}' if (cause := serving['cause']) else ''}")
    rows = "" if version["rows"] is None else f" on {version['rows']:,} rows"
    until = "" if version["trained_to"] is None else f" up to {moment(version['trained_to'])}"
    _row(grid, "", f"{version['component']}, trained{rows}{until}{judged}")
    _row(grid, "", f"image {version['digest'][:19]}{_commits(version)}", "dim")
    for line in serving.get("image", ()):
        _row(grid, "", line, "dim")
    for i, gate in enumerate(serving["gates"]):
        _row(grid, "" if i else "gates", gate)
    if model["address"]:
        _row(grid, "predict", f"POST {model['address']}/v1/models/{model['name']}:predict")
    if version["forced"]:
        _row(grid, "forced", f"by {version['forced']}", "yellow")
    if told_gitops:
        _row(grid, "gitops", told_gitops)
    if model["previous"] is not None:
        _row(grid, "before", f"{version_name(model['previous'])}, to which a rollback goes")


def _commits(version: dict[str, Any]) -> str:
    named = (("code", version.get("code_commit")), ("policy", version.get("policy_commit")))
    return "".join(f", {what} of commit {commit[:10]}" for what, commit in named if commit)


def _commands(commands: list[dict[str, str]]) -> None:
    screen = console()
    screen.print()
    width = max((len(c["command"]) for c in commands), default=0)
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, width=width)
    grid.add_column(style="dim")
    for command in commands:
        grid.add_row(Text(command["command"], "bold"), Text(sayable(command["effect"])))
    if screen.width == PIPE_WIDTH:
        screen.width = WIDTH_MAX
    screen.print(grid)
    screen.print(Text("each with --reason WHY; shows what it will change, and asks. Times are UTC.", "dim"))


def print_replay(told: dict[str, Any]) -> None:
    """The API's `Replayed`."""
    same = "the same decision" if told["same"] else "ANOTHER decision than the one on record"
    print(f"event {told['seq']} of {told['model']}, decided at {moment(told['at'])}: taken again, it is {same}")
    for event in told["events"]:
        print(sayable(f"  {'=' if event['same'] else '!'} {event['kind']}: {event['recorded'] or 'not on record'}"))
        if not event["same"]:
            print(sayable(f"    now: {event['replayed'] or 'nothing'}"))
