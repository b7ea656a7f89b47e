"""A daemon and a real Alertmanager, each telling the other; with Slack's buttons beside."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from daemon_rig import Rig, write_policy, write_rows
from servers import free_port
from servers.alertmanager import RunningAlertmanager, alertmanager
from servers.slack import TOKEN, FakeSlack, fake_slack

pytestmark = pytest.mark.slow

HOOK_TOKEN = "hook-token-that-nobody-may-see"
SIGNING = "signing-secret-that-nobody-may-see"
CONFIG = """\
route:
  receiver: ratchet
  group_by: ['...']
  group_wait: 100ms
  group_interval: 1s
  repeat_interval: 1s
receivers:
  - name: ratchet
    webhook_configs:
      - url: {url}/hooks/alertmanager
        send_resolved: true
        http_config: {{authorization: {{type: Bearer, credentials_file: {token}}}}}
"""


@dataclass
class Stack:
    rig: Rig
    alertmanager: RunningAlertmanager
    slack: FakeSlack
    url: str

    def names(self) -> set[str]:
        """Of the alerts that Ratchet fires."""
        return {
            a["labels"]["alertname"]
            for a in self.alertmanager.alerts()
            if a["labels"]["alertname"].startswith("Ratchet")
        }

    def cycles(self) -> list[dict[str, Any]]:
        return list(self.rig.api("/models/small/cycles")["cycles"])

    def button(self, verb: str) -> str | None:
        """What the newest button of this kind sends."""
        shown = (
            e["value"]
            for m in reversed(self.slack.parents())
            for b in m["blocks"] if b["type"] == "actions"
            for e in b["elements"] if e["action_id"] == f"ratchet.{verb}"
        )  # fmt: skip
        return next(shown, None)

    def press(self, verb: str) -> int:
        """Press the button in the newest message that has it, once there is one: what is told comes before what is shown."""
        value = self.rig.until(lambda: self.button(verb), f"the button {verb}")
        payload = {
            "type": "block_actions", "user": {"id": "U1", "username": "ann"}, "channel": {"id": "C1"},
            "actions": [{"action_id": f"ratchet.{verb}", "value": value}],
        }  # fmt: skip
        body = urllib.parse.urlencode({"payload": json.dumps(payload)}).encode()
        stamp = str(int(time.time()))
        signature = "v0=" + hmac.new(SIGNING.encode(), f"v0:{stamp}:".encode() + body, hashlib.sha256).hexdigest()
        headers = {"x-slack-request-timestamp": stamp, "x-slack-signature": signature}
        return httpx.post(
            f"{self.url}/hooks/slack", content=body, headers=headers, trust_env=False, timeout=3
        ).status_code


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("notices")
    write_rows(folder / "rows.csv")
    write_policy(folder / "small.yaml", more="  approval: required\n  triggers: {alert: Slow}\n")
    for name, secret in (("hook", HOOK_TOKEN), ("token", TOKEN), ("signing", SIGNING)):
        (folder / name).write_text(secret + "\n")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as running:
        config = CONFIG.format(url=url, token=folder / "hook")
        manager = running.enter_context(alertmanager(folder / "alertmanager", config))
        slack = running.enter_context(fake_slack())
        rig = Rig(home=folder / "home")
        rig.env |= {
            "RATCHET_PORT": str(port), "RATCHET_ALERTMANAGER_URLS": manager.url, "RATCHET_ALERT_HOOK_TOKEN_FILE": str(folder / "hook"),
            "RATCHET_SLACK_CHANNEL": "#ops", "RATCHET_SLACK_API": slack.url, "RATCHET_SLACK_TOKEN_FILE": str(folder / "token"),
            "RATCHET_SLACK_SIGNING_SECRET_FILE": str(folder / "signing"), "RATCHET_SLACK_USERS": "U1,U2",
            "RATCHET_PUBLIC_URL": "https://ratchet.example", "RATCHET_LOG_LEVEL": "debug",
        }  # fmt: skip
        rig.start()
        running.callback(rig.stop)
        rig.ratchet("apply", str(folder / "small.yaml"))
        yield Stack(rig=rig, alertmanager=manager, slack=slack, url=url)


def test_both_directions(stack: Stack) -> None:
    """Approval is wanted: an alert fires and a button is shown; pressed, both end. An alert of the real Alertmanager opens one cycle,
    though it is repeated all the time, the daemon is killed meanwhile, and the cycle ends without success."""
    rig, slack = stack.rig, stack.slack
    rig.until(lambda: "RatchetApprovalWanted" in stack.names(), "the alert that approval is wanted")
    rig.until(lambda: any("approval wanted" in m["text"] for m in slack.messages), "the message that asks for approval")
    assert stack.press("approve") == 200
    rig.until(lambda: rig.serves(1), "v1 to serve")
    rig.until(lambda: not stack.names(), "the alert to be over")
    rig.until(lambda: any("ann (Slack U1)" in json.dumps(m["blocks"]) for m in slack.messages), "who approved")

    stack.alertmanager.post([{"labels": {"alertname": "Slow", "model": "small"}}])
    rig.until(lambda: len(stack.cycles()) == 2, "the alert to open a cycle")
    rig.kill()
    rig.start()
    rig.until(lambda: rig.phase() is None, "cycle 2 to end: from the same rows comes the same model, which is refused")
    seen = rig.log().count("alerts.heard")
    rig.until(lambda: rig.log().count("alerts.heard") != seen or seen > 20, "Alertmanager to repeat itself")
    time.sleep(3)  # it repeats itself each second, and each look could be the wrong one
    assert [c["number"] for c in stack.cycles()] == [2, 1]
    explained = rig.ratchet("explain", "small")
    assert "has had its cycle" in " ".join(explained.split()) or "and had its cycle" in " ".join(explained.split()), (
        explained
    )


def test_every_channel_can_be_tried(stack: Stack) -> None:
    """By one command, which says what works; a channel that does not is named and makes the exit code 1."""
    told = stack.rig.ratchet("notices", "test", "-o", "json")
    assert [(t["channel"].split(":")[0], t["ok"]) for t in json.loads(told)["tests"]] == [
        ("log", True), ("slack", True), ("alertmanager", True),
    ]  # fmt: skip
    assert any("test of notices" in m["text"] for m in stack.slack.messages)
    stack.rig.until(lambda: "RatchetTest" in stack.names(), "the test alert")
    stack.slack.faults = ["invalid_auth"]
    assert "1 of 3 channels failed: slack:#ops" in stack.rig.ratchet("notices", "test", code=1)
    assert "slack:#ops" in stack.rig.ratchet("notices", "status")


def test_slack_was_shown_nothing_that_it_refuses_and_no_secret_is_told(stack: Stack) -> None:
    """Neither in logs, at level debug, nor in the database or the journal."""
    assert stack.slack.broken == []
    home = stack.rig.home
    places = [home / "daemon.log", home / "notices.jsonl", *home.glob("state.db*")]
    for path in places:
        content = path.read_bytes()
        for secret in (HOOK_TOKEN, SIGNING, TOKEN):
            assert secret.encode() not in content, path
    assert len(places) >= 3


def test_a_part_that_is_away_holds_nothing(stack: Stack, tmp_path: Path) -> None:
    """Slack refuses everything for a while: the loop goes on, and what happened is told when it is back."""
    rig = stack.rig
    stack.slack.faults = [500] * 2
    before = len(stack.slack.messages)
    rig.ratchet("pause", "small", "-r", "away", "--yes")
    rig.until(lambda: rig.model()["held"]["paused"] is not None, "the pause")
    rig.until(lambda: len(stack.slack.messages) > before, "Slack to hear of it", 60)
    rig.ratchet("resume", "small", "-r", "back", "--yes")
