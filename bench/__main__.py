"""`python -m bench [--only NAME]`: measure, print a table, write bench-report/results.json."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.harness import Result, find_benches, run_bench, write_report

REPORT = Path("bench-report/results.json")


def main() -> int:
    """Run the benches that the command line names. Returns the exit status: 2 for a name that does not exist."""
    benches = find_benches()
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure Ratchet beside its peers.")
    parser.add_argument("--only", metavar="NAME", choices=sorted(benches), help=", ".join(sorted(benches)))
    only = parser.parse_args().only
    console = Console()
    results: dict[str, Result] = {}
    for name, bench in benches.items():
        if only in (None, name):
            with tempfile.TemporaryDirectory(prefix=f"ratchet-bench-{name}-") as folder:
                results[name] = run_bench(bench, Path(folder), console.print)
            write_report(REPORT, results)
    console.print(_table(results))
    console.print(f"written to {REPORT}")
    return 0


def _table(results: dict[str, Result]) -> Table:
    table = Table("bench", "value", "peer's", "unit", "ratio", "peer", "note")
    for name, result in results.items():
        peer_value = "" if result.peer_value is None else f"{result.peer_value:.4g}"
        ratio = "" if result.ratio is None else f"{result.ratio:.2f}"
        table.add_row(name, f"{result.value:.4g}", peer_value, result.bench.unit, ratio, result.bench.peer, result.note)
    return table


if __name__ == "__main__":
    sys.exit(main())
