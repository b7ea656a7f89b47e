"""What a replica is told on its command line."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.runtime.pull import ModelLayer, sources_from


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The command line of `python -m serving.runtime`."""

    model_dir: Path
    name: str
    version: int
    log_dir: Path
    host: str = "127.0.0.1"
    port: int = 0
    """0: any free one, which `announce` then tells."""
    workers: int = 1
    announce: Path | None = None
    body_bytes_max: int = 8 * 1024 * 1024
    request_rows_max: int = 10_000
    batch_rows_max: int = 1_024
    waiting_rows_max: int = 20_000
    """Rows that may wait for the model; more are refused with 503."""
    timeout_s: float = 30.0
    """A request that is not answered by then gets 504."""
    hang_s: float = 300.0
    """A worker whose model has been at one call for longer is replaced."""
    drain_s: float = 30.0
    """Requests under way at SIGTERM have this long to finish."""
    fsync: bool = False
    """Flush every append of the log to the disk: survives a power cut too, and costs a disk flush a batch."""
    rotate_rows: int = 50_000
    rotate_bytes: int = 32 * 1024 * 1024
    rotate_s: float = 300.0
    layer: ModelLayer | None = None
    """The model, if it is not in `model_dir` but to be pulled."""


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", text):
        raise argparse.ArgumentTypeError(f"must be letters, digits, '.', '_' and '-', at most 128, but got {text!r}")
    return text


def _positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1 but got {text!r}")
    return int(text)


def _positive_seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0 but got {text!r}")
    return value


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"must be a port from 0 to 65535 but got {text!r}")
    return int(text)


def parse_settings(arguments: Sequence[str] | None = None) -> Settings:
    """The settings on the command line. Ends the process with status 2 and a message if they are wrong."""
    parser = argparse.ArgumentParser(prog="python -m serving.runtime", description="Serve one version of one model.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--model-dir", type=Path, help="model folder (holds model.json)")
    where.add_argument("--model-layer", help="digest of the layer that holds the model; it is pulled")
    parser.add_argument("--model-size", type=_positive_int, default=16 << 30, help="bytes of that layer at most")
    parser.add_argument("--model-cache", type=Path, default=Path("/models"), help="default: %(default)s")
    parser.add_argument("--model-from", action="append", help="OCI layout or https://HOST/REPOSITORY; may be repeated")
    parser.add_argument("--model-credentials", type=Path, default=_variable_path("RATCHET_MODEL_CREDENTIALS"))
    parser.add_argument("--model-ca", type=Path, default=_variable_path("RATCHET_MODEL_CA"))
    parser.add_argument("--name", type=_name, required=True, help="model name, as in the routes")
    parser.add_argument("--version", type=_positive_int, required=True)
    parser.add_argument("--log-dir", type=Path, required=True, help="folder of this model's prediction log")
    parser.add_argument("--host", default=_default("host"), help="default: %(default)s")
    parser.add_argument("--port", type=_port, default=0, help="0 (default): any free port")
    parser.add_argument("--announce", type=Path, help="file that gets {port, pid} once requests are accepted")
    parser.add_argument("--fsync", action="store_true", help="flush the log to the disk before each answer")
    for field in (
        "workers",
        "body_bytes_max",
        "request_rows_max",
        "batch_rows_max",
        "waiting_rows_max",
        "rotate_rows",
        "rotate_bytes",
    ):
        parser.add_argument(_flag(field), type=_positive_int, default=_default(field), help="default: %(default)s")
    for field in ("timeout_s", "hang_s", "drain_s", "rotate_s"):
        parser.add_argument(
            _flag(field), type=_positive_seconds, default=_default(field), help="seconds; default: %(default)s"
        )
    return _settings(vars(parser.parse_args(arguments)))


def _settings(given: dict[str, Any]) -> Settings:
    names = ("layer", "size", "cache", "from", "credentials", "ca")
    model = {name: given.pop(f"model_{name}") for name in names}
    if model["layer"] is None:
        return Settings(**given)
    layer = ModelLayer(
        digest=model["layer"], size=model["size"], cache=model["cache"], credentials=model["credentials"], ca=model["ca"],
        sources=sources_from(model["from"], os.environ.get("RATCHET_MODEL_FROM", "")),
    )  # fmt: skip
    return Settings(**{**given, "model_dir": model["cache"], "layer": layer})


def _variable_path(name: str) -> Path | None:
    return Path(value) if (value := os.environ.get(name)) else None


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def _default(field: str) -> Any:
    return Settings.__dataclass_fields__[field].default
