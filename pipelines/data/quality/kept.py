"""The profile of a model's data as it is kept in the state folder: one JSON file a model, replaced in one move."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from pipelines.data.quality.summary import Block
from pipelines.jobs.files import read_json, write_json_atomic

FORMAT = 1
BLOCKS_MAX = 48


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldRange:
    """Rows that were held: first and last (as `Block.start` and `end`), both included."""

    start: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """What is known of a model's rows."""

    format: int = FORMAT
    key: str
    """Of what the rows mean (source, label, time, task); another key is another profile."""
    window: int
    """Rows of a window."""
    blocks: tuple[Block, ...] = ()
    """Accepted ones, oldest first."""
    held: tuple[HeldRange, ...] = ()

    @property
    def end(self) -> int | None:
        """Of the newest row that was accepted or held."""
        return max([block.end for block in self.blocks] + [held.end for held in self.held], default=None)

    def only(self, columns: frozenset[str]) -> Profile:
        """Without what is known of other columns."""
        return replace(
            self,
            blocks=tuple(
                replace(block, columns={name: c for name, c in block.columns.items() if name in columns})
                for block in self.blocks
            ),
        )


_ADAPTER = TypeAdapter(Profile)


def profile_path(home: Path, model: str) -> Path:
    return home / "quality" / f"{model}.json"


def read_profile(path: Path) -> tuple[Profile | None, str]:
    """The profile, or None if there is none; and a sentence if there is one that cannot be used."""
    try:
        value = read_json(path)
        profile = None if value is None else _ADAPTER.validate_python(value)
    except (OSError, ValueError) as error:
        return None, f"{path} cannot be read and is begun again: {str(error).splitlines()[0]}"
    return (profile if profile is not None and profile.format == FORMAT else None), ""


def load_profile(path: Path, key: str) -> tuple[Profile | None, str]:
    """As `read_profile`, but only the profile of this key."""
    profile, trouble = read_profile(path)
    return (profile if profile is not None and profile.key == key else None), trouble


def save_profile(path: Path, profile: Profile) -> None:
    """Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, _ADAPTER.dump_python(profile, mode="json"))
