"""Running one job's function, and putting into words how it ended. The process that does this is forked by `pipelines.jobs.nanny`."""

from __future__ import annotations

import errno
import importlib
import json
import os
import random
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from pipelines.jobs.port import JobContext, JobError, JobSpec, JobState, JobStatus, PermanentJobError, RetryableJobError

OUTPUT_BYTES_MAX = 16 * 2**20
ERROR_CHARACTERS_MAX = 4_000
Entry: TypeAlias = Callable[[Mapping[str, Any], JobContext], Any]
_MACHINE_LIMITS = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EAGAIN)
_THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def run_entry(spec: JobSpec, context: JobContext, function: Entry | None = None) -> JobStatus:
    """Call the job's function (or `function`, in its place) and describe what came of it; never raises an Exception.

    Failures: PermanentJobError and RetryableJobError say themselves which they are; a full disk or table of files may pass; anything
    else is a fault of code or data, which another attempt would only repeat. The traceback goes to stderr.
    """
    try:
        output = (function or _load(spec.entry))(dict(spec.inputs), context)
        _require_json(spec.entry, output)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the owner's code raises becomes a sentence
        if not isinstance(error, JobError):
            traceback.print_exc()
        return JobStatus(state=JobState.FAILED, error=describe(error), retryable=_may_pass(error))
    return JobStatus(state=JobState.SUCCEEDED, output=output)


def _load(entry: str) -> Any:
    module, _, name = entry.partition(":")
    function = getattr(importlib.import_module(module), name, None)
    if not callable(function):
        raise PermanentJobError(f"entry {entry!r}: module {module!r} has no function {name!r}")
    return function


def _require_json(entry: str, output: object) -> None:
    """Raises PermanentJobError for an output that cannot be written down faithfully."""
    if not isinstance(output, dict):
        raise PermanentJobError(f"{entry} must return a dict but returned {type(output).__name__}")
    try:
        size = len(json.dumps(output, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise PermanentJobError(f"{entry} returned what is not JSON: {error}") from error
    if size > OUTPUT_BYTES_MAX:
        raise PermanentJobError(f"{entry} returned {size} bytes of JSON; at most {OUTPUT_BYTES_MAX} are allowed")


def describe(error: BaseException) -> str:
    """One sentence: a job error's own words; else class, message and the line of code that raised it.

    Bounded, since it goes into the record: an owner's code may raise an error that holds a whole table."""
    if isinstance(error, JobError):
        return _shortened(str(error))
    text = _shortened(" ".join(str(error).split()))
    sentence = f"{type(error).__name__}: {text}" if text else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return sentence
    return f"{sentence} (in {Path(frames[-1].filename).name}, line {frames[-1].lineno}, {frames[-1].name})"


def _shortened(text: str) -> str:
    return text if len(text) <= ERROR_CHARACTERS_MAX else f"{text[:ERROR_CHARACTERS_MAX]}… ({len(text)} characters)"


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, JobError):
        return isinstance(error, RetryableJobError)
    return isinstance(error, OSError) and error.errno in _MACHINE_LIMITS


def prepare_process(spec: JobSpec, env: Mapping[str, str], path: list[str]) -> None:
    """Give a forked process the surroundings of the controller that asked: its environment, its import path, fresh random numbers.

    One computing thread a job unless `spec.env` says otherwise: jobs and trials are themselves parallel, and a thread pool does not survive
    the fork of a trial.
    """
    os.environ.clear()
    os.environ.update({**_THREADS, **env, **spec.env})
    sys.path[:] = [*path, *(p for p in sys.path if p not in path)]
    importlib.invalidate_caches()
    random.seed()
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(int.from_bytes(os.urandom(4), "little"))
    threads = os.environ["OMP_NUM_THREADS"]
    if threads != _THREADS["OMP_NUM_THREADS"] and threads.isdecimal():
        _limit_loaded_pools(int(threads))


def _limit_loaded_pools(threads: int) -> None:
    """Libraries that the host loaded read the environment variables when they were loaded; tell them the other number."""
    if "sklearn" in sys.modules:
        importlib.import_module("threadpoolctl").threadpool_limits(threads)
