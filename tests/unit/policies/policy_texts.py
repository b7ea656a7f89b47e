"""Policy texts that several tests start from."""

from __future__ import annotations

from pathlib import Path

from policies.problems import Problem
from policies.reading import Reading, parse_policy

REPOSITORY = Path(__file__).parents[3]
EXAMPLES = sorted((REPOSITORY / "examples" / "policies").glob("*.yaml"))

SMALL = """\
apiVersion: ratchet.dev/v1
kind: ModelPolicy
metadata: {name: small}
spec:
  task: binary
  data:
    source: {kind: csv, path: rows.csv}
    label: late
    time: at
  train: {component: sklearn.hist_gradient_boosting}
  objective: {metric: precision}
"""

DESIGN = """\
apiVersion: ratchet.dev/v1
kind: ModelPolicy
metadata: {name: flight-late, labels: {team: ops}}
spec:
  task: binary                      # binary | multiclass | regression
  data:
    source: {kind: csv, path: ...}  # csv | parquet | sql | prediction-log | a plugin
    label: late
    time: scheduled_at
    label_time: arrived_at          # or label_delay: 6h
    exclude: [arr_time, dep_delay]
  train: {component: sklearn.hist_gradient_boosting, window: 60d}
  tune: {trials: 40, timeout: 10m, parallel: 2}
  objective: {metric: average_precision}
  triggers:
    any:
      - {performance: {metric: precision, below: 0.55, for: 2h}}
      - {performance: {metric: average_precision, drop: 0.05}}       # against the score it was promoted with
      - {drift: {share: 0.3, window: 1d, for: 2}}
      - {estimated_performance: {drop: 0.03}}                         # labels not in yet
      - {schedule: "0 4 * * 1"}
      - {staleness: 30d}
      - {volume: {labelled_rows: 50000}}
  cooldown: 12h
  budget: {cycles: 3, per: 7d, compute: 2h}
  gates:
    - {metric: average_precision, at_least: 0.4}
    - {metric: average_precision, no_worse_than_champion: 0.005, confidence: 0.95}
    - {slices: {by: [origin], metric: recall, no_worse_than_champion: 0.03}}
    - {latency_ms_p95_max: 20}
    - {size_mb_max: 200}
  approval: automatic               # or: required
  rollout:
    steps: [shadow: 10m, 5%: 10m, 25%: 30m, 100%]
    bake: 24h
  deploy: {target: local}           # local | docker | kubernetes
  notify: [{slack: "#ops-models"}]
"""


def small(*replaced: tuple[str, str], more: str = "") -> str:
    """The small policy with parts replaced, and with `more` (indented by two) added to its spec."""
    text = SMALL + more
    for old, new in replaced:
        assert old in text, old
        text = text.replace(old, new)
    return text


def read(text: str | bytes, *, check_support: bool = True) -> Reading:
    return parse_policy(text, file="p.yaml", directory=Path("/policies"), check_support=check_support)


def only_problem(text: str | bytes) -> Problem:
    """The one problem of a text; fails if there are none or more."""
    (problem,) = read(text).problems
    return problem
