"""A daemon that follows a Git server and writes to it: from a push to a served model and back, through the real command line."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_rig import Rig, write_policy, write_rows
from servers import need
from servers.git_http import BACKEND, GitHttp, serving_git

ENV = {
    "PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "Ann", "GIT_AUTHOR_EMAIL": "ann@example.org", "GIT_COMMITTER_NAME": "Ann",
    "GIT_COMMITTER_EMAIL": "ann@example.org",
}  # fmt: skip
SECRET = "hunter2-live"
PATIENCE_S = 240.0
CODE = """
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

C = 1.0

def fit(frame, target, *, features, task, classes, parameters, seed, out_dir):
    numbers = ["x", "z"]
    from sklearn.compose import ColumnTransformer
    chosen = ColumnTransformer([("numbers", StandardScaler(), numbers)])
    return make_pipeline(chosen, LogisticRegression(C=C)).fit(frame, target)
"""

pytestmark = pytest.mark.slow


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def push(work: Path, message: str) -> str:
    git(work, "add", "-A")
    git(work, "commit", "-qm", message)
    git(work, "push", "-q", "origin", "HEAD:main")
    return git(work, "rev-parse", "HEAD")


def repository(root: Path, name: str, work: Path) -> Path:
    """A bare repository and a clone of it."""
    git(root, "init", "-q", "--bare", "-b", "main", name)
    git(root, "--git-dir", name, "config", "http.receivepack", "true")
    work.mkdir()
    git(work, "init", "-q", "-b", "main")
    git(work, "remote", "add", "origin", str(root / name))
    return work


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitHttp]:
    need(str(BACKEND), "git")
    (tmp_path / "server").mkdir()
    with serving_git(tmp_path / "server", "bot", SECRET) as running:
        yield running


@pytest.fixture
def rig(server: GitHttp, tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path / "home")
    credentials = tmp_path / "credentials"
    credentials.write_text(f"username=bot\npassword={SECRET}\n")
    rig.env |= {
        "RATCHET_GIT_URL": server.url("models.git"), "RATCHET_GIT_PATH": "policies", "RATCHET_GIT_INTERVAL_S": "2",
        "RATCHET_GIT_PROTOCOLS": "http", "RATCHET_GIT_CREDENTIALS_FILE": str(credentials),
        "RATCHET_GITOPS_URL": server.url("deploy.git"), "RATCHET_GITOPS_PATH": "values/{model}.yaml",
        "RATCHET_GITOPS_KEY": "image.digest", "RATCHET_GITOPS_CREDENTIALS_FILE": str(credentials),
    }  # fmt: skip
    yield rig
    rig.stop()


def test_from_a_push_to_a_served_model_and_back(rig: Rig, server: GitHttp, tmp_path: Path) -> None:
    """A pushed policy is trained with the code of its commit, served, and its digest written back; hands are off; secrets stay."""
    work = repository(server.root, "models.git", tmp_path / "work")
    (work / "policies").mkdir()
    (work / "code").mkdir()
    write_rows(work / "policies" / "rows.csv")
    write_policy(work / "policies" / "small.yaml")
    text = (work / "policies" / "small.yaml").read_text()
    text = text.replace("{component: sklearn.logistic_regression}", "{entrypoint: 'own_training:fit', code: ../code}")
    (work / "policies" / "small.yaml").write_text(text)
    (work / "code" / "own_training.py").write_text(CODE)
    first = push(work, "a model")
    values = repository(server.root, "deploy.git", tmp_path / "deploy")
    (values / "values").mkdir()
    (values / "values" / "small.yaml").write_text(
        "# ours\nimage:\n  repository: registry/small\n  digest: none  # Ratchet's\n"
    )
    push(values, "values")

    rig.start()
    rig.until(lambda: "small" in rig.ratchet("get", "models"), "the policy to be followed")
    rig.until(lambda: rig.serves(1), "v1 to serve", PATIENCE_S)
    (version,) = json.loads(rig.ratchet("get", "versions", "small", "-o", "json"))["versions"]
    assert (version["code_commit"], version["policy_commit"]) == (first, first)
    assert version["policy_file"] == "policies/small.yaml"
    rig.until(lambda: version["digest"] in _stands(values), "the digest to be written back")
    assert _stands(values).startswith("# ours\n")
    assert "# Ratchet's" in _stands(values)
    told = rig.ratchet("explain", "small")
    assert first[:10] in told
    assert "values/small.yaml" in told
    _image_names_both_commits(rig, version["digest"], first)

    assert "is followed from" in rig.ratchet("apply", "-y", str(work / "policies" / "small.yaml"), code=1)
    worktree, clean = (
        rig.home / "git" / "worktrees" / first,
        ["code", "own_training.py", "policies", "rows.csv", "small.yaml"],
    )
    assert sorted(p.name for p in worktree.rglob("*")) == clean

    (work / "policies" / "small.yaml").write_text(text.replace("task: binary", "task: bnary"))
    bad = push(work, "a mistake")
    rig.until(lambda: bad[:10] in rig.ratchet("get", "incidents", "-o", "json"), "the incident of the bad commit")
    assert "refused" in rig.ratchet("get", "sources")
    assert rig.model()["champion"] == 1
    (work / "policies" / "small.yaml").write_text(text)
    (work / "code" / "own_training.py").write_text(CODE.replace("C = 1.0", "C = 0.01"))
    second = push(work, "better code")
    rig.until(lambda: rig.model()["origin"]["code_commit"] == second, "the new code to be followed")
    rig.ratchet("trigger", "small", "-r", "new code", "-y")
    rig.until(lambda: rig.serves(2), "v2 to serve", PATIENCE_S)
    assert rig.model()["versions"][1]["code_commit"] == second
    rig.until(lambda: rig.model()["versions"][1]["digest"] in _stands(values), "the second digest to be written back")
    rig.ratchet("rollback", "small", "-r", "as a drill", "-y")
    rig.until(lambda: version["digest"] in _stands(values), "the rollback to be written back")
    assert "goes back to v1" in git(values, "log", "-1", "--format=%s", "origin/main")
    assert sorted(p.name for p in worktree.rglob("*")) == clean
    said = [path for path in rig.home.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert said == []


def _stands(values: Path) -> str:
    git(values, "fetch", "-q", "origin")
    return git(values, "show", "origin/main:values/small.yaml")


def _image_names_both_commits(rig: Rig, digest: str, commit: str) -> None:
    blobs = rig.home / "images" / "blobs" / "sha256"
    annotations = json.loads((blobs / digest.removeprefix("sha256:")).read_bytes())["annotations"]
    assert annotations["org.opencontainers.image.revision"] == commit
    assert annotations["dev.ratchet.policy-commit"] == commit
    assert annotations["org.opencontainers.image.source"].endswith("/models.git")
