"""model.json is read as if a stranger had written it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from serving_rig import FEATURES, manifest

from serving.manifest import MANIFEST_BYTES_MAX, ModelFolderError, SklearnPredictor, parse_manifest, read_manifest

PATH = Path("/models/shop/model.json")


def parse(document: Any) -> Any:
    return parse_manifest(json.dumps(document).encode(), PATH)


def test_a_valid_manifest_is_read_whole() -> None:
    """Every field of a valid model.json arrives with its value."""
    read = parse(manifest())
    assert (read.model, read.task, read.classes, read.threshold) == ("shop", "binary", (0, 1), 0.5)
    assert [(f.name, f.kind) for f in read.features] == [(f["name"], f["kind"]) for f in FEATURES]
    assert read.predictor == SklearnPredictor(file="estimator.skops")
    assert read.width is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "format: this runtime reads format 1 but got 2"),
        ({"format": "1"}, "Expected `int`, got `str` - at `$.format`"),
        ({"task": "ranking"}, "at `$.task`"),
        ({"classes": None}, "classes: a binary model needs exactly 2 classes but got None"),
        ({"classes": [1]}, "classes: a binary model needs exactly 2 classes but got [1]"),
        ({"classes": [0, 1, 2]}, "exactly 2 classes"),
        ({"classes": ["a", "a"]}, "classes: must differ"),
        ({"classes": [[0], [1]]}, "at `$.classes[0]`"),
        ({"task": "multiclass", "classes": ["a"]}, "at least 2 classes"),
        ({"task": "regression"}, "classes: must be null for regression"),
        ({"threshold": 1.5}, "threshold: a binary model needs a number between 0 and 1 but got 1.5"),
        ({"threshold": None}, "threshold:"),
        ({"features": []}, "features: must name at least one feature"),
        ({"features": [FEATURES[0], FEATURES[0]]}, "features: 'age' is named more than once"),
        ({"features": [{"name": "age", "kind": "colour"}]}, "at `$.features[0].kind`"),
        ({"features": [{"name": "", "kind": "numeric"}]}, "at `$.features[0].name`"),
        ({"predictor": {"kind": "pickle", "file": "m.pkl"}}, "Invalid value 'pickle'"),
        (
            {"predictor": {"kind": "sklearn", "file": "../other/estimator.skops"}},
            "predictor.file: must be the plain name",
        ),
        ({"predictor": {"kind": "sklearn", "file": "/etc/passwd"}}, "predictor.file"),
        ({"predictor": {"kind": "sklearn", "file": ".."}}, "predictor.file"),
        (
            {"predictor": {"kind": "entrypoint", "module": "os; evil", "code": "code"}},
            "predictor.module: must be a dotted",
        ),
        ({"predictor": {"kind": "entrypoint", "module": "m", "code": "a/b"}}, "predictor.code"),
        ({"surprise": 1}, "`surprise`"),
        ({"requirements": {"scikit-learn": 1}}, "at `$.requirements[...]`"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], said: str) -> None:
    """A wrong field is refused by file, field and value."""
    with pytest.raises(ModelFolderError) as caught:
        parse(manifest(**changes))
    assert said in str(caught.value)
    assert str(PATH) in str(caught.value)


@pytest.mark.parametrize("field", sorted(manifest()))
def test_no_field_may_be_missing(field: str) -> None:
    """A model.json without one of its fields is refused by the field's name."""
    document = manifest()
    del document[field]
    with pytest.raises(ModelFolderError, match=f"`{field}`"):
        parse(document)


def test_all_problems_are_told_at_once() -> None:
    """One reading names every broken rule."""
    with pytest.raises(ModelFolderError) as caught:
        parse(manifest(format=3, classes=[1], features=[]))
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000, b'{"format": 1e999}'])
def test_what_is_no_manifest_at_all_is_an_error_of_the_file(content: bytes) -> None:
    """Bytes that are no JSON object are refused by the file's name, however they are broken."""
    with pytest.raises(ModelFolderError, match=r"model\.json"):
        parse_manifest(content, PATH)


def test_a_missing_or_endless_file_is_refused(tmp_path: Path) -> None:
    """A folder without model.json, or with an absurdly large one, is refused without reading it all."""
    with pytest.raises(ModelFolderError, match="cannot be read: No such file"):
        read_manifest(tmp_path)
    with (tmp_path / "model.json").open("wb") as file:
        file.truncate(MANIFEST_BYTES_MAX + 10)
    with pytest.raises(ModelFolderError, match="larger than"):
        read_manifest(tmp_path)
