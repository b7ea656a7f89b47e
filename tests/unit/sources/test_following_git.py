"""A branch is followed commit by commit: whole, or not at all."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from git_repos import ENV, House, Repo, new_repo, policy

from controller import applying
from controller.state import Cycle, Hold, Phase
from controller.store.port import Commit, ConflictError, Store
from controller.store.sql import open_store
from pipelines.treehash import tree_id
from policies.schema import ModelPolicy

CODE = {"models/own/train.py": "def fit(): ...\n", "models/own/__init__.py": "", "+models/own/run.sh": "#!/bin/sh\n"}
OWN = policy("own", train="entrypoint: 'train:fit', code: ../models/own")


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return new_repo(tmp_path / "repo.git")


@pytest.fixture
def house(repo: Repo, tmp_path: Path) -> House:
    return House(repo, tmp_path / "home")


def test_a_commit_s_policies_are_followed(house: House, repo: Repo) -> None:
    """Every policy below the folder becomes a model, which knows from which commit and file it comes; other files are left alone."""
    commit = repo.commit(
        {"policies/a/flights.yaml": policy(), "policies/b.yml": policy("b"), "README.md": "x", "x.yaml": "junk: ["}
    )
    house.sync()
    flights = house.store.load("flights")
    assert house.store.names() == ["b", "flights"]
    assert flights is not None
    assert flights.origin is not None
    assert (flights.origin.revision, flights.origin.file) == (commit, "policies/a/flights.yaml")
    assert "Ann <ann@example.org>" in flights.origin.said
    assert (house.status.applied, house.status.models, house.status.refused) == (commit, 2, ())
    assert sorted(house.woken) == ["b", "flights"]
    assert house.kinds() == ["policy.applied", "policy.applied", "policies.applied"]


def test_one_bad_file_stops_the_whole_commit_and_the_incident_names_it(house: House, repo: Repo) -> None:
    """Nothing of a commit with a bad file is applied; file, line, commit and author are told; a good commit ends the incident."""
    good = repo.commit({"policies/a.yaml": policy("a"), "policies/b.yaml": policy("b")})
    house.sync()
    bad = repo.commit({
        "policies/a.yaml": policy("a", metric="f1"), "policies/b.yaml": policy("b").replace("task: binary", "task: bnary"),
        "policies/c.yaml": policy("c"),
    })  # fmt: skip
    house.sync()
    house.sync()
    assert house.store.names() == ["a", "b"]
    assert house.metric("a") == "accuracy"
    assert house.status.applied == good
    ((kind, sentence),) = house.incidents()
    assert kind == "git_commit_refused"
    for part in ("policies/b.yaml:5", "spec.task", bad[:10], "Ann <ann@example.org>", good[:10]):
        assert part in sentence
    refused = [e for e in house.store.events(limit=100) if e.kind == "policies.refused"]
    assert [e.data["problems"][0]["line"] for e in refused] == [5]
    assert len(house.store.pending_notices()) == 1
    repo.commit(
        {"policies/a.yaml": policy("a", metric="f1"), "policies/b.yaml": policy("b"), "policies/c.yaml": policy("c")}
    )
    house.sync()
    assert house.incidents() == []
    assert house.metric("a") == "f1"
    assert house.store.names() == ["a", "b", "c"]


def test_a_quiet_look_writes_nothing(house: House, repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the branch has not moved, no model is read and nothing is written; where it has, only changed policies are written."""
    files = {f"policies/m{i}.yaml": policy(f"m{i}") for i in range(40)}
    repo.commit(files)
    house.sync()
    written: list[str] = []
    commit = house.store.commit
    monkeypatch.setattr(house.store, "commit", lambda e, c: written.append(c.model.name) or commit(e, c))
    monkeypatch.setattr(house.store, "load_all", lambda: pytest.fail("a quiet look reads no model"))
    for _ in range(3):
        house.sync()
    assert written == []
    monkeypatch.undo()
    monkeypatch.setattr(house.store, "commit", lambda e, c: written.append(c.model.name) or commit(e, c))
    read: list[int] = []
    monkeypatch.setattr(house.source, "read", lambda files, r=house.source.read: read.append(len(files)) or r(files))
    repo.commit({**files, "policies/m7.yaml": policy("m7", metric="f1"), "README.md": "new"})
    house.restart()
    monkeypatch.setattr(house.source, "read", lambda files, r=house.source.read: read.append(len(files)) or r(files))
    house.sync()
    assert (written, read) == (["m7"], [1])


def test_a_deleted_file_leaves_its_model_serving_and_paused(house: House, repo: Repo) -> None:
    """The model is no longer followed: nothing is deleted, its cycles are paused with the reason; the file's return lifts that."""
    repo.commit({"policies/a.yaml": policy("a"), "policies/b.yaml": policy("b")})
    house.sync()
    gone = repo.commit({"policies/b.yaml": policy("b")})
    house.sync()
    a = house.store.load("a")
    assert a is not None
    assert a.origin is not None
    assert a.paused is not None
    assert gone[:10] in a.origin.lost
    assert "ratchet delete a" in a.paused.reason
    assert any(n.kind == "policy.lost" for n in house.store.pending_notices())
    repo.commit({"policies/a.yaml": policy("a"), "policies/b.yaml": policy("b")})
    house.sync()
    a = house.store.load("a")
    assert a is not None
    assert a.origin is not None
    assert (a.paused, a.origin.lost) == (None, "")


def test_a_person_s_pause_outlives_the_file_s_return(house: House, repo: Repo) -> None:
    """Only the pause that the loss itself made is lifted by the file's return."""
    repo.commit({"policies/a.yaml": policy("a"), "policies/b.yaml": policy("b")})
    house.sync()
    a = house.store.load("a")
    assert a is not None
    hold = Hold(by="ada", reason="audit", at=house.now)
    house.store.commit(house.epoch, Commit(model=replace(a, paused=hold)))
    repo.commit({"policies/b.yaml": policy("b")})
    house.sync()
    repo.commit({"policies/a.yaml": policy("a"), "policies/b.yaml": policy("b")})
    house.sync()
    a = house.store.load("a")
    assert a is not None
    assert a.paused == hold


def test_a_commit_that_deletes_every_policy_is_taken_for_a_mistake(house: House, repo: Repo) -> None:
    """A wiped folder, or one that was moved, pauses no model."""
    repo.commit({"policies/a.yaml": policy("a"), "policies/b.yaml": policy("b")})
    house.sync()
    for files in ({"policies/README": "empty"}, {"elsewhere/a.yaml": policy("a")}):
        repo.commit(files)
        house.sync()
        assert house.incidents()[0][0] == "git_commit_refused"
        assert all(state.paused is None for state in house.store.load_all())


def test_a_rewritten_history_is_followed_with_a_note(house: House, repo: Repo) -> None:
    """A force-push is followed like any commit, but the record and the status say that the history was rewritten."""
    first = repo.commit({"policies/flights.yaml": policy()})
    house.sync()
    other = repo.commit({"policies/flights.yaml": policy(metric="f1")}, parent=None)
    house.sync()
    assert (house.metric(), house.status.applied) == ("f1", other)
    assert "rewritten" in house.status.note
    assert first[:10] in house.status.note
    assert house.kinds().count("policies.rewritten") == 1
    repo.commit({"policies/flights.yaml": policy(metric="recall")})
    house.sync()
    assert house.status.note == ""
    assert house.kinds().count("policies.rewritten") == 1


def test_a_deleted_branch_keeps_the_last_good_state(house: House, repo: Repo) -> None:
    """The branch's deletion is an incident at once; what is in force stays; its return ends it."""
    commit = repo.commit({"policies/flights.yaml": policy()})
    house.sync()
    repo.git("update-ref", "-d", "refs/heads/main")
    house.sync()
    assert [kind for kind, _ in house.incidents()] == ["git_branch_gone"]
    flights = house.store.load("flights")
    assert flights is not None
    assert (flights.paused, house.status.applied) == (None, commit)
    repo.git("update-ref", "refs/heads/main", commit)
    house.sync()
    assert house.incidents() == []


def test_a_remote_that_is_away_is_unknown_and_after_a_time_an_incident(house: House, repo: Repo) -> None:
    """What is followed goes on under the old state; the incident opens after ten minutes and closes by itself."""
    repo.commit({"policies/flights.yaml": policy()})
    house.sync()
    repo.path.rename(repo.path.with_name("away"))
    house.sync()
    assert house.status.error
    assert house.incidents() == []
    house.sync(after=timedelta(minutes=11))
    assert [kind for kind, _ in house.incidents()] == ["git_unreachable"]
    assert house.metric() == "accuracy"
    repo.path.with_name("away").rename(repo.path)
    house.sync()
    assert (house.incidents(), house.status.error) == ([], "")


def test_an_outage_does_not_make_a_bad_commit_good(house: House, repo: Repo) -> None:
    """While the repository cannot be asked, what was wrong with it is not taken for mended."""
    repo.commit({"policies/flights.yaml": "junk"})
    house.sync()
    repo.path.rename(repo.path.with_name("away"))
    house.sync()
    assert [kind for kind, _ in house.incidents()] == ["git_commit_refused"]


# ---------------------------------------------------------------- owners
def test_what_was_applied_by_hand_is_not_taken_over_unasked(house: House, repo: Repo) -> None:
    """A file for a model that somebody applied by hand is refused with its owner, unless the file says that it adopts it."""
    by_hand = ModelPolicy.model_validate(_value(policy(metric="recall")))
    state, event = applying.new_model(by_hand, "/home/ada", "ada", house.now)
    house.store.create(house.epoch, state, [event])
    repo.commit({"policies/flights.yaml": policy()})
    house.sync()
    assert house.metric() == "recall"
    assert "applied by hand" in house.incidents()[0][1]
    repo.commit({"policies/flights.yaml": policy(extra=", annotations: {ratchet.dev/adopt: 'true'}")})
    house.sync()
    assert (house.metric(), house.incidents()) == ("accuracy", [])


def test_the_same_policy_applied_by_hand_is_adopted(house: House, repo: Repo) -> None:
    """Where hand and file agree, following changes nothing but the owner."""
    by_hand = ModelPolicy.model_validate(_value(policy()))
    state, event = applying.new_model(by_hand, "/home/ada", "ada", house.now)
    house.store.create(house.epoch, state, [event])
    repo.commit({"policies/flights.yaml": policy()})
    house.sync()
    flights = house.store.load("flights")
    assert flights is not None
    assert flights.origin is not None
    assert "policy.followed" in house.kinds()


def _value(text: str) -> object:
    from policies.documents import parse_document

    document, _ = parse_document(text.encode(), file="x")
    assert document is not None
    return document.value


def test_two_files_of_one_name_are_refused(house: House, repo: Repo) -> None:
    """A name that two files claim is nobody's, also when one of them is followed already."""
    repo.commit({"policies/a.yaml": policy("a")})
    house.sync()
    repo.commit({"policies/a.yaml": policy("a"), "policies/z.yaml": policy("a", metric="f1")})
    house.sync()
    assert "may stand in one file only" in house.incidents()[0][1]
    assert house.metric("a") == "accuracy"


def test_a_moved_file_keeps_its_model(house: House, repo: Repo) -> None:
    """A file that is renamed is the same model, and no cycle ends because of it."""
    repo.commit({"policies/a.yaml": policy("a")})
    house.sync()
    repo.commit({"policies/new/a.yaml": policy("a")})
    house.sync()
    a = house.store.load("a")
    assert a is not None
    assert a.origin is not None
    assert (a.origin.file, a.origin.lost, a.paused) == ("policies/new/a.yaml", "", None)


# ---------------------------------------------------------------- pinned files
def test_relative_paths_start_in_a_worktree_of_the_commit(house: House, repo: Repo) -> None:
    """The code folder is there as the commit has it, to the last byte, and read-only."""
    commit = repo.commit({"policies/own.yaml": OWN, **CODE})
    house.sync()
    own = house.store.load("own")
    assert own is not None
    assert own.origin is not None
    code = Path(own.policy_dir) / "../models/own"
    assert own.policy_dir == str(house.home / "worktrees" / commit / "policies")
    assert tree_id(code, like=own.origin.code) == own.origin.code == repo.git("rev-parse", f"{commit}:models/own")
    assert (code / "run.sh").stat().st_mode & 0o777 == 0o555
    assert code.stat().st_mode & 0o222 == 0


def test_a_moving_branch_leaves_a_cycle_its_commit_until_its_own_files_change(house: House, repo: Repo) -> None:
    """A commit that touches neither the policy nor its code changes nothing for an open cycle; one that changes the code ends it."""
    first = repo.commit({"policies/own.yaml": OWN, **CODE})
    house.sync()
    own = house.store.load("own")
    assert own is not None
    cycle = Cycle(
        model="own", number=1, phase=Phase.TRAINING, sentence="trains", cause="person: x", opened_at=house.now, phase_since=house.now
    )  # fmt: skip
    house.store.commit(house.epoch, Commit(model=replace(own, cycle=cycle, next_cycle=2)))
    repo.commit({"policies/own.yaml": OWN, **CODE, "README.md": "more"})
    house.sync()
    repo.commit({"policies/own.yaml": "# a remark\n" + OWN, **CODE, "README.md": "more"})
    house.sync()
    own = house.store.load("own")
    assert own is not None
    assert own.origin is not None
    assert (own.cycle, own.origin.pinned) == (cycle, first)
    house.follower.sweep()
    assert (house.home / "worktrees" / first).is_dir()
    changed = repo.commit(
        {"policies/own.yaml": "# a remark\n" + OWN, **CODE, "models/own/train.py": "def fit(): return 2\n"}
    )
    house.sync()
    own = house.store.load("own")
    assert own is not None
    assert own.origin is not None
    assert (own.cycle, own.origin.pinned) == (None, changed)
    assert "cycle.superseded" in house.kinds()
    _age(house.home / "worktrees" / first)
    house.follower.sweep()
    assert [path.name for path in (house.home / "worktrees").iterdir()] == [changed]


def _age(folder: Path) -> None:
    import os

    os.utime(folder, (0, 0))


def test_a_cleared_worktree_is_made_again_at_the_next_start(house: House, repo: Repo) -> None:
    """Whoever cleared the folder stops no model for longer than until the next start."""
    repo.commit({"policies/own.yaml": OWN, **CODE})
    house.sync()
    shutil.rmtree(house.home / "worktrees")
    house.restart()
    house.sync()
    own = house.store.load("own")
    assert own is not None
    assert (Path(own.policy_dir) / "../models/own/train.py").is_file()


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("../../outside", "stays inside the repository"),
        ("/opt/code", "must be a folder of the repository"),
        ("../nowhere", "is not in the commit"),
        ("../models/own/train.py", "must be a folder"),
        ("../link", "must not be a link"),
        ("../link/own", "over the link"),
    ],
)
def test_code_must_be_a_folder_of_the_commit(house: House, repo: Repo, path: str, rule: str) -> None:
    """A code path that leads out, nowhere or over a link is refused with its line."""
    text = policy("own", train=f"entrypoint: 'train:fit', code: {path}")
    repo.commit({"policies/own.yaml": text, **CODE, "@link": "models"})
    house.sync()
    assert house.store.names() == []
    assert rule in house.incidents()[0][1]
    assert "policies/own.yaml:11: spec.train.code" in house.incidents()[0][1]


# ---------------------------------------------------------------- crashes and rivals
class _Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("then", ["nothing", "bad", "good"])
def test_a_crash_in_the_middle_leaves_no_mixture(tmp_path: Path, repo: Repo, after: int, then: str) -> None:
    """Killed after any number of models, the next start finishes that commit before it looks at what came since."""
    house = House(repo, tmp_path / "home", open_store(f"sqlite:///{tmp_path}/state.db"))
    names = ("a", "b", "c", "d")
    repo.commit({f"policies/{name}.yaml": policy(name) for name in names})
    house.sync()
    repo.commit({f"policies/{name}.yaml": policy(name, metric="f1") for name in names})
    done, commit = [], house.store.commit

    def dies(epoch: int, change: Commit) -> object:
        if len(done) == after:
            raise _Killed
        done.append(change.model.name)
        return commit(epoch, change)

    house.store.commit = dies  # type: ignore[method-assign,assignment]
    if after < len(names):
        with pytest.raises(_Killed):
            house.sync()
    else:
        house.sync()
    house.store.commit = commit  # type: ignore[method-assign]
    last = {f"policies/{name}.yaml": policy(name, metric="recall") for name in names}
    if then != "nothing":
        repo.commit({**last, "policies/a.yaml": "junk"} if then == "bad" else last)
    house.restart()
    house.sync()
    assert {house.metric(name) for name in names} == {"recall" if then == "good" else "f1"}
    house.store.close()


def test_a_person_who_overtakes_is_not_overwritten(house: House, repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit by somebody else in between is read again, not lost."""
    repo.commit({"policies/a.yaml": policy("a")})
    house.sync()
    repo.commit({"policies/a.yaml": policy("a", metric="f1")})
    commit, left = house.store.commit, [2]

    def overtaken(epoch: int, change: Commit) -> object:
        if left[0]:
            left[0] -= 1
            raise ConflictError("row version")
        return commit(epoch, change)

    monkeypatch.setattr(house.store, "commit", overtaken)
    house.sync()
    assert house.metric("a") == "f1"


def test_a_model_that_is_held_refuses_a_commit_until_it_is_not(house: House, repo: Repo) -> None:
    """What depends on the models' state is tried again with the same commit."""
    store: Store = house.store
    repo.commit({"policies/a.yaml": policy("a")})
    house.sync()
    other = policy("a").replace("task: binary", "task: regression").replace("metric: accuracy", "metric: mae")
    a = store.load("a")
    assert a is not None
    from controller.state import Version, VersionStatus

    made = Version(
        model="a", number=1, digest="sha256:1", status=VersionStatus.QUARANTINED, created_at=house.now, cycle=1
    )
    store.commit(house.epoch, Commit(model=replace(a, versions={1: made}, next_version=2)))
    repo.commit({"policies/a.yaml": other, "policies/b.yaml": policy("b")})
    house.sync()
    assert store.names() == ["a"]
    assert "spec.task must stay" in house.incidents()[0][1]


def test_a_lost_status_file_loses_nothing(house: House, repo: Repo) -> None:
    """The status file and the copy of the repository are caches: without them the same commit is found to be in force."""
    repo.commit({"policies/own.yaml": OWN, **CODE})
    house.sync()
    before = house.store.load("own")
    shutil.rmtree(house.home / "policies.git")
    (house.home / "policies.json").unlink()
    house.restart()
    house.sync()
    assert house.store.load("own") == before
    assert house.status.refused == ()


def test_a_damaged_copy_is_thrown_away(house: House, repo: Repo) -> None:
    """A copy that cannot be read any more is fetched anew by itself."""
    repo.commit({"policies/a.yaml": policy("a")})
    house.sync()
    for path in (house.home / "policies.git").rglob("*.pack"):
        path.chmod(0o600)
        path.write_bytes(b"junk")
    repo.commit({"policies/a.yaml": policy("a", metric="f1")})
    for _ in range(6):
        house.sync()
    assert house.metric("a") == "f1"


def test_without_git_it_says_what_to_install(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the command is missing, the reason is said, and nothing else breaks."""
    monkeypatch.setenv("PATH", "/nowhere")
    house.sync()
    assert "apt-get install git" in house.status.error


def test_only_the_last_commits_are_fetched(house: House, repo: Repo) -> None:
    """A huge history costs no more than its end."""
    stream = b"".join(
        b"commit refs/heads/main\ncommitter Ann <a@x> %d +0000\ndata 1\nx\nM 100644 inline f%d\ndata 1\nx\n"
        % (i, i % 100)
        for i in range(3000)
    )
    subprocess.run(["git", "fast-import", "--quiet"], cwd=repo.path, input=stream, env=ENV, check=True)
    repo.commit({"policies/a.yaml": policy("a")})
    house.sync()
    count = subprocess.run(
        ["git", "rev-list", "--count", "refs/ratchet/tip"], cwd=house.home / "policies.git", env=ENV, capture_output=True, check=True
    )  # fmt: skip
    assert (house.store.names(), int(count.stdout)) == (["a"], 50)
