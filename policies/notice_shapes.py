"""The shapes of what a policy says about whom to tell."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag

from policies.fields import Shape, Text, one_key

SLACK_CHANNEL = r"^[#CGD]?[^\s#@<>&,:/]+$"


class SlackNotice(Shape):
    """Tells a Slack channel."""

    slack: Annotated[Text, Field(max_length=80, pattern=SLACK_CHANNEL)]
    """The channel, such as `"#ops-models"` (in quotes, because of the #), or its id."""


_HOOK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


def _plain_address(value: str) -> str:
    if _HOOK_NAME.fullmatch(value):
        return value
    if not re.fullmatch(r"https?://[^\s/@?#]+([/?][^\s@#]*)?", value):
        raise ValueError(
            "must be an http or https URL without user, password and fragment, or a name of the daemon's setting webhooks"
        )
    return value


class WebhookNotice(Shape):
    """Tells an HTTP endpoint."""

    webhook: Annotated[Text, AfterValidator(_plain_address)]
    """The URL that gets a JSON POST, or the name of a webhook of the daemon's settings, where its URL and its signature may be secret."""


class LogNotice(Shape):
    """Tells the daemon's log."""

    model_config = ConfigDict(json_schema_extra={"required": ["log"]})

    log: Literal["info", "warning"] = "info"
    """The level: `info` or `warning`."""


NOTICE_KEYS = ("slack", "webhook", "log")
Notice = Annotated[
    Annotated[SlackNotice, Tag("<slack>")]
    | Annotated[WebhookNotice, Tag("<webhook>")]
    | Annotated[LogNotice, Tag("<log>")],
    Discriminator(
        lambda v: one_key(v, NOTICE_KEYS),
        custom_error_type="notice_unknown",
        custom_error_message="a notice is a mapping with one of the keys " + ", ".join(NOTICE_KEYS),
        custom_error_context={"choices": list(NOTICE_KEYS)},
    ),
]
