"""What people may ask of the daemon: everything that the HTTP API offers, and nothing that it does not.

Reading gives `controller.views`; changing goes through pure functions (`controller.applying`, `controller.overrides`) and one commit under
the present epoch. Nothing here acts on jobs or on traffic: the loop does, when it is woken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from controller import applying, explaining, overrides, views
from controller.draft import Decision
from controller.evidence import report_path
from controller.notices.building import ChannelStatus, ChannelTest, Notices
from controller.overrides import Order, Preview, StalePreview
from controller.reconcile import LostLeadership
from controller.replaying import Replayed, UnknownEvent, compare
from controller.sources.port import SourceStatus
from controller.state import Cycle, Event, ModelState
from controller.store.port import Commit, ConflictError, FencedError, Store
from controller.telemetry.metrics import count_events
from deployers.target import MetricsPage, Target, TargetError, TargetStatus
from policies.problems import Problem, shown
from policies.reading import Loaded, parse_policy
from policies.schema import ModelPolicy
from policies.signals import Signal

T = TypeVar("T")

MAX_TRIES = 20
"""Of a change that others keep overtaking."""
PATH_MAX = 4096
"""Characters of a folder's name; Linux takes no longer one."""
LAST_CYCLES = 20
"""So many are looked at to explain a model."""


class UnknownReport(LookupError):
    """There is no drift report of that cycle."""


class UnknownModel(LookupError):
    """There is no model of that name."""


class PolicyRefused(ValueError):
    """Some documents are no policies that can be followed; nothing was applied."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class NotLeading(Exception):
    """This daemon does not lead at the moment, so it changes nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyDocument:
    """A policy as its owner wrote it, YAML or JSON."""

    text: str
    file: str = "policy"
    """What messages call it."""
    directory: str = ""
    """Absolute folder from which relative paths in the policy start."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Applied:
    """What became, or would become, of one document."""

    name: str
    action: Literal["created", "updated", "unchanged"]
    digest: str
    superseded: int | None
    """Number of the open cycle that ended, or would end, because of it."""
    row_version: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Ordered:
    """What an order did."""

    model: str
    sentence: str
    row_version: int


class Source(Protocol):
    """Something that policies are followed from, or that is written to."""

    @property
    def status(self) -> SourceStatus: ...


class Service:
    """Safe to use from several threads. Every method raises StoreError when the store is away."""

    def __init__(
        self, *, store: Store, target: Target, epoch: Callable[[], int], now: Callable[[], datetime],
        wake: Callable[[str], None], sentences: Mapping[str, str], policy: Callable[[ModelState], ModelPolicy],
        home: Path | None = None, signals: Callable[[str], Mapping[str, Signal]] = lambda _name: {},
        metrics: Callable[[ModelState, ModelPolicy], Sequence[str]] = lambda _state, _policy: (),
        sources: Sequence[Source] = (), notices: Notices | None = None, gitops: Callable[[str], str] = lambda _name: "",
    ) -> None:  # fmt: skip
        """`home`: the state folder, where reports lie; without it there are none. `signals`: the newest measurements of a model.
        `metrics`: what the monitoring system tells of it."""
        self._store = store
        self._target = target
        self._epoch = epoch
        self._now = now
        self._wake = wake
        self._sentences = sentences
        self._policy = policy
        self._home = home
        self._signals = signals
        self._metrics = metrics
        self._sources = tuple(sources)
        self._notices = notices
        self._gitops = gitops

    def leads(self) -> bool:
        """Whether this daemon may change anything at the moment."""
        try:
            return self._epoch() > 0
        except LostLeadership:
            return False

    # ------------------------------------------------------------ reading
    def models(self) -> list[views.ModelSummary]:
        """All models, sorted by name. Does not ask the target, so that it stays cheap for thousands."""
        return [views.summary(state, self._sentence(state.name)) for state in self._store.load_all()]

    def model(self, name: str) -> views.ModelDetail:
        """All about one model. Raises UnknownModel."""
        state = self._load(name)
        status, error = self._observe(name)
        return views.detail(state, self._sentence(name), status, error, self._signals(name))

    def versions(self, name: str) -> list[views.VersionView]:
        """By number. Raises UnknownModel."""
        state = self._load(name)
        status, _ = self._observe(name)
        return [views.version(v, status) for _, v in sorted(state.versions.items())]

    def cycles(self, name: str | None = None, *, limit: int = 100) -> list[views.CycleView]:
        """Newest first, of one model or of all. Raises UnknownModel."""
        if name is not None:
            self._load(name)
        return [views.cycle(c) for c in self._store.cycles(name, limit=limit)]

    def drift_report(self, name: str, cycle: int) -> Path:
        """Evidently's report of the drift that opened a cycle. Raises UnknownModel, UnknownReport."""
        self._load(name)
        path = report_path(self._home, name, cycle) if self._home else None
        if path is None or not path.is_file():
            raise UnknownReport(
                f"there is no drift report of cycle {cycle} of {name}: drift did not open it, or the report is not made yet or gone"
            )
        return path

    def events(
        self, name: str | None = None, *, after: int = 0, limit: int = 100, newest: bool = False, grounds: bool = False
    ) -> list[views.EventView]:
        """In order of `seq`; those of a deleted model are still there, so an unknown name has none."""
        found = self._store.events(name, after=after, limit=limit, newest=newest)
        return [views.event(e, grounds=grounds) for e in found]

    def incidents(self, *, open_only: bool = False, limit: int = 100) -> list[views.IncidentView]:
        """Newest first."""
        return [views.incident(one) for one in self._store.incidents(open_only=open_only, limit=limit)]

    def pages(self) -> Sequence[MetricsPage]:
        """Where a monitoring system finds the counters of what serves. Raises TargetError."""
        return self._target.pages()

    def sources(self) -> list[SourceStatus]:
        """What policies are followed from, and what promoted digests are written to."""
        return [one.status for one in self._sources]

    def explain(self, name: str) -> explaining.Explanation:
        """Why the model is where it is, what comes next and how to stop it. Raises UnknownModel."""
        state = self._load(name)
        status, error = self._observe(name)
        return explaining.explain(
            state, self._policy(state), views.detail(state, self._sentence(name), status, error, self._signals(name)),
            cycles=(cycles := self._store.cycles(name, limit=LAST_CYCLES)), now=self._now(),
            reports=self._reports(name, cycles), metrics=self._metrics(state, self._policy(state)),
            gitops=self._gitops(name),
        )  # fmt: skip

    def _reports(self, name: str, cycles: Sequence[Cycle]) -> list[explaining.Report]:
        found = []
        for cycle in cycles:
            path = report_path(self._home, name, cycle.number) if self._home and cycle.drift else None
            if path is not None and path.is_file():
                url = f"/api/v1/models/{name}/cycles/{cycle.number}/drift"
                found.append(explaining.Report(cycle=cycle.number, file=str(path), url=url))
        return found[: explaining.REPORTS_SHOWN]

    def replay(self, seq: int) -> Replayed:
        """Take a recorded decision again and compare. Raises UnknownEvent, `replaying.NotReplayable`."""
        event = next(iter(self._store.events(after=seq - 1, limit=1)), None)
        if event is None or event.seq != seq:
            raise UnknownEvent(f"there is no event {seq}")
        return compare(event, self._same_commit(event))

    def _same_commit(self, event: Event) -> list[Event]:
        """The events that were recorded together with this one: of the same model and moment."""
        around = self._store.events(event.model, after=max(event.seq - 50, 0), limit=100)
        return [e for e in around if e.at == event.at]

    # ------------------------------------------------------------ telling people
    def channels(self) -> list[ChannelStatus]:
        """Every channel that people are told by: what waits for it, and why its newest attempt failed."""
        return self._notices.status() if self._notices is not None else []

    def test_notices(self, *, actor: str) -> list[ChannelTest]:
        """Send a test message to every channel, and say what came of each. Raises NotLeading."""
        overrides.check_lengths(actor)
        self._leading_epoch()
        return self._notices.test() if self._notices is not None else []

    # ------------------------------------------------------------ policies
    def apply(
        self, documents: Sequence[PolicyDocument], *, actor: str, dry_run: bool = False, force: bool = False
    ) -> list[Applied]:
        """Follow these policies from now on; all are checked before the first is applied. `force`: also where another is followed
        from a source (`controller.sources`), until that one changes.

        Raises PolicyRefused, `overrides.OverrideRefused`, NotLeading."""
        overrides.check_lengths(actor)
        loaded = _parse(documents)
        return [self._apply(one, actor, dry_run=dry_run, force=force) for one in loaded]

    def _apply(self, one: Loaded, actor: str, *, dry_run: bool, force: bool) -> Applied:
        def attempt() -> Applied:
            state = self._store.load(one.policy.name)
            if state is None:
                return self._create(one, actor, dry_run=dry_run)
            return self._update(state, one, actor, dry_run=dry_run, force=force)

        return _until_settled(attempt)

    def _create(self, one: Loaded, actor: str, *, dry_run: bool) -> Applied:
        name = one.policy.name
        last = next(iter(self._store.events(name, limit=1, newest=True)), None)
        next_version, next_cycle = applying.numbers_after(last)
        state, event = applying.new_model(
            one.policy, str(one.directory), actor, self._now(),
            next_version=next_version, next_cycle=next_cycle,
        )  # fmt: skip
        if not dry_run:
            state = self._store.create(self._leading_epoch(), state, [event])
            count_events([event])
            self._wake(name)
        return Applied(
            name=name, action="created", digest=state.policy_digest, superseded=None, row_version=state.row_version
        )

    def _update(self, state: ModelState, one: Loaded, actor: str, *, dry_run: bool, force: bool) -> Applied:
        directory = str(one.directory)
        origin = applying.check_by_hand(state, force=force) if self._followed(state) else None
        if applying.is_unchanged(state, one.policy, directory):
            return Applied(
                name=state.name, action="unchanged", digest=state.policy_digest, superseded=None,
                row_version=state.row_version,
            )  # fmt: skip
        decision = applying.change_policy(
            state, one.policy, directory, actor, self._now(), origin=origin and replace(origin, forced=actor)
        )
        after = decision.after if dry_run else self._commit(decision)
        return Applied(
            name=state.name, action="updated", digest=after.policy_digest, superseded=applying.superseded(state),
            row_version=after.row_version,
        )  # fmt: skip

    def delete(self, name: str, *, actor: str, reason: str) -> None:
        """Forget the model; the loop then stops what serves it and its jobs. Its events stay. Raises UnknownModel, NotLeading."""
        if not reason.strip():
            raise overrides.OverrideRefused(
                "delete needs a reason (--reason), so that others can read later why it was done"
            )
        overrides.check_lengths(actor, reason)
        state = self._load(name)
        if (origin := state.origin) is not None and self._followed(state):
            raise overrides.OverrideRefused(
                f"{name} is followed from {origin.where}: delete {origin.file} there first, or it would come back"
            )
        event = applying.deletion(state, actor, reason.strip(), self._now())
        try:
            self._store.delete(self._leading_epoch(), name, [event])
        except FencedError as error:
            raise NotLeading(str(error)) from error
        except ConflictError as error:
            raise UnknownModel(f"there is no model {name!r}") from error
        count_events([event])
        self._wake(name)

    # ------------------------------------------------------------ overrides
    def preview(self, name: str, order: Order) -> Preview:
        """What the order would change. Raises UnknownModel, `overrides.OverrideRefused`."""
        state = self._load(name)
        return overrides.preview(state, self._policy(state), order, self._now())

    def order(self, name: str, order: Order) -> Ordered:
        """Carry the order out. Raises UnknownModel, `overrides.OverrideRefused`, `StalePreview`, NotLeading."""

        def attempt() -> Ordered:
            state = self._load(name)
            decision = overrides.apply(state, self._policy(state), order, self._now())
            try:
                after = self._commit(decision)
            except ConflictError as error:
                if order.row_version is None:
                    raise
                raise StalePreview(
                    f"{name} has changed since the preview; look again with 'ratchet explain {name}' and repeat the order"
                ) from error
            return Ordered(model=name, sentence=decision.sentence, row_version=after.row_version)

        return _until_settled(attempt)

    # ------------------------------------------------------------ helpers
    def _followed(self, state: ModelState) -> bool:
        """Whether something would put the policy back that is followed: not if the source is no longer among the settings."""
        origin = state.origin
        return origin is not None and not origin.lost and origin.source in {one.status.name for one in self._sources}

    def _load(self, name: str) -> ModelState:
        state = self._store.load(name)
        if state is None:
            raise UnknownModel(f"there is no model {name!r}; 'ratchet get models' lists them")
        return state

    def _sentence(self, name: str) -> str:
        return self._sentences.get(name, "")

    def _observe(self, name: str) -> tuple[TargetStatus | None, str]:
        try:
            return self._target.observe(name), ""
        except TargetError as error:
            return None, str(error)

    def _commit(self, decision: Decision) -> ModelState:
        commit = Commit(
            model=decision.after, closed=decision.closed, events=decision.events, notices=decision.notices
        )  # fmt: skip
        try:
            after = self._store.commit(self._leading_epoch(), commit)
        except FencedError as error:
            raise NotLeading(str(error)) from error
        count_events(decision.events)
        self._wake(after.name)
        return after

    def _leading_epoch(self) -> int:
        try:
            return self._epoch()
        except LostLeadership as error:
            raise NotLeading(f"{error}; nothing was changed") from error


def _until_settled(attempt: Callable[[], T]) -> T:
    """Repeat while others commit in between; the last ConflictError if they never stop."""
    for _ in range(MAX_TRIES - 1):
        try:
            return attempt()
        except ConflictError:
            continue
    return attempt()


def _is_place(directory: str) -> bool:
    return Path(directory).is_absolute() and len(directory) <= PATH_MAX and "\0" not in directory


def _parse(documents: Sequence[PolicyDocument]) -> list[Loaded]:
    """Raises PolicyRefused with everything that is wrong with any of them."""
    loaded: dict[str, Loaded] = {}
    problems: list[Problem] = []
    for document in documents:
        if not _is_place(document.directory):
            rule = "the folder that relative paths start from must be absolute"
            problems.append(Problem(file=document.file, rule=rule, value=shown(document.directory)))
            continue
        reading = parse_policy(document.text, file=document.file, directory=Path(document.directory))
        problems.extend(reading.problems)
        for one in reading.policies:
            if one.policy.name in loaded:
                rule = f"a model's name may stand in one document only, and {loaded[one.policy.name].file} has it too"
                problems.append(Problem(file=one.file, line=one.line, path="metadata.name", rule=rule))
            loaded[one.policy.name] = one
    if problems:
        raise PolicyRefused(problems)
    return list(loaded.values())
