"""The report of the drift that opened a cycle: which window it is of, that it is made once, and that nothing hangs on it."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from controller_rig import Rig
from controller_states import HOUR, NAME, NOW, policy, state, with_cycle
from pydantic import TypeAdapter

from controller import evidence
from controller.decide import Observation, Snapshot, decide
from controller.evidence import KEPT_REPORTS, report_job, report_path
from controller.housekeeping import SETTLED_S, Housekeeper
from controller.state import Cycle, DriftWindow, ModelState, Phase
from pipelines.jobs.port import PermanentJobError, RetryableJobError
from policies.schema import ModelPolicy
from policies.signals import Signal

HOME = Path("/home-of-state")
DRIFT: dict[str, Any] = {"drift": {"share": 0.3, "window": "6h"}}
RECALL: dict[str, Any] = {"performance": {"metric": "accuracy", "below": 0.5, "window": "1h"}}
WINDOW = DriftWindow(version=2, since=NOW - 7 * HOUR, until=NOW - HOUR)


def _snapshot(follow: ModelPolicy, share: float | None, accuracy: float | None) -> Snapshot:
    values = {"drift:6h:100": share, "performance:accuracy:1h:100": accuracy}
    signals = {
        key: Signal.of(value, observed_at=NOW, rows=500, window_end=NOW - HOUR)
        for key, value in values.items()
        if value is not None
    }
    return Snapshot(state=state(follow=follow), observation=Observation(champion=2, signals=signals))


@pytest.mark.parametrize(
    ("triggers", "share", "accuracy", "window"),
    [
        (DRIFT, 0.4, None, WINDOW),
        ({"any": [RECALL, DRIFT]}, 0.4, 0.3, WINDOW),
        ({"any": [RECALL, DRIFT]}, 0.1, 0.3, None),
        ({"any": [RECALL, DRIFT]}, None, 0.3, None),
        ({"all": [DRIFT, RECALL]}, 0.4, 0.3, WINDOW),
    ],
)
def test_cycle_knows_the_window_whose_drift_opened_it(
    triggers: dict[str, Any], share: float | None, accuracy: float | None, window: DriftWindow | None
) -> None:
    """The version, the beginning and the end of the measured window; nothing where another trigger fired."""
    follow = policy(triggers=triggers)
    cycle = decide(_snapshot(follow, share, accuracy), NOW, follow).after.cycle
    assert cycle is not None
    assert cycle.drift == window


def test_old_cycles_without_a_window_still_load() -> None:
    """What an older release stored has no such field."""
    adapter: TypeAdapter[Cycle] = TypeAdapter(Cycle)
    stored = adapter.dump_python(_drifted().cycle, mode="json")
    assert adapter.validate_python(stored) == _drifted().cycle
    del stored["drift"]
    assert adapter.validate_python(stored).drift is None


def _drifted(phase: Phase = Phase.PREPARING) -> ModelState:
    return with_cycle(state(phase), drift=WINDOW)


def test_report_is_asked_for_by_name_with_all_it_needs() -> None:
    """Of the version that drifted, whatever phase the cycle is in; not where drift opened none, nor of a version whose image is gone."""
    spec = report_job(_drifted(), HOME)
    assert spec is not None
    assert spec.job_id == f"{NAME}-c7-drift-report"
    assert evidence.cycle_of_report_job(spec.job_id) == (NAME, 7)
    assert spec.inputs["model_dir"].endswith(f"{2:064x}/model")
    assert spec.inputs["report"] == str(HOME / "evidence" / NAME / "c7" / "drift.html")
    assert datetime.fromisoformat(spec.inputs["until"]) == WINDOW.until
    assert report_job(_drifted(Phase.BAKING), HOME) is not None
    assert report_job(state(Phase.PREPARING), HOME) is None
    gone = _drifted()
    gone = replace(gone, versions={**gone.versions, 2: replace(gone.versions[2], removed_at=NOW)})
    assert report_job(gone, HOME) is None


REPORT = evidence.REPORT_ENTRY


@pytest.mark.parametrize(
    "outcome", [{"report": "there"}, PermanentJobError("Evidently failed"), RetryableJobError("killed")]
)
def test_cycle_goes_on_whatever_becomes_of_its_report(outcome: Any) -> None:
    """Started once, looked at by nobody: the phases go on as without it."""
    rig = Rig()
    rig.reconciler.reports = True
    rig.jobs.scripts[REPORT] = outcome
    rig.add(_drifted())
    for _ in range(3):
        rig.look(NAME)
    assert rig.jobs.starts[f"{NAME}-c7-drift-report"] == 1
    assert rig.phase(NAME) is Phase.ROLLING_OUT


def test_report_that_cannot_be_started_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the next look; meanwhile the cycle's own job runs."""
    rig = Rig()
    rig.reconciler.reports = True
    rig.jobs.automatic = False
    rig.add(_drifted())
    ensure = rig.jobs.ensure

    def full(spec: Any) -> None:
        if spec.entry == REPORT:
            raise RetryableJobError("no space left on device")
        ensure(spec)

    monkeypatch.setattr(rig.jobs, "ensure", full)
    assert "no space" not in rig.look(NAME)
    assert [name for name in rig.jobs.starts if "preparing" in name]
    monkeypatch.undo()
    rig.look(NAME)
    assert rig.jobs.starts[f"{NAME}-c7-drift-report"] == 1


def test_a_daemon_after_a_crash_does_not_make_it_twice() -> None:
    """The new one asks again, under the same name."""
    rig = Rig()
    rig.reconciler.reports = True
    rig.jobs.scripts[REPORT] = {}
    rig.jobs.automatic = False
    rig.add(_drifted())
    rig.look(NAME)
    rig.reconciler._reported.clear()
    rig.look(NAME)
    assert rig.jobs.asked[f"{NAME}-c7-drift-report"] == 2
    assert rig.jobs.starts[f"{NAME}-c7-drift-report"] == 1


def test_without_reports_none_is_asked_for() -> None:
    """As in a replay, where Evidently would only cost time."""
    rig = Rig()
    rig.add(_drifted())
    rig.look(NAME)
    assert not [name for name in rig.jobs.starts if "report" in name]


def test_deleting_a_model_stops_its_report() -> None:
    """And no other model's."""
    rig = Rig()
    rig.reconciler.reports = True
    rig.jobs.automatic = False
    rig.add(_drifted())
    rig.look(NAME)
    rig.store.delete(rig.leadership.held, NAME, [])
    rig.look(NAME)
    assert not rig.jobs.active()


def test_the_newest_reports_stay(tmp_path: Path) -> None:
    """So many a model; those just made are left alone, a deleted model's go."""
    rig = Rig()
    rig.add(replace(state(), next_cycle=100))
    keeper = Housekeeper(
        store=rig.store, jobs=rig.jobs, home=tmp_path, epoch=rig.leadership.epoch, now=lambda: NOW,
        policy=rig.reconciler.policy, keep_versions=9, cache_max_bytes=1, wall=lambda: 10 * SETTLED_S,
    )  # fmt: skip
    for model, number, age_s in [*((NAME, n, 2.0) for n in range(50, 75)), (NAME, 3, 0.5), ("deleted", 1, 2.0)]:
        path = report_path(tmp_path, model, number)
        path.parent.mkdir(parents=True)
        path.write_text("<html>")
        at = keeper.wall() - age_s * SETTLED_S
        os.utime(path.parent, (at, at))
    keeper.sweep()
    left = {path.parent.name for path in (tmp_path / "evidence" / NAME).rglob("drift.html")}
    assert left == {"c3", *(f"c{n}" for n in range(75 - KEPT_REPORTS, 75))}
    assert not (tmp_path / "evidence" / "deleted").exists()
