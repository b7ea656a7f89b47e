"""Puts a digest into a file of a GitOps repository, and leaves all else in it as its owner wrote it. Pure.

Two shapes: the entry of `images:` in a `kustomization.yaml` (Argo CD and Flux both read it), and a dotted key of any YAML file, such as
Helm values. Comments, order and quotes are kept (ruamel.yaml's round trip).
"""

from __future__ import annotations

import io
import itertools
from collections.abc import MutableMapping, MutableSequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

SIZE_MAX = 1 << 20
"""Bytes of a file that is changed."""


DEPTH_MAX = 64


class FileRefused(ValueError):
    """The file has no place for a digest; the message says what to write into it."""


def with_digest(content: bytes, digest: str, *, key: str, image: str) -> bytes:
    """The file with the digest in it; the very same bytes if it stands there already. `key`: dotted, or empty for a kustomization.

    >>> print(with_digest(b"image:  # ours\\n  digest: old\\n", "sha256:ab", key="image.digest", image="").decode(), end="")
    image:  # ours
      digest: sha256:ab

    Raises FileRefused."""
    yaml = _yaml()
    document = _load(yaml, content)
    changed = _set_key(document, key.split("."), digest) if key else _set_image(document, image, digest)
    if not changed:
        return content
    out = io.BytesIO()
    yaml.dump(document, out)
    return out.getvalue()


def digest_in(content: bytes, *, key: str, image: str) -> str | None:
    """What stands there now; None for nothing. Raises FileRefused."""
    document = _load(_yaml(), content)
    if key:
        found: Any = document
        for step in key.split("."):
            found = found.get(step) if isinstance(found, MutableMapping) else None
    else:
        found = next((one.get("digest") for one in _images(document) if one.get("name") == image), None)
    return None if found is None else str(found)


def _yaml() -> YAML:
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 4096
    return yaml


def _load(yaml: YAML, content: bytes) -> MutableMapping[str, Any]:
    if len(content) > SIZE_MAX:
        raise FileRefused(f"it has more than {SIZE_MAX:,} bytes")
    if b"&" in content and b"*" in content and content.count(b"*") > 1000:
        raise FileRefused("it repeats itself by too many aliases")
    if _is_deep(content):
        raise FileRefused("it is nested too deeply")
    try:
        text = content.decode("utf-8")
        yaml.indent(**_indentation(text))
        yaml.explicit_start = text.lstrip().startswith("---")
        document = yaml.load(text)
    except (YAMLError, ValueError, RecursionError) as error:
        raise FileRefused(f"it is not a YAML document ({type(error).__name__})") from error
    if not isinstance(document, MutableMapping):
        raise FileRefused("it must hold a mapping")
    return document


def _is_deep(content: bytes) -> bool:
    """Whether it may be nested so deeply that reading it takes long (ruamel.yaml's time grows with the square of the depth)."""
    depth = 0
    for byte in content:
        depth += (byte in b"[{") - (byte in b"]}" and depth > 0)
        if depth > DEPTH_MAX:
            return True
    return b"- " * DEPTH_MAX in content or any(
        len(line) - len(line.lstrip()) > 8 * DEPTH_MAX for line in content.splitlines()
    )


def _indentation(text: str) -> dict[str, int]:
    """How the file is indented, by its first list (`- x` under its key, or further in) and its first mapping in a mapping."""
    sequence = mapping = None
    for before, line in itertools.pairwise(
        line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")
    ):
        if before.split(" #")[0].rstrip().endswith(":"):
            further = _depth(line) - _depth(before)
            if line.lstrip().startswith("- "):
                sequence = further if sequence is None else sequence
            elif further > 0 and not before.lstrip().startswith("- "):
                mapping = further if mapping is None else mapping
    return {"mapping": mapping or 2, "sequence": (sequence or 0) + 2, "offset": sequence or 0}


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def _set_key(document: MutableMapping[str, Any], steps: list[str], digest: str) -> bool:
    here: Any = document
    for step in steps[:-1]:
        here = here.get(step) if isinstance(here, MutableMapping) else None
    if not isinstance(here, MutableMapping):
        raise FileRefused(f"it has no mapping {'.'.join(steps[:-1])!r} for the digest to stand in")
    if here.get(steps[-1]) == digest:
        return False
    here[steps[-1]] = digest
    return True


def _images(document: MutableMapping[str, Any]) -> MutableSequence[Any]:
    found = document.get("images")
    if found is not None and not isinstance(found, MutableSequence):
        raise FileRefused("its images must be a list")
    return [one for one in found or [] if isinstance(one, MutableMapping)]


def _set_image(document: MutableMapping[str, Any], image: str, digest: str) -> bool:
    if "kind" in document and document["kind"] not in ("Kustomization", "Component"):
        raise FileRefused(f"it is a {document['kind']} and no Kustomization; name the key of the digest in gitops_key")
    entry = next((one for one in _images(document) if one.get("name") == image), None)
    if entry is None:
        if document.get("images") is None:
            document["images"] = []
        document["images"].append({"name": image, "digest": digest})
        return True
    if entry.get("digest") == digest and "newTag" not in entry:
        return False
    entry["digest"] = digest
    entry.pop(
        "newTag", None
    )  # as `kustomize edit set image NAME@DIGEST` does: a tag beside a digest would say something else
    return True
