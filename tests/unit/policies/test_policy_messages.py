"""What an owner is told about common mistakes."""

from __future__ import annotations

import pytest
from policy_texts import DESIGN, only_problem, read, small

METRICS_OF_BINARY = "accuracy, average_precision, balanced_accuracy, brier, f1, log_loss, precision, recall, roc_auc"
THRESHOLD = "must be evidently, calibrated or a distance greater than 0"
KINDS = "any, all, at_least, performance, calibration, drift, estimated_performance, schedule, staleness, volume, metric, alert, manual"
DURATION = "a duration is a number with a unit (s, m, h, d, w), such as 30m or 1h30m"
CRON = "a cron expression has five fields: minute, hour, day of month, month, day of week"


def trigger(text: str) -> str:
    return small(more=f"  triggers:\n    any:\n      - {text}\n")


MISTAKES = {
    "holdback without its sign": (
        small(more="  rollout: {holdback: 0.02}\n"),
        "p.yaml:12: spec.rollout.holdback: a share of the traffic is N% from 0% to 50%, such as 2%, but got 0.02",
    ),
    "nothing to compare": (
        small(more="  rollout: {steps: [100%], holdback: 0%}\n"),
        "p.yaml:12: spec.rollout: steps: [100%] with holdback: 0% leaves no answers to compare the challenger's with; "
        "add a step, or ask for no labels by min_labelled_rows: 0",
    ),
    "labels after the deadline": (
        small(("label: late", "label: late\n    label_delay: 10d")),
        "p.yaml:4: spec: rollout.deadline must be longer than data.label_delay (10d), or no rollout ever sees a label, "
        "but got 7d; or ask for no labels by rollout.min_labelled_rows: 0",
    ),
    "misspelt key": (
        small(more="  tirggers: {manual: }\n"),
        "p.yaml:12: spec.tirggers: unknown key 'tirggers'; did you mean 'triggers'?",
    ),
    "misspelt key at the top": (
        small(("kind: ModelPolicy", "kind: ModelPolicy\nmetdata: {}")),
        "p.yaml:3: metdata: unknown key 'metdata'; did you mean 'metadata'?",
    ),
    "misspelt required key": (
        small(("label: late", "lable: late")),
        "p.yaml:8: spec.data.lable: unknown key 'lable'; did you mean 'label'?",
    ),
    "no name of a metric": (
        trigger("{metric: {name: 9x, above: 1}}"),
        "p.yaml:14: spec.triggers.any[0].metric.name: must be a metric's name: at most 64 letters, digits and _, not starting with a "
        "digit, but got '9x'",
    ),
    "no channel of Slack": (
        small(more="  notify: [{slack: ops models}]\n"),
        "p.yaml:12: spec.notify[0].slack: must be a channel of Slack, such as \"#ops-models\", or its id, but got 'ops models'",
    ),
    "a lock file elsewhere": (
        small(more="  deploy: {requirements: ../../etc/model.lock}\n"),
        "p.yaml:12: spec.deploy.requirements: must be a path in the policy's folder, without '..', but got '../../etc/model.lock'",
    ),
    "no name of a label": (
        trigger("{alert: {name: A, match: {a-b: x}}}"),
        "p.yaml:14: spec.triggers.any[0].alert.match.a-b: must be the name of a label: letters, digits and _, not starting with a digit, "
        "but got 'a-b'",
    ),
    "misspelt key in a trigger": (
        trigger("{performance: {metrc: recall, below: 0.5}}"),
        "p.yaml:14: spec.triggers.any[0].performance.metrc: unknown key 'metrc'; did you mean 'metric'?",
    ),
    "misspelt kind of trigger": (
        trigger("{performence: {metric: recall, below: 0.5}}"),
        "p.yaml:14: spec.triggers.any[0].performence: unknown trigger 'performence'; did you mean 'performance'?",
    ),
    "no kind of trigger at all": (
        trigger("{every: 3}"),
        f"p.yaml:14: spec.triggers.any[0]: a trigger is a mapping with one of the keys {KINDS}, but got every",
    ),
    "trigger as a bare word": (
        trigger("manual"),
        f"p.yaml:14: spec.triggers.any[0]: a trigger is a mapping with one of the keys {KINDS}, but got 'manual'; write {{manual: …}}",
    ),
    "two kinds in one trigger": (
        trigger("{drift: {}, staleness: 30d}"),
        "p.yaml:14: spec.triggers.any[0]: a trigger has one of these keys, but got drift and staleness; make each a trigger of its own",
    ),
    "at_least with any": (
        small(more="  triggers: {at_least: 1, any: [{drift: {}}]}\n"),
        "p.yaml:12: spec.triggers: a trigger has one of these keys, but got any and at_least; at_least goes with of",
    ),
    "at_least too many": (
        small(more="  triggers: {at_least: 3, of: [{drift: {}}, {manual: }]}\n"),
        "p.yaml:12: spec.triggers: at_least: 3 of only 2 triggers can never fire",
    ),
    "no rule in performance": (
        trigger("{performance: {metric: recall}}"),
        "p.yaml:14: spec.triggers.any[0].performance: give exactly one of below, above, drop",
    ),
    "wrong direction": (
        trigger("{performance: {metric: log_loss, below: 0.5}}"),
        "p.yaml:14: spec.triggers.any[0].performance: log_loss is better when lower: use above instead of below",
    ),
    "wrong type": (
        trigger("{performance: {metric: recall, below: low}}"),
        "p.yaml:14: spec.triggers.any[0].performance.below: must be a number, but got 'low'",
    ),
    "number in quotes": (
        small(more='  tune: {trials: "40"}\n'),
        "p.yaml:12: spec.tune.trials: must be a whole number, but got '40'; leave out the quotes",
    ),
    "number where text is wanted": (
        small(("{name: small}", "{name: small, labels: {team: 7}}")),
        'p.yaml:3: metadata.labels.team: must be text, but got 7; write it in quotes: "7"',
    ),
    "truth value where a number is wanted": (
        trigger("{performance: {metric: recall, below: true}}"),
        "p.yaml:14: spec.triggers.any[0].performance.below: must be a number, but got true",
    ),
    "not a finite number": (
        trigger("{performance: {metric: recall, below: .nan}}"),
        "p.yaml:14: spec.triggers.any[0].performance.below: must be a finite number, but got nan",
    ),
    "threshold of drift": (
        trigger("{drift: {threshold: strict}}"),
        f"p.yaml:14: spec.triggers.any[0].drift.threshold: {THRESHOLD}, but got 'strict'",
    ),
    "threshold of drift that is no distance": (
        trigger("{drift: {threshold: 0}}"),
        f"p.yaml:14: spec.triggers.any[0].drift.threshold: {THRESHOLD}, but got 0",
    ),
    "metric of a filter": (
        trigger("{drift: {only_if: {estimated_performance: {drop: 0.1, metric: mae}}}}"),
        "p.yaml:14: spec.triggers.any[0].drift.only_if.estimated_performance.metric: must be a metric for binary:"
        f" {METRICS_OF_BINARY}, but got 'mae'",
    ),
    "fields of cron": (
        trigger('{schedule: "0 4 * *"}'),
        f"p.yaml:14: spec.triggers.any[0].schedule: {CRON}, but got '0 4 * *'",
    ),
    "date that never comes": (
        trigger('{schedule: "0 0 30 2 *"}'),
        "p.yaml:14: spec.triggers.any[0].schedule: a schedule must name dates that exist, but got '0 0 30 2 *'",
    ),
    "schedule as a number": (
        trigger("{schedule: 4}"),
        'p.yaml:14: spec.triggers.any[0].schedule: a schedule is a cron expression in quotes, such as "0 4 * * 1", but got 4',
    ),
    "window without a unit": (
        trigger("{drift: {window: 60}}"),
        f"p.yaml:14: spec.triggers.any[0].drift.window: {DURATION}, but got 60",
    ),
    "window of nothing": (
        trigger("{drift: {window: 0s}}"),
        "p.yaml:14: spec.triggers.any[0].drift.window: must be greater than 0s, but got '0s'",
    ),
    "one of several windows": (
        small(("boosting}", "boosting, window: [30d, 2 weeks]}")),
        f"p.yaml:10: spec.train.window[1]: {DURATION}, but got '2 weeks'",
    ),
    "metric of another task": (
        small(("metric: precision", "metric: mae")),
        f"p.yaml:11: spec.objective.metric: must be a metric for binary: {METRICS_OF_BINARY}, but got 'mae'",
    ),
    "misspelt metric": (
        small(("metric: precision", "metric: presision")),
        f"p.yaml:11: spec.objective.metric: must be a metric for binary: {METRICS_OF_BINARY}, but got 'presision'; "
        "did you mean 'precision'?",
    ),
    "weights that do not rise": (
        small(more="  rollout: {steps: [shadow: 1m, 25%: 1m, 5%: 1m, 100%]}\n"),
        "p.yaml:12: spec.rollout: weights must rise from step to step, but got 25%, 5%, 100%",
    ),
    "last step": (
        small(more="  rollout: {steps: [5%: 10m]}\n"),
        "p.yaml:12: spec.rollout: the last step must be 100%",
    ),
    "shadow later": (
        small(more="  rollout: {steps: [5%: 10m, shadow: 10m, 100%]}\n"),
        "p.yaml:12: spec.rollout: shadow can only be the first step",
    ),
    "step without a sign": (
        small(more="  rollout: {steps: [5: 10m, 100%]}\n"),
        "p.yaml:12: spec.rollout.steps[0]: a step is shadow: TIME or N%: TIME, such as 5%: 10m, but got '5'",
    ),
    "step without a unit": (
        small(more="  rollout: {steps: [5%: 10, 100%]}\n"),
        f"p.yaml:12: spec.rollout.steps[0].5%: {DURATION}, but got 10",
    ),
    "step over 100": (
        small(more="  rollout: {steps: [500%: 10m]}\n"),
        "p.yaml:12: spec.rollout.steps[0]: must be at most 100, but got 500.0",
    ),
    "missing label": (small(("    label: late\n", "")), "p.yaml:6: spec.data.label: is required"),
    "missing section": (
        small(("  objective: {metric: precision}\n", "")),
        "p.yaml:4: spec.objective: is required",
    ),
    "unknown source": (
        small(("kind: csv", "kind: cvs")),
        "p.yaml:7: spec.data.source.kind: must be one of csv, parquet, sql, prediction-log, but got 'cvs'; did you mean 'csv'?",
    ),
    "source without kind": (small(("kind: csv, ", "")), "p.yaml:7: spec.data.source.kind: is required"),
    "password in a URL": (
        small(("{kind: csv, path: rows.csv}", '{kind: sql, url: "postgresql://me:secret@db/x", query: SELECT 1}')),
        "p.yaml:7: spec.data.source: url must not hold a password: put it into an environment variable and name that in url_env",
    ),
    "same column twice": (
        small(("time: at", "time: late")),
        "p.yaml:6: spec.data: label, time, label_time and id must be different columns",
    ),
    "window of an unknown name": (
        small(("boosting}", "boosting, window: [all, since_then]}")),
        "p.yaml:10: spec.train.window[1]: a window is all, since_change, or a duration such as 30d, but got 'since_then'",
    ),
    "refit of a word": (
        small(("boosting}", "boosting, refit: maybe}")),
        "p.yaml:10: spec.train.refit: must be true or false, but got 'maybe'",
    ),
    "fewer than no trials": (
        small(more="  tune: {warm_trials: -1}\n"),
        "p.yaml:12: spec.tune.warm_trials: must be at least 0, but got -1",
    ),
    "drop of nothing": (
        trigger("{performance: {metric: recall, drop: 0}}"),
        "p.yaml:14: spec.triggers.any[0].performance: drop must be greater than 0, but got 0; with a confidence it may be 0",
    ),
    "confidence of certainty": (
        trigger("{performance: {metric: recall, below: 0.5, confidence: 1}}"),
        "p.yaml:14: spec.triggers.any[0].performance.confidence: must be less than 1, but got 1",
    ),
    "confidence of a coin": (
        trigger("{performance: {metric: recall, below: 0.5, confidence: 0.5}}"),
        "p.yaml:14: spec.triggers.any[0].performance.confidence: must be greater than 0.5, but got 0.5",
    ),
    "no rule in volume": (
        trigger("{volume: {}}"),
        "p.yaml:14: spec.triggers.any[0].volume: give either labelled_rows or growth",
    ),
    "two rules in volume": (
        trigger("{volume: {labelled_rows: 5, growth: 2}}"),
        "p.yaml:14: spec.triggers.any[0].volume: give either labelled_rows or growth",
    ),
    "growth to the same": (
        trigger("{volume: {growth: 1}}"),
        "p.yaml:14: spec.triggers.any[0].volume.growth: must be greater than 1, but got 1",
    ),
    "hold-out of everything": (
        small(("time: at", "time: at\n    holdout: 1")),
        "p.yaml:10: spec.data.holdout: must be less than 1, but got 1",
    ),
    "name in capitals": (
        small(("name: small", "name: Small")),
        "p.yaml:3: metadata.name: must be a DNS label: at most 63 of a-z, 0-9 and -, neither starting nor ending with -, but got 'Small'",
    ),
    "task": (
        small(("task: binary", "task: binery")),
        "p.yaml:5: spec.task: must be one of binary, multiclass, regression, but got 'binery'; did you mean 'binary'?",
    ),
    "version": (
        small(("ratchet.dev/v1", "ratchet.dev/v2")),
        "p.yaml:1: apiVersion: must be ratchet.dev/v1, but got 'ratchet.dev/v2'",
    ),
    "component and entrypoint": (
        small(("boosting}", "boosting, entrypoint: a:b, code: .}")),
        "p.yaml:10: spec.train: give either component or entrypoint",
    ),
    "entrypoint": (
        small(("component: sklearn.hist_gradient_boosting", "entrypoint: a.b, code: .")),
        "p.yaml:10: spec.train.entrypoint: must be module:function, but got 'a.b'",
    ),
    "empty list": (
        small(more="  triggers: {any: []}\n"),
        "p.yaml:12: spec.triggers.any: must hold at least 1, but got none",
    ),
    "a season without time": (
        small(("    time: at\n", ""), more="  gates: [{baseline: seasonal_naive, metric: recall}]\n"),
        "p.yaml:4: spec: data.time must name a column, since the baseline seasonal_naive of gates needs it",
    ),
    "two rules in one gate": (
        small(more="  gates: [{metric: recall, at_least: 0.5, no_worse_than_champion: 0.1}]\n"),
        "p.yaml:12: spec.gates[0]: a gate has one of these keys, but got at_least and no_worse_than_champion; make each a gate of its own",
    ),
    "misspelt key in a gate": (
        small(more="  gates: [{metric: recall, at_least: 0.5, min_row: 3}]\n"),
        "p.yaml:12: spec.gates[0].min_row: unknown key 'min_row'; did you mean 'min_rows'?",
    ),
    "unlike any key": (
        small(more="  gates: [{metric: recall, at_least: 0.5, x: 3}]\n"),
        "p.yaml:12: spec.gates[0].x: unknown key 'x'; there are at_least, metric, min_rows",
    ),
    "choice of parameters": (
        small(more="  tune: {space: {depth: [[1]]}}\n"),
        "p.yaml:12: spec.tune.space.depth[0]: must be text, a number or true or false, but got a list",
    ),
    "range upside down": (
        small(more="  tune: {space: {depth: {low: 9, high: 3}}}\n"),
        "p.yaml:12: spec.tune.space.depth: low must be less than high, but got 9 and 3",
    ),
    "nothing given": (small(more="  cooldown:\n"), f"p.yaml:12: spec.cooldown: {DURATION}, but got nothing"),
    "list for mapping": (small(more="  deploy: []\n"), "p.yaml:12: spec.deploy: must be a mapping, but got a list"),
    "not supported target": (
        small(more="  deploy: {target: kubernetes}\n"),
        "p.yaml:12: spec.deploy.target: not supported yet: kubernetes; local and docker are",
    ),
    "limits of a process": (
        small(more="  deploy: {target: local, memory_mb: 512}\n"),
        "p.yaml:12: spec.deploy.memory_mb: not supported yet: limits of a process; with target: docker they are",
    ),
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_message(text: str, message: str) -> None:
    """One mistake gives one message: file, line, path, rule, value and what to do."""
    assert str(only_problem(text)) == message


def test_all_errors_at_once() -> None:
    """Errors of all kinds and depths come together, in the order of the file."""
    text = small(
        ("task: binary", "task: binery"), ("label: late", "lable: late"), ("metric: precision", "metric: x"),
        more="  triggers: {any: [{drift: {window: 5}}, {schedule: x}]}\n  gates: [{metric: recall}, 5]\n  cooldown: 3\n  cooldown: 4\n",
    )  # fmt: skip
    problems = read(text).problems
    assert [p.path for p in problems] == [
        "spec.task", "spec.data.lable", "spec.objective.metric", "spec.triggers.any[0].drift.window",
        "spec.triggers.any[1].schedule", "spec.gates[0]", "spec.gates[1]", "spec.cooldown", "spec.cooldown",
    ]  # fmt: skip
    assert [p.line for p in problems] == [5, 8, 11, 12, 12, 13, 13, 14, 15]


def test_design_example_is_supported_and_the_rest_is_refused_by_name() -> None:
    """The design's example can be followed; what is not built yet is refused, with line and path."""
    assert read(DESIGN).problems == ()
    cluster = DESIGN.replace("target: local", "target: kubernetes")
    assert [str(p) for p in read(cluster).problems] == [
        "p.yaml:36: spec.deploy.target: not supported yet: kubernetes; local and docker are",
    ]


@pytest.mark.parametrize(
    ("notice", "said"),
    [
        ("{webhook: 'https://user:pw@host/'}", "must be an http or https URL without user"),
        ("{webhook: 'file:///etc/passwd'}", "must be an http or https URL without user"),
        ("{webhook: 'https://host/ x'}", "must be an http or https URL without user"),
        ("{slack: '<!channel>'}", "spec.notify[0].slack"),
        ("{slack: 'a b'}", "spec.notify[0].slack"),
    ],
)
def test_a_channel_is_an_address_and_nothing_else(notice: str, said: str) -> None:
    """No password in a webhook's URL, no other scheme, and no markup for the name of a channel."""
    problems = read(small(more=f"  notify: [{notice}]\n")).problems
    assert [said in str(p) for p in problems] == [True]


@pytest.mark.parametrize(
    "notice", ["{webhook: ops}", "{webhook: 'http://127.0.0.1:9/x?y=1'}", "{slack: C0123}", "{slack: '#a-b'}"]
)
def test_channels_that_make_sense_are_taken(notice: str) -> None:
    """A webhook by name or URL, a Slack channel by name or id."""
    assert read(small(more=f"  notify: [{notice}]\n")).problems == ()


def test_values_of_mappings_are_not_shown() -> None:
    """A message never repeats a whole section, which may hold a secret."""
    text = small(("{kind: csv, path: rows.csv}", "[{url: secret}]"), ("label: late", "label: {password: secret}"))
    assert all("secret" not in str(p) for p in read(text).problems)


def test_many_problems_are_cut() -> None:
    """A file with very many mistakes names a hundred at most, and says that there are more."""
    problems = read(small(more="".join(f"  k{i}: 1\n" for i in range(3000)))).problems
    assert len(problems) == 100
    assert "more problems" in str(problems[-1])
