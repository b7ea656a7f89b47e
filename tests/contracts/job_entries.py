"""Job functions that the job runner suites run, in this process (fake) or in processes of their own (real)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pipelines.jobs.port import JobContext, PermanentJobError, RetryableJobError


def echo(inputs: dict[str, Any], context: JobContext) -> dict[str, Any]:
    context.report(done=1, total=1, text="echoed")
    return {
        "inputs": inputs,
        "job_id": context.job_id,
        "workdir": str(context.workdir),
        "exists": context.workdir.is_dir(),
    }


def count_starts(inputs: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Leaves one line a start in the file `starts`, then waits for the file `gate`."""
    with open(inputs["starts"], "a") as file:
        file.write(f"{context.job_id}\n")
    return gated(inputs, context)


def gated(inputs: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Reports, then waits until the file `gate` exists."""
    context.report(done=1, total=2, text="waiting")
    while not Path(inputs["gate"]).exists():
        time.sleep(0.005)
    return {"through": True}


def permanent(inputs: dict[str, Any], context: JobContext) -> dict[str, Any]:
    raise PermanentJobError("data.label: column 'late' is missing in rows.csv; there are a, b")


def retryable(inputs: dict[str, Any], context: JobContext) -> dict[str, Any]:
    raise RetryableJobError("the source is away")


def broken(inputs: dict[str, Any], context: JobContext) -> dict[str, Any]:
    print("about to break")
    return {"x": {}["nothing"]}


def not_json(inputs: dict[str, Any], context: JobContext) -> dict[str, Any]:
    return {"x": float("nan")}


def not_dict(inputs: dict[str, Any], context: JobContext) -> Any:
    return [1]


def leaves(inputs: dict[str, Any], context: JobContext) -> dict[str, Any]:
    sys.exit("had enough")


def full_disk(inputs: dict[str, Any], context: JobContext) -> dict[str, Any]:
    raise OSError(28, "No space left on device")


# ---------------------------------------------------------------- only for real processes
def dies(inputs: dict[str, Any], context: JobContext) -> dict[str, Any]:
    print("the last words", flush=True)
    os.kill(os.getpid(), inputs["signal"])
    return {}


def exits(inputs: dict[str, Any], context: JobContext) -> dict[str, Any]:
    os._exit(7)


def large(inputs: dict[str, Any], context: JobContext) -> dict[str, Any]:
    return {"text": "x" * inputs["bytes"]}


def eats_memory(inputs: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Takes `mb` of memory in `children` further processes, then waits for ever."""
    for _ in range(inputs["children"]):
        if os.fork() == 0:
            break
    kept = os.urandom(1024) * (inputs["mb"] * 1024)
    while kept:
        time.sleep(1)
    return {}


def stubborn_tree(inputs: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Three processes that ignore SIGTERM, one of them in a session of its own; their pids go to the file `pids`."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    children = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=own)
        for own in (True, False)
    ]
    for child in children:
        assert child.stdout
        child.stdout.readline()
    _announce(inputs["pids"], os.getpid(), *(c.pid for c in children))
    time.sleep(600)
    return {}


def leaves_child(inputs: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Succeeds but leaves a process behind."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    _announce(inputs["pids"], child.pid)
    child.returncode = 0  # no warning about it
    return {}


def surroundings(inputs: dict[str, Any], context: JobContext) -> dict[str, Any]:
    import numpy

    return {
        "env": {k: os.environ.get(k) for k in inputs["keys"]},
        "cwd": os.getcwd(),
        "parent": os.getppid(),
        "group": os.getpgid(0),
        "pid": os.getpid(),
        "random": int(numpy.random.randint(2**31)),
        "modules": sorted(sys.modules),
        "started": time.monotonic(),
        "threads": len(os.listdir("/proc/self/task")),
    }


def chatty(inputs: dict[str, Any], context: JobContext) -> dict[str, Any]:
    for _ in range(20):
        print("y" * 2**20)
    return gated(inputs, context)


def shares_memory(inputs: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Two processes that share `mb` of memory, until the gate opens."""
    kept = os.urandom(1024) * (inputs["mb"] * 1024)
    os.fork()
    assert kept
    return gated(inputs, context)


def _announce(path: str, *pids: int) -> None:
    Path(path + ".new").write_text(" ".join(map(str, pids)))
    Path(path + ".new").rename(path)
