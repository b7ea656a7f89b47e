"""From a packaged version to a loaded 1 GB model on a machine that has its image's other layers: inside of the image, on a filled volume,
pulled from a registry. Start time, and bytes that the machine had to fetch."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.harness import Bench, Sides
from deployers.images import ImageRef, OciLayout
from deployers.layers import UnpackLimits
from deployers.oci import Descriptor
from deployers.placement import fill_from_blob
from deployers.registry.names import Place
from deployers.registry.publish import push_version
from deployers.registry.transport import Access, RegistryClient
from serving.runtime.pull import ModelLayer, pull

MODEL_BYTES = 1_000_000_000
PAGE = 1 << 20


@contextmanager
def _setup(folder: Path) -> Iterator[Sides]:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    from servers.registry import counting_proxy, registry

    with registry(folder / "registry") as kept, counting_proxy(kept.port) as proxy:
        image = _push(folder, kept.host)
        node = _Node(folder / "node", image, proxy.host)
        told: dict[str, tuple[float, float]] = {}

        def measured(name: str, start: Callable[[], Path]) -> float:
            before, began = proxy.received, time.monotonic()
            _read(start())
            told[name] = time.monotonic() - began, (proxy.received - before) / 1e6
            return told[name][0]

        def ours() -> float:
            node.forget()
            measured("pull, nothing kept", node.pull)
            measured("pull, kept", node.pull)
            return measured("volume, filled", node.volume)

        def peer() -> float:
            node.forget()
            return measured("image", node.image)

        yield Sides(
            ours=ours,
            peer=peer,
            note=lambda _: "; ".join(f"{n}: {s:.2f} s, {mb:.0f} MB" for n, (s, mb) in told.items()),
        )


def _push(folder: Path, host: str) -> ImageRef:
    model, app = folder / "model", folder / "serving"
    for path in (model, app):
        path.mkdir()
    (model / "model.json").write_text("{}")
    with (model / "weights").open("wb") as file:
        for _ in range(MODEL_BYTES // PAGE):
            file.write(os.urandom(PAGE))
    layout = OciLayout(folder / "images")
    image = layout.build(model, app, name="big", number=1, annotations={}, placement="pull")
    push_version(layout, image.digest, place=Place(host=host), model="big", number=1, access=Access(host=host))
    shutil.rmtree(layout.root)
    shutil.rmtree(model)
    return image


class _Node:
    """A machine that serves, with nothing of the model on it until it is fetched."""

    def __init__(self, folder: Path, image: ImageRef, host: str) -> None:
        assert image.model is not None, "it has been built"
        self.folder, self.layer, self.host = folder, image.model.layer, host

    def forget(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    def pull(self) -> Path:
        """As a replica does when it starts."""
        source = f"http://{self.host}/big"
        return pull(
            ModelLayer(digest=self.layer.digest, size=self.layer.size, sources=(source,), cache=self.folder / "models")
        )

    def volume(self) -> Path:
        """Filled before: by another replica, another version of the same model, or the packaging job."""
        return fill_from_blob(self.folder / "models", self.layer, Path("/nowhere"), UnpackLimits())

    def image(self) -> Path:
        """As an engine does with a model inside of an image: fetch the layer, then unpack it."""
        layout = OciLayout(self.folder / "engine")
        client = RegistryClient(self.host, Access())
        layer: Descriptor = self.layer
        layout.blobs.write(layer.media_type, lambda sink: client.download("big", layer.digest, sink), expected=layer)
        return fill_from_blob(self.folder / "unpacked", layer, layout.blobs.path(layer.digest), UnpackLimits())


def _read(model: Path) -> None:
    """All of it, as loading does."""
    with (model / "weights").open("rb") as file:
        while file.read(PAGE):
            pass


BENCH = Bench(
    name="model_placement_1gb", unit="s", better="lower", peer="the model inside of the image", runs=2, setup=_setup
)  # fmt: skip
