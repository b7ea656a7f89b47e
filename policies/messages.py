"""pydantic's errors in the words of the owner of a policy.

pydantic says where in the schema a value failed; a person wants to know where in the file, which rule, and what to
write instead. Errors that only follow from another one are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from policies.documents import Document
from policies.durations import spell_duration
from policies.fields import NAME_PATTERN, NAME_RULE
from policies.gate_shapes import GATE_KEYS
from policies.known_keys import known_keys
from policies.metric_shapes import METRIC_NAME
from policies.notice_shapes import SLACK_CHANNEL
from policies.problems import Path, Problem, did_you_mean, shown, spell_path
from policies.trigger_shapes import ALERT_LABEL, TRIGGER_KEYS

PROBLEMS_MAX = 100
"""A file; more would not be read, and a hostile file could have very many."""
_NOUNS = {
    "string_type": "text", "int_type": "a whole number", "float_type": "a number", "bool_type": "true or false",
    "tuple_type": "a list", "mapping_type": "a mapping", "model_type": "a mapping", "dict_type": "a mapping",
    "model_attributes_type": "a mapping", "finite_number": "a finite number",
}  # fmt: skip
_PATTERNS = {
    NAME_PATTERN: NAME_RULE,
    METRIC_NAME: "must be a metric's name: at most 64 letters, digits and _, not starting with a digit",
    SLACK_CHANNEL: 'must be a channel of Slack, such as "#ops-models", or its id',
    ALERT_LABEL: "must be the name of a label: letters, digits and _, not starting with a digit",
}
_BOUNDS = {
    "greater_than": ("gt", "greater than"), "greater_than_equal": ("ge", "at least"), "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}  # fmt: skip


def translate(error: ValidationError, document: Document, *, file: str) -> list[Problem]:
    """Each mistake once, in the order of the file; at most `PROBLEMS_MAX`, the last of which then says so."""
    details = error.errors(include_url=False)
    found: dict[tuple[Path, str], Problem] = {}
    nouns: dict[Path, list[str]] = {}
    for detail in details[: PROBLEMS_MAX * 2]:
        path = _place(detail, document.value)
        if detail["type"] in _NOUNS:
            nouns.setdefault(path, []).append(_NOUNS[detail["type"]])
            detail["ctx"] = {"nouns": nouns[path]}
        said = _say(detail, path, document.value)
        if said is not None:
            at, rule, value, suggestion = said
            line, column = document.position(at)
            kind = "type" if detail["type"] in _NOUNS else rule
            found[at, kind] = Problem(
                file=file, line=line, column=column, path=spell_path(at), rule=rule, value=value, suggestion=suggestion
            )
    problems = sorted(_without_followers(list(found.values())), key=lambda p: (p.line, p.column))
    if len(problems) <= PROBLEMS_MAX:
        return problems
    shown_last = problems[PROBLEMS_MAX - 1]
    more = Problem(
        file=file, line=shown_last.line, column=shown_last.column, rule="more problems from here on, not shown"
    )
    return [*problems[: PROBLEMS_MAX - 1], more]


def _without_followers(problems: list[Problem]) -> list[Problem]:
    """A required key that is only misspelt is one mistake, not two."""
    meant = {
        p.path.rpartition(".")[0] + "." + match[1]
        for p in problems
        if p.rule.startswith("unknown key") and (match := re.search(r"did you mean '(\w+)'", p.suggestion))
    }
    return [p for p in problems if not (p.rule == "is required" and (p.path in meant or f".{p.path}" in meant))]


def _place(detail: ErrorDetails, value: Any) -> Path:
    """The place in the file: pydantic's, without the names of union members, which the file does not have."""
    steps = [step for step in detail["loc"] if not (isinstance(step, str) and step.startswith("<"))]
    path: Path = ()
    for i, step in enumerate(steps):
        last = i == len(steps) - 1
        if _has_child(value, step):
            path, value = (*path, step), _child(value, step)
        elif step == "hold" and isinstance(value, Mapping) and len(value) == 1:
            path, value = (*path, next(iter(value))), next(iter(value.values()))
        elif last and detail["type"] == "missing" and isinstance(value, Mapping):
            path = (*path, step)
    return path


_Said = tuple[Path, str, str, str]
"""Place, rule, value, suggestion."""


def _say(detail: ErrorDetails, path: Path, document: Any) -> _Said | None:
    kind, context = detail["type"], detail.get("ctx", {})
    value = _value(detail, path, document)
    match kind:
        case "missing":
            return path, "is required", "", ""
        case "extra_forbidden":
            return _unknown_key(path, document)
        case "too_short" if isinstance(detail["input"], list) and len(detail["input"]) >= context["min_length"]:
            return None  # its items are wrong, and reported
        case "too_short":
            return path, f"must hold at least {context['min_length']}", "none", ""
        case "string_too_short":
            return path, "must not be empty", "", ""
        case "string_pattern_mismatch":
            return path, _PATTERNS.get(context["pattern"], "must be module:function"), shown(detail["input"]), ""
        case "enum" | "literal_error":
            return _choice(path, re.findall(r"'([^']*)'", context["expected"]), value, detail["input"])
        case "union_tag_invalid":
            choices = re.findall(r"'([^']*)'", context["expected_tags"])
            return _choice((*path, "kind"), choices, shown(context["tag"]), context["tag"])
        case "union_tag_not_found":
            return (*path, "kind"), "is required", "", ""
        case "choice":
            return path, _own_words(detail), value, did_you_mean(detail["input"], context["choices"])
        case "trigger_unknown" | "gate_unknown" | "notice_unknown":
            return _unknown_member(kind.removesuffix("_unknown"), detail, path, context["choices"])
        case "value_error":
            rule, _, got = _own_words(detail).rpartition(", but got ")
            return (path, rule, got if _is_container(detail["input"]) else value, "") if rule else (path, got, "", "")
    if kind in _NOUNS:
        return _wrong_type(path, context["nouns"], value, detail["input"])
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        bound = context[key]
        return path, f"must be {words} {'0s' if isinstance(bound, str | timedelta) else f'{bound:g}'}", value, ""
    return path, _own_words(detail), value, ""


def _own_words(detail: ErrorDetails) -> str:
    return detail["msg"].removeprefix("Value error, ")


def _is_container(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple)


def _value(detail: ErrorDetails, path: Path, document: Any) -> str:
    """What stands in the file at `path`, which a validator may already have turned into something else."""
    for step in path:
        document = _child(document, step)
    given = detail["input"]
    if isinstance(given, timedelta):
        return shown(document) if isinstance(document, str) else shown(spell_duration(given))
    return shown(given if _is_container(document) and not _is_container(given) else document)


def _has_child(document: Any, step: str | int) -> bool:
    if isinstance(document, Mapping):
        return step in document
    return isinstance(document, list) and isinstance(step, int) and step < len(document)


def _child(document: Any, step: str | int) -> Any:
    if isinstance(document, Mapping):
        return document.get(step)
    return document[step] if isinstance(document, list) and isinstance(step, int) else None


def _choice(path: Path, choices: list[str], value: str, given: object) -> _Said:
    if len(choices) == 1:
        return path, f"must be {choices[0]}", value, ""
    return path, f"must be one of {', '.join(choices)}", value, did_you_mean(given, choices)


def _wrong_type(path: Path, nouns: list[str], value: str, given: object) -> _Said:
    wanted = [noun for noun in dict.fromkeys(nouns) if not (noun == "a whole number" and "a number" in nouns)]
    *most, last = wanted
    rule = f"must be {', '.join(most)} or {last}" if most else f"must be {last}"
    number_as_text = isinstance(given, str) and "number" in rule and re.fullmatch(r"[-+]?[\d.]+", given)
    if number_as_text:
        return path, rule, value, "leave out the quotes"
    needs_quotes = wanted == ["text"] and isinstance(given, int | float)
    return path, rule, value, f'write it in quotes: "{value}"' if needs_quotes else ""


def _unknown_member(what: str, detail: ErrorDetails, path: Path, choices: list[str]) -> _Said:
    given = detail["input"]
    listed = ", ".join(choices)
    if not isinstance(given, Mapping):
        hint = f"write {{{given}: …}}" if isinstance(given, str) and given in choices else ""
        return path, f"a {what} is a mapping with one of the keys {listed}", shown(given), hint
    for key in given:
        if hint := did_you_mean(key, choices):
            return (*path, key), f"unknown {what} {shown(key)}", "", hint
    keys = ", ".join(str(key) for key in given) or "none"
    return path, f"a {what} is a mapping with one of the keys {listed}", keys[:80], ""


def _unknown_key(path: Path, document: Any) -> _Said:
    *parents, key = path
    parent = document
    for step in parents:
        parent = parent[step]
    for what, keys in (("trigger", TRIGGER_KEYS), ("gate", GATE_KEYS)):
        present = [k for k in keys if k in parent]
        if key in present and len(present) > 1 and _is_member(what, tuple(parents)):
            hint = (
                "at_least goes with of"
                if "at_least" in present and what == "trigger"
                else f"make each a {what} of its own"
            )
            return tuple(parents), f"a {what} has one of these keys", " and ".join(present), hint
    choices = known_keys(document, tuple(parents))
    hint = did_you_mean(key, choices) or (f"there are {', '.join(choices)}" if choices else "")
    return path, f"unknown key {shown(key)}", "", hint


def _is_member(what: str, path: Path) -> bool:
    """Whether a trigger or gate stands at `path`."""
    if what == "gate":
        return len(path) == 3 and path[:2] == ("spec", "gates")
    return path[:2] == ("spec", "triggers") and (len(path) == 2 or isinstance(path[-1], int))
