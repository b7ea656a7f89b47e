"""Files that are either whole or not there."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_bytes_atomic(path: Path, content: bytes, *, mode: int = 0o644, durable: bool = False) -> None:
    """Replace `path` by rename, so that a reader or a crash sees the old content or the new, never a part.

    `durable` also flushes to the disk. Raises OSError (disk full, no permission) and then leaves `path` untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json_atomic(path: Path, value: Any, *, mode: int = 0o644, durable: bool = False) -> None:
    """`write_bytes_atomic` of sorted JSON. Raises ValueError on NaN and infinities."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    write_bytes_atomic(path, text.encode(), mode=mode, durable=durable)


def read_json(path: Path) -> Any | None:
    """The JSON in `path`, or None if there is no such file. Raises ValueError naming the file if it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def create_json(path: Path, value: Any, *, durable: bool = False) -> bool:
    """Write JSON to `path` unless something is there already; whether this call was the one that wrote it.

    Of any number of threads and processes that race, exactly one gets True, and nobody ever sees a part (write beside, then link).
    Raises OSError as `write_bytes_atomic` does, ValueError on NaN and infinities.
    """
    content = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        return link_new(Path(temporary), path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def link_new(source: Path, path: Path) -> bool:
    """Give the file `source` the further name `path`; False if that name is taken."""
    try:
        os.link(source, path)
    except FileExistsError:
        return False
    return True
