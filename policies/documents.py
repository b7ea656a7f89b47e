"""YAML text to plain values, with the place of each, safe against hostile input.

YAML 1.2, and of it what a policy needs: one document of mappings with text keys, lists and scalars. Aliases, tags and
merge keys are refused rather than bounded, since a policy is short enough to write things out. The document is built
from the parser's events, one by one, so that a limit is met before much is read (ruamel.yaml's own time grows with the
square of the depth). Nothing is ever constructed but text, numbers, truth values and null.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.reader import ReaderError

from policies.problems import Path, Problem, shown, spell_path

SIZE_MAX = 1 << 20
"""Bytes."""
DEPTH_MAX = 32
NODES_MAX = 20_000
INTEGER_MAX = 2**63 - 1
NAME_SHOWN = 80
"""Characters of an anchor's or tag's name in a message."""
_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool", "null")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A value made of dict, list, str, int, float, bool and None, and where each part of it stands."""

    value: Any
    positions: Mapping[Path, tuple[int, int]]
    """Path → line and column, from 1; of a mapping's entry, that of its key."""

    def position(self, path: Path) -> tuple[int, int]:
        """Where `path` stands, or the nearest part of the document above it."""
        while path and path not in self.positions:
            path = path[:-1]
        return self.positions.get(path, (1, 1))


def parse_document(content: bytes, *, file: str, what: str = "policy") -> tuple[Document | None, list[Problem]]:
    """The document, and everything wrong with its YAML. No document if it cannot be read to its end. `what` it is stands in messages."""
    if len(content) > SIZE_MAX:
        return None, [Problem(file=file, rule=f"a {what} file is at most {SIZE_MAX} bytes", value=f"{len(content)}")]
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return None, [Problem(file=file, line=line, rule="must be UTF-8", value=f"byte 0x{content[error.start]:02x}")]
    builder = _Builder(file=file, what=what)
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            builder.take(event)
        return Document(value=builder.root, positions=builder.positions), builder.problems
    except _TooMuch:
        pass
    except (YAMLError, ValueError, RecursionError) as error:
        builder.problems.append(_syntax(error, file, text))
    return None, builder.problems


def _syntax(error: Exception, file: str, text: str) -> Problem:
    rule = "is not valid YAML"
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.context, error.problem) if part)
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        return Problem(file=file, line=line, column=column, rule=f"{rule}: {what}")
    if isinstance(error, ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return Problem(
            file=file, line=line, rule=f"{rule}: a character that may not stand in it", value=repr(error.character)
        )
    return Problem(file=file, line=1, rule=f"{rule}: {type(error).__name__}")


class _TooMuch(Exception):
    """The problem is noted; reading on would be of no use or too costly."""


@dataclass(kw_only=True)
class _Frame:
    """A mapping or list that is still open."""

    value: dict[str, Any] | list[Any]
    path: Path
    key: str | None = None
    """Of the mapping's entry whose value comes next."""
    skip: bool = False
    """Whether that entry is thrown away, as its key was refused."""


@dataclass(kw_only=True)
class _Builder:
    """Takes the parser's events in turn; notes problems and goes on wherever the rest can still be understood."""

    file: str
    what: str
    root: Any = None
    positions: dict[Path, tuple[int, int]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    _open: list[_Frame] = field(default_factory=list)
    _documents: int = 0
    _nodes: int = 0
    _resolver: YAML = field(default_factory=lambda: YAML(typ="safe", pure=True))

    def take(self, event: Event) -> None:
        match event:
            case DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    self._stop(event, f"a {self.what} file holds one document")
            case MappingStartEvent() | SequenceStartEvent():
                self._check_node(event, event.anchor, event.tag)
                self._start({} if isinstance(event, MappingStartEvent) else [], event)
            case MappingEndEvent() | SequenceEndEvent():
                self._open.pop()
                self._entry_done()
            case AliasEvent():
                self._stop(
                    event, f"aliases are not read, write the value out instead of *{str(event.anchor)[:NAME_SHOWN]}"
                )
            case ScalarEvent():
                self._check_node(event, event.anchor, event.tag)
                self._scalar(event)

    def _check_node(self, event: Event, anchor: str | None, tag: str | None) -> None:
        self._nodes += 1
        if self._nodes > NODES_MAX:
            self._stop(event, f"a {self.what} file holds at most {NODES_MAX} values")
        if anchor is not None:
            self._stop(event, f"anchors are not read, leave out &{anchor[:NAME_SHOWN]}")
        if tag is not None and tag != "tag:yaml.org,2002:str":
            self._stop(event, f"tags are not read, leave out {tag[:NAME_SHOWN]}")

    def _scalar(self, event: ScalarEvent) -> None:
        frame = self._open[-1] if self._open else None
        if frame is not None and isinstance(frame.value, dict) and frame.key is None:
            self._key(frame, event)
            return
        path = self._path()
        self.positions.setdefault(path, _position(event))
        self._add(self._constructed(event, path))
        self._entry_done()

    def _key(self, frame: _Frame, event: ScalarEvent) -> None:
        frame.key = event.value
        assert isinstance(frame.value, dict)
        path = (*frame.path, event.value)
        frame.skip = event.value in frame.value
        if frame.skip:
            line = self.positions[path][0]
            self._note(event, path, "a key may stand only once in a mapping", value=f"it again (first in line {line})")
        self.positions.setdefault(path, _position(event))

    def _start(self, value: dict[str, Any] | list[Any], event: Event) -> None:
        if len(self._open) >= DEPTH_MAX:
            self._stop(event, f"a {self.what} file is nested at most {DEPTH_MAX} deep")
        frame = self._open[-1] if self._open else None
        if frame is not None and isinstance(frame.value, dict) and frame.key is None:
            self._stop(event, f"a key must be text, but got {shown(value)}")
        path = self._path()
        self.positions.setdefault(path, _position(event))
        self._add(value)
        self._open.append(_Frame(value=value, path=path))

    def _path(self) -> Path:
        if not self._open:
            return ()
        frame = self._open[-1]
        if isinstance(frame.value, list):
            return (*frame.path, len(frame.value))
        return frame.path if frame.key is None else (*frame.path, frame.key)

    def _add(self, value: Any) -> None:
        if not self._open:
            self.root = value
            return
        frame = self._open[-1]
        if isinstance(frame.value, list):
            frame.value.append(value)
        elif not frame.skip:
            assert frame.key is not None
            frame.value[frame.key] = value

    def _entry_done(self) -> None:
        if self._open:
            self._open[-1].key = None
            self._open[-1].skip = False

    def _constructed(self, event: ScalarEvent, path: Path) -> Any:
        """Numbers, truth values and null by YAML 1.2's core schema; all else, dates too, stays text."""
        tag = str(self._resolver.resolver.resolve(ScalarNode, event.value, event.implicit))
        if tag not in _PLAIN_TAGS:
            return event.value
        try:
            value = self._resolver.constructor.construct_object(ScalarNode(tag, event.value))
        except (ValueError, YAMLError):
            self._note(event, path, "is not a number that can be read", value=shown(event.value))
            return None
        if (
            isinstance(value, int) and abs(value) > INTEGER_MAX
        ):  # a megabyte of 0xfff… is one that Python cannot even print
            self._note(event, path, "a whole number has at most 64 bits", value=shown(event.value))
            return None
        return value

    def _note(self, event: Event, path: Path, rule: str, *, value: str = "") -> None:
        line, column = _position(event)
        self.problems.append(
            Problem(file=self.file, line=line, column=column, path=spell_path(path), rule=rule, value=value)
        )

    def _stop(self, event: Event, rule: str) -> None:
        self._note(event, self._path(), rule)
        raise _TooMuch


def _position(event: Event) -> tuple[int, int]:
    return event.start_mark.line + 1, event.start_mark.column + 1
