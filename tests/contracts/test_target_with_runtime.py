"""The local target with real images: what `deployers.package` unpacks is served by its own code, logged, shadowed and replaced."""

from __future__ import annotations

import json
import shutil
import signal
import time
from os import kill
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from target_rigs import LIMITS, Hammer, LocalRig, RealRig, plan, settle, wait_until

from deployers import package
from deployers.local import LocalTarget
from pipelines.jobs.port import JobContext

OWNER = """
import numpy as np

class Model:
    def predict(self, frame):
        return np.full(len(frame), {score})

def load(model_dir):
    return Model()
"""


def real_image(
    home: Path, folder: Path, number: int, score: float, placement: str = "image", base: str | None = None
) -> str:
    """Digest of a packaged and unpacked image whose model always answers `score`."""
    model = folder / f"model {number}"
    (model / "code").mkdir(parents=True)
    (model / "code" / "constant.py").write_text(OWNER.format(score=score))
    described = {
        "format": 1, "model": "flights", "task": "binary", "label": "late", "threshold": 0.5, "classes": [0, 1],
        "component": "entrypoint", "parameters": {}, "features": [{"name": "x", "kind": "numeric"}],
        "predictor": {"kind": "entrypoint", "module": "constant", "code": "code"}, "requirements": {},
    }  # fmt: skip
    (model / "model.json").write_text(json.dumps(described, sort_keys=True))
    inputs = {
        "home": str(home),
        "model": "flights",
        "number": number,
        "model_dir": str(model),
        "annotations": {},
        "base": base,
        "placement": placement,
    }
    packaged = package.run(inputs, JobContext(job_id="p", workdir=folder, report_path=folder / "report.json"))
    return str(packaged["digest"])


def logged(home: Path) -> list[tuple[str, str, int]]:
    """(id, role, version) of every row in the prediction log."""
    rows = []
    folder = home / "log" / "flights" / "predictions"
    for journal in folder.glob("*.jsonl"):
        if not journal.with_suffix(".parquet").exists():
            rows += [json.loads(line) for line in journal.read_text().splitlines()]
    for segment in folder.glob("*.parquet"):
        rows += pq.read_table(segment).to_pylist()
    return sorted((row["id"], row["role"], row["version"]) for row in rows)


@pytest.mark.slow
def test_real_images_are_served_mirrored_logged_and_replaced(real: RealRig, tmp_path: Path) -> None:
    """Live and shadow rows share their ids, a killed replica costs no request, and the next version takes over."""
    images = {n: real_image(real.home, tmp_path, n, score, base=real.base) for n, score in ((1, 0.25), (2, 0.75))}
    settle(real, plan(1, {1: 100}, {1: images[1]}, replicas=2))
    mirrored = plan(2, {1: 100}, images, shadow=2, replicas=2)
    settle(real, mirrored)
    status, headers, body = real.predict(x_ratchet_key="ann")
    assert (status, body["predictions"], body["version"]) == (200, [0.25], 1)
    (row_id,) = body["ids"]
    assert row_id.startswith(headers["x-ratchet-request-id"])
    settle(real, mirrored, lambda s: s.replicas[2].shadow_requests == 1, what="mirrored")
    wait_until(lambda: logged(real.home) == [(row_id, "live", 1), (row_id, "shadow", 2)], "both rows in the log")
    with Hammer(real) as hammer:
        hammer.wait_for(10)
        kill(real.process("v1-0"), signal.SIGKILL)
        hammer.wait_for(10)
        settle(real, plan(3, {2: 100}, images, replicas=2))
        retire = plan(4, {2: 100}, {2: images[2]}, replicas=2)
        settle(real, retire, lambda s: set(s.replicas) == {2}, what="retired")
        hammer.wait_for(10)
    assert hammer.failures == []
    assert real.predict()[2]["predictions"] == [0.75]


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["volume", "pull"])
def test_a_model_beside_its_image_is_served(real: RealRig, tmp_path: Path, placement: str) -> None:
    """Wherever the model lies it answers the same; one that is pulled comes back by itself if its folder is gone."""
    digest = real_image(real.home, tmp_path, 1, 0.25, placement, real.base)
    (models,) = [path for path in (real.home / "models").iterdir() if path.is_dir()]
    if placement == "pull":
        shutil.rmtree(models)
    settle(real, plan(1, {1: 100}, {1: digest}, replicas=2))
    assert real.predict()[2]["predictions"] == [0.25]
    assert (models / "model" / "model.json").is_file()


@pytest.mark.slow
def test_image_whose_model_is_damaged_is_failed_with_its_reason(local: LocalRig, tmp_path: Path) -> None:
    """The reason of a version that cannot start is the runtime's own last word, and names the damaged part."""
    digest = real_image(local.home, tmp_path, 1, 0.5)
    code = local.home / "unpacked" / digest.removeprefix("sha256:") / "model" / "code" / "constant.py"
    code.chmod(0o644)
    code.write_text("raise RuntimeError('no such lightning')")
    started = time.monotonic()
    target = LocalTarget(local.home, port=local.port, limits=LIMITS)
    reason = ""
    while "lightning" not in reason:
        target.apply(plan(1, {1: 100}, {1: digest}))
        status = target.observe("flights")
        assert status is not None
        reason = status.replicas[1].reason if status.replicas[1].state == "failed" else ""
        assert time.monotonic() - started < 60, status
        time.sleep(0.05)
