"""Keeps the digest of every champion in a file of a GitOps repository, from which Argo CD or Flux roll it out.

What should stand there is a function of the state, so a promotion and a rollback are the same thing here, and a crash leads back to the
same question. Each commit says in a trailer which decision it carries out. A decision that was carried out and is not what stands there was
undone by a person: it is left so, and said, until the next decision. Runs beside the loop and never holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from threading import Lock

import structlog

from controller.sources.git.access import AccessError
from controller.sources.git.command import GitFailed
from controller.sources.git.digests import SIZE_MAX, FileRefused, digest_in, with_digest
from controller.sources.git.trees import FILE_MODES, TreeRefused, check_name
from controller.sources.git.writing import TRAILER, Overtaken, Writer
from controller.sources.incidents import Trouble, settle
from controller.sources.port import SourceAway, SourceGone, SourceStatus
from controller.sources.status import StatusFile
from controller.state import ModelState, VersionStatus
from controller.store.port import Store

log = structlog.get_logger()

NAME = "gitops"
AWAY, REFUSED, BY_HAND = "gitops_unreachable", "gitops_file_refused", "gitops_changed_by_hand"
AWAY_AFTER = timedelta(minutes=10)
ATTEMPTS = 5
"""At a push that others keep overtaking; then the next round goes on."""
COMMITS_MAX = 100
"""In one push; more follow in the next round."""
EVENTS_MAX = 1000
SHOWN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a model's digest stands."""

    path: str = "apps/{model}/kustomization.yaml"
    key: str = ""
    """Dotted; empty: the file is a kustomization.yaml."""
    image: str = "{model}"

    def path_of(self, model: str) -> str:
        return self.path.replace("{model}", model)

    def image_of(self, model: str) -> str:
        return self.image.replace("{model}", model)


def checked_place(place: Place) -> Place:
    """The same, if it can be used. Raises AccessError."""
    if wrong := check_name(place.path_of("model")):
        raise AccessError(f"gitops_path: {wrong}; give a path such as apps/{{model}}/kustomization.yaml")
    if "{model}" not in place.path and (
        (place.key and "{model}" not in place.key) or (not place.key and "{model}" not in place.image)
    ):
        raise AccessError("gitops_path, or else gitops_key or gitops_image, must hold {model}: one place a model")
    if place.key and not all(place.key.split(".")):
        raise AccessError(f"gitops_key must be a dotted key, such as image.digest, but got {place.key[:80]!r}")
    return place


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """What should stand in the repository for a model."""

    model: str
    version: int
    digest: str
    decision: str
    """`MODEL/CYCLE/VERSION at TIME`: the same decision has the same name, two never have."""
    at: datetime
    back: bool
    """Whether it was taken back to."""

    @property
    def message(self) -> str:
        what = f"goes back to v{self.version}" if self.back else f"v{self.version} serves"
        return f"{self.model}: {what}\n\n{self.digest}\n\n{TRAILER}: {self.decision}\n"


def standing(state: ModelState) -> Standing | None:
    """None while nothing serves."""
    if state.champion is None:
        return None
    version = state.versions[state.champion]
    at = state.champion_since or version.created_at
    cycle = version.cycle if state.champion_cycle is None else state.champion_cycle
    later = (v for n, v in state.versions.items() if n > state.champion)
    back = any(v.status in (VersionStatus.QUARANTINED, VersionStatus.RETIRED) for v in later)
    return Standing(
        model=state.name, version=version.number, digest=version.digest, at=at, back=back,
        decision=f"{state.name}/{cycle}/{version.number} at {at:%Y-%m-%dT%H:%M:%S.%fZ}",
    )  # fmt: skip


class WriteBack:
    """One repository. `round` is called from one thread at a time; `status` and `told` from any."""

    def __init__(
        self, *, writer: Writer, place: Place, store: Store, epoch: Callable[[], int], now: Callable[[], datetime],
        status_file: Path, away_after: timedelta = AWAY_AFTER,
    ) -> None:  # fmt: skip
        access = writer.mirror.access
        self._writer, self._mirror = writer, writer.mirror
        self._place, self._store, self._epoch, self._now = place, store, epoch, now
        self._away_after = away_after
        self._file = StatusFile(status_file)
        self._status = SourceStatus(name=NAME, where=f"{access.url} {access.branch}:{place.path}")
        known = self._file.load()
        self._written = dict(known.written) if known is not None and known.where == self._status.where else {}
        """Model → the decision that was carried out last."""
        self._wanted: dict[str, Standing] | None = None
        self._seen = 0
        self._settled: str | None = None
        """The commit in which everything stands as it should, as far as it can."""
        self._troubles: dict[str, Trouble] = {}
        self._turn = Lock()

    @property
    def status(self) -> SourceStatus:
        return self._status

    def told(self, model: str) -> str:
        """Where the model's digest stands, or why it does not yet; empty if nothing is known of it."""
        wanted = (self._wanted or {}).get(model)
        if wanted is None:
            return ""
        place = f"{self._place.path_of(model)} ({self._mirror.access.url} {self._mirror.access.branch})"
        trouble = self._troubles.get(model)
        if trouble is not None:
            return trouble.sentence
        if self._written.get(model) == wanted.decision:
            return f"v{wanted.version} stands in {place}"
        reason = f": {self._status.error}" if self._status.error else ""
        return f"v{wanted.version} is still to be written to {place}{reason}"

    def close(self) -> None:
        self._mirror.close()

    # ------------------------------------------------------------ one round
    def round(self) -> None:
        """Make it stand there. Raises LostLeadership, StoreError; what is wrong outside is in `status` and in incidents."""
        with self._turn:
            self._epoch()
            changed = self._look_at_models()
            try:
                tip = self._mirror.tip()
                if tip == self._settled and not changed:
                    self._done(tip)
                    return
                self._settled = None
                self._bring_up(tip)
            except (SourceGone, SourceAway, TreeRefused) as error:
                self._settled = None
                self._failed(str(error))

    def _look_at_models(self) -> bool:
        """Whether something else should stand there than at the last round. Reads all models once, then those that had an event."""
        if self._wanted is None:
            newest = self._store.events(limit=1, newest=True)
            self._seen = newest[0].seq if newest else 0
            self._wanted = {one.model: one for state in self._store.load_all() if (one := standing(state)) is not None}
            return True
        events = self._store.events(after=self._seen, limit=EVENTS_MAX)
        if len(events) == EVENTS_MAX:
            self._wanted = None  # too much happened to look at it one by one
            return self._look_at_models()
        before = dict(self._wanted)
        for name in dict.fromkeys(event.model for event in events):
            state = self._store.load(name)
            one = standing(state) if state is not None else None
            self._wanted.pop(name, None)
            if one is not None:
                self._wanted[name] = one
        self._seen = max((event.seq for event in events), default=self._seen)
        return self._wanted != before

    def _bring_up(self, tip: str) -> None:
        for _ in range(ATTEMPTS):
            if not self._mirror.has(tip):
                tip = self._mirror.fetch()
            made = self._commits(tip)
            if not made:
                self._settled = tip
                self._done(tip)
                return
            self._epoch()  # another may lead by now, and decide otherwise
            head = made[-1][0]
            try:
                self._writer.push(head)
            except Overtaken:
                tip = self._mirror.fetch()
                continue
            for _, one in made:
                self._written[one.model] = one.decision
                log.info("gitops.written", model=one.model, digest=one.digest, decision=one.decision, commit=head)
            tip = head
            if len(made) < COMMITS_MAX:
                self._settled = tip
            self._done(tip)
            return
        raise GitFailed(f"others pushed {ATTEMPTS} times in between; it is tried again")

    def _commits(self, tip: str) -> list[tuple[str, Standing]]:
        """What is missing, as commits upon the tip, each with what it says. Changes what is known to be written and wrong."""
        self._troubles = {}
        made: list[tuple[str, Standing]] = []
        overlay: dict[str, bytes] = {}
        decisions: set[str] | None = None
        for one, path, content in self._files(tip):
            content = overlay.get(path, content)
            key, image = self._place.key.replace("{model}", one.model), self._place.image_of(one.model)
            try:
                now = digest_in(content, key=key, image=image)
                new = with_digest(content, one.digest, key=key, image=image)
            except FileRefused as error:
                self._trouble(one.model, REFUSED, f"{path}: {error}")
                continue
            if now == one.digest:
                self._written[one.model] = one.decision
                continue
            decisions = self._writer.decisions(tip) if decisions is None else decisions
            if one.decision in decisions or self._written.get(one.model) == one.decision:
                self._written[one.model] = one.decision
                self._trouble(one.model, BY_HAND, _by_hand(one, path, now))
            elif len(made) < COMMITS_MAX:
                overlay[path] = new
                made.append((self._writer.commit(made[-1][0] if made else tip, {path: new}, one.message, one.at), one))
        return made

    def _files(self, tip: str) -> Iterator[tuple[Standing, str, bytes]]:
        """Of every model whose file is there, and small enough to be one."""
        entries = self._mirror.tree(tip).entries
        found = []
        for one in sorted((self._wanted or {}).values(), key=lambda one: (one.at, one.model)):
            path = self._place.path_of(one.model)
            entry = entries.get(path)
            if entry is None or entry.mode not in FILE_MODES:
                self._trouble(
                    one.model,
                    REFUSED,
                    f"{path} is not in the repository: make it, or the digest of {one.model} stands nowhere",
                )
            elif entry.size > SIZE_MAX:
                self._trouble(one.model, REFUSED, f"{path} has more than {SIZE_MAX:,} bytes")
            else:
                found.append((one, path, entry))
        contents = dict(
            zip((path for _, path, _ in found), self._mirror.read([entry for _, _, entry in found]), strict=True)
        )
        return ((one, path, contents[path]) for one, path, _ in found)

    # ------------------------------------------------------------ saying so
    def _trouble(self, model: str, kind: str, sentence: str) -> None:
        self._troubles[model] = Trouble(kind=kind, subject=model, sentence=sentence)

    def _done(self, tip: str) -> None:
        told = tuple(one.sentence for one in list(self._troubles.values())[:SHOWN])
        written = {model: one for model, one in self._written.items() if model in (self._wanted or {})}
        self._written = written
        is_news = tip != self._status.applied
        self._set(
            applied=tip, applied_said="all digests that can stand", applied_at=self._now() if is_news else self._status.applied_at,
            newest=tip, refused=told, newest_said="what is left out" if told else "", error="", failing_since=None,
            looked_at=self._now(), models=len(written), written=written,
        )  # fmt: skip
        self._settle([])

    def _failed(self, error: str) -> None:
        now = self._now()
        if error != self._status.error:
            log.warning("gitops.away", repository=self._status.where, error=error)
        since = self._status.failing_since or now
        self._set(error=error, failing_since=since, looked_at=now)
        away = [Trouble(kind=AWAY, subject="", sentence=f"promoted digests cannot be written: {error}; they will be")]
        self._settle(away if now - since >= self._away_after else [], unsure=True)

    def _settle(self, more: list[Trouble], *, unsure: bool = False) -> None:
        troubles = [*list(self._troubles.values())[:SHOWN], *more]
        settle(
            self._store,
            self._epoch(),
            self._status.where,
            (AWAY, REFUSED, BY_HAND),
            troubles,
            self._now(),
            unsure=unsure,
        )

    def _set(self, **changes: object) -> None:
        before, self._status = self._status, replace(self._status, **changes)  # type: ignore[arg-type]
        if replace(before, looked_at=None) != replace(self._status, looked_at=None):
            self._file.save(self._status)


def _by_hand(one: Standing, path: str, now: str | None) -> str:
    return (
        f"{path}: {now or 'nothing'} stands there instead of {one.digest} (v{one.version} of {one.model}), which was written: somebody "
        "changed it, so it is left as it is until the next promotion or rollback"
    )
