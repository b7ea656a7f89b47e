"""What Slack shows: Block Kit, within its documented limits (docs.slack.dev/reference/block-kit). Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from controller.notices.slack_text import clean, escaped, sparkline
from controller.state import NoticeRecord, Outcome, Phase

Block = dict[str, Any]

HEADER_MAX = 150
SECTION_MAX = 3_000
FIELD_MAX = 2_000
FIELDS_MAX = 10
VALUE_MAX = 2_000
NAMES_SHOWN = 10
GATES_SHOWN = 8
ACTION = "ratchet."
"""Beginning of our buttons' names."""
LOUD = frozenset(
    {
        "approval.requested",
        "challenger.failing",
        "cycle.failed",
        "cycle.rolled_back",
        "version.promoted",
        "incident.opened",
    }
)
"""Kinds that the whole channel sees, not only who follows the thread."""
MARKS: Mapping[str, str] = {
    "cycle.opened": "🔁", "gates.passed": "✅", "approval.requested": "✋", "step.reached": "🚦", "version.promoted": "🚀",
    "cycle.promoted": "🏁", "cycle.rejected": "🚫", "cycle.ended_inconclusive": "❔", "cycle.rolled_back": "⏪", "cycle.failed": "💥",
    "cycle.aborted": "🛑", "cycle.superseded": "↪️", "challenger.failing": "🔥", "incident.opened": "🚨", "incident.grown": "🚨",
    "incident.closed": "✅",
}  # fmt: skip
WORDS: Mapping[str, str] = {
    "cycle.opened": "cycle opened", "gates.passed": "gates passed", "approval.requested": "approval wanted",
    "step.reached": "canary goes on", "version.promoted": "promoted", "cycle.promoted": "stays champion",
    "cycle.rejected": "challenger rejected", "cycle.ended_inconclusive": "ended undecided", "cycle.rolled_back": "rolled back",
    "cycle.failed": "cycle failed", "cycle.aborted": "cycle aborted", "cycle.superseded": "cycle superseded",
    "challenger.failing": "challenger is failing", "incident.opened": "data incident", "incident.grown": "data incident grows",
    "incident.closed": "data incident over", "notices.tested": "test of notices",
}  # fmt: skip


def mark(kind: str) -> str:
    return MARKS.get(kind, "👤" if kind.startswith("override.") else "ℹ️")


def words(kind: str) -> str:
    """
    >>> words("gates.passed"), words("override.pin")
    ('gates passed', 'order: pin')
    """
    return WORDS.get(kind, kind.replace("override.", "order: ").replace("_", " ").replace(".", " "))


def fallback(notice: NoticeRecord) -> str:
    """For notifications and screen readers."""
    return escaped(f"{mark(notice.kind)} {notice.model}: {words(notice.kind)}: {notice.text}", 1_000)


def notice_blocks(notice: NoticeRecord, link: str, *, buttons: bool) -> list[Block]:
    """The newest state of a cycle, or whatever else one notice tells."""
    facts = notice.data
    number = f" · cycle {facts['cycle']}" if "cycle" in facts else ""
    blocks = [
        _header(f"{mark(notice.kind)} {notice.model}{number}: {words(notice.kind)}"),
        _plain(notice.text),
        *_fields(facts),
        *_gates(facts),
        *_actions(notice, link, buttons=buttons),
        _context(notice),
    ]
    return [block for block in blocks if block]


def reply_blocks(notice: NoticeRecord) -> list[Block]:
    """What is added to the thread."""
    return [_plain(f"{mark(notice.kind)} {words(notice.kind)}: {notice.text}"), _context(notice)]


def incident_blocks(notice: NoticeRecord, link: str) -> list[Block]:
    """One fault, however many models have it."""
    facts = notice.data
    count = f"{facts.get('models', 1):,} model{'s' if facts.get('models', 1) != 1 else ''}"
    over = "over" if facts.get("over") else "open"
    names = [str(name) for name in facts.get("names", ())]
    fields = {
        "Models": f"{count}, {facts.get('affected', 0):,} now", "Fault": str(facts.get("fault", "")).replace("_", " "),
        "Source": facts.get("source", ""), "Column": facts.get("column") or "the whole table",
        "Since": str(facts.get("since", ""))[:16].replace("T", " ") + " UTC", "Named": _some(names, int(facts.get("models", 0))),
    }  # fmt: skip
    kind = "incident.closed" if facts.get("over") else "incident.opened"
    blocks = [
        _header(f"{mark(kind)} data incident {facts.get('incident', '')} is {over}: {count}"),
        _plain(notice.text), _field_block(fields), *_link_only(link), _context(notice),
    ]  # fmt: skip
    return [block for block in blocks if block]


def digest_blocks(kind: str, count: int, names: Sequence[str], sample: str, link: str) -> list[Block]:
    """Many models of which the same is to be told. The dashboard has each."""
    return [
        _header(f"{mark(kind)} {count:,} × {words(kind)}"),
        _plain(f"For example {sample}"),
        _section(f"*Models*\n{escaped(_some(names, count), FIELD_MAX)}"),
        *_link_only(link),
    ]


def digest_fallback(kind: str, count: int, names: Sequence[str]) -> str:
    return escaped(f"{mark(kind)} {count:,} × {words(kind)}: {_some(names, count)}", 1_000)


def _some(names: Sequence[str], count: int) -> str:
    shown = list(dict.fromkeys(names))[:NAMES_SHOWN]
    more = count - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more > 0 else "")


# ---------------------------------------------------------------- parts
def _header(text: str) -> Block:
    return {"type": "header", "text": {"type": "plain_text", "text": clean(text, HEADER_MAX), "emoji": True}}


def _plain(text: str) -> Block:
    """Sentences hold what people and data wrote, so Slack must read no markup in them."""
    return {"type": "section", "text": {"type": "plain_text", "text": clean(text, SECTION_MAX) or "–", "emoji": False}}


def _section(mrkdwn: str) -> Block:
    return {"type": "section", "text": {"type": "mrkdwn", "text": mrkdwn, "verbatim": True}}


def _fields(facts: Mapping[str, Any]) -> list[Block]:
    named: dict[str, str] = {}
    if "champion" in facts:
        named["Champion"] = f"v{facts['champion']}"
    if "challenger" in facts:
        named["Challenger"] = f"v{facts['challenger']}"
    if "outcome" in facts or "phase" in facts:
        named["State"] = str(facts.get("outcome") or facts.get("phase")).replace("_", " ")
    if "score" in facts:
        before = f" (champion {facts['champion_score']:.4f})" if "champion_score" in facts else ""
        rows = f" on {facts['judged_rows']:,} rows" if isinstance(facts.get("judged_rows"), int) else ""
        named[str(facts.get("metric", "score"))] = f"{facts['score']:.4f}{before}{rows}"
    named |= _canary(facts)
    if len(facts.get("history", ())) > 1:
        scores = [float(score) for _, score in facts["history"]]
        named["Versions' scores"] = f"{sparkline(scores)} {scores[0]:.3f} → {scores[-1]:.3f}"
    if facts.get("cause"):
        named["Because"] = str(facts["cause"]).partition(": ")[2] or str(facts["cause"])
    return [_field_block(named)] if named else []


def _canary(facts: Mapping[str, Any]) -> dict[str, str]:
    named = {}
    traffic = facts.get("traffic", {})
    parts = [f"{version} {weight:g} %" for version, weight in traffic.get("weights", {}).items()]
    if "shadow" in traffic:
        parts.append(f"{traffic['shadow']} in shadow")
    if parts:
        step = facts.get("step")
        named["Traffic"] = ", ".join(parts) + (f" (step {step['number']} of {step['of']})" if step else "")
    compared = facts.get("comparison", {})
    if compared.get("challenger_score") is not None and compared.get("champion_score") is not None:
        named["Live"] = (
            f"challenger {compared['challenger_score']:.4f} ({compared.get('challenger_rows', 0):,} rows), "
            f"champion {compared['champion_score']:.4f} ({compared.get('champion_rows', 0):,} rows)"
        )
    return named


def _field_block(named: Mapping[str, object]) -> Block:
    fields = [
        {
            "type": "mrkdwn",
            "text": f"*{escaped(name, 100)}*\n{escaped(value, FIELD_MAX - 200) or '–'}",
            "verbatim": True,
        }
        for name, value in list(named.items())[:FIELDS_MAX]
    ]
    return {"type": "section", "fields": fields}


def _gates(facts: Mapping[str, Any]) -> list[Block]:
    gates = facts.get("gates", ())
    if not gates or facts.get("phase") in (Phase.ROLLING_OUT.value, Phase.BAKING.value):
        return []
    marks = {"pass": "✓", "fail": "✗"}
    lines = [
        f"{marks.get(g.get('verdict', ''), '?')} {escaped(g.get('sentence') or g.get('gate'), 300)}" for g in gates
    ]
    return [_section("*Verdict*\n" + "\n".join(lines[:GATES_SHOWN]))]


def _context(notice: NoticeRecord) -> Block:
    by = f" · by {clean(notice.data['actor'], 200)}" if notice.data.get("actor", "ratchet") != "ratchet" else ""
    said = clean(f"{notice.at:%Y-%m-%d %H:%M:%S} UTC · {notice.kind}{by}", FIELD_MAX)
    return {"type": "context", "elements": [{"type": "plain_text", "text": said, "emoji": False}]}


# ---------------------------------------------------------------- buttons
def _link_only(link: str) -> list[Block]:
    return [{"type": "actions", "elements": [_open(link)]}] if link else []


def _open(link: str) -> Block:
    return {"type": "button", "action_id": f"{ACTION}open", "text": _label("Open dashboard"), "url": link[:3_000]}


def _actions(notice: NoticeRecord, link: str, *, buttons: bool) -> list[Block]:
    elements = [_button(notice, verb) for verb in verbs_for(notice.data)] if buttons else []
    if link:
        elements.append(_open(f"{link}#{notice.model}"))
    return [{"type": "actions", "block_id": "ratchet", "elements": elements}] if elements else []


def verbs_for(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """What a person may want to order at this point."""
    if "outcome" in facts:
        takes_back = facts["outcome"] == Outcome.PROMOTED.value and "previous" in facts
        return ("rollback",) if takes_back else ()
    match facts.get("phase"):
        case None:
            return ()
        case Phase.AWAITING_APPROVAL.value:
            return ("approve", "reject")
        case Phase.ROLLING_OUT.value:
            return ("abort", "rollback") if "champion" in facts else ("abort",)
        case Phase.BAKING.value:
            return ("rollback",)
        case _:
            return ("abort",)


_LABELS = {"approve": "Approve", "reject": "Reject", "abort": "Abort cycle", "rollback": "Roll back"}
_CONFIRM = {
    "abort": "The open cycle ends and the champion stays.",
    "rollback": "Traffic goes back to the version before, and this one is quarantined.",
    "reject": "The challenger is turned down and the cycle ends.",
}


def _button(notice: NoticeRecord, verb: str) -> Block:
    button: Block = {
        "type": "button", "action_id": f"{ACTION}{verb}", "text": _label(_LABELS[verb]), "value": pressed(notice, verb),
    }  # fmt: skip
    if verb == "approve":
        button["style"] = "primary"
    if verb in _CONFIRM:
        button["style"] = "danger"
        button["confirm"] = {
            "title": _label(clean(f"{_LABELS[verb]}: {notice.model}", 100)),
            "text": _label(clean(f"{_CONFIRM[verb]} If the model has moved on since, nothing happens.", 300)),
            "confirm": _label(_LABELS[verb]), "deny": _label("Leave it"), "style": "danger",
        }  # fmt: skip
    return button


def pressed(notice: NoticeRecord, verb: str) -> str:
    """What a button carries: the order, and the state of the model that it is about."""
    facts = notice.data
    value = {
        "verb": verb, "model": notice.model, "life": "".join(str(facts.get("subject", "")).split("/")[1:2]),
        "cycle": None if "outcome" in facts else facts.get("cycle"), "champion": facts.get("champion"),
    }  # fmt: skip
    return json.dumps(value)[:VALUE_MAX]


def _label(text: str) -> Block:
    return {"type": "plain_text", "text": text, "emoji": False}
