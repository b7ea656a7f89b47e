"""Builds the daemon from its settings. The only reader of `config`, and the only place that knows which adapter stands behind a port."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from config.settings import Settings
from controller.clock import Clock, ScaledClock, SystemClock
from controller.fleet import places_taken
from controller.housekeeping import Housekeeper
from controller.leadership import FileLeadership, LeaseLeadership
from controller.loop import Chore, Loop
from controller.metering.board import Board, Watching
from controller.metering.named import Metric, built_in
from controller.metering.prometheus import Access, PrometheusSource
from controller.notices.building import NoticeOptions, Notices, WebhookOptions
from controller.notices.routing import Defaults
from controller.notices.secrets import Secret
from controller.notices.slack_clicks import SlackClicks
from controller.notices.told_alerts import AlertBook
from controller.observing import JobObserver
from controller.reconcile import Reconciler
from controller.service import Service
from controller.sources.building import Repository, build_follower, build_write_back
from controller.sources.follower import PolicyFollower
from controller.sources.git.writeback import Place, WriteBack
from controller.store.address import study_address
from controller.store.port import Store
from controller.store.sql import open_store
from controller.web.hooks import Hooks
from deployers.docker import docker_host
from deployers.local import ProcessHost
from deployers.oci import ImageRefused
from deployers.registry.names import parse_place
from deployers.routed.target import RoutedTarget
from pipelines.jobs.local import LocalJobRunner

REFRESH_S = 60.0
"""Between two times that messages about open incidents are brought up to date."""
TIDY_S = 3600.0
"""Between two times that the memory of notifiers is tidied up."""
WORKTREES_S = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """One daemon, assembled but not started."""

    settings: Settings
    clock: Clock
    store: Store
    jobs: LocalJobRunner
    target: RoutedTarget
    leadership: LeaseLeadership
    reconciler: Reconciler
    loop: Loop
    service: Service
    hooks: Hooks
    board: Board


def home_folder(settings: Settings) -> Path:
    """The state folder. A new one is its owner's alone: the prediction log in it holds what customers sent. Raises OSError."""
    home = settings.home
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    run = home / "run"
    run.mkdir(mode=0o700, exist_ok=True)
    run.chmod(0o700)  # whoever was first may have made it with other rights
    return home


def packaging(settings: Settings) -> Mapping[str, Any]:
    """What packaging jobs are told of the settings: plain JSON, and of secrets only where they lie. Raises ValueError."""
    if settings.registry:
        try:
            parse_place(settings.registry)
        except ImageRefused as error:
            raise ValueError(f"RATCHET_REGISTRY: {error}") from error
    names = ("registry_credentials", "registry_ca")
    files = {name: str(path.absolute()) if (path := getattr(settings, name)) else None for name in names}
    return {
        "builder": settings.image_builder, "registry": settings.registry or "", "plain_http": settings.registry_plain_http,
        "docker_host": settings.docker_host,
        "credentials": files["registry_credentials"], "ca": files["registry_ca"], "base": settings.base_image,
        "sign_command": shlex.split(settings.sign_command or ""), "sign_timeout_s": settings.sign_timeout_s,
    }  # fmt: skip


def withdrawing(settings: Settings) -> Callable[[str, str, str | None], None] | None:
    """How a version is deleted from the registry; None if the settings do not ask for it."""
    registry = settings.registry
    if not settings.registry_delete or registry is None:
        return None

    def withdraw(model: str, digest: str, model_image: str | None) -> None:
        from deployers.registry.publish import (
            withdraw as from_registry,  # its client takes 0.2 s to import, and is rarely needed
        )
        from deployers.registry.transport import Access

        place = parse_place(registry)
        access = Access(
            credentials=settings.registry_credentials, ca=settings.registry_ca, plain_http=settings.registry_plain_http,
            host=place.host,
        )  # fmt: skip
        from_registry(place, model, digest, access, model_image)

    return withdraw


def _signing_secret(settings: Settings) -> Secret:
    """By which it is known that a button was pressed in Slack."""
    file, variable = settings.slack_signing_secret_file, settings.slack_signing_secret_env
    return Secret(name="slack_signing_secret", file=file, variable=variable or "")


def notice_options(settings: Settings) -> NoticeOptions:
    """What the settings say about telling people."""
    s = settings
    secret = Secret(
        name="alertmanager_secret", file=s.alertmanager_secret_file, variable=s.alertmanager_secret_env or ""
    )
    return NoticeOptions(
        public_url=(s.public_url or "").rstrip("/") + ("/" if s.public_url else ""),
        defaults=Defaults(slack=s.slack_channel or "", webhook=s.webhook or ""),
        slack_token=Secret(name="slack_token", file=s.slack_token_file, variable=s.slack_token_env or ""),
        slack_api=s.slack_api, buttons=_signing_secret(s).is_set and bool(s.slack_users),
        webhooks={
            name: WebhookOptions(
                url=Secret(name=f"webhooks.{name}.url", value=one.url or "", file=one.url_file, variable=one.url_env or ""),
                secret=Secret(name=f"webhooks.{name}.secret", file=one.secret_file, variable=one.secret_env or "")
                if one.secret_file or one.secret_env else None,
            )
            for name, one in (s.webhooks or {}).items()
        },
        alertmanagers=s.alertmanager_urls or (), alertmanager_user=s.alertmanager_user or "",
        alertmanager_secret=secret if secret.is_set else None,
    )  # fmt: skip


def serving_target(settings: Settings) -> RoutedTarget:
    """Both ways to serve, behind one router, so that a model may move from one to the other. The Engine is not asked for anything yet.

    Raises ValueError."""
    home = settings.home
    containers = docker_host(home, settings.docker_host, network=settings.docker_network, user=settings.docker_user)
    return RoutedTarget(
        home, {"local": ProcessHost(home), "docker": containers}, port=settings.router_port, host=settings.router_host,
        default=settings.target,
    )  # fmt: skip


def build(settings: Settings, on_lost: Callable[[str], None]) -> Parts:
    """Assemble everything. Raises StoreError (database damaged or of a newer release), ValueError (clock, docker_host, docker_user)."""
    home = home_folder(settings)
    clock: Clock = ScaledClock(settings.clock) if settings.clock else SystemClock()
    store = open_store(settings.database_url, settings.database_password_file)
    jobs = LocalJobRunner(home)
    target = serving_target(settings)
    leadership: LeaseLeadership
    if store.shared:
        leadership = LeaseLeadership(store, home / "run", settings.lease_ttl_s)
    else:
        leadership = FileLeadership(store, home / "run", settings.lease_ttl_s)
    observer = JobObserver(
        jobs=jobs, home=home, interval_s=settings.observe_interval_s, parallel=settings.observe_parallel
    )
    board = _board(settings, clock)
    alerts = AlertBook(
        store=store,
        now=clock.now,
        listens=_alert_token(settings).is_set,
        max_age=timedelta(seconds=settings.alert_max_age_s),
    )
    reconciler = Reconciler(
        store=store, jobs=jobs, target=target, leadership=leadership, home=home,
        observer=Watching(observer, board),
        max_busy_cycles=settings.max_busy_cycles, signal_max_age=timedelta(seconds=settings.signal_max_age_s),
        busy_cycles=lambda name: places_taken(name, store.load_all()), reports=True, packaging=packaging(settings),
        alerts=alerts.signals,
        studies=study_address(settings.study_database, settings.study_database_password_file),
    )  # fmt: skip
    housekeeper = Housekeeper(
        store=store, jobs=jobs, home=home, epoch=leadership.epoch, now=clock.now, policy=reconciler.policy,
        keep_versions=settings.keep_versions, cache_max_bytes=settings.cache_max_mb * 1_000_000,
        keep_log=timedelta(days=settings.keep_log_days) if settings.keep_log_days else None, withdraw=withdrawing(settings),
    )  # fmt: skip
    notices = Notices(store=store, home=home, now=clock.now, policy=reconciler.policy, options=notice_options(settings))
    loop = Loop(
        store=store, reconciler=reconciler, tell=notices.dispatcher.round, watch=notices.feed.look, now=clock.now,
        renew=leadership.renew, on_lost=on_lost, tick_s=settings.tick_s, lease_ttl_s=settings.lease_ttl_s,
        cron=settings.clock is None, housekeep=housekeeper.sweep, refresh=board.refresh,
    )  # fmt: skip
    loop.also(Chore(name="notices", every_s=TIDY_S, run=notices.tidy))
    loop.also(Chore(name="incidents", every_s=REFRESH_S, run=notices.refresh_incidents))
    follower = _follow_git(settings, store, leadership, clock, loop)
    write_back = _write_back(settings, store, leadership, clock, loop)
    service = Service(
        store=store, target=target, epoch=leadership.epoch, now=clock.now, wake=loop.wake, sentences=loop.sentences,
        policy=reconciler.policy, home=home, signals=observer.signals, notices=notices,
        sources=[one for one in (follower, write_back) if one is not None],
        gitops=write_back.told if write_back is not None else lambda _name: "",
        metrics=lambda state, policy: board.told(state, policy, reconciler.signal_max_age),
    )  # fmt: skip
    return Parts(
        settings=settings, clock=clock, store=store, jobs=jobs, target=target, leadership=leadership,
        reconciler=reconciler, loop=loop, service=service, board=board,
        hooks=_hooks(settings, store, alerts, notices, service, clock),
    )  # fmt: skip


def _alert_token(settings: Settings) -> Secret:
    """With which Alertmanager may tell of alerts."""
    return Secret(
        name="alert_hook_token", file=settings.alert_hook_token_file, variable=settings.alert_hook_token_env or ""
    )


def _hooks(
    settings: Settings, store: Store, alerts: AlertBook, notices: Notices, service: Service, clock: Clock
) -> Hooks:
    """What other systems may call."""
    token, users = _alert_token(settings), frozenset(settings.slack_users or ())
    signing = _signing_secret(settings)
    clicks = SlackClicks(
        store=store, signing=signing, users=users, order=service.order, slack=notices.slack, now=clock.now
    )
    return Hooks(alerts=alerts, alert_token=token, clicks=clicks if signing.is_set and users else None)


def _board(settings: Settings, clock: Clock) -> Board:
    """What is asked of Prometheus: the built-in metrics, and those of the settings beside or instead of them."""
    if settings.prometheus_url is None:
        return Board(source=None, now=clock.now)
    access = Access(
        url=settings.prometheus_url, token_file=settings.prometheus_token_file, user=settings.prometheus_user,
        password_file=settings.prometheus_password_file, headers_file=settings.prometheus_headers_file,
        ca_file=settings.prometheus_ca_file, timeout_s=settings.prometheus_timeout_s,
        answer_bytes_max=settings.prometheus_max_mb * 2**20,
    )  # fmt: skip
    named = {
        name: Metric(
            name=name, query=one.query, events=one.events, good=one.good, total=one.total, newest=one.newest,
            model_label=one.labels.model, version_label=one.labels.version, max_age=timedelta(seconds=one.max_age_s),
            unit=one.unit, higher_is_better=one.higher_is_better,
        )
        for name, one in (settings.metrics or {}).items()
    }  # fmt: skip
    return Board(
        source=PrometheusSource(access), metrics={**built_in(), **named}, now=clock.now,
        parallel=settings.prometheus_parallel, own_per_tick=settings.prometheus_own_queries,
    )  # fmt: skip


def _follow_git(
    settings: Settings, store: Store, leadership: LeaseLeadership, clock: Clock, loop: Loop
) -> PolicyFollower | None:
    """What follows policies from Git, and does so with the loop; None if no repository is named."""
    if settings.git_url is None:
        return None
    repository = Repository(
        url=settings.git_url, branch=settings.git_branch, protocols=settings.git_protocols,
        credentials_file=settings.git_credentials_file, ssh_key_file=settings.git_ssh_key_file,
        known_hosts_file=settings.git_known_hosts_file, timeout_s=settings.git_timeout_s, max_mb=settings.git_max_mb,
        max_files=settings.git_max_files,
    )  # fmt: skip
    follower = build_follower(
        repository, settings.git_path, home=settings.home, store=store, epoch=leadership.epoch, now=clock.now, wake=loop.wake
    )  # fmt: skip
    loop.also(Chore(name="policies", every_s=settings.git_interval_s, run=follower.sync, close=follower.close))
    loop.also(Chore(name="worktrees", every_s=WORKTREES_S, run=follower.sweep))
    return follower


def _write_back(
    settings: Settings, store: Store, leadership: LeaseLeadership, clock: Clock, loop: Loop
) -> WriteBack | None:
    """What writes promoted digests to a GitOps repository; None if none is named."""
    if settings.gitops_url is None:
        return None
    repository = Repository(
        url=settings.gitops_url, branch=settings.gitops_branch, protocols=settings.git_protocols,
        credentials_file=settings.gitops_credentials_file, ssh_key_file=settings.gitops_ssh_key_file,
        known_hosts_file=settings.gitops_known_hosts_file, timeout_s=settings.git_timeout_s, max_mb=settings.git_max_mb,
        max_files=settings.git_max_files, prefix="gitops",
    )  # fmt: skip
    write_back = build_write_back(
        repository, Place(path=settings.gitops_path, key=settings.gitops_key, image=settings.gitops_image),
        settings.gitops_author, settings.gitops_signing_key_file, home=settings.home, store=store, epoch=leadership.epoch,
        now=clock.now,
    )  # fmt: skip
    loop.also(Chore(name="gitops", every_s=settings.git_interval_s, run=write_back.round, close=write_back.close))
    return write_back
