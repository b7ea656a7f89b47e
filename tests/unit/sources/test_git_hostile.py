"""Whoever may push may push anything: no tree, name, link or size leads out, runs something, or costs more than its bounds."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from git_repos import House, Repo, new_repo, policy

from controller.sources.git.access import Access, AccessError, checked, read_secrets
from controller.sources.git.command import GitCommand, GitFailed, sayable

OWN = policy("own", train="entrypoint: 'train:fit', code: ../code")
CODE = {"code/train.py": "def fit(): ...\n"}


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return new_repo(tmp_path / "repo.git")


@pytest.fixture
def house(repo: Repo, tmp_path: Path) -> House:
    return House(repo, tmp_path / "home")


def refusal(house: House) -> str:
    ((kind, sentence),) = house.incidents()
    assert kind == "git_commit_refused"
    assert house.store.names() == []
    return sentence


def with_policies(repo: Repo, *lines: tuple[str, str, str, str | bytes]) -> None:
    """A commit whose folder `policies` holds a good policy and these entries, as they are."""
    inner = repo.tree(("100644", "blob", repo.blob(policy()), "good.yaml"), *lines)
    repo.commit_tree(repo.tree(("040000", "tree", inner, "policies")))


@pytest.mark.parametrize("name", ["..", ".", ".git", ".GIT", "git~1"])
def test_names_that_lead_elsewhere_are_refused_when_fetched(house: House, repo: Repo, name: str) -> None:
    """A tree with `..` or `.git` in it is not even kept: Git's own checks are on, and nothing of it reaches the disk."""
    inner = repo.tree(("100644", "blob", repo.blob("x"), "evil.yaml"))
    with_policies(repo, ("040000", "tree", inner, name))
    house.sync()
    assert refusal(house)
    assert not (house.home / "worktrees").exists()
    house.sync()
    assert house.status.error == ""


def test_a_link_in_place_of_a_policy_is_refused(house: House, repo: Repo) -> None:
    """A link is not followed, wherever it leads."""
    with_policies(repo, ("120000", "blob", repo.blob("/etc/passwd"), "link.yaml"))
    house.sync()
    assert "policies/link.yaml: is a link" in refusal(house)


def test_a_submodule_among_the_policies_is_refused(house: House, repo: Repo) -> None:
    """Another repository is never fetched, whatever .gitmodules says; the refusal says what to do."""
    evil = '[submodule "x"]\n\tpath = x\n\turl = ext::sh -c touch%20/tmp/ratchet-pwned\n'
    inner = repo.tree(("100644", "blob", repo.blob(policy()), "good.yaml"), ("160000", "commit", "1" * 40, "sub"))
    repo.commit_tree(
        repo.tree(("040000", "tree", inner, "policies"), ("100644", "blob", repo.blob(evil), ".gitmodules"))
    )
    house.sync()
    assert refusal(house)
    assert not Path("/tmp/ratchet-pwned").exists()
    repo.commit_tree(repo.tree(("040000", "tree", inner, "policies")))
    house.sync()
    assert "policies/sub: is a submodule" in refusal(house)


def test_code_that_holds_a_submodule_is_refused_and_another_s_is_left_out(house: House, repo: Repo) -> None:
    """A submodule elsewhere is an empty place; in what a policy names it is refused."""
    code = repo.tree(("100644", "blob", repo.blob("x"), "train.py"), ("160000", "commit", "1" * 40, "dep"))
    clean = repo.tree(("100644", "blob", repo.blob("x"), "train.py"))
    inner = repo.tree(("100644", "blob", repo.blob(OWN), "own.yaml"))
    repo.commit_tree(repo.tree(("040000", "tree", inner, "policies"), ("040000", "tree", code, "code")))
    house.sync()
    assert "code/dep" in refusal(house)
    repo.commit_tree(repo.tree(
        ("040000", "tree", inner, "policies"), ("040000", "tree", clean, "code"), ("160000", "commit", "1" * 40, "dep")
    ))  # fmt: skip
    house.sync()
    own = house.store.load("own")
    assert own is not None
    assert sorted(p.name for p in Path(own.policy_dir).parent.iterdir()) == ["code", "policies"]


@pytest.mark.parametrize(
    ("links", "rule"),
    [
        ({"@code/out": "/etc"}, "leads out"),
        ({"@code/out": "../../x"}, "leads out"),
        ({"@code/a": "b", "@code/b": "a"}, "leads nowhere"),
        ({"@code/gone": "nothing"}, "leads nowhere"),
        ({"@code/deep/a": "..", "@code/out": "deep/a/../.."}, "leads out"),
    ],
)
def test_a_link_out_of_the_worktree_is_refused(house: House, repo: Repo, links: dict[str, str], rule: str) -> None:
    """No link of a worktree leads out of it, not over other links either."""
    deep = {"code/deep/f.py": "x"} if "@code/deep/a" in links else {}
    repo.commit({"policies/own.yaml": OWN, **CODE, **deep, **links})
    house.sync()
    assert rule in refusal(house)
    assert list((house.home / "worktrees").iterdir()) == []


def test_links_inside_are_kept(house: House, repo: Repo) -> None:
    """A link within the repository is a link in the worktree, and does not make it unclean."""
    repo.commit(
        {"policies/own.yaml": OWN, **CODE, "@code/alias.py": "train.py", "@code/up": "../shared", "shared/a.py": "1"}
    )
    house.sync()
    own = house.store.load("own")
    assert own is not None
    assert os.readlink(Path(own.policy_dir) / "../code/alias.py") == "train.py"


def test_a_huge_file_is_not_read(house: House, repo: Repo) -> None:
    """A policy of 100 MB is judged by its size alone, and so is what else a worktree would hold."""
    with_policies(repo, ("100644", "blob", repo.blob(b"a" * 100_000_000), "huge.yaml"))
    house.sync()
    assert "huge.yaml: a policy file is at most" in refusal(house)


def test_a_fetch_is_bounded_in_size(repo: Repo, tmp_path: Path) -> None:
    """What is larger than git_max_mb is stopped while it comes, said on that commit, and not fetched again every minute."""
    house = House(repo, tmp_path / "home", bytes_max=1 << 20)
    with_policies(repo, ("100644", "blob", repo.blob(os.urandom(30 << 20)), "data.bin"))
    house.sync()
    assert "git_max_mb" in refusal(house)
    assert sum(f.stat().st_size for f in house.home.rglob("*") if f.is_file()) < 8 << 20
    fetched: list[int] = []
    house.source._mirror.fetch = lambda: fetched.append(1)  # type: ignore[method-assign,assignment,return-value]
    house.sync()
    assert fetched == []
    repo.commit({"policies/flights.yaml": policy()}, parent=None)
    house.restart()
    house.sync()
    assert house.store.names() == ["flights"]


def test_a_tree_of_trees_is_bounded(repo: Repo, tmp_path: Path) -> None:
    """Few objects may name billions of files; listing them ends at git_max_files."""
    house = House(repo, tmp_path / "home", files_max=10_000)
    blob = repo.blob("x")
    tree = repo.tree(*(("100644", "blob", blob, f"f{i}.yaml") for i in range(10)))
    for _ in range(9):
        tree = repo.tree(*(("040000", "tree", tree, f"d{i}") for i in range(10)))
    repo.commit_tree(repo.tree(("040000", "tree", tree, "policies")))
    house.sync()
    assert "git_max_files" in refusal(house)


def test_ten_thousand_files_are_read_in_one_go(house: House, repo: Repo) -> None:
    """Many files cost a process, not a process each; those that are no policies cost nothing."""
    blob = repo.blob("x")
    many = [("100644", "blob", blob, f"n{i}.txt") for i in range(10_000)]
    with_policies(repo, *many)
    house.sync()
    assert house.store.names() == ["flights"]


@pytest.mark.parametrize(
    "name", [b"caf\xe9.yaml", "new\nline.yaml", "\u202egpj.yaml", "a\\b.yaml", "x" * 252 + ".yaml"]
)
def test_odd_names_of_policies_are_refused_and_printable(house: House, repo: Repo, name: str | bytes) -> None:
    """A name that cannot be printed or kept is refused in one printable line."""
    with_policies(repo, ("100644", "blob", repo.blob(policy("odd")), name))
    house.sync()
    assert refusal(house).isprintable()


def test_odd_names_elsewhere_are_kept_as_they_are(house: House, repo: Repo) -> None:
    """What is no policy may be called anything that a file system takes, and differ in case alone."""
    code = repo.tree(
        *(("100644", "blob", repo.blob("x"), n) for n in (b"caf\xe9", "new\nline", "A.py", "a.py", "train.py"))
    )
    inner = repo.tree(("100644", "blob", repo.blob(OWN), "own.yaml"))
    repo.commit_tree(repo.tree(("040000", "tree", inner, "policies"), ("040000", "tree", code, "code")))
    house.sync()
    own = house.store.load("own")
    assert own is not None
    assert len(os.listdir(os.fsencode(Path(own.policy_dir) / "../code"))) == 5


def test_nothing_of_the_repository_runs(
    house: House, repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No hook, filter, attribute or variable starts a program: neither from the repository nor from the daemon's user."""
    ran = tmp_path / "ran"
    hooks = house.home / "policies.git" / "hooks"
    config = tmp_path / "gitconfig"
    config.write_text(
        f'[filter "x"]\n\tsmudge = touch {ran}\n[core]\n\tfsmonitor = touch {ran}\n\tsshCommand = touch {ran}\n'
        f"[credential]\n\thelper = !touch {ran}\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", f"touch {ran}")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.fsmonitor")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", f"touch {ran}")
    repo.commit({"policies/own.yaml": OWN, **CODE, ".gitattributes": "* filter=x\n"})
    house.sync()
    hooks.mkdir(parents=True, exist_ok=True)
    for hook in ("reference-transaction", "post-checkout"):
        (hooks / hook).write_text(f"#!/bin/sh\ntouch {ran}\n")
        (hooks / hook).chmod(0o755)
    repo.commit({"policies/own.yaml": OWN, "code/train.py": "2", ".gitattributes": "* filter=x\n"})
    house.sync()
    assert house.store.names() == ["own"]
    assert not ran.exists()


def test_a_call_that_hangs_is_stopped_with_all_it_started(tmp_path: Path) -> None:
    """A transport that never answers ends with its call, in time, and so does what it started."""
    slow = tmp_path / "bin"
    slow.mkdir()
    (slow / "ssh").write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 300\n")
    (slow / "ssh").chmod(0o755)
    key = tmp_path / "key"
    access = Access(url="git@localhost:x.git", branch="main", ssh_key=key, known_hosts=key)
    git = GitCommand(checked(access), tmp_path / "git")
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{slow}:{before}"
    try:
        with pytest.raises(GitFailed, match="took longer than 1 s"):
            git.run("ls-remote", "--", access.url, timeout_s=1)
    finally:
        os.environ["PATH"] = before
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 20
    while _lives(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _lives(pid)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("ext::sh -c id", "plain URL"), ("ext::sh", "plain URL"), ("--upload-pack=id", "plain URL"), ("/srv/models.git", "must start with"),
        ("file:///srv/models.git", "git_protocols"), ("http://git.example.org/x", "git_protocols"), ("ftp://x/y", "must start with"),
        ("https://ann:hunter2@git.example.org/x", "must not hold"), ("https://token@git.example.org/x", "must not hold"),
        ("https://git.example.org", "must name a repository"), ("https://git.example.org/x?token=hunter2", "must name a repository"),
        ("https://git.example.org/\x1b[31m", "plain URL"), ("ssh://git@git.example.org/x", "git_known_hosts_file"),
        ("ssh://-oProxyCommand=id/x", "does not start with"), ("git@git.example.org:x.git", "git_known_hosts_file"),
    ],
)  # fmt: skip
def test_addresses_that_may_not_be_used(url: str, rule: str) -> None:
    """Only plain addresses of the allowed kinds, without a secret in them; what is refused is not repeated."""
    with pytest.raises(AccessError, match=rule) as error:
        checked(Access(url=url, branch="main"))
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("branch", ["-x", "a..b", "refs/heads/../x", "a b", "", "x.lock", "a/", "a:b", "+a"])
def test_a_branch_is_a_plain_name(branch: str) -> None:
    """Nothing that Git would take for an option, a range or a refspec."""
    with pytest.raises(AccessError, match="git_branch"):
        checked(Access(url="https://git.example.org/x", branch=branch))


@pytest.mark.parametrize("text", ["", "hunter2", "password=hunter2", "token=", "secret=hunter2", "username=ann"])
def test_a_credentials_file_that_is_none_is_refused_unseen(tmp_path: Path, text: str) -> None:
    """What is wrong with it is said; what stands in it is not."""
    file = tmp_path / "credentials"
    file.write_text(text)
    with pytest.raises(AccessError, match="git_credentials_file") as error:
        read_secrets(file)
    assert "hunter2" not in str(error.value)


def test_what_a_server_says_is_one_bounded_line(tmp_path: Path) -> None:
    """Escapes, long texts and addresses with names in them do not reach a log."""
    access = Access(url="https://git.example.org/x", branch="main")
    said = sayable("remote: \x1b[31mred\nfatal: https://ann:hunter2@host/x " + "y" * 5000, access)
    assert said.isprintable()
    assert len(said) < 500
    assert "hunter2" not in said


def test_an_endless_answer_is_cut(repo: Repo, tmp_path: Path) -> None:
    """No call answers more than it is allowed."""
    git = GitCommand(checked(Access(url=repo.url, branch="main", protocols=("file",))), repo.path)
    blob = repo.blob(b"x" * 100_000)
    with pytest.raises(GitFailed, match="more than 1,000 bytes"):
        git.run("cat-file", "blob", blob, output_max=1000)
