"""Steps of a pipeline: DataSource → pre-processing → estimator, each a cached function of its inputs, its code and its parameters.

The key of a step's result is the digest of: the fingerprints of its inputs; the source of the modules that compute it, with
the versions of the libraries they stand on; and its parameters. Change any of them and the step, with all after it, is computed
again; change none and it is not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from pipelines.cache import Entry, StepCache, digest_json


def run_step(
    cache: StepCache,
    step: str,
    build: Callable[[Path], Mapping[str, Any]],
    *,
    inputs: Sequence[str],
    modules: Sequence[ModuleType],
    distributions: Sequence[str] = (),
    parameters: Mapping[str, Any],
) -> Entry:
    """The step's result, from the cache if the same was computed before.

    `build(folder)` writes the output files and returns the JSON result; it must depend on nothing but the inputs and parameters.
    Raises what `build` raises, and RetryableJobError if the cache cannot be written.
    """
    code = code_digest(modules, distributions)
    key = digest_json({"step": step, "inputs": list(inputs), "code": code, "parameters": dict(parameters)})
    return cache.get_or_build(step, key, build, inputs=list(inputs), code=code, parameters=dict(parameters))


def code_digest(modules: Sequence[ModuleType], distributions: Sequence[str] = ()) -> str:
    """sha256 (hex) of the modules' source files and the distributions' versions, in any order."""
    parts = sorted(f"{module.__name__} {_file_digest(module)}" for module in modules)
    parts += sorted(f"{name}=={installed_version(name)}" for name in distributions)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def installed_version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "absent"


def _file_digest(module: ModuleType) -> str:
    assert module.__file__ is not None, f"{module.__name__} is no source file"
    return hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()
