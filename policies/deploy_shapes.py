"""Shapes of `spec.deploy` and `spec.model`: where versions serve, and on what."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from policies.fields import Number, Shape, Text, Whole
from policies.problems import shown


def _inside(path: str) -> str:
    if path.startswith(("/", "~")) or ".." in path.split("/"):
        raise ValueError(f"must be a path in the policy's folder, without '..', but got {shown(path)}")
    return path


class Deploy(Shape):
    """Where versions serve."""

    target: Literal["local", "docker", "kubernetes"] | None = None
    """`local`: processes on this machine; `docker`: containers of its Engine; `kubernetes`: a cluster; default: the daemon's setting."""
    replicas: Annotated[Whole, Field(ge=1, le=256)] = 1
    """Serving processes (or containers) a version."""
    workers: Annotated[Whole, Field(ge=1, le=64)] = 1
    """Forked workers a replica; they share the model's memory."""
    memory_mb: Annotated[Whole, Field(ge=16, le=16_777_216)] | None = None
    """A container may use so many million bytes; one that wants more is killed, and started again; by default no limit."""
    cpus: Annotated[Number, Field(ge=0.01, le=1024)] | None = None
    """A container may use so much processor time, 1 being one processor; by default no limit."""
    base_image: Text | None = None
    """Image under ours: `HOST/NAME:TAG` or `…@sha256:…` in a registry, or an OCI layout, `FOLDER[:TAG]`; default: the daemon's setting."""
    requirements: Annotated[Text, AfterValidator(_inside)] | None = None
    """Lock file of Python packages (pip's format, each `==` with hashes) that the model needs; they become a layer of their own."""


class ModelSpec(Shape):
    """Where a version's model lies."""

    placement: Literal["image", "volume", "pull"] = "image"
    """`image`: inside; `volume`: in a folder that all replicas of a machine share; `pull`: each replica fetches it when it starts."""
