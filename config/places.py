"""Addresses and lists of words among the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def check_url(url: str) -> str:
    """Raises ValueError, without the URL in it."""
    parts = urlsplit(url)
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.username is not None
        or parts.password is not None
    ):
        raise ValueError(
            "must be an address such as https://host:9093 without user and password; those have settings of their own"
        )
    return url


def words(value: object) -> object:
    """A list, or words with commas between them."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


class WebhookPlace(BaseModel):
    """A webhook that policies name. Exactly one of url, url_file and url_env; with a secret, what is sent is signed."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: Annotated[str, AfterValidator(check_url)] | None = Field(default=None, repr=False)
    """Of many webhooks the path is the secret."""
    url_file: Path | None = None
    url_env: str | None = None
    secret_file: Path | None = None
    secret_env: str | None = None

    @model_validator(mode="after")
    def _one_url(self) -> Self:
        if sum(given is not None for given in (self.url, self.url_file, self.url_env)) != 1:
            raise ValueError("give exactly one of url, url_file, url_env")
        if any(path is not None and not path.is_absolute() for path in (self.url_file, self.secret_file)):
            raise ValueError("url_file and secret_file must be absolute paths")
        return self
