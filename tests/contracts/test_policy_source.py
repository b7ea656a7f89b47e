"""What every policy source must do, held against the fake and Git alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from git_repos import new_repo, source_of

from controller.sources.fake import FakeSource
from controller.sources.port import PathRefused, PolicySource, SourceAway, SourceGone

FILES = {"policies/a.yaml": b"a: 1\n", "policies/sub/b.yml": b"b: 1\n", "policies/notes.txt": b"x", "code/m.py": b"1\n"}


@dataclass
class Rig:
    source: PolicySource
    put: Callable[..., str]
    """Makes another revision of these files, upon the newest or with `parent=None` upon nothing; its id."""
    leave: Callable[[], None]
    """The source cannot be reached any more."""
    end: Callable[[], None]
    """What is followed is deleted."""


@pytest.fixture(params=["fake", "git"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    if request.param == "fake":
        fake = FakeSource(tmp_path)
        return Rig(fake, fake.put, lambda: setattr(fake, "away", True), lambda: setattr(fake, "gone", True))
    repo = new_repo(tmp_path / "repo.git")

    def put(files: Mapping[str, bytes], parent: str | None = "") -> str:
        return repo.commit(files, parent=parent)

    def leave() -> None:
        repo.path.rename(tmp_path / "gone.git")

    return Rig(source_of(repo, tmp_path / "home"), put, leave, lambda: repo.git("update-ref", "-d", "refs/heads/main"))  # type: ignore[arg-type,return-value]


def test_the_newest_revision_names_its_policies(rig: Rig) -> None:
    """Every document of the folder by its name, sorted, and nothing else; the same one is not handed over twice."""
    first = rig.put(FILES)
    found = rig.source.newest(None)
    assert found is not None
    assert (found.id, [file.file for file in found.files], found.problems) == (
        first,
        ["policies/a.yaml", "policies/sub/b.yml"],
        (),
    )
    assert list(rig.source.read(found.files)) == [b"a: 1\n", b"b: 1\n"]
    assert rig.source.newest(first) is None
    assert rig.source.at(first) == found
    assert rig.source.at("0" * 40) is None


def test_ids_say_whether_something_changed(rig: Rig) -> None:
    """A file or folder that is the same has the same id in the next revision; one that differs has another."""
    first, second = rig.put(FILES), rig.put({**FILES, "policies/a.yaml": b"a: 2\n"})
    one, two = rig.source.newest(None), rig.source.at(second)
    assert one == two
    assert one is not None
    third = rig.put({**FILES, "code/m.py": b"2\n"})
    then = rig.source.newest(second)
    assert then is not None
    assert then.files[1].id == one.files[1].id
    assert then.files[0].id != one.files[0].id
    pins = [rig.source.pin(revision, "policies/a.yaml", "../code") for revision in (first, second, third)]
    assert pins[0] == pins[1] != pins[2]
    assert pins[0].folder
    assert not rig.source.pin(third, "policies/a.yaml", "../code/m.py").folder


@pytest.mark.parametrize("path", ["../../x", "/etc", "../nowhere", "../code/../../x"])
def test_paths_that_lead_nowhere_are_refused(rig: Rig, path: str) -> None:
    """A path that leaves the source, or names nothing in it, is a rule for people to read."""
    first = rig.put(FILES)
    rig.source.newest(None)
    with pytest.raises(PathRefused):
        rig.source.pin(first, "policies/a.yaml", path)


def test_a_revision_is_checked_out_whole(rig: Rig) -> None:
    """Its files stand below the folders that were named before, under every revision its own, also a second time."""
    first, second = rig.put(FILES), rig.put({**FILES, "code/m.py": b"2\n"})
    rig.source.newest(None)
    for revision, expected in ((first, b"1\n"), (second, b"2\n"), (second, b"2\n")):
        rig.source.check_out(revision)
        folder = rig.source.folder(revision, "policies/sub/b.yml")
        assert folder.is_absolute()
        assert (folder / "../../code/m.py").read_bytes() == expected


def test_a_rewritten_history_is_noted(rig: Rig) -> None:
    """From a revision to one that follows it there is nothing to say; to one that does not there is."""
    first = rig.put(FILES)
    rig.source.newest(None)
    second = rig.put({**FILES, "policies/a.yaml": b"a: 2\n"})
    rig.source.newest(first)
    assert rig.source.note(second, first) == ""
    other = rig.put({**FILES, "policies/a.yaml": b"a: 3\n"}, parent=None)
    rig.source.newest(second)
    assert rig.source.note(other, second)


def test_away_and_gone_are_two_things(rig: Rig) -> None:
    """What was deleted is known to be gone; what cannot be asked is not known at all."""
    first = rig.put(FILES)
    rig.source.newest(None)
    rig.end()
    with pytest.raises(SourceGone):
        rig.source.newest(first)
    rig.leave()
    with pytest.raises(SourceAway):
        rig.source.newest(first)
