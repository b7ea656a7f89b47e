"""Settings: from environment variables `RATCHET_…` or a settings file (`config.reading`), each with a default that suits one machine."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from config.places import WebhookPlace, check_url, words

Port = Annotated[int, Field(ge=0, le=65_535)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
PREFIX = "RATCHET_"
_NOT_OURS = ("RATCHET_SERVER", "RATCHET_SETTINGS", "RATCHET_TOKEN", "RATCHET_TEST_", "RATCHET_SIM_")
"""The command line's and the tests' own variables: names, and beginnings of names that end in `_`. One names the settings file."""


Promql = Annotated[str, Field(min_length=1, max_length=4000)]
MetricName = Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]{0,63}$")]


class MetricLabels(BaseModel):
    """Which labels of a metric's series carry model and version."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, Field(min_length=1, max_length=200)] = "model"
    version: Annotated[str, Field(min_length=1, max_length=200)] = "version"


class NamedMetric(BaseModel):
    """One metric of all models, asked once a tick: a value by `query`, or the share of `events` (or `good`) in `total`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    query: Promql | None = None
    events: Promql | None = None
    good: Promql | None = None
    total: Promql | None = None
    newest: Promql | None = None
    """PromQL of the time of the newest sample, in seconds since 1970, of which `max_age` then holds."""
    labels: MetricLabels = MetricLabels()
    max_age_s: Seconds = 300.0
    """Older answers, and older samples by `newest`, are unknown."""
    unit: Annotated[str, Field(max_length=20)] = ""
    higher_is_better: bool | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(part is not None for part in (self.query, self.events, self.good)) != 1:
            raise ValueError("give exactly one of query, events, good")
        if self.query is None and self.total is None:
            raise ValueError("events and good need total")
        return self


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(words)]


class Settings(BaseSettings):
    """Everything about one daemon. `RATCHET_HOME=/srv/ratchet` sets `home`, and so on."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    home: Path = Field(default=Path(".ratchet"), description="state folder: database, images, logs, caches")
    database: str | None = Field(
        default=None, repr=False, description="SQLAlchemy URL; default: SQLite in the state folder"
    )
    database_password_file: Path | None = Field(default=None, description="file with the password of that database")
    study_database: str | None = Field(
        default=None, description="PostgreSQL URL without password, where searches are kept; default: working folders"
    )
    study_database_password_file: Path | None = Field(default=None, description="file with the password of that one")
    host: str = Field(default="127.0.0.1", description="address of the HTTP API")
    port: Port = Field(default=8640, description="port of the HTTP API; 0 takes a free one")
    router_host: str = Field(default="127.0.0.1", description="address of the router, where predictions are asked for")
    router_port: Port = Field(default=8600, description="port of the router; 0 takes a free one and keeps it")
    tick_s: Seconds = Field(default=5.0, description="seconds between two looks at every model")
    observe_interval_s: Seconds = Field(default=30.0, description="seconds between two measurements of a model")
    observe_parallel: Annotated[int, Field(ge=1, le=64)] = Field(default=1, description="measurements at a time")
    max_busy_cycles: Annotated[int, Field(ge=1)] = Field(
        default=1, description="cycles that work at a time; more are queued"
    )
    signal_max_age_s: Annotated[float, Field(gt=0)] = Field(
        default=3600.0, description="older measurements are unknown (seconds of the daemon's clock)"
    )
    lease_ttl_s: Seconds = Field(default=10.0, description="a leader that has not renewed for so long is not one")
    cache_max_mb: Annotated[int, Field(ge=1)] = Field(
        default=10_240, description="step cache; the least recently used goes"
    )
    keep_versions: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=10, description="older versions of a model to keep: so many former champions, and so many others"
    )
    keep_log_days: Annotated[int, Field(ge=0, le=36_500)] = Field(
        default=0, description="days of the prediction logs to keep; 0 keeps all"
    )
    # Serving: deployers.routed, deployers.docker
    target: Literal["local", "docker"] = Field(
        default="local", description="where versions serve whose policy does not say"
    )
    docker_host: str = Field(
        default="unix:///var/run/docker.sock", description="socket of the Docker Engine of this machine"
    )
    docker_network: str = Field(
        default="bridge", description="network of the containers: one of the Engine's, or host for the machine's own"
    )
    docker_user: str | None = Field(
        default=None, description="UID:GID that containers run as; default: the daemon's, or 65532:65532 for root"
    )
    # Images: deployers.registry, deployers.package
    image_builder: Literal["layout", "docker", "registry"] = Field(
        default="layout",
        description="where images go: the state folder alone, or also the Docker Engine, or a registry",
    )
    registry: str | None = Field(default=None, description="registry to push to: HOST[:PORT][/PREFIX]")
    registry_credentials: Path | None = Field(
        default=None, description="docker's config.json, or a file with user:password or a token"
    )
    registry_ca: Path | None = Field(
        default=None, description="PEM file of the authority of the registry's certificate"
    )
    registry_plain_http: bool = Field(default=False, description="speak HTTP without TLS with other machines too")
    registry_delete: bool = Field(
        default=False, description="delete versions from the registry that are no longer kept"
    )
    base_image: str | None = Field(default=None, description="base of images whose policy names none")
    sign_command: str | None = Field(
        default=None, description="command that signs a pushed image; gets its reference as argument"
    )
    sign_timeout_s: Seconds = Field(default=120.0, description="seconds that it may take")
    # Prometheus
    prometheus_url: str | None = Field(
        default=None, description="address of Prometheus; without it no metric is asked for"
    )
    prometheus_token_file: Path | None = Field(default=None, description="file of a bearer token, read at each tick")
    prometheus_user: str | None = Field(default=None, description="user name of basic authentication")
    prometheus_password_file: Path | None = Field(default=None, description="file of its password, read at each tick")
    prometheus_headers_file: Path | None = Field(
        default=None, description="file of further headers, NAME: VALUE a line"
    )
    prometheus_ca_file: Path | None = Field(
        default=None, description="certificates that Prometheus' own is checked against"
    )
    prometheus_timeout_s: Annotated[float, Field(gt=0, le=300)] = Field(
        default=10.0, description="of one query, to its last byte"
    )
    prometheus_parallel: Annotated[int, Field(ge=1, le=32)] = Field(default=4, description="queries in flight")
    prometheus_max_mb: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=64, description="of one answer; more is unknown"
    )
    prometheus_own_queries: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=5, description="queries of policies' own PromQL a tick; the others have their turn later"
    )
    metrics: Annotated[Mapping[MetricName, NamedMetric], Field(max_length=50)] | None = Field(
        default=None, description="named metrics, beside and instead of the built-in ones"
    )
    # Git: where policies and training code are followed from, and where promoted digests are written to (docs/git.md)
    git_url: str | None = Field(default=None, description="repository to follow policies from; none by default")
    git_branch: str = Field(default="main", description="its branch")
    git_path: str = Field(default="", description="folder of the policies in it; empty for all of it")
    git_interval_s: Seconds = Field(default=60.0, description="seconds between two looks at the branch")
    git_protocols: str = Field(
        default="https,ssh", description="how repositories may be reached: https, ssh, http, file"
    )
    git_credentials_file: Path | None = Field(
        default=None, description="file with token=…, or username=… and password=…"
    )
    git_ssh_key_file: Path | None = Field(default=None, description="private key for ssh")
    git_known_hosts_file: Path | None = Field(default=None, description="keys of the hosts that ssh may speak to")
    git_timeout_s: Seconds = Field(default=120.0, description="longest time of one fetch or push")
    git_max_mb: Annotated[int, Field(ge=1)] = Field(default=512, description="largest fetch, and largest worktree")
    git_max_files: Annotated[int, Field(ge=1)] = Field(default=50_000, description="most files and folders of a commit")
    gitops_url: str | None = Field(default=None, description="repository to write promoted digests to; none by default")
    gitops_branch: str = Field(default="main", description="its branch")
    gitops_path: str = Field(
        default="apps/{model}/kustomization.yaml", description="a model's file in it; {model} is the model's name"
    )
    gitops_key: str = Field(
        default="", description="dotted key of the digest in that file; empty: it is a kustomization.yaml"
    )
    gitops_image: str = Field(
        default="{model}", description="name of the image in the kustomization.yaml; {model} is the model's name"
    )
    gitops_author: str = Field(default="Ratchet <ratchet@localhost>", description="author of the commits")
    gitops_signing_key_file: Path | None = Field(default=None, description="ssh key that signs the commits")
    gitops_credentials_file: Path | None = Field(default=None, description="as git_credentials_file")
    gitops_ssh_key_file: Path | None = Field(default=None, description="as git_ssh_key_file")
    gitops_known_hosts_file: Path | None = Field(default=None, description="as git_known_hosts_file")
    clock: Path | None = Field(default=None, description="file of an accelerated clock, for demonstrations")
    # notices: docs/notices.md
    public_url: str | None = Field(default=None, description="address under which people reach the dashboard")
    slack_channel: str | None = Field(default=None, description="told of models whose policies name no Slack channel")
    slack_token_file: Path | None = Field(default=None, description="file that holds the app's bot token")
    slack_token_env: str | None = Field(default=None, description="variable that holds it instead")
    slack_api: str = Field(default="https://slack.com/api/", description="Slack's Web API")
    slack_signing_secret_file: Path | None = Field(default=None, description="file that holds the app's signing secret")
    slack_signing_secret_env: str | None = Field(default=None, description="variable that holds it instead")
    slack_users: Words | None = Field(default=None, description="ids of those whose buttons count")
    webhook: str | None = Field(default=None, description="told of models whose policies name no webhook")
    webhooks: dict[str, WebhookPlace] | None = Field(default=None, description="webhooks that policies may name")
    alertmanager_urls: Words | None = Field(default=None, description="every instance of a cluster")
    alertmanager_user: str | None = Field(default=None, description="for basic authentication")
    alertmanager_secret_file: Path | None = Field(default=None, description="file that holds the password or token")
    alertmanager_secret_env: str | None = Field(default=None, description="variable that holds it instead")
    alert_hook_token_file: Path | None = Field(default=None, description="file that holds the token of inbound alerts")
    alert_hook_token_env: str | None = Field(default=None, description="variable that holds it instead")
    alert_max_age_s: Annotated[float, Field(gt=0)] = Field(
        default=18_000.0, description="an alert that was not repeated for so long is unknown"
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"

    @field_validator("prometheus_url")
    @classmethod
    def _plain_url(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "http://unset")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be a URL such as http://prometheus:9090")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "must hold no user, password, query or fragment: see prometheus_token_file and prometheus_password_file"
            )
        return value.rstrip("/") if value else None

    @model_validator(mode="after")
    def _one_way_in(self) -> Self:
        if (self.prometheus_user is None) != (self.prometheus_password_file is None):
            raise ValueError("prometheus_user and prometheus_password_file go together")
        if self.prometheus_user is not None and self.prometheus_token_file is not None:
            raise ValueError("give prometheus_token_file or prometheus_user, not both")
        return self

    @model_validator(mode="after")
    def _channels_work(self) -> Self:
        """What could tell nobody, or hear nobody, is a mistake."""
        if self.webhook and "://" not in self.webhook and self.webhook not in (self.webhooks or {}):
            there = ", ".join(self.webhooks or {}) or "none yet"
            raise ValueError(f"webhook must be an address, or a name in webhooks ({there})")
        if self.slack_channel and not (self.slack_token_file or self.slack_token_env):
            raise ValueError("slack_channel needs slack_token_file or slack_token_env")
        if self.slack_users and not (self.slack_signing_secret_file or self.slack_signing_secret_env):
            raise ValueError("slack_users needs slack_signing_secret_file or slack_signing_secret_env")
        if self.alertmanager_user and not (self.alertmanager_secret_file or self.alertmanager_secret_env):
            raise ValueError("alertmanager_user needs alertmanager_secret_file or alertmanager_secret_env")
        return self

    @field_validator("home")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @model_validator(mode="after")
    def _has_registry(self) -> Settings:
        if self.image_builder == "registry" and not self.registry:
            raise ValueError("image_builder is registry: registry must name one, such as registry.example/models")
        if self.image_builder == "docker" and self.registry:
            raise ValueError(
                "image_builder is docker, which pushes nothing: set it to registry to push to one (versions with target: docker are put "
                "into the Engine all the same), or leave registry empty"
            )
        if self.sign_command and self.image_builder != "registry":
            raise ValueError(
                "sign_command signs what is in a registry: image_builder must be registry, or sign_command be empty"
            )
        return self

    @field_validator("public_url", "slack_api", "alertmanager_urls")
    @classmethod
    def _address(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        for url in (value,) if isinstance(value, str) else value or ():
            check_url(url)
        return value

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.home / 'state.db'}"


def unreadable_files(settings: Settings) -> dict[str, str]:
    """Settings that name a file which cannot be read now, each with the reason. It may come later, so that this is no mistake yet."""
    found: dict[str, str] = {}
    for name in Settings.model_fields:
        path = getattr(settings, name)
        if isinstance(path, Path) and name not in ("home", "clock"):
            try:
                path.stat()  # not opened: a pipe would wait
            except OSError as error:
                found[name] = f"{path}: {(error.strerror or type(error).__name__).lower()}"
            else:
                if not os.access(path, os.R_OK):
                    found[name] = f"{path}: permission denied"
    return found


def unknown_variables(names: Iterable[str]) -> dict[str, str]:
    """Variables that look like settings and are none, each with the setting that may be meant, or an empty string.

    >>> unknown_variables(["RATCHET_TICKS", "RATCHET_PORT", "RATCHET_TOKEN", "RATCHET_SIM_SEEDS", "HOME"])
    {'RATCHET_TICKS': 'RATCHET_TICK_S'}
    """
    known = [PREFIX + field.upper() for field in Settings.model_fields]
    suspects = [name for name in names if name.upper().startswith(PREFIX) and name.upper() not in known]
    return {
        name: next(iter(difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.8)), "")
        for name in sorted(suspects)
        if not any(name == own or (own.endswith("_") and name.startswith(own)) for own in _NOT_OURS)
    }
