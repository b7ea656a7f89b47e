"""A second version of a 50 MB model in the registry: our layers appended and pushed, against `docker build` and `docker push`."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.harness import Bench, Sides
from deployers import package
from pipelines.jobs.port import JobContext

MODEL_BYTES, BASE_BYTES = 50_000_000, 100_000_000
WANTED = 10.0
DOCKERFILE = """\
FROM {base}
ENV PYTHONPATH=/app
COPY serving /app/serving
COPY model /model
ENTRYPOINT ["python", "-m", "serving.runtime", "--model-dir", "/model"]
"""


@contextmanager
def _setup(folder: Path) -> Iterator[Sides]:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    from servers.docker import docker_server
    from servers.registry import registry

    with registry(folder / "registry") as kept, docker_server() as engine:
        docker = _docker(engine.url)
        base = f"{kept.host}/base:1"
        _make_base(folder / "base.tar", docker, base)
        rival = _Rival(folder / "context", docker, f"{kept.host}/rival", base)
        ours = _Ours(folder, f"{kept.host}/models", base)
        for side in (rival, ours):
            side.push()  # the first version, with all that stays
        yield Sides(
            ours=ours.push,
            peer=rival.push,
            note=lambda _: f"{ours.sent / 1e6:.1f} MB sent; aim: {WANTED:g} times faster",
        )


def _docker(url: str) -> Any:
    def run(*words: str) -> None:
        env = {**os.environ, "DOCKER_HOST": url, "DOCKER_BUILDKIT": "0"}
        subprocess.run(["docker", *words], env=env, check=True, capture_output=True)

    return run


def _make_base(path: Path, docker: Any, name: str) -> None:
    """An image of one large layer, which brings what serving needs (as far as anybody looks)."""
    content = path.with_suffix(".bin")
    content.write_bytes(os.urandom(BASE_BYTES))
    with tarfile.open(path, "w") as tar:
        tar.add(content, "usr/lib/base")
    docker("import", "--change", "LABEL dev.ratchet.requirements=included", str(path), name)
    docker("push", name)


class _Ours:
    """The packaging job as its worker runs it: with everything imported."""

    def __init__(self, folder: Path, registry: str, base: str) -> None:
        self.folder, self.number, self.sent = folder, 0, 0
        self.delivery = {"builder": "registry", "registry": registry}
        self.base = base

    def push(self) -> float:
        self.number += 1
        model = _model(self.folder / f"model-{self.number}")
        inputs = {
            "home": str(self.folder / "home"), "model": "late", "number": self.number, "model_dir": str(model),
            "annotations": {}, "base": self.base, "delivery": self.delivery,
        }  # fmt: skip
        context = JobContext(job_id=f"late-{self.number}", workdir=self.folder, report_path=self.folder / "report.json")
        began = time.monotonic()
        self.sent = package.run(inputs, context)["bytes_sent"]
        return time.monotonic() - began


class _Rival:
    """A Dockerfile whose layers below the model are in the Engine's cache."""

    def __init__(self, context: Path, docker: Any, name: str, base: str) -> None:
        self.context, self.docker, self.name, self.number = context, docker, name, 0
        (context / "serving").mkdir(parents=True)
        for path in package.serving_source().glob("*.py"):
            (context / "serving" / path.name).write_bytes(path.read_bytes())
        (context / "Dockerfile").write_text(DOCKERFILE.format(base=base))

    def push(self) -> float:
        self.number += 1
        _model(self.context / "model")
        tag = f"{self.name}:v{self.number}"
        began = time.monotonic()
        self.docker("build", "-q", "-t", tag, str(self.context))
        self.docker("push", "-q", tag)
        return time.monotonic() - began


def _model(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.json").write_text("{}")
    (folder / "weights").write_bytes(os.urandom(MODEL_BYTES))
    return folder


BENCH = Bench(
    name="image_push", unit="s", better="lower", peer="docker build and docker push, Engine 20.10", runs=5, setup=_setup
)  # fmt: skip
