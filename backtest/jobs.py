"""Jobs of a replay: the real ones, run at once and in this process, each outcome written down so that a replay that was stopped goes on."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from deployers.package import with_estimator
from pipelines.jobs.files import read_json, write_json_atomic
from pipelines.jobs.port import JobContext, JobRunner, JobSpec, JobStatus
from pipelines.jobs.worker import Entry, run_entry

_STATUS = TypeAdapter(JobStatus)


@dataclass(frozen=True)
class _Context(JobContext):
    """Passes progress on instead of writing files that nobody reads."""

    tell: Callable[[str], None] = print

    def report(self, **progress: Any) -> None:
        if text := progress.get("text"):
            self.tell(str(text))


@dataclass
class RecordedJobs(JobRunner):
    """A job has ended by the time `ensure` returns. Under the same name and inputs it is not run a second time, in no process.

    What made the first outcome may depend on how fast the machine was (a search stops after its time); what is on record does not, so
    that a replay which goes on takes the decisions that it took before.
    """

    folder: Path
    replaced: Mapping[str, Entry]
    """Entries that are other functions here: those that would start processes."""
    tell: Callable[[str], None]
    """Gets progress, in words."""
    carried: Path
    """A file that jobs leave for later ones beside what they return (the profile of the data): it is put on record with the job that
    changed it, and put back when that job is not run a second time."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Job id → seconds that it took when it was run."""
    _statuses: dict[str, JobStatus] = field(default_factory=dict)

    def ensure(self, spec: JobSpec) -> None:
        if spec.job_id in self._statuses:
            return
        path = self.folder / f"{spec.job_id}.json"
        asked = _digest(spec)
        kept = read_json(path)
        if isinstance(kept, dict) and kept.get("asked") == asked and _still_there(kept["status"]):
            status = _STATUS.validate_python(kept["status"])
            self._put_back(spec.job_id)
        else:
            before = _content(self.carried)
            status = self._run(spec)
            self._set_aside(spec.job_id, before)
            write_json_atomic(path, {"asked": asked, "status": _STATUS.dump_python(status, mode="json")})
        self._statuses[spec.job_id] = status
        self.seconds[spec.job_id] = status.seconds

    def _run(self, spec: JobSpec) -> JobStatus:
        workdir = Path(spec.workdir or self.folder / spec.job_id)
        workdir.mkdir(parents=True, exist_ok=True)
        context = _Context(job_id=spec.job_id, workdir=workdir, report_path=workdir / "progress.json", tell=self.tell)
        began = time.monotonic()
        status = run_entry(spec, context, self.replaced.get(spec.entry))
        return dataclasses.replace(status, seconds=round(time.monotonic() - began, 3))

    # ---------------------------------------------------------------- the file that is carried on
    def _aside(self, job_id: str) -> Path:
        return self.folder / f"{job_id}.carried.gz"

    def _set_aside(self, job_id: str, before: bytes | None) -> None:
        after = _content(self.carried)
        if after is not None and after != before:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._aside(job_id).write_bytes(gzip.compress(after, 1))

    def _put_back(self, job_id: str) -> None:
        if (packed := _content(self._aside(job_id))) is not None:
            self.carried.parent.mkdir(parents=True, exist_ok=True)
            self.carried.write_bytes(gzip.decompress(packed))

    # ---------------------------------------------------------------- the port
    def poll(self, job_id: str) -> JobStatus | None:
        return self._statuses.get(job_id)

    def cancel(self, job_id: str) -> None:
        """Every job has ended already."""

    def active(self) -> frozenset[str]:
        return frozenset()

    def forget(self, job_id: str) -> None:
        self._statuses.pop(job_id, None)


def _digest(spec: JobSpec) -> str:
    asked = {"entry": spec.entry, "inputs": spec.inputs, "limits": dataclasses.asdict(spec.limits)}
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _still_there(status: Mapping[str, Any]) -> bool:
    """Whether the files that an outcome names were not tidied away meanwhile."""
    output = status.get("output") or {}
    paths = [output[name] for name in ("train", "holdout", "model_dir", "root") if output.get(name)]
    return all(Path(path).exists() for path in paths)


# ---------------------------------------------------------------- packaging without an image
def package(inputs: Mapping[str, Any], context: JobContext, *, digest_of: Callable[[Path], str]) -> dict[str, Any]:
    """A version under a digest of its content and number, lying where an unpacked image would; files are linked, not copied."""
    model_dir, home = Path(inputs["model_dir"]), Path(inputs["home"])
    content = f"{inputs['model']} v{inputs['number']} {digest_of(model_dir)}"
    digest = hashlib.sha256(content.encode()).hexdigest()
    root = home / "unpacked" / digest
    root.mkdir(parents=True, exist_ok=True)
    link = root / "model"
    link.unlink(missing_ok=True)
    link.symlink_to(with_estimator(model_dir, inputs.get("estimator"), root).absolute(), target_is_directory=True)
    return {
        "digest": f"sha256:{digest}", "size_bytes": 0, "root": str(root), "sentence": f"v{inputs['number']} is ready",
    }  # fmt: skip


def packager(digest_of: Callable[[Path], str]) -> Entry:
    return functools.partial(package, digest_of=digest_of)
