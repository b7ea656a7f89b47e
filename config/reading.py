"""The daemon's settings from all their places: the command line before the environment before a YAML file before the defaults.

The file is read as policies are: bounded, plain values only, and all that is wrong is said at once, each with its line. Values of what may
hold a password are never repeated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import EnvSettingsSource
from pydantic_settings import SettingsError as VariableError

from config.settings import PREFIX, Settings
from policies.documents import SIZE_MAX, Document, parse_document
from policies.problems import Path as Place
from policies.problems import Problem, did_you_mean, shown, spell_path

FILE_VARIABLE = f"{PREFIX}SETTINGS"
"""Names the settings file; so does `ratchet daemon --settings`."""
_MAY_HOLD_SECRETS = re.compile(r"database|storage|url|token|password|secret|key|webhook", re.IGNORECASE)

_KINDS = {
    "int_parsing": "a whole number", "int_type": "a whole number", "int_from_float": "a whole number",
    "float_parsing": "a number", "float_type": "a number", "bool_parsing": "true or false", "bool_type": "true or false",
    "string_type": "text", "path_type": "a path", "tuple_type": "a list", "mapping_type": "a mapping", "dict_type": "a mapping",
    "model_type": "a mapping",
}  # fmt: skip
"""pydantic's kinds of errors, in the words of YAML."""


class SettingsError(ValueError):
    """Everything that is wrong with the settings, a line each."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, problems)))


def read_settings(file: Path | None = None, **given: Any) -> Settings:
    """The settings; what is `given` by keyword is from the command line, None for what was not said. Raises SettingsError."""
    document = _read(file) if file is not None else Document(value={}, positions={})
    said = {name: value for name, value in given.items() if value is not None}
    try:
        variables = EnvSettingsSource(Settings)()
    except VariableError as error:
        names = re.findall(r'field "(\w+)"', str(error))
        variable = f"{PREFIX}{names[0].upper()}" if names else f"{PREFIX}…"
        raise SettingsError([Problem(file=variable, rule="must be valid JSON, or stand in a settings file")]) from error
    from_file = _with_places(document.value, file) if file is not None else {}
    origin = [*dict.fromkeys([*said, *variables])]
    try:
        return Settings(**{**from_file, **variables, **said})
    except ValidationError as error:
        details = error.errors(include_url=False)
        problems = [
            _of_file(detail, document, str(file))
            if str(detail["loc"][:1] and detail["loc"][0]) in from_file and detail["loc"][0] not in origin
            else _of_variable(detail)
            for detail in details
        ]
        raise SettingsError(sorted(problems, key=lambda p: (p.line, p.column))) from error


def _read(file: Path) -> Document:
    """The file's mapping of settings. Raises SettingsError."""
    try:
        with file.expanduser().open("rb") as handle:
            content = handle.read(SIZE_MAX + 1)
    except OSError as error:
        rule = f"cannot be read: {(error.strerror or str(error)).lower()}; it is named by --settings or {FILE_VARIABLE}"
        raise SettingsError([Problem(file=str(file), rule=rule)]) from error
    document, problems = parse_document(content, file=str(file), what="settings")
    if document is None or problems:
        raise SettingsError(problems)
    if document.value is None:  # a file of comments only
        return Document(value={}, positions={})
    if not isinstance(document.value, Mapping):
        rule = "a settings file must hold a mapping, such as tick_s: 5"
        raise SettingsError([Problem(file=str(file), line=1, rule=rule)])  # its text may be a secret named by mistake
    unknown = [_unknown((key,), document, str(file)) for key in document.value if key not in Settings.model_fields]
    if unknown:
        raise SettingsError(unknown + _wrong_besides(document, str(file)))
    return document


def _wrong_besides(document: Document, file: str) -> list[Problem]:
    """What is wrong with the settings that are known, so that one run tells everything."""
    known = {key: value for key, value in document.value.items() if key in Settings.model_fields}
    try:
        Settings(**known)
    except ValidationError as error:
        details = error.errors(include_url=False)
        return [_of_file(detail, document, file) for detail in details if detail["loc"] and detail["loc"][0] in known]
    return []


def _with_places(value: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Relative paths start at the file's folder, wherever the daemon is started."""
    folder = file.expanduser().absolute().parent
    return {
        key: str(folder / Path(entry).expanduser()) if isinstance(entry, str) and _is_path(key) else entry
        for key, entry in value.items()
    }


def _is_path(name: str) -> bool:
    return Path in set(_flatten(Settings.model_fields[name].annotation))


# ---------------------------------------------------------------- words
def _of_file(detail: ErrorDetails, document: Document, file: str) -> Problem:
    place = _place(detail["loc"], document.value)
    if detail["type"] == "extra_forbidden":
        return _unknown(place, document, file)
    line, column = document.position(place)
    secret = any(_MAY_HOLD_SECRETS.search(str(step)) for step in place)
    said = detail["type"] == "value_error" and isinstance(detail["input"], Mapping)  # the rule is about what is in it
    value = "" if detail["type"] == "missing" or secret or said else shown(detail["input"])
    rule = "is required" if detail["type"] == "missing" else _rule(detail)
    return Problem(file=file, line=line, column=column, path=spell_path(place), rule=rule, value=value)


def _of_variable(detail: ErrorDetails) -> Problem:
    loc = [str(step) for step in detail["loc"]]
    if not loc:
        return Problem(file="settings", rule=_rule(detail))
    if detail["type"] in ("mapping_type", "dict_type", "list_type", "tuple_type"):  # its JSON could not be read
        return Problem(file=f"{PREFIX}{loc[0].upper()}", rule="must be valid JSON, or stand in a settings file")
    value = "" if any(map(_MAY_HOLD_SECRETS.search, loc)) else shown(detail["input"])
    return Problem(file=f"{PREFIX}{'.'.join(loc).upper()}", rule=_rule(detail), value=value)


def _rule(detail: ErrorDetails) -> str:
    words = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if detail["type"] == "value_error":
        return words
    if detail["type"] in _KINDS:
        return f"must be {_KINDS[detail['type']]}"
    return f"must {words.removeprefix('String should ')}" if words.startswith("String should ") else f"must be {words}"


def _place(loc: tuple[int | str, ...], value: Any) -> Place:
    """pydantic's place without what the file does not have: names of validators, and of members of a union."""
    place: list[str | int] = []
    for step in loc:
        listed = isinstance(value, list) and isinstance(step, int) and step < len(value)
        if listed or (isinstance(value, Mapping) and step in value):
            value = value[step]
        elif step is not loc[-1] or step == "[key]" or not isinstance(value, Mapping):
            continue
        place.append(step)
    return tuple(place)


def _unknown(place: Place, document: Document, file: str) -> Problem:
    """An unknown key, with the one that may be meant or all that there are."""
    *above, key = place
    kinds: list[Any] = [Settings]
    for step in above:
        kinds = [below for kind in kinds for below in _below(kind, step)]
    choices = sorted({name for kind in kinds if _has_fields(kind) for name in kind.model_fields})
    hint = did_you_mean(key, choices) or (f"there are {', '.join(choices)}" if above and choices else "")
    line, column = document.position(place)
    rule = f"unknown {'key' if above else 'setting'} {shown(key)}"
    return Problem(
        file=file, line=line, column=column, path=spell_path(place), rule=rule, value="",
        suggestion=hint or "docs/settings.md lists all settings",
    )  # fmt: skip


def _below(kind: Any, step: str | int) -> Iterator[Any]:
    if _has_fields(kind):
        fields = kind.model_fields
        yield from _flatten(fields[step].annotation) if step in fields else ()
    else:
        for argument in get_args(kind)[-1:]:
            yield from _flatten(argument)


def _has_fields(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _flatten(kind: Any) -> Iterator[Any]:
    if get_origin(kind) is Annotated:
        yield from _flatten(get_args(kind)[0])
    elif get_origin(kind) in (Union, UnionType):
        for member in get_args(kind):
            yield from _flatten(member)
    else:
        yield kind
