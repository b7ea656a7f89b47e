"""Text for Slack that comes from anywhere: no markup, no mentions, no links, and never longer than Block Kit takes. Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

BARS = "▁▂▃▄▅▆▇█"
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co"})
"""Unicode's control and format characters: with them a text can show what it does not say."""


def clean(text: object, longest: int) -> str:
    """One line without characters that cannot be seen, cut to `longest`.

    >>> clean("a\\u202eb\\n  c", 9), clean("abcdef", 4)
    ('ab c', 'abc…')
    """
    seen = "".join(c for c in " ".join(str(text).split()) if unicodedata.category(c) not in _INVISIBLE)
    return seen if len(seen) <= longest else seen[: longest - 1] + "…"


def escaped(text: object, longest: int) -> str:
    """The same where Slack reads markup: its three control characters become entities, and what makes words bold or code, look-alikes.

    >>> escaped("<!channel> & *b*", 99)
    '&lt;!channel&gt; &amp; ∗b∗'
    """
    room, out = longest, []
    for char in clean(text, longest):
        shown = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "*": "∗", "_": "＿", "~": "∼", "`": "ˋ"}.get(char, char)
        room -= len(shown)
        if room < 1:
            out.append("…")
            break
        out.append(shown)
    return "".join(out)


def sparkline(values: Sequence[float]) -> str:
    """
    >>> sparkline([0.7, 0.75, 0.8]), sparkline([0.5, 0.5]), sparkline([])
    ('▁▅█', '▅▅', '')
    """
    if not values:
        return ""
    low, high = min(values), max(values)
    if high == low:
        return BARS[4] * len(values)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1))] for value in values)
