"""Which keys the schema knows at a place of a document, so that a misspelt one can be put right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from policies.fields import Shape
from policies.problems import Path
from policies.schema import ModelPolicy


def known_keys(document: Any, place: Path) -> list[str]:
    """The keys that may stand in the mapping at `place`, sorted; empty if any key may.

    >>> known_keys({"metadata": {}}, ("metadata",))
    ['annotations', 'labels', 'name']
    """
    kinds: list[Any] = [ModelPolicy]
    here = document
    for step in place:
        kinds = [below for shape in _shapes(kinds, here) for below in _below(shape, step)]
        here = here[step]
    return sorted({key for shape in _shapes(kinds, here) for key in _keys(shape)})


def _shapes(kinds: list[Any], here: Any) -> list[Any]:
    """Of the types that a value may have, the shapes that share most keys with it, and all that are not shapes."""
    flat = [kind for outer in kinds for kind in _flatten(outer)]
    shapes = [kind for kind in flat if isinstance(kind, type) and issubclass(kind, Shape)]
    shared = {shape: len(set(_keys(shape)) & set(here)) if isinstance(here, Mapping) else 0 for shape in shapes}
    most = max(shared.values(), default=0)
    return [shape for shape in shapes if shared[shape] == most] + [kind for kind in flat if get_origin(kind)]


def _flatten(kind: Any) -> Iterator[Any]:
    """The members of a union, looking through annotations."""
    if get_origin(kind) is Annotated:
        yield from _flatten(get_args(kind)[0])
    elif get_origin(kind) in (Union, UnionType):
        for member in get_args(kind):
            yield from _flatten(member)
    else:
        yield kind


def _below(kind: Any, step: str | int) -> list[Any]:
    """The types of what stands under one key or index of a value of type `kind`."""
    if isinstance(step, int):
        return [arg for arg in get_args(kind) if arg is not Ellipsis] if get_origin(kind) is tuple else []
    if isinstance(kind, type) and issubclass(kind, Shape):
        return [info.annotation for name, info in kind.model_fields.items() if (info.alias or name) == step]
    return list(get_args(kind)[1:])


def _keys(kind: Any) -> list[str]:
    if not (isinstance(kind, type) and issubclass(kind, Shape)):
        return []
    return [info.alias or name for name, info in kind.model_fields.items()]
