"""Notices as lines of a JSON file, and in the daemon's log. The default way out; needs nothing installed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import structlog

from controller.notices.port import Notifier, NotifierError
from controller.state import NoticeRecord

log = structlog.get_logger()

_TAIL_BYTES = 1 << 20


class JournalNotifier(Notifier):
    """Appends to `notices.jsonl`; a key that stands there already (written before a crash) is not written again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: set[str] | None = None

    def deliver(self, notice: NoticeRecord) -> None:
        try:
            if self._keys is None:
                self._keys = self._read_keys()
            if notice.key in self._keys:
                return
            line = {"key": notice.key, "model": notice.model, "kind": notice.kind, "text": notice.text,
                    "at": notice.at.isoformat()}  # fmt: skip
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, (json.dumps(line) + "\n").encode())
            finally:
                os.close(handle)
        except OSError as error:
            raise NotifierError(f"{self._path}: {error.strerror or error}") from error
        self._keys.add(notice.key)
        log.info("notice.delivered", model=notice.model, kind=notice.kind, text=notice.text)

    def _read_keys(self) -> set[str]:
        """Keys near the end of the file: what may have been written before a crash but not marked delivered."""
        try:
            with self._path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                lines = file.read().splitlines()
        except FileNotFoundError:
            return set()
        return {key for line in lines if (key := _key(line))}


def _key(line: bytes) -> str | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None  # a torn line, or the first, cut one of the tail
    return str(value["key"]) if isinstance(value, dict) and "key" in value else None
