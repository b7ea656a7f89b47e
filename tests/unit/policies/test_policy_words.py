"""Policies in words: the explanation, the starter, the reference page."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_texts import DESIGN, EXAMPLES, REPOSITORY, read, small
from pydantic import PlainSerializer
from pydantic.fields import FieldInfo

from pipelines.components import registry
from policies.durations import spell_duration
from policies.explain import explain
from policies.fields import Shape
from policies.metrics import METRICS, Task
from policies.schema import ModelPolicy, NoWorseGate
from policies.starter import NUMBERS, Starter, starter_policy

REFERENCE = (REPOSITORY / "docs" / "policy.md").read_text()


def policy(text: str) -> ModelPolicy:
    (one,) = read(text, check_support=False).policies
    return one.policy


# ---------------------------------------------------------------- explain
def test_design_example_in_words() -> None:
    """Each trigger, gate and step of the design's example is said in words, with its numbers."""
    assert explain(policy(DESIGN), now=datetime(2026, 11, 23, 13, tzinfo=UTC)) == [
        "flight-late: a binary model of 'late', judged by average_precision.",
        "Reads the csv data in .... A row counts once its label is known, at 'arrived_at'.",
        "Keeps the newest 20 % of the rows for judging; needs at least 200 rows to train on.",
        "Trains sklearn.hist_gradient_boosting on rows of the last 60d, after a search of at most 40 trials or 10m, 2 at a time.",
        "A cycle opens when any of these holds:",
        "  - precision over the last 1d (at least 100 rows with labels) is below 0.55, without a break for 2h",
        "  - average_precision over the last 1d (at least 100 rows with labels) is worse by 0.05 or more"
        " than when the champion was promoted",
        "  - 30 % of the features or more drift in 2 windows running, each of 1d (at least 100 rows)",
        "  - the objective's metric, as estimated over the last 1d, is worse by 0.03 or more than at promotion",
        "  - the schedule '0 4 * * 1' is due, UTC (next at 2026-11-30 04:00)",
        "  - nothing newer was trained on, and no cycle closed, for 30d",
        "  - 50000 labelled rows have matured since the training",
        "Of such cycles there are at most 3 in 7d, 2h of computing; then triggers rest for 12h after each.",
        "A challenger must pass every gate, or the champion stays:",
        "  - average_precision at least 0.4 on the rows kept for judging",
        "  - average_precision no worse than the champion's by more than 0.005, at 95 % confidence",
        "  - recall no worse than the champion's by more than 0.03, at 95 % confidence, for each origin",
        "  - 95 % of single answers within 20 ms",
        "  - files of at most 200 MB",
        "Traffic moves to it in steps: a copy of the traffic for 10m, then 5 % for 10m, then 25 % for 30m, then 100 %.",
        "It is taken back if it is shown to be worse by 0.02 (by chance in at most 5 % of rollouts), if more than 2 % of its answers fail,"
        " or if it is not through after 7d.",
        "It gets no more traffic while it is more than 3 times as slow as fresh replicas of the champion.",
        "It is promoted once it is shown to be no worse by 0.02 on live, labelled answers.",
        "After promotion it is watched for 1d, ready to be rolled back; 2 % of the traffic stays with the champion before,"
        " to compare with.",
        "Each version serves on the local target: 1 replica of 1 worker.",
        "Told of what happens: Slack #ops-models.",
    ]  # fmt: skip


def test_defaults_in_words() -> None:
    """A policy without triggers and gates says so."""
    lines = explain(policy(small()))
    assert "No cycle opens by itself, only by `ratchet trigger`." in lines
    assert "There are no gates: every challenger that can be trained and loaded passes." in lines


def test_thresholds_and_filters_of_drift_in_words() -> None:
    """Beyond which distance, and while what else holds."""
    filtered = "{drift: {threshold: calibrated, only_if: {estimated_performance: {drop: 0.02}}}}"
    triggers = f"  triggers: {{any: [{{drift: {{threshold: 0.2}}}}, {filtered}]}}\n"
    lines = explain(policy(small(more=triggers)))
    drift = "  - 50 % of the features or more drift in a window of 1d (at least 100 rows), "
    assert f"{drift}by a distance of 0.2 or more" in lines
    assert (
        f"{drift}beyond what the version's first quiet windows showed, while the objective's metric, as estimated over the last 1d,"
        " is worse by 0.02 or more than at promotion"
    ) in lines


def test_windows_refits_and_shorter_searches_in_words() -> None:
    """Each window as what it is, rows where there is no time; the second fit; the trials that a champion spares."""
    every = ("boosting}", "boosting, window: [30d, all, since_change], refit: true}")
    lines = explain(policy(small(every, more="  tune: {trials: 40, warm_trials: 8}\n")))
    assert (
        "Trains sklearn.hist_gradient_boosting on rows of the last 30d or all rows or the rows since the change, after a search of at"
        " most 40 trials (8 where it starts from a champion) or 10m. What passes its gates is fitted once more with the rows that"
        " judged it."
    ) in lines
    timeless = policy(
        small(("    time: at\n", ""), ("boosting}", "boosting, window: 5000s}"), more="  tune: {trials: 0}\n")
    )
    assert "Trains sklearn.hist_gradient_boosting on the newest 5,000 rows, without a search." in explain(timeless)


def test_drops_beyond_chance_and_growth_in_words() -> None:
    """How sure, and how many times the rows."""
    rules = [
        "{performance: {metric: recall, drop: 0, confidence: 0.999}}",
        "{performance: {metric: recall, below: 0.5, confidence: 0.95}}", "{volume: {growth: 1.5}}",
    ]  # fmt: skip
    lines = explain(policy(small(more=f"  triggers: {{any: [{', '.join(rules)}]}}\n")))
    recall = "  - recall over the last 1d (at least 100 rows with labels) is "
    assert f"{recall}worse than when the champion was promoted, beyond chance (99.9 % sure)" in lines
    assert f"{recall}below 0.5, beyond chance (95 % sure)" in lines
    assert "  - with the labels that have matured since, there are 1.5 times the rows that it was trained on" in lines


def test_a_promotion_without_labels_is_said() -> None:
    """Who waives the evidence reads so; who keeps nothing back reads of no holdback."""
    lines = explain(policy(small(more="  rollout: {min_labelled_rows: 0, holdback: 0%}\n")))
    assert "It is promoted without a look at its labelled answers (min_labelled_rows: 0)." in lines
    assert "After promotion it is watched for 1d, ready to be rolled back." in lines


def test_gates_beyond_no_worse_in_words() -> None:
    """Being better than the champion, or than what needs no model, is said with margin and confidence."""
    gates = "{metric: recall, better_than_champion: 0.01}, {baseline: last_label, metric: f1}, {baseline: best, metric: f1, margin: 0.1}"
    lines = explain(policy(small(more=f"  gates: [{gates}]\n")))
    assert "  - recall better than the champion's by more than 0.01, at 95 % confidence" in lines
    assert "  - f1 better than that of 'same as last label' at 95 % confidence" in lines
    assert "  - f1 better than that of every predictor without a model by more than 0.1, at 95 % confidence" in lines


def test_nested_triggers_are_indented() -> None:
    """A tree of triggers is a tree of lines."""
    text = small(
        more="  triggers: {any: [{manual: }, {at_least: 1, of: [{staleness: 1d}, {all: [{volume: {labelled_rows: 5}}]}]}]}\n"
    )
    assert explain(policy(text))[5:10] == [
        "  - never by itself (manual)",
        "  - at least 1 of these 2 hold:",
        "    - nothing newer was trained on, and no cycle closed, for 1d",
        "    - all of these hold:",
        "      - 5 labelled rows have matured since the training",
    ]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_in_words(path: Any) -> None:
    """Every example can be explained, with no Python in the words."""
    lines = explain(policy(path.read_text()))
    assert len(lines) > 8
    assert not re.search(r"None|timedelta|<|Shape|\(\)", "\n".join(lines))


# ---------------------------------------------------------------- starter
@pytest.mark.parametrize("source", ["csv", "parquet", "sql", "prediction-log"])
@pytest.mark.parametrize(
    "times",
    [{}, {"time": "at"}, {"time": "at", "label_time": "known at"}, {"time": "at", "label_delay": timedelta(hours=6)}],
)
@pytest.mark.parametrize("task", list(Task))
def test_starter_reads_back(task: Task, times: dict[str, Any], source: Any) -> None:
    """What `init` writes is a policy without problems, and says what it was told."""
    start = Starter(
        name="my-model",
        task=task,
        source=source,
        location="data/x.csv",
        query="SELECT 1",
        label="y",
        exclude={"a b": "names the rows", "on": ""},
        **times,
    )
    (one,) = read(starter_policy(start)).policies
    data = one.policy.spec.data
    assert (one.policy.name, one.policy.spec.task, data.label) == ("my-model", task, "y")
    assert (data.time, data.label_time) == (times.get("time"), times.get("label_time"))
    assert data.label_delay == (timedelta(hours=6) if "label_delay" in times else None)
    assert data.source.kind == source
    assert data.exclude == ("a b", "on")


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_starter_takes_every_metric(metric: Any) -> None:
    """Any metric that fits the task gives a policy without problems; others are refused."""
    for task in Task:
        start = Starter(name="m", task=task, source="csv", location="x.csv", label="y", metric=metric.name)
        if task in metric.tasks:
            (one,) = read(starter_policy(start)).policies
            assert one.policy.spec.objective.metric == metric.name
        else:
            with pytest.raises(ValueError, match="must be a metric for"):
                starter_policy(start)


def test_starter_gives_late_labels_time() -> None:
    """Where labels take longer than a rollout may by default, the policy that `init` writes allows for it, however that is known."""
    for late in ({"label_delay": timedelta(days=10)}, {"label_time": "known", "label_lag": timedelta(days=10)}):
        start = Starter(name="m", task=Task.BINARY, source="csv", location="x.csv", label="y", time="t", **late)  # type: ignore[arg-type]
        (one,) = read(starter_policy(start)).policies
        assert one.policy.spec.rollout.deadline == timedelta(days=30)
        assert one.policy.spec.rollout.bake > timedelta(days=10)


@pytest.mark.parametrize("row_s", [0.004, 1.0, 60.0, 3600.0, 86_400.0, 800_000.0])
@pytest.mark.parametrize("arrivals", [True, False])
def test_starter_spans_are_numbers_of_rows(row_s: float, arrivals: bool) -> None:
    """Whatever the pace of the rows, spans come within a twentieth of the numbers that the policy starts with."""
    start = Starter(
        name="m", task=Task.BINARY, source="csv", location="x.csv", label="y", time="t", row_s=row_s, arrivals=arrivals
    )
    (one,) = read(starter_policy(start)).policies
    spec = one.policy.spec
    windows = [w for w in spec.train.windows if isinstance(w, timedelta)]
    wanted = {spec.data.holdout: NUMBERS.holdout, spec.cooldown: NUMBERS.cooldown, spec.rollout.bake: NUMBERS.bake}
    wanted |= dict(zip(windows, NUMBERS.windows, strict=True))
    longest = timedelta(days=36_500)
    for span, rows in wanted.items():
        assert isinstance(span, timedelta)
        assert span == longest or abs(span.total_seconds() - rows * row_s) <= 0.051 * rows * row_s


@pytest.mark.parametrize("metric", ["mae", "rmse"])
def test_starter_margins_of_errors_are_in_the_label_unit(metric: str) -> None:
    """How much worse still passes is a share of how far labels lie apart, since an error has the label's unit."""
    start = Starter(
        name="m", task=Task.REGRESSION, source="csv", location="x.csv", label="y", metric=metric, spread=1.2e7
    )
    (one,) = read(starter_policy(start, replace(NUMBERS, gate_margin=0.01))).policies
    (gate,) = one.policy.spec.gates
    assert isinstance(gate, NoWorseGate)
    assert gate.no_worse_than_champion == pytest.approx(240_000)


@settings(derandomize=True, deadline=None)
@given(st.text(min_size=1, max_size=12), st.text(min_size=1, max_size=12))
def test_starter_quotes_any_column(label: str, path: str) -> None:
    """Any text can be a column or a path."""
    text = starter_policy(Starter(name="m", task=Task.BINARY, source="csv", location=path, label=label))
    (one,) = read(text).policies
    assert (one.policy.spec.data.label, one.policy.spec.data.source.path) == (label, path)  # type: ignore[union-attr]


# ---------------------------------------------------------------- reference
def shapes(base: type[Shape] = Shape) -> list[type[Shape]]:
    return [shape for child in base.__subclasses__() for shape in [child, *shapes(child)]]


def as_written(info: FieldInfo) -> Any:
    """A field's default, as text where the field is written as text."""
    default = info.get_default(call_default_factory=True)
    texts = [m.func for m in info.metadata if isinstance(m, PlainSerializer) and isinstance(default, float)]
    return texts[0](default) if texts else default


def spelled(default: Any) -> str | None:
    """How the page must spell a default; None where prose may say it."""
    match default:
        case timedelta():
            return f"`{spell_duration(default)}`"
        case bool():
            return f"`{str(default).lower()}`"
        case int() | float():
            return f"`{default:g}`"
        case str():
            return f"`{default}`"
        case None:
            return "–"
        case _:
            return None


KINDS_OF_TRIGGER = [shape for shape in shapes() if shape.__name__.endswith("Trigger")]
"""Each of one key only, under which the trigger's own fields stand."""


@pytest.mark.parametrize("shape", KINDS_OF_TRIGGER, ids=lambda shape: shape.__name__)
def test_every_kind_of_trigger_is_in_the_reference(shape: type[Shape]) -> None:
    """docs/policy.md has a section for every kind of trigger."""
    (key,) = shape.model_fields
    assert f"\n### {key}\n" in REFERENCE


@pytest.mark.parametrize("name", registry.names())
def test_every_component_is_in_the_reference(name: str) -> None:
    """docs/policy.md says what each is."""
    assert f"`{name}`" in REFERENCE


@pytest.mark.parametrize("shape", [s for s in shapes() if s not in KINDS_OF_TRIGGER], ids=lambda shape: shape.__name__)
def test_every_field_is_in_the_reference(shape: type[Shape]) -> None:
    """docs/policy.md has a section for every shape, with every key, its true default and what it means."""
    section = REFERENCE.split(f"<!-- {shape.__name__} -->")[1].split("\n#")[0]
    rows = {
        cells[1].strip(" `"): cells
        for line in section.splitlines()
        if (cells := line.split("|"))[0] == "" and len(cells) > 3
    }
    for name, info in shape.model_fields.items():
        key = info.alias or name
        default, meaning = rows[key][2].strip(), rows[key][3].strip()
        wanted = "required" if info.is_required() else spelled(as_written(info))
        assert wanted is None or default == wanted, f"{shape.__name__}.{key}"
        assert meaning
    assert set(rows) - {"key", "---"} == {info.alias or name for name, info in shape.model_fields.items()}


def test_metrics_are_in_the_reference() -> None:
    """docs/policy.md lists every metric with its tasks and its direction."""
    for metric in METRICS.values():
        tasks = ", ".join(sorted(task.value for task in metric.tasks))
        better = "higher" if metric.higher_is_better else "lower"
        assert f"| `{metric.name}` | {tasks} | {better} |" in REFERENCE
