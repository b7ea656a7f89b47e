"""`python -m backtest`: the process behind `ratchet backtest`, which holds the libraries that the command line must not load.

It reads one line of JSON from standard input, the request, and writes lines of JSON to standard output: `{"progress": …}`, after each
setting `{"result": …}`, at the end `{"best": POSITION}`; or `{"error": SENTENCE, "kind": …}`. It ends, with all that it forked, when its
input is closed: whoever asked has gone.
"""

from __future__ import annotations

import os

# Before NumPy is loaded: one thread a process, which sleeps while it waits, since trials run side by side.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")

import json
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

PROGRESS_EVERY_S = 0.1


def main() -> int:
    """Serve the request; 0 if every setting came to a result."""
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_asker, daemon=True).start()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        best = _serve(request, answers)
    except Exception as error:  # noqa: BLE001 - whatever it is becomes a sentence, and its trace goes to stderr
        return _failed(error, answers)
    _say(answers, {"best": best})
    return 0


def _serve(request: Mapping[str, Any], answers: IO[str]) -> int | None:
    """Position of the best setting."""
    import structlog

    from backtest import report, running
    from policies.schema import ModelPolicy

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))  # each look is told by its progress
    results = []
    for setting in request["settings"]:
        asked = running.Asked(
            policy=ModelPolicy.model_validate(setting["policy"]),
            policy_dir=Path(request["policy_dir"]),
            data=Path(request["data"]) if request["data"] else None,
            log_dir=Path(request["log_dir"]),
            seed=request["seed"],
            initial=request["initial"],
            root=Path(request["root"]),
            fresh=bool(request["fresh"]),
            keep=bool(request["keep"]),
            take=len(request["settings"]) > 1,
            cache=Path(request["cache"]) if request["cache"] else None,
        )
        found = running.run(asked, _Teller(answers).tell)
        results.append({"setting": setting["setting"], "result": found})
        _say(answers, {"result": found})
    if request["cache"] and not request["keep"]:
        shutil.rmtree(request["cache"], ignore_errors=True)
    if request["report"]:
        path = Path(request["report"])
        path.write_text(report.grid_page(results) if len(results) > 1 else report.page(results[0]["result"]), "utf-8")
    return report.best_of(results)


class _Teller:
    """Says how far a replay is, not more often than anybody can read."""

    def __init__(self, answers: IO[str]) -> None:
        self._answers = answers
        self._next = 0.0

    def tell(self, progress: Any) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + PROGRESS_EVERY_S
        fields = {name: getattr(progress, name) for name in progress.__dataclass_fields__}
        _say(self._answers, {"progress": fields})


def _failed(error: Exception, answers: IO[str]) -> int:
    from backtest.replay import NothingToReplayError
    from backtest.running import InUseError
    from pipelines.jobs.port import JobError
    from pipelines.jobs.worker import describe

    expected = isinstance(error, JobError | NothingToReplayError | InUseError | OSError)
    if not expected:
        traceback.print_exception(error)
    sentence = str(error) if expected else describe(error)
    _say(answers, {"error": sentence, "kind": "usage" if sentence.startswith("--") else "refused"})
    return 1


def _say(answers: IO[str], value: Mapping[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


def _end_with_the_asker() -> None:
    while os.read(0, 4096):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
