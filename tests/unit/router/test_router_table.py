"""The router's table: its rules, and the arithmetic of sticky weights."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.router import table
from serving.router.table import BASELINE, RouteError, choose_version, parse_route

GOOD: dict[str, Any] = {
    "epoch": 1,
    "generation": 2,
    "backends": {"7": ["http://127.0.0.1:4001"], "8": ["http://127.0.0.1:4002"], "9": []},
    "weights": {"7": 95, "8": 5},
    "shadow": "9",
}
KEYS = [f"key {i}" for i in range(500)]


def test_examples_in_the_docstrings_hold() -> None:
    """The worked example of weighted rendezvous hashing is what the code computes."""
    assert doctest.testmod(table).failed == 0


def test_good_table_survives_the_round_trip() -> None:
    """What is parsed is written back the same, and the champion is the heaviest version."""
    route = parse_route("m", GOOD)
    assert parse_route("m", route.to_json()) == route
    assert (route.champion, route.shadow, route.weights) == ("7", "9", {"7": 95.0, "8": 5.0})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epoch": "1"}, "epoch"),
        ({"generation": -1}, "generation"),
        ({"generation": True}, "generation"),
        ({"backends": []}, "backends"),
        ({"backends": {"seven": []}}, "backends"),
        ({"backends": {"7": ["ftp://x"]}}, "backends.7"),
        ({"backends": {"7": "http://127.0.0.1:1"}}, "backends.7"),
        ({"weights": {"7": 50, "8": 49}}, "weights"),
        ({"weights": {"7": 100, "10": 0}}, "weights.10"),
        ({"weights": {"7": float("nan"), "8": 5}}, "weights.7"),
        ({"weights": {"7": 105, "8": -5}}, "weights.7"),
        ({"weights": None}, "weights"),
        ({"shadow": "7"}, "shadow"),
        ({"shadow": "11"}, "shadow"),
        ({"colour": "red"}, "colour"),
        ({"baseline": {"version": "9", "weight": 5, "urls": []}}, "baseline"),
        ({"baseline": {"version": "7", "weight": 96, "urls": []}}, "baseline"),
        ({"baseline": {"version": "7", "weight": 0, "urls": []}}, "baseline"),
        ({"baseline": {"version": "7", "weight": 5, "urls": ["ftp://x"]}}, "baseline.urls"),
        ({"baseline": "7"}, "baseline"),
    ],
)
def test_bad_field_is_named(change: dict[str, Any], named: str) -> None:
    """A table that breaks a rule is refused with the field's name first."""
    with pytest.raises(RouteError) as refusal:
        parse_route("m", {**GOOD, **change})
    assert any(error.startswith(named + ":") for error in refusal.value.errors), refusal.value.errors


def test_all_errors_come_at_once() -> None:
    """Two broken rules are two errors in one refusal."""
    with pytest.raises(RouteError) as refusal:
        parse_route("m", {**GOOD, "epoch": None, "shadow": 9})
    assert len(refusal.value.errors) == 2


@pytest.mark.parametrize("model", ["", "a/b", "A", "../m", "x" * 64])
def test_bad_model_name_is_refused(model: str) -> None:
    """Only DNS labels are models."""
    with pytest.raises(RouteError):
        parse_route(model, GOOD)


weights_of_three = st.tuples(*[st.floats(0.5, 100)] * 3).map(lambda w: dict(zip(("1", "2", "3"), w, strict=True)))


@given(weights=weights_of_three, raised=st.sampled_from(["1", "2", "3"]), factor=st.floats(1, 50))
def test_raising_a_weight_moves_keys_only_to_that_version(
    weights: dict[str, float], raised: str, factor: float
) -> None:
    """Whatever the weights, a key that moves when one version gets more moves to that version."""
    more = {**weights, raised: weights[raised] * factor}
    for key in KEYS[:100]:
        before, after = choose_version("m", weights, key), choose_version("m", more, key)
        assert after in (before, raised)


@given(weights=weights_of_three, scale=st.floats(0.01, 100))
def test_only_the_proportions_count(weights: dict[str, float], scale: float) -> None:
    """Scaling all weights moves (next to) no key."""
    scaled = {version: weight * scale for version, weight in weights.items()}
    moved = sum(choose_version("m", weights, key) != choose_version("m", scaled, key) for key in KEYS)
    assert moved == 0


@pytest.mark.parametrize("share", [1, 5, 25, 50])
def test_shares_are_as_asked(share: float) -> None:
    """Over many keys, a version's share is its weight within four standard errors."""
    count = 20_000
    got = sum(choose_version("m", {"1": 100 - share, "2": share}, f"k{i}") == "2" for i in range(count)) / count
    p = share / 100
    assert abs(got - p) < 4 * (p * (1 - p) / count) ** 0.5


def test_models_do_not_share_their_canary_clients() -> None:
    """The same key is not always the one that meets new versions first: the model's name is part of the hash."""
    weights = {"1": 50.0, "2": 50.0}
    same = sum(choose_version("a", weights, key) == choose_version("b", weights, key) for key in KEYS)
    assert 0.4 < same / len(KEYS) < 0.6


# ---------------------------------------------------------------- the baseline
def test_the_baseline_takes_its_share_from_its_version_alone() -> None:
    """5 % for the canary, 5 % for fresh replicas of the champion; other keys stay where they were."""
    body = {**GOOD, "baseline": {"version": "7", "weight": 5, "urls": ["http://127.0.0.1:4003"]}}
    route, before = parse_route("m", body), parse_route("m", GOOD)
    assert parse_route("m", route.to_json()) == route
    keys = [f"key {i}" for i in range(20_000)]
    pairs = [(before.choose(key), route.choose(key)) for key in keys]
    moved = [pair for pair in pairs if pair[0] != pair[1]]
    assert set(moved) == {("7", BASELINE)}
    assert 0.045 < len(moved) / len(keys) < 0.055
    assert (route.arms[BASELINE], route.version_of(BASELINE), route.version_of("8")) == (
        ("http://127.0.0.1:4003",),
        "7",
        "8",
    )
    assert (before.arms, before.version_of(BASELINE)) == (before.backends, "7")


def test_a_baseline_without_replicas_gets_nothing() -> None:
    """Its version's other replicas answer."""
    route = parse_route("m", {**GOOD, "baseline": {"version": "7", "weight": 95, "urls": []}})
    assert {route.choose(key) for key in KEYS} == {"7", "8"}
