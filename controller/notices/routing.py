"""Who is told what: by the policy of the model, and by the daemon's settings where that says nothing. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controller.state import NoticeRecord

LOG = "log"
"""The channel that is told everything: `notices.jsonl` and the daemon's log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Defaults:
    """Who is told of models whose policies name nobody of that kind, and of incidents. Empty for nobody."""

    slack: str = ""
    webhook: str = ""


def channels_of(
    notice: NoticeRecord, defaults: Defaults, told_of: Callable[[str], Sequence[Mapping[str, Any]]]
) -> list[str]:
    """The channels of a notice, each once. `told_of`: what the policy of a model says under `notify`; an incident is told to those of all
    the models that it names."""
    if "incident" in notice.data:
        wanted = [one for name in notice.data.get("names", ()) for one in told_of(str(name))]
    else:
        wanted = list(notice.data.get("to", ()))
    slack = [str(one["slack"]) for one in wanted if "slack" in one] or ([defaults.slack] if defaults.slack else [])
    hooks = [str(one["webhook"]) for one in wanted if "webhook" in one]
    hooks = hooks or ([defaults.webhook] if defaults.webhook else [])
    named = [f"slack:{channel}" for channel in slack] + [f"webhook:{hook}" for hook in hooks]
    return list(dict.fromkeys([LOG, *named]))
