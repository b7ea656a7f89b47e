"""What a version's drift is measured against: its profile, and where more is needed the reference rows themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evaluators.answers import ModelFolder
from evaluators.drift.preset import DriftUnknownError
from evaluators.wording import count
from pipelines.data.profile import REFERENCE_FILE, Profile, ProfileError, profile_rows, read_profile

if TYPE_CHECKING:
    import pandas as pd

REFERENCE_ROWS_MIN = 30


def reference_profile(folder: ModelFolder, problems: list[str]) -> Profile:
    """The profile that was stored with the version; without a usable one (older versions have none) it is made of the reference rows.

    Adds a sentence to `problems` if the stored one is damaged or is that of other features. Raises DriftUnknownError if there are no
    features or too few reference rows.
    """
    if not folder.features:
        raise DriftUnknownError("the champion has no features to compare")
    try:
        profile = read_profile(folder.path)
        if profile is not None and _kinds(profile) != {f["name"]: f["kind"] for f in folder.features}:
            raise ProfileError(f"{folder.path}: the profile is not one of the features of model.json")
    except ProfileError as error:
        problems.append(f"{error}; made again of {REFERENCE_FILE}")
        profile = None
    if profile is None:
        profile = profile_rows(reference_rows(folder.path), folder.features)
    if profile.rows < REFERENCE_ROWS_MIN:
        where = folder.path / REFERENCE_FILE
        raise DriftUnknownError(
            f"the champion's reference {where} has {count(profile.rows)}, {REFERENCE_ROWS_MIN} needed"
        )
    return profile


def _kinds(profile: Profile) -> dict[str, str]:
    kinds = dict.fromkeys(profile.numbers.names, "numeric") | dict.fromkeys(profile.texts, "text")
    return kinds | {name: "boolean" if name in profile.booleans else "categorical" for name in profile.categories}


def reference_rows(folder: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The rows of a model folder. Raises DriftUnknownError."""
    import pandas as pd

    path = folder / REFERENCE_FILE
    try:
        frame: pd.DataFrame = pd.read_parquet(path, columns=None if columns is None else list(columns))
    except (OSError, ValueError) as error:
        raise DriftUnknownError(f"the champion's reference rows {path} cannot be read: {error}") from error
    return frame


def text_features(features: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    return [feature for feature in features if feature["kind"] == "text"]
