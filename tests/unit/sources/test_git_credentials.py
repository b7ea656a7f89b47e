"""Over HTTP with a password, and what becomes of that password: it reaches its server, and nothing else."""

from __future__ import annotations

import base64
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from git_repos import House, Repo, new_repo, policy
from servers import need
from servers.git_http import BACKEND, GitHttp, serving_git
from servers.sshd import running_sshd

from controller.sources.git.access import Access, checked
from controller.sources.git.mirror import Limits, Mirror
from controller.sources.git.source import GitSource

SECRET = "hunter2-Z8kq/+=x"


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return new_repo(tmp_path / "server" / "models.git")


@pytest.fixture
def server(repo: Repo) -> Iterator[GitHttp]:
    need(str(BACKEND), "git")
    with serving_git(repo.path.parent, "bot", SECRET) as running:
        yield running


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    file = tmp_path / "credentials"
    file.write_text(f"# of the bot\nusername=bot\npassword={SECRET}\n")
    file.chmod(0o600)
    return file


def over_http(house: House, server: GitHttp, credentials: Path | None, **limits: float) -> House:
    url = server.url("models.git")
    access = checked(Access(url=url, branch="main", credentials=credentials, protocols=("http",)))
    mirror = Mirror(access, house.home / "policies.git", Limits(**limits))  # type: ignore[arg-type]
    house.source = GitSource(mirror, house.home, "policies")
    house.follower._source = house.source
    return house


def everything_said(house: House, captured: str) -> str:
    """All that was written, told or recorded, as one text."""
    files = [f.read_bytes().decode("utf-8", "replace") for f in house.home.rglob("*") if f.is_file()]
    events = [f"{e.sentence} {e.data}" for e in house.store.events(limit=10_000)]
    told = [n.text for n in house.store.pending_notices()] + [i.sentence for i in house.store.incidents()]
    return "\n".join([*files, *events, *told, repr(house.status), captured])


FORMS = (SECRET, SECRET.replace("/", "%2F"), base64.b64encode(f"bot:{SECRET}".encode()).decode())


def watched_processes(stop: threading.Event, seen: set[str]) -> None:
    """Command lines and environments of every process, as anyone of the same user may read them."""
    while not stop.is_set():
        for entry in os.scandir("/proc"):
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                for name in ("cmdline", "environ"):
                    try:
                        text = Path(entry.path, name).read_bytes().decode("utf-8", "replace")
                    except OSError:
                        continue
                    if any(form in text for form in FORMS):
                        seen.add(text)
        time.sleep(0.002)


def test_a_password_from_its_file_reaches_the_server_and_nothing_else(
    repo: Repo, server: GitHttp, credentials: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It opens the repository, and stands in no file, log, record, command line or environment."""
    repo.commit({"policies/flights.yaml": policy()})
    house = over_http(House(repo, tmp_path / "home"), server, credentials)
    stop, seen = threading.Event(), set[str]()
    watcher = threading.Thread(target=watched_processes, args=(stop, seen))
    watcher.start()
    house.sync()
    repo.commit({"policies/flights.yaml": policy(metric="f1")})
    house.sync()
    stop.set()
    watcher.join()
    assert house.metric() == "f1"
    assert any(FORMS[2] in sent for _, sent in server.seen)
    said = everything_said(house, "".join(capfd.readouterr()))
    assert not any(form in said for form in FORMS)
    assert seen == set()


def test_a_wrong_password_is_said_without_it(
    repo: Repo, server: GitHttp, credentials: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A refused password is an error that names the repository; neither password nor name is in it, and nothing is asked on a terminal."""
    server.password = "another"
    repo.commit({"policies/flights.yaml": policy()})
    house = over_http(House(repo, tmp_path / "home"), server, credentials)
    house.sync()
    assert "Authentication failed" in house.status.error
    assert not any(form in everything_said(house, "".join(capfd.readouterr())) for form in FORMS)


def test_without_credentials_nobody_is_asked(repo: Repo, server: GitHttp, tmp_path: Path) -> None:
    """A server that wants a password, and no file that has one: said at once."""
    repo.commit({"policies/flights.yaml": policy()})
    house = over_http(House(repo, tmp_path / "home"), server, None)
    house.sync()
    assert house.status.error


def test_a_redirect_elsewhere_learns_nothing(repo: Repo, server: GitHttp, credentials: Path, tmp_path: Path) -> None:
    """A server that sends us on is not followed, so that another one never sees the password."""
    repo.commit({"policies/flights.yaml": policy()})
    with serving_git(repo.path.parent, "bot", SECRET) as thief:
        server.redirect = f"http://127.0.0.1:{thief.port}"
        house = over_http(House(repo, tmp_path / "home"), server, credentials)
        house.sync()
        assert thief.seen == []
    assert house.store.names() == []
    assert house.status.error


def test_a_server_that_hangs_holds_nobody(repo: Repo, server: GitHttp, credentials: Path, tmp_path: Path) -> None:
    """A look ends at its time limit, and a stopping daemon ends it at once."""
    repo.commit({"policies/flights.yaml": policy()})
    server.hang = threading.Event()
    house = over_http(House(repo, tmp_path / "home"), server, credentials, fetch_s=1.0)
    house.sync()
    assert "took longer than 1 s" in house.status.error
    house = over_http(house, server, credentials, fetch_s=600.0)
    look = threading.Thread(target=house.sync)
    look.start()
    while not house.source._mirror.git._running:
        time.sleep(0.01)
    house.follower.close()
    look.join(20)
    assert not look.is_alive()


def test_a_token_needs_no_name(repo: Repo, server: GitHttp, tmp_path: Path) -> None:
    """`token=…` alone is what forges hand out."""
    server.user = "x-access-token"
    file = tmp_path / "token"
    file.write_text(f"token={SECRET}\n")
    repo.commit({"policies/flights.yaml": policy()})
    house = over_http(House(repo, tmp_path / "home"), server, file)
    house.sync()
    assert house.store.names() == ["flights"]


# ---------------------------------------------------------------- ssh
def over_ssh(house: House, url: str, key: Path, known_hosts: Path) -> House:
    access = checked(Access(url=url, branch="main", ssh_key=key, known_hosts=known_hosts))
    house.source = GitSource(Mirror(access, house.home / "policies.git", Limits()), house.home, "policies")
    house.follower._source = house.source
    return house


def test_a_key_file_opens_a_repository_over_ssh(repo: Repo, tmp_path: Path) -> None:
    """The key of the setting is used, and no other; a host that is not among the known ones is not spoken to."""
    repo.commit({"policies/flights.yaml": policy()})
    folder = tmp_path / "ssh"
    folder.mkdir()
    with running_sshd(folder) as server:
        house = over_ssh(House(repo, tmp_path / "home"), server.url(repo.path), server.key, server.known_hosts)
        house.sync()
        assert (house.status.error, house.store.names()) == ("", ["flights"])
        stranger = tmp_path / "strangers"
        stranger.write_text("")
        other = over_ssh(House(repo, tmp_path / "home2"), server.url(repo.path), server.key, stranger)
        other.sync()
        assert "Host key verification failed" in other.status.error
        wrong = over_ssh(House(repo, tmp_path / "home3"), server.url(repo.path), folder / "host", server.known_hosts)
        wrong.sync()
        assert "Permission denied" in wrong.status.error
