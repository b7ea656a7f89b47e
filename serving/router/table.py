"""The routing table of one model: its shape, its rules, and the choice of a version for a request. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeGuard

MODEL_PATTERN = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_BACKEND_PATTERN = re.compile(r"http://[A-Za-z0-9.\-]+(:[0-9]{1,5})?")
_VERSION_PATTERN = re.compile(r"[1-9][0-9]{0,8}")
_FIELDS = {"epoch", "generation", "backends", "weights", "shadow", "baseline"}
BASELINE = "baseline"
"""The name of the replicas that a canary is compared with, among those of versions."""
_HASH_SPAN = 2.0**64


class RouteError(ValueError):
    """A table that breaks rules. `errors` names every broken one: field, rule and value."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("; ".join(errors))
        self.errors = errors


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """Replicas of a version that serves already, started together with a canary and given as many requests."""

    version: str
    weight: float
    """Percent of all live traffic, out of the version's."""
    urls: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """Where the requests of one model go. Versions are decimal strings, as in JSON keys."""

    model: str
    epoch: int
    generation: int
    backends: Mapping[str, tuple[str, ...]]
    """Version → base URLs of its ready replicas; may be empty while a version has none."""
    weights: Mapping[str, float]
    """Version → percent of live traffic, above 0; adds up to 100, or is empty (nothing serves yet)."""
    shadow: str | None
    baseline: Baseline | None = None

    @property
    def arms(self) -> Mapping[str, tuple[str, ...]]:
        """Version, or BASELINE, → base URLs."""
        return self.backends if self.baseline is None else {**self.backends, BASELINE: self.baseline.urls}

    def version_of(self, arm: str) -> str:
        """The version that an arm serves."""
        if arm != BASELINE:
            return arm
        return self.baseline.version if self.baseline is not None else self.champion or arm  # gone since it answered

    def choose(self, key: str) -> str:
        """The arm that answers requests with this sticky key."""
        version, baseline = choose_version(self.model, self.weights, key), self.baseline
        if baseline is None or version != baseline.version or not baseline.urls:
            return version
        share = baseline.weight / self.weights[version]
        return BASELINE if _uniform(self.model, key, BASELINE) < share else version

    @property
    def champion(self) -> str | None:
        """The version with the highest weight (of equals, the older); it answers when another cannot."""
        return min(self.weights, key=lambda v: (-self.weights[v], int(v)), default=None)

    @property
    def fence(self) -> tuple[int, int]:
        return self.epoch, self.generation

    def to_json(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "generation": self.generation,
            "backends": {v: list(urls) for v, urls in self.backends.items()},
            "weights": dict(self.weights),
            "shadow": self.shadow,
            **({} if self.baseline is None else {"baseline": _baseline_json(self.baseline)}),
        }


def _baseline_json(baseline: Baseline) -> dict[str, Any]:
    return {"version": baseline.version, "weight": baseline.weight, "urls": list(baseline.urls)}


def parse_route(model: str, body: Any) -> Route:
    """The route that `body` (decoded JSON) describes. Raises RouteError with every broken rule."""
    if not MODEL_PATTERN.fullmatch(model):
        raise RouteError([f"model: must be a DNS label, but got {model!r}"])
    if not isinstance(body, dict):
        raise RouteError([f"body: must be a JSON object, but got {type(body).__name__}"])
    errors = [f"{name}: unknown field; fields are {', '.join(sorted(_FIELDS))}" for name in sorted(set(body) - _FIELDS)]
    for name in ("epoch", "generation"):
        if type(body.get(name)) is not int or body[name] < 0:
            errors.append(f"{name}: must be a whole number, 0 or more, but got {body.get(name)!r}")
    backends = _backends(body.get("backends"), errors)
    weights = _weights(body.get("weights"), backends, errors)
    shadow = body.get("shadow")
    if shadow is not None and (shadow not in backends or shadow in weights):
        errors.append(f"shadow: must be a version in backends that has no weight, but got {shadow!r}")
    baseline = _baseline(body.get("baseline"), weights, errors)
    if errors:
        raise RouteError(errors)
    return Route(
        model=model,
        epoch=body["epoch"],
        generation=body["generation"],
        backends=backends,
        weights={v: w for v, w in weights.items() if w > 0},
        shadow=shadow,
        baseline=baseline,
    )


def _baseline(value: Any, weights: Mapping[str, float], errors: list[str]) -> Baseline | None:
    if value is None:
        return None
    found: dict[str, Any] = value if isinstance(value, dict) else {}
    version, weight, urls = str(found.get("version")), found.get("weight"), found.get("urls")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= weights.get(version, 0):
        errors.append(f"baseline: must have a version with weight and a share of its percents, but got {value!r}")
    elif not _are_urls(urls):
        errors.append(f"baseline.urls: must be a list of URLs like http://127.0.0.1:4001, but got {urls!r}")
    else:
        return Baseline(version=version, weight=float(weight), urls=tuple(dict.fromkeys(urls)))
    return None


def _are_urls(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(u, str) and _BACKEND_PATTERN.fullmatch(u) for u in value)


def _backends(value: Any, errors: list[str]) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        errors.append(f"backends: must map versions to lists of URLs, but got {value!r}")
        return {}
    found: dict[str, tuple[str, ...]] = {}
    for version, urls in value.items():
        if not _VERSION_PATTERN.fullmatch(version):
            errors.append(f"backends: a version is a whole number from 1, but got {version!r}")
        elif not _are_urls(urls):
            errors.append(f"backends.{version}: must be a list of URLs like http://127.0.0.1:4001, but got {urls!r}")
        else:
            found[version] = tuple(dict.fromkeys(urls))
    return found


def _weights(value: Any, backends: Mapping[str, Any], errors: list[str]) -> dict[str, float]:
    if not isinstance(value, dict):
        errors.append(f"weights: must map versions to percents, but got {value!r}")
        return {}
    for version, weight in value.items():
        if version not in backends:
            errors.append(f"weights.{version}: is no version in backends")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 100:
            errors.append(f"weights.{version}: must be a percent from 0 to 100, but got {weight!r}")
            return {}
    if value and abs(math.fsum(value.values()) - 100) > 1e-6:
        errors.append(f"weights: must add up to 100, but add up to {math.fsum(value.values()):g}")
    return {str(v): float(w) for v, w in value.items()}


def choose_version(model: str, weights: Mapping[str, float], key: str) -> str:
    """The version that answers requests with this sticky key, by weighted rendezvous hashing.

        version = argmax over v of  -w_v / ln(u_v),   u_v = (H(model, key, v) + 1/2) / 2^64  in (0, 1)

    Each version draws an exponential with rate w_v, so P(v) = w_v / sum(w), and raising one weight moves keys only to that version.
    Source: Schindelhauer and Schomaker, "Weighted distributed hash tables" (SPAA 2005), the logarithmic method.

    >>> keys = [f"client-{i}" for i in range(2000)]
    >>> before = [choose_version("m", {"7": 95.0, "8": 5.0}, k) for k in keys]
    >>> after = [choose_version("m", {"7": 75.0, "8": 25.0}, k) for k in keys]
    >>> before.count("8"), after.count("8"), sum(b == "8" and a == "7" for b, a in zip(before, after))
    (106, 483, 0)
    """
    if len(weights) == 1:
        return next(iter(weights))
    return max(weights, key=lambda version: (-weights[version] / math.log(_uniform(model, key, version)), version))


def _uniform(model: str, key: str, version: str) -> float:
    digest = blake2b(f"{model}\0{key}\0{version}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return min((int.from_bytes(digest, "big") + 0.5) / _HASH_SPAN, 1 - 2**-53)
