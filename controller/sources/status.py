"""The file in which a source's status outlives the daemon. Damaged or lost, it is begun anew."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import structlog
from pydantic import TypeAdapter, ValidationError

from controller.sources.port import SourceStatus
from pipelines.jobs.files import write_json_atomic

log = structlog.get_logger()

_STATUS = TypeAdapter(SourceStatus)


class StatusFile:
    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> SourceStatus | None:
        try:
            return _STATUS.validate_json(self._path.read_bytes())
        except (OSError, ValidationError):
            return None

    def save(self, status: SourceStatus) -> None:
        """A full disk stops nothing: the file only saves work."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomic(self._path, _STATUS.dump_python(status, mode="json"))
        except OSError as error:
            log.warning(
                "source_status.not_written", file=str(self._path), error=str(error), lost=sorted(asdict(status))
            )
