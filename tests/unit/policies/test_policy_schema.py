"""Shapes, durations, cron expressions, support: the small parts that reading is made of."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_texts import DESIGN, read, small
from pydantic import ValidationError

import policies
from policies.cron import parse_cron
from policies.durations import LONGEST, format_duration, parse_duration, spell_duration
from policies.problems import Problem
from policies.schema import FloatRange, IntRange, Objective, Spec, SqlSource, TuneSpec
from policies.signals import SignalKind, SignalQuery
from policies.support import unsupported

MODULES = sorted(info.name for info in pkgutil.iter_modules(policies.__path__, "policies."))
MONDAY = datetime(2026, 11, 23, tzinfo=UTC)


@pytest.mark.parametrize("name", MODULES)
def test_worked_examples(name: str) -> None:
    """The examples in the docstrings are true."""
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@settings(derandomize=True, deadline=None)
@given(st.timedeltas(timedelta(0), LONGEST))
def test_durations_round_trip(value: timedelta) -> None:
    """The exact spelling of any duration reads back as that duration."""
    assert parse_duration(spell_duration(value)) == value


@pytest.mark.parametrize(
    "value", ["", "5", "m", "-5m", "5 m", "1e3s", "36501d", "1d2", "٣d", 5, 5.0, None, True, ["5m"], "9" * 99 + "w"]
)
def test_durations_need_a_unit(value: object) -> None:
    """Whatever has no unit, or is absurdly long, is refused, and the message repeats it."""
    with pytest.raises(ValueError, match=r"a duration is .*but got "):
        parse_duration(value)


def test_durations_for_people_are_rounded() -> None:
    """`format_duration` leaves fractions of seconds out."""
    assert format_duration(timedelta(hours=1, seconds=0.4)) == "1h"


def test_queries_of_short_windows_differ() -> None:
    """Two queries have one key only if they ask the same."""
    keys = {SignalQuery(kind=SignalKind.DRIFT, window=timedelta(seconds=s)).key for s in (0.3, 0.4, 1)}
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("expression", "first"),
    [
        ("0 4 * * 1", "Mon 2026-11-23 04:00"),
        ("0 4 * * 0", "Sun 2026-11-29 04:00"),
        ("0 4 * * 7", "Sun 2026-11-29 04:00"),
        ("0 4 * * SUN", "Sun 2026-11-29 04:00"),
        ("0 4 * * 2-4", "Tue 2026-11-24 04:00"),
        ("0 4 * * 5-7", "Fri 2026-11-27 04:00"),
        ("0 4 * * fri-sun", "Fri 2026-11-27 04:00"),
        ("0 4 * * 3/2", "Wed 2026-11-25 04:00"),
        ("0 4 1 * 5", "Fri 2026-11-27 04:00"),
        ("0 4 25 * 5", "Wed 2026-11-25 04:00"),
        ("0 4 25 * *", "Wed 2026-11-25 04:00"),
        ("0 4 */2 * 2", "Tue 2026-12-01 04:00"),
        ("*/15 9-17 * jan-mar mon-fri", "Fri 2027-01-01 09:00"),
        ("0 0 29 2 *", "Tue 2028-02-29 00:00"),
        ("5 0 ? * *", "Mon 2026-11-23 00:05"),
    ],
)
def test_cron_means_what_crontab_says(expression: str, first: str) -> None:
    """Sunday is 0 and 7; if day of month and day of week are both given, either suffices."""
    fire = parse_cron(expression).next_after(MONDAY)
    assert fire is not None
    assert f"{fire:%a %Y-%m-%d %H:%M}" == first


@pytest.mark.parametrize(
    "expression",
    ["", "x", "0 4 * *", "0 4 * * * *", "60 4 * * *", "0 4 32 * *", "0 4 * 13 *", "0 4 * * 8", "0 4 * * 1#2", "0 4 31 2,4 *",
     "*/0 * * * *", "0 4 * * */0", "@daily", "-1 * * * *", "0 4 * * mo", "5-1 * * * *", "0 4 * * ,", "9" * 50 + " * * * *"],
)  # fmt: skip
def test_cron_nonsense(expression: str) -> None:
    """What is no cron expression, or names no date, is refused, and the message repeats it."""
    with pytest.raises(ValueError, match=r"but got "):
        parse_cron(expression)


def test_cron_at_the_end_of_the_calendar() -> None:
    """Where the calendar ends there is no next firing, and no error."""
    assert parse_cron("0 4 * * 1").next_after(datetime.max.replace(tzinfo=UTC)) is None


def test_search_space_is_told_apart_by_its_bounds() -> None:
    """Whole bounds make whole numbers; a bound with a fraction makes numbers; a list makes choices."""
    space = {"a": {"low": 1, "high": 9}, "b": {"low": 1, "high": 9.5}, "c": ["x", 1, 0.5, True]}
    tune = TuneSpec.model_validate({"space": space})
    assert isinstance(tune.space["a"], IntRange)
    assert isinstance(tune.space["b"], FloatRange)
    assert tune.space["c"] == ("x", 1, 0.5, True)
    again = TuneSpec.model_validate_json(tune.model_dump_json())
    assert again == tune
    assert isinstance(again.space["a"], IntRange)


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("sqlite:///data/sales.db", True),
        ("sqlite:////var/a:b@c.db", True),
        ("postgresql://me@db.example.org:5432/sales", True),
        ("postgresql://db:5432/sales?application_name=a@b", True),
        ("postgresql://me:secret@db/sales", False),
        ("postgresql+psycopg://me:se/c@ret@db/sales", False),
        ("postgresql://:secret@db/sales", False),
        ("postgresql://db/sales?user=me&password=secret", False),
    ],
)
def test_urls_hold_no_passwords(url: str, allowed: bool) -> None:
    """A policy is stored and shown, so a URL with a password in it is refused."""
    values = {"kind": "sql", "url": url, "query": "SELECT 1"}
    if allowed:
        assert SqlSource.model_validate(values).url == url
    else:
        with pytest.raises(ValidationError, match="must not hold a password"):
            SqlSource.model_validate(values)


def test_values_never_change() -> None:
    """A policy cannot be changed after it was read."""
    (one,) = read(small()).policies
    with pytest.raises(ValidationError, match="frozen"):
        one.policy.spec.objective.metric = "recall"  # type: ignore[misc]


def test_metrics_fit_the_task_without_a_reader() -> None:
    """A spec built in code, not read from a file, is held to its task's metrics too."""
    (one,) = read(small()).policies
    values = dict(one.policy.spec) | {"objective": Objective(metric="mae")}
    with pytest.raises(ValidationError, match=r"must be metrics for binary: .*but got objective.metric: 'mae'"):
        Spec(**values)


def test_unsupported_is_listed_by_place() -> None:
    """What is not built yet is found wherever it stands, and a policy without it has nothing to list."""
    (one,) = read(DESIGN.replace("target: local", "target: kubernetes"), check_support=False).policies
    assert [path for path, _ in unsupported(one.policy)] == [("spec", "deploy", "target")]
    assert unsupported(read(small()).policies[0].policy) == []


@pytest.mark.parametrize(("metric", "refused"), [("metric: r2, ", True), ("", True), ("metric: mae, ", False)])
def test_an_r2_cannot_be_estimated(metric: str, refused: bool) -> None:
    """How much labels vary is unknown before they are in, so a trigger on an estimated r2, named or meant, is refused by its place."""
    estimate = f"{{estimated_performance: {{{metric}drop: 0.1}}}}"
    rule = f"  triggers:\n    any: [{estimate}, {{drift: {{only_if: {estimate}}}}}]\n"
    text = small(("task: binary", "task: regression"), ("metric: precision", "metric: r2"), more=rule)
    (one,) = read(text, check_support=False).policies
    places = [
        ("spec", "triggers", "any", 0, "estimated_performance", "metric"),
        ("spec", "triggers", "any", 1, "drift", "only_if", "estimated_performance", "metric"),
    ]
    assert [path for path, _ in unsupported(one.policy)] == (places if refused else [])


def test_problem_as_text() -> None:
    """File, line, path, rule, value, suggestion; parts that are not there leave no trace."""
    full = Problem(file="a.yaml", line=3, path="spec.x", rule="must be y", value="'z'", suggestion="try y")
    assert str(full) == "a.yaml:3: spec.x: must be y, but got 'z'; try y"
    assert str(Problem(file="a.yaml", rule="no such file")) == "a.yaml: no such file"
