"""One policy replayed from its stream to its result, in a work folder from which a replay that was stopped goes on."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backtest import result, rivals
from backtest.replay import Replay, Replayed, ended, trained
from backtest.stream import Stream, fingerprint, first_rows, kept_in, read_stream
from controller.state import Outcome
from pipelines.jobs.files import read_json, write_json_atomic
from pipelines.jobs.port import PermanentJobError
from policies.schema import ModelPolicy

RESULT = "result.json"
LOCK = "lock"
FOLDERS_KEPT = 20
"""Work folders, beside the present one; older ones go."""
CARRIED_ON = ("record", "work", "cache", "unpacked", "probes")
"""What a replay that goes on needs of the one that was stopped. All else in its folder is made again on the way."""


class InUseError(Exception):
    """Another process replays in this work folder."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a replay has come."""

    row: int
    rows: int
    first_row: int
    promotions: int
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be replayed, and how."""

    policy: ModelPolicy
    policy_dir: Path
    """Absolute; relative paths in the policy start here."""
    data: Path | None
    """A file instead of the policy's own source."""
    log_dir: Path
    """The model's prediction log, for a policy whose source it is."""
    seed: int | None
    """Of everything random; None: that of the policy."""
    initial: str | None
    root: Path
    """Folder of the work folders."""
    fresh: bool
    """Whether what a stopped replay left is thrown away."""
    keep: bool
    """Whether models and records are kept after success."""
    take: bool = False
    """Whether the result of a replay of the same, if there is one, is as good as a new one."""
    cache: Path | None = None
    """A cache of steps that several replays share; by default one in the work folder."""


def run(asked: Asked, tell: Callable[[Progress], None]) -> dict[str, Any]:
    """The result, as `backtest.result.as_json`, which stays in the work folder as well.

    Raises PermanentJobError or RetryableJobError for data that cannot be used, NothingToReplayError if the first rows bring no version,
    InUseError, OSError.
    """
    began = time.monotonic()
    policy = asked.policy if asked.seed is None else _seeded(asked.policy, asked.seed)
    stream = read_stream(policy, asked.policy_dir, asked.data, asked.log_dir)
    first_row = first_rows(stream, asked.initial)
    folder = asked.root / fingerprint(policy, stream, (first_row,))[:16]
    in_use = (folder,) if asked.cache is None else (folder, asked.cache)
    with ExitStack() as locks:
        for one in in_use:
            one.mkdir(parents=True, exist_ok=True)
            locks.enter_context(_locked(one))
        done = read_json(folder / RESULT) if asked.take and not asked.fresh else None
        if isinstance(done, dict):
            return done
        _tidy(asked.root, in_use)
        _begin(folder, asked)
        found = _replayed(kept_in(stream, folder), folder, first_row, tell, began)
        write_json_atomic(folder / RESULT, found)
        if not asked.keep:
            _clear(folder, keep=(RESULT, LOCK))
    return found


def _seeded(policy: ModelPolicy, seed: int) -> ModelPolicy:
    spec = policy.spec
    return policy.model_copy(
        update={"spec": spec.model_copy(update={"train": spec.train.model_copy(update={"seed": seed})})}
    )


def _replayed(
    stream: Stream, folder: Path, first_row: int, tell: Callable[[Progress], None], began: float
) -> dict[str, Any]:
    def told(row: int, sentence: str) -> None:
        cycles = replay.store.cycles(replay.name, limit=1_000_000)
        tell(
            Progress(
                row=row, rows=len(stream), first_row=first_row, promotions=ended(cycles, Outcome.PROMOTED), sentence=sentence
            )
        )  # fmt: skip

    replay = Replay(stream=stream, home=folder, seed=stream.spec.train.seed, tell=told)
    replayed = replay.run(first_row)
    told(len(stream), "the first version, alone")
    static = rivals.static(replayed, replay.models)
    last_label = rivals.last_label(stream, first_row)
    periodic = _periodic(replayed, lambda sentence: told(len(stream), sentence))
    return result.as_json(
        replayed, static=static, periodic=periodic, last_label=last_label, seconds=time.monotonic() - began
    )


def _periodic(replayed: Replayed, tell: Callable[[str], None]) -> rivals.Periodic:
    """Its score is not a number for an owner's own code, which is fitted in jobs only."""
    stream, first_row, retrains = replayed.stream, replayed.first_row, trained(replayed.cycles)
    try:
        recipe = rivals.recipe_of(replayed)
        return rivals.periodic(stream, first_row, recipe, retrains, rivals.windows_of(first_row), tell)
    except (KeyError, PermanentJobError) as error:
        return rivals.Periodic(score=float("nan"), retrains=retrains, window=f"not fitted: {error}")


# ---------------------------------------------------------------- the work folder
@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Held by this process alone, not by those that it forks. Raises InUseError."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InUseError(f"the same replay is running already: {folder} is in use") from error
        os.utime(descriptor)
        yield
    finally:
        os.close(descriptor)


def _begin(folder: Path, asked: Asked) -> None:
    """Keep only what a stopped replay may hand on; its jobs are gone on with by their records."""
    _clear(folder, keep=(LOCK,) if asked.fresh else (LOCK, *CARRIED_ON))
    if asked.cache is not None and not (folder / "cache").exists():
        (folder / "cache").symlink_to(asked.cache.absolute(), target_is_directory=True)
    shutil.rmtree(
        folder / "cache" / "quality", ignore_errors=True
    )  # what measurements remember: they are all taken again


def _clear(folder: Path, *, keep: Sequence[str]) -> None:
    for path in folder.iterdir():
        if path.name in keep:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _tidy(root: Path, present: Sequence[Path]) -> None:
    """Delete the oldest work folders beyond `FOLDERS_KEPT`, but none that is in use: not by others, and not one of `present`, ours."""
    others = [path for path in root.iterdir() if path not in present and (path / LOCK).is_file()]
    others.sort(key=lambda path: (path / LOCK).stat().st_mtime, reverse=True)
    for path in others[FOLDERS_KEPT:]:
        try:
            with _locked(path):
                shutil.rmtree(path)
        except InUseError:
            continue
