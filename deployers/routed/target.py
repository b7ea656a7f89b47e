"""`RoutedTarget`: the Target port on one machine, whatever its replicas are. See the package's docstring."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deployers.routed.processes import Presence, locked, reap
from deployers.routed.record import InForce, ModelRecord, load_record, save_record
from deployers.routed.replicas import BASELINE, HOST, MAIN, Host, Replica, ReplicaFolder, ReplicaSpec
from deployers.routed.router import RouterProcess
from deployers.routed.routing import next_in_force, router_table
from deployers.routed.supervised import Life, Limits
from deployers.target import (
    MetricsPage,
    ReplicaState,
    ReplicaStatus,
    StalePlanError,
    TargetError,
    TargetStatus,
    TrafficPlan,
)

_LOCK_TIMEOUT_S = 5.0
_POLL_S = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class _Wanted:
    """The replicas that run as the plan wants, after this stride's look at each."""

    replicas: Mapping[int, Sequence[tuple[Replica, Life]]]
    """By version."""
    full: frozenset[int]
    """Versions of which all replicas are ready."""
    baseline: Sequence[tuple[Replica, Life]]
    """Of the plan's baseline."""

    now: float

    @property
    def ready(self) -> dict[int, list[str]]:
        """Version → URLs of its ready replicas."""
        return {v: self._urls(pairs) for v, pairs in self.replicas.items()}

    @property
    def ready_baseline(self) -> list[str]:
        """URLs of its ready replicas."""
        return self._urls(self.baseline)

    def _urls(self, pairs: Sequence[tuple[Replica, Life]]) -> list[str]:
        return [r.url(life) for r, life in pairs if r.is_ready(life, self.now)]


class RoutedTarget:
    """Serves versions on the hosts of this machine, behind one router.

    `apply` is cheap when nothing is to be done and must be called each tick, also when the plan is in force: that is how the dead are
    started again and the drained are ended. Replicas and router outlive this object and this process. A plan that names another host
    than the one before is followed like one that names other workers: what serves goes on until its successors are ready."""

    def __init__(
        self, home: Path, hosts: Mapping[str, Host], *, port: int, host: str = "127.0.0.1", limits: Limits | None = None,
        default: str = "local",
    ) -> None:  # fmt: skip
        """`port`: where clients reach the router; 0 lets it choose, and keep what it chose until `stop_all`.

        `hosts`: by the names that plans give them; `default`: of the one that a plan means that names none."""
        self._home = home.absolute()
        self._hosts = hosts
        self._default = default
        self._limits = limits or Limits()
        self._router = RouterProcess(self._home, host, port, self._limits)

    # ------------------------------------------------------------ the port
    def apply(self, plan: TrafficPlan) -> None:
        """See Target.apply."""
        reap()
        try:
            with self._locked(plan.model):
                record = load_record(self._record(plan.model))
                if record.plan is None:
                    self._check_epoch(plan)
                accepted = record.accept(plan)
                if accepted != record:
                    save_record(self._record(plan.model), accepted)
                assert accepted.plan is not None
                self._stride(accepted.plan, accepted)
        except OSError as error:
            raise TargetError(f"{plan.model}: {error}; the next tick tries again") from error

    def _check_epoch(self, plan: TrafficPlan) -> None:
        """With the record lost, what runs still tells of a newer controller. Raises StalePlanError."""
        newest = max((host.epoch(plan.model) for host in self._hosts.values()), default=0)
        if plan.epoch < newest:
            raise StalePlanError(
                f"{plan.model}: replicas were started by the controller of epoch {newest}, and this plan is of {plan.epoch}"
            )

    def observe(self, model: str) -> TargetStatus | None:
        """See Target.observe. While the router does not answer, nothing is in force: generation 0 and no weights."""
        try:
            record = load_record(self._record(model))
            return None if record.plan is None else self._status(model, record)
        except OSError as error:
            raise TargetError(f"{model}: {error}; the next tick tries again") from error

    def _status(self, model: str, record: ModelRecord) -> TargetStatus:
        try:
            table = self._router.get(model)
        except TargetError:
            table = None
        told = table is not None and record.told_to == self._router.process
        table = table or {"weights": {}, "shadow": None, "stats": {}}
        weights = {int(v): w for v, w in table["weights"].items()}
        shadow = None if table["shadow"] is None else int(table["shadow"])
        replicas, baseline = self._replica_statuses(record, table["stats"])
        as_told = told and (weights, shadow) == (dict(record.in_force.weights), record.in_force.shadow)
        return TargetStatus(
            generation=record.in_force.generation if as_told else 0,
            weights=weights,
            shadow=shadow,
            replicas=replicas,
            baseline=baseline,
            address=self._router.address,
        )

    def models(self) -> Sequence[str]:
        """See Target.models."""
        files = [path.stem for path in (self._home / "run" / "target").glob("*.json")]
        running = {name for host in self._hosts.values() for name in host.models()}
        return sorted(running | {name for name in files if load_record(self._record(name)).plan is not None})

    def pages(self) -> Sequence[MetricsPage]:
        """See Target.pages. A replica's name is its slot's, which the next one of the version takes over."""
        address = self._router.address.removeprefix("http://").replace("0.0.0.0:", "127.0.0.1:")
        found = [MetricsPage(address=address, instance="router")] if address else []
        try:
            for model in self.models():
                for replica in self._replicas(model).known():
                    port = replica.process.life().port
                    if port is not None and not replica.is_ending():
                        spec, slot = replica.spec, f"v{replica.spec.version}-{replica.index}"
                        found.append(
                            MetricsPage(
                                address=f"{HOST}:{port}", instance=f"{model}/{slot}", model=model, version=spec.version,
                                arm=spec.arm,
                            )
                        )  # fmt: skip
        except OSError as error:
            raise TargetError(f"{error}; the next question tries again") from error
        return found

    def remove(self, model: str, epoch: int) -> None:
        """See Target.remove. Waits for the replicas to end, at most `grace_s` and a little; safe to repeat."""
        try:
            with self._locked(model):
                record = load_record(self._record(model))
                removed = record.remove(model, epoch)
                if record.plan is not None:
                    self._router.ensure()
                    self._router.delete(model, epoch)
                self._end_all(model)
                save_record(self._record(model), removed)
        except OSError as error:
            raise TargetError(f"{model}: {error}; try again") from error

    def stop_all(self) -> None:
        """End the router and every replica, and wait for it. Plans are kept: the next `apply` starts everything again."""
        deadline = self._deadline()
        while not self._router.stop(idle=True) and time.monotonic() < deadline:
            reap()
            time.sleep(_POLL_S)
        folder = self._home / "run" / "replicas"
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        for name in sorted(names | {name for host in self._hosts.values() for name in host.models()}):
            with self._locked(name):
                self._end_all(name)
        reap()

    # ------------------------------------------------------------ one stride
    def _stride(self, plan: TrafficPlan, record: ModelRecord) -> None:
        """Start what is wanted, move traffic if it may move, drain what is left over. Without a router nothing moves.

        A router that cannot run, or a host that is away, keeps no replica from being looked after; its TargetError is raised at the end."""
        router, trouble = self._look_after_router()
        if self._host_of(plan) not in self._hosts:
            raise TargetError(f"{plan.model}: deploy.target is {plan.target}, which this daemon does not serve on")
        folder = self._replicas(plan.model, plan.epoch)
        folder.sweep()
        known = folder.known()
        wanted = self._keep_wanted(plan, folder, known)
        in_force = record.in_force
        if router is not None:
            in_force = next_in_force(plan, in_force, wanted.full, {v for v, urls in wanted.ready.items() if urls})
        kept = {(r.spec.version, r.index) for pairs in [*wanted.replicas.values(), wanted.baseline] for r, _ in pairs}
        others = [r for r in known if (r.spec.version, r.index) not in kept]
        settled = in_force.weights == plan.weights and wanted.full.issuperset(plan.weights)
        carrying = [r for r in others if not settled and _carries(r, in_force)]
        ready = self._keep_carrying(carrying, wanted.ready)
        if router is not None:
            self._tell(plan.model, record, in_force, router_table(plan, in_force, ready, wanted.ready_baseline), router)
        self._drain(plan.model, [r for r in others if r not in carrying], reachable=router is not None)
        if trouble is not None:
            raise trouble
        hosts = {self._host_of(plan), *(r.spec.host for r in known)}
        if troubles := [words for name in sorted(hosts) if (words := self._hosts[name].trouble)]:
            raise TargetError(f"{plan.model}: {'; '.join(troubles)}")

    def _host_of(self, plan: TrafficPlan) -> str:
        return plan.target or self._default

    def _look_after_router(self) -> tuple[str | None, TargetError | None]:
        """Which router process runs, and why none can."""
        try:
            return self._router.ensure(), None
        except TargetError as error:
            return None, error

    def _keep_wanted(self, plan: TrafficPlan, folder: ReplicaFolder, known: Sequence[Replica]) -> _Wanted:
        """Look after every replica that the plan wants, and add those that are missing."""
        now = time.monotonic()
        main = {v: self._keep_set(plan, folder, known, self._spec(plan, v, MAIN)) for v in plan.digests}
        full = (v for v, pairs in main.items() if sum(r.is_ready(life, now) for r, life in pairs) == plan.replicas)
        baseline: Sequence[tuple[Replica, Life]] = ()
        if plan.baseline is not None:
            known = [*known, *(r for r, _ in main[plan.baseline] if r not in known)]  # whose places are taken
            baseline = self._keep_set(plan, folder, known, self._spec(plan, plan.baseline, BASELINE))
        return _Wanted(replicas=main, full=frozenset(full), baseline=baseline, now=now)

    def _keep_set(
        self, plan: TrafficPlan, folder: ReplicaFolder, known: Sequence[Replica], spec: ReplicaSpec
    ) -> list[tuple[Replica, Life]]:
        """Look after the plan's number of interchangeable replicas."""
        now = time.monotonic()
        usable = [r for r in known if r.spec == spec and not r.is_ending()][: plan.replicas]
        taken = {r.index for r in known if r.spec.version == spec.version}
        obstacle = self._hosts[spec.host].fetch(spec.digest)
        while len(usable) < plan.replicas and obstacle is None:
            usable.append(folder.add(spec, taken))
            taken.add(usable[-1].index)
        return [(r, self._keep(r, now)) for r in usable]

    def _keep_carrying(self, carrying: Sequence[Replica], ready: dict[int, list[str]]) -> dict[int, list[str]]:
        """Look after replicas that no plan wants but that carry traffic until their successors are ready; `ready` with theirs."""
        now = time.monotonic()
        for replica in carrying:
            life = self._keep(replica, now)
            if replica.is_ready(life, now):
                ready.setdefault(replica.spec.version, []).append(replica.url(life))
        return ready

    def _keep(self, replica: Replica, now: float) -> Life:
        """One that runs is looked after even if its image is gone; one that does not cannot be started from it."""
        if replica.process.runner.presence() is Presence.GONE and self._hosts[replica.spec.host].fetch(
            replica.spec.digest
        ):
            return replica.process.life()
        return replica.process.keep(now)

    def _tell(self, model: str, record: ModelRecord, in_force: InForce, table: Mapping[str, Any], router: str) -> None:
        """Tell the router its table if that is news to this router process, and remember that it took it."""
        if table == record.told and router == record.told_to and in_force == record.in_force:
            return
        self._router.put(model, table)
        save_record(self._record(model), replace(record, in_force=in_force, told=table, told_to=router))

    def _drain(self, model: str, going: Sequence[Replica], *, reachable: bool) -> None:
        """Stride towards the end of replicas that get no new requests. Those in flight may finish, if the router can be asked."""
        if not going:
            return
        in_flight: Mapping[str, int] | None = None
        if reachable:
            in_flight = (self._router.get(model) or {}).get("in_flight", {})
        now = time.monotonic()
        for replica in going:
            url = replica.url(replica.process.life())
            replica.process.stop(now, idle=in_flight is not None and not in_flight.get(url))

    # ------------------------------------------------------------ looking
    def _replica_statuses(
        self, record: ModelRecord, stats: Mapping[str, Any]
    ) -> tuple[dict[int, ReplicaStatus], ReplicaStatus | None]:
        """Of each version, and of the baseline if the plan has one."""
        plan = record.plan
        assert plan is not None
        now = time.monotonic()
        by_version: dict[int, list[Replica]] = {v: [] for v in plan.digests}
        baseline: list[Replica] = []
        for replica in self._replicas(plan.model).known():
            (baseline if replica.spec.arm == BASELINE else by_version.setdefault(replica.spec.version, [])).append(
                replica
            )
        statuses = {}
        for version, replicas in sorted(by_version.items()):
            digest = plan.digests.get(version) or record.in_force.digests.get(version)
            statuses[version] = self._set_status(plan, digest, replicas, now, stats.get(str(version), {}))
        if plan.baseline is None:
            return statuses, None
        return statuses, self._set_status(plan, plan.digests[plan.baseline], baseline, now, stats.get(BASELINE, {}))

    def _set_status(
        self, plan: TrafficPlan, digest: str | None, replicas: Sequence[Replica], now: float, counts: Mapping[str, Any]
    ) -> ReplicaStatus:
        state, reason = self._version_state(plan, digest, replicas, now)
        names = ("requests", "errors", "shadow_requests", "shadow_errors")
        known = {n: int(counts.get(n, 0)) for n in names}
        called = tuple(r.name for r in replicas if r.name)
        return ReplicaStatus(
            state=state, reason=reason, latency_ms_p95=counts.get("latency_ms_p95"), containers=called, **known
        )

    def _version_state(
        self, plan: TrafficPlan, digest: str | None, replicas: Sequence[Replica], now: float
    ) -> tuple[ReplicaState, str]:
        """The state of a version as a whole: failed if any replica is, ready only if all are."""
        if digest is None:
            return ReplicaState.DRAINING, ""
        states = [r.process.state(now) for r in replicas]
        for state, reason in states:
            if state is ReplicaState.FAILED:
                return state, reason
        ready = sum(state is ReplicaState.READY for state, _ in states)
        if ready >= plan.replicas:
            return ReplicaState.READY, ""
        host = self._hosts.get(self._host_of(plan))
        obstacle = host.obstacle(digest) if host is not None else None
        if obstacle is not None and not ready:
            return ReplicaState.STARTING if obstacle.passing else ReplicaState.FAILED, obstacle.reason
        reasons = [reason for state, reason in states if state is ReplicaState.STARTING]
        return ReplicaState.STARTING, f"{ready} of {plan.replicas} replicas ready" + "".join(
            f"; {r}" for r in reasons[:1]
        )

    # ------------------------------------------------------------ the end
    def _end_all(self, model: str) -> None:
        """End all replicas of a model and wait. Raises TimeoutError naming what is left."""
        folder = self._replicas(model)
        deadline = self._deadline()
        folder.sweep()
        left = folder.known()
        while left:
            now = time.monotonic()
            left = [r for r in left if not r.process.stop(now, idle=True)]
            reap()
            if left and now > deadline:
                raise TimeoutError(
                    f"{len(left)} replicas did not end, first {left[0].name or left[0].process.runner.folder}"
                )
            if left:
                time.sleep(_POLL_S)
        folder.clear()

    def _deadline(self) -> float:
        return time.monotonic() + self._limits.grace_s + 5.0

    def _spec(self, plan: TrafficPlan, version: int, arm: str) -> ReplicaSpec:
        return ReplicaSpec(
            model=plan.model, version=version, digest=plan.digests[version], workers=plan.workers, arm=arm,
            host=self._host_of(plan), memory_mb=plan.memory_mb, cpus=plan.cpus,
        )  # fmt: skip

    def _replicas(self, model: str, epoch: int = 0) -> ReplicaFolder:
        """`epoch`: of the controller on whose word some may be started."""
        return ReplicaFolder(self._home, model, self._hosts, self._limits, epoch)

    def _record(self, model: str) -> Path:
        return self._home / "run" / "target" / f"{model}.json"

    def _locked(self, model: str) -> Any:
        return locked(self._home / "run" / "target" / f"{model}.lock", _LOCK_TIMEOUT_S)


def _carries(replica: Replica, in_force: InForce) -> bool:
    serves = replica.spec.arm == MAIN and in_force.digests.get(replica.spec.version) == replica.spec.digest
    return serves and not replica.is_ending()
