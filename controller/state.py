"""The persisted facts about a model: what the store keeps and what `decide` reads and rewrites.

Frozen values, changed by `dataclasses.replace`. Everything is JSON by pydantic's `TypeAdapter`; `SCHEMA` grows when a shape changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from deployers.target import TrafficPlan

SCHEMA = 1


class Phase(StrEnum):
    """Where an open cycle stands."""

    QUEUED = "queued"
    PREPARING = "preparing"
    TUNING = "tuning"
    TRAINING = "training"
    JUDGING = "judging"
    AWAITING_APPROVAL = "awaiting_approval"
    PACKAGING = "packaging"
    ROLLING_OUT = "rolling_out"
    BAKING = "baking"

    @property
    def words(self) -> str:
        """As people read it."""
        return self.value.replace("_", " ")


class Outcome(StrEnum):
    """How a cycle ended."""

    PROMOTED = "promoted"
    REJECTED = "rejected"
    INCONCLUSIVE = "inconclusive"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"
    ABORTED = "aborted"
    SUPERSEDED = "superseded"

    @property
    def words(self) -> str:
        """As people read it."""
        return self.value.replace("_", " ")


class VersionStatus(StrEnum):
    CANDIDATE = "candidate"
    """Packaged, has not served as champion."""
    CHAMPION = "champion"
    RETIRED = "retired"
    """Was champion; may be rolled back to."""
    QUARANTINED = "quarantined"
    """Refused or rolled back; serves again only by a person's recorded word."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """An immutable image under a number (invariant 3)."""

    model: str
    number: int
    digest: str
    """`sha256:…` of the image manifest."""
    status: VersionStatus
    created_at: datetime
    cycle: int
    """Number of the cycle that made it."""
    trained_to: datetime | None = None
    """Time of the newest training row."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Metric → score on the hold-out when judged."""
    forced: str = ""
    """Reason of the person who let it pass the gates, if one did."""
    removed_at: datetime | None = None
    """When its image was given up to make room (`controller.housekeeping`); it can never serve again."""
    lineage: Mapping[str, Any] = field(default_factory=dict)
    """JSON: data fingerprint, code commit, parameters, component, gates, training rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftWindow:
    """The live rows whose drift opened a cycle."""

    version: int
    """From whose training rows they have moved away."""
    since: datetime
    until: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Cycle:
    """One pass round the loop. At most one a model is open (invariant 1)."""

    model: str
    number: int
    phase: Phase
    outcome: Outcome | None = None
    sentence: str
    """Newest sentence: why it is where it is."""
    cause: str
    """Why it was opened, in words; starts with `trigger`, `person`, or `bootstrap`."""
    opened_at: datetime
    phase_since: datetime
    closed_at: datetime | None = None
    cutoff: datetime | None = None
    """The moment as of which data is prepared: what was not known then is not looked at."""
    changed_at: datetime | None = None
    """When the world changed, by the signal that fired; None where that is not known."""
    attempt: int = 1
    """Of the present phase's job."""
    not_before: datetime | None = None
    """A retry waits until then."""
    job_id: str | None = None
    outputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Phase → JSON output of its job."""
    challenger: int | None = None
    """Version number, once packaging began."""
    step: int = 0
    """Index into the policy's rollout steps."""
    step_since: datetime | None = None
    """When the step's traffic was first observed in force; None until then."""
    traffic_since: datetime | None = None
    """When the challenger's first step was in force."""
    blind_since: datetime | None = None
    """Since when its traffic is not seen in force (target away); such time counts towards no hold and no bake."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """The challenger's counters of requests and errors at `counts_since`: a sudden failure must not drown in a long total."""
    counts_since: datetime | None = None
    promoted_at: datetime | None = None
    """When the challenger became champion, to be watched; unlike `phase_since` it never moves."""
    twin_of: int | None = None
    """Number of the cycle whose refused model this one's answers like."""
    alarmed: bool = False
    """Whether people were told that the challenger fails while a hold keeps its traffic from moving."""
    compute_s: float = 0.0
    """Seconds of job time used so far."""
    drift: DriftWindow | None = None
    """Set if drift opened it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hold:
    """A person's stop: who, why, when."""

    by: str
    reason: str
    at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """A model that was refused, whether it became a version or not: recognised if retraining makes it again."""

    cycle: int
    version: int | None
    """None if it was refused before it became one."""
    model_digest: str
    how: str
    """What became of it, in words."""
    newest: datetime | None
    """Time of the newest row that spoke against it; None where rows have no time."""
    held_out: int
    """Rows that it was judged on."""
    table: int
    """Rows that there were then."""


class FaultOrigin(StrEnum):
    """Where a fault was found."""

    LIVE = "live"
    """In what the champion was asked."""
    PREPARED = "prepared"
    """In the rows that a cycle was to learn from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownFault:
    """A fault of what feeds a model, from when it was found until it is surely gone."""

    kind: str
    source: str
    subject: str
    sentence: str
    """As it was when it was found."""
    since: datetime
    origin: FaultOrigin
    found_at: datetime
    absent_at: datetime | None = None
    """When it was first looked for and not found again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Incident:
    """One fault, however many models have it."""

    id: int = 0
    """Given by the store."""
    kind: str
    source: str
    subject: str
    sentence: str
    """Of the model that had it first."""
    since: datetime
    """From when on rows are affected."""
    opened_at: datetime
    closed_at: datetime | None = None
    models: int
    """That ever had it."""
    affected: int
    """That have it now."""
    names: tuple[str, ...] = ()
    """Some of the models, the first ones first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where a policy is followed from, if not from a person's hand (`controller.sources`)."""

    source: str
    """Name of the source, such as `git`."""
    where: str
    """What it was then, for people: the repository and branch."""
    file: str
    blob: str
    """Id of the policy's text there."""
    revision: str
    """The commit with which this text came."""
    said: str
    """That commit, and by whom."""
    pinned: str = ""
    """The commit in whose worktree relative paths start; empty if the policy names none."""
    rests: tuple[tuple[str, str], ...] = ()
    """Relative paths that the policy names, as written, each with the id of what stood there in `pinned`."""
    code: str = ""
    """Id of the tree that `train.code` names, if it does."""
    lost: str = ""
    """Why nothing follows it any more; empty while something does."""
    forced: str = ""
    """Who applied another policy by hand, which stays until the file changes; empty if nobody did."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How the last cycle ended."""

    cycle: int
    outcome: Outcome
    sentence: str
    opened_at: datetime
    at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelState:
    """Everything `decide` needs to know about one model, in one optimistic row."""

    name: str
    row_version: int = 0
    """Grows with each commit; a commit against an older one is refused."""
    policy: str
    """The policy as canonical JSON (`ModelPolicy.model_dump_json(by_alias=True)`)."""
    policy_digest: str
    """sha256 of `policy`."""
    policy_dir: str = ""
    """Folder that relative paths in the policy start from."""
    origin: Origin | None = None
    """None: applied by hand."""
    created_at: datetime
    champion: int | None = None
    champion_since: datetime | None = None
    """When it became champion, by promotion or rollback; None if that was before this was recorded."""
    champion_cycle: int | None = None
    """Number of the cycle that was open then, or else the last one."""
    previous: int | None = None
    """The champion before, to roll back to."""
    next_version: int = 1
    next_cycle: int = 1
    paused: Hold | None = None
    """No cycle opens or goes on, traffic stays as it is."""
    frozen: Hold | None = None
    """Cycles go on up to packaging, but traffic does not move."""
    pinned: Hold | None = None
    """Traffic stays on the champion of the moment of pinning; no cycle opens."""
    plan: TrafficPlan | None = None
    trigger_memory: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Trigger id → JSON that `policies.triggers` keeps between looks."""
    faults: tuple[KnownFault, ...] = ()
    """Of what feeds it, that are not gone yet."""
    last_closed_at: datetime | None = None
    ended: Ended | None = None
    """The last cycle, as far as it matters when it is closed; None in states of older releases."""
    fruitless: int = 0
    """Cycles in a row that brought no new champion."""
    recent_cycles: tuple[tuple[datetime, float], ...] = ()
    """(opened_at, compute seconds) of cycles inside the budget's period."""
    hold_out_uses: tuple[Mapping[str, Any], ...] = ()
    """What the newest verdicts used of the hold-out rows, oldest first, as the judge handed it back with the cycle's number: it reads them
    again, since rows that are asked once more must pay for it. At most `phases.USES_KEPT`."""
    refused: tuple[Refused, ...] = ()
    """The newest models that were refused or rolled back, oldest first; at most `quarantine.REFUSED_KEPT`."""
    cycle: Cycle | None = None
    """The open one."""
    versions: Mapping[int, Version] = field(default_factory=dict)
    """Every one ever made, since a number must keep its meaning (invariant 3): about 1 KB each, and budgets bound how many a year. Their
    images are given up (`controller.housekeeping`), and the records of decisions leave out what lies behind (`controller.reconcile`)."""
    schema: int = SCHEMA


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One line of the append-only record. `kind` is a past participle, such as `cycle.opened`."""

    model: str
    kind: str
    sentence: str
    at: datetime
    cycle: int | None = None
    actor: str = "ratchet"
    data: Mapping[str, Any] = field(default_factory=dict)
    """JSON: what the decision rested on, enough to replay it."""
    seq: int = 0
    """Given by the store."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoticeRecord:
    """A message that must reach people once; each of its channels has it from the outbox as a `Delivery`."""

    key: str
    """Stable: the same happening never has two keys."""
    model: str
    kind: str
    text: str
    at: datetime
    data: Mapping[str, Any] = field(default_factory=dict)
    """JSON: the numbers behind the text (`controller.facts`), and under `to` what the policy says about whom to tell."""
    delivered_at: datetime | None = None
    """When the last of its channels had it, or was given up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """A notice on its way to one channel."""

    notice: NoticeRecord
    channel: str
    due_at: datetime
    """Not tried before."""
    attempts: int = 0
    """That were begun. More than none means that people may have it already."""
    batch: str = ""
    """Key of the message that carries it, alone or with others; empty before the first attempt."""
    error: str = ""
    """Of the newest attempt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ToldAlert:
    """What Alertmanager last said about one alert. Times are of our clock: that of whoever made the alert may be wrong."""

    fingerprint: str
    """Of the labels."""
    labels: Mapping[str, str]
    firing: bool
    starts_at: str
    """As it was told: another value is another episode."""
    heard_at: datetime
    """When this episode was first told of."""
    said_at: datetime
    """When it was last told of, firing or not."""
