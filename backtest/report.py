"""The page of a replay, and of a grid of them: made of results alone, whole in one file."""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from backtest import chart

Result = Mapping[str, Any]
"""As `backtest.result.as_json`."""
SHORT = 0.3
"""Windows of less than this share of the longest are not drawn."""
SIGNS = {
    "promoted": "▲", "rejected": "✕", "inconclusive": "?", "rolled_back": "↩", "failed": "!", "held": "■",
}  # fmt: skip


def page(result: Result) -> str:
    """One replay: scores along the rows, versions, cycles, events."""
    ratchet, metric = result["ratchet"], result["metric"]
    better = "higher is better" if metric["higher_is_better"] else "lower is better"
    replayed = result["rows"] - result["first_row"]
    return _document(
        f"Ratchet: {result['model']} replayed",
        f"<h1>{_text(result['model'])}, replayed on {result['rows']:,} rows</h1>"
        f"<p>The first {result['first_row']:,} rows trained the first version. Each of the {replayed:,} rows after was answered by "
        f"whichever version had the traffic by then; {_text(metric['name'])} of those answers, {better}.</p>"
        f'<div class="facts">{_facts(result)}</div>{_picture(result)}'
        f"<h2>Versions</h2>{_versions(result)}"
        f"<h2>Cycles</h2>{_cycles(result)}"
        f"<details><summary>All {len(result['events'])} events</summary>{_events(result)}</details>"
        f'<p class="foot">Search and training after the first version took {ratchet["train_seconds"]:,.1f} s of '
        f"{result['seconds']:,.1f} s. "
        "The periodic rival retrains as often, evenly spaced, by the recipe of the first version, and gets the best of several "
        "windows in hindsight. "
        "docs/backtest.md says what a replay cannot tell.</p>",
    )


def grid_page(settings: Sequence[Mapping[str, Any]]) -> str:
    """Several settings of one policy: `{"setting": {key: value}, "result": …}` each."""
    first = settings[0]["result"]
    metric = first["metric"]
    best = best_of(settings)
    points = [
        (setting_words(one["setting"]), one["result"]["ratchet"]["train_seconds"], one["result"]["ratchet"]["score"])
        for one in settings
        if one["result"]["ratchet"]["score"] is not None
    ]
    marked = next(
        (
            i
            for i, (name, *_) in enumerate(points)
            if best is not None and name == setting_words(settings[best]["setting"])
        ),
        -1,
    )
    rows = [_setting_cells(one) for one in settings]
    table = _table(
        ("setting", metric["name"], "static", "periodic", "promotions", "retrains", "training s"),
        rows,
        ["best" if i == best else "" for i in range(len(rows))],
    )
    return _document(
        f"Ratchet: {first['model']}, {len(settings)} settings",
        f"<h1>{_text(first['model'])}: {len(settings)} settings on {first['rows']:,} rows</h1>"
        f"<p>{_text(metric['name'])} of what was served against what searching and training for it cost. The best one here was "
        "chosen in hindsight: on other rows expect less of it.</p>"
        f"{chart.scatter(points, marked, metric=metric['name'])}{table}",
    )  # fmt: skip


def best_of(settings: Sequence[Mapping[str, Any]]) -> int | None:
    """Position of the best score, the cheapest of equals; None if no setting has one."""
    scored = [(one["result"], i) for i, one in enumerate(settings) if one["result"]["ratchet"]["score"] is not None]
    if not scored:
        return None
    sign = 1 if scored[0][0]["metric"]["higher_is_better"] else -1
    return max(scored, key=lambda pair: (sign * pair[0]["ratchet"]["score"], -pair[0]["ratchet"]["train_seconds"]))[1]


def setting_words(setting: Mapping[str, str]) -> str:
    """
    >>> setting_words({"spec.cooldown": "100s", "spec.tune.trials": "8"})
    'cooldown=100s, tune.trials=8'
    """
    return ", ".join(f"{key.removeprefix('spec.')}={value}" for key, value in setting.items())


# ---------------------------------------------------------------- parts
def _facts(result: Result) -> str:
    ratchet, rivals = result["ratchet"], result["baselines"]
    facts = [
        (_score(ratchet["score"]), "Ratchet"),
        (_score(rivals["static"]["score"]), "static: the first version"),
        (
            _score(rivals["periodic"]["score"]),
            f"periodic: {_count(rivals['periodic']['retrains'], 'retrain')}, {rivals['periodic']['window']}",
        ),
        (_score(rivals["last_label"]["score"]), "repeating the last label"),
        (str(ratchet["promotions"]), f"promotions of {_count(ratchet['retrains'], 'retrain')}"),
        (str(ratchet["rejected"] + ratchet["rolled_back"]), "refused or rolled back"),
    ]
    return "".join(f"<div><b>{_text(value)}</b><span>{_text(name)}</span></div>" for value, name in facts)


def _picture(result: Result) -> str:
    windows, rivals = result["ratchet"]["windows"], result["baselines"]
    shown = _long_enough(windows)
    middles = [(window["from_row"] + window["to_row"]) / 2 for window in windows]
    tips = [
        f"rows {window['from_row']:,} to {window['to_row']:,}, v{window['version']}: {_score(window['score'])}"
        for window in windows
    ]

    def points(scores: Sequence[float | None]) -> list[tuple[float, float | None]]:
        return [(middles[i], scores[i]) for i in shown]

    served = points([window["score"] for window in windows])
    lines = [
        chart.Line(name="Ratchet", css="served", points=served, tips=[tips[i] for i in shown]),
        *(
            chart.Line(name=name, css=key, points=points(rivals[key]["windows"]))
            for key, name in (("static", "static"), ("periodic", "periodic"), ("last_label", "last label"))
            if len(rivals[key]["windows"]) == len(windows)
        ),
    ]
    return chart.draw(
        lines, _bands(result), _marks(result), first=result["first_row"], last=result["rows"], metric=result["metric"]["name"],
        higher_is_better=result["metric"]["higher_is_better"],
    )  # fmt: skip


def _long_enough(windows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Positions of the windows that are drawn: one that a change of champion cut short has a score of chance."""
    lengths = [window["to_row"] - window["from_row"] for window in windows]
    return [i for i, length in enumerate(lengths) if length >= max(lengths) * SHORT]


def _bands(result: Result) -> list[chart.Band]:
    recipes = {version["number"]: _recipe(version) for version in result["versions"]}
    bands = []
    for number, group in itertools.groupby(result["ratchet"]["windows"], key=lambda window: window["version"]):
        rows = list(group)
        tip = f"v{number}, rows {rows[0]['from_row']:,} to {rows[-1]['to_row']:,}: {recipes.get(number, '')}"
        bands.append(chart.Band(start=rows[0]["from_row"], end=rows[-1]["to_row"], name=f"v{number}", tip=tip))
    return bands


def _marks(result: Result) -> list[chart.Mark]:
    found = []
    for cycle in result["cycles"][1:]:
        row = cycle["row"] if cycle["to_row"] is None else cycle["to_row"]
        if cycle["outcome"] in SIGNS:
            tip = f"row {row:,}, cycle {cycle['number']}: {cycle['outcome'].replace('_', ' ')}. {cycle['sentence']}"
            found.append(chart.Mark(row=row, css=cycle["outcome"], sign=SIGNS[cycle["outcome"]], tip=tip))
        if cycle["held"]:
            tip = f"row {cycle['row']:,}, cycle {cycle['number']}: {_count(cycle['held'], 'window')} of rows held back"
            found.append(chart.Mark(row=cycle["row"], css="held", sign=SIGNS["held"], tip=tip))
    order = list(SIGNS)
    return sorted(found, key=lambda mark: (order.index(mark.css), mark.row))


def _versions(result: Result) -> str:
    causes = {cycle["number"]: cycle["cause"] for cycle in result["cycles"]}
    rows = [
        (
            f"v{version['number']}", f"{version['row']:,}", f"{version['answered']:,}", _recipe(version), _trained_on(version),
            _because(causes.get(version["cycle"], "")),
        )
        for version in result["versions"]
    ]  # fmt: skip
    return _table(("", "at row", "rows answered", "recipe", "trained on", "because"), rows)


def _cycles(result: Result) -> str:
    rows = [
        (str(c["number"]), f"{c['row']:,}", (c["outcome"] or "open").replace("_", " "), _because(c["cause"]), c["sentence"])
        for c in result["cycles"]
    ]  # fmt: skip
    return _table(
        ("#", "opened at row", "outcome", "because", "the controller's sentence"),
        rows,
        [c["outcome"] or "open" for c in result["cycles"]],
    )


def _events(result: Result) -> str:
    rows = [(f"{event['row']:,}", event["kind"], event["sentence"]) for event in result["events"]]
    return _table(("row", "kind", "sentence"), rows)


def _setting_cells(one: Mapping[str, Any]) -> tuple[str, ...]:
    ratchet, rivals = one["result"]["ratchet"], one["result"]["baselines"]
    return (
        setting_words(one["setting"]), _score(ratchet["score"]), _score(rivals["static"]["score"]), _score(rivals["periodic"]["score"]),
        str(ratchet["promotions"]), str(ratchet["retrains"]), f"{ratchet['train_seconds']:,.1f}",
    )  # fmt: skip


def _recipe(version: Mapping[str, Any]) -> str:
    component = str(version["component"] or "own code").removeprefix("sklearn.").replace("_", " ")
    given = {key: value for key, value in (version["parameters"] or {}).items() if value is not None}
    parameters = ", ".join(f"{key} {_number(value)}" for key, value in given.items())
    return f"{component}: {parameters}" if parameters else component


def _trained_on(version: Mapping[str, Any]) -> str:
    return f"{'all' if version['window_s'] is None else 'the newest'} {_number(version['rows'])} rows"


def _because(cause: str) -> str:
    return cause.partition(": ")[2] or "no version served yet"


def _number(value: Any) -> str:
    """
    >>> _number(4000), _number(0.031247), _number("gini")
    ('4,000', '0.0312', 'gini')
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _text(value: object) -> str:
    return html.escape(str(value))


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], css: Sequence[str] = ()) -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in heads)
    body = "".join(
        f'<tr class="{_text(name)}">' + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>"
        for row, name in itertools.zip_longest(rows, css, fillvalue="")
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _document(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>{body}</body></html>\n'
    )


STYLE = """
:root { color-scheme: light dark; --ink: #1c2530; --paper: #fbfaf7; --quiet: #77808c; --line: #d9d6cf; --good: #14775a;
  --bad: #b3372f; --other: #b07a14; --band: #f0f1eb; --band2: #f7f6f1; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e4de; --paper: #14181d; --quiet: #8d97a3; --line: #2d343d;
  --good: #4cc39a; --bad: #ef7d72; --other: #dfb04f; --band: #1f262d; --band2: #191e24; } }
@media print { :root { --ink: #000; --paper: #fff; --quiet: #555; --line: #ccc; --good: #14775a; --bad: #b3372f; --other: #8a5d08;
  --band: #f1f1ee; --band2: #fafaf8; } body { max-width: none; margin: 0; font-size: 11px; } tr { break-inside: avoid; }
  svg { break-inside: avoid; } details { display: none; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1080px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem; }
p { color: var(--quiet); max-width: 46rem; } .foot { font-size: .87rem; margin-top: 2rem; }
.facts { display: flex; flex-wrap: wrap; gap: 1rem 1.8rem; margin: 1.4rem 0; } .facts div { max-width: 10.5rem; }
.facts b { display: block; font-size: 1.5rem; line-height: 1.2; } .facts div:first-child b { color: var(--good); }
.facts span { color: var(--quiet); font-size: .85rem; display: block; line-height: 1.3; } svg { width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-size: .87rem; font-variant-numeric: tabular-nums; }
td, th { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td { overflow-wrap: anywhere; } td:first-child, td:nth-child(2), td:nth-child(3) { overflow-wrap: normal; }
th { color: var(--quiet); font-weight: 500; } details { margin-top: 2rem; } summary { cursor: pointer; font-weight: 600; }
tr.promoted td:nth-child(3) { color: var(--good); font-weight: 600; } tr.best td { font-weight: 600; }
tr.rejected td:nth-child(3), tr.rolled_back td:nth-child(3), tr.failed td:nth-child(3) { color: var(--bad); font-weight: 600; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); } svg .tick { fill: var(--quiet); } svg .version { font-weight: 600; }
svg .name { font-size: 13px; } .grid { stroke: var(--line); } .band { fill: var(--band); } .band.odd { fill: var(--band2); }
.line { fill: none; stroke-width: 1.6; stroke-linejoin: round; } .line.served { stroke: var(--good); stroke-width: 2.6; }
.line.static { stroke: var(--quiet); stroke-dasharray: 6 4; } .line.periodic { stroke: var(--other); }
.line.last_label { stroke: var(--quiet); stroke-dasharray: 1.5 3; } .point.served { fill: var(--good); }
.dot { fill: var(--quiet); } .dot.best { fill: var(--good); }
.mark line { stroke: var(--quiet); stroke-opacity: .25; } .mark text { font-size: 13px; fill: var(--quiet); }
.mark.promoted text { fill: var(--good); } .mark.promoted line { stroke: var(--good); stroke-opacity: .45; }
.mark.rolled_back text, .mark.failed text, .mark.held text, .mark.rejected text { fill: var(--bad); }
"""
