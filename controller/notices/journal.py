"""Notices as lines of a JSON file, and in the daemon's log. The default way out; needs nothing installed."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import structlog

from controller.notices.port import Message, Notifier, NotifierError
from controller.state import NoticeRecord

log = structlog.get_logger()

_TAIL_BYTES = 1 << 20
_KEYS_MAX = 20_000
"""Keys kept in memory; only the newest can still be delivered a second time."""


class JournalNotifier(Notifier):
    """Appends to `notices.jsonl`; a key that stands there already (written before a crash) is not written again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: dict[str, None] | None = None
        self._torn = False
        """Whether the file ends in the middle of a line."""

    def deliver(self, message: Message) -> None:
        for notice in message.notices:
            self._deliver(notice)

    def _deliver(self, notice: NoticeRecord) -> None:
        try:
            if self._keys is None:
                self._keys = self._read_tail()
            if notice.key in self._keys:
                return
            self._append(notice)
        except OSError as error:
            said = f"{self._path}: {error.strerror or error}; make room or set its permissions"
            raise NotifierError(said) from error
        self._keys[notice.key] = None
        if len(self._keys) > _KEYS_MAX:
            del self._keys[next(iter(self._keys))]
        tell = log.warning if {"log": "warning"} in notice.data.get("to", ()) else log.info
        tell("notice.delivered", model=notice.model, kind=notice.kind, text=notice.text)

    def _append(self, notice: NoticeRecord) -> None:
        """One line, begun on a line of its own even if the last one was torn by a crash or a full disk. Raises OSError."""
        value = {"key": notice.key, "model": notice.model, "kind": notice.kind, "text": notice.text,
                 "at": notice.at.isoformat(), **facts_shown(notice)}  # fmt: skip
        line = ("\n" if self._torn else "") + json.dumps(value) + "\n"
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            self._torn = True
            if os.write(handle, line.encode()) < len(line):  # json.dumps gives ASCII
                raise OSError(errno.ENOSPC, "only part of the line could be written")
            self._torn = False
        finally:
            os.close(handle)

    def _read_tail(self) -> dict[str, None]:
        """Keys near the end of the file: what may have been written before a crash but not marked delivered."""
        try:
            with self._path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                tail = file.read()
        except FileNotFoundError:
            return {}
        self._torn = bool(tail) and not tail.endswith(b"\n")
        return {key: None for line in tail.splitlines() if (key := _key(line))}


def facts_shown(notice: NoticeRecord) -> dict[str, Any]:
    """The notice's facts for machines to read: without who is told, and where other JSON readers would stop at NaN, null."""
    facts = {key: value for key, value in notice.data.items() if key != "to"}
    return {"facts": plain(facts)} if facts else {}


def plain(value: Any) -> Any:
    """JSON without NaN and the infinities."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {key: plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [plain(inner) for inner in value]
        case _:
            return value


def _key(line: bytes) -> str | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None  # a torn line, or the first, cut one of the tail
    return str(value["key"]) if isinstance(value, dict) and "key" in value else None
