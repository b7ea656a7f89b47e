"""Skops files that are the same bytes for the same estimator.

skops writes memory addresses into its schema (`__id__`, names of array files), the time of day into the zip, and arrays with
whatever stood in the padding of their records. Here ids are counted in the order in which they appear, zip entries are sorted
and dated 1980, and padding is zeroed.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import PurePosixPath
from typing import Any

TRUSTED_TYPES = (
    "functools.partial",
    "numpy.dtype",
    "numpy.ravel",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
    "sklearn.utils._bunch.Bunch",
    "sklearn.utils.validation.check_array",
)
"""What serving loads beside what skops trusts by itself. The same list as `serving.model.TRUSTED_TYPES`; a test compares them."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
_VOLATILE = ("_stop_words_id",)
"""Attributes that hold memory addresses and are made anew when missing."""


def dump_deterministic(estimator: Any) -> bytes:
    """The estimator as a skops file. Raises TypeError or skops' UnsupportedTypeException for what skops cannot hold."""
    import skops.io

    with zipfile.ZipFile(io.BytesIO(skops.io.dumps(estimator))) as archive:
        numbering = _Numbering()
        schema = numbering.renumber(json.loads(archive.read("schema.json")))
        files = {new: _canonical_array(archive.read(old)) for old, new in numbering.files.items()}
    files["schema.json"] = json.dumps(schema, separators=(",", ":")).encode()
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression=zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, date_time=_EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, files[name])
    return target.getvalue()


def untrusted_types(content: bytes) -> list[str]:
    """Types in a skops file that serving would refuse to load, sorted."""
    import skops.io

    return sorted(set(skops.io.get_untrusted_types(data=content)) - set(TRUSTED_TYPES))


class _Numbering:
    """Memory addresses replaced by numbers in the order of their first appearance."""

    def __init__(self) -> None:
        self.ids: dict[int, int] = {}
        self.files: dict[str, str] = {}
        """Name in the archive that was read → name in the one to write."""

    def renumber(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self.renumber(item) for item in node]
        if not isinstance(node, dict):
            return node
        if node.get("__class__") == "set":  # its strings are hashed with a seed of the process
            node = node | {"content": sorted(node["content"], key=lambda item: str(item.get("content")))}
        return {key: self._value(key, value) for key, value in node.items() if key not in _VOLATILE}

    def _value(self, key: str, value: Any) -> Any:
        if key == "__id__":
            return self.ids.setdefault(value, len(self.ids))
        if key == "file" and isinstance(value, str):
            return self.files.setdefault(value, f"{len(self.files)}{PurePosixPath(value).suffix}")
        return self.renumber(value)


def _canonical_array(content: bytes) -> bytes:
    """A `.npy` of records with its padding zeroed; anything else as it is."""
    import numpy as np

    if not content.startswith(b"\x93NUMPY"):
        return content
    array = np.load(io.BytesIO(content), allow_pickle=False)
    if array.dtype.names is None:
        return content
    records = array.ravel(order="K")
    clean = np.zeros(records.shape, records.dtype)  # zeros_like would leave the padding as it finds it
    for name in array.dtype.names:
        clean[name] = records[name]
    # np.save would copy the records through a buffer, and garbage into the padding again.
    data = clean.view(np.uint8).tobytes()
    return content[: -len(data)] + data if data else content
