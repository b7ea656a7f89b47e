"""What is left behind: `summary.json`, and a page with the score through the year."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from demo import chart, scores
from demo.flights import LABEL
from demo.stack import Stack
from demo.story import MODEL, REFUSED, Story

Summary = dict[str, Any]
GAIN_MIN = 0.03
NEARLY_ALL = 90
"""Percent of the traffic above which a version is drawn as the one that serves."""
OUTCOMES = ("promoted", "rejected", "inconclusive", "rolled_back", "failed", "aborted", "superseded")


@dataclass(frozen=True)
class Material:
    """All that the report is made of."""

    flights: pd.DataFrame
    served: np.ndarray
    """Score that the client got, by row; NaN where nothing was asked."""
    first: np.ndarray
    """Score of the first version, by row."""
    story: Story
    sent: int
    failed: int
    errors: Sequence[str]
    seconds: float
    until: pd.Timestamp
    stack: Stack | None = None
    """Servers beside it, still running."""


def write(material: Material, folder: Path) -> Summary:
    """Write `index.html` and `summary.json`; the summary."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = summarise(material)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    (folder / "index.html").write_text(_page(material, summary))
    return summary


def summarise(material: Material) -> Summary:
    """The figures of the run, all measured."""
    story = material.story
    rows = scores.known(material.flights, material.served, material.until)
    labels = material.flights[LABEL].to_numpy()[rows]
    ended = Counter(c["outcome"] for c in story.view.cycles.values() if c.get("outcome"))
    versions = [
        {
            "number": v["number"], "digest": v["digest"], "status": v["status"], "created_at": v["created_at"],
            "trained_to": v.get("trained_to"), "scores": v.get("scores") or {},
        }
        for v in story.view.model.get("versions") or []
    ]  # fmt: skip
    return {
        "rows": int(rows.sum()),
        "metric": "roc_auc",
        "score_served": round(scores.roc_auc(labels, material.served[rows]), 4),
        "score_first_version": round(scores.roc_auc(labels, material.first[rows]), 4),
        "versions": versions,
        "cycles": {outcome: ended.get(outcome, 0) for outcome in OUTCOMES},
        "requests": {"sent": material.sent, "failed": material.failed},
        "daemon_killed": story.kills > 0,
        "cycle_survived": story.cycle_survived,
        "poisoned_refused": bool(story.poisonings) and all(p.outcome in REFUSED for p in story.poisonings),
        "poisonings": [{"fault": p.name, "cycle": p.cycle, "outcome": p.outcome} for p in story.poisonings],
        "seconds": round(material.seconds, 1),
        **_parts(material.stack, [str(v["digest"]) for v in versions]),
    }


def _parts(stack: Stack | None, digests: Sequence[str]) -> dict[str, Any]:
    """Which servers took part, and what they hold of it in the end."""
    return {} if stack is None else {"parts": stack.versions, "parts_hold": stack.holdings(MODEL, digests)}


def failures(summary: Summary) -> list[str]:
    """What the demonstration promises and this run did not show."""
    gain = summary["score_served"] - summary["score_first_version"]
    promises = {
        f"{summary['requests']['failed']} requests failed": summary["requests"]["failed"] == 0,
        f"only {summary['cycles']['promoted']} promotions": summary["cycles"]["promoted"] >= 2,
        f"served only {gain:+.3f} above the first version": gain >= GAIN_MIN,
        "the daemon was not killed in a cycle": summary["daemon_killed"],
        "the cycle in which the daemon was killed did not end": summary["cycle_survived"],
        f"a poisoned retraining was not refused: {summary['poisonings']}": summary["poisoned_refused"],
    }
    promises |= {f"{part} holds nothing of it": bool(held) for part, held in summary.get("parts_hold", {}).items()}
    return [words for words, kept in promises.items() if not kept]


def verdict(summary: Summary, console: Console) -> int:
    """Print the summary; 0 if every promise was kept."""
    table = Table(title="A year in " + f"{summary['seconds']:.0f} s", show_header=False, title_justify="left")
    cycles = ", ".join(f"{n} {outcome.replace('_', ' ')}" for outcome, n in summary["cycles"].items() if n)
    refused = "; ".join(
        f"{p['fault']}: {(p['outcome'] or 'not reached').replace('_', ' ')}" for p in summary["poisonings"]
    )
    for name, value in (
        ("flights scored", f"{summary['rows']:,}"),
        ("ROC AUC served", f"{summary['score_served']:.3f}"),
        ("ROC AUC of the first version, frozen", f"{summary['score_first_version']:.3f}"),
        ("cycles", cycles),
        ("poisoned retrainings", refused),
        ("requests", f"{summary['requests']['sent']:,} sent, {summary['requests']['failed']} failed"),
        ("daemon killed in a cycle, which then ended", "yes" if summary["cycle_survived"] else "no"),
        *((part, f"{summary['parts'][part]}, holds {held}") for part, held in summary.get("parts_hold", {}).items()),
    ):
        table.add_row(name, value)
    console.print(table)
    broken = failures(summary)
    for words in broken:
        console.print(f"[bold red]not shown:[/] {words}")
    console.print("report: [bold]demo-report/index.html[/]")
    return 1 if broken else 0


# ---------------------------------------------------------------- the page
def _page(material: Material, summary: Summary) -> str:
    points = scores.by_block(material.flights, material.served, material.first, material.until)
    story = material.story
    picture = chart.draw(points, _spans(story), _marks(story))
    rows = "".join(_cycle_row(c) for _, c in sorted(story.view.cycles.items()))
    gain = summary["score_served"] - summary["score_first_version"]
    facts = "".join(
        f"<div><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>"
        for name, value in (
            ("ROC AUC served", f"{summary['score_served']:.3f}"),
            ("first version, frozen", f"{summary['score_first_version']:.3f}"),
            ("gained", f"{gain:+.3f}"),
            ("promotions", str(summary["cycles"]["promoted"])),
            ("refused or rolled back", str(summary["cycles"]["rejected"] + summary["cycles"]["rolled_back"])),
            ("requests failed", f"{summary['requests']['failed']} of {summary['requests']['sent']:,}"),
        )
    )
    return TEMPLATE.format(
        style=STYLE,
        facts=facts,
        picture=picture,
        rows=rows,
        flights=f"{summary['rows']:,}",
        seconds=f"{summary['seconds']:.0f}",
        stack=html.escape(_stack_words(summary)),
    )


def _stack_words(summary: Summary) -> str:
    """Which servers took part; empty if none did."""
    names = [
        f"{part.capitalize() if part != 'postgresql' else 'PostgreSQL'} {v}"
        for part, v in summary.get("parts", {}).items()
    ]
    return f" It ran on {', '.join(names)}." if names else ""


def _spans(story: Story) -> list[chart.Span]:
    """From when each version served, by the record of its traffic; while it is watched, a little stays with the one before."""
    starts: list[tuple[pd.Timestamp, int]] = []
    for event in story.view.events:
        weights = event["data"].get("weights") if event["kind"] == "traffic.changed" else None
        full = [int(v) for v, w in (weights or {}).items() if w > NEARLY_ALL]
        if full and (not starts or starts[-1][1] != full[0]):
            starts.append((pd.Timestamp(event["at"]), full[0]))
    ends = [at for at, _ in starts[1:]] + [pd.Timestamp("2014-01-01", tz="UTC")]
    return [chart.Span(at, end, f"v{number}") for (at, number), end in zip(starts, ends, strict=True)]


def _marks(story: Story) -> list[chart.Mark]:
    kinds = {
        "cycle.opened": ("firing", "▲"), "cycle.rejected": ("refused", "✕"), "cycle.rolled_back": ("rolled back", "↩"),
        "cycle.ended_inconclusive": ("inconclusive", "?"), "cycle.failed": ("failed", "!"),
    }  # fmt: skip
    return [
        chart.Mark(pd.Timestamp(e["at"]), *kinds[e["kind"]], e["sentence"])
        for e in story.view.events
        if e["kind"] in kinds
    ]


def _cycle_row(cycle: dict[str, Any]) -> str:
    outcome = cycle.get("outcome") or f"open ({cycle['phase']})"
    cells = (
        str(cycle["number"]), str(cycle["opened_at"])[:10], _because(cycle["cause"]), outcome.replace("_", " "), cycle["sentence"],
    )  # fmt: skip
    return f'<tr class="{html.escape(outcome)}">' + "".join(f"<td>{html.escape(c)}</td>" for c in cells) + "</tr>"


def _because(cause: str) -> str:
    """A cycle's recorded cause, as people would say it.

    >>> _because("person: ann@host, quarterly refresh")
    'ann@host asked: quarterly refresh'
    """
    kind, _, words = cause.partition(": ")
    if kind == "person":
        who, _, why = words.partition(", ")
        return f"{who} asked: {why}"
    return words or "no version served yet"


STYLE = """
:root { color-scheme: light dark; --ink: #1c2530; --paper: #fbfaf7; --quiet: #77808c; --line: #d9d6cf; --good: #14775a;
  --bad: #b3372f; --band: #eef0ea; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e4de; --paper: #14181d; --quiet: #8d97a3; --line: #2d343d;
  --good: #4cc39a; --bad: #ef7d72; --band: #1c2229; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1080px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } p { color: var(--quiet); max-width: 46rem; }
.facts { display: flex; flex-wrap: wrap; gap: 2rem; margin: 1.4rem 0; } .facts b { display: block; font-size: 1.5rem; }
.facts span { color: var(--quiet); font-size: .85rem; } svg { width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-size: .87rem; } td, th { text-align: left; padding: .35rem .6rem .35rem 0;
  border-bottom: 1px solid var(--line); vertical-align: top; } th { color: var(--quiet); font-weight: 500; }
td:nth-child(2) { white-space: nowrap; }
tr.promoted td:nth-child(4) { color: var(--good); font-weight: 600; }
tr.rejected td:nth-child(4), tr.rolled_back td:nth-child(4), tr.failed td:nth-child(4) { color: var(--bad); font-weight: 600; }
"""

TEMPLATE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Ratchet: a year of flights</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head><body>
<h1>A year of New York flights, kept good by Ratchet</h1>
<p>Will a flight arrive more than 15 minutes late, or not at all? {flights} flights of 2013 were scored over HTTP, labels came
back when the flights had landed, and the daemon did the rest, in {seconds} s on an accelerated clock. It was killed once in the
middle of a cycle, and twice its training data was poisoned upstream.{stack}</p>
<div class="facts">{facts}</div>
{picture}
<h2>Cycles</h2><table><tr><th>#</th><th>opened</th><th>because</th><th>outcome</th><th>the controller's sentence</th></tr>
{rows}</table></body></html>
"""
