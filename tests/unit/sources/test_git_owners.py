"""One owner a model: what Git owns is not changed by hand without a word, and the record says who did what."""

from __future__ import annotations

from pathlib import Path

import pytest
from git_repos import House, new_repo, policy

from controller import overrides
from controller.service import PolicyDocument, Service
from controller.sources.building import Repository
from controller.sources.git.access import AccessError
from deployers.target import FakeTarget
from policies.schema import ModelPolicy


@pytest.fixture
def house(tmp_path: Path) -> House:
    repo = new_repo(tmp_path / "repo.git")
    repo.commit({"policies/a.yaml": policy("a"), "policies/b.yaml": policy("b")})
    made = House(repo, tmp_path / "home")
    made.sync()
    return made


def service(house: House, *, followed: bool = True) -> Service:
    return Service(
        store=house.store, target=FakeTarget(), epoch=lambda: house.epoch, now=lambda: house.now, wake=lambda _name: None,
        sentences={}, policy=lambda state: ModelPolicy.model_validate_json(state.policy),
        sources=[house.follower] if followed else [],
    )  # fmt: skip


def by_hand(metric: str) -> list[PolicyDocument]:
    return [PolicyDocument(text=policy("a", metric=metric), file="a.yaml", directory="/home/ada")]


def test_what_git_owns_is_refused_by_hand(house: House) -> None:
    """`apply` and `delete` name the repository and the file, change nothing, and say what to do."""
    hand = service(house)
    for order in (
        lambda: hand.apply(by_hand("f1"), actor="ada"),
        lambda: hand.apply(by_hand("f1"), actor="ada", dry_run=True),
        lambda: hand.delete("a", actor="ada", reason="tidying"),
    ):
        with pytest.raises(overrides.OverrideRefused, match=r"followed from file:.*policies/a\.yaml"):
            order()
    assert house.metric("a") == "accuracy"


def test_force_counts_until_the_file_changes(house: House) -> None:
    """A forced policy outlives commits that do not touch its file, and ends with one that does."""
    hand = service(house)
    hand.apply(by_hand("f1"), actor="ada", force=True)
    told = hand.model("a").origin
    assert told is not None
    assert told.forced == "ada"
    house.repo.commit({"policies/a.yaml": policy("a"), "policies/b.yaml": policy("b", metric="f1")})
    house.sync()
    assert (house.metric("a"), house.metric("b")) == ("f1", "f1")
    house.repo.commit({"policies/a.yaml": policy("a", metric="recall"), "policies/b.yaml": policy("b")})
    house.sync()
    told = hand.model("a").origin
    assert told is not None
    assert (house.metric("a"), told.forced) == ("recall", "")


def test_what_nothing_follows_any_more_is_anybodys(house: House) -> None:
    """A model whose file is gone, or whose repository is no longer among the settings, is applied and deleted by hand."""
    house.repo.commit({"policies/b.yaml": policy("b")})
    house.sync()
    hand = service(house)
    hand.apply(by_hand("f1"), actor="ada")
    state = house.store.load("a")
    assert state is not None
    assert (state.origin, state.paused) == (None, None)
    with pytest.raises(overrides.OverrideRefused):
        hand.delete("b", actor="ada", reason="tidying")
    service(house, followed=False).delete("b", actor="ada", reason="the repository is retired")
    assert house.store.names() == ["a"]


def test_the_source_is_told(house: House) -> None:
    """`get sources` has what is in force, and since when."""
    (told,) = service(house).sources()
    assert (told.applied, told.models, told.error) == (house.repo.tip(), 2, "")


def test_without_git_the_daemon_says_so_at_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that cannot work is refused when the daemon starts, with what to install."""
    monkeypatch.setenv("PATH", "/nowhere")
    repository = Repository(
        url="https://git.example.org/team/models.git", branch="main", protocols="https", credentials_file=None, ssh_key_file=None,
        known_hosts_file=None, timeout_s=1, max_mb=1, max_files=1,
    )  # fmt: skip
    with pytest.raises(AccessError, match="git_url: the command git is not on the daemon's PATH: install it"):
        repository.mirror(tmp_path / "x.git")
