"""The packaging job gives a digest and an unpacked folder, again and again the same, and errors that say whose turn it is."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from deployers.images import OciLayout
from deployers.package import run, serving_source
from pipelines.jobs.port import JobContext, PermanentJobError, RetryableJobError


@pytest.fixture
def context(tmp_path: Path) -> JobContext:
    return JobContext(job_id="flight-late-c1-package-1", workdir=tmp_path, report_path=tmp_path / "progress.json")


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Any]:
    model_dir = tmp_path / "trained"
    model_dir.mkdir()
    (model_dir / "model.json").write_text('{"format":1}')
    return {
        "home": str(tmp_path / "home"),
        "model": "flight-late",
        "number": 2,
        "model_dir": str(model_dir),
        "annotations": {"cycle": "1"},
        "base": None,
    }


def test_packaged_model_is_verified_and_unpacked(inputs: dict[str, Any], context: JobContext, tmp_path: Path) -> None:
    """The job's output names an image in the home's layout and its unpacked folder; a second run gives the same output."""
    out = run(inputs, context)
    home = tmp_path / "home"
    assert out["root"] == str(home / "unpacked" / out["digest"].removeprefix("sha256:"))
    assert (Path(out["root"]) / "model" / "model.json").read_text() == '{"format":1}'
    assert (Path(out["root"]) / "app" / "serving" / "__init__.py").read_bytes() == (
        serving_source() / "__init__.py"
    ).read_bytes()
    assert OciLayout(home / "images").verify(out["digest"]).size == out["size_bytes"]
    assert out["sentence"].startswith("packaged flight-late v2 as sha256:")
    assert json.loads(context.report_path.read_text()) == {"text": "verifying and unpacking the image"}
    assert run(json.loads(json.dumps(inputs)), context) == out


def test_estimator_is_packaged_beside_the_model(inputs: dict[str, Any], context: JobContext, tmp_path: Path) -> None:
    """The image holds both, the model folder itself stays as it was, and an estimator that is gone is left out."""
    estimator = tmp_path / "estimator.json"
    estimator.write_text('{"format":1,"task":"binary"}')
    out = run(inputs | {"estimator": str(estimator)}, context)
    assert {p.name for p in (Path(out["root"]) / "model").iterdir()} == {"model.json", "estimator.json"}
    assert [p.name for p in Path(inputs["model_dir"]).iterdir()] == ["model.json"]
    assert run(inputs | {"estimator": str(estimator)}, context) == out
    estimator.unlink()
    assert (
        run(inputs | {"estimator": str(estimator)}, context)["digest"]
        == run(inputs, context)["digest"]
        != out["digest"]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"number": "2"}, "packaging input 'number' must be a int but is '2'"),
        ({"home": None}, "packaging input 'home' must be a str but is None"),
        ({"model": "Flight Late"}, "named like flight-late"),
        ({"model_dir": "/nowhere"}, "/nowhere/model.json does not exist; train the model again"),
        ({"annotations": {"cycle": 4}}, "annotation 'cycle'"),
        ({"base": "/nowhere"}, "base image /nowhere"),
    ],
)
def test_bad_input_is_permanent(
    inputs: dict[str, Any], context: JobContext, change: dict[str, Any], message: str
) -> None:
    """An input that is wrong stays wrong: the error names it and is not retried."""
    with pytest.raises(PermanentJobError, match=message):
        run(inputs | change, context)


def test_disk_trouble_is_retried(inputs: dict[str, Any], context: JobContext, tmp_path: Path) -> None:
    """A disk that refuses may work later, so the error asks for another try."""
    (tmp_path / "home").write_text("a file where the folder should be")
    with pytest.raises(RetryableJobError, match="creating the image layout"):
        run(inputs, context)
    assert stat.S_ISREG((tmp_path / "home").stat().st_mode)
