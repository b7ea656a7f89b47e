"""The JSON Schema (Draft 2020-12) of policy files, with which editors complete and check them.

It accepts the short forms that people write, and the long forms of the canonical JSON. It cannot say what only holds
across fields (such as that a metric fits the task); `ratchet validate` does.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from policies.durations import spell_duration
from policies.schema import ModelPolicy

DIALECT = "https://json-schema.org/draft/2020-12/schema"


class _Generate(GenerateJsonSchema):
    """Defaults are spelt as people write them."""

    def encode_default(self, dft: Any) -> Any:
        return spell_duration(dft) if isinstance(dft, timedelta) else super().encode_default(dft)


def json_schema() -> dict[str, Any]:
    """A new dict at each call."""
    schema = _plain(ModelPolicy.model_json_schema(by_alias=True, mode="validation", schema_generator=_Generate))
    return {
        "$schema": DIALECT,
        "$id": "https://ratchet.dev/v1/model-policy.json",
        **schema,
        "title": "Ratchet model policy",
    }


def _plain(schema: Any) -> Any:
    """`anyOf` for `oneOf`, since `{low: 1, high: 9}` fits both ranges; without OpenAPI's `discriminator` and the titles
    that only repeat a key."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {
        key: value for key, value in schema.items() if not (key in ("discriminator", "title") and _is_keyword(value))
    }
    return {("anyOf" if key == "oneOf" else key): _plain(value) for key, value in kept.items()}


def _is_keyword(value: Any) -> bool:
    """Whether `title` or `discriminator` is the keyword here, not the name of a property, which would have a schema."""
    return isinstance(value, str) or "propertyName" in value
