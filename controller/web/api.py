"""`/api/v1`: the service over HTTP. Handlers only translate; each runs in a thread, since the store blocks."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from litestar import Request, Response, Router, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter, SkipValidation

from controller.explaining import Explanation
from controller.notices.building import ChannelStatus, ChannelTest
from controller.overrides import Order, Preview, Verb
from controller.replaying import Replayed
from controller.service import Applied, Ordered, PolicyDocument, Service
from controller.sources.port import SourceStatus
from controller.views import CycleView, EventView, IncidentView, ModelDetail, ModelSummary, VersionView
from deployers.target import MetricsPage

EVENT_POLL_S = 0.25
EVENT_WAIT_MAX_S = 60.0

Asked = NamedDependency[SkipValidation[Service]]
Limit = Annotated[int, QueryParameter(ge=1, le=1000, description="at most so many")]
Name = FromPath[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelList:
    models: Sequence[ModelSummary]


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionList:
    versions: Sequence[VersionView]


@dataclass(frozen=True, kw_only=True, slots=True)
class CycleList:
    cycles: Sequence[CycleView]


@dataclass(frozen=True, kw_only=True, slots=True)
class IncidentList:
    incidents: Sequence[IncidentView]


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceList:
    sources: Sequence[SourceStatus]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelList:
    channels: Sequence[ChannelStatus]


@dataclass(frozen=True, kw_only=True, slots=True)
class TestRequest:
    actor: str
    """Who asks, such as `ada@laptop`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TestList:
    tests: Sequence[ChannelTest]


@dataclass(frozen=True, kw_only=True, slots=True)
class EventList:
    events: Sequence[EventView]


@dataclass(frozen=True, kw_only=True, slots=True)
class AppliedList:
    applied: Sequence[Applied]


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetGroup:
    """One entry of Prometheus' HTTP service discovery."""

    targets: Sequence[str]
    """`host:port`."""
    labels: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class ApplyRequest:
    documents: Sequence[PolicyDocument]
    actor: str
    """Who asks, such as `ada@laptop`."""
    dry_run: bool = False
    """Only say what would change."""
    force: bool = False
    """Also where the policy is followed from Git, until it changes there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderRequest:
    verb: Verb
    actor: str
    """Who orders, such as `ada@laptop`."""
    reason: str = ""
    """Why; needed for all but previews."""
    version: int | None = None
    """For pin, promote and rollback."""
    row_version: int | None = field(default=None)
    """Of the state that was previewed; the order is refused if the model has changed since."""

    def order(self) -> Order:
        return Order(
            verb=self.verb, actor=self.actor, reason=self.reason, version=self.version, row_version=self.row_version
        )


# ---------------------------------------------------------------- reading
@get("/models", sync_to_thread=True)
def list_models(service: Asked) -> ModelList:
    """All models."""
    return ModelList(models=service.models())


@get("/models/{name:str}", sync_to_thread=True)
def get_model(service: Asked, name: Name) -> ModelDetail:
    """All about one model, what is in force on the target included."""
    return service.model(name)


@get("/models/{name:str}/versions", sync_to_thread=True)
def list_versions(service: Asked, name: Name) -> VersionList:
    """A model's versions, by number."""
    return VersionList(versions=service.versions(name))


@get("/models/{name:str}/cycles", sync_to_thread=True)
def list_model_cycles(service: Asked, name: Name, limit: Limit = 100) -> CycleList:
    """A model's cycles, newest first."""
    return CycleList(cycles=service.cycles(name, limit=limit))


@get("/models/{name:str}/cycles/{number:int}/drift", sync_to_thread=True, media_type="text/html")
def get_drift_report(service: Asked, name: Name, number: FromPath[int]) -> Response[bytes]:
    """Evidently's report of the drift that opened a cycle, as a file to save: it holds scripts, which must not run beside this API."""
    headers = {"content-disposition": f'attachment; filename="{name}-c{number}-drift.html"'}
    return Response(service.drift_report(name, number).read_bytes(), media_type="text/html", headers=headers)


@get("/models/{name:str}/explain", sync_to_thread=True)
def explain_model(service: Asked, name: Name) -> Explanation:
    """Why the model is where it is, what comes next, and how to stop it."""
    return service.explain(name)


@get("/cycles", sync_to_thread=True)
def list_cycles(service: Asked, limit: Limit = 100) -> CycleList:
    """The cycles of all models, newest first."""
    return CycleList(cycles=service.cycles(limit=limit))


@get("/incidents", sync_to_thread=True)
def list_incidents(
    service: Asked,
    open_only: Annotated[bool, QueryParameter(name="open", description="those that last only")] = False,
    limit: Limit = 100,
) -> IncidentList:
    """What is or was wrong with the data that feeds the models, newest first; the same fault in many models is one incident."""
    return IncidentList(incidents=service.incidents(open_only=open_only, limit=limit))


@get("/sources", sync_to_thread=True)
def list_sources(service: Asked) -> SourceList:
    """Repositories that policies are followed from and promoted digests written to: what is in force, and what is wrong."""
    return SourceList(sources=service.sources())


@get("/notices", sync_to_thread=True)
def list_channels(service: Asked) -> ChannelList:
    """By which channels people are told, how much waits for each, and why its newest attempt failed."""
    return ChannelList(channels=service.channels())


@post("/notices/test", status_code=200, sync_to_thread=True)
def send_tests(service: Asked, data: JSONBody[TestRequest]) -> TestList:
    """Send a test message to every channel, and say what came of each."""
    return TestList(tests=service.test_notices(actor=data.actor))


@get("/events")
async def list_events(
    service: Asked,
    model: Annotated[str | None, QueryParameter(description="of this model only")] = None,
    after: Annotated[int, QueryParameter(ge=0, description="with a greater seq than this")] = 0,
    limit: Limit = 100,
    newest: Annotated[bool, QueryParameter(description="the last ones, not the first")] = False,
    grounds: Annotated[bool, QueryParameter(description="with all that each decision rested on")] = False,
    wait_s: Annotated[float, QueryParameter(ge=0, le=EVENT_WAIT_MAX_S, description="wait so long for the first")] = 0.0,
) -> EventList:
    """The record, in order of `seq`. With `wait_s`, a long poll: answers as soon as there is an event."""
    rounds = 1 + int(wait_s / EVENT_POLL_S)
    for left in range(rounds, 0, -1):
        events = await asyncio.to_thread(
            service.events, model, after=after, limit=limit, newest=newest, grounds=grounds
        )  # fmt: skip
        if events or left == 1:
            break
        await asyncio.sleep(EVENT_POLL_S)
    return EventList(events=events)


@get("/events/{seq:int}/replay", sync_to_thread=True)
def replay_event(service: Asked, seq: FromPath[int]) -> Replayed:
    """Take a recorded decision again from what it rested on, and compare."""
    return service.replay(seq)


# ---------------------------------------------------------------- changing
@post("/policies", status_code=200, sync_to_thread=True)
def apply_policies(service: Asked, data: JSONBody[ApplyRequest]) -> AppliedList:
    """Follow these policies from now on; if one is refused, none is applied."""
    return AppliedList(applied=service.apply(data.documents, actor=data.actor, dry_run=data.dry_run, force=data.force))


@delete("/models/{name:str}", status_code=200, sync_to_thread=True)
def delete_model(service: Asked, name: Name, actor: FromQuery[str], reason: FromQuery[str]) -> dict[str, str]:
    """Forget a model and stop what serves it. Its events stay."""
    service.delete(name, actor=actor, reason=reason)
    return {"deleted": name}


@post("/models/{name:str}/preview", status_code=200, sync_to_thread=True)
def preview_order(service: Asked, name: Name, data: JSONBody[OrderRequest]) -> Preview:
    """What an order would change."""
    return service.preview(name, data.order())


@post("/models/{name:str}/orders", status_code=200, sync_to_thread=True)
def give_order(service: Asked, name: Name, data: JSONBody[OrderRequest]) -> Ordered:
    """Carry an override out."""
    return service.order(name, data.order())


@get("/targets", sync_to_thread=True)
def list_targets(service: Asked, request: Request[Any, Any, Any]) -> list[TargetGroup]:
    """What Prometheus should scrape, as its http_sd_configs expect it: the daemon, the router and every replica."""
    own = TargetGroup(targets=[request.url.netloc], labels={"instance": "daemon", "__meta_ratchet_kind": "daemon"})
    return [own, *(_group(page) for page in service.pages())]


def _group(page: MetricsPage) -> TargetGroup:
    """Model and version are not labels of the target, since the samples have them; they are there to choose by."""
    labels = {"instance": page.instance, "__meta_ratchet_kind": "replica" if page.model else "router"}
    if page.model:
        labels |= {
            "__meta_ratchet_model": page.model, "__meta_ratchet_version": str(page.version),
            "__meta_ratchet_arm": page.arm,
        }  # fmt: skip
    return TargetGroup(targets=[page.address], labels=labels)


ROUTER = Router(
    path="/api/v1",
    route_handlers=[
        list_models, get_model, list_versions, list_model_cycles, get_drift_report, explain_model, list_cycles,
        list_targets, list_incidents, list_channels, send_tests, list_sources, list_events, replay_event,
        apply_policies, delete_model, preview_order, give_order,
    ],
)  # fmt: skip
