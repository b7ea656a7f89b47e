"""Which alerts fire, to whom they are sent, and who is told of what: pure rules, and instances that come and go."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from servers import need
from servers.alertmanager import PACKAGE
from servers.listener import listener
from servers.slack import wait_for

from config.reading import SettingsError, read_settings
from controller.incidents import describe
from controller.notices.alertmanager import ENDS_AFTER, RESEND, RESOLVED_LASTS, AlertFeed, Alertmanager
from controller.notices.alerts import OUTCOME_LASTS, Alert, firing
from controller.notices.building import NoticeOptions, Notices
from controller.notices.port import NotifierError
from controller.notices.routing import Defaults, channels_of
from controller.state import Ended, Incident, NoticeRecord, Outcome, Phase
from controller.store.memory import MemoryStore
from controller.store.port import Commit
from controller.wiring import notice_options

NOW = datetime.fromisoformat("2026-03-01T12:00:00+00:00")
H = timedelta(hours=1)


def states(*changes: dict[str, Any]) -> list[Any]:
    import sys

    sys.path.append(str(Path(__file__).parents[1] / "controller"))
    from controller_states import state, with_cycle

    made = []
    for number, change in enumerate(changes):
        phase, alarmed = change.pop("phase", None), change.pop("alarmed", False)
        one = state(phase, **change)
        made.append(replace(with_cycle(one, alarmed=True) if alarmed else one, name=f"m{number}"))
    return made


def ended(outcome: Outcome, ago: timedelta = H) -> Ended:
    return Ended(cycle=7, outcome=outcome, sentence="so it ended", opened_at=NOW - 9 * H, at=NOW - ago)


def names(*changes: dict[str, Any], labels: dict[str, str] | None = None) -> list[tuple[str, str]]:
    found = firing(states(*changes), [], lambda _state: labels or {}, NOW)
    return [(alert.labels["model"], alert.labels["alertname"]) for alert in found]


def test_what_fires_follows_from_the_state() -> None:
    """A wish for approval, a failing challenger under a hold, and a bad end for a day or until the next cycle opens."""
    assert names(
        {}, {"phase": Phase.AWAITING_APPROVAL}, {"phase": Phase.ROLLING_OUT, "alarmed": True}, {"phase": Phase.TUNING},
        {"ended": ended(Outcome.ROLLED_BACK)}, {"ended": ended(Outcome.FAILED)}, {"ended": ended(Outcome.REJECTED)},
        {"ended": ended(Outcome.FAILED, OUTCOME_LASTS)}, {"ended": ended(Outcome.FAILED), "phase": Phase.TUNING},
    ) == [
        ("m1", "RatchetApprovalWanted"), ("m2", "RatchetChallengerFailing"), ("m4", "RatchetRolledBack"), ("m5", "RatchetCycleFailed"),
    ]  # fmt: skip


def test_labels_of_a_policy_are_for_routing_and_pass_for_none_of_ours() -> None:
    """The team's own Alertmanager route finds its models."""
    (alert,) = firing(
        states({"phase": Phase.AWAITING_APPROVAL}), [], lambda _s: {"team": "ops", "model": "x", "severity": "y"}, NOW
    )
    assert (alert.labels["team"], alert.labels["model"], alert.labels["severity"]) == ("ops", "m0", "info")


def incident(models: int = 500, **changes: Any) -> Incident:
    made = Incident(
        id=5, kind="nulls_jumped", source="s3://flights", subject="fare", sentence="fare is null in 40 % of rows", since=NOW,
        opened_at=NOW, models=models, affected=models, names=("a", "b"),
    )  # fmt: skip
    return replace(made, **changes)


def test_an_incident_is_the_same_alert_however_many_have_it() -> None:
    """The count is in the annotations, by which nothing is told apart."""
    few, more = (firing([], [incident(n)], lambda _s: {}, NOW)[0] for n in (1, 500))
    assert few.key == more.key
    assert (few.annotations["models"], more.annotations["models"]) == ("1", "500")
    assert firing([], [incident(closed_at=NOW)], lambda _s: {}, NOW) == []


def test_a_start_is_never_ahead_of_the_real_clock() -> None:
    """With the clock of a demonstration it could be, and Alertmanager would refuse it."""
    alert = Alert(labels={"alertname": "A"}, annotations={}, starts_at=NOW + 9 * H)
    assert alert.body(NOW + ENDS_AFTER, NOW, "")["startsAt"] == NOW.isoformat()


class Collected:
    """What two instances were sent; either may be away."""

    def __init__(self) -> None:
        self.now = NOW
        self.sent: dict[str, list[tuple[list[str], list[str]]]] = {"a": [], "b": []}
        self.away: set[str] = set()
        self.done = threading.Semaphore(0)
        self.feed = AlertFeed([self.instance(name) for name in "ab"], lambda _s: {}, lambda: self.now)

    def instance(self, name: str) -> Alertmanager:
        collected = self

        class Instance(Alertmanager):
            where = name

            def send(self, fire: Any, resolved: Any, now: datetime) -> None:
                try:
                    if name in collected.away:
                        raise NotifierError("away")
                    told = [a.labels["alertname"] for a in fire], [a.labels["alertname"] for a, _ in resolved]
                    collected.sent[name].append(told)
                finally:
                    collected.done.release()

        return Instance("http://x")

    def look(self, *incidents: Incident, expect: int) -> None:
        self.feed.look([], incidents, self.now)
        for _ in range(expect):
            assert self.done.acquire(timeout=10)
        wait_for(lambda: not self.feed._busy)
        assert not self.done.acquire(blocking=False)


def test_all_instances_are_told_when_it_changes_and_every_minute() -> None:
    """As Alertmanager wants it of whoever is not Prometheus; what is over is said to be over for a while."""
    both = Collected()
    both.look(expect=0)
    both.look(incident(), expect=2)
    both.look(incident(), expect=0)
    both.now += RESEND
    both.look(incident(501), expect=2)
    both.now += timedelta(seconds=5)
    both.look(expect=2)
    assert both.sent["a"] == both.sent["b"] == [(["RatchetIncident"], [])] * 2 + [([], ["RatchetIncident"])]
    both.now += RESEND
    both.look(expect=2)
    both.now += RESOLVED_LASTS
    both.look(expect=0)


def test_an_instance_that_is_away_is_told_when_it_is_back_and_holds_up_no_other() -> None:
    """And says why until then."""
    both = Collected()
    both.away = {"a"}
    both.look(incident(), expect=2)
    assert both.feed.errors() == {"a": "away", "b": ""}
    assert len(both.sent["b"]) == 1
    both.away = set()
    both.now += RESEND
    both.look(incident(), expect=2)
    assert (len(both.sent["a"]), both.feed.errors()["a"]) == (1, "")


# ---------------------------------------------------------------- routes
def notice(**data: Any) -> NoticeRecord:
    return NoticeRecord(key="k", model="m", kind="cycle.opened", text="t", at=NOW, data=data)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([], ["log", "slack:#all", "webhook:pager"]),
        ([{"slack": "#ops"}], ["log", "slack:#ops", "webhook:pager"]),
        (
            [{"slack": "#ops"}, {"slack": "#b"}, {"slack": "#ops"}, {"webhook": "x"}],
            ["log", "slack:#ops", "slack:#b", "webhook:x"],
        ),
        ([{"log": "warning"}], ["log", "slack:#all", "webhook:pager"]),
    ],
)
def test_the_policy_says_who_is_told_and_the_settings_say_it_where_it_does_not(
    told: list[Any], expected: list[str]
) -> None:
    """For each kind of channel; the journal is told everything."""
    assert channels_of(notice(to=told), Defaults(slack="#all", webhook="pager"), lambda _name: ()) == expected


def test_an_incident_is_told_to_the_channels_of_all_models_that_it_names() -> None:
    """Each channel once."""
    told = {"a": [{"slack": "#a"}], "b": [{"slack": "#b"}, {"slack": "#a"}], "gone": []}
    found = channels_of(notice(incident=5, names=["a", "b", "gone"]), Defaults(slack="#all"), told.__getitem__)
    assert found == ["log", "slack:#a", "slack:#b"]


# ---------------------------------------------------------------- all of it
def test_one_dead_channel_of_many_and_the_count_of_an_incident(tmp_path: Path) -> None:
    """Put together as the daemon does it: the journal and the webhook hear of the incident as large as it is when they are told."""
    store = MemoryStore()
    (state,) = states({})
    epoch = store.acquire("me", NOW, 1e9)
    assert epoch is not None
    grown = incident(3)
    store._incidents[5] = incident(500)
    with listener() as hook:
        notices = Notices(
            store=store, home=tmp_path, now=lambda: NOW + timedelta(seconds=10), policy=lambda s: None,  # type: ignore[arg-type,return-value]
            options=NoticeOptions(defaults=Defaults(slack="#ops", webhook=hook.url + "/secret-path")),
        )  # fmt: skip
        opened = NoticeRecord(
            key="incident/5/opened", model="m0", kind="incident.opened", text=describe(grown, NOW), at=NOW,
            data={"incident": 5, "subject": "incident/5", "names": []},
        )  # fmt: skip
        made = store.create(
            epoch, replace(state, row_version=0, versions={}, champion=None, previous=None, plan=None), []
        )
        store.commit(epoch, Commit(model=made, notices=[opened]))
        notices.outbox.deliver_all(NOW + timedelta(seconds=10))
        ((_, body),) = hook.requests
    assert "500 models" in json.loads(body)["text"]
    assert "500 models" in (tmp_path / "notices.jsonl").read_text()
    told = {one.channel.split(":")[0]: (one.waiting, one.error) for one in notices.status()}
    assert told["slack"] == (1, "RATCHET_SLACK_TOKEN_FILE is not set (nor RATCHET_SLACK_TOKEN_ENV)")
    assert told["log"] == told["webhook"] == (0, "")
    assert "secret-path" not in repr(notices.status())


# ---------------------------------------------------------------- the documentation
def blocks(language: str) -> list[str]:
    """The examples of docs/notices.md."""
    text = (Path(__file__).parents[3] / "docs" / "notices.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_configuration_of_alertmanager_is_one(tmp_path: Path) -> None:
    """Alertmanager's own tool takes what docs/notices.md shows."""
    amtool = need("amtool", PACKAGE)
    (config,) = [text for text in blocks("yaml") if "webhook_configs" in text]
    (tmp_path / "alertmanager.yml").write_text(config)
    done = subprocess.run(
        [amtool, "check-config", str(tmp_path / "alertmanager.yml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_settings_and_the_policy_keys_are_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What docs/notices.md shows for the settings file is read, all of it together."""
    for name in [name for name in os.environ if name.startswith("RATCHET_")]:
        monkeypatch.delenv(name)
    shown = [text for text in blocks("yaml") if re.match(r"(# ratchet.yaml|webhook:|alertmanager_urls:)", text)]
    assert len(shown) == 4
    (tmp_path / "ratchet.yaml").write_text("".join(shown))
    found = read_settings(tmp_path / "ratchet.yaml")
    assert found.slack_users == ("U012AB3CD", "U045EF6GH")
    assert found.webhooks is not None
    assert sorted(found.webhooks) == ["pager", "wall"]
    options = notice_options(found)
    assert (options.buttons, options.public_url, options.defaults.webhook) == (
        True,
        "https://ratchet.example.com/",
        "pager",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WEBHOOKS", '{"a": {"url": "https://u:secret@h/"}}'), ("WEBHOOKS", '{"a": {"url": "secret", "url_env": "X"}}'),
        ("WEBHOOKS", '{"a": {"secret": "secret"}}'), ("ALERTMANAGER_URLS", "http://u:secret@h"), ("PUBLIC_URL", "secret"),
    ],
)  # fmt: skip
def test_settings_with_secrets_in_the_wrong_place_are_refused_without_repeating_them(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Secrets have places of their own."""
    monkeypatch.setenv(f"RATCHET_{name}", value)
    with pytest.raises(SettingsError) as refused:
        read_settings()
    assert f"RATCHET_{name}" in str(refused.value)
    assert "secret@" not in str(refused.value)
    assert "'secret'" not in str(refused.value)
