"""What may be asked of the daemon, on a controller in memory."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from controller_world import World, policy_text

from controller.overrides import Order, OverrideRefused, StalePreview, Verb
from controller.reconcile import LostLeadership
from controller.replaying import NotReplayable, UnknownEvent
from controller.service import NotLeading, PolicyDocument, PolicyRefused, UnknownModel
from controller.state import Outcome, Phase
from policies.signals import Signal


@pytest.fixture
def world() -> World:
    return World()


def order(verb: Verb, **more: object) -> Order:
    return Order(verb=verb, actor="ada@laptop", reason="because", **more)  # type: ignore[arg-type]


def document(text: str, directory: str = "/policies") -> PolicyDocument:
    return PolicyDocument(text=text, file="late.yaml", directory=directory)


# ---------------------------------------------------------------- policies
def test_new_policy_makes_a_model_that_comes_to_serve(world: World) -> None:
    """Applying a policy is all it takes until the first version serves."""
    world.serving()
    assert world.service.model("late").champion == 1
    assert world.service.models()[0].labels == {"team": "ops"}


def test_same_policy_again_changes_nothing(world: World) -> None:
    """Applying an equal policy, however written, leaves state and record alone."""
    world.serving()
    before = world.state()
    text = json.dumps({**_parsed(policy_text())})
    applied = world.service.apply([document(text)], actor="bob@desk")
    assert [a.action for a in applied] == ["unchanged"]
    assert world.state() == before


def _parsed(text: str) -> dict[str, object]:
    from ruamel.yaml import YAML

    parsed: dict[str, object] = json.loads(json.dumps(YAML(typ="safe").load(text)))
    return parsed


def test_changed_policy_supersedes_a_cycle_that_has_moved_no_traffic(world: World) -> None:
    """A cycle before its rollout ends as superseded; the first cycle under the new policy need not wait for a cooldown."""
    world.jobs.automatic = False
    world.serving()
    assert world.state().cycle is not None
    applied = world.service.apply([document(policy_text(approval="required"))], actor="ada@laptop")
    assert (applied[0].action, applied[0].superseded) == ("updated", 1)
    assert world.store.cycles("late")[0].outcome is Outcome.SUPERSEDED
    world.live()
    cycle = world.state().cycle
    assert cycle is not None
    assert (cycle.number, cycle.phase) == (2, Phase.PREPARING)
    assert "late-c1-preparing-1" not in world.jobs.active()


def test_changed_policy_leaves_a_rollout_alone(world: World) -> None:
    """What already carries traffic goes on, under the new policy."""
    world.serving()
    world.service.order("late", order(Verb.TRIGGER))
    world.live()
    assert _phase(world) is Phase.ROLLING_OUT
    applied = world.service.apply([document(policy_text(approval="required"))], actor="ada@laptop")
    assert (applied[0].action, applied[0].superseded) == ("updated", None)
    assert _phase(world) is Phase.ROLLING_OUT


def _phase(world: World) -> Phase | None:
    cycle = world.state().cycle
    return cycle.phase if cycle else None


def test_dry_run_says_and_does_nothing(world: World) -> None:
    """A dry run reports what would happen and leaves no trace."""
    applied = world.service.apply([document(policy_text())], actor="ada@laptop", dry_run=True)
    assert applied[0].action == "created"
    assert world.service.models() == []
    assert world.service.events() == []


def test_one_bad_document_stops_all(world: World) -> None:
    """Everything wrong with all documents is said at once, and nothing is applied."""
    bad = policy_text("other").replace("task: binary", "task: binaery")
    with pytest.raises(PolicyRefused) as refused:
        world.service.apply(
            [document(policy_text()), document(bad), document(policy_text("x"), "relative")], actor="a@b"
        )
    text = str(refused.value)
    assert "late.yaml:5: spec.task" in text
    assert "must be absolute" in text
    assert world.service.models() == []


def test_what_is_not_supported_yet_is_refused(world: World) -> None:
    """The daemon itself refuses what it cannot do, even if a client did not check."""
    with pytest.raises(PolicyRefused, match="not supported yet"):
        world.service.apply([document(policy_text() + "  deploy: {target: kubernetes}\n")], actor="a@b")


def test_task_may_not_change_under_versions(world: World) -> None:
    """A model whose versions answer another question needs another name."""
    world.serving()
    text = policy_text().replace("task: binary", "task: multiclass")
    with pytest.raises(OverrideRefused, match=r"spec\.task must stay 'binary'"):
        world.service.apply([document(text)], actor="a@b")


def test_deleted_model_is_cleared_away_and_its_numbers_never_come_back(world: World) -> None:
    """After deletion nothing serves, events stay, and a later model of that name goes on counting."""
    world.serving()
    world.service.delete("late", actor="ada@laptop", reason="gone")
    world.live()
    assert world.target.models() == []
    assert world.service.events("late")[-1].kind == "model.deleted"
    world.serving()
    assert world.service.model("late").champion == 2
    assert [c.number for c in world.service.cycles("late")] == [2]


def test_model_that_is_served_but_unknown_is_a_stray(world: World) -> None:
    """A daemon killed right after a deletion finds at its start what it still has to clear away."""
    world.serving()
    world.service.delete("late", actor="ada@laptop", reason="gone")
    assert world.reconciler.strays() == ["late"]
    world.live()
    assert world.reconciler.strays() == []


# ---------------------------------------------------------------- orders
def test_order_on_a_previewed_state_that_has_changed_is_refused(world: World) -> None:
    """Nobody carries out something other than what was looked at."""
    world.serving()
    preview = world.service.preview("late", order(Verb.PIN))
    world.service.order("late", order(Verb.PAUSE))
    with pytest.raises(StalePreview, match="has changed since the preview"):
        world.service.order("late", order(Verb.PIN, row_version=preview.row_version))
    assert world.state().pinned is None


def test_preview_changes_nothing_and_says_what_would_change(world: World) -> None:
    """A preview leaves state and record as they were."""
    world.serving()
    before, events = world.state(), world.service.events()
    preview = world.service.preview("late", order(Verb.TRIGGER))
    assert (preview.phase_before, preview.phase_after) == ("no open cycle", "cycle 2, queued")
    assert (world.state(), world.service.events()) == (before, events)


def test_order_leaves_who_and_why_on_record(world: World) -> None:
    """Each override is an event with actor and reason."""
    world.serving()
    world.service.order("late", order(Verb.FREEZE))
    event = world.service.events("late", newest=True, limit=1)[0]
    assert (event.kind, event.actor, event.data["reason"]) == ("override.freeze", "ada@laptop", "because")


def test_unknown_model_is_named(world: World) -> None:
    """Every question about a model that is not there names it."""
    for ask in (
        lambda: world.service.model("nope"), lambda: world.service.versions("nope"), lambda: world.service.cycles("nope"),
        lambda: world.service.explain("nope"), lambda: world.service.order("nope", order(Verb.PAUSE)),
        lambda: world.service.delete("nope", actor="a@b", reason="x"),
    ):  # fmt: skip
        with pytest.raises(UnknownModel, match="'nope'"):
            ask()


def test_daemon_that_does_not_lead_changes_nothing(world: World) -> None:
    """Without the lease, orders and policies are refused; reading still works."""
    world.serving()
    before = world.state()

    def lost() -> int:
        raise LostLeadership("another controller holds the lease")

    world.service._epoch = lost
    for change in (lambda: world.service.order("late", order(Verb.PAUSE)), lambda: world.apply("other")):
        with pytest.raises(NotLeading, match="nothing was changed"):
            change()
    assert not world.service.leads()
    assert world.service.model("late").name == "late"
    assert world.state() == before


# ---------------------------------------------------------------- replay
def test_every_recorded_decision_can_be_taken_again(world: World) -> None:
    """From first cycle to rollout, what was recorded is enough to decide the same again."""
    world.serving()
    world.service.order("late", order(Verb.TRIGGER))
    world.live()
    mine = [e for e in world.service.events() if e.actor == "ratchet"]
    assert len(mine) > 10
    for event in mine:
        assert world.service.replay(event.seq).same, event


def test_changed_record_does_not_replay(world: World) -> None:
    """A record that says something else than what was decided is found out."""
    world.serving()
    i = next(i for i, e in enumerate(world.store._events) if e.kind == "gates.passed")
    forged = replace(world.store._events[i], sentence="passed with distinction")
    world.store._events[i] = forged
    world.store._events_of["late"][i] = forged
    assert not world.service.replay(forged.seq).same


def test_orders_are_not_replayed(world: World) -> None:
    """A person's word rests on no snapshot; an unknown number is said to be unknown."""
    world.serving()
    with pytest.raises(NotReplayable, match="not a decision of the controller"):
        world.service.replay(1)
    with pytest.raises(UnknownEvent, match="no event 9999"):
        world.service.replay(9999)


def test_grounds_are_left_out_unless_asked_for(world: World) -> None:
    """Events are short by default, and whole on request."""
    world.serving()
    assert not any("snapshot" in e.data for e in world.service.events())
    assert any("snapshot" in e.data for e in world.service.events(grounds=True))


# ---------------------------------------------------------------- explain
def test_explanation_of_a_rollout_says_what_comes_next_and_how_to_stop_it(world: World) -> None:
    """During a rollout: next step with its time, deadline, and the command that takes the traffic back."""
    world.serving()
    world.service.order("late", order(Verb.TRIGGER))
    world.live()
    told = world.service.explain("late")
    assert told.headline == "v1 serves, cycle 2 is rolling out"
    assert told.next[0] == "at 2026-03-02 04:00 (in 1h) it goes to 100 %, if nothing speaks against it"
    assert "all traffic goes back to v1" in told.next[1]
    assert told.commands[0].command == "ratchet rollback late"
    assert told.serving is not None
    assert told.serving.gates == ["accuracy 0.800"]


def test_explanation_without_a_cycle_says_when_triggers_may_open_one(world: World) -> None:
    """Between cycles: the end of the cooldown and the moment of staleness."""
    world.serving()
    told = world.service.explain("late")
    assert told.next[0] == "no trigger opens a cycle before 2026-03-02 05:00 (in 2h) (cooldown 2h)"
    assert told.next[1].startswith("it is stale from 2026-04-01 03:00")


def test_explanation_shows_refusals_and_holds(world: World) -> None:
    """What was refused lately is there with its sentence; a held model says who lifts it."""
    world.serving()
    world.jobs.scripts["evaluators.judge:run"] = {
        "verdict": "fail",
        "sentence": "accuracy 0.500, too low",
        "scores": {},
    }
    world.service.order("late", order(Verb.TRIGGER))
    world.live()
    world.service.order("late", order(Verb.PAUSE))
    told = world.service.explain("late")
    assert [(r.cycle, r.outcome, r.sentence) for r in told.refused] == [(2, "rejected", "accuracy 0.500, too low")]
    assert told.next == ["nothing, until somebody resumes it"]
    assert told.commands[0].command == "ratchet resume late"


def test_explanation_after_a_rollback_offers_no_other(world: World) -> None:
    """What was rolled back from is banned, so there is nothing before the champion, and no rollback is offered."""
    world.serving().service.order("late", order(Verb.TRIGGER))
    world.live()
    world.service.order("late", order(Verb.ROLLBACK))
    told = world.service.explain("late")
    assert (told.model.champion, told.model.cycle, len(told.model.versions)) == (1, None, 2)
    assert "rollback" not in {c.command.split()[1] for c in told.commands}


def test_explanation_names_a_spent_budget(world: World) -> None:
    """While the budget is spent, nothing is said to come before it is there again."""
    text = policy_text().replace("cooldown: 2h", "cooldown: 1s\n  budget: {cycles: 1, per: 7d}")
    world.service.apply([document(text)], actor="ada@laptop")
    world.live()
    world.later(minutes=5)
    assert "the budget of 1 cycles per 7d is spent until" in world.service.explain("late").next[0]


def test_explanation_in_every_phase(world: World) -> None:
    """There is no phase in which explaining fails or offers a command that would be refused."""
    world.jobs.automatic = False
    world.apply(approval="required")
    seen = set()
    for _ in range(60):
        world.live()
        cycle = world.state().cycle
        told = world.service.explain("late")
        assert told.next
        seen.add(cycle.phase if cycle else None)
        for command in told.commands:
            world.service.preview("late", order(Verb(command.command.split()[1])))
        if cycle is None and world.trained < 2:
            world.service.order("late", order(Verb.TRIGGER))
        elif cycle is not None and cycle.phase is Phase.AWAITING_APPROVAL:
            world.service.order("late", order(Verb.APPROVE))
        for job_id in world.jobs.active():
            world.jobs.finish(job_id)
        world.later(minutes=30)
    assert seen >= {*Phase} - {Phase.QUEUED} | {None}


def test_how_labels_come_in_is_told_of_a_model(world: World) -> None:
    """Nothing until it is measured; then numbers, or the reason why there are none, in one sentence."""
    world.serving()
    assert world.service.model("late").feed is None
    late = Signal.of(21_600.0, observed_at=world.now, rows=50)
    world.signals["late"] = {"label_coverage": Signal.of(0.981, observed_at=world.now, rows=1204), "label_lag": late}
    feed = world.service.explain("late").model.feed
    assert feed is not None
    assert (feed.coverage, feed.rows, feed.lag_s) == (0.981, 1204, 21_600.0)
    assert feed.sentence == "98.1 % of the 1,204 rows old enough have a label; 99 % of labels come within 6h"
    unknown = Signal.unknown("no label has arrived yet", observed_at=world.now)
    world.signals["late"] = {"label_coverage": unknown, "label_lag": unknown}
    nothing = world.service.model("late").feed
    assert nothing is not None
    assert (nothing.coverage, nothing.lag_s, nothing.sentence) == (None, None, "no label has arrived yet")
